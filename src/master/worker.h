/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Worker: one worker process as the control thread sees it: spawned, spoken to over its control
 * channel, watched by its pidfd, reaped. Which workers there should be is the fleet's business.
 *
 * Control thread only, but for the seat, which the I/O threads share.
 */
#include <ev.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/list.h"
#include "common/wire.h"
#include "master/admission.h"
#include "master/config.h"
#include "master/output.h"

enum worker_state {
	WORKER_STARTING,
	WORKER_READY,
	WORKER_DRAINING, /* gets no new request */
	WORKER_DEAD,	 /* reaped; what it held is being judged */
};

struct worker;

struct worker_ops {
	/* The application says that it is ready. Once. */
	void (*on_ready)(struct worker *worker);
	/* Its process has ended and has been reaped; worker->exit_text says how. */
	void (*on_dead)(struct worker *worker);
};

struct worker {
	struct list link; /* the fleet's */
	struct seat seat;
	enum worker_state state;
	unsigned id;
	unsigned generation;
	pid_t pid;
	pid_t app_pid; /* 0: none */
	uint64_t started_us;
	char exit_text[96];	 /* "exited with status 1", "was killed by signal 9 (Killed)" */
	char boot_text[512];	 /* why it could not start, in its own words; may be empty */
	struct output_tail tail; /* the last lines of its standard error */
	/* the fleet's own */
	void *owner;
	uint64_t backoff_ms; /* what it waited for before it was started */
	bool terminated;     /* SIGTERM or SIGKILL was ours, or it was told to end */
	bool broken;	     /* a channel of its broke: it has been killed */
	unsigned replaces;   /* the worker that it is to relieve; 0: none */
	bool relieved;	     /* a successor has been started */
	bool initial;	     /* one of those that its generation began with */
	unsigned n_unburied; /* I/O threads that still know its seat */
	ev_timer probe;	     /* until --ready-path is asked for again */
	ev_timer deadline;   /* to be ready; to have drained; to have obeyed SIGTERM */
	uint64_t ping_us;    /* when the ping that is not answered was sent; 0: none */
	/* private */
	bool said_ready, ended;
	struct ev_loop *loop;
	const struct worker_ops *ops;
	int pid_fd, control_fd;
	ev_io pid_watcher, control_watcher;
	struct output out, err;
};

/* What a worker is started with. All borrowed for the call. */
struct worker_launch {
	const struct config *config;
	unsigned id, generation;
	int directory_fd; /* -1: the master's own */
	int module_fd;	  /* the module's file as it was when the generation began, or -1 */
	const struct wire_setup *setup;
	const int *setup_fds; /* 2 * setup->n_channels: channel, page, channel, … */
};

/*
 * Starts a process. Returns 0, or -errno with nothing started and *out_error a sentence, to be
 * freed. worker is zeroed memory of the caller's, with owner set.
 */
int worker_start(struct worker *worker, struct ev_loop *loop, const struct worker_ops *ops,
	const struct worker_launch *launch, char **out_error);
/* After on_dead. */
void worker_fini(struct worker *worker);

/* Sends a signal, to it alone; nothing where it is dead. Never hits another process: pidfd_open(2).
 */
void worker_signal(struct worker *worker, int signal);
/* SIGKILL for it and its process group. */
void worker_kill(struct worker *worker);
/* Asks for a pong; worker->ping_us becomes 0 when it comes. */
void worker_ping(struct worker *worker);
