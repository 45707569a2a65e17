/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "worker/request.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/fd.h"
#include "common/http.h"

/* Free requests that are kept; and what each keeps of its buffers. */
#define POOL_MAX 512
#define POOL_BUF_MAX 1024

/* ---- The pool ---- */

static struct up_request *pool_take(struct up_worker *w)
{
	struct list *first = list_pop(&w->pool);
	struct up_request *r;

	if (first) {
		w->n_pool--;
		r = container_of(first, struct up_request, pool_link);
	} else {
		r = malloc(sizeof(*r));
		if (!r)
			return NULL;
		memset(&r->fields, 0, sizeof(r->fields));
		memset(&r->out, 0, sizeof(r->out));
		memset(&r->collected, 0, sizeof(r->collected));
	}
	memset(r, 0, offsetof(struct up_request, fields));
	return r;
}

static void request_free(struct up_request *r)
{
	buf_fini(&r->fields);
	buf_fini(&r->out);
	buf_fini(&r->collected);
	free(r);
}

static void pool_give(struct up_worker *w, struct up_request *r)
{
	if (w->n_pool == POOL_MAX) {
		request_free(r);
		return;
	}
	buf_trim(&r->fields, POOL_BUF_MAX);
	buf_trim(&r->out, POOL_BUF_MAX);
	buf_trim(&r->collected, POOL_BUF_MAX);
	w->n_pool++;
	list_prepend(&w->pool, &r->pool_link);
}

void request_pool_fini(struct up_worker *worker)
{
	struct list *first;

	while ((first = list_pop(&worker->pool)))
		request_free(container_of(first, struct up_request, pool_link));
}

/* ---- Life ---- */

static void free_input(struct up_request *r)
{
	if (r->data != r->inline_data)
		free(r->data);
	if (r->fields_indexed && r->field_at != r->field_inline)
		free(r->field_at);
	free(r->held);
	free(r->held_before);
}

/* Gives it to the pool when nobody needs it any more. */
static void request_release(struct up_request *r)
{
	if (r->state != REQUEST_RETURNED || !r->note_sent || r->n_inside > 0)
		return;
	free_input(r);
	pool_give(r->worker, r);
}

void request_lose(struct up_request *request)
{
	fd_close(&request->fd);
	free_input(request);
	request_free(request);
}

static void note_sent_cb(struct note *note)
{
	struct up_request *r = container_of(note, struct up_request, note);

	r->note_sent = true;
	/* The surplus was the last that `in` was needed for. */
	request_release(r);
}

bool request_is_live(const struct up_request *request)
{
	return request->state == REQUEST_SERVING && !request->doomed;
}

void request_enter(struct up_request *request)
{
	request->n_inside++;
}

void request_leave(struct up_request *request)
{
	if (--request->n_inside > 0)
		return;
	if (request->state == REQUEST_RETURNED)
		request_release(request);
	else
		request_settle(request);
}

static bool needs_input(const struct up_request *r)
{
	if (!r->body_waits)
		return false;
	return r->state == REQUEST_DRAINING || body_is_wanted(r);
}

void request_settle(struct up_request *request)
{
	uint32_t events = EPOLLET | EPOLLRDHUP;

	if (request->n_inside > 0 || request->state == REQUEST_RETURNED)
		return;
	if (needs_input(request))
		events |= EPOLLIN;
	if (request->blocked)
		events |= EPOLLOUT;
	/* Never fewer: an event too many per edge costs less than the call. */
	if ((events & ~request->watch.events) == 0)
		return;
	request->watch.fd = request->fd;
	if (poller_set(&request->worker->poller, &request->watch, events | request->watch.events) <
		0)
		request_doom(request);
}

void request_tell(struct up_request *request, enum up_end how)
{
	if (request->state != REQUEST_SERVING)
		return;
	request->state = REQUEST_TOLD;
	if (!request->on_end)
		return;
	request->n_inside++;
	request->on_end(request, how, request->end_data);
	request->n_inside--;
}

