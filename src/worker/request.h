/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Request: one lent socket, from the lend to the return.
 *
 * The object is made from a lend, belongs to itself, and goes back to the worker's pool when its
 * return has been sent and nobody is inside it. Calls into the application are made between
 * request_enter() and request_leave(): in between the request may end, but not vanish.
 */
#include <sys/un.h>

#include "common/chunked.h"
#include "worker/up.h"

enum request_state {
	REQUEST_SERVING = 1, /* the application has the handle */
	REQUEST_TOLD,	     /* up_on_end() has told */
	REQUEST_DRAINING,    /* told, and the rest of the body is being read */
	REQUEST_RETURNED,    /* the master has the socket, or will have it when the note is sent */
};

enum response_state {
	RESPONSE_NONE = 0,
	RESPONSE_BEGUN, /* the head is written, to the socket or to `out` */
	RESPONSE_ENDED, /* and the content too */
};

struct request_field {
	const char *name, *value;
};

#define REQUEST_INLINE_MAX 2048 /* a lend's data up to this size is kept in the object */
#define REQUEST_FIELDS_INLINE 32

struct up_request {
	/* Up to `fields` everything is zero when a request begins. */
	struct up_worker *worker;
	struct channel *channel;
	struct wire_slot *slot;
	struct wire_lend lend;
	char *data; /* what came behind the lend: inline_data, or allocated */
	char *head; /* in data */
	int fd;
	enum request_state state;
	unsigned n_inside; /* calls into the application that have not returned */
	bool note_sent;
	bool doomed;	  /* the client is gone, and the application will be told in this turn */
	bool half_closed; /* the client sends nothing more */
	uint64_t number;

	void *app_data;
	void (*on_end)(struct up_request *request, enum up_end how, void *data);
	void *end_data;

	uint64_t written, read; /* bytes of the socket */

	/* The body: body.c. */
	const uint8_t *in; /* input that has not been decoded: in data, held, scratch or sink */
	size_t in_len;
	uint8_t *held;	      /* allocated, or NULL */
	uint8_t *held_before; /* likewise: the piece that the application looks at is in it */
	uint64_t body_left;   /* WIRE_BODY_LENGTH: bytes that have not been decoded */
	struct chunked chunked;
	bool body_whole; /* its end has been decoded */
	bool body_started, body_paused, body_told_end;
	bool body_bad;	  /* found while it was being dropped */
	bool body_waits;  /* nothing at hand: the socket must become readable */
	bool body_dry;	  /* the last read took all there was */
	bool in_borrowed; /* `in` points into scratch or sink: see body_hold() */
	bool body_inside; /* body_pump() is running */
	bool body_again;  /* to be pumped at the end of this turn */
	bool expect;	  /* the client waits for 100 Continue */
	void (*on_body)(struct up_request *request, const void *bytes, size_t len, void *data);
	void *body_data;
	size_t drained; /* bytes read to be dropped */
	void (*on_collected)(struct up_request *request, const void *bytes, size_t len, void *data);
	void *collect_data;
	size_t collect_max;

	/* The response: response.c. */
	enum response_state response;
	int status;
	uint32_t head_bytes;
	uint32_t first_byte_us;
	uint64_t body_bytes;   /* of content, accepted */
	uint64_t content_left; /* still to come, or UP_LENGTH_UNKNOWN */
	bool chunked_out, until_close, no_content, keep_alive;
	/* Content of the application's that follows `out`: up_respond_borrowed(). */
	bool borrows;
	const char *rest;
	size_t rest_len;
	bool app_close; /* up_add_field("Connection", "close") */
	bool blocked;	/* the kernel took less than `out`: wait for EPOLLOUT */
	bool tell_writable;
	void (*on_writable)(struct up_request *request, void *data);
	void *writable_data;

	bool fields_indexed;
	size_t n_fields;
	bool peer_known, local_known;

