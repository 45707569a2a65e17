/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Http-text: what the files of http share: the words and lists of a head, and hosts.
 *
 * For http*.c alone. What the scanner asks of every line is inline, for its speed. Nothing is kept;
 * any thread.
 */
#include <string.h>

#include "common/http.h"

static inline uint8_t http_lower(uint8_t byte)
{
	return byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte;
}

/* word is in lower case. Not strncasecmp(), which asks the locale of the application. */
static inline bool http_is_word(const char *text, size_t len, const char *word)
{
	for (size_t i = 0; i < len; i++)
		if (word[i] == '\0' || http_lower((uint8_t)text[i]) != (uint8_t)word[i])
			return false;
	return word[len] == '\0';
}

static inline void http_trim(const char **text, size_t *len)
{
	while (*len > 0 && (**text == ' ' || **text == '\t'))
		(*text)++, (*len)--;
	while (*len > 0 && ((*text)[*len - 1] == ' ' || (*text)[*len - 1] == '\t'))
		(*len)--;
}

/* One element of a comma-separated list; an empty list has one, which is empty. */
struct http_element {
	const char *raw, *text; /* from comma to comma; without the space around it */
	size_t raw_len, len;
};

/* at: the list to begin with, NULL past its last element. Returns false there. */
static inline bool http_next_element(const char **at, const char *end, struct http_element *out)
{
	const char *comma;

	if (*at == NULL)
		return false;
	comma = memchr(*at, ',', (size_t)(end - *at));
	out->raw = out->text = *at;
	out->raw_len = out->len = (size_t)((comma != NULL ? comma : end) - *at);
	http_trim(&out->text, &out->len);
	*at = comma != NULL ? comma + 1 : NULL;
	return true;
}

/* Whether none of eight bytes is below 0x20 or 0x7f. */
static inline bool http_are_plain(const uint8_t *bytes)
{
	const uint64_t ones = 0x0101010101010101u, highs = ones << 7;
	uint64_t word, del;

	memcpy(&word, bytes, sizeof(word));
	del = word ^ (ones * 0x7f);
	return ((((word - ones * 0x20) & ~word) | ((del - ones) & ~del)) & highs) == 0;
}

/* Returns what is behind the line feed, or end where there is none. */
static inline const char *http_line_end(const char *line, const char *end)
{
	const char *lf = memchr(line, '\n', (size_t)(end - line));

	return lf != NULL ? lf + 1 : end;
}

/* The fields that the scanner and the removal of h2c look into. */
enum http_field_kind {
	HTTP_FIELD_OTHER,
	HTTP_FIELD_CONNECTION,
	HTTP_FIELD_CONTENT_LENGTH,
	HTTP_FIELD_EXPECT,
	HTTP_FIELD_HOST,
	HTTP_FIELD_HTTP2_SETTINGS,
	HTTP_FIELD_PROXY_CONNECTION,
	HTTP_FIELD_TRANSFER_ENCODING,
	HTTP_FIELD_UPGRADE,
};

static inline enum http_field_kind http_field_if(
	const char *name, size_t len, const char *word, enum http_field_kind field)
{
	return http_is_word(name, len, word) ? field : HTTP_FIELD_OTHER;
}

/* In any case. */
static inline enum http_field_kind http_field_kind(const char *name, size_t len)
{
	switch (len) {
	case 4:
		return http_field_if(name, len, "host", HTTP_FIELD_HOST);
	case 6:
		return http_field_if(name, len, "expect", HTTP_FIELD_EXPECT);
	case 7:
		return http_field_if(name, len, "upgrade", HTTP_FIELD_UPGRADE);
	case 10:
		return http_field_if(name, len, "connection", HTTP_FIELD_CONNECTION);
	case 14:
		if (http_is_word(name, len, "content-length"))
			return HTTP_FIELD_CONTENT_LENGTH;
		return http_field_if(name, len, "http2-settings", HTTP_FIELD_HTTP2_SETTINGS);
	case 16:
		return http_field_if(name, len, "proxy-connection", HTTP_FIELD_PROXY_CONNECTION);
	case 17:
		return http_field_if(name, len, "transfer-encoding", HTTP_FIELD_TRANSFER_ENCODING);
	default:
		return HTTP_FIELD_OTHER;
	}
}

/* Whether text, not empty, is on http-parser's own list, so that both know the same methods. */
bool http_is_method(const char *text, size_t len);
/* Whether text is a host that is not empty, with or without a port. */
bool http_is_host(const char *text, size_t len);
