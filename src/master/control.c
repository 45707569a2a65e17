/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/control.h"

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/chunked.h"
#include "common/fd.h"
#include "common/http.h"
#include "common/list.h"
#include "master/config.h"
#include "master/log.h"
#include "master/unix-path.h"

#define CLIENTS_MAX 64
#define HEAD_MAX 8192
/* Larger than HEAD_MAX, so that the scanner refuses a head before it fills the buffer. */
#define IN_ROOM (2 * HEAD_MAX)
#define BODY_MAX 65536
#define LINGER_BYTES_MAX (1024 * 1024)
#define ACCEPT_PAUSE_S 0.2
#define FAREWELL_MS 200

struct control {
	struct ev_loop *loop;
	struct control_ops ops;
	void *data;
	struct unix_path path;
	int listen_fd;
	int spare_fd; /* given up for a client when there are no other descriptors; -1 meanwhile */
	struct ev_io accept_io;
	struct ev_timer accept_timer; /* runs while accepting is paused for want of descriptors */
	bool shortage_logged;	      /* once for each shortage, not once for each pause */
	struct list clients;	      /* the one whose state changed longest ago is first */
	unsigned n_clients;
};

enum client_state {
	CLIENT_IDLE,	/* nothing of a request has come */
	CLIENT_HEAD,	/* a part of a head has */
	CLIENT_BODY,	/* a body is being read and dropped */
	CLIENT_WAITING, /* the request has been passed on, and its reply is out */
	CLIENT_WRITING, /* an answer goes out; no next request is looked at before it has */
	CLIENT_LINGER,	/* half-closed, so that the client can read the answer before the end */
};

/* Seconds a client may stay in each state; 0 is for ever. */
static const double state_s[] = {
	[CLIENT_IDLE] = 60,
	[CLIENT_HEAD] = 10,
	[CLIENT_BODY] = 10,
	[CLIENT_WAITING] = 0,
	[CLIENT_WRITING] = 30,
	[CLIENT_LINGER] = 2,
};

struct client {
	struct control *control;
	struct list link;
	enum client_state state;
	int fd;
	struct ev_io io;
	struct ev_timer timer;
	struct control_reply *reply; /* NULL unless CLIENT_WAITING */

	struct http_scan scan;
	struct chunked chunked;
	uint64_t body_left; /* of a body of known length */
	uint64_t n_dropped; /* bytes of body, or of what came while lingering */
	bool is_head;	    /* the answer goes without its content */
	bool close;	    /* after the answer */
	char target[HEAD_MAX + 1];

	char *out; /* NULL when nothing is to be sent */
	size_t out_len, out_at;
	size_t in_len;
	char in[IN_ROOM];
};

struct control_reply {
	struct client *client; /* NULL once the client has left */
};

/* ---- One client: states ---- */

static void client_watch(struct client *client, int events)
{
	struct ev_loop *loop = client->control->loop;

	ev_io_stop(loop, &client->io);
	ev_io_set(&client->io, client->fd, events);
	if (events)
		ev_io_start(loop, &client->io);
}

static void client_move(struct client *client, enum client_state to)
{
	struct control *control = client->control;

	client->state = to;
	list_remove(&client->link);
	list_append(&control->clients, &client->link);
	client_watch(client, to == CLIENT_WRITING ? EV_WRITE : EV_READ);
	client->timer.repeat = state_s[to];
	ev_timer_again(control->loop, &client->timer);
}

