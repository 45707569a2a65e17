/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Config file: the JSON file, and where in it something stands.
 *
 * Control thread only.
 */
#include <jansson.h>
#include <stddef.h>

struct config;

struct config_file {
	const char *name; /* for messages; the caller's */
	char *text;	  /* len bytes, then a NUL; kept to find the line of a key */
	size_t len;
	json_t *root; /* an object */
};

/*
 * Fill in *file, which must be zero, and is to be closed in any case. Return 0, or -EINVAL with
 * *out_error set (NULL when out of memory).
 */
int config_file_open(struct config_file *file, const char *path, char **out_error);
int config_file_parse(
	struct config_file *file, const char *name, const char *text, size_t len, char **out_error);
/* Sets everything that the file names. Returns 0 or -EINVAL. */
int config_file_apply(const struct config_file *file, struct config *config, char **out_error);
/* Says that something is wrong with a key, which need not exist: file, line, key, why. Returns
 * -EINVAL. */
int config_file_refuse(
	const struct config_file *file, const char *key, const char *why, char **out_error);
/* Accepts one that is zero. */
void config_file_close(struct config_file *file);
