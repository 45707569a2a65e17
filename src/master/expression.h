/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Expression: arithmetic over the number of CPUs, for options such as --workers "cpus / 2".
 *
 * Decimal numbers, cpus, + - * / and parentheses; round(x) floor(x) ceil(x) min(x, …) max(x, …).
 * Any thread.
 */
#include <stdbool.h>
#include <stddef.h>

struct expression_result {
	double value; /* finite */
	bool uses_cpus;
};

struct expression_error {
	size_t position;  /* of the character that can't be, from 1 */
	const char *what; /* a constant string, without the position */
};

/* Returns 0, or -EINVAL with *out_error filled in. */
int expression_evaluate(const char *text, unsigned cpus, struct expression_result *out,
	struct expression_error *out_error);

/* CPUs that this process may run on; at least 1. */
unsigned expression_cpus(void);