void request_account(const struct up_request *request, struct wire_return *out)
{
	size_t kept = response_pending(request);

	memset(out, 0, sizeof(*out));
	out->request_id = request->lend.request_id;
	out->slot = request->lend.slot;
	out->written = request->written;
	out->read = request->read;
	out->body_bytes = request->body_bytes > kept ? request->body_bytes - kept : 0;
	out->head_bytes = request->head_bytes;
	out->first_byte_us = request->first_byte_us;
	/* What has not left was not said. */
	out->status = request->first_byte_us > 0 ? (uint16_t)request->status : 0;
}

/* What was read behind the end of this request is the beginning of the next. */
static void add_surplus(struct up_request *r, struct note *note)
{
	if (note->ret.disposition != WIRE_KEEP)
		return;
	/* More can't travel; a lend that brought as much would have to be split. */
	if (r->in_len > WIRE_SURPLUS_MAX || !body_hold(r)) {
		note->ret.disposition = WIRE_CLOSE;
		return;
	}
	note->surplus = r->in;
	note->ret.surplus_len = (uint32_t)r->in_len;
}

/* From here on nothing happens to it any more. */
static void request_stop(struct up_request *r)
{
	r->state = REQUEST_RETURNED;
	deadline_stop(&r->body_deadline);
	deadline_stop(&r->send_deadline);
	deadline_stop(&r->departure_deadline);
	list_remove(&r->later.link);
	poller_remove(&r->worker->poller, &r->watch);
	r->channel->lent[r->lend.slot] = NULL;
}

void request_forget(struct up_request *request)
{
	request_stop(request);
	request->note_sent = true;
	request_release(request);
}

/* Whether the client has part of a response, and will not get the rest. */
static bool is_cut(const struct up_request *request)
{
	return request->response == RESPONSE_BEGUN ||
	       (request->response == RESPONSE_ENDED && response_pending(request) > 0);
}

void request_return(struct up_request *request, enum wire_disposition disposition)
{
	struct channel *ch = request->channel;
	struct note *note = &request->note;

	if (disposition != WIRE_GONE && disposition != WIRE_CANCELLED && is_cut(request))
		disposition = WIRE_CUT;
	request_stop(request);
	worker_close(request->worker, &request->fd);
	request->worker->n_held--;
	request_account(request, &note->ret);
	note->ret.disposition = (uint8_t)disposition;
	note->type = WIRE_RETURN;
	note->sent_cb = note_sent_cb;
	add_surplus(request, note);
	channel_post(ch, note);
}

void request_end(struct up_request *request, enum up_end how, enum wire_disposition disposition)
{
	if (request->state == REQUEST_RETURNED)
		return;
	request_enter(request);
	request_tell(request, how);
	request_return(request, disposition);
	request_leave(request);
}

void request_doom(struct up_request *request)
{
	request->doomed = true;
	worker_later(request->worker, &request->later);
}

void request_recall(struct up_request *request)
{
	/* The master waits for the first byte, not for the last: a response that has begun goes on.
	 */
	if (request->first_byte_us > 0 && request->state != REQUEST_DRAINING)
		return;
	/* A whole response has gone out: only the rest of the body is missing. */
	if (request->state == REQUEST_DRAINING)
		request_end(request, UP_END_DONE, WIRE_CLOSE);
	else
		request_end(request, UP_END_CANCELLED, WIRE_CANCELLED);
}

static bool has_more_to_do(const struct up_request *r)
{
	return r->doomed || r->body_again || (r->tell_writable && r->response == RESPONSE_BEGUN) ||
	       (buf_len(&r->out) > 0 && !r->blocked);
}

/*
 * What was put off until the end of this turn. The body first: what it leads to leaves with the
 * rest, and a fault in it is found before a head is sent.
 */
static void request_later(struct later *later)
{
	struct up_request *r = container_of(later, struct up_request, later);

	if (r->doomed) {
		request_end(r, UP_END_GONE, WIRE_GONE);
		return;
	}
	request_enter(r);
	r->body_again = false;
	body_pump(r);
	if (r->state == REQUEST_SERVING && !r->blocked && response_flush(r) < 0)
		request_end(r, UP_END_GONE, WIRE_GONE);
	response_settle(r);
	if (!has_more_to_do(r))
		list_remove(&later->link);
	request_leave(r);
}

