/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Fleet, the part that hears workers: ready, dead, silent or late, and how they are ended.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "master/fleet-impl.h"
#include "master/log.h"

#define KILL_GRACE_S 5.
/* Between two tries of --ready-path. */
#define PROBE_S 0.2
/* A worker that is silent for so long is passed over. */
#define SUSPECT_US (1000 * 1000)

/* ---- Ends ---- */

void fleet_set_deadline(struct worker *worker, double after_s)
{
	ev_timer_stop(worker->loop, &worker->deadline);
	ev_timer_set(&worker->deadline, after_s, 0.);
	ev_timer_start(worker->loop, &worker->deadline);
}

static void terminate(struct worker *worker)
{
	worker_signal(worker, worker->terminated ? SIGKILL : SIGTERM);
	worker->terminated = true;
	fleet_set_deadline(worker, KILL_GRACE_S);
}

void fleet_drain(struct fleet *fleet, struct worker *worker)
{
	const struct generation *generation = fleet_find_generation(fleet, worker->generation);

	/* One whose generation does not serve was lent nothing, and no channel tells it to end. */
	if (worker->state == WORKER_STARTING ||
		(worker->state == WORKER_READY && !generation->switched)) {
		worker->state = WORKER_DRAINING;
		worker_kill(worker);
	} else if (worker->state == WORKER_READY) {
		worker->state = WORKER_DRAINING;
		/* One that hangs has less time than that, and it runs already. */
		if (!worker->terminated)
			fleet_set_deadline(
				worker, (double)generation->config->worker_timeout_ms / 1000.);
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
		late(worker,
			fleet_find_generation(fleet, worker->generation)->config->ready_timeout_ms);
		return;
	}
	if (!worker->terminated) {
		log_warn("worker %u (generation %u): still busy at the end of its time, ending it",
			worker->id, worker->generation);
		atomic_store(&worker->seat.expired, true);
	}
	terminate(worker);
}

/* ---- Ready ---- */

static void join(struct fleet *fleet, struct worker *worker)
{
	struct generation *generation = fleet_find_generation(fleet, worker->generation);
	struct worker *relieved = fleet_find_worker(fleet, worker->replaces);

	*worker->boot_text = '\0';
	ev_timer_stop(fleet->loop, &worker->deadline);
	worker->state = WORKER_READY;
	log_info("worker %u (generation %u): ready, pid %d", worker->id, worker->generation,
		(int)worker->pid);
	generation->n_ready++;
	if (relieved)
		fleet_drain(fleet, relieved);
	if (worker->initial)
		generation->n_initial_ready++;
	if (generation == fleet->serving)
		fleet_set_round(fleet);
	fleet_check_progress(fleet);
}

static void on_probed(void *data, int status)
{
	struct worker *worker = data;
	struct fleet *fleet = worker->owner;
	const struct generation *generation = fleet_find_generation(fleet, worker->generation);

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
	const struct generation *generation = fleet_find_generation(fleet, worker->generation);

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
	if (fleet_find_generation(fleet, worker->generation)->config->ready_path)
		probe(fleet, worker);
	else
		join(fleet, worker);
}

/* ---- Dead ---- */

static void buried(void *data, int result)
{
	struct worker *worker = data;
	struct fleet *fleet = worker->owner;
	struct generation *generation = fleet_find_generation(fleet, worker->generation);

	(void)result;
	if (--worker->n_unburied > 0)
		return;
	list_remove(&worker->link);
	worker_fini(worker);
	free(worker);
	fleet_forget_generation(fleet, generation);
	fleet_check_progress(fleet);
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

static void on_dead(struct worker *worker)
{
	struct fleet *fleet = worker->owner;
	struct generation *generation = fleet_find_generation(fleet, worker->generation);
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
	fleet_fill_place(fleet, worker, before);
	fleet_check_progress(fleet);
}

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

/* ---- Pings ---- */

static void check_pulse(struct fleet *fleet, struct worker *worker)
{
	const struct generation *generation = fleet_find_generation(fleet, worker->generation);
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
			fleet_call_the_line(fleet);
	}
	if (silent_us < hang_us || worker->terminated)
		return;
	log_warn("worker %u (generation %u): hung for %.3g s, ending it", worker->id,
		worker->generation, (double)silent_us / 1e6);
	/* A core shows where it hangs. One that was stopped has to go on to be ended by it. */
	worker_signal(worker, SIGABRT);
	worker_signal(worker, SIGCONT);
	worker->terminated = true;
	fleet_set_deadline(worker, KILL_GRACE_S);
}

void fleet_check_pulses(struct fleet *fleet)
{
	list_each (at, &fleet->workers)
		check_pulse(fleet, container_of(at, struct worker, link));
}

/* ---- What a worker begins with ---- */

const struct worker_ops fleet_worker_ops = {
	.on_ready = on_ready,
	.on_dead = on_dead,
};

void fleet_worker_init(struct fleet *fleet, struct worker *worker)
{
	worker->owner = fleet;
	ev_timer_init(&worker->deadline, deadline_cb, 0., 0.);
	ev_timer_init(&worker->probe, probe_cb, 0., 0.);
}
