/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "worker/request.h"

/* Reads for one request in one turn: a fast client must not starve the others. */
#define READS_MAX 8

enum piece {
	PIECE_DATA,
	PIECE_END,
	PIECE_NEED, /* all input is decoded: read */
	PIECE_BAD,
};

enum fill {
	FILL_SOME,
	FILL_NOTHING, /* for now */
	FILL_EOF,
	FILL_LOST,
};

void body_init(struct up_request *request)
{
	const struct wire_lend *lend = &request->lend;

	request->in = (const uint8_t *)request->head + lend->head_len;
	request->in_len = lend->ahead_len;
	request->body_left = lend->body_len;
	request->body_whole = lend->body == WIRE_BODY_NONE ||
			      (lend->body == WIRE_BODY_LENGTH && lend->body_len == 0);
	if (lend->body == WIRE_BODY_CHUNKED)
		chunked_init(&request->chunked);
	request->expect = (lend->record.flags & WIRE_LEND_EXPECT) && lend->ahead_len == 0;
}

static enum piece decode_length(struct up_request *r, const uint8_t **out, size_t *out_len)
{
	size_t n = r->in_len < r->body_left ? r->in_len : (size_t)r->body_left;

	if (n == 0)
		return PIECE_NEED;
	*out = r->in;
	*out_len = n;
	r->in += n;
	r->in_len -= n;
	r->body_left -= n;
	r->body_whole = r->body_left == 0;
	return PIECE_DATA;
}

static enum piece decode_chunked(struct up_request *r, const uint8_t **out, size_t *out_len)
{
	const char *bytes;
	size_t used = 0;
	enum chunked_result result;

	if (r->in_len == 0)
		return PIECE_NEED;
	result = chunked_read(&r->chunked, (const char *)r->in, r->in_len, &used, &bytes, out_len);
	r->in += used;
	r->in_len -= used;
	switch (result) {
	case CHUNKED_DATA:
		*out = (const uint8_t *)bytes;
		return PIECE_DATA;
	case CHUNKED_END:
		r->body_whole = true;
		return PIECE_END;
	case CHUNKED_MORE:
		return PIECE_NEED;
	default:
		return PIECE_BAD;
	}
}

/* Takes the next piece out of the input at hand. */
static enum piece body_decode(struct up_request *r, const uint8_t **out, size_t *out_len)
{
	if (r->body_whole)
		return PIECE_END;
	if (r->lend.body == WIRE_BODY_CHUNKED)
		return decode_chunked(r, out, out_len);
	return decode_length(r, out, out_len);
}

/*
 * Reads up to max bytes, never past the end of a known length. A read that brings less than asked
 * for has emptied the socket, and what comes later is told by an edge.
 */
static enum fill body_fill(struct up_request *r, uint8_t *room, size_t max)
{
	ssize_t n;

