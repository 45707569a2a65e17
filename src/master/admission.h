/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Admission: what the I/O threads must agree on about who serves and who waits.
 *
 * A seat is one worker as all threads see it: how many requests it holds. The turn is the
 * round-robin of all threads together. While some seat is free, neither costs more than an atomic
 * operation. Only when all are taken do requests wait in line, in one line for all threads, under
 * the one lock of the hot path.
 *
 * A place in line belongs to its thread; the line only orders. Whoever frees a seat grants the
 * first in line, which wakes that thread; the thread tries again, and where the seat has
 * gone meanwhile it goes back to its old place.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"

struct seat {
	unsigned worker_id;
	unsigned concurrency;	     /* requests it may hold; 0: no limit */
	_Atomic unsigned n_held;     /* requests lent to it and not returned */
	_Atomic uint64_t n_requests; /* lent to it so far */
	_Atomic uint64_t
		limit; /* the request after which somebody else shall take its place; 0: none */
	_Atomic bool expired; /* its --worker-timeout is over: what it cuts, a time-out cuts */
	_Atomic bool suspect; /* answers no pings at the moment: passed over */
};

/* One thread's end of the line. Its owner empties `granted` when woken. */
struct line_end {
	struct list granted;		    /* places; guarded by the lock */
	void (*wake)(struct line_end *end); /* any thread calls it, with the lock held */
};

enum place_where { PLACE_NOWHERE, PLACE_IN_LINE, PLACE_GRANTED };

struct place {
	struct list link; /* guarded by the lock */
	struct line_end *end;
	uint64_t number;	/* 0: has never waited */
	enum place_where where; /* guarded by the lock */
};

struct admission {
	_Atomic unsigned turn;
	_Atomic unsigned n_waiting; /* == length of line */
	_Atomic unsigned n_granted; /* == lengths of the granted lists together */
	_Atomic bool unlimited;	    /* a generation is booting: nobody is refused */
	_Atomic unsigned queue_max;
	pthread_mutex_t lock;
	struct list line; /* by number */
	uint64_t next_number;
};

void admission_init(struct admission *admission, unsigned queue_max);
void admission_fini(struct admission *admission);

/* Takes a place at the seat. False where it has none free. Any thread. */
bool seat_take(struct seat *seat);
/* Gives a place at the seat back, and grants the first in line. Any thread. */
void seat_free(struct seat *seat, struct admission *admission);

void place_init(struct place *place, struct line_end *end);
/*
 * Goes to the end of the line, or back to where it was. Returns false where the line is full and
 * the place is new to it; then it is not in line.
 */
bool admission_wait(struct admission *admission, struct place *place);
/* Leaves the line, or the granted list. Nothing where it is in neither. */
void admission_leave(struct admission *admission, struct place *place);
/* Something opened up for n requests: grants the first n in line. Any thread. */
void admission_grant(struct admission *admission, unsigned n);
/* Takes the next granted place of this end, or NULL. On the thread of the end. */
struct place *admission_next_granted(struct admission *admission, struct line_end *end);

/* Whether somebody was there before: a new request does not overtake. Any thread. */
static inline bool admission_has_line(struct admission *admission)
{
	return atomic_load_explicit(&admission->n_waiting, memory_order_relaxed) > 0 ||
	       atomic_load_explicit(&admission->n_granted, memory_order_relaxed) > 0;
}

static inline unsigned admission_n_waiting(struct admission *admission)
{
	return atomic_load(&admission->n_waiting);
}
