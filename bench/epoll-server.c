/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Epoll-server: the ceiling that compare.py measures against, and the server behind the proxies.
 *
 *     epoll-server ADDRESS...     HOST:PORT (IPv4; port 0: any) or unix:PATH
 *
 *     GET  /           what hello answers, head and body of the same size
 *     GET  /bytes/N    N bytes
 *     GET  /uploads    "N bodies, M bytes" that have come so far
 *     POST /           the same as GET, after the body has been read
 *
 * One process, one thread, one epoll: HTTP/1.1 with keep-alive and pipelining, and nothing that
 * costs time without being needed for that. No time-outs, no chunked bodies, no strictness: never
 * put it where anybody but a benchmark can reach it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

#include "common/fd.h"
#include "common/list.h"

#define IN_MAX (64 * 1024)
#define OUT_MAX (64 * 1024)
#define ANSWER_MAX 512 /* no head, with the small bodies, is longer */
#define PATTERN_MAX (64 * 1024)
#define PATTERN_VECTORS 16
#define EVENTS_MAX 256
#define READS_MAX 16 /* of one connection before the others have their turn */

enum flush_result {
	FLUSHED = 0,
	BLOCKED = 1, /* the socket takes no more; the rest is kept */
};

struct server;

/* What epoll watches: a listener, a connection, the signals. */
struct source {
	int fd;
	void (*ready)(struct server *server, struct source *source);
};

/* Bytes that outlive one turn of the loop; on the heap, so an idle connection holds none. */
struct kept {
	char *bytes;
	size_t len;
};

struct conn {
	struct source source;
	bool blocked;	       /* waits to write, and reads nothing meanwhile */
	bool last;	       /* is closed once its answers are out */
	uint64_t body_left;    /* of the upload that is being read */
	uint64_t pattern_left; /* of the answer, behind what is kept in `out` */
	uint64_t pattern_at;   /* of it, what has been sent */
	struct kept in;	       /* the beginning of a head, or requests behind a blocked answer */
	struct kept out;
};

struct listener {
	struct source source;
	struct sockaddr_un path; /* sun_path is empty where it is not a UNIX socket */
};

struct server {
	int epoll_fd;
	bool stopped;
	time_t now; /* that `date` and `hello` were made for */
	char date[32];
	char hello[ANSWER_MAX]; /* the whole answer to GET / */
	size_t hello_len;
	uint64_t n_uploads, upload_bytes;
	size_t out_len;
	char in[IN_MAX];   /* what is being served */
	char out[OUT_MAX]; /* the answers to it, sent together */
	char pattern[PATTERN_MAX];
};

/* ---- Bytes kept between turns ---- */

static int kept_set(struct kept *kept, const char *bytes, size_t len)
{
	if (len == 0)
		return 0;
	kept->bytes = malloc(len);
	if (!kept->bytes)
		return -ENOMEM;
	memcpy(kept->bytes, bytes, len);
	kept->len = len;
	return 0;
}

/* Moves them to `to`, which has room. Returns how many. */
static size_t kept_take(struct kept *kept, char *to)
{
	size_t len = kept->len;

	if (len == 0)
		return 0;
	memcpy(to, kept->bytes, len);
	free(kept->bytes);
	*kept = (struct kept){ 0 };
	return len;
}

/* ---- Answers ---- */

