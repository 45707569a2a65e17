/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/admission.h"

void admission_init(struct admission *admission, unsigned queue_max)
{
	atomic_init(&admission->turn, 0);
	atomic_init(&admission->n_waiting, 0);
	atomic_init(&admission->n_granted, 0);
	atomic_init(&admission->unlimited, true);
	atomic_init(&admission->queue_max, queue_max);
	pthread_mutex_init(&admission->lock, NULL);
	list_init(&admission->line);
	admission->next_number = 1;
}

void admission_fini(struct admission *admission)
{
	pthread_mutex_destroy(&admission->lock);
}

bool seat_take(struct seat *seat)
{
	unsigned held;

	if (seat->concurrency == 0) {
		atomic_fetch_add(&seat->n_held, 1);
		return true;
	}
	held = atomic_load(&seat->n_held);
	do {
		if (held >= seat->concurrency)
			return false;
	} while (!atomic_compare_exchange_weak(&seat->n_held, &held, held + 1));
	return true;
}

void seat_free(struct seat *seat, struct admission *admission)
{
	/*
	 * Sequentially consistent, as is the count of those in line: whoever finds no seat puts
	 * itself in line and looks again, so that one of the two sees the other.
	 */
	atomic_fetch_sub(&seat->n_held, 1);
	if (atomic_load(&admission->n_waiting) > 0)
		admission_grant(admission, 1);
}

void place_init(struct place *place, struct line_end *end)
{
	list_init(&place->link);
	place->end = end;
	place->number = 0;
	place->where = PLACE_NOWHERE;
}

bool admission_wait(struct admission *admission, struct place *place)
{
	struct list *at;
	bool may;

	pthread_mutex_lock(&admission->lock);
	may = place->number > 0 || atomic_load(&admission->unlimited) ||
	      atomic_load(&admission->n_waiting) < atomic_load(&admission->queue_max);
	if (may) {
		if (place->number == 0)
			place->number = admission->next_number++;
		/* A new number belongs at the end, an old one near the front. */
		at = &admission->line;
		if (place->number + 1 != admission->next_number)
			for (at = admission->line.next; at != &admission->line; at = at->next)
				if (container_of(at, struct place, link)->number > place->number)
					break;
		list_insert_before(at, &place->link);
		place->where = PLACE_IN_LINE;
		atomic_fetch_add(&admission->n_waiting, 1);
	}
	pthread_mutex_unlock(&admission->lock);
	return may;
}

void admission_leave(struct admission *admission, struct place *place)
{
	bool was_granted;

	pthread_mutex_lock(&admission->lock);
	was_granted = place->where == PLACE_GRANTED;
	if (place->where == PLACE_IN_LINE)
		atomic_fetch_sub(&admission->n_waiting, 1);
	if (was_granted)
		atomic_fetch_sub(&admission->n_granted, 1);
	list_remove(&place->link);
	place->where = PLACE_NOWHERE;
	pthread_mutex_unlock(&admission->lock);
	/* The seat that it was granted for would stay empty while others wait. */
	if (was_granted)
		admission_grant(admission, 1);
}

void admission_grant(struct admission *admission, unsigned n)
{
	pthread_mutex_lock(&admission->lock);
	while (n-- > 0) {
		struct list *first = list_pop(&admission->line);
		struct place *place;
		bool was_empty;

		if (!first)
			break;
		place = container_of(first, struct place, link);
		atomic_fetch_sub(&admission->n_waiting, 1);
		atomic_fetch_add(&admission->n_granted, 1);
		was_empty = list_empty(&place->end->granted);
		list_append(&place->end->granted, first);
		place->where = PLACE_GRANTED;
		if (was_empty)
			place->end->wake(place->end);
	}
	pthread_mutex_unlock(&admission->lock);
}

struct place *admission_next_granted(struct admission *admission, struct line_end *end)
{
	struct place *place = NULL;
	struct list *first;

	pthread_mutex_lock(&admission->lock);
	first = list_pop(&end->granted);
	if (first) {
		place = container_of(first, struct place, link);
		place->where = PLACE_NOWHERE;
		atomic_fetch_sub(&admission->n_granted, 1);
	}
	pthread_mutex_unlock(&admission->lock);
	return place;
}