/* ---- What happens to the socket ---- */

/* A response whose end nobody knows is not worth going on with for somebody who may have left. */
static void request_half_closed(struct up_request *r)
{
	r->half_closed = true;
	if (r->state == REQUEST_SERVING && r->response == RESPONSE_BEGUN &&
		r->content_left == UP_LENGTH_UNKNOWN &&
		!deadline_is_running(&r->departure_deadline))
		deadline_start(&r->worker->departure_deadlines, &r->departure_deadline);
}

static void request_writable(struct up_request *r)
{
	if (r->state != REQUEST_SERVING || !r->blocked)
		return;
	if (response_flush(r) < 0)
		request_end(r, UP_END_GONE, WIRE_GONE);
	else
		response_settle(r);
}

static void happened_cb(struct poller_watch *watch, uint32_t happened)
{
	struct up_request *r = container_of(watch, struct up_request, watch);

	/* EPOLLHUP is both ways: a reset, or on a UNIX socket a peer that has closed. */
	if (happened & (EPOLLERR | EPOLLHUP)) {
		request_end(r, UP_END_GONE, r->state == REQUEST_DRAINING ? WIRE_CLOSE : WIRE_GONE);
		return;
	}
	request_enter(r);
	if (happened & EPOLLRDHUP)
		request_half_closed(r);
	if (happened & (EPOLLIN | EPOLLRDHUP))
		body_pump(r);
	if (happened & EPOLLOUT)
		request_writable(r);
	request_leave(r);
}

/*
 * Time-outs. Each looks once more whether something has come or gone: it may be this process that
 * was late.
 */
void request_body_expired(struct deadline *deadline)
{
	struct up_request *r = container_of(deadline, struct up_request, body_deadline);

	request_enter(r);
	body_pump(r);
	if (r->state == REQUEST_SERVING && body_is_wanted(r) && !deadline_is_running(deadline))
		response_refuse(r, 408, UP_END_TIMEOUT, WIRE_BAD_BODY);
	request_leave(r);
}

void request_send_expired(struct deadline *deadline)
{
	struct up_request *r = container_of(deadline, struct up_request, send_deadline);

	request_enter(r);
	request_writable(r);
	if (r->state == REQUEST_SERVING && r->blocked && !deadline_is_running(deadline))
		request_end(r, UP_END_TIMEOUT, WIRE_CLOSE);
	request_leave(r);
}

void request_drain_expired(struct deadline *deadline)
{
	request_return(container_of(deadline, struct up_request, body_deadline), WIRE_CLOSE);
}

void request_departure_expired(struct deadline *deadline)
{
	request_end(container_of(deadline, struct up_request, departure_deadline), UP_END_GONE,
		WIRE_GONE);
}

/* ---- The lend ---- */

static bool request_copy(struct up_request *r, const struct wire_lend *lend)
{
	size_t len = lend->record.len - sizeof(*lend);

	r->data = len <= sizeof(r->inline_data) ? r->inline_data : malloc(len);
	if (!r->data)
		return false;
	memcpy(r->data, wire_lend_data(lend), len);
	r->lend = *lend;
	r->head = r->data + lend->peer_len + lend->local_len;
	/* In the request line a space follows each: no field begins there. */
	r->head[lend->method_len] = '\0';
	r->head[lend->method_len + 1 + lend->target_len] = '\0';
	return true;
}

static struct up_request *request_new(struct channel *ch, const struct wire_lend *lend)
{
	struct up_worker *w = ch->worker;
	struct up_request *r = pool_take(w);

	if (!r)
		return NULL;
	if (!request_copy(r, lend)) {
		pool_give(w, r);
		return NULL;
	}
	r->worker = w;
	r->channel = ch;
	r->slot = &ch->slots[lend->slot];
	r->state = REQUEST_SERVING;
	r->number = ++w->n_requests;
	list_init(&r->later.link);
	r->later.run = request_later;
	r->watch.events = 0;
	r->watch.happened_cb = happened_cb;
	deadline_init(&r->body_deadline);
	deadline_init(&r->send_deadline);
	deadline_init(&r->departure_deadline);
	body_init(r);
	return r;
}

