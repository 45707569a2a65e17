/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/fleet.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "master/fleet-impl.h"
#include "master/log.h"

#define PULSE_S 0.25

/* A change of the round that the I/O threads have to confirm. */
struct round_change {
	struct fleet *fleet;
	unsigned n_left;
};

struct scaling {
	struct list link; /* fleet->scalings */
	fleet_scaled *done;
	void *data;
};

struct generation *fleet_find_generation(const struct fleet *fleet, unsigned number)
{
	list_each (at, &fleet->generations)
		if (container_of(at, struct generation, link)->number == number)
			return container_of(at, struct generation, link);
	return NULL;
}

struct worker *fleet_find_worker(const struct fleet *fleet, unsigned id)
{
	list_each (at, (struct list *)&fleet->workers)
		if (container_of(at, struct worker, link)->id == id)
			return container_of(at, struct worker, link);
	return NULL;
}

unsigned fleet_count(
	const struct fleet *fleet, const struct generation *generation, enum worker_state state)
{
	unsigned n = 0;

	list_each (at, &fleet->workers) {
		const struct worker *worker = container_of(at, struct worker, link);

		n += generation && worker->generation == generation->number &&
		     worker->state == state;
	}
	return n;
}

struct worker *fleet_youngest(
	struct fleet *fleet, const struct generation *generation, enum worker_state state)
{
	struct worker *found = NULL;

	list_each (at, &fleet->workers) {
		struct worker *worker = container_of(at, struct worker, link);

		if (worker->generation == generation->number && worker->state == state)
			found = worker;
	}
	return found;
}

/* Workers that serve only until their successors are ready. */
static unsigned count_relieved(const struct fleet *fleet, const struct generation *generation)
{
	unsigned n = 0;

	list_each (at, (struct list *)&fleet->workers) {
		const struct worker *worker = container_of(at, struct worker, link);

		n += worker->generation == generation->number && worker->state == WORKER_READY &&
		     worker->relieved;
	}
	return n;
}

bool fleet_is_booting(const struct fleet *fleet)
{
	return fleet->booting != NULL;
}

unsigned fleet_size(const struct fleet *fleet)
{
	return fleet->serving ? fleet->serving->n_wanted : 0;
}

unsigned fleet_n_ready(const struct fleet *fleet)
{
	return fleet_count(fleet, fleet->serving, WORKER_READY);
}

/* ---- The round ---- */

void fleet_call_the_line(struct fleet *fleet)
{
	unsigned n_free = 0;

	list_each (at, &fleet->workers) {
		const struct worker *worker = container_of(at, struct worker, link);
		unsigned held = atomic_load(&worker->seat.n_held);

		if (!fleet->serving || worker->generation != fleet->serving->number ||
			worker->state != WORKER_READY || atomic_load(&worker->seat.suspect))
			continue;
		if (worker->seat.concurrency == 0)
			n_free = admission_n_waiting(fleet->admission);
		else if (held < worker->seat.concurrency)
			n_free += worker->seat.concurrency - held;
	}
	admission_grant(fleet->admission, n_free);
}

static void on_round_confirmed(void *data, int result)
{
	struct round_change *change = data;
	struct fleet *fleet = change->fleet;

	if (result < 0)
		log_error("a change of the workers failed in an I/O thread: %s", strerror(-result));
	if (--change->n_left > 0)
		return;
	free(change);
	fleet->n_rounds_open--;
	/* Now, and not before: a thread that had changed already would let its own overtake. */
	fleet_call_the_line(fleet);
	fleet_check_progress(fleet);
}

void fleet_set_round(struct fleet *fleet)
{
	unsigned n = 0, n_ready = fleet_n_ready(fleet);
	struct seat **seats = calloc(n_ready + 1, sizeof(struct seat *));
	struct round_change *change = malloc(sizeof(*change));
	struct settings settings = { 0 };

	if (!seats || !change) {
		/* Out of memory: the round stays as it was until the next change. */
		free(seats);
		free(change);
		log_error("out of memory: the workers that take requests did not change");
		return;
	}
	list_each (at, &fleet->workers) {
		struct worker *worker = container_of(at, struct worker, link);

		if (fleet->serving && worker->generation == fleet->serving->number &&
			worker->state == WORKER_READY)
			seats[n++] = &worker->seat;
	}
	settings = fleet->serving ? settings_of(fleet->serving->config)
				  : fleet->ios[0].thread.settings;
	change->fleet = fleet;
	change->n_left = fleet->n_ios;
	fleet->n_rounds_open++;
	for (unsigned i = 0; i < fleet->n_ios; i++)
		io_set_round(&fleet->ios[i], seats, n, &settings, on_round_confirmed, change);
	free(seats);
}