/* snprintf() for each answer would be a twentieth of what the whole request costs. */
static void server_set_time(struct server *server)
{
	time_t now = time(NULL);
	char body[64];
	struct tm tm;
	int len;

	if (now == server->now)
		return;
	server->now = now;
	gmtime_r(&now, &tm);
	strftime(server->date, sizeof(server->date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
	len = snprintf(body, sizeof(body), "Hello from pid %d, generation 1\n", (int)getpid());
	server->hello_len = (size_t)snprintf(server->hello, sizeof(server->hello),
		"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: text/plain\r\nContent-Length: "
		"%d\r\n\r\n%s",
		server->date, len, body);
}

static void answer_hello(struct server *server)
{
	memcpy(server->out + server->out_len, server->hello, server->hello_len);
	server->out_len += server->hello_len;
}

static void answer_bytes(struct server *server, struct conn *conn, uint64_t n)
{
	server->out_len += (size_t)snprintf(server->out + server->out_len, ANSWER_MAX,
		"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: application/octet-stream\r\n"
		"Content-Length: %llu\r\n\r\n",
		server->date, (unsigned long long)n);
	conn->pattern_left = n;
	conn->pattern_at = 0;
}

static void answer_uploads(struct server *server)
{
	char body[64];
	int len = snprintf(body, sizeof(body), "%llu bodies, %llu bytes\n",
		(unsigned long long)server->n_uploads, (unsigned long long)server->upload_bytes);

	server->out_len += (size_t)snprintf(server->out + server->out_len, ANSWER_MAX,
		"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: text/plain\r\nContent-Length: "
		"%d\r\n\r\n%s",
		server->date, len, body);
}

static void answer_refusal(struct server *server, struct conn *conn)
{
	static const char refusal[] = "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n"
				      "Connection: close\r\n\r\n";

	memcpy(server->out + server->out_len, refusal, sizeof(refusal) - 1);
	server->out_len += sizeof(refusal) - 1;
	conn->last = true;
}

/* ---- Requests ---- */

struct head {
	uint64_t body_len;
	bool chunked, close;
};

/* The line ends with CRLF, so no comparison and no number runs past it. */
static void head_read_field(struct head *head, const char *line)
{
	switch (*line | 0x20) {
	case 'c':
		if (strncasecmp(line, "Content-Length:", 15) == 0)
			head->body_len = strtoull(line + 15, NULL, 10);
		else if (strncasecmp(line, "Connection: close\r", 18) == 0)
			head->close = true;
		break;
	case 't':
		if (strncasecmp(line, "Transfer-Encoding:", 18) == 0)
			head->chunked = true;
		break;
	}
}

static struct head head_read(const char *data, size_t len)
{
	const char *line = memchr(data, '\n', len), *end = data + len - 2;
	struct head head = { .close = line - data >= 2 && line[-2] == '0' }; /* HTTP/1.0 */

	for (line++; line < end; line = (const char *)memchr(line, '\n', len) + 1)
		head_read_field(&head, line);
	return head;
}

static void serve_target(struct server *server, struct conn *conn, const char *target)
{
	if (strncmp(target, "/bytes/", 7) == 0)
		answer_bytes(server, conn, strtoull(target + 7, NULL, 10));
	else if (strncmp(target, "/uploads ", 9) == 0)
		answer_uploads(server);
	else
		answer_hello(server);
}

/* Returns the bytes of the head, 0 where it is not whole. */
static size_t serve_head(struct server *server, struct conn *conn, const char *data, size_t len)
{
	const char *end = memmem(data, len, "\r\n\r\n", 4);
	const char *target;
	struct head head;

	if (!end)
		return 0;
	len = (size_t)(end - data) + 4;
	head = head_read(data, len);
	target = memchr(data, ' ', len);
	conn->last = head.close;
	if (!target || head.chunked || memcmp(data, "HEAD", 4) == 0)
		answer_refusal(server, conn);
	else if (head.body_len > 0)
		conn->body_left = head.body_len;
	else
		serve_target(server, conn, target + 1);
	return len;
}

/* Returns the bytes of the body. */
static size_t serve_body(struct server *server, struct conn *conn, size_t len)
{
	if (len > conn->body_left)
		len = (size_t)conn->body_left;
	conn->body_left -= len;
	server->upload_bytes += len;
	if (conn->body_left == 0) {
		server->n_uploads++;
		answer_hello(server);
	}
	return len;
}

/* ---- Connections ---- */

static void conn_free(struct conn *conn)
{
	free(conn->in.bytes);
	free(conn->out.bytes);
	fd_close(&conn->source.fd);
	free(conn);
}

/* Sends what is in server->out from `at`, and the pattern behind it. As writev(2). */
static ssize_t conn_send(struct server *server, struct conn *conn, size_t at)
{
	struct iovec vectors[1 + PATTERN_VECTORS] = { { .iov_base = server->out + at,
		.iov_len = server->out_len - at } };
	uint64_t left = conn->pattern_left;
	size_t from = conn->pattern_at % PATTERN_MAX;
	int n = 1;

	if (left == 0)
		return send(conn->source.fd, vectors[0].iov_base, vectors[0].iov_len, 0);
	for (; left > 0 && n <= PATTERN_VECTORS; n++, from = 0) {
		size_t room = PATTERN_MAX - from;

		vectors[n].iov_base = server->pattern + from;
		vectors[n].iov_len = left < room ? (size_t)left : room;
		left -= vectors[n].iov_len;
	}
	return writev(conn->source.fd, vectors, n);
}

/* Empties server->out in any case. Returns an enum flush_result or -errno. */
static int conn_flush(struct server *server, struct conn *conn)
{
	size_t at = 0, len = server->out_len;
	int r = FLUSHED;

	while (r == FLUSHED && (at < len || conn->pattern_left > 0)) {
		ssize_t n = conn_send(server, conn, at);

		if (n < 0) {
			r = errno == EAGAIN ? BLOCKED : -errno;
		} else if ((size_t)n <= len - at) {
			at += (size_t)n;
		} else {
			conn->pattern_left -= (size_t)n - (len - at);
			conn->pattern_at += (size_t)n - (len - at);
			at = len;
		}
	}
	server->out_len = 0;
	if (r == BLOCKED && kept_set(&conn->out, server->out + at, len - at) < 0)
		return -ENOMEM;
	return r;
}

/* Serves the first len bytes of server->in. Returns an enum flush_result or -errno. */
static int conn_serve(struct server *server, struct conn *conn, size_t len)
{
	size_t at = 0, used = 1;
	int r = FLUSHED;

	while (r == FLUSHED && used > 0 && at < len && (!conn->last || conn->body_left > 0)) {
		if (conn->body_left > 0)
			used = serve_body(server, conn, len - at);
		else
			used = serve_head(server, conn, server->in + at, len - at);
		at += used;
		if (conn->pattern_left > 0 || server->out_len > OUT_MAX - ANSWER_MAX)
			r = conn_flush(server, conn);
	}
	if (r == FLUSHED && server->out_len > 0)
		r = conn_flush(server, conn);
	if (r < 0)
		return r;
	if (used == 0 && len - at == IN_MAX)
		return -EMSGSIZE;
	return kept_set(&conn->in, server->in + at, len - at) < 0 ? -ENOMEM : r;
}

/* Returns an enum flush_result or -errno; -ECONNRESET at the end of the input. */
static int conn_read(struct server *server, struct conn *conn)
{
	for (int i = 0; i < READS_MAX; i++) {
		size_t len = kept_take(&conn->in, server->in), room = IN_MAX - len;
		ssize_t n = recv(conn->source.fd, server->in + len, room, 0);
		int r;

		if (n < 0 && errno == EAGAIN)
			return kept_set(&conn->in, server->in, len);
		if (n <= 0)
			return n < 0 ? -errno : -ECONNRESET;
		r = conn_serve(server, conn, len + (size_t)n);
		if (r != FLUSHED || (size_t)n < room)
			return r;
	}
	return FLUSHED;
}

/* Goes on with an answer that was blocked, and then with the requests behind it. */
static int conn_resume(struct server *server, struct conn *conn)
{
	int r;

	server->out_len = kept_take(&conn->out, server->out);
	r = conn_flush(server, conn);
	if (r != FLUSHED || conn->in.len == 0)
		return r;
	return conn_serve(server, conn, kept_take(&conn->in, server->in));
}

static void conn_watch(struct server *server, struct conn *conn, bool blocked)
{
	struct epoll_event event = { .events = blocked ? EPOLLOUT : EPOLLIN };

	if (blocked == conn->blocked)
		return;
	conn->blocked = blocked;
	event.data.ptr = &conn->source;
	epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, conn->source.fd, &event);
}

static void conn_ready(struct server *server, struct source *source)
{
	struct conn *conn = container_of(source, struct conn, source);
	int r = conn->blocked ? conn_resume(server, conn) : conn_read(server, conn);

	if (r < 0 || (r == FLUSHED && conn->last && conn->body_left == 0))
		conn_free(conn);
	else
		conn_watch(server, conn, r == BLOCKED);
}

/* ---- The server ---- */

static int server_watch(struct server *server, struct source *source)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = source };

	return epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) < 0 ? -errno : 0;
}

