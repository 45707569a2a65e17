/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "worker/deadline.h"

#include <time.h>

/* Not ev_now(): that follows the wall clock, which jumps. */
static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void deadlines_wait(struct deadlines *ds, double after_s)
{
	ev_timer_stop(ds->loop, &ds->timer);
	ev_timer_set(&ds->timer, after_s, 0.);
	ev_timer_start(ds->loop, &ds->timer);
}

static void deadlines_cb(struct ev_loop *loop, ev_timer *timer, int revents)
{
	struct deadlines *ds = container_of(timer, struct deadlines, timer);
	double now = now_s();

	(void)loop;
	(void)revents;
	while (!list_empty(&ds->list)) {
		struct deadline *first = container_of(ds->list.next, struct deadline, link);

		if (first->at > now) {
			deadlines_wait(ds, first->at - now);
			return;
		}
		deadline_stop(first);
		ds->expired(first);
	}
}

void deadlines_init(struct deadlines *deadlines, struct ev_loop *loop, double after_s,
	void (*expired)(struct deadline *deadline))
{
	list_init(&deadlines->list);
	deadlines->loop = loop;
	deadlines->after_s = after_s;
	deadlines->expired = expired;
	ev_timer_init(&deadlines->timer, deadlines_cb, 0., 0.);
}

void deadlines_fini(struct deadlines *deadlines)
{
	ev_timer_stop(deadlines->loop, &deadlines->timer);
}

void deadline_start(struct deadlines *deadlines, struct deadline *deadline)
{
	deadline_stop(deadline);
	if (deadlines->after_s <= 0)
		return;
	deadline->at = now_s() + deadlines->after_s;
	list_append(&deadlines->list, &deadline->link);
	if (!ev_is_active(&deadlines->timer))
		deadlines_wait(deadlines, deadlines->after_s);
}
