/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Deadline: one time-out for many objects.
 *
 * All deadlines of a list are equally far away when they start, so the list is in order by itself,
 * and one timer for its first is enough. Loop thread only.
 */
#include <ev.h>

#include "common/list.h"

struct deadline {
	struct list link; /* in no list: not running */
	double at;	  /* CLOCK_MONOTONIC, in seconds */
};

struct deadlines {
	struct list list;
	struct ev_loop *loop;
	ev_timer timer; /* for the first, or for one that was stopped meanwhile */
	double after_s; /* 0: these never come */
	void (*expired)(struct deadline *deadline);
};

void deadlines_init(struct deadlines *deadlines, struct ev_loop *loop, double after_s,
	void (*expired)(struct deadline *deadline));
void deadlines_fini(struct deadlines *deadlines);
/* Starts or starts anew. A deadline that has expired is stopped before it is told. */
void deadline_start(struct deadlines *deadlines, struct deadline *deadline);

static inline void deadline_init(struct deadline *deadline)
{
	list_init(&deadline->link);
}

static inline void deadline_stop(struct deadline *deadline)
{
	list_remove(&deadline->link);
}

static inline bool deadline_is_running(const struct deadline *deadline)
{
	return !list_empty(&deadline->link);
}
