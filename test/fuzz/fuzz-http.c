/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * The request head: any cut gives the same result, an accepted head holds nothing that could be
 * read in two ways, its fields can be walked, and without h2c it is a good head still.
 */
#include "common/http.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

/* Not assert(): it must hold under NDEBUG too. */
static void require(bool holds)
{
	if (!holds)
		abort();
}

static void require_same(const struct http_scan *one, const struct http_scan *other)
{
	require(one->at == other->at && one->status == other->status);
	require(one->reason == other->reason && one->state == other->state);
	require(one->head.start == other->head.start && one->head.len == other->head.len);
	require(one->head.method_len == other->head.method_len);
	require(one->head.target_len == other->head.target_len);
	require(one->head.http_minor == other->head.http_minor);
	require(one->head.keep_alive == other->head.keep_alive);
	require(one->head.expect_continue == other->head.expect_continue);
	require(one->head.upgrade == other->head.upgrade && one->head.h2c == other->head.h2c);
	require(one->head.body == other->head.body && one->head.body_len == other->head.body_len);
}

/* A copy of exactly len bytes, so that a sanitizer sees every step beyond. */
static char *copy(const void *bytes, size_t len)
{
	char *block = malloc(len > 0 ? len : 1);

	require(block != NULL);
	if (len > 0)
		memcpy(block, bytes, len);
	return block;
}

static enum http_scan_result scan_whole(
	struct http_scan *scan, const char *data, size_t len, uint32_t head_max)
{
	http_scan_init(scan, head_max);
	return http_scan(scan, data, len);
}

/* In steps of `step` bytes; at each, the memory ends where the bytes do. */
static enum http_scan_result scan_in_steps(
	struct http_scan *scan, const char *data, size_t len, size_t step, uint32_t head_max)
{
	enum http_scan_result result = HTTP_MORE;

	http_scan_init(scan, head_max);
	for (size_t i = 0; result == HTTP_MORE; i = i + step < len ? i + step : len) {
		char *block = copy(data, i);

		result = http_scan(scan, block, i);
		free(block);
		if (i == len)
			break;
	}
	return result;
}

static void check_lines(const char *head, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		require(head[i] != '\0');
		require(head[i] != '\r' || (i + 1 < len && head[i + 1] == '\n'));
		require(head[i] != '\n' || (i > 0 && head[i - 1] == '\r'));
	}
	require(len >= 4 && memcmp(head + len - 4, "\r\n\r\n", 4) == 0);
}

static unsigned count_fields(const char *head, uint32_t len)
{
	struct http_field field;
	uint32_t at = 0;
	unsigned n = 0;

	while (http_next_field(head, len, &at, &field)) {
		require(http_is_token(field.name, field.name_len));
		require(http_is_value(field.value, field.value_len));
		require(field.value + field.value_len <= head + at - 2);
		n++;
	}
	require(at == len - 2 || n == 0);
	return n;
}

static void check_head(const char *data, const struct http_scan *scan, uint32_t head_max)
{
	const struct http_head *head = &scan->head;
	const char *begin = data + head->start;
	unsigned n_lines = 0;

	require(head->start == 0 || head->start == 2);
	require(head->len <= head_max && scan->at == head->start + head->len);
	require(http_is_token(begin, head->method_len) && begin[head->method_len] == ' ');
	require(memcmp(begin + head->method_len + 1 + head->target_len, " HTTP/1.", 8) == 0);
	require((head->body == HTTP_BODY_LENGTH) == (head->body_len > 0));
	require(head->body_len <= INT64_MAX);
	check_lines(begin, head->len);
	for (uint32_t i = 0; i < head->len; i++)
		n_lines += begin[i] == '\n';
	require(count_fields(begin, head->len) == n_lines - 2);
}

static void check_h2c(const char *data, const struct http_scan *scan, uint32_t head_max)
{
	struct http_head head = scan->head;
	char *block = copy(data, scan->at);
	uint32_t removed = http_head_remove_h2c(block, &head);
	struct http_scan again;

	require(head.len + removed == scan->head.len && !head.h2c);
	require(scan_whole(&again, block, head.start + head.len, head_max) == HTTP_WHOLE);
	check_head(block, &again, head_max);
	require(again.head.len == head.len && !again.head.h2c);
	require(again.head.upgrade == head.upgrade && again.head.keep_alive == head.keep_alive);
	require(again.head.body == head.body && again.head.body_len == head.body_len);
	free(block);
}

static void check(const char *data, size_t len, uint32_t head_max)
{
	struct http_scan whole, cut;
	enum http_scan_result result = scan_whole(&whole, data, len, head_max);

	require(scan_in_steps(&cut, data, len, 1, head_max) == result);
	require_same(&whole, &cut);
	require(scan_in_steps(&cut, data, len, 13, head_max) == result);
	require_same(&whole, &cut);
	if (result == HTTP_REFUSED)
		require(whole.status >= 400 && whole.reason != NULL);
	if (result != HTTP_WHOLE)
		return;
	check_head(data, &whole, head_max);
	check_h2c(data, &whole, head_max);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	char *data;

	if (len > 4096)
		return 0;
	data = copy(bytes, len);
	check(data, len, 64 * 1024);
	check(data, len, (uint32_t)(len / 2));
	free(data);
	return 0;
}
