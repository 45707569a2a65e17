/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Config: the command line and the JSON file, one table of options for both, for --help and for
 * --check-config.
 *
 * A struct config is immutable once made and counted by reference: each generation keeps the one it
 * started with. A reload makes a new one from the same command line. Control thread only.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Listened on where neither --listen nor --port was given and systemd handed no socket over. */
#define CONFIG_PORT_DEFAULT 3000

enum config_app {
	CONFIG_APP_HELLO,  /* nothing was named: the built-in hello module */
	CONFIG_APP_MODULE, /* app[0] is a C module, NAME.so; the rest are its arguments */
	CONFIG_APP_NATIVE, /* --native: app is a command that speaks the protocol itself */
};

enum config_switch {
	CONFIG_SWITCH_FIRST,
	CONFIG_SWITCH_ALL,
};

enum config_balance {
	CONFIG_BALANCE_ROUND_ROBIN,
	CONFIG_BALANCE_LEAST_BUSY,
};

struct config_strings {
	unsigned n;
	char **at; /* n strings, then NULL */
};

/* Durations are in milliseconds and end in _ms; 0 means none or off, unless said otherwise. */
/* For --workers and for every other way to scale. */
#define CONFIG_WORKERS_MAX 1024

struct config {
	unsigned n_references;

	enum config_app app_kind;
	struct config_strings app; /* the application and its arguments; empty for hello */
	bool native;

	char *config_file;	      /* --config, or NULL */
	struct config_strings listen; /* --listen and --port as addresses, checked; empty: the
					 default or systemd's */
	unsigned workers;	      /* evaluated, >= 1 */
	unsigned threads;	      /* 1 to WIRE_CHANNELS_MAX */
	uint64_t worker_timeout_ms;
	int switch_when; /* enum config_switch */
	int balance;	 /* enum config_balance */
	unsigned concurrency;
	unsigned queue;
	uint64_t queue_timeout_ms;
	char *ready_path; /* or NULL */
	uint64_t ready_timeout_ms;
	bool assume_ready;
	bool respawn;
	uint64_t min_lifetime_ms;
	uint64_t max_requests;
	uint64_t hang_timeout_ms;
	uint64_t request_timeout_ms;
	uint64_t body_timeout_ms, send_timeout_ms;
	uint64_t header_timeout_ms, keepalive_timeout_ms;
	uint64_t head_bytes_max; /* 1 KiB to 128 KiB: a lend travels in one message */
	unsigned connections_max;
	unsigned backlog;
	char *control;	    /* --control, or NULL: the default, found by the control room */
	int log_level;	    /* enum log_level, as in log.h: 0 error … 4 debug */
	char *user, *group; /* or NULL */
	char *chdir;	    /* or NULL */
	struct config_strings env;
	char *pidfile; /* or NULL */
	char *title;
	uint64_t stop_timeout_ms;
};

enum config_outcome {
	CONFIG_RUN = 1,	  /* *out is the configuration */
	CONFIG_CHECK = 2, /* --check-config: likewise, and the caller prints config_dump() */
	CONFIG_EXIT = 3,  /* --help or --version has been printed */
};

/*
 * Reads the command line, and the file that it names. Returns enum config_outcome, or -EINVAL with
 * *out_error set to a message for people, to be freed, that says what is wrong and where (option;
 * or file, key, line); NULL when out of memory. May be called any number of times; reads NODE_ENV
 * and the CPU affinity each time. argv must outlive the result: a reload reads it again.
 */
int config_load(int argc, char *argv[], struct config **out, char **out_error);

struct config *config_ref(struct config *config);
/* Accepts NULL. Returns NULL. */
struct config *config_unref(struct config *config);

/*
 * Every option as JSON, keys as in the file, which it can be read back from; ports are within
 * "listen". The caller's. NULL when out of memory.
 */
json_t *config_dump(const struct config *config);
