/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/config-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/fd.h"
#include "master/option.h"

/* Far more than any configuration; keeps a wrong path from filling the memory. */
#define FILE_BYTES_MAX (1024 * 1024)

/* ---- Where a key stands: the text is known to be valid JSON ---- */

struct scanner {
	const char *at, *end;
	unsigned line, depth;
};

/* To the character behind the closing quote. A line can't end within a string. */
static void skip_string(struct scanner *s)
{
	for (s->at++; s->at < s->end && *s->at != '"'; s->at++)
		if (*s->at == '\\')
			s->at++;
	s->at++;
}

static bool is_key(const char *quoted, size_t len, const char *key)
{
	json_t *decoded = json_loadb(quoted, len, JSON_DECODE_ANY, NULL);
	bool same = decoded && strcmp(json_string_value(decoded), key) == 0;

	json_decref(decoded);
	return same;
}

/* At a quote. Leaves the string behind. */
static bool scan_string(struct scanner *s, bool expect_key, const char *key)
{
	const char *start = s->at;

	skip_string(s);
	return expect_key && is_key(start, (size_t)(s->at - start), key);
}

/* The line of a key of the root, or 0. */
static unsigned find_line(const struct config_file *file, const char *key)
{
	struct scanner s = { .at = file->text, .end = file->text + file->len, .line = 1 };
	bool expect_key = false;

	for (; s.at < s.end; s.at++) {
		while (s.at < s.end && *s.at == '"') {
			if (scan_string(&s, expect_key, key))
				return s.line;
			expect_key = false;
		}
		if (s.at >= s.end)
			break;
		if (*s.at == '\n')
			s.line++;
		else if (*s.at == '{' || *s.at == '[')
			s.depth++;
		else if (*s.at == '}' || *s.at == ']')
			s.depth--;
		if (s.depth == 1 && (*s.at == '{' || *s.at == ','))
			expect_key = true;
	}
	return 0;
}

int config_file_refuse(
	const struct config_file *file, const char *key, const char *why, char **out_error)
{
	unsigned line = find_line(file, key);

	if (line == 0)
		return option_refuse(out_error, "%s: \"%s\": %s", file->name, key, why);
	return option_refuse(out_error, "%s:%u: \"%s\": %s", file->name, line, key, why);
}

/* ---- Reading ---- */

static int refuse_errno(const char *name, int error, char **out_error)
{
	return option_refuse(out_error, "%s: %s", name, strerror(-error));
}

/* One byte more than allowed, so that a file that is too large shows. Returns 0 or -errno. */
static int read_all(int fd, char **out_text, size_t *out_len)
{
	OPTION_TEXT_AUTO char *text = malloc(FILE_BYTES_MAX + 1);
	size_t len = 0;
	ssize_t n;

	if (!text)
		return -ENOMEM;
	while (len <= FILE_BYTES_MAX) {
		n = read(fd, text + len, FILE_BYTES_MAX + 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += (size_t)n;
	}
	if (len > FILE_BYTES_MAX)
		return -EFBIG;
	*out_text = text;
	*out_len = len;
	text = NULL;
	return 0;
}

/*
 * Regular files only: every reload reads it again, and a pipe would stop the control thread then.
 * For the same reason the open must not wait for somebody to write into one.
 */
static int read_file(const char *path, char **out_text, size_t *out_len, char **out_error)
{
	FD_AUTO int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return refuse_errno(path, -errno, out_error);
	if (S_ISDIR(st.st_mode))
		return refuse_errno(path, -EISDIR, out_error);
	if (!S_ISREG(st.st_mode))
		return option_refuse(out_error, "%s: not a regular file", path);
	r = read_all(fd, out_text, out_len);
	return r < 0 ? refuse_errno(path, r, out_error) : 0;
}

static int refuse_root(const struct config_file *file, char **out_error)
{
	int line = 1, column = 1;

	for (const char *at = file->text; *at == ' ' || *at == '\t' || *at == '\r' || *at == '\n';
		at++) {
		column = *at == '\n' ? 1 : column + 1;
		line += *at == '\n';
	}
	return option_refuse(
		out_error, "%s:%d:%d: expected an object, {...}", file->name, line, column);
}

int config_file_parse(
	struct config_file *file, const char *name, const char *text, size_t len, char **out_error)
{
	json_error_t error;

	file->name = name;
	file->text = malloc(len + 1);
	if (!file->text)
		return option_refuse(out_error, "%s: out of memory", name);
	if (len > 0)
		memcpy(file->text, text, len);
	file->text[len] = '\0';
	file->len = len;
	file->root = json_loadb(file->text, len, JSON_REJECT_DUPLICATES, &error);
	if (!file->root)
		return option_refuse(out_error, "%s:%d:%d: %s", name,
			error.line > 0 ? error.line : 1, error.column > 0 ? error.column : 1,
			error.text);
	return json_is_object(file->root) ? 0 : refuse_root(file, out_error);
}

int config_file_open(struct config_file *file, const char *path, char **out_error)
{
	OPTION_TEXT_AUTO char *text = NULL;
	size_t len = 0;
	int r = read_file(path, &text, &len, out_error);

	return r < 0 ? r : config_file_parse(file, path, text, len, out_error);
}

void config_file_close(struct config_file *file)
{
	json_decref(file->root);
	free(file->text);
	*file = (struct config_file){ 0 };
}

/* ---- Applying ---- */

static int refuse_unknown(const struct config_file *file, const char *key, char **out_error)
{
	const struct option *nearest = option_nearest(key, OPTION_FILE);
	OPTION_TEXT_AUTO char *near_key = nearest ? option_key(nearest) : NULL;
	OPTION_TEXT_AUTO char *why = NULL;

	if (!near_key)
		return config_file_refuse(file, key, "unknown key", out_error);
	option_refuse(&why, "unknown key; did you mean \"%s\"?", near_key);
	return config_file_refuse(file, key, why ? why : "unknown key", out_error);
}

int config_file_apply(const struct config_file *file, struct config *config, char **out_error)
{
	const char *key;
	json_t *value;

	json_object_foreach(file->root, key, value)
	{
		const struct option *option = option_by_key(key);
		OPTION_TEXT_AUTO char *why = NULL;

		if (!option)
			return refuse_unknown(file, key, out_error);
		if (option_set_json(option, config, value, &why) < 0)
			return config_file_refuse(
				file, key, why ? why : "out of memory", out_error);
	}
	return 0;
}
