/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Conn: the client connections of one I/O thread, from accept to close.
 *
 * A connection owns its socket for its whole life; a worker only ever holds a duplicate. Between
 * requests it is a small struct without buffers. Every connection is in exactly one state, which is
 * one list, and one function moves it (conn_enter), so that the counts of the status are true.
 * Everything runs on the thread given to conns_init(), but for conns_count().
 */
#include <ev.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"
#include "master/round.h"
#include "master/thread.h"

enum conn_state {
	CONN_IDLE,	/* between requests, and before the first byte */
	CONN_READING,	/* part of a head has come */
	CONN_WAITING,	/* the request waits in line for a worker */
	CONN_LENT,	/* a worker has it */
	CONN_UPGRADED,	/* a worker keeps it */
	CONN_ANSWERING, /* the master's own answer goes out, or the rest of the body is drained */
	CONN_CLOSING,	/* half-closed: drained until the client closes too */
	CONN_N_STATES,
};

struct conn;

struct conns {
	struct thread *thread;
	struct round round;
	struct list states[CONN_N_STATES];
	_Atomic unsigned counts[CONN_N_STATES]; /* == lengths of states; this thread writes */
	_Atomic unsigned n_open;	   /* all of them: the sum, but never between two states */
	ev_timer deadlines[CONN_N_STATES]; /* for the first of each list: they are in order */
	struct list dead;		   /* freed at the end of the turn */
	ev_prepare reaper;
	bool stopping;
	/* Called when a connection has been closed. */
	void (*on_closed)(void *data);
	/* See struct round_ops. */
	void (*on_spent)(void *data, struct seat *seat);
	void (*on_broken)(void *data, struct seat *seat, const char *why);
	void *data;
};

/* on_closed, on_spent, on_broken and data are the caller's to set afterwards, before the thread
 * runs. */
void conns_init(struct conns *conns, struct thread *thread, struct admission *admission);
/* Closes what is left. */
void conns_fini(struct conns *conns);

/* A new connection. Takes *take_fd, also on failure. Returns 0 or -ENOMEM. */
int conn_new(struct conns *conns, int *take_fd, const struct sockaddr *peer, socklen_t peer_len);

/*
 * New settings for this thread. A time-out that became shorter holds for the connections that there
 * are, too; a longer one for the next wait of each.
 */
void conns_set(struct conns *conns, const struct settings *settings);
/*
 * No more keep-alive: closes the idle ones gently, and the others after their present requests.
 */
void conns_stop(struct conns *conns);

/* How many there are. Any thread. */
unsigned conns_n_open(const struct conns *conns);
/* Any thread. */
unsigned conns_count(const struct conns *conns, enum conn_state state);
