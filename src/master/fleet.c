/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/fleet.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fd.h"
#include "common/wire.h"
#include "master/generation.h"
#include "master/log.h"

#define KILL_GRACE_S 5.
#define BACKOFF_MIN_MS 1000
#define BACKOFF_MAX_MS 30000
#define PULSE_S 0.25
/* Between two tries of --ready-path. */
#define PROBE_S 0.2
/* A worker that is silent for so long is passed over. */
#define SUSPECT_US (1000 * 1000)

/* A worker to be started after a rest. */
struct vacancy {
	struct list link; /* fleet->vacancies */
	struct fleet *fleet;
	struct generation *generation;
	uint64_t backoff_ms;
	ev_timer timer;
};

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

static void check_progress(struct fleet *fleet);
static void post_vacancy(struct fleet *fleet, struct generation *generation, uint64_t backoff_ms);

static struct generation *generation_of(const struct fleet *fleet, unsigned number)
{
	list_each (at, &fleet->generations)
		if (container_of(at, struct generation, link)->number == number)
			return container_of(at, struct generation, link);
	return NULL;
}

static unsigned count(
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

static unsigned count_vacancies(const struct fleet *fleet, const struct generation *generation)
{
	unsigned n = 0;

	list_each (at, &fleet->vacancies)
		n += container_of(at, struct vacancy, link)->generation == generation;
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
	return count(fleet, fleet->serving, WORKER_READY);
}

/* ---- The round ---- */

/* Whoever waits is called, as many as there are free places at the workers that serve. */
static void call_the_line(struct fleet *fleet)
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
	call_the_line(fleet);
	check_progress(fleet);
}

/* Tells every I/O thread which workers take requests from now on. */
static void set_round(struct fleet *fleet)
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

/* ---- Ends ---- */

static void set_deadline(struct worker *worker, double after_s)
{
	ev_timer_stop(worker->loop, &worker->deadline);
	ev_timer_set(&worker->deadline, after_s, 0.);
	ev_timer_start(worker->loop, &worker->deadline);
}

static void terminate(struct worker *worker)
{
	worker_signal(worker, worker->terminated ? SIGKILL : SIGTERM);
	worker->terminated = true;
	set_deadline(worker, KILL_GRACE_S);
}

/* It takes no more requests, and ends when it has returned those that it holds. */
static void drain(struct fleet *fleet, struct worker *worker)
{
	const struct generation *generation = generation_of(fleet, worker->generation);

	/* One whose generation does not serve was lent nothing, and no channel tells it to end. */
	if (worker->state == WORKER_STARTING ||
		(worker->state == WORKER_READY && !generation->switched)) {
		worker->state = WORKER_DRAINING;
		worker_kill(worker);
	} else if (worker->state == WORKER_READY) {
		worker->state = WORKER_DRAINING;
		/* One that hangs has less time than that, and it runs already. */
		if (!worker->terminated)
			set_deadline(worker, (double)generation->config->worker_timeout_ms / 1000.);
	}
}

static void late(struct worker *worker, uint64_t after_ms)
{
	char why[sizeof(worker->boot_text) - 64];

	snprintf(why, sizeof(why), "%.*s", (int)sizeof(why) - 1, worker->boot_text);
	snprintf(worker->boot_text, sizeof(worker->boot_text), "was not ready after %.3g s%s%s",
		(double)after_ms / 1000., *why ? ": it " : "", why);
	worker_kill(worker);
}

static void deadline_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct worker *worker = container_of(watcher, struct worker, deadline);
	struct fleet *fleet = worker->owner;

	(void)loop, (void)events;
	if (worker->state == WORKER_STARTING) {
		late(worker, generation_of(fleet, worker->generation)->config->ready_timeout_ms);
		return;
	}
	if (!worker->terminated)
		log_warn("worker %u (generation %u): still busy at the end of its time, ending it",
			worker->id, worker->generation);
	terminate(worker);
}

static void vacancy_free(struct vacancy *vacancy)
{
	ev_timer_stop(vacancy->fleet->loop, &vacancy->timer);
	list_remove(&vacancy->link);
	free(vacancy);
}

static void cancel_vacancies(struct fleet *fleet, const struct generation *generation)
{
	list_each (at, &fleet->vacancies) {
		struct vacancy *vacancy = container_of(at, struct vacancy, link);

		if (vacancy->generation == generation)
			vacancy_free(vacancy);
	}
}

/* Gives all its workers notice. */
static void retire(struct fleet *fleet, struct generation *generation)
{
	cancel_vacancies(fleet, generation);
	list_each (at, &fleet->workers) {
		struct worker *worker = container_of(at, struct worker, link);

		if (worker->generation == generation->number)
			drain(fleet, worker);
	}
}

