/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Chunked: the strict decoder of a chunked body (RFC 9112, 7.1).
 *
 * Refuses what could be read in two ways: bare LF or CR, a size that is not only hex digits or
 * would not fit, space or control bytes around a size, malformed extensions, malformed trailer
 * fields, and Content-Length, Transfer-Encoding, Host or Connection among them. Any cut into pieces
 * gives the same result. Extensions and trailers are dropped, after their check; both are bounded.
 *
 * The bound on extensions: a size line may spend 16 bytes, and one for each byte of its chunk. What
 * is beyond adds up, what is saved pays it back but is not kept, and past 16 KiB the body is
 * refused. So any number of small chunks is good, and so are signatures on large ones; an endless
 * train of small chunks with long extensions is not. Trailers are at most 16 KiB in all.
 *
 * Nothing is kept outside the object; any thread.
 */
#include <stddef.h>
#include <stdint.h>

struct chunked {
	uint64_t left;	    /* bytes of the current chunk still to come */
	const char *reason; /* CHUNKED_BAD: a static sentence */
	uint32_t overhead;  /* of size lines beyond what their chunks allow, then of trailers */
	uint8_t state;
	uint8_t n_matched;  /* digits of the size; then bytes of a trailer's name that may matter */
	uint8_t candidates; /* forbidden trailers that the name so far may become: a bit each */
};

enum chunked_result {
	CHUNKED_MORE = 0, /* all bytes used, the body goes on */
	CHUNKED_DATA = 1, /* *out_bytes, *out_len is a piece of content; call again with the rest */
	CHUNKED_END = 2,  /* the body has ended; bytes behind *used belong to the next request */
	CHUNKED_BAD = 3,
};

void chunked_init(struct chunked *chunked);
/*
 * Reads from bytes, and tells in *out_used how many it took; a piece of content points into bytes
 * and is counted in *out_used. A byte that is refused is not. Once ended or bad, it stays so.
 */
enum chunked_result chunked_read(struct chunked *chunked, const char *bytes, size_t len,
	size_t *out_used, const char **out_bytes, size_t *out_len);
