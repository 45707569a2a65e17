/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/title.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

/* In one piece, so that what unsetenv(3) takes out of the array later is not lost memory. */
static char **copy_strings(char *const strings[])
{
	size_t n = 0, len = 0;
	char **copy, *at;

	for (; strings[n]; n++)
		len += strlen(strings[n]) + 1;
	copy = malloc((n + 1) * sizeof(*copy) + len);
	if (!copy)
		return NULL;
	at = (char *)(copy + n + 1);
	for (size_t i = 0; i < n; i++) {
		copy[i] = at;
		at = stpcpy(at, strings[i]) + 1;
	}
	copy[n] = NULL;
	return copy;
}

/* The end of the strings that the kernel put behind one another, from start on. */
static char *area_end(char *const strings[], char *start)
{
	char *end = start;

	for (size_t i = 0; strings[i]; i++)
		if (strings[i] == end)
			end += strlen(end) + 1;
	return end;
}

void title_set(char ***argv, const char *title, const char *role)
{
	char *start = (*argv)[0], *end = area_end(environ, area_end(*argv, start));
	char **environment = copy_strings(environ), **arguments = copy_strings(*argv);
	char *text = NULL;

	if (!environment || !arguments || asprintf(&text, "%s %s", title, role) < 0) {
		free(environment);
		free(arguments);
		return;
	}
	environ = environment;
	*argv = arguments;
	memset(start, 0, (size_t)(end - start));
	snprintf(start, (size_t)(end - start), "%s", text);
	free(text);
}
