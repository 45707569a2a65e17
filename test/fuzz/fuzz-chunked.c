/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * The chunked body: any cut gives the same result and the same content, and what is accepted is
 * what http-parser, the lenient reader, makes of it.
 */
#include "common/chunked.h"

#include <http_parser.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

#define LEN_MAX 4096

/* Not assert(): it must hold under NDEBUG too. */
static void require(bool holds)
{
	if (!holds)
		abort();
}

struct outcome {
	enum chunked_result result;
	size_t used, content_len;
	uint64_t left;
	const char *reason;
	uint8_t content[LEN_MAX];
};

static void add_content(struct outcome *outcome, const char *content, size_t len)
{
	require(outcome->content_len + len <= LEN_MAX);
	memcpy(outcome->content + outcome->content_len, content, len);
	outcome->content_len += len;
}

static void read_piece(struct chunked *chunked, const char *piece, size_t len, struct outcome *out)
{
	size_t at = 0, used, content_len;
	const char *content;

	do {
		out->result =
			chunked_read(chunked, piece + at, len - at, &used, &content, &content_len);
		require(used <= len - at);
		require((out->result == CHUNKED_DATA) == (content_len > 0));
		at += used;
		if (content_len > 0) {
			require(content + content_len == piece + at);
			add_content(out, content, content_len);
		}
	} while (out->result == CHUNKED_DATA);
	require(out->result != CHUNKED_MORE || at == len);
	out->used += at;
}

/* In pieces of `step` bytes, each in memory of its own. */
static void read_in_steps(const uint8_t *bytes, size_t len, size_t step, struct outcome *out)
{
	struct chunked chunked;

	memset(out, 0, sizeof(*out));
	chunked_init(&chunked);
	for (size_t at = 0; at < len && out->result == CHUNKED_MORE; at += step) {
		size_t piece_len = step < len - at ? step : len - at;
		char *piece = malloc(piece_len);

		require(piece != NULL);
		memcpy(piece, bytes + at, piece_len);
		read_piece(&chunked, piece, piece_len, out);
		free(piece);
	}
	out->left = chunked.left;
	out->reason = chunked.reason;
}

static void require_same(const struct outcome *one, const struct outcome *other)
{
	require(one->result == other->result && one->used == other->used);
	require(one->left == other->left && one->reason == other->reason);
	require(one->content_len == other->content_len);
	require(memcmp(one->content, other->content, one->content_len) == 0);
}

static int on_body(http_parser *parser, const char *content, size_t len)
{
	add_content(parser->data, content, len);
	return 0;
}

static int on_complete(http_parser *parser)
{
	struct outcome *outcome = parser->data;

	outcome->result = CHUNKED_END;
	http_parser_pause(parser, 1);
	return 0;
}

static void check_with_parser(const uint8_t *bytes, const struct outcome *ours)
{
	static const char head[] = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
	static const http_parser_settings settings = { .on_body = on_body,
		.on_message_complete = on_complete };
	static struct outcome theirs;
	http_parser parser;

	memset(&theirs, 0, sizeof(theirs));
	http_parser_init(&parser, HTTP_REQUEST);
	parser.data = &theirs;
	http_parser_execute(&parser, &settings, head, sizeof(head) - 1);
	theirs.used = http_parser_execute(&parser, &settings, (const char *)bytes, ours->used);
	theirs.left = ours->left;
	require_same(ours, &theirs);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	static struct outcome whole, cut;

	if (len == 0 || len > LEN_MAX)
		return 0;
	read_in_steps(bytes, len, len, &whole);
	read_in_steps(bytes, len, 1, &cut);
	require_same(&whole, &cut);
	read_in_steps(bytes, len, 7, &cut);
	require_same(&whole, &cut);
	require((whole.result == CHUNKED_BAD) == (whole.reason != NULL));
	if (whole.result == CHUNKED_END)
		check_with_parser(bytes, &whole);
	return 0;
}