	if (r->body_dry && !r->half_closed)
		return FILL_NOTHING;
	if (r->lend.body == WIRE_BODY_LENGTH && r->body_left < max)
		max = (size_t)r->body_left;
	do
		n = recv(r->fd, room, max, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return FILL_EOF;
	if (n < 0)
		return errno == EAGAIN ? FILL_NOTHING : FILL_LOST;
	r->read += (uint64_t)n;
	r->in = room;
	r->in_len = (size_t)n;
	r->in_borrowed = true;
	r->body_dry = (size_t)n < max;
	return FILL_SOME;
}

bool body_hold(struct up_request *request)
{
	uint8_t *copy;

	if (!request->in_borrowed || request->in_len == 0) {
		request->in_borrowed = false;
		return true;
	}
	copy = malloc(request->in_len);
	if (!copy)
		return false;
	memcpy(copy, request->in, request->in_len);
	/* It may be from its piece that the application is answering. */
	if (request->body_inside && !request->held_before)
		request->held_before = request->held;
	else
		free(request->held);
	request->held = copy;
	request->in = copy;
	request->in_borrowed = false;
	return true;
}

/* ---- To the application ---- */

bool body_is_wanted(const struct up_request *request)
{
	return request_is_live(request) && request->body_started && !request->body_paused &&
	       !request->body_told_end && request->response != RESPONSE_ENDED;
}

static void give_end(struct up_request *r)
{
	r->body_told_end = true;
	deadline_stop(&r->body_deadline);
	r->on_body(r, NULL, 0, r->body_data);
}

static void pump_later(struct up_request *r)
{
	r->body_again = true;
	worker_later(r->worker, &r->later);
}

/* Returns false where there is nothing to decode, for now or for ever. */
static bool read_for_application(struct up_request *r)
{
	switch (body_fill(r, r->worker->scratch, UP_READ_MAX)) {
	case FILL_SOME:
		deadline_start(&r->worker->body_deadlines, &r->body_deadline);
		return true;
	case FILL_NOTHING:
		r->body_waits = true;
		return false;
	case FILL_EOF:
		/* The client may still read: it has said only that it sends no more. */
		response_refuse(r, 400, UP_END_GONE, WIRE_BAD_BODY);
		return false;
	default:
		request_end(r, UP_END_GONE, WIRE_GONE);
		return false;
	}
}

static void give_pieces(struct up_request *r)
{
	const uint8_t *bytes;
	size_t len;
	int n_reads = 0;

	while (body_is_wanted(r)) {
		switch (body_decode(r, &bytes, &len)) {
		case PIECE_DATA:
			r->on_body(r, bytes, len, r->body_data);
			break;
		case PIECE_END:
			give_end(r);
			return;
		case PIECE_BAD:
			response_refuse(r, 400, UP_END_BAD_BODY, WIRE_BAD_BODY);
			return;
		case PIECE_NEED:
			if (n_reads++ == READS_MAX) {
				pump_later(r);
				return;
			}
			if (!read_for_application(r))
				return;
		}
	}
}

/* Reads on what nobody wants, and gives the socket back when that is done. */
static void body_drain(struct up_request *r)
{
	bool more = body_drop(r);

	if (r->body_bad)
		request_return(r, WIRE_BAD_BODY);
	else if (r->body_whole)
		request_return(r, WIRE_KEEP);
	else if (!more)
		request_return(r, WIRE_CLOSE);
}

static void pump(struct up_request *r)
{
	struct up_worker *w = r->worker;

	/* Within a piece of another request, whose bytes are in the scratch buffer. */
	if (w->scratch_in_use) {
		pump_later(r);
		return;
	}
	w->scratch_in_use = r->body_inside = true;
	r->body_waits = false;
	give_pieces(r);
	w->scratch_in_use = r->body_inside = false;
	if (r->state != REQUEST_RETURNED && !body_hold(r))
		response_refuse(r, 500, UP_END_ABORTED, WIRE_CLOSE);
}

void body_pump(struct up_request *request)
{
	request_enter(request);
	request->body_dry = false;
	if (request->state == REQUEST_DRAINING)
		body_drain(request);
	else if (body_is_wanted(request) && !request->body_inside)
		pump(request);
	request_leave(request);
}

bool body_drop(struct up_request *request)
{
	const uint8_t *bytes;
	size_t len, max;

	request->body_waits = request->body_dry = false;
	while (!request->body_whole) {
		enum piece piece = body_decode(request, &bytes, &len);

		request->body_bad = piece == PIECE_BAD;
		if (piece == PIECE_BAD)
			return false;
		if (piece != PIECE_NEED)
			continue;
		max = UP_DRAIN_MAX - request->drained;
		max = max < UP_READ_MAX ? max : UP_READ_MAX;
		if (max == 0)
			return false;
		switch (body_fill(request, request->worker->sink, max)) {
		case FILL_SOME:
			request->drained += request->in_len;
			break;
		case FILL_NOTHING:
			request->body_waits = true;
			return true;
		default:
			return false;
		}
	}
	if (!body_hold(request))
		request->body_bad = true;
	return false;
}

/* ---- What the application calls ---- */

uint64_t up_body_length(const struct up_request *request)
{
	if (request->lend.body == WIRE_BODY_CHUNKED)
		return UP_LENGTH_UNKNOWN;
	return request->lend.body == WIRE_BODY_LENGTH ? request->lend.body_len : 0;
}

/* After a final response has begun, 100 would be part of its content. */
static void invite(struct up_request *r)
{
	static const char invitation[] = "HTTP/1.1 100 Continue\r\n\r\n";

	if (!r->expect || r->response != RESPONSE_NONE)
		return;
	r->expect = false;
	if (!response_add_interim(r, invitation, sizeof(invitation) - 1) || response_flush(r) < 0)
		request_doom(r);
}

static void wait_for_body(struct up_request *r)
{
	if (body_is_wanted(r) && !deadline_is_running(&r->body_deadline))
		deadline_start(&r->worker->body_deadlines, &r->body_deadline);
}

int up_body_read(struct up_request *request,
	void (*fn)(struct up_request *request, const void *bytes, size_t len, void *data),
	void *data)
{
	if (!request_is_live(request))
		return -EPIPE;
	if (request->body_started)
		return -EALREADY;
	request->body_started = true;
	request->on_body = fn;
	request->body_data = data;
	request_enter(request);
	invite(request);
	body_pump(request);
	wait_for_body(request);
	request_leave(request);
	return 0;
}

void up_body_pause(struct up_request *request)
{
	if (!request_is_live(request))
		return;
	request->body_paused = true;
	deadline_stop(&request->body_deadline);
}

/* Not at once: this may be called from a piece, or from what a piece has led to. */
void up_body_resume(struct up_request *request)
{
	if (!request_is_live(request) || !request->body_paused)
		return;
	request->body_paused = false;
	pump_later(request);
	wait_for_body(request);
}

static void collect_piece(struct up_request *r, const void *bytes, size_t len, void *data)
{
	struct buf *all = &r->collected;

	(void)data;
	if (!bytes) {
		buf_bytes(all)[buf_len(all)] = '\0';
		r->on_collected(r, buf_bytes(all), buf_len(all), r->collect_data);
	} else if (len > r->collect_max - buf_len(all)) {
		/* Where a response has begun, only the end of the connection is left to say it. */
		if (up_respond(r, 413, "text/plain", "content too large\n", 18) < 0)
			up_abort(r);
	} else if (buf_reserve(all, len + 1)) {
		buf_add(all, bytes, len);
	} else {
		up_abort(r);
	}
}

int up_body_collect(struct up_request *request, size_t max,
	void (*fn)(struct up_request *request, const void *bytes, size_t len, void *data),
	void *data)
{
	uint64_t length = up_body_length(request);
	/* A length is easily claimed: memory is given as the bytes come. */
	size_t room = length < UP_READ_MAX ? (size_t)length + 1 : 1;

	if (!request_is_live(request))
		return -EPIPE;
	if (request->body_started)
		return -EALREADY;
	if (length != UP_LENGTH_UNKNOWN && length > max)
		return up_respond(request, 413, "text/plain", "content too large\n", 18);
	if (!buf_reserve(&request->collected, room))
		return -ENOMEM;
	request->on_collected = fn;
	request->collect_data = data;
	request->collect_max = max;
	return up_body_read(request, collect_piece, NULL);
}
