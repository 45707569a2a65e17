/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Fleet, the part that fills places: starting workers, vacancies and their back-off, and who takes
 * the place of one that ended or has served its requests.
 */
#include <stdlib.h>
#include <string.h>

#include "common/fd.h"
#include "common/wire.h"
#include "master/fleet-impl.h"
#include "master/log.h"

#define BACKOFF_MIN_MS 1000
#define BACKOFF_MAX_MS 30000

/* A worker to be started after a rest. */
struct vacancy {
	struct list link; /* fleet->vacancies */
	struct fleet *fleet;
	struct generation *generation;
	uint64_t backoff_ms;
	ev_timer timer;
};

/* ---- Vacancies ---- */

unsigned fleet_count_vacancies(const struct fleet *fleet, const struct generation *generation)
{
	unsigned n = 0;

	list_each (at, &fleet->vacancies)
		n += container_of(at, struct vacancy, link)->generation == generation;
	return n;
}

static void vacancy_free(struct vacancy *vacancy)
{
	ev_timer_stop(vacancy->fleet->loop, &vacancy->timer);
	list_remove(&vacancy->link);
	free(vacancy);
}

unsigned fleet_cancel_vacancies(
	struct fleet *fleet, const struct generation *generation, unsigned n_max)
{
	unsigned n = 0;

	list_each (at, &fleet->vacancies) {
		struct vacancy *vacancy = container_of(at, struct vacancy, link);

		if (n == n_max || vacancy->generation != generation)
			continue;
		vacancy_free(vacancy);
		n++;
	}
	return n;
}

static void vacancy_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct vacancy *vacancy = container_of(watcher, struct vacancy, timer);
	struct fleet *fleet = vacancy->fleet;
	struct generation *generation = vacancy->generation;
	uint64_t backoff_ms = vacancy->backoff_ms;

	(void)loop, (void)events;
	vacancy_free(vacancy);
	fleet->n_respawns++;
	fleet_hire(fleet, generation, backoff_ms, false);
	fleet_check_progress(fleet);
}

static void post_vacancy(struct fleet *fleet, struct generation *generation, uint64_t backoff_ms)
{
	struct vacancy *vacancy = calloc(1, sizeof(*vacancy));

	if (!vacancy) {
		log_error("out of memory: a worker is not replaced");
		return;
	}
	vacancy->fleet = fleet;
	vacancy->generation = generation;
	vacancy->backoff_ms = backoff_ms;
	ev_timer_init(&vacancy->timer, vacancy_cb, (double)backoff_ms / 1000., 0.);
	ev_timer_start(fleet->loop, &vacancy->timer);
	list_append(&fleet->vacancies, &vacancy->link);
}

/* ---- Starting workers ---- */

struct channels {
	unsigned n;
	int master_fds[WIRE_CHANNELS_MAX];
	int worker_fds[2 * WIRE_CHANNELS_MAX]; /* channel, page, channel, … */
	struct wire_slot *slots[WIRE_CHANNELS_MAX];
	uint32_t n_slots;
};

static void channels_fini(struct channels *channels)
{
	for (unsigned i = 0; i < channels->n; i++) {
		fd_close(&channels->master_fds[i]);
		fd_close(&channels->worker_fds[2 * i]);
		fd_close(&channels->worker_fds[2 * i + 1]);
		channels->slots[i] = wire_page_free(channels->slots[i], channels->n_slots);
	}
}

static int channels_init(struct channels *channels, unsigned n, uint32_t n_slots)
{
	int r = 0;

	channels->n = n;
	channels->n_slots = n_slots;
	for (unsigned i = 0; i < n; i++) {
		channels->master_fds[i] = -1;
		channels->worker_fds[2 * i] = channels->worker_fds[2 * i + 1] = -1;
		channels->slots[i] = NULL;
	}
	for (unsigned i = 0; i < n && r == 0; i++) {
		r = wire_channel_new(&channels->master_fds[i], &channels->worker_fds[2 * i]);
		if (r == 0)
			r = wire_page_new(
				n_slots, &channels->slots[i], &channels->worker_fds[2 * i + 1]);
	}
	return r;
}

