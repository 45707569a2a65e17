/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/chunked.h"

#include <stdbool.h>

#include "common/http.h"

/* What 16 significant digits and as many zeros before them take. */
#define DIGITS_MAX 32
/* What a size line may spend beside a byte for each byte of content. */
#define LINE_ALLOWANCE 16
#define EXCESS_MAX (16 * 1024)
#define TRAILERS_MAX (16 * 1024)

enum chunked_state {
	CHUNKED_SIZE_FIRST, /* a size has one digit at least */
	CHUNKED_SIZE,
	CHUNKED_NAME_FIRST, /* of an extension */
	CHUNKED_NAME,
	CHUNKED_VALUE_FIRST,
	CHUNKED_VALUE,
	CHUNKED_QUOTED,
	CHUNKED_ESCAPED,    /* behind a backslash within quotes */
	CHUNKED_QUOTED_END, /* behind the closing quote */
	CHUNKED_SIZE_LF,
	CHUNKED_CONTENT,
	CHUNKED_CONTENT_CR,
	CHUNKED_CONTENT_LF,
	CHUNKED_TRAILER_FIRST, /* the first byte of a line */
	CHUNKED_TRAILER_NAME,
	CHUNKED_TRAILER_VALUE,
	CHUNKED_TRAILER_LF,
	CHUNKED_END_LF, /* of the empty line */
	CHUNKED_ENDED,
	CHUNKED_REFUSED,
};

/* Trailers that would change where a message ends or whom it is for. */
static const char *const forbidden[] = {
	"connection",
	"content-length",
	"host",
	"transfer-encoding",
};
#define N_FORBIDDEN (sizeof(forbidden) / sizeof(forbidden[0]))
#define NAME_LEN_MAX 17 /* of these */

static void refuse(struct chunked *chunked, const char *reason)
{
	chunked->state = CHUNKED_REFUSED;
	chunked->reason = reason;
}

/* For a byte that has no place where it stands. */
static void refuse_byte(struct chunked *chunked, uint8_t byte, const char *otherwise)
{
	if (byte == '\n')
		refuse(chunked, "a line feed without a carriage return in a chunked body");
	else if (byte == '\r')
		refuse(chunked, "a carriage return without a line feed in a chunked body");
	else
		refuse(chunked, otherwise);
}

static bool is_kind(uint8_t byte, enum http_byte kind)
{
	return http_bytes[byte] & kind;
}

static unsigned hex_value(uint8_t digit)
{
	return digit <= '9' ? digit - 0x30u : (digit | 0x20u) - 0x61u + 10u;
}

/* ---- The size line ---- */

static void read_digit(struct chunked *chunked, uint8_t byte)
{
	if (++chunked->n_matched > DIGITS_MAX || chunked->left > INT64_MAX >> 4) {
		refuse(chunked, "a chunk size that is too large");
		return;
	}
	chunked->left = chunked->left << 4 | hex_value(byte);
	chunked->state = CHUNKED_SIZE;
}

/* What may follow a size, the name, or the value of an extension. */
static void read_part_end(struct chunked *chunked, uint8_t byte, const char *otherwise)
{
	if (byte == ';')
		chunked->state = CHUNKED_NAME_FIRST;
	else if (byte == '\r')
		chunked->state = CHUNKED_SIZE_LF;
	else
		refuse_byte(chunked, byte, otherwise);
}

static void read_extension_name(struct chunked *chunked, uint8_t byte)
{
	bool first = chunked->state == CHUNKED_NAME_FIRST;

	if (is_kind(byte, HTTP_BYTE_TOKEN))
		chunked->state = CHUNKED_NAME;
	else if (first)
		refuse_byte(chunked, byte, "a chunk extension without a name");
	else if (byte == '=')
		chunked->state = CHUNKED_VALUE_FIRST;
	else
		read_part_end(chunked, byte, "a malformed chunk extension");
}

