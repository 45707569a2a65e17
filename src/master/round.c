/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/round.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A refused loan finds another lender, which wants a flush too; they can't all refuse for ever. */
#define FLUSH_PASSES 4

/* ---- What the lenders tell ---- */

static void on_seat_left(void *data, struct loan *loan)
{
	struct round *round = data;

	seat_free(loan->seat, round->admission);
}

static void on_opened(void *data, struct lender *lender)
{
	struct round *round = data;

	(void)lender;
	admission_grant(round->admission, WIRE_WINDOW);
}

static void on_broken(void *data, struct lender *lender, const char *why)
{
	struct round *round = data;

	round->ops->on_broken(round->data, lender_seat(lender), why);
}

static const struct lender_ops lender_ops = {
	.on_seat_left = on_seat_left,
	.on_opened = on_opened,
	.on_broken = on_broken,
};

/* ---- Whose turn it is ---- */

static struct lender *find(struct round *round, const struct seat *seat)
{
	for (unsigned i = 0; i < round->n_lenders; i++)
		if (lender_seat(round->lenders[i]) == seat)
			return round->lenders[i];
	list_each (at, &round->outside)
		if (lender_seat(lender_of(at)) == seat)
			return lender_of(at);
	return NULL;
}

static bool may_serve(const struct lender *lender)
{
	return lender_open(lender) &&
	       !atomic_load_explicit(&lender_seat(lender)->suspect, memory_order_relaxed);
}

static struct lender *pick_in_turn(struct round *round, unsigned first)
{
	for (unsigned i = 0; i < round->n_lenders; i++) {
		struct lender *lender = round->lenders[(first + i) % round->n_lenders];

		if (may_serve(lender) && seat_take(lender_seat(lender)))
			return lender;
	}
	return NULL;
}

static struct lender *pick_least_busy(struct round *round, unsigned first)
{
	struct lender *best = NULL;
	unsigned best_held = 0;

	for (unsigned i = 0; i < round->n_lenders; i++) {
		struct lender *lender = round->lenders[(first + i) % round->n_lenders];
		unsigned held = atomic_load(&lender_seat(lender)->n_held);

		if (may_serve(lender) && (!best || held < best_held)) {
			best = lender;
			best_held = held;
		}
	}
	/* Another thread may have taken its last place meanwhile. */
	return best && seat_take(lender_seat(best)) ? best : pick_in_turn(round, first);
}

static struct lender *pick(struct round *round)
{
	unsigned first;

	if (round->n_lenders == 0)
		return NULL;
	first = atomic_fetch_add_explicit(&round->admission->turn, 1, memory_order_relaxed) %
		round->n_lenders;
	if (round->thread->settings.balance == CONFIG_BALANCE_LEAST_BUSY)
		return pick_least_busy(round, first);
	return pick_in_turn(round, first);
}

static void count_request(struct round *round, struct seat *seat)
{
	uint64_t limit = atomic_load_explicit(&seat->limit, memory_order_relaxed);
	uint64_t n = atomic_fetch_add_explicit(&seat->n_requests, 1, memory_order_relaxed) + 1;

	if (n == limit)
		round->ops->on_spent(round->data, seat);
}

int round_lend(struct round *round, struct loan *loan, const struct loan_terms *terms)
{
	/* One try for each lender: a full channel shows only when it is written to. */
	for (unsigned i = 0; i <= round->n_lenders; i++) {
		struct lender *lender = pick(round);
		int r;

		if (!lender)
			return -EAGAIN;
		loan->seat = lender_seat(lender);
		r = lender_lend(lender, loan, terms);
		if (r == 0) {
			count_request(round, loan->seat);
			return 0;
		}
		seat_free(loan->seat, round->admission);
		if (r != -EAGAIN)
			return r;
	}
	return -EAGAIN;
}

int round_lend_to(struct round *round, const struct seat *seat, struct loan *loan,
	const struct loan_terms *terms)
{
	struct lender *lender = find(round, seat);
	int r;

	if (!lender || !lender_open(lender))
		return -EAGAIN;
	loan->seat = lender_seat(lender);
	/* Beside the count of its concurrency: it is asked about its health, not given work. */
	atomic_fetch_add(&loan->seat->n_held, 1);
	r = lender_lend(lender, loan, terms);
	if (r < 0)
		seat_free(loan->seat, round->admission);
	else
		lender_flush(lender);
	return r;
}

static bool has_room(struct round *round)
{
	for (unsigned i = 0; i < round->n_lenders; i++) {
		struct seat *seat = lender_seat(round->lenders[i]);

		if (may_serve(round->lenders[i]) &&
			(seat->concurrency == 0 || atomic_load(&seat->n_held) < seat->concurrency))
			return true;
	}
	return false;
}

/*
 * Calls the next in line where there is room. One that has been called and has not come yet is
 * entitled to that room; whoever serves it looks again.
 */
static void call_next(struct round *round)
{
	struct admission *admission = round->admission;

	if (atomic_load(&admission->n_granted) == 0 && admission_n_waiting(admission) > 0 &&
		has_room(round))
		admission_grant(admission, 1);
}

