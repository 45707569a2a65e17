/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/conn.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "common/fd.h"
#include "master/conn-impl.h"
#include "master/log.h"

/* A client that goes on sending after its answer, as one that uploads does for a moment. */
#define LINGER_US (5 * 1000 * 1000)
#define LINGER_BYTES_MAX (4 * 1024 * 1024)
#define ANSWER_US (1000 * 1000)
#define INPUT_ROOM_MIN 4096

/* ---- States, lists, deadlines ---- */

static uint64_t state_timeout_us(const struct settings *settings, enum conn_state state)
{

	switch (state) {
	case CONN_IDLE:
		return settings->keepalive_timeout_us;
	case CONN_READING:
		return settings->header_timeout_us;
	case CONN_WAITING:
		return settings->queue_timeout_us;
	case CONN_LENT:
		return settings->request_timeout_us;
	case CONN_ANSWERING:
		return ANSWER_US;
	case CONN_CLOSING:
		return LINGER_US;
	default:
		return 0;
	}
}

static void add(_Atomic unsigned *n, unsigned change)
{
	atomic_store_explicit(
		n, atomic_load_explicit(n, memory_order_relaxed) + change, memory_order_relaxed);
}

static void count(struct conns *conns, enum conn_state state, unsigned change)
{
	add(&conns->counts[state], change);
}

unsigned conns_n_open(const struct conns *conns)
{
	return atomic_load_explicit(&conns->n_open, memory_order_relaxed);
}

unsigned conns_count(const struct conns *conns, enum conn_state state)
{
	return atomic_load_explicit(&conns->counts[state], memory_order_relaxed);
}

static void arm(struct conns *conns, enum conn_state state, uint64_t deadline_us)
{
	ev_timer *timer = &conns->deadlines[state];
	uint64_t now = conns->thread->now_us;

	ev_timer_set(timer, deadline_us > now ? (double)(deadline_us - now) / 1e6 : 0., 0.);
	ev_timer_start(conns->thread->loop, timer);
}

void conn_enter(struct conn *conn, enum conn_state state)
{
	struct conns *conns = conn->conns;
	uint64_t timeout_us = state_timeout_us(&conns->thread->settings, state);

	list_remove(&conn->link);
	list_append(&conns->states[state], &conn->link);
	count(conns, conn->state, -1u);
	count(conns, state, 1);
	conn->state = (uint8_t)state;
	conn->deadline_us = timeout_us ? conns->thread->now_us + timeout_us : UINT64_MAX;
	/* A running timer is for an earlier one of the same list, and then goes on to this one. */
	if (timeout_us && !ev_is_active(&conns->deadlines[state]))
		arm(conns, state, conn->deadline_us);
}

static void read_cb(struct ev_loop *loop, ev_io *watcher, int events);

void conn_watch(struct conn *conn, int events)
{
	struct ev_loop *loop = conn->conns->thread->loop;

	if (ev_is_active(&conn->watcher) && (conn->watcher.events & (EV_READ | EV_WRITE)) == events)
		return;
	ev_io_stop(loop, &conn->watcher);
	ev_io_set(&conn->watcher, conn->fd, events);
	ev_io_start(loop, &conn->watcher);
}

void conn_unwatch(struct conn *conn)
{
	ev_io_stop(conn->conns->thread->loop, &conn->watcher);
}

/* The list stays in order: the later deadlines all become the same. */
static void bring_forward(struct conns *conns, enum conn_state state, uint64_t timeout_us)
{
	uint64_t latest_us = conns->thread->now_us + timeout_us;

	list_each (at, &conns->states[state]) {
		struct conn *conn = container_of(at, struct conn, link);

		if (conn->deadline_us > latest_us)
			conn->deadline_us = latest_us;
	}
	ev_timer_stop(conns->thread->loop, &conns->deadlines[state]);
	if (!list_empty(&conns->states[state]))
		arm(conns, state,
			container_of(conns->states[state].next, struct conn, link)->deadline_us);
}

void conns_set(struct conns *conns, const struct settings *settings)
{
	struct settings before = conns->thread->settings;

	conns->thread->settings = *settings;
	for (unsigned state = 0; state < CONN_N_STATES; state++) {
		uint64_t then_us = state_timeout_us(&before, (enum conn_state)state);
		uint64_t now_us = state_timeout_us(settings, (enum conn_state)state);

		if (now_us != 0 && (then_us == 0 || now_us < then_us))
			bring_forward(conns, (enum conn_state)state, now_us);
	}
}

