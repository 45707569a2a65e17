/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

#include "common/http.h"
#include "worker/request.h"

/* What a head needs beside what the application and the master add. */
#define HEAD_MAX 384
/* up_write() collects up to this size before it sends. */
#define COLLECT_MAX (16 * 1024)
/* "ffffffffffffffff\r\n", and "\r\n" behind the chunk. */
#define CHUNK_FRAME_MAX 20

/* ---- To the socket ---- */

static void first_byte(struct up_request *r)
{
	struct timespec ts;
	uint64_t now_us;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	now_us = (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
	now_us = now_us > r->lend.complete_us ? now_us - r->lend.complete_us : 1;
	r->first_byte_us = now_us < UINT32_MAX ? (uint32_t)now_us : UINT32_MAX;
}

/* Returns the bytes that the kernel took, 0 where it takes none now, or -errno. */
static ssize_t request_send(struct up_request *r, const void *bytes, size_t len, int flags)
{
	ssize_t n;

	do
		n = send(r->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL | flags);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	r->written += (uint64_t)n;
	if (r->first_byte_us == 0 && r->response != RESPONSE_NONE && n > 0)
		first_byte(r);
	return n;
}

static void wait_for_client(struct up_request *r, bool progress)
{
	if (progress || !r->blocked)
		deadline_start(&r->worker->send_deadlines, &r->send_deadline);
	r->blocked = true;
}

static void client_has_taken(struct up_request *r)
{
	if (!r->blocked)
		return;
	r->blocked = false;
	deadline_stop(&r->send_deadline);
	r->tell_writable = r->on_writable && r->response == RESPONSE_BEGUN;
	if (r->tell_writable)
		worker_later(r->worker, &r->later);
}

size_t response_pending(const struct up_request *request)
{
	return buf_len(&request->out) + request->rest_len;
}

int response_flush(struct up_request *request)
{
	struct buf *out = &request->out;
	ssize_t n = 0;

	if (buf_len(out) > 0) {
		n = request_send(request, buf_bytes(out), buf_len(out), 0);
		if (n < 0)
			return (int)n;
		buf_drop(out, (size_t)n);
	}
	if (buf_len(out) == 0 && request->rest_len > 0) {
		n = request_send(request, request->rest, request->rest_len, 0);
		if (n < 0)
			return (int)n;
		request->rest += n;
		request->rest_len -= (size_t)n;
	}
	if (response_pending(request) > 0) {
		wait_for_client(request, n > 0);
		return 1;
	}
	client_has_taken(request);
	return 0;
}

/* Keeps what the kernel did not take of `from` (which may be `out` itself) and of bytes. */
static int keep(struct up_request *r, struct buf *from, const void *bytes, size_t len)
{
	struct buf *out = &r->out;
	size_t ahead = from == out ? 0 : buf_len(from);

	if (!buf_reserve(out, ahead + (r->borrows ? 0 : len)))
		return -ENOMEM;
	if (ahead > 0)
		buf_add(out, buf_bytes(from), ahead);
	if (r->borrows) {
		r->rest = bytes;
		r->rest_len = len;
	} else {
		buf_add(out, bytes, len);
	}
	wait_for_client(r, true);
	return 1;
}

/*
 * Sends `from`, which holds all that comes before bytes, and then bytes. What the kernel does not
 * take is kept. Returns 0 when all is gone, 1 where some is kept, -ENOMEM, or -errno: the client is
 * gone.
 */
static int send_both(struct up_request *r, struct buf *from, const void *bytes, size_t len)
{
	ssize_t n = 0;

	if (r->blocked)
		return keep(r, from, bytes, len);
	if (buf_len(from) > 0) {
		n = request_send(r, buf_bytes(from), buf_len(from), len > 0 ? MSG_MORE : 0);
		if (n < 0)
			return (int)n;
		buf_drop(from, (size_t)n);
	}
	if (buf_len(from) == 0 && len > 0) {
		n = request_send(r, bytes, len, 0);
		if (n < 0)
			return (int)n;
		bytes = (const char *)bytes + n;
		len -= (size_t)n;
	}
	if (buf_len(from) == 0 && len == 0)
		return 0;
	return keep(r, from, bytes, len);
}

/*
 * Tells the master how long the whole response is, before its last byte can be written: where this
 * process dies between that write and the return, the response counts as delivered. One that only
 * the end of the connection delimits must not: the master has to close.
 */
static void mark_end(struct up_request *r, size_t more)
{
	if (!r->until_close)
		atomic_store_explicit(
			&r->slot->end, r->written + buf_len(&r->out) + more, memory_order_release);
}

/* ---- The head ---- */

/* Whether the end of the request's body will be found, so that the next request can follow. */
static bool body_will_end(struct up_request *r, bool streams)
{
	if (r->body_whole)
		return true;
	/* The client waits for an answer to decide, and this one does not ask for the body. */
	if (r->expect)
		return false;
	if (streams && r->body_started)
		return true;
	if (r->lend.body == WIRE_BODY_LENGTH)
		return r->body_left - r->in_len <= UP_DRAIN_MAX;
	/* What is dropped here can't be given to the application any more. */
	r->body_started = r->body_told_end = true;
	body_drop(r);
	return r->body_whole && !r->body_bad;
}

static bool has_no_content(const struct up_request *r, int status)
{
	return status == 204 || status == 304 ||
	       (r->lend.method_len == 4 && memcmp(r->head, "HEAD", 4) == 0);
}

/* Decides how the response ends and what becomes of the connection. */
static void frame(struct up_request *r, int status, uint64_t length, bool streams)
{
	bool unknown = length == UP_LENGTH_UNKNOWN;

	r->status = status;
	r->no_content = has_no_content(r, status);
	r->content_left = length;
	r->chunked_out = unknown && r->lend.http_minor > 0 && status != 204 && status != 304;
	r->until_close = unknown && r->lend.http_minor == 0 && !r->no_content;
	r->keep_alive = (r->lend.record.flags & WIRE_LEND_KEEP_ALIVE) && !r->app_close &&
			!r->until_close && body_will_end(r, streams);
}

static void add_number(struct buf *b, uint64_t number)
{
	char digits[20];
	size_t at = sizeof(digits);

	do {
		digits[--at] = (char)('0' + number % 10);
		number /= 10;
	} while (number > 0);
	buf_add(b, digits + at, sizeof(digits) - at);
}

#define ADD_LITERAL(b, text) buf_add(b, text, sizeof(text) - 1)

static void add_status_line(struct buf *b, int status)
{
	if (status == 200) {
		ADD_LITERAL(b, "HTTP/1.1 200 OK\r\n");
		return;
	}
	ADD_LITERAL(b, "HTTP/1.1 ");
	add_number(b, (uint64_t)status);
	ADD_LITERAL(b, " ");
	buf_add_text(b, http_reason((unsigned)status));
	ADD_LITERAL(b, "\r\n");
}

static void add_framing(struct up_request *r, struct buf *b)
{
	if (r->chunked_out) {
		ADD_LITERAL(b, "Transfer-Encoding: chunked\r\n");
	} else if (r->content_left != UP_LENGTH_UNKNOWN && r->status != 204 &&
		   (r->status != 304 || r->content_left > 0)) {
		ADD_LITERAL(b, "Content-Length: ");
		add_number(b, r->content_left);
		ADD_LITERAL(b, "\r\n");
	}
	if (r->status == 101)
		ADD_LITERAL(b, "Connection: Upgrade\r\n");
	else if (!r->keep_alive)
		ADD_LITERAL(b, "Connection: close\r\n");
	else if (r->lend.http_minor == 0)
		ADD_LITERAL(b, "Connection: keep-alive\r\n");
}

static const char *add_fields(const struct up_request *r)
{
	return r->head + r->lend.head_len + r->lend.ahead_len + r->lend.set_fields_len;
}

static size_t head_room(const struct up_request *r, size_t type_len)
{
	return HEAD_MAX + type_len + buf_len(&r->fields) + r->lend.add_fields_len;
}

/* The room is reserved. */
static void add_head(struct up_request *r, struct buf *b, const char *type, size_t type_len)
{
	size_t before = buf_len(b);

	add_status_line(b, r->status);
	buf_add(b, worker_date(r->worker), 37);
	if (type) {
		ADD_LITERAL(b, "Content-Type: ");
		buf_add(b, type, type_len);
		ADD_LITERAL(b, "\r\n");
	}
	add_framing(r, b);
	if (buf_len(&r->fields) > 0)
		buf_add(b, buf_bytes(&r->fields), buf_len(&r->fields));
	buf_add(b, add_fields(r), r->lend.add_fields_len);
	ADD_LITERAL(b, "\r\n");
	r->head_bytes = (uint32_t)(buf_len(b) - before);
}

/* ---- The end ---- */

/* What is left to do is to find the end of the body, or it was found. */
static void response_done(struct up_request *r)
{
	struct deadlines *drains = &r->worker->drain_deadlines;

	request_enter(r);
	request_tell(r, UP_END_DONE);
	if (r->body_bad) {
		request_return(r, WIRE_BAD_BODY);
	} else if (!r->keep_alive) {
		request_return(r, WIRE_CLOSE);
	} else if (r->body_whole) {
		request_return(r, WIRE_KEEP);
	} else {
		r->state = REQUEST_DRAINING;
		deadline_start(drains, &r->body_deadline);
		body_pump(r);
	}
	request_leave(r);
}

void response_settle(struct up_request *request)
{
	if (request->state != REQUEST_SERVING)
		return;
	if (request->response == RESPONSE_ENDED && response_pending(request) == 0) {
		response_done(request);
	} else if (request->tell_writable && request->response == RESPONSE_BEGUN) {
		request->tell_writable = false;
		request_enter(request);
		request->on_writable(request, request->writable_data);
		request_leave(request);
	}
}

/*
 * After a send by which the response ends: treats its result. Returns 0, -ENOMEM or -EPIPE.
 * Whatever was written of a response that can't go on, only the end of the connection is left.
 */
static int sent_last(struct up_request *r, int sent)
{
	if (sent == -ENOMEM) {
		request_end(r, UP_END_ABORTED, WIRE_CLOSE);
		return -ENOMEM;
	}
	if (sent < 0) {
		request_end(r, UP_END_GONE, WIRE_GONE);
		return -EPIPE;
	}
	request_enter(r);
	response_settle(r);
	request_leave(r);
	return 0;
}

/* ---- What the application calls ---- */

/* Whether a response may begin: 0, or the error. */
static int may_begin(const struct up_request *r, int status)
{
	if (r->response != RESPONSE_NONE)
		return -EALREADY;
	if (!request_is_live(r))
		return -EPIPE;
	return status >= 200 && status <= 999 ? 0 : -EINVAL;
}

static int respond(struct up_request *request, int status, const char *content_type,
	const void *bytes, size_t len, bool borrowed)
{
	/* Behind an interim response that is still on its way the order has to be kept. */
	struct buf *b = buf_len(&request->out) > 0 ? &request->out : &request->worker->out;
	size_t type_len = content_type ? strlen(content_type) : 0, apart;
	int r = may_begin(request, status);

	if (r == 0 && content_type && !http_is_value(content_type, type_len))
		r = -EINVAL;
	if (r < 0)
		return r;
	apart = len > UP_WHOLE_MAX ? len : 0;
	/* A short one is copied behind its head, so that both leave in one piece. */
	request->borrows = borrowed && apart > 0;
	if (b == &request->worker->out)
		buf_clear(b);
	if (!buf_reserve(b, head_room(request, type_len) + len - apart))
		return -ENOMEM;
	frame(request, status, len, false);
	add_head(request, b, content_type, type_len);
	request->response = RESPONSE_ENDED;
	if (request->no_content) {
		len = apart = 0;
	} else if (apart == 0) {
		buf_add(b, bytes, len);
		request->body_bytes = len;
	} else {
		request->body_bytes = len;
	}
	mark_end(request, apart + (b == &request->out ? 0 : buf_len(b)));
	return sent_last(request, send_both(request, b, bytes, apart));
}

int up_respond(struct up_request *request, int status, const char *content_type, const void *bytes,
	size_t len)
{
	return respond(request, status, content_type, bytes, len, false);
}

int up_respond_borrowed(struct up_request *request, int status, const char *content_type,
	const void *bytes, size_t len)
{
	return respond(request, status, content_type, bytes, len, true);
}

static bool add_field(struct up_request *r, const char *name, const char *value)
{
	size_t name_len = strlen(name), value_len = strlen(value);

	if (!buf_reserve(&r->fields, name_len + value_len + 4))
		return false;
	buf_add(&r->fields, name, name_len);
	ADD_LITERAL(&r->fields, ": ");
	buf_add(&r->fields, value, value_len);
	ADD_LITERAL(&r->fields, "\r\n");
	return true;
}

static int add_connection(struct up_request *r, const char *value)
{
	if (strcasecmp(value, "close") == 0)
		r->app_close = true;
	else if (strcasecmp(value, "upgrade") != 0)
		return -EINVAL;
	return 0; /* the one with 101 is ours to send */
}

int up_add_field(struct up_request *request, const char *name, const char *value)
{
	static const char *const ours[] = { "Content-Length", "Transfer-Encoding", "Date" };

	if (request->response != RESPONSE_NONE)
		return -EALREADY;
	if (!request_is_live(request))
		return -EPIPE;
	if (!http_is_token(name, strlen(name)) || !http_is_value(value, strlen(value)))
		return -EINVAL;
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		if (strcasecmp(name, ours[i]) == 0)
			return -EINVAL;
	if (strcasecmp(name, "Connection") == 0)
		return add_connection(request, value);
	return add_field(request, name, value) ? 0 : -ENOMEM;
}

int up_begin(struct up_request *request, int status, uint64_t length)
{
	int r = may_begin(request, status);

	if (r < 0)
		return r;
	if (!buf_reserve(&request->out, head_room(request, 0)))
		return -ENOMEM;
	frame(request, status, length, true);
	add_head(request, &request->out, NULL, 0);
	request->response = RESPONSE_BEGUN;
	/* Known now; up_write() may send the last byte long before up_end() is called. */
	if (request->no_content || length != UP_LENGTH_UNKNOWN)
		mark_end(request, request->no_content ? 0 : (size_t)length);
	if (length == UP_LENGTH_UNKNOWN && request->half_closed)
		deadline_start(&request->worker->departure_deadlines, &request->departure_deadline);
	worker_later(request->worker, &request->later);
	return 0;
}

/* Treats the result of a send after which the response goes on. */
static int sent_some(struct up_request *r, int sent)
{
	if (sent < 0) {
		request_doom(r);
		return sent == -ENOMEM ? -ENOMEM : -EPIPE;
	}
	request_settle(r);
	return sent;
}

static void add_chunk_size(struct buf *b, size_t len)
{
	static const char hex[] = "0123456789abcdef";
	char digits[16];
	size_t at = sizeof(digits);

	do {
		digits[--at] = hex[len & 15];
		len >>= 4;
	} while (len > 0);
	buf_add(b, digits + at, sizeof(digits) - at);
	ADD_LITERAL(b, "\r\n");
}

/* Puts small content into `out`, to leave with what comes next or at the end of the turn. */
static int write_collected(struct up_request *r, const void *bytes, size_t len)
{
	struct buf *out = &r->out;

	if (!buf_reserve(out, len + CHUNK_FRAME_MAX))
		return -ENOMEM;
	if (r->chunked_out)
		add_chunk_size(out, len);
	buf_add(out, bytes, len);
	if (r->chunked_out)
		ADD_LITERAL(out, "\r\n");
	if (r->blocked)
		return 1;
	if (buf_len(out) >= COLLECT_MAX)
		return sent_some(r, response_flush(r));
	worker_later(r->worker, &r->later);
	return 0;
}

/* Sends large content from where it is. */
static int write_through(struct up_request *r, const void *bytes, size_t len)
{
	struct buf *out = &r->out;
	int sent;

	if (!buf_reserve(out, CHUNK_FRAME_MAX))
		return -ENOMEM;
	if (r->chunked_out)
		add_chunk_size(out, len);
	sent = send_both(r, out, bytes, len);
	if (sent >= 0 && r->chunked_out) {
		if (!buf_reserve(out, 2))
			sent = -ENOMEM;
		else
			ADD_LITERAL(out, "\r\n");
		worker_later(r->worker, &r->later);
	}
	return sent_some(r, sent);
}

int up_write(struct up_request *request, const void *bytes, size_t len)
{
	int sent;

	if (request->response != RESPONSE_BEGUN)
		return -EINVAL;
	if (!request_is_live(request))
		return -EPIPE;
	if (request->content_left != UP_LENGTH_UNKNOWN && len > request->content_left)
		return -EMSGSIZE;
	sent = request->blocked;
	if (len > 0 && !request->no_content) {
		bool large = len >= COLLECT_MAX && !request->blocked;

		request->body_bytes += len;
		sent = large ? write_through(request, bytes, len)
			     : write_collected(request, bytes, len);
	}
	if (sent == -ENOMEM && !request->doomed)
		request->body_bytes -= len;
	if (sent >= 0 && request->content_left != UP_LENGTH_UNKNOWN)
		request->content_left -= len;
	return sent;
}

void up_on_writable(
	struct up_request *request, void (*fn)(struct up_request *request, void *data), void *data)
{
	request->on_writable = fn;
	request->writable_data = data;
}

size_t up_pending(const struct up_request *request)
{
	return request->blocked ? response_pending(request) : 0;
}

int up_flush(struct up_request *request)
{
	if (request->response != RESPONSE_BEGUN)
		return -EINVAL;
	if (!request_is_live(request))
		return -EPIPE;
	if (request->blocked)
		return 1;
	return sent_some(request, response_flush(request));
}

int up_end(struct up_request *request)
{
	if (request->response != RESPONSE_BEGUN)
		return -EINVAL;
	if (!request_is_live(request))
		return -EPIPE;
	if (!request->no_content && request->content_left != UP_LENGTH_UNKNOWN &&
		request->content_left > 0) {
		up_abort(request);
		return 0;
	}
	if (request->chunked_out && !request->no_content) {
		if (!buf_reserve(&request->out, 5))
			return sent_last(request, -ENOMEM);
		ADD_LITERAL(&request->out, "0\r\n\r\n");
	}
	request->response = RESPONSE_ENDED;
	/* No longer endless: how long the client takes is for the send time-out. */
	deadline_stop(&request->departure_deadline);
	mark_end(request, 0);
	return sent_last(request, request->blocked ? 1 : response_flush(request));
}

void up_abort(struct up_request *request)
{
	if (!request_is_live(request))
		return;
	if (request->response == RESPONSE_BEGUN && request->first_byte_us > 0 && !request->blocked)
		response_flush(request);
	response_refuse(request, 500, UP_END_ABORTED, WIRE_CLOSE);
}

static bool is_interim(int status)
{
	return status == 102 || status == 103;
}

bool response_add_interim(struct up_request *request, const void *bytes, size_t len)
{
	if (!buf_reserve(&request->out, len))
		return false;
	buf_add(&request->out, bytes, len);
	return true;
}

int up_interim(struct up_request *request, int status)
{
	struct buf *out = &request->out;

	if (request->response != RESPONSE_NONE)
		return -EALREADY;
	if (!request_is_live(request))
		return -EPIPE;
	if (!is_interim(status))
		return -EINVAL;
	if (request->lend.http_minor == 0)
		return 0;
	if (!buf_reserve(out, HEAD_MAX + buf_len(&request->fields)))
		return -ENOMEM;
	add_status_line(out, status);
	if (buf_len(&request->fields) > 0)
		buf_add(out, buf_bytes(&request->fields), buf_len(&request->fields));
	ADD_LITERAL(out, "\r\n");
	return request->blocked ? 1 : sent_some(request, response_flush(request));
}

int response_switch(struct up_request *request)
{
	struct buf *out = &request->out;

	if (!buf_reserve(out, head_room(request, 0)))
		return -ENOMEM;
	request->status = 101;
	request->response = RESPONSE_ENDED;
	request->keep_alive = true;
	request->content_left = UP_LENGTH_UNKNOWN;
	add_head(request, out, NULL, 0);
	return request->blocked ? 1 : response_flush(request);
}

/* ---- On libup's own account ---- */

static const char *refusal_text(int status)
{
	switch (status) {
	case 400:
		return "malformed or incomplete request body\n";
	case 408:
		return "the request body took too long\n";
	default:
		return "internal error\n";
	}
}

/* As far as it goes: a client that takes nothing is not waited for. */
void response_refuse(
	struct up_request *request, int status, enum up_end how, enum wire_disposition disposition)
{
	const char *text = refusal_text(status);
	size_t len = strlen(text);

	if (request->state == REQUEST_RETURNED)
		return;
	/* Begun in this turn, and nothing of it has left. */
	if (request->response == RESPONSE_BEGUN && request->first_byte_us == 0 &&
		!request->blocked) {
		buf_clear(&request->out);
		request->response = RESPONSE_NONE;
	}
	if (request->response == RESPONSE_NONE && !request->doomed &&
		buf_reserve(&request->out, HEAD_MAX + len + request->lend.add_fields_len)) {
		buf_clear(&request->fields);
		request->app_close = true;
		frame(request, status, len, false);
		add_head(request, &request->out, "text/plain", 10);
		if (!request->no_content)
			buf_add(&request->out, text, len);
		request->body_bytes = request->no_content ? 0 : len;
		request->response = RESPONSE_ENDED;
		mark_end(request, 0);
		if (!request->blocked)
			response_flush(request);
	}
	request_end(request, how, disposition);
}