bool round_wait(struct round *round, struct place *place)
{
	if (!admission_wait(round->admission, place))
		return false;
	/* Whoever freed a seat before we were in line has not seen us. */
	call_next(round);
	return true;
}

void round_leave(struct round *round, struct place *place)
{
	admission_leave(round->admission, place);
}

/* ---- Once per turn of the loop ---- */

static void serve_granted(struct round *round)
{
	struct place *place;

	if (!atomic_exchange(&round->has_granted, false))
		return;
	while ((place = admission_next_granted(round->admission, &round->line_end))) {
		round->ops->on_granted(round->data, place);
		call_next(round);
	}
}

static void flush_all(struct round *round)
{
	for (unsigned i = 0; i < round->n_lenders; i++)
		lender_flush(round->lenders[i]);
}

/* What one lender refused may have gone to another that was flushed before it. */
static bool work_left(struct round *round)
{
	for (unsigned i = 0; i < round->n_lenders; i++)
		if (lender_collects(round->lenders[i]))
			return true;
	return atomic_load_explicit(&round->has_granted, memory_order_relaxed);
}

static void flush_cb(struct ev_loop *loop, ev_prepare *watcher, int events)
{
	struct round *round = container_of(watcher, struct round, flush);

	(void)events;
	for (unsigned pass = 0; pass < FLUSH_PASSES; pass++) {
		serve_granted(round);
		flush_all(round);
		if (!work_left(round))
			return;
	}
	/* No sleep with work left. */
	ev_async_send(loop, &round->wake);
}

static void wake_cb(struct ev_loop *loop, ev_async *watcher, int events)
{
	/* Only wakes the loop: flush_cb() does the work before the loop sleeps again. */
	(void)loop, (void)watcher, (void)events;
}

static void line_wake(struct line_end *end)
{
	struct round *round = container_of(end, struct round, line_end);

	atomic_store(&round->has_granted, true);
	ev_async_send(round->thread->loop, &round->wake);
}

/* ---- The round's members ---- */

int round_add(struct round *round, struct seat *seat, int *take_fd, struct wire_slot **take_slots,
	uint32_t n_slots)
{
	struct lender *lender;
	int r = lender_new(
		round->thread, seat, take_fd, take_slots, n_slots, &lender_ops, round, &lender);

	if (r == 0)
		list_append(&round->outside, lender_link(lender));
	return r;
}

static bool in_round(const struct round *round, const struct lender *lender)
{
	for (unsigned i = 0; i < round->n_lenders; i++)
		if (round->lenders[i] == lender)
			return true;
	return false;
}

int round_set(struct round *round, struct seat *const seats[], unsigned n_seats)
{
	struct lender **before = round->lenders;
	struct lender **lenders = calloc(n_seats + 1, sizeof(struct lender *));
	unsigned n_before = round->n_lenders, n = 0;

	if (!lenders)
		return -ENOMEM;
	for (unsigned i = 0; i < n_seats; i++) {
		struct lender *lender = find(round, seats[i]);

		if (lender)
			lenders[n++] = lender;
	}
	round->lenders = lenders;
	round->n_lenders = n;
	for (unsigned i = 0; i < n; i++)
		list_remove(lender_link(lenders[i]));
	for (unsigned i = 0; i < n_before; i++) {
		if (in_round(round, before[i]))
			continue;
		list_append(&round->outside, lender_link(before[i]));
		lender_retire(before[i]);
	}
	free(before);
	return 0;
}

void round_bury(struct round *round, struct seat *seat)
{
	struct lender *lender = find(round, seat);

	if (!lender)
		return;
	for (unsigned i = 0; i < round->n_lenders; i++) {
		if (round->lenders[i] != lender)
			continue;
		round->n_lenders--;
		memmove(round->lenders + i, round->lenders + i + 1,
			(round->n_lenders - i) * sizeof(struct lender *));
		list_append(&round->outside, lender_link(lender));
		break;
	}
	lender_settle(lender);
	lender_free(lender);
}

void round_init(struct round *round, struct thread *thread, struct admission *admission,
	const struct round_ops *ops, void *data)
{
	memset(round, 0, sizeof(*round));
	round->thread = thread;
	round->admission = admission;
	round->ops = ops;
	round->data = data;
	list_init(&round->outside);
	list_init(&round->line_end.granted);
	round->line_end.wake = line_wake;
	ev_prepare_init(&round->flush, flush_cb);
	ev_prepare_start(thread->loop, &round->flush);
	ev_async_init(&round->wake, wake_cb);
	ev_async_start(thread->loop, &round->wake);
}

void round_fini(struct round *round)
{
	for (unsigned i = 0; i < round->n_lenders; i++)
		lender_free(round->lenders[i]);
	list_each (at, &round->outside)
		lender_free(lender_of(at));
	free(round->lenders);
	ev_prepare_stop(round->thread->loop, &round->flush);
	ev_async_stop(round->thread->loop, &round->wake);
}