	/* From here on nothing is cleared. */
	struct buf fields; /* lines for the response head */
	struct buf out;	   /* what was accepted and not taken by the kernel */
	struct buf collected;
	struct request_field *field_at; /* field_inline, or allocated */
	struct later later;
	struct list pool_link;
	struct poller_watch watch;
	struct deadline body_deadline; /* in body_deadlines or drain_deadlines */
	struct deadline send_deadline, departure_deadline;
	struct note note;
	socklen_t peer_len, local_len;
	struct sockaddr_storage peer, local;
	char peer_text[64];
	struct request_field field_inline[REQUEST_FIELDS_INLINE];
	char inline_data[REQUEST_INLINE_MAX];
};

/* ---- Life: request.c ---- */

/*
 * Makes a request of a lend, takes *take_fd, and calls the application. Returns 0, or -ENOMEM: then
 * nothing happened to the socket.
 */
int request_serve(struct channel *channel, const struct wire_lend *lend, int *take_fd);
void request_enter(struct up_request *request);
/* Sees to what the request waits for. It may be gone afterwards. */
void request_leave(struct up_request *request);
/* Registers for what the request waits for, unless within the application: then request_leave()
 * does. */
void request_settle(struct up_request *request);
/* Tells the application that it has ended. The socket stays lent. */
void request_tell(struct up_request *request, enum up_end how);
/* Closes the descriptor and posts the return. The request may be gone afterwards. */
void request_return(struct up_request *request, enum wire_disposition disposition);
/* Both, as far as not done. */
void request_end(struct up_request *request, enum up_end how, enum wire_disposition disposition);
/* The client is gone: ends the request in this turn, not within the call. */
void request_doom(struct up_request *request);
/* The master asks for it back. */
void request_recall(struct up_request *request);
/* Whether calls on the handle mean something. */
bool request_is_live(const struct up_request *request);
/* Fills in what a WIRE_RETURN or WIRE_DETACHED says. */
void request_account(const struct up_request *request, struct wire_return *out);
/* Frees one that is not to be returned: the worker ends, and nothing runs any more. */
void request_lose(struct up_request *request);
/* The pool's memory. */
void request_pool_fini(struct up_worker *worker);

/* The socket has been moved out of it: nothing is returned. The request may be gone afterwards. */
void request_forget(struct up_request *request);

void request_body_expired(struct deadline *deadline);
void request_send_expired(struct deadline *deadline);
void request_drain_expired(struct deadline *deadline);
void request_departure_expired(struct deadline *deadline);

/* ---- The body: body.c ---- */

void body_init(struct up_request *request);
/* Gives the application what has come, until it pauses or nothing is there. */
void body_pump(struct up_request *request);
/* Whether the application wants pieces. */
bool body_is_wanted(const struct up_request *request);
/*
 * Drops what is at hand and has come, without waiting, up to UP_DRAIN_MAX bytes. Afterwards
 * body_whole or body_bad may be set. Returns true where more may come and may still be dropped.
 */
bool body_drop(struct up_request *request);
/* Copies undecoded input that is not the request's own. False: out of memory. */
bool body_hold(struct up_request *request);

/* ---- The response: response.c ---- */

/* Sends what is in `out`. Returns 0 when it is empty, 1 where some is left, or -errno: the client
 * is gone. */
int response_flush(struct up_request *request);
/* Bytes that were accepted and that the kernel has not taken. */
size_t response_pending(const struct up_request *request);
/* Takes note that the response has gone out whole, where it has. The request may be gone
 * afterwards. */
void response_settle(struct up_request *request);
/* Answers with a short text on libup's own account, if nothing was begun, and ends the request. */
void response_refuse(
	struct up_request *request, int status, enum up_end how, enum wire_disposition disposition);
/* Sends 101 and what was added to it. Returns as response_flush() does, or -ENOMEM. */
int response_switch(struct up_request *request);
/* Adds bytes to `out` for an interim response. False: out of memory. */
bool response_add_interim(struct up_request *request, const void *bytes, size_t len);

/* ---- Sockets that the application keeps: socket.c ---- */

void socket_close_expired(struct deadline *deadline);
