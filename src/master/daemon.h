/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Daemon: the whole server: listeners, I/O threads, the fleet, and what it is asked by signals, the
 * terminal and the control socket. Control thread only.
 */
#include <ev.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"
#include "master/admission.h"
#include "master/config.h"
#include "master/control.h"
#include "master/fleet.h"
#include "master/generation.h"
#include "master/io.h"
#include "master/mailbox.h"
#include "master/notify.h"
#include "master/signals.h"
#include "master/terminal.h"

enum daemon_state {
	DAEMON_STARTING, /* no worker has become ready yet */
	DAEMON_RUNNING,
	DAEMON_RELOADING,
	DAEMON_STOPPING,
};

/* How the last reload ended. */
struct reload_result {
	bool known, ok;
	unsigned generation;
	char *error; /* or NULL */
	double duration_ms;
};

struct daemon {
	struct ev_loop *loop;
	int argc;
	char **argv;
	struct config *config; /* what serves now */
	struct mailbox mailbox;
	struct admission admission;
	struct gate gate;
	struct io *ios;
	unsigned n_ios;
	struct fleet fleet;
	struct list listeners;
	struct control *control; /* NULL: it could not be had, and was not asked for by name */
	struct notify notify;
	struct signals signals;
	struct terminal terminal;
	enum daemon_state state;
	uint64_t started_us;
	int exit_status;
	bool pidfile_written;
	/* reload.c */
	struct list reload_now, reload_next; /* who waits for the running one, and for the next */
	bool reload_wanted;		     /* one more is to follow */
	struct config *new_config;
	struct list new_listeners;
	unsigned n_reloads, n_reloads_failed;
	struct reload_result last_reload;
	struct list scale_wishes; /* until no generation is starting */
	/* stop */
	unsigned n_ios_busy;	  /* I/O threads that still have connections */
	unsigned n_ios_accepting; /* I/O threads that may still accept */
	ev_timer stop_timer;
	bool stop_at_once;
	bool stopped; /* the last worker has ended */
};

/* Runs until it is told to stop. Takes the reference to config. Returns the exit status. */
int daemon_run(struct config *config, int argc, char *argv[]);

/* Requests under way finish, idle sockets are closed. Asked again: at once. */
void daemon_stop(struct daemon *daemon);
void daemon_stop_now(struct daemon *daemon);
/* Tells the service manager what the daemon is doing. */
void daemon_tell(struct daemon *daemon);

/* How many connections this configuration allows. */
unsigned daemon_connections_max(const struct config *config);

/* reload.c */

/* Those of daemon->config. Returns 0, or -errno with *out_error a sentence, to be freed. */
int reload_open_listeners(struct daemon *daemon, char **out_error);
/*
 * Reloads; one that is running is followed by another. reply may be NULL: then only the log tells.
 */
void reload_ask(struct daemon *daemon, bool first_only, struct control_reply *reply);
/* From the fleet. */
void reload_on_switched(struct daemon *daemon, unsigned generation, double duration_ms);
void reload_on_outcome(struct daemon *daemon, const struct fleet_outcome *outcome);
/* The start is over: what was asked for meanwhile may begin. */
void reload_next(struct daemon *daemon);
/* Answers everybody who waits: the daemon stops. */
void reload_abandon(struct daemon *daemon);

/* status.c */

/* The status document, the caller's; NULL when out of memory. */
json_t *status_document(struct daemon *daemon);
const char *daemon_state_name(enum daemon_state state);
