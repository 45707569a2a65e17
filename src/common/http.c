/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/http.h"

#include <arpa/inet.h>
#include <assert.h>
#include <http_parser.h>
#include <pthread.h>
#include <string.h>

/* The longest method that is read to its end before it is called unknown. */
#define METHOD_LEN_MAX 32

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

enum scan_state {
	SCAN_BEGIN,    /* the first byte of all */
	SCAN_BEGIN_LF, /* of the one CRLF that is skipped */
	SCAN_METHOD,
	SCAN_TARGET_FIRST,
	SCAN_ASTERISK, /* behind the target "*" */
	SCAN_SCHEME,
	SCAN_AUTHORITY,
	SCAN_TARGET,
	SCAN_VERSION,
	SCAN_VERSION_LF,
	SCAN_LINE, /* the first byte of a line */
	SCAN_NAME,
	SCAN_VALUE,
	SCAN_VALUE_LF,
	SCAN_END_LF, /* of the empty line */
	SCAN_WHOLE,
	SCAN_REFUSED,
};

/* The fields that the scanner itself looks into. */
enum field {
	FIELD_OTHER,
	FIELD_CONNECTION,
	FIELD_CONTENT_LENGTH,
	FIELD_EXPECT,
	FIELD_HOST,
	FIELD_HTTP2_SETTINGS,
	FIELD_PROXY_CONNECTION,
	FIELD_TRANSFER_ENCODING,
	FIELD_UPGRADE,
};

/* Bits of http_scan.seen */
enum seen {
	SEEN_LINE = 0x0001,
	SEEN_HOST = 0x0002,
	SEEN_LENGTH = 0x0004,
	SEEN_CODING = 0x0008,	    /* a Transfer-Encoding */
	SEEN_CHUNKED = 0x0010,	    /* that ends in chunked */
	SEEN_CODING_OTHER = 0x0020, /* that names another coding */
	SEEN_CLOSE = 0x0040,
	SEEN_KEEP_ALIVE = 0x0080,
	SEEN_WISH = 0x0100,	/* Connection: upgrade */
	SEEN_UPGRADE = 0x0200,	/* an Upgrade other than h2c */
	SEEN_CONTINUE = 0x0400, /* Expect: 100-continue */
	SEEN_EXPECT_OTHER = 0x0800,
	SEEN_PROXY_CONNECTION = 0x1000,
};

/* What http_scan() was given, and how far it is. */
struct input {
	const uint8_t *base, *at, *end;
};

static uint8_t lower(uint8_t byte)
{
	return byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte;
}

/* word is in lower case. Not strncasecmp(), which asks the locale of the application. */
static bool is_word(const char *text, size_t len, const char *word)
{
	for (size_t i = 0; i < len; i++)
		if (word[i] == '\0' || lower((uint8_t)text[i]) != (uint8_t)word[i])
			return false;
	return word[len] == '\0';
}

static void trim(const char **text, size_t *len)
{
	while (*len > 0 && (**text == ' ' || **text == '\t'))
		(*text)++, (*len)--;
	while (*len > 0 && ((*text)[*len - 1] == ' ' || (*text)[*len - 1] == '\t'))
		(*len)--;
}

/* One element of a comma-separated list; an empty list has one, which is empty. */
struct element {
	const char *raw, *text; /* from comma to comma; without the space around it */
	size_t raw_len, len;
};

/* at: the list to begin with, NULL past its last element. Returns false there. */
static bool next_element(const char **at, const char *end, struct element *out)
{
	const char *comma;

	if (*at == NULL)
		return false;
	comma = memchr(*at, ',', (size_t)(end - *at));
	out->raw = out->text = *at;
	out->raw_len = out->len = (size_t)((comma != NULL ? comma : end) - *at);
	trim(&out->text, &out->len);
	*at = comma != NULL ? comma + 1 : NULL;
	return true;
}

static enum field field_if(const char *name, size_t len, const char *word, enum field field)
{
	return is_word(name, len, word) ? field : FIELD_OTHER;
}

