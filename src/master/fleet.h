/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Fleet: the workers in their generations: how many there are, which of them take requests, what a
 * reload means, and who replaces whom.
 *
 * A generation is a configuration, a directory and an application as they were when it began. One
 * generation serves; a reload boots the next beside it, and the switch is one change of the round
 * in every I/O thread. Control thread only.
 */
#include <ev.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"
#include "master/admission.h"
#include "master/config.h"
#include "master/io.h"
#include "master/worker.h"

struct generation;

/* How a reload or the first boot ended. The strings are borrowed for the call. */
struct fleet_outcome {
	bool ok;
	unsigned generation;
	double duration_ms;
	const char *error; /* NULL where all went well; with ok: of the first that failed to boot */
	const char *stderr_tail; /* the last lines of the worker that the error is about, or "" */
	const struct list *failures; /* of struct boot_failure: all that did not boot; or NULL */
};

struct fleet_ops {
	/* The first worker of a generation takes requests, and no older one does. */
	void (*on_switched)(void *data, unsigned generation, double duration_ms);
	/* The boot of a generation, the first one too, is over. */
	void (*on_outcome)(void *data, const struct fleet_outcome *outcome);
	/* A worker became ready, died, …: what the status shows has changed. */
	void (*on_changed)(void *data);
	/* After fleet_stop(): the last worker has ended. */
	void (*on_stopped)(void *data);
};

struct fleet {
	struct ev_loop *loop;
	struct io *ios;
	unsigned n_ios;
	uint32_t n_slots;
	struct admission *admission;
	const struct fleet_ops *ops;
	void *data;
	struct list workers;		      /* all that exist, by id */
	struct list vacancies;		      /* workers to be started later */
	struct generation *serving, *booting; /* or NULL */
	struct list generations;
	unsigned last_generation, last_worker;
	uint64_t n_respawns;
	bool stopping;
	ev_timer pulse; /* pings */
	struct list scalings;
	unsigned n_rounds_open; /* changes of the round that some I/O thread has not confirmed */
};

/* admission and the ios live longer. */
void fleet_init(struct fleet *fleet, struct ev_loop *loop, struct io *ios, unsigned n_ios,
	uint32_t n_slots, struct admission *admission, const struct fleet_ops *ops, void *data);
/* Every worker has ended: fleet_stop(), or fleet_kill() and their deaths. */
void fleet_fini(struct fleet *fleet);

/*
 * Boots a generation with this configuration, of which it takes a reference; the first one, or one
 * to take over from the one that serves. None may be booting. on_outcome tells, also where it fails
 * at once.
 */
void fleet_boot(struct fleet *fleet, struct config *config);
bool fleet_is_booting(const struct fleet *fleet);

/* done: error is NULL, or a sentence, borrowed for the call. */
typedef void fleet_scaled(void *data, const char *error);
/* Makes it n workers, of the generation that serves. None may be booting. */
void fleet_scale(struct fleet *fleet, unsigned n, fleet_scaled *done, void *data);
/* How many there should be. */
unsigned fleet_size(const struct fleet *fleet);
/* How many take requests. */
unsigned fleet_n_ready(const struct fleet *fleet);

/* Lets the workers finish what they hold and end; kills those that are still starting. */
void fleet_stop(struct fleet *fleet);
/* SIGKILL for all. */
void fleet_kill(struct fleet *fleet);
/* A worker has served --max-requests: another takes its place as soon as it is ready. */
void fleet_on_spent(struct fleet *fleet, struct seat *seat);
/* A worker's channel broke: it is killed, unless it was on its way out and just closed it. */
void fleet_on_broken(struct fleet *fleet, struct seat *seat, const char *why);
