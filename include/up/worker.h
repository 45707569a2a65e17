/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#ifndef UP_WORKER_H
#define UP_WORKER_H
/*
 * The worker API: an HTTP application that up-master lends its clients' sockets to.
 *
 *     #include <up/worker.h>
 *
 *     static void hello(struct up_request *request, void *data)
 *     {
 *             up_respond(request, 200, "text/plain", "Hello\n", 6);
 *     }
 *
 *     int up_app(struct up_worker *worker)
 *     {
 *             up_on_request(worker, hello, NULL);
 *             return 0;
 *     }
 *
 * As a module: cc -shared -fPIC hello.c -o hello.so $(pkg-config --cflags --libs up), and then
 * `up-master ./hello.so`. As a program: a main() that returns up_worker_run(up_app, argc, argv),
 * and then `up-master --native -- ./hello`.
 *
 * Threads: everything here is called on the thread that runs the worker's loop, and calls back on
 * it. Another thread hands its result over with an ev_async of the loop.
 *
 * Life of a request: it begins with the callback of up_on_request() and ends when its response has
 * gone out whole, when the client has left, or when a time-out struck. up_on_end() tells. Until
 * then the handle is valid; from then on it is not. A callback that returns without having answered
 * has only put the answer off. Strings that belong to a request live as long as it does.
 *
 * Errors: functions that can fail return 0 or a negative errno value. -EPIPE means that the client
 * has left: nothing more can be sent, and up_on_end() tells or has told.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ev_loop;	   /* <ev.h> */
struct up_worker;  /* this process */
struct up_request; /* one request and its response */
struct up_socket;  /* a socket that the application keeps */

#define UP_LENGTH_UNKNOWN UINT64_MAX

/* ---- The worker ---- */

/*
 * What a module exports, and what a program gives to up_worker_run(): sets the callbacks up.
 * Returns 0, or anything else where the worker can't start: its last lines on standard error are
 * shown to whoever asked for the reload.
 */
int up_app(struct up_worker *worker);

/*
 * Runs a native program as a worker: calls app, serves until the master has no more use for it, and
 * calls the shutdown callback. Returns the status for exit(): 0, or 1 where app or the set-up
 * failed (said on standard error), also where the program was not started by up-master. argv is
 * kept, not copied.
 */
int up_worker_run(int (*app)(struct up_worker *worker), int argc, char *argv[]);

/*
 * The libev loop that everything runs on. It is the default loop, which reaps every child of the
 * process: learn of the end of one with ev_child, as waitpid(2) and pclose(3) may find none.
 */
struct ev_loop *up_worker_loop(struct up_worker *worker);
/* UP_WORKER_ID and UP_GENERATION. */
unsigned up_worker_id(const struct up_worker *worker);
unsigned up_worker_generation(const struct up_worker *worker);
/* The application's own arguments; argv[0] is the module or the program. */
int up_worker_argc(const struct up_worker *worker);
char **up_worker_argv(const struct up_worker *worker);

/* Called for each request. Set it before up_app() returns; without it every request is a 404. */
void up_on_request(
	struct up_worker *worker, void (*fn)(struct up_request *request, void *data), void *data);
/* Called once, when no new request will come. Those under way may go on. */
void up_on_drain(
	struct up_worker *worker, void (*fn)(struct up_worker *worker, void *data), void *data);
/* Called once, before the process ends and after its last request. */
void up_on_shutdown(
	struct up_worker *worker, void (*fn)(struct up_worker *worker, void *data), void *data);

/*
 * "I am ready" is said for the application when up_app() has returned 0. An application that needs
 * longer calls up_worker_defer_ready() in up_app() and up_worker_ready() when it is. With
 * --assume-ready=false only up_worker_ready() counts.
 */
void up_worker_defer_ready(struct up_worker *worker);
void up_worker_ready(struct up_worker *worker);

/* ---- The request ---- */

const char *up_method(const struct up_request *request);
/* As the client sent it, not decoded: "/path?query", an absolute URI, or "*". */
const char *up_target(const struct up_request *request);
/* HTTP/1.0 or HTTP/1.1: 0 or 1. */
int up_http_minor(const struct up_request *request);
/* "http" or "https". */
const char *up_scheme(const struct up_request *request);
/* The value of the first field of that name, any case, without surrounding space; NULL if none. */
const char *up_field(struct up_request *request, const char *name);
/* Field number i, in the order sent. False past the last. */
bool up_field_at(
	struct up_request *request, size_t i, const char **out_name, const char **out_value);
