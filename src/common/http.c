/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/http.h"

#include <assert.h>
#include <http_parser.h>
#include <pthread.h>
#include <string.h>

#include "common/http-text.h"

/* The longest method that is read to its end before it is called unknown. */
#define METHOD_LEN_MAX 32

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

/* ---- The request line ---- */

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
	else if (!http_is_method(method, len) && !method_is(scan, in, "PRI"))
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
	else if (http_lower(byte) == 'h')
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
	const char *scheme = i >= 4 && http_lower(target[4]) == 's' ? "https://" : "http://";

	if (http_lower(*in->at) != (uint8_t)scheme[i]) {
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
	else if (!http_is_host((const char *)in->base + scan->mark, offset(in) - scan->mark))
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
	else if (len > 0 && !http_is_host(value, len))
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
static bool resembles_chunked(const struct http_element *coding)
{
	for (size_t i = 0; i + 5 <= coding->len; i++)
		if (http_is_word(coding->text + i, 5, "chunk"))
			return true;
	return false;
}

static void read_transfer_encoding(struct http_scan *scan, const char *value, size_t len)
{
	const char *at = value;
	struct http_element coding;

	if (scan->head.http_minor == 0)
		refuse(scan, 400, "Transfer-Encoding on HTTP/1.0");
	else if (scan->seen & SEEN_LENGTH)
		refuse(scan, 400, "Content-Length together with Transfer-Encoding");
	scan->seen |= SEEN_CODING;
	while (scan->state != SCAN_REFUSED && http_next_element(&at, value + len, &coding)) {
		if (scan->seen & SEEN_CHUNKED)
			refuse(scan, 400, "a Transfer-Encoding that goes on behind chunked");
		else if (!http_is_token(coding.text, coding.len))
			refuse(scan, 400, "a malformed Transfer-Encoding");
		else if (http_is_word(coding.text, coding.len, "chunked"))
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
	struct http_element option;

	while (http_next_element(&at, value + len, &option)) {
		if (http_is_word(option.text, option.len, "close"))
			scan->seen |= SEEN_CLOSE;
		else if (http_is_word(option.text, option.len, "keep-alive"))
			scan->seen |= SEEN_KEEP_ALIVE;
		else if (http_is_word(option.text, option.len, "upgrade"))
			scan->seen |= SEEN_WISH;
	}
}

static void read_upgrade(struct http_scan *scan, const char *value, size_t len)
{
	const char *at = value;
	struct http_element protocol;

	while (http_next_element(&at, value + len, &protocol)) {
		if (http_is_word(protocol.text, protocol.len, "h2c"))
			scan->head.h2c = true;
		else if (protocol.len > 0)
			scan->seen |= SEEN_UPGRADE;
	}
}

static void read_expect(struct http_scan *scan, const char *value, size_t len)
{
	const char *at = value;
	struct http_element expectation;

	while (http_next_element(&at, value + len, &expectation)) {
		if (http_is_word(expectation.text, expectation.len, "100-continue"))
			scan->seen |= SEEN_CONTINUE;
		else
			scan->seen |= SEEN_EXPECT_OTHER;
	}
}

static void read_field(struct http_scan *scan, const char *value, size_t len)
{
	http_trim(&value, &len);
	switch ((enum http_field_kind)scan->field) {
	case HTTP_FIELD_OTHER:
		break;
	case HTTP_FIELD_CONNECTION:
		read_connection(scan, value, len);
		break;
	case HTTP_FIELD_CONTENT_LENGTH:
		read_content_length(scan, value, len);
		break;
	case HTTP_FIELD_EXPECT:
		read_expect(scan, value, len);
		break;
	case HTTP_FIELD_HOST:
		read_host(scan, value, len);
		break;
	case HTTP_FIELD_HTTP2_SETTINGS:
		scan->head.h2c = true;
		break;
	case HTTP_FIELD_PROXY_CONNECTION:
		scan->seen |= SEEN_PROXY_CONNECTION;
		break;
	case HTTP_FIELD_TRANSFER_ENCODING:
		read_transfer_encoding(scan, value, len);
		break;
	case HTTP_FIELD_UPGRADE:
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
		scan->field = http_field_kind((const char *)in->base + scan->mark, scan->name_len);
		scan->seen |= SEEN_LINE;
		scan->state = SCAN_VALUE;
		in->at++;
	}
}

static void scan_value(struct http_scan *scan, struct input *in)
{
	const uint8_t *at = in->at;

	while (in->end - at >= 8 && http_are_plain(at))
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
	if (scan->field != HTTP_FIELD_OTHER)
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