int request_serve(struct channel *channel, const struct wire_lend *lend, int *take_fd)
{
	struct up_worker *w = channel->worker;
	struct up_request *r = request_new(channel, lend);

	if (!r)
		return -ENOMEM;
	r->fd = fd_take(take_fd);
	channel->lent[lend->slot] = r;
	if (lend->slot >= channel->n_used)
		channel->n_used = lend->slot + 1;
	w->n_held++;
	/* Before the application sees it: from here on nobody may serve it a second time unasked.
	 */
	atomic_store_explicit(&r->slot->taken, 1, memory_order_release);
	request_enter(r);
	if (w->on_request)
		w->on_request(r, w->request_data);
	else
		up_respond(r, 404, "text/plain", "not found\n", 10);
	request_leave(r);
	return 0;
}

/* ---- What the application asks ---- */

const char *up_method(const struct up_request *request)
{
	return request->head;
}

const char *up_target(const struct up_request *request)
{
	return request->head + request->lend.method_len + 1;
}

int up_http_minor(const struct up_request *request)
{
	return request->lend.http_minor;
}

const char *up_scheme(const struct up_request *request)
{
	return request->lend.record.flags & WIRE_LEND_HTTPS ? "https" : "http";
}

bool up_wants_upgrade(const struct up_request *request)
{
	return request->lend.record.flags & WIRE_LEND_UPGRADE;
}

uint64_t up_request_id(const struct up_request *request)
{
	return (uint64_t)request->worker->id << 40 | request->number;
}

struct up_worker *up_request_worker(const struct up_request *request)
{
	return request->worker;
}

void up_set_data(struct up_request *request, void *data)
{
	request->app_data = data;
}

void *up_data(const struct up_request *request)
{
	return request->app_data;
}

void up_on_end(struct up_request *request,
	void (*fn)(struct up_request *request, enum up_end how, void *data), void *data)
{
	request->on_end = fn;
	request->end_data = data;
}

/* ---- Fields ---- */

/* Takes the next "Name: value\r\n" of a list of lines that the master wrote. */
static bool next_line(const char *lines, size_t len, size_t *at, struct http_field *out)
{
	const char *line = lines + *at, *end = lines + len, *newline, *colon;

	newline = line < end ? memchr(line, '\n', (size_t)(end - line)) : NULL;
	colon = newline ? memchr(line, ':', (size_t)(newline - line)) : NULL;
	if (!colon)
		return false;
	*at = (size_t)(newline + 1 - lines);
	*out = (struct http_field){ .name = line, .name_len = (uint32_t)(colon - line) };
	for (out->value = colon + 1; *out->value == ' '; out->value++)
		;
	if (newline > out->value && newline[-1] == '\r')
		newline--;
	out->value_len = (uint32_t)(newline - out->value);
	return true;
}

static const char *set_fields(const struct up_request *r)
{
	return r->head + r->lend.head_len + r->lend.ahead_len;
}

/* Whether the master replaces that field. */
static bool is_replaced(const struct up_request *r, const struct http_field *field)
{
	struct http_field set;
	size_t at = 0;

	while (next_line(set_fields(r), r->lend.set_fields_len, &at, &set))
		if (set.name_len == field->name_len &&
			strncasecmp(set.name, field->name, set.name_len) == 0)
			return true;
	return false;
}

static size_t count_fields(const struct up_request *r)
{
	struct http_field field;
	uint32_t at = 0;
	size_t n = 0, set_at = 0;

	while (http_next_field(r->head, r->lend.head_len, &at, &field))
		n++;
	while (next_line(set_fields(r), r->lend.set_fields_len, &set_at, &field))
		n++;
	return n;
}

/* The bytes are ours, and behind a name is a colon, behind a value its line's end. */
static void index_field(struct up_request *r, const struct http_field *field)
{
	((char *)(uintptr_t)field->name)[field->name_len] = '\0';
	((char *)(uintptr_t)field->value)[field->value_len] = '\0';
	r->field_at[r->n_fields++] =
		(struct request_field){ .name = field->name, .value = field->value };
}