/* A generation is kept while any of its workers lives. */
static void forget_generation(struct fleet *fleet, struct generation *generation)
{
	if (!generation || generation == fleet->serving || generation == fleet->booting)
		return;
	list_each (at, &fleet->workers)
		if (container_of(at, struct worker, link)->generation == generation->number)
			return;
	cancel_vacancies(fleet, generation);
	generation_free(generation);
}

/* ---- The boot of a generation ---- */

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
	forget_generation(fleet, generation);
}

static void switch_to(struct fleet *fleet, struct generation *generation)
{
	struct generation *before = fleet->serving;

	generation->switched = true;
	fleet->serving = generation;
	atomic_store(&fleet->admission->queue_max, generation->config->queue);
	if (before)
		retire(fleet, before);
	set_round(fleet);
}

static bool all_decided(const struct generation *generation)
{
	return generation->n_initial_ready + generation->n_initial_failed == generation->n_initial;
}

static void check_boot(struct fleet *fleet, struct generation *generation)
{
	bool now = generation->config->switch_when == CONFIG_SWITCH_FIRST ||
		   fleet->serving == NULL || all_decided(generation);

	/* One that became ready and has died since can't take over. */
	if (!generation->switched && count(fleet, generation, WORKER_READY) > 0 && now)
		switch_to(fleet, generation);
	/* The old ones take no request when every thread has said so, not before. */
	if (generation->switched && !generation->confirmed && fleet->n_rounds_open == 0) {
		generation->confirmed = true;
		fleet->ops->on_switched(fleet->data, generation->number, age_ms(generation));
	}
	if (!all_decided(generation))
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

	if (!serving || fleet->n_rounds_open > 0 || count(fleet, serving, WORKER_STARTING) > 0)
		return;
	failure = generation_failure(serving);
	if (count(fleet, serving, WORKER_READY) < serving->n_wanted)
		error = failure ? failure->error : "some workers did not start";
	for (struct list *at; (at = list_pop(&fleet->scalings));) {
		struct scaling *scaling = container_of(at, struct scaling, link);

		scaling->done(scaling->data, error);
		free(scaling);
	}
}

static void check_progress(struct fleet *fleet)
{
	if (fleet->booting)
		check_boot(fleet, fleet->booting);
	check_scalings(fleet);
	fleet->ops->on_changed(fleet->data);
	if (fleet->stopping && list_empty(&fleet->workers) && fleet->n_rounds_open == 0)
		fleet->ops->on_stopped(fleet->data);
}

/* ---- What workers tell ---- */

static struct worker *worker_of(const struct fleet *fleet, unsigned id)
{
	list_each (at, (struct list *)&fleet->workers)
		if (container_of(at, struct worker, link)->id == id)
			return container_of(at, struct worker, link);
	return NULL;
}

static void join(struct fleet *fleet, struct worker *worker)
{
	struct generation *generation = generation_of(fleet, worker->generation);
	struct worker *relieved = worker_of(fleet, worker->replaces);

	*worker->boot_text = '\0';
	ev_timer_stop(fleet->loop, &worker->deadline);
	worker->state = WORKER_READY;
	log_info("worker %u (generation %u): ready, pid %d", worker->id, worker->generation,
		(int)worker->pid);
	generation->n_ready++;
	if (relieved)
		drain(fleet, relieved);
	if (worker->initial)
		generation->n_initial_ready++;
	if (generation == fleet->serving)
		set_round(fleet);
	check_progress(fleet);
}

static void on_probed(void *data, int status)
{
	struct worker *worker = data;
	struct fleet *fleet = worker->owner;
	const struct generation *generation = generation_of(fleet, worker->generation);

	if (worker->state != WORKER_STARTING)
		return;
	if (status >= 200 && status < 400) {
		join(fleet, worker);
		return;
	}
	/* 0: it died meanwhile, and will say so itself. */
	if (status > 0)
		snprintf(worker->boot_text, sizeof(worker->boot_text),
			"answered GET %.200s with %d", generation->config->ready_path, status);
	ev_timer_set(&worker->probe, PROBE_S, 0.);
	ev_timer_start(fleet->loop, &worker->probe);
}

static void probe(struct fleet *fleet, struct worker *worker)
{
	const struct generation *generation = generation_of(fleet, worker->generation);

	io_probe(&fleet->ios[0], &worker->seat, generation->config->ready_path, on_probed, worker);
}

static void probe_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct worker *worker = container_of(watcher, struct worker, probe);

	(void)loop, (void)events;
	probe(worker->owner, worker);
}

