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
	char *error;		  /* the first failure to boot, or NULL */
	char *stderr_tail;	  /* of that worker; never NULL when error is not */
};

/* Returns 0, or -errno with *out_error a sentence, to be freed. Takes a reference of config. */
int generation_new(
	struct config *config, unsigned number, struct generation **out, char **out_error);
/* Accepts NULL. Returns NULL. */
struct generation *generation_free(struct generation *generation);
/* Notes a failure, if it is the first. Copies. */
void generation_fail(struct generation *generation, const char *error, const char *stderr_tail);
