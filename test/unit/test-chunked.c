/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/chunked.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N(array) (sizeof(array) / sizeof((array)[0]))
#define BYTES(text) .bytes = (text), .len = sizeof(text) - 1

struct refusal {
	const char *name;
	const char *bytes;
	size_t len; /* the last of them is the one that is refused */
};

/* Each must be refused at its last byte, and not before. */
static const struct refusal refusals[] = {
	/* Sizes. */
	{ "empty_size_is_refused", BYTES("\r") },
	{ "empty_size_with_an_extension_is_refused", BYTES(";") },
	{ "bare_line_feed_instead_of_a_size_is_refused", BYTES("\n") },
	{ "letter_as_size_is_refused", BYTES("g") },
	{ "letter_in_a_size_is_refused", BYTES("1g") },
	{ "negative_size_is_refused", BYTES("-") },
	{ "signed_size_is_refused", BYTES("+") },
	{ "size_with_0x_is_refused", BYTES("0x") },
	{ "space_before_a_size_is_refused", BYTES(" ") },
	{ "space_behind_a_size_is_refused", BYTES("5 ") },
	{ "tab_behind_a_size_is_refused", BYTES("5\t") },
	{ "nul_behind_a_size_is_refused", BYTES("5\0") },
	{ "high_byte_behind_a_size_is_refused", BYTES("5\xa0") },
	{ "underscore_in_a_size_is_refused", BYTES("1_") },
	{ "comma_in_a_size_is_refused", BYTES("1,") },
	{ "size_with_a_bare_line_feed_is_refused", BYTES("5\n") },
	{ "size_with_a_bare_carriage_return_is_refused", BYTES("5\rx") },
	{ "size_with_two_carriage_returns_is_refused", BYTES("5\r\r") },
	{ "size_of_64_bits_is_refused", BYTES("8000000000000000") },
	{ "size_of_17_digits_is_refused", BYTES("10000000000000000") },
	{ "size_that_wraps_is_refused", BYTES("ffffffffffffffff") },
	{ "endless_zeros_are_refused", BYTES("000000000000000000000000000000000") },
	/* Extensions. */
	{ "empty_extension_is_refused", BYTES("5;\r") },
	{ "two_semicolons_are_refused", BYTES("5;;") },
	{ "space_before_an_extension_is_refused", BYTES("5 ") },
	{ "space_behind_a_semicolon_is_refused", BYTES("5; ") },
	{ "space_behind_an_extension_is_refused", BYTES("5;a ") },
	{ "space_before_an_extension_value_is_refused", BYTES("5;a= ") },
	{ "space_behind_an_extension_value_is_refused", BYTES("5;a=b ") },
	{ "extension_without_a_name_is_refused", BYTES("5;=") },
	{ "extension_without_a_value_is_refused", BYTES("5;a=\r") },
	{ "extension_with_two_values_is_refused", BYTES("5;a=b=") },
	{ "bare_line_feed_behind_a_semicolon_is_refused", BYTES("5;\n") },
	{ "bare_line_feed_in_an_extension_is_refused", BYTES("5;a\n") },
	{ "bare_line_feed_before_an_extension_value_is_refused", BYTES("5;a=\n") },
	{ "bare_line_feed_in_an_extension_value_is_refused", BYTES("5;a=b\n") },
	{ "bare_line_feed_in_quotes_is_refused", BYTES("5;a=\"b\n") },
	{ "carriage_return_in_quotes_is_refused", BYTES("5;a=\"b\r") },
	{ "escaped_line_feed_in_quotes_is_refused", BYTES("5;a=\"\\\n") },
	{ "nul_in_quotes_is_refused", BYTES("5;a=\"\0") },
	{ "del_in_quotes_is_refused", BYTES("5;a=\"\x7f") },
	{ "text_behind_quotes_is_refused", BYTES("5;a=\"b\"c") },
	{ "line_feed_behind_quotes_is_refused", BYTES("5;a=\"b\"\n") },
	{ "quote_within_a_value_is_refused", BYTES("5;a=b\"") },
	{ "quoted_name_is_refused", BYTES("5;\"") },
	{ "control_byte_in_an_extension_is_refused", BYTES("5;a\x01") },
	{ "extension_with_a_bare_carriage_return_is_refused", BYTES("5;a\rb") },
	/* Content. */
	{ "content_that_is_longer_than_its_size_is_refused", BYTES("2\r\nabc") },
	{ "content_with_a_bare_line_feed_behind_is_refused", BYTES("2\r\nab\n") },
	{ "content_with_a_bare_carriage_return_behind_is_refused", BYTES("2\r\nab\r2") },
	{ "empty_line_between_chunks_is_refused", BYTES("2\r\nab\r\n\r") },
	/* The last chunk and trailers. */
	{ "end_with_a_bare_line_feed_is_refused", BYTES("0\r\n\n") },
	{ "end_with_a_bare_carriage_return_is_refused", BYTES("0\r\n\rG") },
	{ "content_length_among_trailers_is_refused", BYTES("0\r\nContent-Length:") },
	{ "content_length_in_any_case_is_refused", BYTES("0\r\nA: b\r\ncONTENT-lENGTH:") },
	{ "transfer_encoding_among_trailers_is_refused", BYTES("0\r\nTransfer-Encoding:") },
	{ "host_among_trailers_is_refused", BYTES("0\r\nHost:") },
	{ "connection_among_trailers_is_refused", BYTES("0\r\nX: y\r\nConnection:") },
	{ "space_before_a_trailer_is_refused", BYTES("0\r\n ") },
	{ "folded_trailer_is_refused", BYTES("0\r\nA: b\r\n ") },
	{ "trailer_folded_with_a_tab_is_refused", BYTES("0\r\nA: b\r\n\t") },
	{ "space_before_a_trailers_colon_is_refused", BYTES("0\r\nA ") },
	{ "space_behind_content_length_is_refused", BYTES("0\r\nContent-Length ") },
	{ "trailer_without_a_name_is_refused", BYTES("0\r\n:") },
	{ "trailer_without_a_colon_is_refused", BYTES("0\r\nA\r") },
	{ "request_instead_of_the_end_is_refused", BYTES("0\r\nGET ") },
	{ "bare_line_feed_in_a_trailers_name_is_refused", BYTES("0\r\nA\n") },
	{ "bare_line_feed_in_a_trailers_value_is_refused", BYTES("0\r\nA: b\n") },
	{ "bare_carriage_return_in_a_trailers_value_is_refused", BYTES("0\r\nA: b\rc") },
	{ "nul_in_a_trailers_name_is_refused", BYTES("0\r\nA\0") },
	{ "nul_in_a_trailers_value_is_refused", BYTES("0\r\nA: \0") },
	{ "del_in_a_trailers_value_is_refused", BYTES("0\r\nA: \x7f") },
	{ "high_byte_in_a_trailers_name_is_refused", BYTES("0\r\n\xe9") },
};