/* ---- The end ---- */

void request_free(struct conn *conn)
{
	free(conn->request);
	conn->request = NULL;
}

static void input_free(struct conn *conn)
{
	free(conn->input);
	conn->input = NULL;
}

void conn_close(struct conn *conn)
{
	struct conns *conns = conn->conns;

	if (conn->dead)
		return;
	conn->dead = true;
	conn_unwatch(conn);
	if (conn->state == CONN_WAITING)
		round_leave(&conns->round, &conn->request->place);
	fd_close(&conn->fd);
	input_free(conn);
	free(conn->output);
	conn->output = NULL;
	request_free(conn);
	count(conns, conn->state, -1u);
	add(&conns->n_open, -1u);
	list_remove(&conn->link);
	list_append(&conns->dead, &conn->link);
	conns->on_closed(conns->data);
}

void conn_drop(struct conn *conn)
{
	counter_add(&conn->conns->thread->counters.n_dropped, 1);
	conn_close(conn);
}

void conn_linger(struct conn *conn)
{
	/* Closing with bytes unread sends a reset, which can destroy an answer under way: RFC
	 * 9112, 9.6. */
	if (shutdown(conn->fd, SHUT_WR) < 0) {
		conn_close(conn);
		return;
	}
	input_free(conn);
	request_free(conn);
	conn->drain_left = LINGER_BYTES_MAX;
	conn_enter(conn, CONN_CLOSING);
	conn_watch(conn, EV_READ);
}

/* Ends a connection between requests. */
static void hang_up(struct conn *conn)
{
	int unsent = 0;

	/* Where the client has all that was sent, a reset could destroy nothing, and there is no
	 * need to wait for a client that keeps its side open: pools do until they want the
	 * connection. */
	if (ioctl(conn->fd, SIOCOUTQ, &unsent) == 0 && unsent == 0)
		conn_close(conn);
	else
		conn_linger(conn);
}

static void expire(struct conn *conn)
{
	switch ((enum conn_state)conn->state) {
	case CONN_READING:
		counter_add(&conn->conns->thread->counters.n_refused, 1);
		conn_answer(conn, 408, "The request head took too long.", UINT64_MAX);
		break;
	case CONN_WAITING:
		conn_queue_timeout(conn);
		break;
	case CONN_LENT:
		conn_recall(conn);
		break;
	case CONN_IDLE:
		hang_up(conn);
		break;
	case CONN_ANSWERING:
		/* Closing while it sends would take the answer from it. */
		if (!conn->output) {
			conn_linger(conn);
			break;
		}
		/* fall through */
	default:
		conn_close(conn);
	}
}

static void deadline_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct conns *conns = watcher->data;
	enum conn_state state = (enum conn_state)(watcher - conns->deadlines);

	(void)loop, (void)events;
	while (!list_empty(&conns->states[state])) {
		struct conn *first = container_of(conns->states[state].next, struct conn, link);

		if (first->deadline_us > conns->thread->now_us) {
			if (first->deadline_us != UINT64_MAX && !ev_is_active(watcher))
				arm(conns, state, first->deadline_us);
			return;
		}
		expire(first);
	}
}

static void reap_cb(struct ev_loop *loop, ev_prepare *watcher, int events)
{
	struct conns *conns = container_of(watcher, struct conns, reaper);
	struct list *at;

	(void)loop, (void)events;
	while ((at = list_pop(&conns->dead)))
		free(container_of(at, struct conn, link));
}

/* ---- The master's own answers ---- */

/* The answer has gone out: drains, goes on or closes. */
static void answered(struct conn *conn)
{
	free(conn->output);
	conn->output = NULL;
	if (!conn->keep) {
		conn_linger(conn);
	} else if (conn->drain_left > 0) {
		conn_enter(conn, CONN_ANSWERING);
		conn_watch(conn, EV_READ);
	} else {
		conn_next(conn);
	}
}

static int output_keep(struct conn *conn, const char *text, size_t len)
{
	conn->output = malloc(sizeof(struct output) + len);
	if (!conn->output)
		return -ENOMEM;
	conn->output->len = (uint32_t)len;
	conn->output->at = 0;
	memcpy(conn->output->data, text, len);
	return 0;
}

