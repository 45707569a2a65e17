/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/fd.h"
#include "worker/request.h"

/*
 * A socket that the application keeps. Two notes tell the master: that it is kept, and its end; as
 * notes stay in order, the second one's departure ends the object.
 */
struct up_socket {
	struct up_worker *worker;
	struct channel *channel;
	int fd;
	struct poller_watch watch; /* level-triggered: the application need not read all */
	struct buf in;		   /* what came behind the head of the request */
	struct buf out;		   /* what was accepted and not taken by the kernel */
	struct later later;
	struct deadline close_deadline;
	struct note detached, returned;
	unsigned n_inside; /* calls into the application that have not returned */
	int events;	   /* UP_READABLE, UP_WRITABLE: what it wants to be told */
	void (*fn)(struct up_socket *socket, int happened, void *data);
	void *data;
	bool lost;    /* reset, or closed by a UNIX peer: what is left can be read */
	bool closing; /* up_socket_close() was called */
	bool done;    /* and nothing is left: only the note may have to be sent */
	bool sent;
};

static void socket_free(struct up_socket *s)
{
	buf_fini(&s->in);
	buf_fini(&s->out);
	free(s);
}

static void socket_release(struct up_socket *s)
{
	if (s->sent && s->n_inside == 0)
		socket_free(s);
}

static void detached_sent_cb(struct note *note)
{
	(void)note;
}

static void returned_sent_cb(struct note *note)
{
	struct up_socket *s = container_of(note, struct up_socket, returned);

	s->sent = true;
	socket_release(s);
}

/* The socket may be gone afterwards. */
static void socket_finish(struct up_socket *s)
{
	if (s->done)
		return;
	s->done = true;
	list_remove(&s->later.link);
	deadline_stop(&s->close_deadline);
	poller_remove(&s->worker->poller, &s->watch);
	worker_close(s->worker, &s->fd);
	s->worker->n_held--;
	channel_post(s->channel, &s->returned);
}

/* Returns 0 when all is gone, 1 where some is left, or -errno. */
static int socket_flush(struct up_socket *s)
{
	ssize_t n;

	if (buf_len(&s->out) == 0)
		return 0;
	do
		n = send(s->fd, buf_bytes(&s->out), buf_len(&s->out), MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != EAGAIN)
		return -errno;
	if (n > 0)
		buf_drop(&s->out, (size_t)n);
	if (n > 0 && s->closing)
		deadline_start(&s->worker->close_deadlines, &s->close_deadline);
	return buf_len(&s->out) > 0;
}

static void socket_lose(struct up_socket *s)
{
	s->lost = true;
	buf_clear(&s->out);
}

/* Whether there is something to read that the poller would not tell. */
static bool is_readable_by_itself(const struct up_socket *s)
{
	if (s->closing || s->events == 0)
		return false;
	return s->lost || ((s->events & UP_READABLE) && buf_len(&s->in) > 0);
}

/* Registers for what is waited for, and for nothing where that is nothing: a hang-up is always
 * told. */
static void socket_settle(struct up_socket *s)
{
	uint32_t events = 0;

	if (s->done || s->n_inside > 0)
		return;
	if (is_readable_by_itself(s))
		worker_later(s->worker, &s->later);
	if ((s->events & UP_READABLE) && !s->closing && !s->lost)
		events |= EPOLLIN | EPOLLRDHUP;
	if (buf_len(&s->out) > 0)
		events |= EPOLLOUT;
	if (events == s->watch.events)
		return;
	if (events == 0)
		poller_remove(&s->worker->poller, &s->watch);
	else if (poller_set(&s->worker->poller, &s->watch, events) < 0)
		socket_lose(s);
}

static void socket_enter(struct up_socket *s)
{
	s->n_inside++;
}

static void socket_leave(struct up_socket *s)
{
	if (--s->n_inside > 0)
		return;
	if (s->closing && buf_len(&s->out) == 0 && !s->done)
		socket_finish(s);
	else if (s->done)
		socket_release(s);
	else
		socket_settle(s);
}

/* A loss is told to whoever watches anything: no room will come for one who waits for room. */
static void socket_tell(struct up_socket *s, int happened)
{
	happened &= s->lost ? UP_READABLE : s->events;
	if (happened && s->events && !s->closing)
		s->fn(s, happened, s->data);
}

static void socket_happened_cb(struct poller_watch *watch, uint32_t happened)
{
	struct up_socket *s = container_of(watch, struct up_socket, watch);
	bool had_output = buf_len(&s->out) > 0;
	int told = 0;

	socket_enter(s);
	if (happened & (EPOLLERR | EPOLLHUP))
		socket_lose(s);
	else if ((happened & EPOLLOUT) && socket_flush(s) < 0)
		socket_lose(s);
	if (had_output && buf_len(&s->out) == 0 && !s->lost)
		told |= UP_WRITABLE;
	if (s->lost || (happened & (EPOLLIN | EPOLLRDHUP)))
		told |= UP_READABLE;
	socket_tell(s, told);
	socket_leave(s);
}