static void read_extension_value(struct chunked *chunked, uint8_t byte)
{
	bool first = chunked->state == CHUNKED_VALUE_FIRST;

	if (is_kind(byte, HTTP_BYTE_TOKEN))
		chunked->state = CHUNKED_VALUE;
	else if (first && byte == '"')
		chunked->state = CHUNKED_QUOTED;
	else if (first)
		refuse_byte(chunked, byte, "a chunk extension without a value");
	else
		read_part_end(chunked, byte, "a malformed chunk extension");
}

static void read_quoted(struct chunked *chunked, uint8_t byte)
{
	if (!is_kind(byte, HTTP_BYTE_VALUE))
		refuse_byte(chunked, byte, "a control byte in a chunk extension");
	else if (chunked->state == CHUNKED_ESCAPED)
		chunked->state = CHUNKED_QUOTED;
	else if (byte == '\\')
		chunked->state = CHUNKED_ESCAPED;
	else if (byte == '"')
		chunked->state = CHUNKED_QUOTED_END;
}

/* The line is whole: what it was allowed to spend is known. */
static void end_size_line(struct chunked *chunked)
{
	uint64_t allowance = LINE_ALLOWANCE + chunked->left;

	chunked->overhead -=
		(uint32_t)(allowance < chunked->overhead ? allowance : chunked->overhead);
	chunked->n_matched = 0;
	chunked->state = CHUNKED_CONTENT;
	if (chunked->left == 0) {
		chunked->overhead = 0;
		chunked->state = CHUNKED_TRAILER_FIRST;
	}
}

static void read_size_line(struct chunked *chunked, uint8_t byte)
{
	if (++chunked->overhead > EXCESS_MAX) {
		refuse(chunked, "chunk extensions that are too long");
		return;
	}
	switch ((enum chunked_state)chunked->state) {
	case CHUNKED_SIZE_FIRST:
	case CHUNKED_SIZE:
		if (is_kind(byte, HTTP_BYTE_HEX))
			read_digit(chunked, byte);
		else if (chunked->state == CHUNKED_SIZE)
			read_part_end(chunked, byte, "a malformed chunk size");
		else
			refuse_byte(chunked, byte, "a malformed chunk size");
		break;
	case CHUNKED_NAME_FIRST:
	case CHUNKED_NAME:
		read_extension_name(chunked, byte);
		break;
	case CHUNKED_VALUE_FIRST:
	case CHUNKED_VALUE:
		read_extension_value(chunked, byte);
		break;
	case CHUNKED_QUOTED:
	case CHUNKED_ESCAPED:
		read_quoted(chunked, byte);
		break;
	case CHUNKED_QUOTED_END:
		read_part_end(chunked, byte, "a malformed chunk extension");
		break;
	default: /* CHUNKED_SIZE_LF */
		if (byte == '\n')
			end_size_line(chunked);
		else
			refuse_byte(chunked, '\r', NULL);
		break;
	}
}

/* ---- The content ---- */

static void read_content_end(struct chunked *chunked, uint8_t byte)
{
	if (chunked->state == CHUNKED_CONTENT_CR && byte == '\r')
		chunked->state = CHUNKED_CONTENT_LF;
	else if (chunked->state == CHUNKED_CONTENT_LF && byte == '\n')
		chunked->state = CHUNKED_SIZE_FIRST;
	else
		refuse(chunked, "a chunk that is longer than its size");
}

/* Returns the length of the piece of content that begins at bytes. */
static size_t take_content(struct chunked *chunked, size_t len)
{
	size_t taken = len < chunked->left ? len : (size_t)chunked->left;

	chunked->left -= taken;
	if (chunked->left == 0)
		chunked->state = CHUNKED_CONTENT_CR;
	return taken;
}

/* ---- The trailers ---- */

/* n_matched counts the name's bytes, and stops where no forbidden name is left. */
static void match_name(struct chunked *chunked, uint8_t byte)
{
	uint8_t small = byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte;
	unsigned at = chunked->n_matched;

	if (at > NAME_LEN_MAX)
		return;
	for (unsigned i = 0; i < N_FORBIDDEN; i++)
		if (chunked->candidates & 1u << i && (uint8_t)forbidden[i][at] != small)
			chunked->candidates &= (uint8_t) ~(1u << i);
	chunked->n_matched++;
}