/* The addresses of the client and of this end, as accept(2) and getsockname(2) give them. */
const struct sockaddr *up_peer(struct up_request *request, socklen_t *out_len);
const struct sockaddr *up_local(struct up_request *request, socklen_t *out_len);
/* The client's address for people: "192.0.2.1", "2001:db8::1", "unix". */
const char *up_peer_text(struct up_request *request);
/* Whether the client wishes to upgrade. The application decides: see up_detach(). */
bool up_wants_upgrade(const struct up_request *request);
/* Which worker process and which of its requests: for logs. Unique while the master lives. */
uint64_t up_request_id(const struct up_request *request);
struct up_worker *up_request_worker(const struct up_request *request);

/* A pointer of the application's own. */
void up_set_data(struct up_request *request, void *data);
void *up_data(const struct up_request *request);

enum up_end {
	UP_END_DONE = 0,      /* the response has gone out */
	UP_END_GONE = 1,      /* the client reset the connection or left */
	UP_END_TIMEOUT = 2,   /* the client was too slow in sending or in reading */
	UP_END_BAD_BODY = 3,  /* the client's body was malformed */
	UP_END_CANCELLED = 4, /* the master took the request back, or ends this process */
	UP_END_ABORTED = 5,   /* up_abort(), a content shorter than its length, or no memory */
};
/*
 * Called exactly once when the request has ended, before the handle dies: the place to free what
 * belongs to it. No other call on the handle may be made from it but up_data() and the questions.
 */
void up_on_end(struct up_request *request,
	void (*fn)(struct up_request *request, enum up_end how, void *data), void *data);

/* ---- The request's body ---- */

/* 0: there is none; UP_LENGTH_UNKNOWN: it is chunked. */
uint64_t up_body_length(const struct up_request *request);

/*
 * Starts reading the body: fn is called with each piece, and at the end with bytes == NULL and len
 * == 0, exactly once. Where the client waits for it, 100 Continue is sent first. fn may be called
 * before up_body_read() returns. It is not called any more once the request has ended.
 * The bytes belong to libup and are valid during the call.
 * A body that is not read is drained, up to 64 KiB or 1 s; where more is to come the response says
 * Connection: close. So start reading before answering.
 * Returns 0, -EALREADY where reading has been started or the response no longer leaves room for it
 * (up_begin() with a body that nobody had begun to read), or -EPIPE.
 */
int up_body_read(struct up_request *request,
	void (*fn)(struct up_request *request, const void *bytes, size_t len, void *data),
	void *data);
/* Back-pressure: no pieces between these two. The client is stopped by its window. */
void up_body_pause(struct up_request *request);
void up_body_resume(struct up_request *request);

/*
 * Reads the whole body into memory: fn is called once with all of it (bytes is never NULL, and a 0
 * byte follows the last). A body longer than max bytes is answered with 413, and fn is not called.
 * Returns as up_body_read() does, or -ENOMEM.
 */
int up_body_collect(struct up_request *request, size_t max,
	void (*fn)(struct up_request *request, const void *bytes, size_t len, void *data),
	void *data);

/* ---- The response ---- */

/*
 * A whole response in one call, sent in one write. content_type may be NULL. bytes are copied where
 * the client does not take them at once. Fields added by up_add_field() before go with it. The
 * handle is usually dead afterwards. To a HEAD request only the head is sent.
 * Returns 0, -EALREADY where a response has begun, -EINVAL where status or content_type can't be
 * sent, -ENOMEM, or -EPIPE.
 */
int up_respond(struct up_request *request, int status, const char *content_type, const void *bytes,
	size_t len);

/*
 * The same without any copy, for large content: the bytes stay the application's and must stay as
 * they are until up_on_end() calls, or, where there is no such callback, for ever.
 */
int up_respond_borrowed(struct up_request *request, int status, const char *content_type,
	const void *bytes, size_t len);

/*
 * Adds a field to the head of the response. Framing is libup's: Content-Length, Transfer-Encoding,
 * Connection and Date are refused with -EINVAL (but Connection: Upgrade with 101, and
 * Connection: close, which is honoured), and so is a name or value that could not be sent as one.
 * Returns 0, -EALREADY where the head has been sent, -EINVAL, -ENOMEM or -EPIPE.
 */