static void output_send(struct conn *conn)
{
	struct output *output = conn->output;
	ssize_t n = send(conn->fd, output->data + output->at, output->len - output->at,
		MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		conn_close(conn);
		return;
	}
	if (n > 0) {
		output->at += (uint32_t)n;
		conn->written += (uint64_t)n;
	}
	if (output->at == output->len) {
		answered(conn);
		return;
	}
	if (conn->state != CONN_ANSWERING)
		conn_enter(conn, CONN_ANSWERING);
	conn_watch(conn, EV_WRITE);
}

void conn_answer(struct conn *conn, unsigned status, const char *text, uint64_t left)
{
	const struct request *request = conn->request;
	bool is_head = request && request_is_head(request);
	/* Nobody asked for the body: only the client knows what follows, it or a request. */
	bool unasked = request && request->head.expect_continue && left > 0 &&
		       left == request->head.body_len;
	char answer[512];
	int len;

	conn->keep = request && request->head.keep_alive && left <= DRAIN_BYTES_MAX && !unasked &&
		     !conn->conns->stopping;
	conn->drain_left = left;
	len = snprintf(answer, sizeof(answer),
		"HTTP/1.1 %u %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s%s\r\n%s%s",
		status, http_reason(status), strlen(text) + 1,
		status == 503 ? "Retry-After: 1\r\n" : "",
		!conn->keep		   ? "Connection: close\r\n"
		: request->head.http_minor ? ""
					   : "Connection: keep-alive\r\n",
		is_head ? "" : text, is_head ? "" : "\n");
	request_free(conn);
	if (output_keep(conn, answer, (size_t)len) < 0)
		conn_drop(conn);
	else
		output_send(conn);
}

static void refuse(struct conn *conn, const struct http_scan *scan)
{
	log_debug("connection %llu: refused with %u: %s", (unsigned long long)conn->id,
		scan->status, scan->reason);
	counter_add(&conn->conns->thread->counters.n_refused, 1);
	conn_answer(conn, scan->status, scan->reason, UINT64_MAX);
}

/* ---- Heads ---- */

static void input_restart(struct conn *conn)
{
	http_scan_init(&conn->input->scan, conn->conns->thread->settings.head_bytes_max);
}

int conn_put_input(struct conn *conn, const void *bytes, size_t len)
{
	size_t room = len < INPUT_ROOM_MIN ? INPUT_ROOM_MIN : len;
	struct input *input = malloc(sizeof(*input) + room);

	if (!input)
		return -ENOMEM;
	input->len = (uint32_t)len;
	input->room = (uint32_t)room;
	memcpy(input->data, bytes, len);
	conn->input = input;
	input_restart(conn);
	return 0;
}

static int input_grow(struct conn *conn)
{
	struct input *input = conn->input;
	size_t room = (size_t)input->room * 2;

	if (input->room - input->len >= INPUT_ROOM_MIN / 4)
		return 0;
	input = realloc(input, sizeof(*input) + room);
	if (!input)
		return -ENOMEM;
	input->room = (uint32_t)room;
	conn->input = input;
	return 0;
}

/* How many of the bytes behind the head go with the lend. */
static size_t ahead_len(const struct http_head *head, size_t behind)
{
	switch (head->body) {
	case HTTP_BODY_NONE:
		/* A client may speak the new protocol at once; where the worker declines, what
		 * came is a request and the worker returns it. */
		return head->upgrade ? behind : 0;
	case HTTP_BODY_LENGTH:
		return behind < head->body_len ? behind : (size_t)head->body_len;
	default:
		/* The worker returns what is not of this body. */
		return behind;
	}
}

/*
 * Makes the request of a whole head and what is behind it. Returns the bytes used, or -ENOMEM.
 */
static long request_new(
	struct conn *conn, const struct http_head *head, const char *data, size_t len)
{
	struct thread *thread = conn->conns->thread;
	size_t behind = len - head->start - head->len;
	size_t ahead = ahead_len(head, behind);
	struct request *request = malloc(sizeof(*request) + head->len + ahead);

