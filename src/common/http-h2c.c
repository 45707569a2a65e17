/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/http.h"

#include <string.h>

#include "common/http-text.h"

static bool is_h2c_protocol(const struct http_element *element)
{
	return http_is_word(element->text, element->len, "h2c");
}

static bool is_h2c_option(const struct http_element *element)
{
	return http_is_word(element->text, element->len, "http2-settings");
}

static bool is_h2c_or_upgrade_option(const struct http_element *element)
{
	return is_h2c_option(element) || http_is_word(element->text, element->len, "upgrade");
}

/* Whether an Upgrade to something other than h2c is there. */
static bool upgrade_remains(const char *data, uint32_t head_len)
{
	struct http_field field;
	struct http_element protocol;
	uint32_t at = 0;

	while (http_next_field(data, head_len, &at, &field)) {
		const char *list = field.value;

		if (http_field_kind(field.name, field.name_len) != HTTP_FIELD_UPGRADE)
			continue;
		while (http_next_element(&list, field.value + field.value_len, &protocol))
			if (protocol.len > 0 && !is_h2c_protocol(&protocol))
				return true;
	}
	return false;
}

static bool any_drops(
	const char *value, const char *end, bool (*drops)(const struct http_element *))
{
	struct http_element element;

	while (http_next_element(&value, end, &element))
		if (drops(&element))
			return true;
	return false;
}

/*
 * Writes a line with a list to `to`, which is not behind it, without the elements that `drops`
 * names; nothing where none is left. Returns the length written, which is never more than what was
 * read.
 */
static size_t write_list(char *to, const char *line, size_t name_len, size_t len,
	bool (*drops)(const struct http_element *))
{
	const char *value = line + name_len + 1, *end = line + len - 2;
	struct http_element element;
	size_t written = 0;

	if (!any_drops(value, end, drops)) {
		memmove(to, line, len);
		return len;
	}
	memmove(to, line, name_len + 1);
	while (http_next_element(&value, end, &element)) {
		if (element.len == 0 || drops(&element))
			continue;
		if (written > 0)
			to[name_len + 1 + written++] = ',';
		memmove(to + name_len + 1 + written, element.raw, element.raw_len);
		written += element.raw_len;
	}
	if (written == 0)
		return 0;
	memcpy(to + name_len + 1 + written, "\r\n", 2);
	return name_len + 1 + written + 2;
}

/* Writes what is left of a line to `to`, which is not behind it. Returns its length. */
static size_t write_line(char *to, const char *line, size_t len, bool keep_upgrade)
{
	const char *colon = memchr(line, ':', len);
	size_t name_len = colon != NULL ? (size_t)(colon - line) : 0;

	switch (http_field_kind(line, name_len)) {
	case HTTP_FIELD_HTTP2_SETTINGS:
		return 0;
	case HTTP_FIELD_UPGRADE:
		return write_list(to, line, name_len, len, is_h2c_protocol);
	case HTTP_FIELD_CONNECTION:
		return write_list(to, line, name_len, len,
			keep_upgrade ? is_h2c_option : is_h2c_or_upgrade_option);
	default:
		memmove(to, line, len);
		return len;
	}
}

uint32_t http_head_remove_h2c(char *data, struct http_head *head)
{
	char *begin = data + head->start;
	const char *end = begin + head->len, *line = http_line_end(begin, end);
	bool keep_upgrade = upgrade_remains(begin, head->len);
	char *to = begin + (line - begin);
	uint32_t removed;

	while (line < end) {
		const char *next = http_line_end(line, end);

		to += write_line(to, line, (size_t)(next - line), keep_upgrade);
		line = next;
	}
	removed = (uint32_t)(end - to);
	head->len -= removed;
	head->h2c = false;
	return removed;
}
