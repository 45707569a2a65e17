/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Probe: asks one worker for --ready-path, over a socket of our own that it is lent like any other.
 * On an I/O thread.
 */
#include "common/list.h"
#include "master/round.h"

struct probe;

/*
 * done is called once, later or at once, on this thread: status is that of the answer, 0 where
 * there was none. probes: the probe is in this list meanwhile. Returns 0, or -errno with done not
 * called.
 */
int probe_start(struct round *round, const struct seat *seat, const char *path, struct list *probes,
	void (*done)(void *data, int status), void *data);
/* Forgets one that is under way; done is not called. The round lends no more. */
void probe_free(struct probe *probe);
struct probe *probe_of(struct list *link);