static void on_ready(struct worker *worker)
{
	struct fleet *fleet = worker->owner;

	if (worker->state != WORKER_STARTING)
		return;
	if (generation_of(fleet, worker->generation)->config->ready_path)
		probe(fleet, worker);
	else
		join(fleet, worker);
}

static void buried(void *data, int result)
{
	struct worker *worker = data;
	struct fleet *fleet = worker->owner;
	struct generation *generation = generation_of(fleet, worker->generation);

	(void)result;
	if (--worker->n_unburied > 0)
		return;
	list_remove(&worker->link);
	worker_fini(worker);
	free(worker);
	forget_generation(fleet, generation);
	check_progress(fleet);
}

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

static void boot_failed(struct worker *worker, struct generation *generation)
{
	char error[768];

	snprintf(error, sizeof(error), "worker %u: %s%s", worker->id,
		*worker->boot_text ? worker->boot_text : worker->exit_text,
		*worker->boot_text ? "" : " before it was ready");
	log_warn("worker %u (generation %u): failed to boot: %s", worker->id, worker->generation,
		*worker->boot_text ? worker->boot_text : worker->exit_text);
	generation_fail(generation, worker->id, worker->initial, error, worker->tail.text);
	if (worker->initial)
		generation->n_initial_failed++;
}

static bool failed_as_a_whole(const struct generation *generation)
{
	return !generation->finished && all_decided(generation) && generation->n_ready == 0;
}

