/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/http.h"

#include <http_parser.h>
#include <string.h>

#include "common/http-text.h"

bool http_next_field(const char *data, uint32_t head_len, uint32_t *at, struct http_field *out)
{
	const char *end = data + head_len, *line = data + *at, *next, *colon;
	size_t len;

	if (*at == 0)
		line = http_line_end(line, end);
	next = http_line_end(line, end);
	colon = memchr(line, ':', (size_t)(next - line));
	if (next - line <= 2 || colon == NULL)
		return false;
	*at = (uint32_t)(next - data);
	out->name = line;
	out->name_len = (uint32_t)(colon - line);
	out->value = colon + 1;
	len = (size_t)(next - 2 - out->value);
	http_trim(&out->value, &len);
	out->value_len = (uint32_t)len;
	return true;
}

bool http_list_has(const char *value, size_t len, const char *token)
{
	const char *at = value, *end = value + len;
	size_t token_len = strlen(token);
	struct http_element element;

	while (http_next_element(&at, end, &element)) {
		size_t i = 0;

		while (i < element.len && i < token_len &&
			http_lower((uint8_t)element.text[i]) == http_lower((uint8_t)token[i]))
			i++;
		if (i == token_len && i == element.len)
			return token_len > 0;
	}
	return false;
}

static bool are_all(const char *text, size_t len, enum http_byte kind)
{
	for (size_t i = 0; i < len; i++)
		if (!(http_bytes[(uint8_t)text[i]] & kind))
			return false;
	return true;
}

bool http_is_token(const char *text, size_t len)
{
	return len > 0 && are_all(text, len, HTTP_BYTE_TOKEN);
}

bool http_is_value(const char *text, size_t len)
{
	return are_all(text, len, HTTP_BYTE_VALUE);
}

const char *http_reason(unsigned status)
{
	switch (status) {
#define REASON(number, name, text)                                                                 \
	case number:                                                                               \
		return #text;
		HTTP_STATUS_MAP(REASON)
#undef REASON
	/* Newer than http-parser's list. */
	case 103:
		return "Early Hints";
	case 425:
		return "Too Early";
	default:
		return "Unknown";
	}
}