/* ---- The boot of a generation ---- */

/* Gives all its workers notice. */
static void retire(struct fleet *fleet, struct generation *generation)
{
	fleet_cancel_vacancies(fleet, generation, UINT_MAX);
	list_each (at, &fleet->workers) {
		struct worker *worker = container_of(at, struct worker, link);

		if (worker->generation == generation->number)
			fleet_drain(fleet, worker);
	}
}

void fleet_forget_generation(struct fleet *fleet, struct generation *generation)
{
	if (!generation || generation == fleet->serving || generation == fleet->booting)
		return;
	list_each (at, &fleet->workers)
		if (container_of(at, struct worker, link)->generation == generation->number)
			return;
	fleet_cancel_vacancies(fleet, generation, UINT_MAX);
	generation_free(generation);
}

static double age_ms(const struct generation *generation)
{
	return (double)(clock_us() - generation->started_us) / 1000.;
}

static void finish_boot(struct fleet *fleet, struct generation *generation, bool ok)
{
	const struct boot_failure *failure = generation_failure(generation);
	struct fleet_outcome outcome = {
		.ok = ok,
		.generation = generation->number,
		.duration_ms = age_ms(generation),
		.error = failure ? failure->error
			 : ok	 ? NULL
				 : "out of memory",
		.stderr_tail = failure ? failure->stderr_tail : "",
		.failures = &generation->failures,
	};

	generation->finished = true;
	fleet->booting = NULL;
	atomic_store(&fleet->admission->unlimited, fleet->serving == NULL);
	if (!ok)
		retire(fleet, generation);
	fleet->ops->on_outcome(fleet->data, &outcome);
	fleet_forget_generation(fleet, generation);
}

static void switch_to(struct fleet *fleet, struct generation *generation)
{
	struct generation *before = fleet->serving;

	generation->switched = true;
	fleet->serving = generation;
	atomic_store(&fleet->admission->queue_max, generation->config->queue);
	if (before)
		retire(fleet, before);
	fleet_set_round(fleet);
}

bool fleet_all_decided(const struct generation *generation)
{
	return generation->n_initial_ready + generation->n_initial_failed == generation->n_initial;
}

static void check_boot(struct fleet *fleet, struct generation *generation)
{
	bool now = generation->config->switch_when == CONFIG_SWITCH_FIRST ||
		   fleet->serving == NULL || fleet_all_decided(generation);

	/* One that became ready and has died since can't take over. */
	if (!generation->switched && fleet_count(fleet, generation, WORKER_READY) > 0 && now)
		switch_to(fleet, generation);
	/* The old ones take no request when every thread has said so, not before. */
	if (generation->switched && !generation->confirmed && fleet->n_rounds_open == 0) {
		generation->confirmed = true;
		fleet->ops->on_switched(fleet->data, generation->number, age_ms(generation));
	}
	if (!fleet_all_decided(generation))
		return;
	if (!generation->switched) {
		if (generation->n_ready > 0)
			generation_fail(generation, 0, true,
				"every worker that became ready ended before the switch", "");
		finish_boot(fleet, generation, false);
	} else if (generation->confirmed && fleet->n_rounds_open == 0) {
		finish_boot(fleet, generation, true);
	}
}

static void check_scalings(struct fleet *fleet)
{
	const struct generation *serving = fleet->serving;
	const struct boot_failure *failure;
	const char *error = NULL;

	if (!serving || fleet->n_rounds_open > 0 ||
		fleet_count(fleet, serving, WORKER_STARTING) > 0)
		return;
	failure = generation_failure(serving);
	if (fleet_count(fleet, serving, WORKER_READY) < serving->n_wanted)
		error = failure ? failure->error : "some workers did not start";
	for (struct list *at; (at = list_pop(&fleet->scalings));) {
		struct scaling *scaling = container_of(at, struct scaling, link);

		scaling->done(scaling->data, error);
		free(scaling);
	}
}

void fleet_check_progress(struct fleet *fleet)
{
	if (fleet->booting)
		check_boot(fleet, fleet->booting);
	check_scalings(fleet);
	fleet->ops->on_changed(fleet->data);
	if (fleet->stopping && list_empty(&fleet->workers) && fleet->n_rounds_open == 0)
		fleet->ops->on_stopped(fleet->data);
}

