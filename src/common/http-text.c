/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/http-text.h"

#include <arpa/inet.h>
#include <http_parser.h>

/* Tells what each byte may stand for, as constant expressions so that the table is read-only. */
#define IS_DIGIT(c) ((c) >= '0' && (c) <= '9')
#define IS_ALPHA(c) (((c) >= 'a' && (c) <= 'z') || ((c) >= 'A' && (c) <= 'Z'))
#define IS_HEX(c) (IS_DIGIT(c) || ((c) >= 'a' && (c) <= 'f') || ((c) >= 'A' && (c) <= 'F'))
#define IS_TOKEN(c)                                                                                \
	(IS_DIGIT(c) || IS_ALPHA(c) || (c) == '!' || (c) == '#' || (c) == '$' || (c) == '%' ||     \
		(c) == '&' || (c) == '\'' || (c) == '*' || (c) == '+' || (c) == '-' ||             \
		(c) == '.' || (c) == '^' || (c) == '_' || (c) == '`' || (c) == '|' || (c) == '~')
#define IS_HOST(c)                                                                                 \
	(IS_DIGIT(c) || IS_ALPHA(c) || (c) == '-' || (c) == '.' || (c) == '_' || (c) == '~' ||     \
		(c) == '!' || (c) == '$' || (c) == '&' || (c) == '\'' || (c) == '(' ||             \
		(c) == ')' || (c) == '*' || (c) == '+' || (c) == ';' || (c) == '=')
#define IS_VALUE(c) ((c) == '\t' || ((c) >= 0x20 && (c) != 0x7f))
#define IS_TARGET(c) ((c) > 0x20 && (c) < 0x7f && (c) != '#')
#define BYTE(c)                                                                                    \
	((IS_TOKEN(c) ? HTTP_BYTE_TOKEN : 0) | (IS_VALUE(c) ? HTTP_BYTE_VALUE : 0) |               \
		(IS_TARGET(c) ? HTTP_BYTE_TARGET : 0) | (IS_HOST(c) ? HTTP_BYTE_HOST : 0) |        \
		(IS_HEX(c) ? HTTP_BYTE_HEX : 0) | (IS_DIGIT(c) ? HTTP_BYTE_DIGIT : 0))
#define BYTES_4(c) BYTE(c), BYTE((c) + 1), BYTE((c) + 2), BYTE((c) + 3)
#define BYTES_16(c) BYTES_4(c), BYTES_4((c) + 4), BYTES_4((c) + 8), BYTES_4((c) + 12)
#define BYTES_64(c) BYTES_16(c), BYTES_16((c) + 16), BYTES_16((c) + 32), BYTES_16((c) + 48)

const uint8_t http_bytes[256] = { BYTES_64(0), BYTES_64(64), BYTES_64(128), BYTES_64(192) };

#define METHOD_TEXT(number, name, text) #text,
static const char *const methods[] = { HTTP_METHOD_MAP(METHOD_TEXT) };
#undef METHOD_TEXT

bool http_is_method(const char *text, size_t len)
{
	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
		if (methods[i][0] == text[0] && strlen(methods[i]) == len &&
			memcmp(methods[i], text, len) == 0)
			return true;
	return false;
}

/* ---- Hosts: RFC 3986, 3.2.2 and 3.2.3 ---- */

static bool is_port(const char *text, size_t len)
{
	unsigned port = 0;

	for (size_t i = 0; i < len; i++) {
		if (!(http_bytes[(uint8_t)text[i]] & HTTP_BYTE_DIGIT))
			return false;
		port = port * 10 + (unsigned)(text[i] - '0');
		if (port > 65535)
			return false;
	}
	return true;
}

static bool is_ip_future(const char *text, size_t len)
{
	size_t i = 1;

	while (i < len && http_bytes[(uint8_t)text[i]] & HTTP_BYTE_HEX)
		i++;
	if (i == 1 || i + 1 >= len || text[i] != '.')
		return false;
	for (i++; i < len; i++)
		if (text[i] != ':' && !(http_bytes[(uint8_t)text[i]] & HTTP_BYTE_HOST))
			return false;
	return true;
}

/* Between the brackets. */
static bool is_ip_literal(const char *text, size_t len)
{
	char terminated[INET6_ADDRSTRLEN];
	struct in6_addr address;

	if (len > 0 && http_lower((uint8_t)text[0]) == 'v')
		return is_ip_future(text, len);
	if (len >= sizeof(terminated) || memchr(text, '\0', len) != NULL)
		return false;
	memcpy(terminated, text, len);
	terminated[len] = '\0';
	return inet_pton(AF_INET6, terminated, &address) == 1;
}

static bool is_registered_name(const char *text, size_t len)
{
	size_t i = 0;

	while (i < len) {
		if (http_bytes[(uint8_t)text[i]] & HTTP_BYTE_HOST) {
			i++;
		} else if (text[i] == '%' && len - i > 2 &&
			   http_bytes[(uint8_t)text[i + 1]] & HTTP_BYTE_HEX &&
			   http_bytes[(uint8_t)text[i + 2]] & HTTP_BYTE_HEX) {
			i += 3;
		} else {
			return false;
		}
	}
	return len > 0;
}

bool http_is_host(const char *text, size_t len)
{
	const char *end = text + len, *colon, *bracket;

	if (len > 0 && text[0] == '[') {
		bracket = memchr(text, ']', len);
		if (bracket == NULL || !is_ip_literal(text + 1, (size_t)(bracket - text - 1)))
			return false;
		colon = bracket + 1;
		if (colon < end && *colon != ':')
			return false;
	} else {
		colon = memchr(text, ':', len);
		if (!is_registered_name(text, (size_t)((colon != NULL ? colon : end) - text)))
			return false;
	}
	return colon == NULL || colon == end || is_port(colon + 1, (size_t)(end - colon - 1));
}