static int server_add_conn(struct server *server, int *take_fd)
{
	FD_AUTO int fd = fd_take(take_fd);
	struct conn *conn = calloc(1, sizeof(*conn));
	int r;

	if (!conn)
		return -ENOMEM;
	conn->source = (struct source){ .fd = fd, .ready = conn_ready };
	r = server_watch(server, &conn->source);
	if (r < 0)
		free(conn);
	else
		fd_take(&fd);
	return r;
}

/* Out of descriptors a benchmark is void: nothing to go on with. */
static void listener_ready(struct server *server, struct source *source)
{
	int fd, r = 0;

	while (r == 0) {
		fd = accept4(source->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			r = errno == ECONNABORTED || errno == EINTR ? 0 : -errno;
		else
			r = server_add_conn(server, &fd);
	}
	if (r == -EAGAIN)
		return;
	fprintf(stderr, "epoll-server: can't accept: %s\n", strerror(-r));
	exit(1);
}

static void signal_ready(struct server *server, struct source *source)
{
	(void)source;
	server->stopped = true;
}

static int server_watch_signals(struct server *server, struct source *source)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	*source = (struct source){ .fd = signalfd(-1, &set, SFD_CLOEXEC), .ready = signal_ready };
	return source->fd < 0 ? -errno : server_watch(server, source);
}

