/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Daemon, the part that says how it is: the status document. docs/up-master.8 explains the fields.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "master/daemon.h"
#include "master/log.h"

const char *daemon_state_name(enum daemon_state state)
{
	static const char *const names[] = {
		[DAEMON_STARTING] = "starting",
		[DAEMON_RUNNING] = "running",
		[DAEMON_RELOADING] = "reloading",
		[DAEMON_STOPPING] = "stopping",
	};

	return names[state];
}

static json_t *counted(uint64_t n)
{
	return json_integer((json_int_t)n);
}

/* ---- Sums over the I/O threads ---- */

static unsigned in_state(const struct daemon *daemon, enum conn_state state)
{
	unsigned n = 0;

	for (unsigned i = 0; i < daemon->n_ios; i++)
		n += conns_count(&daemon->ios[i].conns, state);
	return n;
}

#define SUM(daemon, field)                                                                         \
	({                                                                                         \
		uint64_t sum_ = 0;                                                                 \
		for (unsigned i_ = 0; i_ < (daemon)->n_ios; i_++)                                  \
			sum_ += atomic_load_explicit(                                              \
				&(daemon)->ios[i_].thread.counters.field, memory_order_relaxed);   \
		sum_;                                                                              \
	})

static json_t *connections(const struct daemon *daemon)
{
	/* What the master itself answers, drains or waits to see closed is read, by it. */
	unsigned reading = in_state(daemon, CONN_READING) + in_state(daemon, CONN_ANSWERING) +
			   in_state(daemon, CONN_CLOSING);
	unsigned waiting = in_state(daemon, CONN_WAITING), lent = in_state(daemon, CONN_LENT);
	unsigned idle = in_state(daemon, CONN_IDLE), upgraded = in_state(daemon, CONN_UPGRADED);

	return json_pack("{s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:o}", "accepted",
		counted(SUM(daemon, n_accepted)), "open",
		(int)(reading + waiting + lent + idle + upgraded), "reading", (int)reading,
		"waiting", (int)waiting, "lent", (int)lent, "idle", (int)idle, "upgraded",
		(int)upgraded, "dropped", counted(SUM(daemon, n_dropped)));
}

static json_t *latency(const struct daemon *daemon)
{
	struct latency *histograms[WIRE_CHANNELS_MAX];
	struct latency_summary summary;

	for (unsigned i = 0; i < daemon->n_ios; i++)
		histograms[i] = &daemon->ios[i].thread.counters.latency;
	latency_summarise(histograms, daemon->n_ios, &summary);
	return json_pack("{s:o, s:o, s:o, s:o}", "p50", counted(summary.p50_us), "p99",
		counted(summary.p99_us), "p999", counted(summary.p999_us), "max",
		counted(summary.max_us));
}

static json_t *requests(const struct daemon *daemon)
{
	unsigned waiting = in_state(daemon, CONN_WAITING), lent = in_state(daemon, CONN_LENT);

	return json_pack("{s:o, s:i, s:i, s:o, s:o, s:o, s:o}", "total",
		counted(SUM(daemon, n_requests)), "in_flight", (int)lent, "queued", (int)waiting,
		"replayed", counted(SUM(daemon, n_replayed)), "refused",
		counted(SUM(daemon, n_refused)), "failed", counted(SUM(daemon, n_failed)),
		"latency_us", latency(daemon));
}

/* ---- Workers ---- */

/* proc(5): the second number of statm is the resident set, in pages. */
static json_t *resident(pid_t pid)
{
	char path[64];
	unsigned long size, pages = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	file = fopen(path, "re");
	if (file) {
		if (fscanf(file, "%lu %lu", &size, &pages) != 2)
			pages = 0;
		fclose(file);
	}
	return counted((uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE));
}

static const char *worker_state_name(const struct worker *worker)
{
	if (worker->state == WORKER_READY && atomic_load(&worker->seat.suspect))
		return "suspect";
	switch (worker->state) {
	case WORKER_STARTING:
		return "starting";
	case WORKER_READY:
		return "ready";
	default:
		return "draining";
	}
}

static json_t *worker_entry(const struct worker *worker)
{
	return json_pack("{s:i, s:i, s:o, s:i, s:s, s:f, s:o, s:i, s:o}", "id", (int)worker->id,
		"pid", (int)worker->pid, "app_pid",
		worker->app_pid ? counted((uint64_t)worker->app_pid) : json_null(), "generation",
		(int)worker->generation, "state", worker_state_name(worker), "uptime_s",
		(double)(clock_us() - worker->started_us) / 1e6, "requests",
		counted(atomic_load(&worker->seat.n_requests)), "in_flight",
		(int)atomic_load(&worker->seat.n_held), "rss_bytes", resident(worker->pid));
}

static json_t *workers(const struct daemon *daemon)
{
	json_t *list = json_array();

	list_each (at, (struct list *)&daemon->fleet.workers) {
		const struct worker *worker = container_of(at, struct worker, link);

		if (worker->state != WORKER_DEAD)
			json_array_append_new(list, worker_entry(worker));
	}
	return list;
}

/* ---- The rest ---- */

static json_t *listeners(const struct daemon *daemon)
{
	json_t *list = json_array();

	list_each (at, (struct list *)&daemon->listeners) {
		const struct listener *listener = container_of(at, struct listener, link);
		char address[512];

		/* A UNIX path need not be UTF-8. */
		log_escape(address, sizeof(address), listener->address, strlen(listener->address));
		json_array_append_new(list, json_pack("{s:s, s:b}", "address", address, "inherited",
						    listener->inherited));
	}
	return list;
}

static json_t *last_reload(const struct reload_result *last)
{
	if (!last->known)
		return json_null();
	return json_pack("{s:i, s:b, s:s?, s:f}", "generation", (int)last->generation, "ok",
		last->ok, "error", last->error, "duration_ms", last->duration_ms);
}

static json_t *threads(const struct daemon *daemon)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < daemon->n_ios; i++) {
		unsigned n = conns_n_open(&daemon->ios[i].conns);

		json_array_append_new(
			list, json_pack("{s:i, s:i}", "id", (int)i, "connections", (int)n));
	}
	return list;
}

json_t *status_document(struct daemon *daemon)
{
	const struct generation *serving = daemon->fleet.serving;

	return json_pack(
		"{s:s, s:i, s:f, s:s, s:i, s:o, s:o, s:o, s:o, s:o, s:{s:i, s:i, s:o}, s:o}",
		"version", UP_VERSION, "pid", (int)getpid(), "uptime_s",
		(double)(clock_us() - daemon->started_us) / 1e6, "state",
		daemon_state_name(daemon->state), "generation", serving ? (int)serving->number : 1,
		"listeners", listeners(daemon), "connections", connections(daemon), "requests",
		requests(daemon), "workers", workers(daemon), "respawns",
		counted(daemon->fleet.n_respawns), "reloads", "count", (int)daemon->n_reloads,
		"failed", (int)daemon->n_reloads_failed, "last", last_reload(&daemon->last_reload),
		"threads", threads(daemon));
}
