/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Round: which worker gets a request, as one I/O thread sees it.
 *
 * Holds the thread's lenders: those in the round, and those that are outside of it (not ready yet,
 * or retired). Sends what the lenders collected once per turn of the loop, and lets requests wait
 * in the line of all threads while nobody is free. Loans are the caller's; all on the round's
 * thread.
 */
#include <ev.h>
#include <stdbool.h>

#include "master/admission.h"
#include "master/lender.h"
#include "master/thread.h"

/* Upward calls. */
struct round_ops {
	/* The place has left the line: try round_lend() again, or round_wait(). */
	void (*on_granted)(void *data, struct place *place);
	/* The seat has had the last request of its limit; it goes on until it is taken out. */
	void (*on_spent)(void *data, struct seat *seat);
	/* See struct lender_ops. */
	void (*on_broken)(void *data, struct seat *seat, const char *why);
};

struct round {
	struct thread *thread;
	struct admission *admission;
	const struct round_ops *ops;
	void *data;
	struct lender **lenders; /* in the round, in the order of the seats given */
	unsigned n_lenders;
	struct list outside; /* lenders that are not */
	struct line_end line_end;
	_Atomic bool has_granted; /* line_end.granted is worth a look */
	ev_prepare flush;
	ev_async wake;
};

/* On the thread, or before it runs. */
void round_init(struct round *round, struct thread *thread, struct admission *admission,
	const struct round_ops *ops, void *data);
/* Frees the lenders that are left. */
void round_fini(struct round *round);

/* A new worker's channel; takes *take_fd and *take_slots as lender_new() does. It is not in the
 * round yet. */
int round_add(struct round *round, struct seat *seat, int *take_fd, struct wire_slot **take_slots,
	uint32_t n_slots);
/*
 * From now on exactly these take new requests; those that were in the round and are not any more
 * are retired. Seats without a lender here are passed over. Those who wait in line are not called:
 * the caller does that when every thread has changed. Returns 0 or -ENOMEM: then nothing changed.
 */
int round_set(struct round *round, struct seat *const seats[], unsigned n_seats);
/* The worker is dead: settles and frees its lender, wherever it is. */
void round_bury(struct round *round, struct seat *seat);

/* Lends to whoever's turn it is. Returns 0, -EAGAIN where nobody is free, -EMSGSIZE or -ENOMEM. */
int round_lend(struct round *round, struct loan *loan, const struct loan_terms *terms);
/* Lends to that worker, in the round or not, at once. Returns as round_lend() does. */
int round_lend_to(struct round *round, const struct seat *seat, struct loan *loan,
	const struct loan_terms *terms);
/* Waits in line. False where the line is full. */
bool round_wait(struct round *round, struct place *place);
void round_leave(struct round *round, struct place *place);