/* Terminating a field spoils it for the walk: the next one is found first. */
static void index_head(struct up_request *r)
{
	struct http_field field, next;
	uint32_t at = 0;
	bool more = http_next_field(r->head, r->lend.head_len, &at, &field);

	while (more) {
		more = http_next_field(r->head, r->lend.head_len, &at, &next);
		if (r->lend.set_fields_len == 0 || !is_replaced(r, &field))
			index_field(r, &field);
		field = next;
	}
}

static void index_set_fields(struct up_request *r)
{
	struct http_field field, next;
	size_t at = 0;
	bool more = next_line(set_fields(r), r->lend.set_fields_len, &at, &field);

	while (more) {
		more = next_line(set_fields(r), r->lend.set_fields_len, &at, &next);
		if (field.value_len > 0)
			index_field(r, &field);
		field = next;
	}
}

/* Done when first asked for: many applications never do. */
static void index_fields(struct up_request *r)
{
	size_t n;

	if (r->fields_indexed)
		return;
	r->field_at = r->field_inline;
	n = count_fields(r);
	if (n > REQUEST_FIELDS_INLINE)
		r->field_at = malloc(n * sizeof(*r->field_at));
	if (!r->field_at)
		return;
	r->fields_indexed = true;
	index_head(r);
	index_set_fields(r);
}

const char *up_field(struct up_request *request, const char *name)
{
	index_fields(request);
	for (size_t i = 0; i < request->n_fields; i++)
		if (strcasecmp(request->field_at[i].name, name) == 0)
			return request->field_at[i].value;
	return NULL;
}

bool up_field_at(
	struct up_request *request, size_t i, const char **out_name, const char **out_value)
{
	index_fields(request);
	if (i >= request->n_fields)
		return false;
	*out_name = request->field_at[i].name;
	*out_value = request->field_at[i].value;
	return true;
}

/* ---- Addresses ---- */

const struct sockaddr *up_peer(struct up_request *request, socklen_t *out_len)
{
	if (!request->peer_known) {
		request->peer_known = true;
		memset(&request->peer, 0, sizeof(request->peer));
		request->peer_len = request->lend.peer_len;
		memcpy(&request->peer, request->data, request->lend.peer_len);
		if (request->peer_len == 0) {
			request->peer_len = sizeof(request->peer);
			if (getpeername(request->fd, (struct sockaddr *)&request->peer,
				    &request->peer_len) < 0)
				request->peer_len = 0;
		}
	}
	*out_len = request->peer_len;
	return (const struct sockaddr *)&request->peer;
}

const struct sockaddr *up_local(struct up_request *request, socklen_t *out_len)
{
	if (!request->local_known) {
		request->local_known = true;
		memset(&request->local, 0, sizeof(request->local));
		request->local_len = request->lend.local_len;
		memcpy(&request->local, request->data + request->lend.peer_len,
			request->lend.local_len);
		if (request->local_len == 0) {
			request->local_len = sizeof(request->local);
			if (getsockname(request->fd, (struct sockaddr *)&request->local,
				    &request->local_len) < 0)
				request->local_len = 0;
		}
	}
	*out_len = request->local_len;
	return (const struct sockaddr *)&request->local;
}

const char *up_peer_text(struct up_request *request)
{
	socklen_t len;
	const struct sockaddr *peer = up_peer(request, &len);
	const struct sockaddr_in *in = (const void *)peer;
	const struct sockaddr_in6 *in6 = (const void *)peer;
	const void *address = &in6->sin6_addr;
	int family = peer->sa_family;

	if (family != AF_INET && family != AF_INET6)
		return "unix";
	if (family == AF_INET)
		address = &in->sin_addr;
	/* An IPv4 client of a socket for both. */
	if (family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
		family = AF_INET;
		address = &in6->sin6_addr.s6_addr[12];
	}
	if (!inet_ntop(family, address, request->peer_text, sizeof(request->peer_text)))
		return "unknown";
	return request->peer_text;
}