static enum field field_of(const char *name, size_t len)
{
	switch (len) {
	case 4:
		return field_if(name, len, "host", FIELD_HOST);
	case 6:
		return field_if(name, len, "expect", FIELD_EXPECT);
	case 7:
		return field_if(name, len, "upgrade", FIELD_UPGRADE);
	case 10:
		return field_if(name, len, "connection", FIELD_CONNECTION);
	case 14:
		if (is_word(name, len, "content-length"))
			return FIELD_CONTENT_LENGTH;
		return field_if(name, len, "http2-settings", FIELD_HTTP2_SETTINGS);
	case 16:
		return field_if(name, len, "proxy-connection", FIELD_PROXY_CONNECTION);
	case 17:
		return field_if(name, len, "transfer-encoding", FIELD_TRANSFER_ENCODING);
	default:
		return FIELD_OTHER;
	}
}

static void refuse(struct http_scan *scan, uint16_t status, const char *reason)
{
	scan->state = SCAN_REFUSED;
	scan->status = status;
	scan->reason = reason;
}

/* For a byte that has no place where it stands. */
static void refuse_byte(struct http_scan *scan, uint8_t byte, const char *otherwise)
{
	refuse(scan, 400,
		byte == '\n'   ? "a line feed without a carriage return"
		: byte == '\r' ? "a carriage return without a line feed"
		: byte == '\0' ? "a NUL byte"
		: byte < 0x20  ? "a control byte"
			       : otherwise);
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

	if (len > 0 && lower((uint8_t)text[0]) == 'v')
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

/* Whether text is a host that is not empty, with or without a port. */
static bool is_host(const char *text, size_t len)
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

/* ---- The request line ---- */

#define METHOD_TEXT(number, name, text) #text,
static const char *const methods[] = { HTTP_METHOD_MAP(METHOD_TEXT) };
#undef METHOD_TEXT

/* http-parser's own list, so that both know the same. */
static bool is_known_method(const char *text, size_t len)
{
	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
		if (methods[i][0] == text[0] && strlen(methods[i]) == len &&
			memcmp(methods[i], text, len) == 0)
			return true;
	return false;
}

static bool method_is(const struct http_scan *scan, const struct input *in, const char *name)
{
	return scan->head.method_len == strlen(name) &&
	       memcmp(in->base + scan->head.start, name, scan->head.method_len) == 0;
}

static size_t target_at(const struct http_scan *scan)
{
	return scan->head.start + scan->head.method_len + 1u;
}

static size_t offset(const struct input *in)
{
	return (size_t)(in->at - in->base);
}

static void scan_begin(struct http_scan *scan, struct input *in)
{
	if (scan->state == SCAN_BEGIN && *in->at == '\r') {
		scan->state = SCAN_BEGIN_LF;
		in->at++;
	} else if (scan->state == SCAN_BEGIN) {
		scan->state = SCAN_METHOD;
	} else if (*in->at == '\n') {
		scan->state = SCAN_METHOD;
		scan->head.start = 2;
		in->at++;
	} else {
		refuse_byte(scan, '\r', NULL);
	}
}

static void end_method(struct http_scan *scan, struct input *in)
{
	const char *method = (const char *)in->base + scan->head.start;
	size_t len = (size_t)(in->at - in->base) - scan->head.start;

	scan->head.method_len = (uint16_t)len;
	if (len == 0)
		refuse(scan, 400, "a space before the method");
	else if (method_is(scan, in, "CONNECT"))
		refuse(scan, 501, "CONNECT is not served here");
	else if (!is_known_method(method, len) && !method_is(scan, in, "PRI"))
		refuse(scan, 501, "an unknown method");
	else
		scan->state = SCAN_TARGET_FIRST;
}

static void scan_method(struct http_scan *scan, struct input *in)
{
	const uint8_t *begin = in->base + scan->head.start;

	while (in->at < in->end && http_bytes[*in->at] & HTTP_BYTE_TOKEN)
		in->at++;
	if (in->at - begin > METHOD_LEN_MAX) {
		in->at = begin + METHOD_LEN_MAX;
		refuse(scan, 501, "an unknown method");
		return;
	}
	if (in->at == in->end)
		return;
	if (*in->at == ' ')
		end_method(scan, in);
	else if (in->at == begin && *in->at == 0x16)
		refuse(scan, 400, "TLS on a port that speaks plain HTTP");
	else
		refuse_byte(scan, *in->at, "a byte that no method has");
	if (scan->state != SCAN_REFUSED)
		in->at++;
}

static void scan_target_first(struct http_scan *scan, struct input *in)
{
	uint8_t byte = *in->at;

	if (byte == '*' && (method_is(scan, in, "OPTIONS") || method_is(scan, in, "PRI")))
		scan->state = SCAN_ASTERISK;
	else if (method_is(scan, in, "PRI"))
		refuse(scan, 501, "an unknown method");
	else if (byte == '/')
		scan->state = SCAN_TARGET;
	else if (lower(byte) == 'h')
		scan->state = SCAN_SCHEME;
	else if (byte == ' ')
		refuse(scan, 400, "more than one space in the request line");
	else
		refuse_byte(scan, byte, "a target that is neither a path nor an http URI");
	if (scan->state != SCAN_REFUSED)
		in->at++;
}

static void scan_scheme(struct http_scan *scan, struct input *in)
{
	const uint8_t *target = in->base + target_at(scan);
	size_t i = (size_t)(in->at - target);
	const char *scheme = i >= 4 && lower(target[4]) == 's' ? "https://" : "http://";

	if (lower(*in->at) != (uint8_t)scheme[i]) {
		refuse_byte(scan, *in->at, "a target that is neither a path nor an http URI");
		return;
	}
	in->at++;
	if (scheme[i + 1] == '\0') {
		scan->state = SCAN_AUTHORITY;
		scan->mark = (uint32_t)offset(in);
	}
}

static void end_target(struct http_scan *scan, struct input *in)
{
	if (*in->at != ' ') {
		refuse_byte(scan, *in->at, "a byte that no target has");
		return;
	}
	scan->head.target_len = (uint32_t)(offset(in) - target_at(scan));
	in->at++;
	scan->mark = (uint32_t)offset(in);
	scan->state = SCAN_VERSION;
}

static void scan_authority(struct http_scan *scan, struct input *in)
{
	while (in->at < in->end && http_bytes[*in->at] & HTTP_BYTE_TARGET && *in->at != '/' &&
		*in->at != '?')
		in->at++;
	if (in->at == in->end)
		return;
	if (*in->at != '/' && *in->at != '?' && *in->at != ' ')
		refuse_byte(scan, *in->at, "a byte that no target has");
	else if (!is_host((const char *)in->base + scan->mark, offset(in) - scan->mark))
		refuse(scan, 400, "a target whose authority is not a host");
	else
		scan->state = SCAN_TARGET;
}

static void scan_target(struct http_scan *scan, struct input *in)
{
	while (in->at < in->end && http_bytes[*in->at] & HTTP_BYTE_TARGET)
		in->at++;
	if (in->at == in->end)
		return;
	if (*in->at == '\r')
		refuse(scan, 400, "a request line without a version");
	else if (*in->at == '#')
		refuse(scan, 400, "a fragment in the target");
	else
		end_target(scan, in);
}

static void scan_version(struct http_scan *scan, struct input *in)
{
	/* 0 stands for a digit. */
	static const char shape[] = "HTTP/0.0\r";

	for (; in->at < in->end; in->at++) {
		size_t i = offset(in) - scan->mark;
		bool digit = http_bytes[*in->at] & HTTP_BYTE_DIGIT;

		if (shape[i] == '0' ? !digit : *in->at != (uint8_t)shape[i]) {
			refuse(scan, 400,
				*in->at == '\n' ? "a line feed without a carriage return"
				: i == 0 && *in->at == ' '
					? "more than one space in the request line"
					: "a malformed version");
			return;
		}
		if (shape[i] == '\r') {
			scan->state = SCAN_VERSION_LF;
			in->at++;
			return;
		}
	}
}

static void scan_version_lf(struct http_scan *scan, struct input *in)
{
	const uint8_t *version = in->base + scan->mark;

	if (*in->at != '\n') {
		refuse_byte(scan, '\r', NULL);
	} else if (version[5] != '1' || (version[7] != '0' && version[7] != '1')) {
		refuse(scan, 505, "only HTTP/1.0 and HTTP/1.1 are served here");
	} else if (method_is(scan, in, "PRI")) {
		refuse(scan, 501, "an unknown method");
	} else {
		scan->head.http_minor = version[7] - '0';
		scan->state = SCAN_LINE;
		in->at++;
	}
}

/* ---- Fields that matter ---- */

static void read_host(struct http_scan *scan, const char *value, size_t len)
{
	if (scan->seen & SEEN_HOST)
		refuse(scan, 400, "several Host fields");
	else if (len > 0 && !is_host(value, len))
		refuse(scan, 400, "a Host that is not a host");
	scan->seen |= SEEN_HOST;
}

static void read_content_length(struct http_scan *scan, const char *value, size_t len)
{
	uint64_t n = 0;

	if (scan->seen & SEEN_LENGTH) {
		refuse(scan, 400, "several Content-Length fields");
		return;
	}
	if (scan->seen & SEEN_CODING) {
		refuse(scan, 400, "Content-Length together with Transfer-Encoding");
		return;
	}
	for (size_t i = 0; i < len; i++) {
		uint64_t digit = (uint64_t)(value[i] - '0');

		if (!(http_bytes[(uint8_t)value[i]] & HTTP_BYTE_DIGIT) ||
			n > (INT64_MAX - digit) / 10) {
			refuse(scan, 400, "a malformed Content-Length");
			return;
		}
		n = n * 10 + digit;
	}
	if (len == 0)
		refuse(scan, 400, "an empty Content-Length");
	scan->seen |= SEEN_LENGTH;
	scan->head.body_len = n;
}

/* What another reader of the same line might take for chunked. */
static bool resembles_chunked(const struct element *coding)
{
	for (size_t i = 0; i + 5 <= coding->len; i++)
		if (is_word(coding->text + i, 5, "chunk"))
			return true;
	return false;
}

static void read_transfer_encoding(struct http_scan *scan, const char *value, size_t len)
{
	const char *at = value;
	struct element coding;

	if (scan->head.http_minor == 0)
		refuse(scan, 400, "Transfer-Encoding on HTTP/1.0");
	else if (scan->seen & SEEN_LENGTH)
		refuse(scan, 400, "Content-Length together with Transfer-Encoding");
	scan->seen |= SEEN_CODING;
	while (scan->state != SCAN_REFUSED && next_element(&at, value + len, &coding)) {
		if (scan->seen & SEEN_CHUNKED)
			refuse(scan, 400, "a Transfer-Encoding that goes on behind chunked");
		else if (!http_is_token(coding.text, coding.len))
			refuse(scan, 400, "a malformed Transfer-Encoding");
		else if (is_word(coding.text, coding.len, "chunked"))
			scan->seen |= SEEN_CHUNKED;
		else if (resembles_chunked(&coding))
			refuse(scan, 400, "a Transfer-Encoding that resembles chunked");
		else
			scan->seen |= SEEN_CODING_OTHER;
	}
}

static void read_connection(struct http_scan *scan, const char *value, size_t len)
{
	const char *at = value;
	struct element option;

	while (next_element(&at, value + len, &option)) {
		if (is_word(option.text, option.len, "close"))
			scan->seen |= SEEN_CLOSE;
		else if (is_word(option.text, option.len, "keep-alive"))
			scan->seen |= SEEN_KEEP_ALIVE;
		else if (is_word(option.text, option.len, "upgrade"))
			scan->seen |= SEEN_WISH;
	}
}

static void read_upgrade(struct http_scan *scan, const char *value, size_t len)
{
	const char *at = value;
	struct element protocol;

	while (next_element(&at, value + len, &protocol)) {
		if (is_word(protocol.text, protocol.len, "h2c"))
			scan->head.h2c = true;
		else if (protocol.len > 0)
			scan->seen |= SEEN_UPGRADE;
	}
}

static void read_expect(struct http_scan *scan, const char *value, size_t len)
{
	const char *at = value;
	struct element expectation;

	while (next_element(&at, value + len, &expectation)) {
		if (is_word(expectation.text, expectation.len, "100-continue"))
			scan->seen |= SEEN_CONTINUE;
		else
			scan->seen |= SEEN_EXPECT_OTHER;
	}
}

static void read_field(struct http_scan *scan, const char *value, size_t len)
{
	trim(&value, &len);
	switch ((enum field)scan->field) {
	case FIELD_OTHER:
		break;
	case FIELD_CONNECTION:
		read_connection(scan, value, len);
		break;
	case FIELD_CONTENT_LENGTH:
		read_content_length(scan, value, len);
		break;
	case FIELD_EXPECT:
		read_expect(scan, value, len);
		break;
	case FIELD_HOST:
		read_host(scan, value, len);
		break;
	case FIELD_HTTP2_SETTINGS:
		scan->head.h2c = true;
		break;
	case FIELD_PROXY_CONNECTION:
		scan->seen |= SEEN_PROXY_CONNECTION;
		break;
	case FIELD_TRANSFER_ENCODING:
		read_transfer_encoding(scan, value, len);
		break;
	case FIELD_UPGRADE:
		read_upgrade(scan, value, len);
		break;
	}
}

/* ---- Field lines ---- */

static void scan_line(struct http_scan *scan, struct input *in)
{
	if (http_bytes[*in->at] & HTTP_BYTE_TOKEN) {
		scan->state = SCAN_NAME;
		scan->mark = (uint32_t)offset(in);
		in->at++;
	} else if (*in->at == '\r') {
		scan->state = SCAN_END_LF;
		in->at++;
	} else if (*in->at == ' ' || *in->at == '\t') {
		refuse(scan, 400,
			scan->seen & SEEN_LINE ? "a folded field line"
					       : "a space before the first field name");
	} else {
		refuse_byte(scan, *in->at,
			*in->at == ':' ? "an empty field name" : "a byte that no field name has");
	}
}

static void scan_name(struct http_scan *scan, struct input *in)
{
	while (in->at < in->end && http_bytes[*in->at] & HTTP_BYTE_TOKEN)
		in->at++;
	if (in->at == in->end)
		return;
	if (*in->at == ' ' || *in->at == '\t') {
		refuse(scan, 400, "a space before the colon");
	} else if (*in->at == '\r') {
		refuse(scan, 400, "a field line without a colon");
	} else if (*in->at != ':') {
		refuse_byte(scan, *in->at, "a byte that no field name has");
	} else {
		scan->name_len = (uint32_t)(offset(in) - scan->mark);
		scan->field = field_of((const char *)in->base + scan->mark, scan->name_len);
		scan->seen |= SEEN_LINE;
		scan->state = SCAN_VALUE;
		in->at++;
	}
}

/* Whether none of eight bytes is below 0x20 or 0x7f. */
static bool are_plain(const uint8_t *bytes)
{
	const uint64_t ones = 0x0101010101010101u, highs = ones << 7;
	uint64_t word, del;

	memcpy(&word, bytes, sizeof(word));
	del = word ^ (ones * 0x7f);
	return ((((word - ones * 0x20) & ~word) | ((del - ones) & ~del)) & highs) == 0;
}

static void scan_value(struct http_scan *scan, struct input *in)
{
	const uint8_t *at = in->at;

	while (in->end - at >= 8 && are_plain(at))
		at += 8;
	while (at < in->end && http_bytes[*at] & HTTP_BYTE_VALUE)
		at++;
	in->at = at;
	if (at == in->end)
		return;
	if (*at == '\r') {
		scan->state = SCAN_VALUE_LF;
		in->at++;
	} else {
		refuse_byte(scan, *at, "a control byte");
	}
}

static void scan_value_lf(struct http_scan *scan, struct input *in)
{
	const char *value = (const char *)in->base + scan->mark + scan->name_len + 1;

	if (*in->at != '\n') {
		refuse_byte(scan, '\r', NULL);
		return;
	}
	if (scan->field != FIELD_OTHER)
		read_field(scan, value, (size_t)((const char *)in->at - 1 - value));
	if (scan->state != SCAN_REFUSED) {
		scan->state = SCAN_LINE;
		in->at++;
	}
}

/* ---- The whole head ---- */

static int pause_parser(http_parser *parser)
{
	http_parser_pause(parser, 1);
	return 0;
}

/* The limit is one for the process, without a lock, and 80 KiB by default: less than a head_max may
 * be. So it is lifted once, before the first use here, and head_max alone limits. */
static void lift_parser_limit(void)
{
	http_parser_set_max_header_size(INT32_MAX);
}

static bool keeps_alive(bool close, bool keep_alive, unsigned http_minor)
{
	return !close && (keep_alive || http_minor == 1);
}

/* Whether http-parser, which finds boundaries in its own way, finds the same as we did. */
static bool parser_agrees(const struct http_scan *scan, const char *data)
{
	static const http_parser_settings settings = { .on_headers_complete = pause_parser };
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const struct http_head *head = &scan->head;
	const char *method;
	http_parser parser;
	size_t read;

	pthread_once(&once, lift_parser_limit);
	http_parser_init(&parser, HTTP_REQUEST);
	read = http_parser_execute(&parser, &settings, data + head->start, head->len);
	/* Paused there, it has not counted the last byte. */
	if (HTTP_PARSER_ERRNO(&parser) != HPE_PAUSED || read != head->len - 1)
		return false;
	method = http_method_str((enum http_method)parser.method);
	if (strlen(method) != head->method_len ||
		memcmp(method, data + head->start, head->method_len) != 0 ||
		parser.http_major != 1 || parser.http_minor != head->http_minor)
		return false;
	if (!(parser.flags & F_CHUNKED) != !(scan->seen & SEEN_CHUNKED) ||
		!(parser.flags & F_CONTENTLENGTH) != !(scan->seen & SEEN_LENGTH) ||
		(scan->seen & SEEN_LENGTH && parser.content_length != head->body_len))
		return false;
	/* It takes Proxy-Connection for Connection, which RFC 9112, C.2.2 warns of. */
	return scan->seen & SEEN_PROXY_CONNECTION || keeps_alive(parser.flags & F_CONNECTION_CLOSE,
							     parser.flags & F_CONNECTION_KEEP_ALIVE,
							     parser.http_minor) == head->keep_alive;
}

static void fill_head(struct http_scan *scan)
{
	struct http_head *head = &scan->head;
	unsigned seen = scan->seen;

	head->body = seen & SEEN_CHUNKED  ? HTTP_BODY_CHUNKED
		     : head->body_len > 0 ? HTTP_BODY_LENGTH
					  : HTTP_BODY_NONE;
	head->keep_alive = keeps_alive(seen & SEEN_CLOSE, seen & SEEN_KEEP_ALIVE, head->http_minor);
	/* HTTP/1.0 has neither: RFC 9110, 7.8 and 10.1.1. */
	head->upgrade = head->http_minor == 1 && seen & SEEN_WISH && seen & SEEN_UPGRADE;
	head->expect_continue =
		head->http_minor == 1 && seen & SEEN_CONTINUE && head->body != HTTP_BODY_NONE;
}

/* 400 comes before what depends on the meaning of single fields, whatever their order. */
static void scan_end_lf(struct http_scan *scan, struct input *in)
{
	scan->head.len = (uint32_t)(offset(in) + 1 - scan->head.start);
	fill_head(scan);
	if (*in->at != '\n')
		refuse_byte(scan, '\r', NULL);
	else if (!(scan->seen & SEEN_HOST) && scan->head.http_minor == 1)
		refuse(scan, 400, "no Host field");
	else if (scan->seen & SEEN_CODING_OTHER)
		refuse(scan, 501, "a transfer coding other than chunked");
	else if (scan->seen & SEEN_EXPECT_OTHER)
		refuse(scan, 417, "an expectation other than 100-continue");
	else if (!parser_agrees(scan, (const char *)in->base))
		refuse(scan, 400, "a head that can be read in two ways");
	else
		scan->state = SCAN_WHOLE;
	if (scan->state == SCAN_WHOLE)
		in->at++;
}

static void scan_step(struct http_scan *scan, struct input *in)
{
	switch ((enum scan_state)scan->state) {
	case SCAN_BEGIN:
	case SCAN_BEGIN_LF:
		scan_begin(scan, in);
		break;
	case SCAN_METHOD:
		scan_method(scan, in);
		break;
	case SCAN_TARGET_FIRST:
		scan_target_first(scan, in);
		break;
	case SCAN_SCHEME:
		scan_scheme(scan, in);
		break;
	case SCAN_AUTHORITY:
		scan_authority(scan, in);
		break;
	case SCAN_TARGET:
		scan_target(scan, in);
		break;
	case SCAN_ASTERISK:
		end_target(scan, in);
		break;
	case SCAN_VERSION:
		scan_version(scan, in);
		break;
	case SCAN_VERSION_LF:
		scan_version_lf(scan, in);
		break;
	case SCAN_LINE:
		scan_line(scan, in);
		break;
	case SCAN_NAME:
		scan_name(scan, in);
		break;
	case SCAN_VALUE:
		scan_value(scan, in);
		break;
	case SCAN_VALUE_LF:
		scan_value_lf(scan, in);
		break;
	case SCAN_END_LF:
		scan_end_lf(scan, in);
		break;
	case SCAN_WHOLE:
	case SCAN_REFUSED:
		break;
	}
}

/* Up to end, or to the end of the head. */
static void scan_until(struct http_scan *scan, const char *data, size_t end)
{
	const uint8_t *base = (const uint8_t *)data;
	struct input in = { .base = base, .at = base + scan->at, .end = base + end };

	while (in.at < in.end && scan->state < SCAN_WHOLE)
		scan_step(scan, &in);
	scan->at = (uint32_t)(offset(&in) + (scan->state == SCAN_REFUSED));
}

static void refuse_length(struct http_scan *scan)
{
	if (scan->state >= SCAN_TARGET_FIRST && scan->state <= SCAN_TARGET)
		refuse(scan, 414, "a target that is too long");
	else
		refuse(scan, 431, "a head that is too long");
}

void http_scan_init(struct http_scan *scan, uint32_t head_max)
{
	*scan = (struct http_scan){ .head_max = head_max, .state = SCAN_BEGIN };
}

enum http_scan_result http_scan(struct http_scan *scan, const char *data, size_t len)
{
	size_t limit;

	assert(len >= scan->at || scan->state >= SCAN_WHOLE);
	/* The limit counts from the request line, so first find where that is. */
	while (scan->state < SCAN_METHOD && scan->at < len)
		scan_until(scan, data, scan->at + 1u);
	limit = (size_t)scan->head.start + scan->head_max;
	if (scan->state >= SCAN_METHOD && scan->state < SCAN_WHOLE) {
		scan_until(scan, data, len < limit ? len : limit);
		if (scan->state < SCAN_WHOLE && scan->at >= limit)
			refuse_length(scan);
	}
	return scan->state == SCAN_WHOLE     ? HTTP_WHOLE
	       : scan->state == SCAN_REFUSED ? HTTP_REFUSED
					     : HTTP_MORE;
}

/* ---- What is left of h2c ---- */

static bool is_h2c_protocol(const struct element *element)
{
	return is_word(element->text, element->len, "h2c");
}

static bool is_h2c_option(const struct element *element)
{
	return is_word(element->text, element->len, "http2-settings");
}

static bool is_h2c_or_upgrade_option(const struct element *element)
{
	return is_h2c_option(element) || is_word(element->text, element->len, "upgrade");
}

/* Whether an Upgrade to something other than h2c is there. */
static bool upgrade_remains(const char *data, uint32_t head_len)
{
	struct http_field field;
	struct element protocol;
	uint32_t at = 0;

	while (http_next_field(data, head_len, &at, &field)) {
		const char *list = field.value;

		if (field_of(field.name, field.name_len) != FIELD_UPGRADE)
			continue;
		while (next_element(&list, field.value + field.value_len, &protocol))
			if (protocol.len > 0 && !is_h2c_protocol(&protocol))
				return true;
	}
	return false;
}

static bool any_drops(const char *value, const char *end, bool (*drops)(const struct element *))
{
	struct element element;

	while (next_element(&value, end, &element))
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
	bool (*drops)(const struct element *))
{
	const char *value = line + name_len + 1, *end = line + len - 2;
	struct element element;
	size_t written = 0;

	if (!any_drops(value, end, drops)) {
		memmove(to, line, len);
		return len;
	}
	memmove(to, line, name_len + 1);
	while (next_element(&value, end, &element)) {
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

	switch (field_of(line, name_len)) {
	case FIELD_HTTP2_SETTINGS:
		return 0;
	case FIELD_UPGRADE:
		return write_list(to, line, name_len, len, is_h2c_protocol);
	case FIELD_CONNECTION:
		return write_list(to, line, name_len, len,
			keep_upgrade ? is_h2c_option : is_h2c_or_upgrade_option);
	default:
		memmove(to, line, len);
		return len;
	}
}

static const char *line_end(const char *line, const char *end)
{
	const char *lf = memchr(line, '\n', (size_t)(end - line));

	return lf != NULL ? lf + 1 : end;
}

uint32_t http_head_remove_h2c(char *data, struct http_head *head)
{
	char *begin = data + head->start;
	const char *end = begin + head->len, *line = line_end(begin, end);
	bool keep_upgrade = upgrade_remains(begin, head->len);
	char *to = begin + (line - begin);
	uint32_t removed;

	while (line < end) {
		const char *next = line_end(line, end);

		to += write_line(to, line, (size_t)(next - line), keep_upgrade);
		line = next;
	}
	removed = (uint32_t)(end - to);
	head->len -= removed;
	head->h2c = false;
	return removed;
}

/* ---- For readers of a head ---- */

bool http_next_field(const char *data, uint32_t head_len, uint32_t *at, struct http_field *out)
{
	const char *end = data + head_len, *line = data + *at, *next, *colon;
	size_t len;

	if (*at == 0)
		line = line_end(line, end);
	next = line_end(line, end);
	colon = memchr(line, ':', (size_t)(next - line));
	if (next - line <= 2 || colon == NULL)
		return false;
	*at = (uint32_t)(next - data);
	out->name = line;
	out->name_len = (uint32_t)(colon - line);
	out->value = colon + 1;
	len = (size_t)(next - 2 - out->value);
	trim(&out->value, &len);
	out->value_len = (uint32_t)len;
	return true;
}

bool http_list_has(const char *value, size_t len, const char *token)
{
	const char *at = value, *end = value + len;
	size_t token_len = strlen(token);
	struct element element;

	while (next_element(&at, end, &element)) {
		size_t i = 0;

		while (i < element.len && i < token_len &&
			lower((uint8_t)element.text[i]) == lower((uint8_t)token[i]))
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