/* The one that it was to relieve goes on, and will be relieved after as many requests again. */
static void relief_failed(
	struct fleet *fleet, struct worker *worker, const struct generation *generation)
{
	struct worker *spent = worker_of(fleet, worker->replaces);

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

static void on_dead(struct worker *worker)
{
	struct fleet *fleet = worker->owner;
	struct generation *generation = generation_of(fleet, worker->generation);
	enum worker_state before = worker->state;

	worker->state = WORKER_DEAD;
	ev_timer_stop(fleet->loop, &worker->deadline);
	ev_timer_stop(fleet->loop, &worker->probe);
	worker->n_unburied = fleet->n_ios;
	for (unsigned i = 0; i < fleet->n_ios; i++)
		io_bury(&fleet->ios[i], &worker->seat, buried, worker);
	if (before == WORKER_DRAINING) {
		log_info("worker %u (generation %u): ended, %s", worker->id, worker->generation,
			worker->exit_text);
	} else if (before == WORKER_STARTING) {
		boot_failed(worker, generation);
	} else {
		log_warn("worker %u (generation %u): died unexpectedly: %s", worker->id,
			worker->generation, worker->exit_text);
	}
	if (before == WORKER_STARTING && worker->replaces)
		relief_failed(fleet, worker, generation);
	else if (before != WORKER_DRAINING && !failed_as_a_whole(generation) &&
		 !has_successor(fleet, worker))
		replace(fleet, worker, generation);
	check_progress(fleet);
}

static const struct worker_ops worker_ops = {
	.on_ready = on_ready,
	.on_dead = on_dead,
};

void fleet_on_broken(struct fleet *fleet, struct seat *seat, const char *why)
{
	struct worker *worker = container_of(seat, struct worker, seat);

	(void)fleet;
	if (worker->state == WORKER_DEAD || worker->broken)
		return;
	/* One that ends as it was told closes its channels first. */
	if (worker->state == WORKER_DRAINING && strcmp(why, LENDER_CLOSED) == 0)
		return;
	worker->broken = true;
	/* Usually it is dying, and its pidfd will say how. A channel that closes early is no death.
	 */
	if (strcmp(why, LENDER_CLOSED) != 0)
		log_warn("worker %u (generation %u): %s, killing it", worker->id,
			worker->generation, why);
	worker_kill(worker);
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
	worker->owner = fleet;
	worker->seat.worker_id = ++fleet->last_worker;
	worker->seat.concurrency = generation->config->concurrency;
	ev_timer_init(&worker->deadline, deadline_cb, 0., 0.);
	ev_timer_init(&worker->probe, probe_cb, 0., 0.);
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

		r = worker_start(worker, fleet->loop, &worker_ops, &launch, &error);
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

static void hire(
	struct fleet *fleet, struct generation *generation, uint64_t backoff_ms, bool initial)
{
	struct worker *worker = start(fleet, generation, initial);

	if (worker) {
		atomic_store(&worker->seat.limit, limit_of(worker, generation->config));
		worker->backoff_ms = backoff_ms;
		worker->initial = initial;
		if (generation->config->ready_timeout_ms)
			set_deadline(worker, (double)generation->config->ready_timeout_ms / 1000.);
		return;
	}
	if (initial)
		generation->n_initial_failed++;
	/* What is short now may be there later. */
	post_vacancy(fleet, generation, BACKOFF_MIN_MS);
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
	hire(fleet, generation, backoff_ms, false);
	check_progress(fleet);
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

static struct worker *youngest(
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

void fleet_on_spent(struct fleet *fleet, struct seat *seat)
{
	struct worker *worker = container_of(seat, struct worker, seat);
	struct generation *generation = generation_of(fleet, worker->generation);
	struct worker *successor;

	if (worker->state != WORKER_READY || worker->relieved || generation != fleet->serving ||
		fleet->stopping)
		return;
	log_info("worker %u (generation %u): has served its %llu requests", worker->id,
		worker->generation, (unsigned long long)atomic_load(&seat->limit));
	worker->relieved = true;
	hire(fleet, generation, 0, false);
	successor = youngest(fleet, generation, WORKER_STARTING);
	if (successor)
		successor->replaces = worker->id;
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
		hire(fleet, generation, 0, true);
	check_progress(fleet);
}

/* ---- Scaling ---- */

static void scale_down(struct fleet *fleet, struct generation *generation, unsigned surplus)
{
	list_each (at, &fleet->vacancies) {
		struct vacancy *vacancy = container_of(at, struct vacancy, link);

		if (surplus == 0 || vacancy->generation != generation)
			continue;
		vacancy_free(vacancy);
		surplus--;
	}
	while (surplus-- > 0) {
		struct worker *worker = youngest(fleet, generation, WORKER_STARTING);

		if (!worker)
			worker = youngest(fleet, generation, WORKER_READY);
		if (!worker)
			return;
		drain(fleet, worker);
		/* With a successor goes the one that it was to relieve: they have one place. */
		worker = worker_of(fleet, worker->replaces);
		if (worker)
			drain(fleet, worker);
	}
}

void fleet_scale(struct fleet *fleet, unsigned n, fleet_scaled *done, void *data)
{
	struct generation *generation = fleet->serving;
	struct scaling *scaling = malloc(sizeof(*scaling));
	unsigned have = count(fleet, generation, WORKER_STARTING) +
			count(fleet, generation, WORKER_READY) +
			count_vacancies(fleet, generation) - count_relieved(fleet, generation);

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
		hire(fleet, generation, 0, false);
	set_round(fleet);
}

/* ---- Pings ---- */

static void check_pulse(struct fleet *fleet, struct worker *worker)
{
	const struct generation *generation = generation_of(fleet, worker->generation);
	uint64_t hang_us = generation->config->hang_timeout_ms * 1000;
	uint64_t silent_us = worker->ping_us ? clock_us() - worker->ping_us : 0;
	bool suspect = silent_us >= SUSPECT_US;

	if (hang_us == 0 || worker->state == WORKER_DEAD || worker->state == WORKER_STARTING)
		return;
	if (worker->ping_us == 0)
		worker_ping(worker);
	if (suspect != atomic_load(&worker->seat.suspect)) {
		atomic_store(&worker->seat.suspect, suspect);
		log_warn("worker %u (generation %u): %s", worker->id, worker->generation,
			suspect ? "does not answer, passed over until it does" : "answers again");
		if (!suspect)
			call_the_line(fleet);
	}
	if (silent_us < hang_us || worker->terminated)
		return;
	log_warn("worker %u (generation %u): hung for %.3g s, ending it", worker->id,
		worker->generation, (double)silent_us / 1e6);
	/* A core shows where it hangs. One that was stopped has to go on to be ended by it. */
	worker_signal(worker, SIGABRT);
	worker_signal(worker, SIGCONT);
	worker->terminated = true;
	set_deadline(worker, KILL_GRACE_S);
}

static void pulse_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct fleet *fleet = container_of(watcher, struct fleet, pulse);

	(void)loop, (void)events;
	list_each (at, &fleet->workers)
		check_pulse(fleet, container_of(at, struct worker, link));
}

/* ---- Life ---- */

void fleet_stop(struct fleet *fleet)
{
	fleet->stopping = true;
	list_each (at, &fleet->generations)
		retire(fleet, container_of(at, struct generation, link));
	set_round(fleet);
	check_progress(fleet);
}

void fleet_kill(struct fleet *fleet)
{
	fleet->stopping = true;
	list_each (at, &fleet->generations)
		cancel_vacancies(fleet, container_of(at, struct generation, link));
	list_each (at, &fleet->workers) {
		struct worker *worker = container_of(at, struct worker, link);

		if (worker->state != WORKER_DEAD)
			worker->state = WORKER_DRAINING;
		worker_kill(worker);
	}
	check_progress(fleet);
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
	list_each (at, &fleet->vacancies)
		vacancy_free(container_of(at, struct vacancy, link));
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