static void control_take_spare(struct control *control)
{
	if (control->spare_fd < 0)
		control->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static struct client *client_free(struct client *client)
{
	struct control *control = client->control;

	if (client->reply)
		client->reply->client = NULL;
	ev_timer_stop(control->loop, &client->timer);
	ev_io_stop(control->loop, &client->io);
	list_remove(&client->link);
	control->n_clients--;
	fd_close(&client->fd);
	free(client->out);
	free(client);
	control_take_spare(control);
	/* It may have been stopped because of the number of clients. */
	if (!ev_is_active(&control->accept_timer))
		ev_io_start(control->loop, &control->accept_io);
	return NULL;
}

/* ---- One client: answers ---- */

static const char *date_text(char *buf, size_t room)
{
	time_t now = time(NULL);
	struct tm tm;

	if (!gmtime_r(&now, &tm) || !strftime(buf, room, "%a, %d %b %Y %H:%M:%S GMT", &tm))
		buf[0] = 0;
	return buf;
}

/* A text that is not UTF-8 can't be JSON: its bytes above ASCII are lost rather than the message.
 */
static json_t *text_json(char *text)
{
	json_t *json = json_string(text);

	if (json)
		return json;
	for (char *at = text; *at; at++)
		if (*at & 0x80)
			*at = '?';
	return json_string(text);
}

static json_t *error_json(const char *fmt, va_list args)
{
	char *text;
	json_t *json;

	if (vasprintf(&text, fmt, args) < 0)
		return NULL;
	json = json_pack("{s:o*}", "error", text_json(text));
	free(text);
	return json;
}

/* Queues the answer; it goes out with the next turn of the loop, so no caller loses its client
 * here. */
static void client_answer(struct client *client, int status, const char *allow, json_t *take_body)
{
	static const char no_memory[] = "{\"error\":\"out of memory\"}";
	char *content =
		take_body ? json_dumps(take_body, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
	const char *body = content ? content : no_memory;
	char date[64];
	int len;

	if (!content)
		status = 500;
	len = asprintf(&client->out,
		"HTTP/1.1 %d %s\r\n"
		"Date: %s\r\n"
		"Content-Type: application/json\r\n"
		"Content-Length: %zu\r\n"
		"Cache-Control: no-store\r\n"
		"%s%s%s%s"
		"\r\n"
		"%s%s",
		status, http_reason(status), date_text(date, sizeof(date)), strlen(body) + 1,
		allow ? "Allow: " : "", allow ? allow : "", allow ? "\r\n" : "",
		client->close			    ? "Connection: close\r\n"
		: client->scan.head.http_minor == 0 ? "Connection: keep-alive\r\n"
						    : "",
		client->is_head ? "" : body, client->is_head ? "" : "\n");
	if (len < 0) {
		client->out = NULL;
		client->close = true;
	}
	client->out_len = len < 0 ? 0 : (size_t)len;
	client->out_at = 0;
	free(content);
	json_decref(take_body);
	client_move(client, CLIENT_WRITING);
}

static void __attribute__((format(printf, 3, 4)))
client_answer_error(struct client *client, int status, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	client_answer(client, status, NULL, error_json(fmt, args));
	va_end(args);
}

void control_answer(struct control_reply *reply, int status, json_t *take_body)
{
	struct client *client = reply->client;

	free(reply);
	if (!client) {
		json_decref(take_body);
		return;
	}
	client->reply = NULL;
	client_answer(client, status, NULL, take_body);
}

void control_answer_error(struct control_reply *reply, int status, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	control_answer(reply, status, error_json(fmt, args));
	va_end(args);
}

/* Returns NULL, after an answer, when out of memory. */
static struct control_reply *client_reply(struct client *client)
{
	struct control_reply *reply = malloc(sizeof(*reply));

	if (!reply) {
		client_answer(client, 500, NULL, NULL);
		return NULL;
	}
	reply->client = client;
	client->reply = reply;
	client_move(client, CLIENT_WAITING);
	return reply;
}

/* ---- Requests ---- */

/*
 * Reads a query in which only `name` may appear (nothing, where it is NULL), and once: *out_value
 * is NULL where it does not. False, after an answer, where there is anything else: a misspelt wish
 * must not be taken for none.
 */
static bool query_value(
	struct client *client, char *query, const char *name, const char **out_value)
{
	char *value;

	*out_value = NULL;
	for (char *item; (item = strsep(&query, "&"));) {
		if (!*item)
			continue;
		value = strchr(item, '=');
		if (value)
			*value++ = 0;
		if (!name || strcmp(item, name) != 0) {
			client_answer_error(client, 400, "unknown parameter '%s'", item);
			return false;
		}
		if (*out_value) {
			client_answer_error(client, 400, "parameter '%s' is given twice", item);
			return false;
		}
		*out_value = value ? value : "";
	}
	return true;
}

static void run_status(struct client *client, char *query)
{
	struct control *control = client->control;

	(void)query;
	client_answer(client, 200, NULL, control->ops.status(control->data));
}

static void run_healthz(struct client *client, char *query)
{
	struct control *control = client->control;

	(void)query;
	if (control->ops.healthy(control->data))
		client_answer(client, 200, NULL, json_pack("{s:s}", "status", "ok"));
	else
		client_answer_error(client, 503, "no worker is ready");
}

static void run_reload(struct client *client, char *query)
{
	struct control *control = client->control;
	struct control_reply *reply;
	const char *wait;

	if (!query_value(client, query, "wait", &wait))
		return;
	if (wait && strcmp(wait, "first") != 0 && strcmp(wait, "all") != 0) {
		client_answer_error(client, 400, "wait is 'first' or 'all', not '%s'", wait);
		return;
	}
	reply = client_reply(client);
	if (reply)
		control->ops.reload(control->data, wait && strcmp(wait, "first") == 0, reply);
}

static void run_scale(struct client *client, char *query)
{
	struct control *control = client->control;
	struct control_reply *reply;
	const char *text;
	unsigned long n;

	if (!query_value(client, query, "workers", &text))
		return;
	if (!text) {
		client_answer_error(client, 400,
			"parameter 'workers' is missing: a number from 1 to %d",
			CONFIG_WORKERS_MAX);
		return;
	}
	/* Short and of digits alone: nothing that strtoul() would take besides, and no overflow. */
	n = strlen(text) <= 9 && strspn(text, "0123456789") == strlen(text)
		    ? strtoul(text, NULL, 10)
		    : 0;
	if (n < 1 || n > CONFIG_WORKERS_MAX) {
		client_answer_error(client, 400, "workers is a number from 1 to %d, not '%s'",
			CONFIG_WORKERS_MAX, text);
		return;
	}
	reply = client_reply(client);
	if (reply)
		control->ops.scale(control->data, n, reply);
}

static void run_stop(struct client *client, char *query)
{
	struct control *control = client->control;
	struct control_reply *reply;
	const char *none;

	if (!query_value(client, query, NULL, &none))
		return;
	reply = client_reply(client);
	if (reply)
		control->ops.stop(control->data, reply);
}

static const struct route {
	const char *path;
	bool changes; /* POST; else GET and HEAD */
	void (*run)(struct client *client, char *query);
} routes[] = {
	{ "/status", false, run_status },
	{ "/healthz", false, run_healthz },
	{ "/reload", true, run_reload },
	{ "/scale", true, run_scale },
	{ "/stop", true, run_stop },
};

/* The path of a target: curl sends "/status", and through a proxy setting "http://up/status". */
static char *target_path(char *target)
{
	char *authority;

	if (strncasecmp(target, "http://", 7) != 0)
		return target;
	authority = target + 7;
	return authority + strcspn(authority, "/?");
}

/* The request has come whole; client->target is "METHOD target". */
static void client_dispatch(struct client *client)
{
	char *query = client->target, *path;
	const char *method = strsep(&query, " ");
	bool post = strcmp(method, "POST") == 0;

	query = target_path(query);
	path = strsep(&query, "?");
	for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
		const struct route *route = &routes[i];

		if (strcmp(path, route->path) != 0)
			continue;
		if (route->changes ? post : client->is_head || strcmp(method, "GET") == 0) {
			route->run(client, query);
			return;
		}
		client_answer(client, 405, route->changes ? "POST" : "GET, HEAD",
			json_pack("{s:s++}", "error", path, " is asked for with ",
				route->changes ? "POST" : "GET"));
		return;
	}
	client_answer_error(client, 404, "there is no '%s' here", path);
}

/* ---- Reading ---- */

static void client_used(struct client *client, size_t n)
{
	client->in_len -= n;
	memmove(client->in, client->in + n, client->in_len);
}

static void client_refuse(struct client *client, int status, const char *reason)
{
	client->close = true;
	client_answer_error(client, status, "%s", reason);
}

static void client_begin_body(struct client *client)
{
	const struct http_head *head = &client->scan.head;
	static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";

	client->n_dropped = 0;
	client->body_left = head->body == HTTP_BODY_LENGTH ? head->body_len : 0;
	chunked_init(&client->chunked);
	if (client->body_left > BODY_MAX) {
		client_refuse(
			client, 413, "no request here needs a body, and this one is too large");
		return;
	}
	/*
	 * Nothing else is in the way of these 25 bytes: the answer before has gone out. Should they
	 * not fit, the client goes on without them after its own patience.
	 */
	if (head->expect_continue && client->in_len == 0)
		(void)send(client->fd, go_on, sizeof(go_on) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	client_move(client, CLIENT_BODY);
}

static void client_read_head(struct client *client)
{
	const struct http_head *head = &client->scan.head;
	size_t line_len;

	if (client->in_len == 0)
		return;
	if (client->state == CLIENT_IDLE)
		client_move(client, CLIENT_HEAD);
	switch (http_scan(&client->scan, client->in, client->in_len)) {
	case HTTP_MORE:
		return;
	case HTTP_REFUSED:
		client->is_head = false;
		client->scan.head.http_minor = 1;
		client_refuse(client, client->scan.status, client->scan.reason);
		return;
	case HTTP_WHOLE:
		break;
	}
	client->is_head = head->method_len == 4 && memcmp(client->in + head->start, "HEAD", 4) == 0;
	client->close = !head->keep_alive;
	line_len = head->method_len + 1 + head->target_len;
	memcpy(client->target, client->in + head->start, line_len);
	client->target[line_len] = 0;
	client_used(client, head->start + head->len);
	client_begin_body(client);
}

static enum chunked_result client_drop_chunked(struct client *client)
{
	enum chunked_result result;
	size_t at = 0;

	do {
		const char *bytes;
		size_t used, len;

		result = chunked_read(&client->chunked, client->in + at, client->in_len - at, &used,
			&bytes, &len);
		at += used;
	} while (result == CHUNKED_DATA);
	client->n_dropped += at;
	client_used(client, at);
	return result;
}

static void client_read_body(struct client *client)
{
	size_t n = client->in_len < client->body_left ? client->in_len : client->body_left;

	if (client->scan.head.body == HTTP_BODY_CHUNKED) {
		enum chunked_result result = client_drop_chunked(client);

		if (result == CHUNKED_BAD) {
			client_refuse(client, 400, client->chunked.reason);
			return;
		}
		/* Sizes and extensions count too: it is what a client can make us read. */
		if (client->n_dropped > BODY_MAX) {
			client_refuse(client, 413,
				"no request here needs a body, and this one is too large");
			return;
		}
		if (result != CHUNKED_END)
			return;
	} else {
		client->body_left -= n;
		client_used(client, n);
		if (client->body_left > 0)
			return;
	}
	client_dispatch(client);
}

/* Goes on with what was read, up to one whole request: the next waits for the answer to this one.
 */
static void client_proceed(struct client *client)
{
	if (client->state == CLIENT_IDLE || client->state == CLIENT_HEAD)
		client_read_head(client);
	if (client->state == CLIENT_BODY)
		client_read_body(client);
}

static void client_linger(struct client *client)
{
	shutdown(client->fd, SHUT_WR);
	client->n_dropped = 0;
	client_move(client, CLIENT_LINGER);
}

/*
 * A client that waits and can be read has sent its next request, or only half-closed, or is gone.
 * Only the last is news, and tells itself by POLLHUP; the other two need no more watching.
 */
static struct client *client_look(struct client *client)
{
	struct pollfd poll_fd = { .fd = client->fd };

	if (poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & (POLLHUP | POLLERR)))
		return client_free(client);
	client_watch(client, 0);
	return client;
}

static void client_read(struct client *client)
{
	ssize_t n;

	/* Of what comes behind the last answer only the amount matters. */
	if (client->state == CLIENT_LINGER)
		client->in_len = 0;
	n = recv(client->fd, client->in + client->in_len, IN_ROOM - client->in_len, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client_free(client);
		return;
	}
	client->in_len += n;
	if (client->state != CLIENT_LINGER) {
		client_proceed(client);
		return;
	}
	client->n_dropped += n;
	if (client->n_dropped > LINGER_BYTES_MAX)
		client_free(client);
}

/* ---- Writing ---- */

/* Returns 0 when all has gone out, -EAGAIN or -errno. */
static int client_send(struct client *client)
{
	while (client->out_at < client->out_len) {
		ssize_t n = send(client->fd, client->out + client->out_at,
			client->out_len - client->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		client->out_at += n;
	}
	return 0;
}

static void client_write(struct client *client)
{
	int r = client_send(client);

	if (r == -EAGAIN)
		return;
	if (r < 0) {
		client_free(client);
		return;
	}
	free(client->out);
	client->out = NULL;
	client->out_len = client->out_at = 0;
	if (client->close) {
		client_linger(client);
		return;
	}
	http_scan_init(&client->scan, HEAD_MAX);
	client_move(client, CLIENT_IDLE);
	client_proceed(client);
}

static void client_io_cb(struct ev_loop *loop, struct ev_io *io, int events)
{
	struct client *client = container_of(io, struct client, io);

	(void)loop;
	(void)events;
	if (client->state == CLIENT_WRITING)
		client_write(client);
	else if (client->state == CLIENT_WAITING)
		client_look(client);
	else
		client_read(client);
}

static void client_timer_cb(struct ev_loop *loop, struct ev_timer *timer, int events)
{
	struct client *client = container_of(timer, struct client, timer);

	(void)loop;
	(void)events;
	if (client->state == CLIENT_HEAD || client->state == CLIENT_BODY) {
		client->is_head = false;
		client_refuse(client, 408, "the request did not come whole in time");
	} else {
		client_free(client);
	}
}

static int client_new(struct control *control, int *take_fd)
{
	FD_AUTO int fd = fd_take(take_fd);
	struct client *client = calloc(1, sizeof(*client));

	if (!client)
		return -ENOMEM;
	client->control = control;
	client->fd = fd_take(&fd);
	list_init(&client->link);
	ev_init(&client->io, client_io_cb);
	ev_init(&client->timer, client_timer_cb);
	http_scan_init(&client->scan, HEAD_MAX);
	control->n_clients++;
	client_move(client, CLIENT_IDLE);
	return 0;
}

/* ---- Accepting ---- */

/* Makes room for one more: the longest idle client goes, else the slowest. False where all wait for
 * replies. */
static bool control_evict(struct control *control)
{
	struct client *victim = NULL;

	list_each (at, &control->clients) {
		struct client *client = container_of(at, struct client, link);

		if (client->state == CLIENT_IDLE) {
			client_free(client);
			return true;
		}
		if (!victim && client->state != CLIENT_WAITING)
			victim = client;
	}
	if (victim)
		client_free(victim);
	return victim;
}

static void control_pause(struct control *control, const char *why)
{
	if (!control->shortage_logged)
		log_warn("control socket: can't accept for now: %s", why);
	control->shortage_logged = true;
	ev_io_stop(control->loop, &control->accept_io);
	ev_timer_set(&control->accept_timer, ACCEPT_PAUSE_S, 0);
	ev_timer_start(control->loop, &control->accept_timer);
}

static bool is_shortage(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* Returns a descriptor, or -errno. Where there is no other, the spare one makes place. */
static int control_accept(struct control *control)
{
	int flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
	int fd = accept4(control->listen_fd, NULL, NULL, flags);

	if (fd < 0 && (errno == EMFILE || errno == ENFILE) && control->spare_fd >= 0) {
		fd_close(&control->spare_fd);
		fd = accept4(control->listen_fd, NULL, NULL, flags);
	}
	return fd < 0 ? -errno : fd;
}

static void accept_cb(struct ev_loop *loop, struct ev_io *io, int events)
{
	struct control *control = container_of(io, struct control, accept_io);
	int fd;

	(void)events;
	if (control->n_clients >= CLIENTS_MAX && !control_evict(control)) {
		/* client_free() goes on. */
		ev_io_stop(loop, io);
		return;
	}
	fd = control_accept(control);
	/* An evicted client leaves a descriptor, which the spare takes first and the next turn
	 * uses. */
	if (is_shortage(-fd) && !control_evict(control))
		control_pause(control, strerror(-fd));
	if (fd >= 0)
		control->shortage_logged = false;
	if (fd >= 0 && client_new(control, &fd) < 0)
		log_warn("control socket: client dropped: out of memory");
}

static void accept_timer_cb(struct ev_loop *loop, struct ev_timer *timer, int events)
{
	struct control *control = container_of(timer, struct control, accept_timer);

	(void)events;
	control_take_spare(control);
	ev_io_start(loop, &control->accept_io);
}

/* ---- The path ---- */

static char *path_join(const char *directory, size_t len, const char *rest)
{
	char *path;

	return asprintf(&path, "%.*s/%s", (int)len, directory, rest) < 0 ? NULL : path;
}

char *control_path(const char *configured)
{
	const char *runtime = getenv("RUNTIME_DIRECTORY");
	const char *user = getenv("XDG_RUNTIME_DIR");

	if (configured)
		return strdup(configured);
	/* systemd names several, with colons between, where the unit asks for several. */
	if (runtime && strcspn(runtime, ":") > 0)
		return path_join(runtime, strcspn(runtime, ":"), "control.sock");
	if (user && *user)
		return path_join(user, strlen(user), "up-master/control.sock");
	return strdup("/run/up-master/control.sock");
}

/* ---- Life ---- */

int control_new(struct ev_loop *loop, const char *path, const struct control_ops *ops, void *data,
	struct control **out)
{
	struct control *control = calloc(1, sizeof(*control));
	int r;

	if (!control)
		return -ENOMEM;
	control->loop = loop;
	control->ops = *ops;
	control->data = data;
	control->listen_fd = control->spare_fd = -1;
	list_init(&control->clients);
	ev_init(&control->accept_io, accept_cb);
	ev_init(&control->accept_timer, accept_timer_cb);
	r = unix_path_listen(path, 0660, CLIENTS_MAX, &control->path, &control->listen_fd);
	if (r < 0) {
		control_free(control);
		return r;
	}
	control_take_spare(control);
	ev_io_set(&control->accept_io, control->listen_fd, EV_READ);
	ev_io_start(loop, &control->accept_io);
	*out = control;
	return 0;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Sends what is left of an answer, waiting for the client until the deadline. */
static void client_farewell(struct client *client, int64_t deadline_ms)
{
	struct pollfd poll_fd = { .fd = client->fd, .events = POLLOUT };

	while (client_send(client) == -EAGAIN) {
		int64_t left_ms = deadline_ms - now_ms();

		if (left_ms <= 0 || poll(&poll_fd, 1, (int)left_ms) <= 0)
			return;
	}
}

struct control *control_free(struct control *control)
{
	int64_t deadline_ms;

	if (!control)
		return NULL;
	/* The path first: from then on nobody new finds us. */
	unix_path_remove(&control->path);
	deadline_ms = now_ms() + FAREWELL_MS;
	while (!list_empty(&control->clients)) {
		struct client *client = container_of(control->clients.next, struct client, link);

		client_farewell(client, deadline_ms);
		client_free(client);
	}
	ev_io_stop(control->loop, &control->accept_io);
	ev_timer_stop(control->loop, &control->accept_timer);
	fd_close(&control->listen_fd);
	fd_close(&control->spare_fd);
	free(control);
	return NULL;
}
