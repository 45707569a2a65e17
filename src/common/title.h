/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Title: what ps(1) shows of the process, written over its arguments and environment.
 *
 * Before threads are started: environ is replaced by a copy.
 */

/*
 * Copies *argv and the environment, and writes "title role" over the originals. *argv is the copy
 * afterwards, for good; pointers into the old arguments and the old environment are void. Where
 * there is no memory for that everything stays.
 */
void title_set(char ***argv, const char *title, const char *role);