static void socket_later(struct later *later)
{
	struct up_socket *s = container_of(later, struct up_socket, later);

	socket_enter(s);
	if (is_readable_by_itself(s))
		socket_tell(s, UP_READABLE);
	socket_leave(s);
}

void socket_close_expired(struct deadline *deadline)
{
	struct up_socket *s = container_of(deadline, struct up_socket, close_deadline);

	socket_enter(s);
	/* Once more: it may be this process that was late. */
	if (socket_flush(s) < 0 || !deadline_is_running(deadline))
		socket_lose(s);
	socket_leave(s);
}

static void prepare_notes(struct up_socket *s, const struct up_request *r)
{
	s->detached.type = WIRE_DETACHED;
	s->detached.sent_cb = detached_sent_cb;
	request_account(r, &s->detached.ret);
	s->returned.type = WIRE_RETURN;
	s->returned.sent_cb = returned_sent_cb;
	s->returned.ret = s->detached.ret;
	s->returned.ret.disposition = WIRE_CLOSE;
}

static struct up_socket *socket_new(struct up_request *r)
{
	struct up_socket *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->worker = r->worker;
	s->channel = r->channel;
	s->fd = -1;
	s->watch.fd = r->fd;
	s->watch.happened_cb = socket_happened_cb;
	list_init(&s->later.link);
	s->later.run = socket_later;
	deadline_init(&s->close_deadline);
	if (!buf_reserve(&s->in, r->in_len)) {
		socket_free(s);
		return NULL;
	}
	buf_add(&s->in, r->in, r->in_len);
	return s;
}

/* Moves the socket out of the request, which ends. */
static void socket_take(struct up_socket *s, struct up_request *r)
{
	prepare_notes(s, r);
	poller_remove(&r->worker->poller, &r->watch);
	s->fd = fd_take(&r->fd);
	s->out = r->out;
	r->out = (struct buf){ 0 };
	/* First: told of the end, the application may close the socket. */
	channel_post(s->channel, &s->detached);
	request_enter(r);
	request_tell(r, UP_END_DONE);
	request_forget(r);
	request_leave(r);
}

int up_detach(struct up_request *request, struct up_socket **out_socket)
{
	struct up_socket *s;
	int r;

	if (request->response != RESPONSE_NONE)
		return -EALREADY;
	if (!request_is_live(request))
		return -EPIPE;
	/* The rest of a body would be taken for the new protocol. */
	if (!up_wants_upgrade(request) || !request->body_whole)
		return -EINVAL;
	s = socket_new(request);
	if (!s)
		return -ENOMEM;
	r = response_switch(request);
	if (r < 0) {
		socket_free(s);
		if (r == -ENOMEM)
			return r;
		request_end(request, UP_END_GONE, WIRE_GONE);
		return -EPIPE;
	}
	*out_socket = s;
	socket_enter(s);
	socket_take(s, request);
	socket_leave(s);
	return 0;
}

int up_socket_fd(const struct up_socket *socket)
{
	return socket->fd;
}

long up_socket_read(struct up_socket *socket, void *buf, size_t len)
{
	ssize_t n;

	if (buf_len(&socket->in) > 0) {
		len = len < buf_len(&socket->in) ? len : buf_len(&socket->in);
		memcpy(buf, buf_bytes(&socket->in), len);
		buf_drop(&socket->in, len);
		return (long)len;
	}
	do
		n = recv(socket->fd, buf, len, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (long)n;
}

int up_socket_write(struct up_socket *socket, const void *bytes, size_t len)
{
	ssize_t n = 0;

	if (socket->lost || socket->closing)
		return -EPIPE;
	if (buf_len(&socket->out) == 0 && len > 0) {
		do
			n = send(socket->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		while (n < 0 && errno == EINTR);
		if (n < 0 && errno != EAGAIN)
			return -EPIPE;
		n = n < 0 ? 0 : n;
	}
	if ((size_t)n < len) {
		if (!buf_reserve(&socket->out, len - (size_t)n)) {
			socket_lose(socket);
			return -ENOMEM;
		}
		buf_add(&socket->out, (const char *)bytes + n, len - (size_t)n);
	}
	socket_settle(socket);
	return buf_len(&socket->out) > 0;
}

size_t up_socket_pending(const struct up_socket *socket)
{
	return buf_len(&socket->out);
}

int up_socket_watch(struct up_socket *socket, int events,
	void (*fn)(struct up_socket *socket, int happened, void *data), void *data)
{
	if (events & ~(UP_READABLE | UP_WRITABLE))
		return -EINVAL;
	socket->events = events;
	socket->fn = fn;
	socket->data = data;
	socket_settle(socket);
	return 0;
}

void up_socket_close(struct up_socket *socket)
{
	if (socket->closing)
		return;
	socket_enter(socket);
	socket->closing = true;
	if (buf_len(&socket->out) > 0)
		deadline_start(&socket->worker->close_deadlines, &socket->close_deadline);
	socket_leave(socket);
}