void fleet_boot(struct fleet *fleet, struct config *config)
{
	struct generation *generation = NULL;
	char *error = NULL;
	int r;

	r = generation_new(config, ++fleet->last_generation, &generation, &error);
	if (r < 0) {
		struct fleet_outcome outcome = {
			.generation = fleet->last_generation,
			.error = error ? error : strerror(-r),
			.stderr_tail = "",
		};

		fleet->ops->on_outcome(fleet->data, &outcome);
		free(error);
		return;
	}
	list_append(&fleet->generations, &generation->link);
	fleet->booting = generation;
	atomic_store(&fleet->admission->unlimited, true);
	generation->n_initial = config->workers;
	for (unsigned i = 0; i < generation->n_initial; i++)
		fleet_hire(fleet, generation, 0, true);
	fleet_check_progress(fleet);
}

/* ---- Scaling ---- */

static void scale_down(struct fleet *fleet, struct generation *generation, unsigned surplus)
{
	surplus -= fleet_cancel_vacancies(fleet, generation, surplus);
	while (surplus-- > 0) {
		struct worker *worker = fleet_youngest(fleet, generation, WORKER_STARTING);

		if (!worker)
			worker = fleet_youngest(fleet, generation, WORKER_READY);
		if (!worker)
			return;
		fleet_drain(fleet, worker);
		/* With a successor goes the one that it was to relieve: they have one place. */
		worker = fleet_find_worker(fleet, worker->replaces);
		if (worker)
			fleet_drain(fleet, worker);
	}
}

void fleet_scale(struct fleet *fleet, unsigned n, fleet_scaled *done, void *data)
{
	struct generation *generation = fleet->serving;
	struct scaling *scaling = malloc(sizeof(*scaling));
	unsigned have = fleet_count(fleet, generation, WORKER_STARTING) +
			fleet_count(fleet, generation, WORKER_READY) +
			fleet_count_vacancies(fleet, generation) -
			count_relieved(fleet, generation);

	if (!scaling) {
		done(data, "out of memory");
		return;
	}
	scaling->done = done;
	scaling->data = data;
	list_append(&fleet->scalings, &scaling->link);
	generation->n_wanted = n;
	if (n < have)
		scale_down(fleet, generation, have - n);
	for (; have < n; have++)
		fleet_hire(fleet, generation, 0, false);
	fleet_set_round(fleet);
}

/* ---- Life ---- */

static void pulse_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct fleet *fleet = container_of(watcher, struct fleet, pulse);

	(void)loop, (void)events;
	fleet_check_pulses(fleet);
}

void fleet_stop(struct fleet *fleet)
{
	fleet->stopping = true;
	list_each (at, &fleet->generations)
		retire(fleet, container_of(at, struct generation, link));
	fleet_set_round(fleet);
	fleet_check_progress(fleet);
}

void fleet_kill(struct fleet *fleet)
{
	fleet->stopping = true;
	list_each (at, &fleet->generations)
		fleet_cancel_vacancies(fleet, container_of(at, struct generation, link), UINT_MAX);
	list_each (at, &fleet->workers) {
		struct worker *worker = container_of(at, struct worker, link);

		if (worker->state != WORKER_DEAD)
			worker->state = WORKER_DRAINING;
		worker_kill(worker);
	}
	fleet_check_progress(fleet);
}

void fleet_init(struct fleet *fleet, struct ev_loop *loop, struct io *ios, unsigned n_ios,
	uint32_t n_slots, struct admission *admission, const struct fleet_ops *ops, void *data)
{
	memset(fleet, 0, sizeof(*fleet));
	fleet->loop = loop;
	fleet->ios = ios;
	fleet->n_ios = n_ios;
	fleet->n_slots = n_slots;
	fleet->admission = admission;
	fleet->ops = ops;
	fleet->data = data;
	list_init(&fleet->workers);
	list_init(&fleet->vacancies);
	list_init(&fleet->generations);
	list_init(&fleet->scalings);
	ev_timer_init(&fleet->pulse, pulse_cb, PULSE_S, PULSE_S);
	ev_timer_start(loop, &fleet->pulse);
}

void fleet_fini(struct fleet *fleet)
{
	ev_timer_stop(fleet->loop, &fleet->pulse);
	list_each (at, &fleet->generations)
		fleet_cancel_vacancies(fleet, container_of(at, struct generation, link), UINT_MAX);
	list_each (at, &fleet->scalings)
		free(container_of(at, struct scaling, link));
	list_each (at, &fleet->workers) {
		struct worker *worker = container_of(at, struct worker, link);

		list_remove(&worker->link);
		worker_fini(worker);
		free(worker);
	}
	list_each (at, &fleet->generations)
		generation_free(container_of(at, struct generation, link));
}
