/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Table: the status document for people.
 */
#include <jansson.h>
#include <stdio.h>

/* Fields that are missing, null or of another type are shown as "-". */
void table_print(FILE *to, const json_t *status);
/* Prints text with its control bytes (but line ends and tabs) replaced: a terminal obeys them. */
void table_print_text(FILE *to, const char *text);