	if (!request)
		return -ENOMEM;
	memset(request, 0, sizeof(*request));
	request->conn = conn;
	request->loan.ops = &serve_loan_ops;
	request->head = *head;
	request->id = thread_next_id(thread);
	request->complete_us = thread->now_us;
	request->ahead_len = (uint32_t)ahead;
	memcpy(request->data, data + head->start, head->len);
	if (head->h2c)
		http_head_remove_h2c(request->data, &request->head);
	memcpy(request->data + request->head.len, data + head->start + head->len, ahead);
	place_init(&request->place, &conn->conns->round.line_end);
	conn->request = request;
	counter_add(&thread->counters.n_requests, 1);
	return (long)(head->start + head->len + ahead);
}

/* Acts on what the scanner says of data. Returns the bytes used: 0 where more are needed. */
static size_t act(struct conn *conn, struct http_scan *scan, const char *data, size_t len)
{
	long used;

	switch (http_scan(scan, data, len)) {
	case HTTP_MORE:
		return 0;
	case HTTP_REFUSED:
		refuse(conn, scan);
		return len;
	default:
		used = request_new(conn, &scan->head, data, len);
		if (used < 0)
			conn_drop(conn);
		return used < 0 ? len : (size_t)used;
	}
}

static void wait_for_head(struct conn *conn)
{
	if (!conn->input && conn->conns->stopping) {
		conn_linger(conn);
		return;
	}
	if (conn->input && conn->state != CONN_READING)
		conn_enter(conn, CONN_READING);
	else if (!conn->input)
		conn_enter(conn, CONN_IDLE);
	conn_watch(conn, EV_READ);
}

/* The input without its first bytes. */
static void input_use(struct conn *conn, size_t used)
{
	struct input *input = conn->input;

	if (!input)
		return;
	if (used == input->len) {
		input_free(conn);
		return;
	}
	input->len -= (uint32_t)used;
	memmove(input->data, input->data + used, input->len);
	input_restart(conn);
}

static bool between_requests(const struct conn *conn)
{
	return !conn->dead && !conn->request &&
	       (conn->state == CONN_IDLE || conn->state == CONN_READING);
}

void conn_advance(struct conn *conn)
{
	/* A request that is answered at once ends in here again: the loop goes on with the next
	 * one, however many are pipelined. */
	if (conn->advancing)
		return;
	conn->advancing = true;
	while (between_requests(conn) && conn->input) {
		size_t used = act(conn, &conn->input->scan, conn->input->data, conn->input->len);

		if (used == 0)
			break;
		input_use(conn, used);
		if (conn->request)
			conn_serve(conn);
	}
	conn->advancing = false;
	if (between_requests(conn))
		wait_for_head(conn);
}

/* Bytes that came while nothing was kept: the common case, a whole request in one packet. */
static void take_fresh(struct conn *conn, const char *data, size_t len)
{
	struct http_scan scan;
	size_t used;

	http_scan_init(&scan, conn->conns->thread->settings.head_bytes_max);
	used = act(conn, &scan, data, len);
	if (conn->dead || (used > 0 && !conn->request))
		return;
	if (used < len && conn_put_input(conn, data + used, len - used) < 0) {
		conn_drop(conn);
		return;
	}
	if (used == 0)
		conn->input->scan = scan;
	if (conn->request)
		conn_serve(conn);
	else
		wait_for_head(conn);
}

static void receive_head(struct conn *conn)
{
	char *buf = (char *)conn->conns->thread->scratch;
	size_t room = THREAD_SCRATCH_BYTES;
	ssize_t n;

	if (conn->input) {
		if (input_grow(conn) < 0) {
			conn_drop(conn);
			return;
		}
		buf = conn->input->data + conn->input->len;
		room = conn->input->room - conn->input->len;
		/* What is behind the head travels with it, or comes back: both have a limit. */
		if (room > THREAD_SCRATCH_BYTES)
			room = THREAD_SCRATCH_BYTES;
	}
	n = recv(conn->fd, buf, room, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		conn_close(conn);
		return;
	}
	conn->read += (uint64_t)n;
	if (conn->input) {
		conn->input->len += (uint32_t)n;
		conn_advance(conn);
	} else {
		take_fresh(conn, buf, (size_t)n);
	}
}

/* ---- Draining ---- */

static void drained(struct conn *conn, size_t n)
{
	conn->drain_left -= n < conn->drain_left ? n : conn->drain_left;
	if (conn->drain_left > 0)
		return;
	if (conn->state == CONN_CLOSING)
		conn_close(conn);
	else
		conn_next(conn);
}

