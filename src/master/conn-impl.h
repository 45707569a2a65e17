/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Conn, inside: what conn.c (states, heads, closing) and conn-serve.c (lending and its ends) share.
 */
#include "common/http.h"
#include "master/conn.h"

/* Bytes received and not yet used. Exists only while there are any. */
struct input {
	struct http_scan scan;
	uint32_t len, room;
	char data[];
};

/* The master's own answer, as far as the socket has not taken it. */
struct output {
	uint32_t len, at;
	char data[];
};

/* One whole request, from the end of its head until it is answered. */
struct request {
	struct conn *conn;
	struct loan loan;
	struct place place;
	struct http_head head;
	uint64_t id, complete_us;
	uint32_t ahead_len;
	unsigned n_replays, n_unserved;
	char data[]; /* head.len bytes of the head, then ahead_len of the body */
};

struct conn {
	struct list link; /* of its state */
	struct conns *conns;
	ev_io watcher; /* may be active in a state that reads nothing: then it stops itself */
	uint64_t id;
	uint64_t deadline_us; /* UINT64_MAX: none */
	/* Every byte that was ever read from or written to the socket, by the master or workers, up
	 * to the begin of the present loan. */
	uint64_t read, written;
	uint64_t drain_left; /* CONN_ANSWERING: of the body; CONN_CLOSING: until patience ends */
	struct input *input;
	struct output *output;
	struct request *request;
	int fd;
	uint8_t state;	/* enum conn_state */
	bool dead;	/* closed; freed at the end of the turn */
	bool keep;	/* CONN_ANSWERING: go on afterwards */
	bool advancing; /* conn_advance() is at work */
	uint8_t peer_len;
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} peer;
};

/* Of a body that is not read: kept connections drain as much, others are closed. RFC 9112, 9.3. */
#define DRAIN_BYTES_MAX (64 * 1024)

/* conn.c */
void conn_enter(struct conn *conn, enum conn_state state);
void conn_watch(struct conn *conn, int events);
void conn_unwatch(struct conn *conn);
/* Goes on with what has been received, or waits for more. The state is CONN_IDLE or CONN_READING.
 */
void conn_advance(struct conn *conn);
/* Closes now. */
void conn_close(struct conn *conn);
/* Closes now, and counts as the server's fault. */
void conn_drop(struct conn *conn);
/* Half-closes, drains for a bounded time and size, closes: the client can read its answer. */
void conn_linger(struct conn *conn);
/*
 * Answers in the worker's place. left: bytes of the request's body that are still to be read from
 * the socket, UINT64_MAX where nobody knows. Keeps the connection where it can.
 */
void conn_answer(struct conn *conn, unsigned status, const char *text, uint64_t left);
/* The request is over; the connection goes on if it may. */
void conn_next(struct conn *conn);
void request_free(struct conn *conn);
/* Makes the bytes what was received and not yet used. Returns 0 or -ENOMEM. */
int conn_put_input(struct conn *conn, const void *bytes, size_t len);

/* conn-serve.c */
extern const struct round_ops serve_round_ops;
extern const struct loan_ops serve_loan_ops;
/* Lends conn->request, or lets it wait. */
void conn_serve(struct conn *conn);
/* It has waited too long. */
void conn_queue_timeout(struct conn *conn);
/* A worker has had it too long. */
void conn_recall(struct conn *conn);
/* Bytes of the body that nobody has read yet, when `read` of it were read behind the lend. */
uint64_t request_body_left(const struct request *request, uint64_t read);
bool request_is_head(const struct request *request);
