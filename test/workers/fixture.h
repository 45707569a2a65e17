/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Fixture: a module that does what a live test tells it to. See fixture.c for what it understands.
 */
#include <ev.h>
#include <stdbool.h>
#include <stddef.h>

#include <up/worker.h>

/* The text behind prefix, or NULL where target does not begin so. */
const char *fixture_behind(const char *target, const char *prefix);

/* The path of a file in the directory that the test gave. Valid until the next call. */
const char *fixture_path(const char *name);

/* 200 and who answers. */
void fixture_answer(struct up_request *request);

/* Calls fn once, when the file exists. */
struct fixture_gate {
	ev_timer timer;
	void (*fn)(struct fixture_gate *gate);
	char name[64];
};
void fixture_gate_start(
	struct fixture_gate *gate, const char *name, void (*fn)(struct fixture_gate *gate));
void fixture_gate_stop(struct fixture_gate *gate);

/* deaths.c: what is below /die/. False where it knows no such target. */
bool fixture_die(struct up_request *request, const char *how);
