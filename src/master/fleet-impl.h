/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Fleet, inside: what fleet.c (what is asked of it; the round, progress), fleet-hire.c (who is
 * started, and when) and fleet-worker.c (what workers tell, and how they end) share.
 */
#include "master/fleet.h"
#include "master/generation.h"

/* fleet.c */
/* Returns NULL where there is none of that number. */
struct generation *fleet_find_generation(const struct fleet *fleet, unsigned number);
/* Returns NULL where there is none of that id, as there never is of 0. */
struct worker *fleet_find_worker(const struct fleet *fleet, unsigned id);
/* How many of a generation's workers are in that state; none where generation is NULL. */
unsigned fleet_count(
	const struct fleet *fleet, const struct generation *generation, enum worker_state state);
/* Of the generation's workers in that state the one that was started last, or NULL. */
struct worker *fleet_youngest(
	struct fleet *fleet, const struct generation *generation, enum worker_state state);
/* Every worker that the generation began with has become ready or failed to boot. */
bool fleet_all_decided(const struct generation *generation);
/* Whoever waits is called, as many as there are free places at the workers that serve. */
void fleet_call_the_line(struct fleet *fleet);
/* Tells every I/O thread which workers take requests from now on. Their confirmation comes later.
 */
void fleet_set_round(struct fleet *fleet);
/* A generation is kept while it serves or boots or any of its workers lives. Accepts NULL. */
void fleet_forget_generation(struct fleet *fleet, struct generation *generation);
/* Ends the boot, the scalings and the stop where they are complete. Asked after each change of a
 * worker's state, and of the round when it is confirmed. */
void fleet_check_progress(struct fleet *fleet);

/* fleet-hire.c */
/*
 * Starts a worker, or posts a vacancy where that fails. backoff_ms: what it has waited for before.
 * initial: it is one of those that its generation begins with.
 */
void fleet_hire(
	struct fleet *fleet, struct generation *generation, uint64_t backoff_ms, bool initial);
/* How many workers are to be started later. */
unsigned fleet_count_vacancies(const struct fleet *fleet, const struct generation *generation);
/* At most n_max of those are not started after all. Returns how many. */
unsigned fleet_cancel_vacancies(
	struct fleet *fleet, const struct generation *generation, unsigned n_max);
/* A worker that was in the state `before` has died: sees to who takes its place, if anybody. */
void fleet_fill_place(struct fleet *fleet, struct worker *worker, enum worker_state before);

/* fleet-worker.c */
extern const struct worker_ops fleet_worker_ops;
/* Makes zeroed memory a worker of the fleet's, before worker_start(). */
void fleet_worker_init(struct fleet *fleet, struct worker *worker);
/* Replaces the one it has. What it means depends on the worker's state then. */
void fleet_set_deadline(struct worker *worker, double after_s);
/* It takes no more requests, and ends when it has returned those that it holds. */
void fleet_drain(struct fleet *fleet, struct worker *worker);
/* Pings all workers, and passes over or ends those that do not answer. */
void fleet_check_pulses(struct fleet *fleet);
