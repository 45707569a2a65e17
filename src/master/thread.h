/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Thread: one I/O thread: its loop, mailbox, clock, settings and counters.
 *
 * Everything in struct thread is touched by that thread alone, but for what says otherwise. It
 * knows nothing of connections or workers: io.h puts those together.
 */
#include <ev.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/wire.h"
#include "master/config.h"
#include "master/latency.h"
#include "master/mailbox.h"

/* What the I/O threads need of the configuration. A reload gives each a new copy. */
struct settings {
	uint64_t header_timeout_us, keepalive_timeout_us, queue_timeout_us, request_timeout_us;
	uint32_t head_bytes_max;
	enum config_balance balance;
};

/* Written by the I/O thread, read relaxed by the control thread. */
struct counters {
	_Atomic uint64_t n_accepted, n_dropped;
	_Atomic uint64_t n_requests, n_replayed, n_refused, n_failed;
	struct latency latency;
};

struct thread {
	unsigned id;
	struct ev_loop *loop;
	struct mailbox mailbox; /* any thread may send */
	struct settings settings;
	uint64_t now_us;	 /* CLOCK_MONOTONIC at the begin of this turn of the loop */
	uint64_t last_id;	 /* of connections and requests: see thread_next_id() */
	uint8_t *scratch;	 /* SCRATCH_BYTES, for the moment of one read */
	struct wire_inbox inbox; /* for the moment of one message */
	struct counters counters;
	/* private */
	ev_check check;
	pthread_t handle;
	bool running;
	struct mail stop_mail;
};

#define THREAD_SCRATCH_BYTES (16 * 1024)

struct settings settings_of(const struct config *config);

/* Returns 0 or -errno. The thread does not run yet: its loop can be filled. */
int thread_init(struct thread *thread, unsigned id, const struct settings *settings);
/* Runs the loop on a new thread with all signals blocked. Returns 0 or -errno. */
int thread_start(struct thread *thread);
/* Ends the loop and joins. On the control thread. Nothing where it does not run. */
void thread_stop(struct thread *thread);
/* After thread_stop(). The watchers of others must have been stopped. */
void thread_fini(struct thread *thread);

/* Unique over all threads and never 0. */
uint64_t thread_next_id(struct thread *thread);

static inline void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
	/* One writer: no read-modify-write needed. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
		memory_order_relaxed);
}

/* CLOCK_MONOTONIC in microseconds. Any thread. */
uint64_t clock_us(void);