struct accepted {
	const char *name;
	const char *bytes;
	size_t len;
	const char *content;
	size_t behind; /* bytes that belong to what comes next */
};

static const struct accepted accepted[] = {
	{ "empty_body", BYTES("0\r\n\r\n"), "", 0 },
	{ "one_chunk", BYTES("5\r\nhello\r\n0\r\n\r\n"), "hello", 0 },
	{ "several_chunks", BYTES("1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n"), "abcdef", 0 },
	{ "next_request_is_left_alone", BYTES("1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n"), "a", 16 },
	{ "line_ends_in_content_are_content", BYTES("6\r\n\r\n0\r\n\n\r\n0\r\n\r\n"), "\r\n0\r\n\n",
		0 },
	{ "sizes_of_both_cases", BYTES("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
		"01234567890123456789", 0 },
	{ "size_of_two_digits", BYTES("1f\r\n0123456789012345678901234567890\r\n0\r\n\r\n"),
		"0123456789012345678901234567890", 0 },
	{ "leading_zeros", BYTES("0000000000000000000000000000001\r\na\r\n0000\r\n\r\n"), "a", 0 },
	{ "extension_without_a_value", BYTES("1;a\r\nx\r\n0\r\n\r\n"), "x", 0 },
	{ "extension_with_a_value", BYTES("1;a=b;c=d\r\nx\r\n0;e\r\n\r\n"), "x", 0 },
	{ "extension_in_quotes", BYTES("1;a=\"\t b;=\x80\\\"\\\\\";c=\"\"\r\nx\r\n0\r\n\r\n"), "x",
		0 },
	{ "trailers", BYTES("0\r\nA: b\r\nC:\r\nD:\t\x80 e \r\n\r\n"), "", 0 },
	{ "trailers_with_names_like_forbidden_ones",
		BYTES("0\r\nHos: a\r\nHosts: a\r\nXHost: a\r\nContent-Lengt: 1\r\n"
		      "Content-Lengths: 1\r\nTransfer-Encodings: a\r\nTransfer-Encoding-Of-All: "
		      "a\r\n"
		      "Content-Type: a\r\nConnectio: a\r\nHost-Connection: a\r\n\r\n"),
		"", 0 },
};

struct outcome {
	enum chunked_result result;
	size_t used;
	size_t content_len;
	char content[64];
};

/* Reads all of a piece, from a block that ends where it does. */
static void read_piece(struct chunked *chunked, const char *bytes, size_t len, struct outcome *out)
{
	char *block = malloc(len > 0 ? len : 1);
	size_t at = 0;

	assert_non_null(block);
	memcpy(block, bytes, len);
	do {
		const char *content;
		size_t used, content_len;

		out->result =
			chunked_read(chunked, block + at, len - at, &used, &content, &content_len);
		assert_true(used <= len - at);
		if (out->result == CHUNKED_DATA) {
			assert_true(content_len > 0);
			assert_ptr_equal(content + content_len, block + at + used);
			assert_true(out->content_len + content_len <= sizeof(out->content));
			memcpy(out->content + out->content_len, content, content_len);
			out->content_len += content_len;
		} else {
			assert_null(content);
			assert_int_equal(content_len, 0);
		}
		at += used;
		out->used += used;
	} while (out->result == CHUNKED_DATA);
	if (out->result == CHUNKED_MORE)
		assert_int_equal(at, len);
	free(block);
}

/* In two pieces, the second from `cut` on, or, with a cut of 0, byte by byte. */
static struct outcome read_cut(const char *bytes, size_t len, size_t cut)
{
	struct outcome outcome = { .result = CHUNKED_MORE };
	struct chunked chunked;
	size_t at = 0;

	chunked_init(&chunked);
	while (at < len && outcome.result == CHUNKED_MORE) {
		size_t piece = cut == 0 ? 1 : at == 0 ? cut : len - at;

		read_piece(&chunked, bytes + at, piece, &outcome);
		at += piece;
	}
	assert_true(outcome.result != CHUNKED_BAD || chunked.reason[0] != '\0');
	return outcome;
}

static void run_refusal(void **state)
{
	const struct refusal *c = *state;

	assert_int_equal(read_cut(c->bytes, c->len - 1, c->len - 1).result, CHUNKED_MORE);
	for (size_t cut = 0; cut <= c->len; cut++) {
		struct outcome outcome = read_cut(c->bytes, c->len, cut);

		assert_int_equal(outcome.result, CHUNKED_BAD);
		assert_int_equal(outcome.used, c->len - 1);
	}
}

static void run_accepted(void **state)
{
	const struct accepted *c = *state;
	size_t body = c->len - c->behind;

	for (size_t cut = 0; cut <= c->len; cut++) {
		struct outcome outcome = read_cut(c->bytes, c->len, cut);

		assert_int_equal(outcome.result, CHUNKED_END);
		assert_int_equal(outcome.used, body);
		assert_int_equal(outcome.content_len, strlen(c->content));
		assert_memory_equal(outcome.content, c->content, strlen(c->content));
	}
	for (size_t len = 0; len < body; len++)
		assert_int_equal(read_cut(c->bytes, len, len).result, CHUNKED_MORE);
}

/* Gives the same piece n times, or until the result is neither MORE nor DATA. Returns how often. */
static size_t repeat(struct chunked *chunked, const char *piece, size_t n)
{
	size_t len = strlen(piece), times;

	for (times = 0; times < n; times++) {
		for (size_t at = 0, used, content_len; at < len; at += used) {
			const char *content;
			enum chunked_result result = chunked_read(
				chunked, piece + at, len - at, &used, &content, &content_len);

			if (result == CHUNKED_END || result == CHUNKED_BAD)
				return times;
		}
	}
	return times;
}

static void any_number_of_small_chunks_is_good(void **state)
{
	struct chunked chunked;

	(void)state;
	chunked_init(&chunked);
	assert_int_equal(repeat(&chunked, "1\r\nx\r\n", 1000000), 1000000);
	assert_int_equal(repeat(&chunked, "1;a=b;c=d\r\nx\r\n", 1000000), 1000000);
}

static void endless_extensions_on_small_chunks_are_refused(void **state)
{
	struct chunked chunked;
	/* 50 bytes of size line, of which 17 are allowed. */
	static const char chunk[] = "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n";
	size_t n;

	(void)state;
	chunked_init(&chunked);
	n = repeat(&chunked, chunk, 1000000);
	assert_in_range(n, 16 * 1024 / 34, 16 * 1024 / 33);
	assert_string_equal(chunked.reason, "chunk extensions that are too long");
}

static void endless_extension_is_refused(void **state)
{
	struct chunked chunked;

	(void)state;
	chunked_init(&chunked);
	repeat(&chunked, "1;", 1);
	assert_int_equal(repeat(&chunked, "a", 1000000), 16 * 1024 - 2);
}

static void signatures_on_large_chunks_are_good(void **state)
{
	static const char line[] = "200;chunk-signature=0123456789012345678901234567890123456789"
				   "012345678901234567890123\r\n";
	char chunk[sizeof(line) + 512 + 2] = { 0 };
	struct chunked chunked;

	(void)state;
	memset(chunk, 'x', sizeof(chunk) - 1);
	memcpy(chunk, line, sizeof(line) - 1);
	memcpy(chunk + sizeof(line) - 1 + 512, "\r\n", 2);
	chunked_init(&chunked);
	assert_int_equal(repeat(&chunked, chunk, 10000), 10000);
}

static void trailers_of_16_kib_are_good_and_longer_ones_are_not(void **state)
{
	struct chunked chunked;

	(void)state;
	/* What extensions have spent is not held against the trailers. */
	chunked_init(&chunked);
	repeat(&chunked, "0;a", 1);
	repeat(&chunked, "a", 10000);
	repeat(&chunked, "\r\n", 1);
	/* 2047 lines and the rest of the last eight bytes. */
	assert_int_equal(repeat(&chunked, "ab: de\r\n", 2047), 2047);
	assert_int_equal(repeat(&chunked, "a: b\r\n", 1), 1);
	assert_int_equal(repeat(&chunked, "\r", 1), 1);
	assert_int_equal(repeat(&chunked, "\n", 1), 0);
	assert_null(chunked.reason);

	chunked_init(&chunked);
	repeat(&chunked, "0\r\n", 1);
	assert_int_equal(repeat(&chunked, "ab: de\r\n", 3000), 2048);
	assert_string_equal(chunked.reason, "trailers that are too long");
}

static void largest_size_is_taken(void **state)
{
	static const char line[] = "00007fffffffffffffff\r\nabc";
	struct chunked chunked;
	const char *content;
	size_t used, len;

	(void)state;
	chunked_init(&chunked);
	assert_int_equal(chunked_read(&chunked, line, sizeof(line) - 1, &used, &content, &len),
		CHUNKED_DATA);
	assert_int_equal(len, 3);
	assert_int_equal(chunked.left, INT64_MAX - 3);
}

static void end_and_fault_stay(void **state)
{
	struct chunked chunked;
	const char *content;
	size_t used, len;

	(void)state;
	chunked_init(&chunked);
	assert_int_equal(
		chunked_read(&chunked, "0\r\n\r\n5", 6, &used, &content, &len), CHUNKED_END);
	assert_int_equal(used, 5);
	assert_int_equal(chunked_read(&chunked, "5", 1, &used, &content, &len), CHUNKED_END);
	assert_int_equal(used, 0);
	assert_int_equal(chunked_read(&chunked, "", 0, &used, &content, &len), CHUNKED_END);
	chunked_init(&chunked);
	assert_int_equal(chunked_read(&chunked, "x", 1, &used, &content, &len), CHUNKED_BAD);
	assert_int_equal(chunked_read(&chunked, "5", 1, &used, &content, &len), CHUNKED_BAD);
	assert_int_equal(used, 0);
}

static const struct CMUnitTest others[] = {
	cmocka_unit_test(any_number_of_small_chunks_is_good),
	cmocka_unit_test(endless_extensions_on_small_chunks_are_refused),
	cmocka_unit_test(endless_extension_is_refused),
	cmocka_unit_test(signatures_on_large_chunks_are_good),
	cmocka_unit_test(trailers_of_16_kib_are_good_and_longer_ones_are_not),
	cmocka_unit_test(largest_size_is_taken),
	cmocka_unit_test(end_and_fault_stay),
};

static struct CMUnitTest row_test(const char *name, CMUnitTestFunction run, const void *row)
{
	struct CMUnitTest test = {
		.name = name, .test_func = run, .initial_state = (void *)(uintptr_t)row
	};

	return test;
}

int main(void)
{
	static struct CMUnitTest tests[N(refusals) + N(accepted) + N(others)];
	size_t n = 0;

	for (size_t i = 0; i < N(refusals); i++)
		tests[n++] = row_test(refusals[i].name, run_refusal, &refusals[i]);
	for (size_t i = 0; i < N(accepted); i++)
		tests[n++] = row_test(accepted[i].name, run_accepted, &accepted[i]);
	memcpy(tests + n, others, sizeof(others));
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
