/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/verdict.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* The contract with users: docs/design.md, "When a worker dies". */
#define REPLAYS_MAX 2
/* A client that is not read fills its window soon. */
#define FIGURES_TRIES 1000

/* The states of include/net/tcp_states.h, which <linux/tcp.h> does not export. */
enum { STATE_CLOSE = 7, STATE_CLOSE_WAIT = 8, STATE_LAST_ACK = 9, STATE_CLOSING = 11 };

static bool fin_received(unsigned state)
{
	return state == STATE_CLOSE_WAIT || state == STATE_LAST_ACK || state == STATE_CLOSING;
}

/*
 * What was received and what of it is still unread come from two calls, between which the client
 * can send. Nobody reads any more, so the unread only grow: where they are as many before and
 * after, nothing came between.
 */
static bool receiving_side(int fd, struct tcp_info *out_info, int *out_unread)
{
	for (unsigned i = 0; i < FIGURES_TRIES; i++) {
		socklen_t len = sizeof(*out_info);
		int before = 0;

		memset(out_info, 0, sizeof(*out_info));
		if (ioctl(fd, SIOCINQ, &before) < 0 ||
			getsockopt(fd, IPPROTO_TCP, TCP_INFO, out_info, &len) < 0 ||
			ioctl(fd, SIOCINQ, out_unread) < 0)
			return false;
		if (len < offsetof(struct tcp_info, tcpi_bytes_retrans) +
				  sizeof(out_info->tcpi_bytes_retrans))
			return false;
		if (before == *out_unread)
			return true;
	}
	return false;
}

void socket_figures(int fd, struct socket_figures *out)
{
	struct tcp_info info;
	int unread = 0;

	memset(out, 0, sizeof(*out));
	if (!receiving_side(fd, &info, &unread))
		return;
	out->known = true;
	out->ended = info.tcpi_state == STATE_CLOSE;
	/*
	 * One call, so no acknowledgement can come between: what was sent for the first time, and
	 * what still waits to be. (A second call for SIOCOUTQ would race with the client.)
	 */
	out->written = info.tcpi_bytes_sent - info.tcpi_bytes_retrans + info.tcpi_notsent_bytes;
	/* The kernel counts the client's FIN as one byte received. */
	out->read = info.tcpi_bytes_received - (fin_received(info.tcpi_state) ? 1 : 0) -
		    (unsigned)unread;
}

uint64_t body_left(const struct http_head *head, uint64_t have)
{
	switch (head->body) {
	case HTTP_BODY_NONE:
		/* What is behind the head of an upgrade is not ours to understand. */
		return have == 0 ? 0 : UINT64_MAX;
	case HTTP_BODY_LENGTH:
		return have <= head->body_len ? head->body_len - have : UINT64_MAX;
	default:
		/* Where a chunked body ends only its reader knew. */
		return UINT64_MAX;
	}
}

static bool repeatable(const struct evidence *evidence, bool idempotent, uint64_t read)
{
	const struct http_head *head = evidence->head;
	bool whole = head->body == HTTP_BODY_NONE ||
		     (head->body == HTTP_BODY_LENGTH && evidence->ahead_len == head->body_len);

	return idempotent && whole && read == 0 && evidence->n_replays < REPLAYS_MAX;
}

enum verdict verdict(const struct evidence *evidence, const struct socket_figures *figures,
	bool idempotent, uint64_t *out_written, uint64_t *out_left)
{
	uint64_t written = figures->written - evidence->written;
	uint64_t read = figures->read - evidence->read;

	*out_written = 0;
	*out_left = UINT64_MAX;
	if (figures->known && figures->ended)
		return VERDICT_GONE;
	if (!figures->known) {
		/* A UNIX socket has no such figures: go on only where the worker had not begun. */
		*out_left = body_left(evidence->head, evidence->ahead_len);
		return evidence->taken ? VERDICT_CUT : VERDICT_AGAIN;
	}
	/* Urgent data or a worker that used the socket in odd ways: the sums went backwards. */
	if (figures->written < evidence->written || figures->read < evidence->read)
		return VERDICT_CUT;
	*out_written = written;
	*out_left = body_left(evidence->head, evidence->ahead_len + read);
	if (written == 0 && !evidence->taken && read == 0)
		return VERDICT_AGAIN;
	if (written == 0)
		return repeatable(evidence, idempotent, read) ? VERDICT_REPLAY
							      : VERDICT_BAD_GATEWAY;
	return evidence->end != 0 && written == evidence->end ? VERDICT_COMPLETE : VERDICT_CUT;
}
