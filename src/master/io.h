/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Io: one I/O thread with its listeners, connections and channels, as the control thread sees it.
 *
 * Every function here is for the control thread; what it asks for happens on the I/O thread, in the
 * order asked, and `done` is called back on the control thread afterwards. done may be NULL.
 */
#include <stdbool.h>

#include "master/conn.h"
#include "master/listener.h"
#include "master/thread.h"

/*
 * How many connections there may be, over all threads. Past the limit nobody accepts; clients wait
 * in the kernel's queue, and the next close lets them in.
 */
struct gate {
	_Atomic unsigned max; /* the control thread writes it: io_limit() */
	_Atomic unsigned n_open;
	_Atomic bool shut; /* somebody waits for a close */
};

struct io {
	struct thread thread;
	struct conns conns;
	/* private */
	struct list acceptors;
	struct gate *gate;
	struct io *ios;		 /* all of them, in an array */
	unsigned n_ios, next_io; /* whom a shared listener's next connection goes to */
	bool accepting;
	ev_timer shortage;
	bool shortage_logged;  /* once for each, not once for each try */
	struct mail open_mail; /* the gate has opened */
	_Atomic bool open_mail_sent;
	struct mailbox *control;
	void (*on_report)(void *data, struct seat *seat, const char *why);
	void *data;
	struct list probes;
	struct order *stop_order; /* waits for the last connection */
};

/*
 * ios: the array of n that this one is in. on_report: a worker's channel broke, and why; or it has
 * served as many requests as it should, where why is NULL. It is called on the control thread.
 */
int io_init(struct io *io, unsigned id, const struct settings *settings,
	struct admission *admission, struct gate *gate, struct io *ios, unsigned n_ios,
	struct mailbox *control, void (*on_broken)(void *data, struct seat *seat, const char *why),
	void *data);
int io_start(struct io *io);
/* Ends the thread. */
void io_halt(struct io *io);
/* All threads have been halted: closes every connection, and frees. */
void io_fini(struct io *io);

typedef void io_done(void *data, int result);

/* A new worker's channel. Takes *take_fd and *take_slots. The result is 0 or -ENOMEM. */
void io_add(struct io *io, struct seat *seat, int *take_fd, struct wire_slot **take_slots,
	uint32_t n_slots, io_done *done, void *data);
/*
 * From now on exactly these seats take new requests, under these settings. seats is copied. When
 * done is called, the thread lends to no other any more.
 */
void io_set_round(struct io *io, struct seat *const seats[], unsigned n_seats,
	const struct settings *settings, io_done *done, void *data);
/* The worker is dead: judges what it held, and forgets the seat. */
void io_bury(struct io *io, struct seat *seat, io_done *done, void *data);
/* How many connections there may be from now on. Control thread. */
void io_limit(struct io *ios, unsigned n_ios, struct gate *gate, unsigned max);
/* Accepts from the listener, which must live until io_unlisten() is done. */
void io_listen(struct io *io, struct listener *listener, io_done *done, void *data);
/* Takes what waits in its queue, unless it is inherited, and accepts no more from it. */
void io_unlisten(struct io *io, struct listener *listener, io_done *done, void *data);
/* Serves what is under way and closes the rest; done when no connection is left. */
void io_stop(struct io *io, io_done *done, void *data);
/* Asks the worker for path. The result is the status of its answer, or 0. path is copied. */
void io_probe(struct io *io, struct seat *seat, const char *path, io_done *done, void *data);
/* done when the thread answers. */
void io_ping(struct io *io, io_done *done, void *data);