static void drain(struct conn *conn)
{
	size_t room = THREAD_SCRATCH_BYTES;
	ssize_t n;

	/* Behind the body the next request may begin. */
	if (conn->state == CONN_ANSWERING && conn->drain_left < room)
		room = (size_t)conn->drain_left;
	n = recv(conn->fd, conn->conns->thread->scratch, room, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		conn_close(conn);
		return;
	}
	conn->read += (uint64_t)n;
	drained(conn, (size_t)n);
}

static void read_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	struct conn *conn = container_of(watcher, struct conn, watcher);

	(void)loop, (void)events;
	switch ((enum conn_state)conn->state) {
	case CONN_IDLE:
	case CONN_READING:
		receive_head(conn);
		break;
	case CONN_ANSWERING:
		if (conn->output)
			output_send(conn);
		else
			drain(conn);
		break;
	case CONN_CLOSING:
		drain(conn);
		break;
	default:
		/* Somebody else reads now. Stopping only here saves an epoll_ctl for each loan
		 * whose client stays silent meanwhile. */
		conn_unwatch(conn);
	}
}

/* ---- Life ---- */

/* An idle connection of a server that stops: what has already come is served, else it is closed. */
static void stop_idle(struct conn *conn)
{
	receive_head(conn);
	if (between_requests(conn) && !conn->input)
		hang_up(conn);
}

void conn_next(struct conn *conn)
{
	request_free(conn);
	conn_enter(conn, CONN_IDLE);
	if (conn->input || conn->advancing)
		conn_advance(conn);
	else if (conn->conns->stopping)
		stop_idle(conn);
	else
		conn_watch(conn, EV_READ);
}

int conn_new(struct conns *conns, int *take_fd, const struct sockaddr *peer, socklen_t peer_len)
{
	FD_AUTO int fd = fd_take(take_fd);
	struct conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		return -ENOMEM;
	conn->conns = conns;
	conn->id = thread_next_id(conns->thread);
	/* A UNIX client has no name worth telling. */
	if (peer_len > sizeof(conn->peer) || peer->sa_family == AF_UNIX)
		peer_len = sizeof(sa_family_t);
	memcpy(&conn->peer, peer, peer_len);
	conn->peer_len = (uint8_t)peer_len;
	conn->fd = fd_take(&fd);
	ev_io_init(&conn->watcher, read_cb, conn->fd, EV_READ);
	list_init(&conn->link);
	conn->state = CONN_IDLE;
	count(conns, CONN_IDLE, 1);
	add(&conns->n_open, 1);
	counter_add(&conns->thread->counters.n_accepted, 1);
	conn_enter(conn, CONN_IDLE);
	conn_watch(conn, EV_READ);
	/* Accepted while the server stops: it may have sent its request already. */
	if (conns->stopping)
		stop_idle(conn);
	return 0;
}

void conns_stop(struct conns *conns)
{
	struct list idle;

	conns->stopping = true;
	list_init(&idle);
	list_splice(&idle, &conns->states[CONN_IDLE]);
	for (struct list *at; (at = list_pop(&idle));) {
		struct conn *conn = container_of(at, struct conn, link);

		list_append(&conns->states[CONN_IDLE], at);
		stop_idle(conn);
	}
}

static void cut_all(struct conns *conns)
{
	for (unsigned state = 0; state < CONN_N_STATES; state++)
		list_each (at, &conns->states[state])
			conn_close(container_of(at, struct conn, link));
}

void conns_init(struct conns *conns, struct thread *thread, struct admission *admission)
{
	memset(conns, 0, sizeof(*conns));
	conns->thread = thread;
	for (unsigned state = 0; state < CONN_N_STATES; state++) {
		list_init(&conns->states[state]);
		ev_timer_init(&conns->deadlines[state], deadline_cb, 0., 0.);
		conns->deadlines[state].data = conns;
	}
	list_init(&conns->dead);
	round_init(&conns->round, thread, admission, &serve_round_ops, conns);
	ev_prepare_init(&conns->reaper, reap_cb);
	ev_prepare_start(thread->loop, &conns->reaper);
}

void conns_fini(struct conns *conns)
{
	struct ev_loop *loop = conns->thread->loop;

	cut_all(conns);
	reap_cb(loop, &conns->reaper, 0);
	round_fini(&conns->round);
	ev_prepare_stop(loop, &conns->reaper);
	for (unsigned state = 0; state < CONN_N_STATES; state++)
		ev_timer_stop(loop, &conns->deadlines[state]);
}
