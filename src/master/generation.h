/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Generation: what its workers are started from, kept as it was when the generation began, so that
 * a worker respawned later runs the same code in the same place. Control thread only.
 */
#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"
#include "master/config.h"

/* A worker that did not boot. */
struct boot_failure {
	struct list link;   /* generation->failures */
	unsigned worker_id; /* 0: there was no worker to speak of */
	char *error;
	char *stderr_tail; /* "" where it wrote nothing */
};

struct generation {
	struct list link; /* the fleet's */
	unsigned number;
	struct config *config;
	int directory_fd; /* --chdir, resolved when the generation began; -1: none */
	int module_fd;	  /* the C module's file; -1: none */
	uint64_t started_us;
	/* the fleet's own */
	unsigned n_wanted;
	unsigned n_initial; /* workers it began with, of which … */
	unsigned n_initial_ready,
		n_initial_failed; /* … so many have become ready or failed to boot */
	unsigned n_ready;	  /* workers that ever became ready */
	bool switched;		  /* its workers are in the round */
	bool confirmed;		  /* and every I/O thread has said so */
	bool finished;		  /* its boot is over, one way or the other */
	struct list failures; /* to boot: of the initial workers; afterwards the last one only */
};

/* Returns 0, or -errno with *out_error a sentence, to be freed. Takes a reference of config. */
int generation_new(
	struct config *config, unsigned number, struct generation **out, char **out_error);
/* Accepts NULL. Returns NULL. */
struct generation *generation_free(struct generation *generation);
/* Notes that a worker, one that the generation began with or not, did not boot. Copies. Out of
 * memory, it is forgotten. */
void generation_fail(struct generation *generation, unsigned worker_id, bool initial,
	const char *error, const char *stderr_tail);
/* The first, or NULL. */
const struct boot_failure *generation_failure(const struct generation *generation);
