/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Conn, the part between a whole head and its end: lending, waiting in line, taking back, and what
 * becomes of a request whose worker died.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "master/conn-impl.h"
#include "master/log.h"
#include "master/verdict.h"

/* Workers without a free descriptor hand a request on; when so many did, all are full. */
#define UNSERVED_MAX 16

static struct request *request_of(struct loan *loan)
{
	return container_of(loan, struct request, loan);
}

static bool method_is(const struct request *request, const char *name)
{
	return request->head.method_len == strlen(name) &&
	       memcmp(request->data, name, request->head.method_len) == 0;
}

bool request_is_head(const struct request *request)
{
	return method_is(request, "HEAD");
}

/* RFC 9110, 9.2.2. */
static bool is_idempotent(const struct request *request)
{
	static const char *const names[] = { "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (method_is(request, names[i]))
			return true;
	return false;
}

uint64_t request_body_left(const struct request *request, uint64_t read)
{
	return body_left(&request->head, request->ahead_len + read);
}

/* Whether the worker will have to read from the socket. */
static bool body_to_come(const struct request *request)
{
	return request_body_left(request, 0) > 0;
}

/* ---- Lending ---- */

static struct loan_terms terms_of(const struct conn *conn)
{
	const struct request *request = conn->request;
	const struct http_head *head = &request->head;
	bool keep = head->keep_alive && !conn->conns->stopping;
	bool expect = head->expect_continue && request->ahead_len == 0;

	return (struct loan_terms){
		.fd = conn->fd,
		.flags = (uint16_t)((keep ? WIRE_LEND_KEEP_ALIVE : 0) |
				    (expect ? WIRE_LEND_EXPECT : 0) |
				    (head->upgrade ? WIRE_LEND_UPGRADE : 0) |
				    (request->n_replays ? WIRE_LEND_REPLAY : 0)),
		.request_id = request->id,
		.connection_id = conn->id,
		.complete_us = request->complete_us,
		.head = head,
		.data = request->data,
		.ahead_len = request->ahead_len,
		.peer = &conn->peer.any,
		.peer_len = conn->peer_len,
	};
}

static void refuse_busy(struct conn *conn, const char *text)
{
	counter_add(&conn->conns->thread->counters.n_refused, 1);
	conn_enter(conn, CONN_READING);
	conn_answer(conn, 503, text, request_body_left(conn->request, 0));
}

static void wait_in_line(struct conn *conn)
{
	struct request *request = conn->request;

	/* Nobody watches it meanwhile: what the client sends now is for the worker to read. */
	conn_unwatch(conn);
	if (round_wait(&conn->conns->round, &request->place)) {
		/* Back in line, it keeps the deadline that it had. */
		if (conn->state != CONN_WAITING)
			conn_enter(conn, CONN_WAITING);
		return;
	}
	refuse_busy(conn, "Too many requests are waiting.");
}

static void serve(struct conn *conn, bool is_new)
{
	struct request *request = conn->request;
	struct round *round = &conn->conns->round;
	struct loan_terms terms = terms_of(conn);
	int r = -EAGAIN;

	/* In order: a new request goes behind those who wait, even if a seat is free now. */
	if (!is_new || !admission_has_line(round->admission))
		r = round_lend(round, &request->loan, &terms);
	if (r == -EAGAIN) {
		wait_in_line(conn);
		return;
	}
	if (r < 0) {
		log_warn("connection %llu: can't be lent: %s", (unsigned long long)conn->id,
			strerror(-r));
		counter_add(&conn->conns->thread->counters.n_failed, 1);
		conn_answer(
			conn, 500, "The server is out of memory.", request_body_left(request, 0));
		return;
	}
	/* Where the client has more to send the watcher would fire for certain: see read_cb(). */
	if (body_to_come(request))
		conn_unwatch(conn);
	conn_enter(conn, CONN_LENT);
}

void conn_serve(struct conn *conn)
{
	serve(conn, true);
}

void conn_queue_timeout(struct conn *conn)
{
	/* While a generation is not complete nobody is refused; the place in line stays. */
	if (atomic_load(&conn->conns->round.admission->unlimited)) {
		conn_enter(conn, CONN_WAITING);
		return;
	}
	round_leave(&conn->conns->round, &conn->request->place);
	refuse_busy(conn, "No worker became free in time.");
}

void conn_recall(struct conn *conn)
{
	/* Asked again after as long a time, if the worker does not answer. */
	conn_enter(conn, CONN_LENT);
	lender_recall(conn->request->loan.lender, &conn->request->loan);
}

/* ---- Taking back ---- */

/* A response has been delivered. */
static void finish(struct conn *conn)
{
	struct thread *thread = conn->conns->thread;

	latency_add(&thread->counters.latency, thread->now_us - conn->request->complete_us);
}

/* Whether the next request can follow: what is left of a body must not be taken for one. */
static bool is_over(const struct request *request, const struct wire_return *ret)
{
	if (!request->head.keep_alive)
		return false;
	if (request->head.body == HTTP_BODY_NONE)
		return ret->read == 0;
	return request->head.body == HTTP_BODY_CHUNKED ||
	       request_body_left(request, ret->read) == 0;
}

/* What the worker read behind the request is the begin of the next one. */
static bool take_surplus(struct conn *conn, const struct wire_return *ret)
{
	const struct request *request = conn->request;

	if (ret->surplus_len == 0)
		return true;
	/* Behind any other body it had no business to read. */
	if ((request->head.body != HTTP_BODY_CHUNKED && !request->head.upgrade) || conn->input)
		return false;
	return conn_put_input(conn, wire_return_surplus(ret), ret->surplus_len) == 0;
}

/*
 * Closes in the middle of a response. A close-delimited one must not look whole, so its client gets
 * a reset (RFC 9112, 8); any other shows by its framing that it is cut.
 */
static void cut(struct conn *conn)
{
	struct linger reset = { .l_onoff = 1, .l_linger = 0 };

	if (conn->request->head.http_minor == 0)
		setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	conn_close(conn);
}

static void unserved(struct conn *conn, const struct wire_return *ret)
{
	if (ret->written > 0 || ret->read > 0) {
		/* It did touch the socket: another answer would be spliced into this one. */
		counter_add(&conn->conns->thread->counters.n_failed, 1);
		cut(conn);
	} else if (++conn->request->n_unserved < UNSERVED_MAX)
		serve(conn, false);
	else
		refuse_busy(conn, "No worker has room.");
}

static void cancelled(struct conn *conn, const struct wire_return *ret)
{
	counter_add(&conn->conns->thread->counters.n_failed, 1);
	if (ret->written > 0) {
		cut(conn);
		return;
	}
	conn_enter(conn, CONN_READING);
	conn_answer(conn, 504, "The application took too long.",
		request_body_left(conn->request, ret->read));
}

static void on_return(struct loan *loan, const struct wire_return *ret)
{
	struct request *request = request_of(loan);
	struct conn *conn = request->conn;

	if (!loan->detached) {
		conn->written += ret->written;
		conn->read += ret->read;
	}
	/* What was upgraded is no HTTP any more: nothing can follow. */
	if (loan->detached && ret->disposition != WIRE_CUT && ret->disposition != WIRE_GONE) {
		conn_linger(conn);
		return;
	}
	switch (ret->disposition) {
	case WIRE_KEEP:
		finish(conn);
		if (!is_over(request, ret) || !take_surplus(conn, ret))
			conn_linger(conn);
		else
			conn_next(conn);
		break;
	case WIRE_CLOSE:
	case WIRE_BAD_BODY:
		finish(conn);
		conn_linger(conn);
		break;
	case WIRE_UNSERVED:
		unserved(conn, ret);
		break;
	case WIRE_CANCELLED:
		cancelled(conn, ret);
		break;
	case WIRE_CUT:
		cut(conn);
		break;
	default:
		conn_close(conn);
	}
}

static void on_detached(struct loan *loan, const struct wire_return *ret)
{
	struct conn *conn = request_of(loan)->conn;

	conn->written += ret->written;
	conn->read += ret->read;
	finish(conn);
	conn_enter(conn, CONN_UPGRADED);
}

static void on_refused(struct loan *loan)
{
	serve(request_of(loan)->conn, false);
}

/* ---- A worker that died ---- */

static void completed(struct conn *conn, uint64_t left)
{
	bool keep = conn->request->head.keep_alive && left <= DRAIN_BYTES_MAX;

	finish(conn);
	if (!keep) {
		conn_linger(conn);
	} else if (left > 0) {
		conn->keep = true;
		conn->drain_left = left;
		conn_enter(conn, CONN_ANSWERING);
		conn_watch(conn, EV_READ);
	} else {
		conn_next(conn);
	}
}

/* Nobody but the server wished that this connection ends, unless a time-out did. */
static void count_drop(struct conn *conn)
{
	if (!atomic_load(&conn->request->loan.seat->expired))
		counter_add(&conn->conns->thread->counters.n_dropped, 1);
}

static void act_on(struct conn *conn, enum verdict what, uint64_t left)
{
	struct thread *thread = conn->conns->thread;

	switch (what) {
	case VERDICT_REPLAY:
		conn->request->n_replays++;
		counter_add(&thread->counters.n_replayed, 1);
		serve(conn, false);
		break;
	case VERDICT_AGAIN:
		serve(conn, false);
		break;
	case VERDICT_COMPLETE:
		completed(conn, left);
		break;
	case VERDICT_BAD_GATEWAY:
		counter_add(&thread->counters.n_failed, 1);
		conn_enter(conn, CONN_READING);
		conn_answer(conn, 502, "The application died.", left);
		break;
	case VERDICT_CUT:
		counter_add(&thread->counters.n_failed, 1);
		count_drop(conn);
		cut(conn);
		break;
	case VERDICT_GONE:
		conn_close(conn);
		break;
	}
}

static void on_lost(struct loan *loan, bool taken, uint64_t end)
{
	struct request *request = request_of(loan);
	struct conn *conn = request->conn;
	struct evidence evidence = {
		.head = &request->head,
		.ahead_len = request->ahead_len,
		.written = conn->written,
		.read = conn->read,
		.taken = taken,
		.end = end,
		.n_replays = request->n_replays,
	};
	struct socket_figures figures;
	uint64_t written, left;
	enum verdict what;

	if (loan->detached) {
		count_drop(conn);
		conn_close(conn);
		return;
	}
	socket_figures(conn->fd, &figures);
	what = verdict(&evidence, &figures, is_idempotent(request), &written, &left);
	if (figures.known) {
		conn->written = figures.written;
		conn->read = figures.read;
	}
	act_on(conn, what, left);
}

const struct loan_ops serve_loan_ops = {
	.on_return = on_return,
	.on_detached = on_detached,
	.on_refused = on_refused,
	.on_lost = on_lost,
};

static void on_granted(void *data, struct place *place)
{
	(void)data;
	serve(container_of(place, struct request, place)->conn, false);
}

static void on_broken(void *data, struct seat *seat, const char *why)
{
	struct conns *conns = data;

	conns->on_broken(conns->data, seat, why);
}

static void on_spent(void *data, struct seat *seat)
{
	struct conns *conns = data;

	conns->on_spent(conns->data, seat);
}

const struct round_ops serve_round_ops = {
	.on_granted = on_granted,
	.on_spent = on_spent,
	.on_broken = on_broken,
};