int up_add_field(struct up_request *request, const char *name, const char *value);

/*
 * Begins a response whose content follows with up_write(): length bytes, or UP_LENGTH_UNKNOWN,
 * which is sent chunked (to HTTP/1.0: until the connection closes). The head goes out with the
 * first content, at up_flush() or at the next turn of the loop.
 * Returns as up_respond() does.
 */
int up_begin(struct up_request *request, int status, uint64_t length);
/*
 * Sends content. All of it is accepted; what the client does not take at once is copied and kept,
 * and then the call returns 1: write on when up_on_writable() calls. More than length bytes is
 * -EMSGSIZE, and nothing is sent of them. Returns 0, 1, -EMSGSIZE, -EINVAL where nothing has begun,
 * -ENOMEM or -EPIPE.
 */
int up_write(struct up_request *request, const void *bytes, size_t len);
/* Called each time when what up_write() kept has gone out. */
void up_on_writable(
	struct up_request *request, void (*fn)(struct up_request *request, void *data), void *data);
/* Bytes that up_write() keeps. */
size_t up_pending(const struct up_request *request);
/* Sends what is collected now, rather than at the next turn of the loop. Returns 0, 1 where the
 * client did not take all of it, -EINVAL where nothing has begun, -ENOMEM or -EPIPE. */
int up_flush(struct up_request *request);
/*
 * Ends the response. The handle dies when the last byte has been taken, at once or later.
 * A content shorter than length cuts the connection. Returns 0, -EINVAL where nothing has begun,
 * -ENOMEM or -EPIPE.
 */
int up_end(struct up_request *request);
/* Gives up: the connection is cut, so that the client sees a truncated response. Where nothing was
 * sent yet the client gets 500. The handle dies. */
void up_abort(struct up_request *request);

/*
 * Sends an interim response (102, 103) with the fields added so far. Nothing to HTTP/1.0 clients.
 * Returns 0, 1 where it waits behind what the client has not taken, -EALREADY where a response has
 * begun, -EINVAL for another status, -ENOMEM or -EPIPE.
 */
int up_interim(struct up_request *request, int status);

/* ---- Upgrades ---- */

/*
 * Keeps the socket for good, for a WebSocket or the like. Call up_add_field() for what the 101
 * needs (Upgrade, Connection, …) and then this: 101 is sent, the request ends with UP_END_DONE, and
 * the socket is the application's until up_socket_close(). The master counts it as upgraded; a
 * reload leaves it alone until --worker-timeout. Returns 0, -EALREADY where a response has begun,
 * -EINVAL where the client did not wish to upgrade, -ENOMEM or -EPIPE.
 */
int up_detach(struct up_request *request, struct up_socket **out_socket);

/* The descriptor, non-blocking in effect only with MSG_DONTWAIT. Don't close it, don't shut it
 * down, don't change its flags, and don't give it to libev: the kernel keeps an epoll registration
 * for as long as the master's copy lives. Use up_socket_watch(). */
int up_socket_fd(const struct up_socket *socket);
/* Bytes that came behind the request's head are delivered first. Returns the count, 0 at the end,
 * -EAGAIN or -errno. */
long up_socket_read(struct up_socket *socket, void *buf, size_t len);
/* Sends all; what is not taken at once is copied and kept, and then 1 is returned. 0, 1, -ENOMEM or
 * -EPIPE. */
int up_socket_write(struct up_socket *socket, const void *bytes, size_t len);
/* Bytes that up_socket_write() keeps. */
size_t up_socket_pending(const struct up_socket *socket);
#define UP_READABLE 1
#define UP_WRITABLE 2 /* what up_socket_write() kept has gone out */
/* fn is called with what happened of UP_READABLE and UP_WRITABLE in `events`; 0 stops. A lost
 * connection is readable, also where only UP_WRITABLE was asked for. */
int up_socket_watch(struct up_socket *socket, int events,
	void (*fn)(struct up_socket *socket, int happened, void *data), void *data);
/* Ends it, after what is kept has gone out. The handle is dead. */
void up_socket_close(struct up_socket *socket);

#ifdef __cplusplus
}
#endif
#endif
