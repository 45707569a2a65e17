/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Verdict: what a dead worker had done with a request, and what becomes of it.
 *
 * The kernel's figures of the socket decide; the worker's own marks (struct wire_slot) are hints
 * that must fit them. Any thread; nothing is kept.
 */
#include <stdbool.h>
#include <stdint.h>

#include "common/http.h"

/* How far the socket is, seen from its beginning. */
struct socket_figures {
	bool known;	  /* false: no TCP, or the kernel did not say */
	bool ended;	  /* the connection is gone for both: reset by the client */
	uint64_t written; /* bytes that were ever written to it */
	uint64_t read;	  /* bytes that were ever read from it */
};

/* tcp(7): TCP_INFO; see the comments inside. */
void socket_figures(int fd, struct socket_figures *out);

/* What is still to come of a body of which `have` bytes have been read; UINT64_MAX: not known. */
uint64_t body_left(const struct http_head *head, uint64_t have);

/* What the master knows of the request. */
struct evidence {
	const struct http_head *head;
	uint32_t ahead_len;	/* body bytes that went with the lend */
	uint64_t written, read; /* of the socket, by everybody, before the lend */
	bool taken;		/* struct wire_slot */
	uint64_t end;
	unsigned n_replays; /* spent so far */
};

enum verdict {
	VERDICT_AGAIN,	  /* the application has not been given it: to another worker, whatever the
			     method */
	VERDICT_REPLAY,	  /* nothing was sent, and doing it twice is as good as once: the same, but
			     counted */
	VERDICT_COMPLETE, /* the whole response had been written */
	VERDICT_BAD_GATEWAY, /* nothing was sent: 502 */
	VERDICT_CUT,	     /* a response had begun: close */
	VERDICT_GONE,	     /* the client has left */
};

/*
 * Judges. *out_written: what the worker wrote, for the sums. *out_left: how many bytes of the body
 * are still to come from the client; UINT64_MAX: not known, the socket can't go on.
 * `idempotent`: the method is one of RFC 9110, 9.2.2.
 */
enum verdict verdict(const struct evidence *evidence, const struct socket_figures *figures,
	bool idempotent, uint64_t *out_written, uint64_t *out_left);