static bool is_forbidden(const struct chunked *chunked)
{
	for (unsigned i = 0; i < N_FORBIDDEN; i++)
		if (chunked->candidates & 1u << i && forbidden[i][chunked->n_matched] == '\0')
			return true;
	return false;
}

static void read_trailer_first(struct chunked *chunked, uint8_t byte)
{
	if (byte == '\r') {
		chunked->state = CHUNKED_END_LF;
	} else if (is_kind(byte, HTTP_BYTE_TOKEN)) {
		chunked->n_matched = 0;
		chunked->candidates = (1u << N_FORBIDDEN) - 1;
		chunked->state = CHUNKED_TRAILER_NAME;
		match_name(chunked, byte);
	} else {
		refuse_byte(chunked, byte, "a malformed trailer");
	}
}

static void read_trailer_name(struct chunked *chunked, uint8_t byte)
{
	if (is_kind(byte, HTTP_BYTE_TOKEN))
		match_name(chunked, byte);
	else if (byte != ':')
		refuse(chunked, "a malformed trailer");
	else if (is_forbidden(chunked))
		refuse(chunked, "a trailer that belongs into the head");
	else
		chunked->state = CHUNKED_TRAILER_VALUE;
}

static void read_trailers(struct chunked *chunked, uint8_t byte)
{
	if (++chunked->overhead > TRAILERS_MAX) {
		refuse(chunked, "trailers that are too long");
		return;
	}
	switch ((enum chunked_state)chunked->state) {
	case CHUNKED_TRAILER_FIRST:
		read_trailer_first(chunked, byte);
		break;
	case CHUNKED_TRAILER_NAME:
		read_trailer_name(chunked, byte);
		break;
	case CHUNKED_TRAILER_VALUE:
		if (byte == '\r')
			chunked->state = CHUNKED_TRAILER_LF;
		else if (!is_kind(byte, HTTP_BYTE_VALUE))
			refuse_byte(chunked, byte, "a control byte in a trailer");
		break;
	default: /* CHUNKED_TRAILER_LF, CHUNKED_END_LF */
		if (byte != '\n')
			refuse_byte(chunked, '\r', NULL);
		else
			chunked->state = chunked->state == CHUNKED_END_LF ? CHUNKED_ENDED
									  : CHUNKED_TRAILER_FIRST;
		break;
	}
}

static void read_byte(struct chunked *chunked, uint8_t byte)
{
	if (chunked->state <= CHUNKED_SIZE_LF)
		read_size_line(chunked, byte);
	else if (chunked->state <= CHUNKED_CONTENT_LF)
		read_content_end(chunked, byte);
	else
		read_trailers(chunked, byte);
}

void chunked_init(struct chunked *chunked)
{
	*chunked = (struct chunked){ .state = CHUNKED_SIZE_FIRST };
}

enum chunked_result chunked_read(struct chunked *chunked, const char *bytes, size_t len,
	size_t *out_used, const char **out_bytes, size_t *out_len)
{
	size_t at = 0;

	*out_bytes = NULL;
	*out_len = 0;
	while (at < len && chunked->state < CHUNKED_ENDED) {
		if (chunked->state == CHUNKED_CONTENT) {
			*out_bytes = bytes + at;
			*out_len = take_content(chunked, len - at);
			*out_used = at + *out_len;
			return CHUNKED_DATA;
		}
		read_byte(chunked, (uint8_t)bytes[at]);
		at += chunked->state != CHUNKED_REFUSED;
	}
	*out_used = at;
	return chunked->state == CHUNKED_ENDED	   ? CHUNKED_END
	       : chunked->state == CHUNKED_REFUSED ? CHUNKED_BAD
						   : CHUNKED_MORE;
}