static int server_open(struct server *server)
{
	for (size_t i = 0; i < PATTERN_MAX; i++)
		server->pattern[i] = "0123456789abcdef"[i % 16];
	server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return server->epoll_fd < 0 ? -errno : 0;
}

static int server_run(struct server *server)
{
	struct epoll_event events[EVENTS_MAX];

	while (!server->stopped) {
		int n = epoll_wait(server->epoll_fd, events, EVENTS_MAX, -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		server_set_time(server);
		for (int i = 0; i < n; i++) {
			struct source *source = events[i].data.ptr;

			source->ready(server, source);
		}
	}
	return 0;
}

/* ---- Listeners ---- */

static int listen_unix(struct listener *listener, const char *path, int *out_fd)
{
	FD_AUTO int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path));
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	listener->path = address;
	if (listen(fd, SOMAXCONN) < 0)
		return -errno;
	printf("listening on unix:%s\n", path);
	*out_fd = fd_take(&fd);
	return 0;
}

/* "127.0.0.1:80" */
static int address_parse(const char *text, struct sockaddr_in *out)
{
	const char *colon = strrchr(text, ':');
	char host[INET_ADDRSTRLEN] = "";
	char *end;
	unsigned long port;

	if (!colon || (size_t)(colon - text) >= sizeof(host))
		return -EINVAL;
	memcpy(host, text, (size_t)(colon - text));
	port = strtoul(colon + 1, &end, 10);
	*out = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	if (end == colon + 1 || *end != '\0' || port > UINT16_MAX)
		return -EINVAL;
	return inet_pton(AF_INET, host, &out->sin_addr) == 1 ? 0 : -EINVAL;
}

static int listen_tcp(const char *text, int *out_fd)
{
	FD_AUTO int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_in address;
	socklen_t len = sizeof(address);
	char host[INET_ADDRSTRLEN];
	const int on = 1;
	int r = address_parse(text, &address);

	if (r < 0)
		return r;
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* accept() inherits it */
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
		listen(fd, SOMAXCONN) < 0 || getsockname(fd, (struct sockaddr *)&address, &len) < 0)
		return -errno;
	printf("listening on %s:%u\n", inet_ntop(AF_INET, &address.sin_addr, host, sizeof(host)),
		ntohs(address.sin_port));
	*out_fd = fd_take(&fd);
	return 0;
}

static void listener_init(struct listener *listener)
{
	*listener = (struct listener){ .source = { .fd = -1, .ready = listener_ready } };
}

static int listener_open(struct listener *listener, const char *address)
{
	int r;

	if (strncmp(address, "unix:", 5) == 0)
		r = listen_unix(listener, address + 5, &listener->source.fd);
	else
		r = listen_tcp(address, &listener->source.fd);
	fflush(stdout);
	return r;
}

static void listener_close(struct listener *listener)
{
	fd_close(&listener->source.fd);
	if (listener->path.sun_path[0])
		unlink(listener->path.sun_path);
}

static int server_listen(struct server *server, struct listener *listeners, char **addresses, int n)
{
	int r = 0;

	for (int i = 0; i < n && r == 0; i++) {
		r = listener_open(&listeners[i], addresses[i]);
		if (r == 0)
			r = server_watch(server, &listeners[i].source);
		if (r < 0)
			fprintf(stderr, "epoll-server: can't listen on %s: %s\n", addresses[i],
				strerror(-r));
	}
	return r;
}

int main(int argc, char **argv)
{
	static struct server server;
	struct listener *listeners = calloc((size_t)argc, sizeof(*listeners));
	struct source signals;
	int r;

	if (argc < 2 || argv[1][0] == '-' || !listeners) {
		fprintf(stderr, "usage: epoll-server HOST:PORT|unix:PATH...\n");
		return 2;
	}
	for (int i = 0; i < argc - 1; i++)
		listener_init(&listeners[i]);
	r = server_open(&server);
	if (r == 0)
		r = server_watch_signals(&server, &signals);
	if (r == 0)
		r = server_listen(&server, listeners, argv + 1, argc - 1);
	if (r == 0)
		r = server_run(&server);
	for (int i = 0; i < argc - 1; i++)
		listener_close(&listeners[i]);
	free(listeners);
	return r < 0;
}
