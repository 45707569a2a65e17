/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Buf: bytes that grow at the end and leave at the front.
 *
 * Owned by whoever embeds it. Memory is asked for before anything changes, so a failed
 * buf_reserve() leaves the bytes as they were.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct buf {
	uint8_t *data;
	size_t at, len, room; /* the bytes are data[at] to data[len - 1] */
};

static inline size_t buf_len(const struct buf *b)
{
	return b->len - b->at;
}

static inline uint8_t *buf_bytes(const struct buf *b)
{
	return b->data + b->at;
}

static inline void buf_clear(struct buf *b)
{
	b->at = b->len = 0;
}

static inline void buf_fini(struct buf *b)
{
	free(b->data);
	*b = (struct buf){ 0 };
}

/* Clears, and gives memory back that is more than keep_max bytes. */
static inline void buf_trim(struct buf *b, size_t keep_max)
{
	if (b->room > keep_max)
		buf_fini(b);
	else
		buf_clear(b);
}

/* Makes room for `more` bytes at the end. False: out of memory. */
static inline bool buf_reserve(struct buf *b, size_t more)
{
	size_t len = buf_len(b), room;
	uint8_t *data;

	if (more <= b->room - b->len)
		return true;
	if (more > SIZE_MAX / 4 - len)
		return false;
	if (b->at > 0 && len + more <= b->room && len <= b->room / 2) {
		memmove(b->data, b->data + b->at, len);
		b->at = 0;
		b->len = len;
		return true;
	}
	room = b->room * 2 > len + more ? b->room * 2 : len + more;
	room = room < 512 ? 512 : room;
	data = malloc(room);
	if (!data)
		return false;
	if (len > 0)
		memcpy(data, b->data + b->at, len);
	free(b->data);
	*b = (struct buf){ .data = data, .len = len, .room = room };
	return true;
}

/* The room is reserved. */
static inline void buf_add(struct buf *b, const void *bytes, size_t len)
{
	if (len > 0)
		memcpy(b->data + b->len, bytes, len);
	b->len += len;
}

static inline void buf_add_text(struct buf *b, const char *text)
{
	buf_add(b, text, strlen(text));
}

/* Takes len bytes away at the front. */
static inline void buf_drop(struct buf *b, size_t len)
{
	b->at += len;
	if (b->at == b->len)
		buf_clear(b);
}