/* The channel has 32 bits for it, which is 49 days. */
static uint32_t milliseconds(uint64_t ms)
{
	return ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

static struct wire_setup setup_of(const struct fleet *fleet, const struct config *config)
{
	return (struct wire_setup){
		.n_channels = fleet->n_ios,
		.n_slots = fleet->n_slots,
		.body_timeout_ms = milliseconds(config->body_timeout_ms),
		.send_timeout_ms = milliseconds(config->send_timeout_ms),
		.assume_ready = config->assume_ready,
	};
}

/* Returns the started worker, or NULL with the failure noted. */
static struct worker *start(struct fleet *fleet, struct generation *generation, bool initial)
{
	__attribute__((cleanup(channels_fini))) struct channels channels = { 0 };
	struct worker *worker = calloc(1, sizeof(*worker));
	struct wire_setup setup = setup_of(fleet, generation->config);
	char *error = NULL;
	int r;

	if (!worker)
		return NULL;
	fleet_worker_init(fleet, worker);
	worker->seat.worker_id = ++fleet->last_worker;
	worker->seat.concurrency = generation->config->concurrency;
	r = channels_init(&channels, fleet->n_ios, fleet->n_slots);
	if (r == 0) {
		struct worker_launch launch = {
			.config = generation->config,
			.id = fleet->last_worker,
			.generation = generation->number,
			.directory_fd = generation->directory_fd,
			.module_fd = generation->module_fd,
			.setup = &setup,
			.setup_fds = channels.worker_fds,
		};

		r = worker_start(worker, fleet->loop, &fleet_worker_ops, &launch, &error);
	}
	if (r < 0) {
		log_error("worker %u (generation %u): %s", fleet->last_worker, generation->number,
			error ? error : strerror(-r));
		generation_fail(
			generation, fleet->last_worker, initial, error ? error : strerror(-r), "");
		free(error);
		free(worker);
		return NULL;
	}
	list_append(&fleet->workers, &worker->link);
	for (unsigned i = 0; i < fleet->n_ios; i++)
		io_add(&fleet->ios[i], &worker->seat, &channels.master_fds[i], &channels.slots[i],
			fleet->n_slots, NULL, NULL);
	return worker;
}

/* Replacements of workers that began together come one after another. */
static uint64_t limit_of(const struct worker *worker, const struct config *config)
{
	uint64_t spread = config->max_requests / 10 + 1;

	return config->max_requests ? config->max_requests + worker->id * 2654435761u % spread : 0;
}

void fleet_hire(
	struct fleet *fleet, struct generation *generation, uint64_t backoff_ms, bool initial)
{
	struct worker *worker = start(fleet, generation, initial);

	if (worker) {
		atomic_store(&worker->seat.limit, limit_of(worker, generation->config));
		worker->backoff_ms = backoff_ms;
		worker->initial = initial;
		if (generation->config->ready_timeout_ms)
			fleet_set_deadline(
				worker, (double)generation->config->ready_timeout_ms / 1000.);
		return;
	}
	if (initial)
		generation->n_initial_failed++;
	/* What is short now may be there later. */
	post_vacancy(fleet, generation, BACKOFF_MIN_MS);
}

/* ---- Taking the place of another ---- */

/* Who takes the place of a worker that ended unasked. */
static void replace(struct fleet *fleet, struct worker *worker, struct generation *generation)
{
	uint64_t age = (clock_us() - worker->started_us) / 1000;
	uint64_t backoff_ms = 0;

	if (!generation->config->respawn || fleet->stopping)
		return;
	if (age < generation->config->min_lifetime_ms)
		backoff_ms = worker->backoff_ms ? worker->backoff_ms * 2 : BACKOFF_MIN_MS;
	if (backoff_ms > BACKOFF_MAX_MS)
		backoff_ms = BACKOFF_MAX_MS;
	if (backoff_ms > 0)
		log_info("worker %u (generation %u): its successor starts in %llu s", worker->id,
			worker->generation, (unsigned long long)backoff_ms / 1000);
	post_vacancy(fleet, generation, backoff_ms);
}

static bool failed_as_a_whole(const struct generation *generation)
{
	return !generation->finished && fleet_all_decided(generation) && generation->n_ready == 0;
}

/* The one that it was to relieve goes on, and will be relieved after as many requests again. */
static void relief_failed(
	struct fleet *fleet, struct worker *worker, const struct generation *generation)
{
	struct worker *spent = fleet_find_worker(fleet, worker->replaces);

	if (!spent)
		return;
	spent->relieved = false;
	atomic_store(&spent->seat.limit,
		atomic_load(&spent->seat.n_requests) + generation->config->max_requests);
}

/* The one that was to relieve it takes its place: nobody else is needed. */
static bool has_successor(struct fleet *fleet, const struct worker *worker)
{
	list_each (at, &fleet->workers) {
		struct worker *successor = container_of(at, struct worker, link);

		if (successor->replaces != worker->id || successor->state != WORKER_STARTING)
			continue;
		successor->replaces = 0;
		return true;
	}
	return false;
}

void fleet_fill_place(struct fleet *fleet, struct worker *worker, enum worker_state before)
{
	struct generation *generation = fleet_find_generation(fleet, worker->generation);

	if (before == WORKER_STARTING && worker->replaces)
		relief_failed(fleet, worker, generation);
	else if (before != WORKER_DRAINING && !failed_as_a_whole(generation) &&
		 !has_successor(fleet, worker))
		replace(fleet, worker, generation);
}

void fleet_on_spent(struct fleet *fleet, struct seat *seat)
{
	struct worker *worker = container_of(seat, struct worker, seat);
	struct generation *generation = fleet_find_generation(fleet, worker->generation);
	struct worker *successor;

	if (worker->state != WORKER_READY || worker->relieved || generation != fleet->serving ||
		fleet->stopping)
		return;
	log_info("worker %u (generation %u): has served its %llu requests", worker->id,
		worker->generation, (unsigned long long)atomic_load(&seat->limit));
	worker->relieved = true;
	fleet_hire(fleet, generation, 0, false);
	successor = fleet_youngest(fleet, generation, WORKER_STARTING);
	if (successor)
		successor->replaces = worker->id;
}
