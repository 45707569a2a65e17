/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Up: the life of a worker process, and its channels to the master.
 *
 * Everything of libup runs on the thread of the worker's loop. One turn of the loop: requests are
 * received and mostly answered at once, what was put off is done, and then, before the loop sleeps,
 * the descriptors of all that has ended are closed and the returns go out, one message per channel.
 */
#include <ev.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* What the public header declares is what the library exports; all else is hidden. */
#pragma GCC visibility push(default)
#include "up/worker.h"
#pragma GCC visibility pop

#include "common/list.h"
#include "common/wire.h"
#include "worker/buf.h"
#include "worker/deadline.h"
#include "worker/poller.h"

/* A response up to this size is copied behind its head and leaves in one send(2). */
#define UP_WHOLE_MAX (64 * 1024)
/* What is read from a client at once. Behind a chunked body what was read too much goes back. */
#define UP_READ_MAX (32 * 1024)
/* contract: what is drained of a body that nobody reads. */
#define UP_DRAIN_MAX (64 * 1024)
#define UP_DRAIN_S 1
/* How long a response without a known end goes on after the client has half-closed. */
#define UP_DEPARTURE_S 5

/* Something that is done before the loop sleeps. */
struct later {
	struct list link;
	void (*run)(struct later *later);
};

/* A record on its way to the master that waits in its owner while the channel has no room. */
struct note {
	struct list link;
	enum wire_type type; /* WIRE_RETURN or WIRE_DETACHED */
	struct wire_return ret;
	const uint8_t *surplus; /* ret.surplus_len bytes of the owner's; only until sent_cb */
	/* Called when the record is in a message: maybe before channel_post() returns. The owner
	 * may die. */
	void (*sent_cb)(struct note *note);
};

struct channel {
	struct up_worker *worker;
	int fd;
	ev_io read_io;
	ev_io write_io; /* active while the channel is full */
	struct wire_batch batch;
	struct list notes; /* what found no room in the batch, in order */
	struct wire_slot *slots;
	struct up_request **lent; /* by slot: what has not been returned */
	uint32_t n_slots;
	uint32_t n_used; /* none behind these was ever used: there may be a million */
	uint32_t n_taken, n_acknowledged; /* lends, modulo 2^32 */
	bool last;			  /* WIRE_LAST has come */
};

struct up_worker {
	struct ev_loop *loop;
	unsigned id, generation;
	int argc;
	char **argv;

	void (*on_request)(struct up_request *request, void *data);
	void *request_data;
	void (*on_drain)(struct up_worker *worker, void *data);
	void *drain_data;
	void (*on_shutdown)(struct up_worker *worker, void *data);
	void *shutdown_data;

	struct wire_setup setup;
	bool ready_deferred, ready_said;
	bool ending; /* SIGTERM */

	struct wire_inbox inbox;
	struct channel control;
	struct channel *channels;
	unsigned n_channels, n_last;

	struct poller poller;
	ev_prepare prepare;
	ev_idle idle; /* active while `laters` is not empty: keeps the loop awake */
	ev_signal term;
	struct deadlines body_deadlines, send_deadlines, drain_deadlines, departure_deadlines,
		close_deadlines;

	struct list laters; /* requests and sockets with something left to do in this turn */
	int closing[WIRE_FDS_MAX];
	unsigned n_closing;
	unsigned n_held; /* sockets that have not been returned */

	struct list pool; /* free requests */
	unsigned n_pool;
	struct buf out;	  /* one head, and a small content: only within one call */
	uint8_t *scratch; /* UP_READ_MAX bytes: a piece of body while the application looks at it */
	bool scratch_in_use;
	uint8_t *sink; /* UP_READ_MAX bytes: what is read to be dropped */
	uint64_t n_requests;
	char date[64]; /* "Date: …\r\n" of date_at */
	long date_at;
};

/* The worker's later list. Does nothing where it is in it. */
void worker_later(struct up_worker *worker, struct later *later);
/* Takes *take_fd, and closes it before anything is sent to the master. */
void worker_close(struct up_worker *worker, int *take_fd);
/* Closes what was given to worker_close(). */
void worker_close_all(struct up_worker *worker);
/* One lending channel has come to its end. */
void worker_last(struct up_worker *worker);
/* Says why on standard error, and ends the process with status 1. */
_Noreturn void worker_die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* "Date: …\r\n", always 37 bytes. */
const char *worker_date(struct up_worker *worker);

/* Sends the note: it is the channel's until its sent_cb. */
void channel_post(struct channel *channel, struct note *note);
