/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Daemon, the part about reloads: who asked, what is read anew, and what everybody is told.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "master/daemon.h"
#include "master/log.h"

/* Somebody who waits for a reload. */
struct asker {
	struct list link;
	bool first_only;
	struct control_reply *reply;
};

/* A worker may write what is no UTF-8; the log shows it escaped. */
static json_t *worker_text(const char *text)
{
	json_t *string = json_string(text);

	return string ? string : json_string("(not UTF-8, see the log)");
}

static json_t *failed_workers(const struct list *failures)
{
	json_t *list = json_array();

	list_each (at, (struct list *)failures) {
		const struct boot_failure *failure = container_of(at, struct boot_failure, link);

		json_array_append_new(
			list, json_pack("{s:i, s:o, s:o}", "id", (int)failure->worker_id, "error",
				      worker_text(failure->error), "stderr",
				      worker_text(failure->stderr_tail)));
	}
	return list;
}

/* failures: of the boot, or NULL where it is not over. */
static void answer_ok(struct control_reply *reply, unsigned generation, double duration_ms,
	const struct list *failures)
{
	json_t *body =
		json_pack("{s:i, s:f}", "generation", (int)generation, "duration_ms", duration_ms);

	if (body && failures && !list_empty(failures))
		json_object_set_new(body, "failed", failed_workers(failures));
	control_answer(reply, 200, body ? body : json_object());
}

static void answer_failed(struct control_reply *reply, const char *error, const char *stderr_tail)
{
	json_t *body = json_object();

	json_object_set_new(body, "error", worker_text(error));
	json_object_set_new(body, "stderr", worker_text(stderr_tail));
	control_answer(reply, 500, body);
}

static void note_result(
	struct daemon *daemon, bool ok, unsigned generation, const char *error, double duration_ms)
{
	struct reload_result *last = &daemon->last_reload;
	char text[2048];

	daemon->n_reloads++;
	daemon->n_reloads_failed += !ok;
	free(last->error);
	last->known = true;
	last->ok = ok;
	last->generation = generation;
	/* A path in it need not be UTF-8, and one such string would void the whole status. */
	last->error = error ? strdup(log_escape(text, sizeof(text), error, strlen(error))) : NULL;
	last->duration_ms = duration_ms;
}

static void answer_all(struct list *askers, const struct fleet_outcome *outcome)
{
	for (struct list *at; (at = list_pop(askers));) {
		struct asker *asker = container_of(at, struct asker, link);

		if (outcome->ok)
			answer_ok(asker->reply, outcome->generation, outcome->duration_ms,
				outcome->failures);
		else
			answer_failed(asker->reply, outcome->error, outcome->stderr_tail);
		free(asker);
	}
}

/* ---- Listeners ---- */

static const char *const default_listen[] = { ":3000" };

static const char *const *listen_of(
	const struct daemon *daemon, const struct config *config, unsigned *out_n)
{
	bool inherited = false;

	list_each (at, &daemon->listeners)
		inherited |= container_of(at, struct listener, link)->inherited;
	*out_n = config->listen.n;
	if (config->listen.n > 0 || inherited)
		return (const char *const *)config->listen.at;
	*out_n = 1;
	return default_listen;
}

static bool listens_on(const struct list *listeners, const char *address)
{
	list_each (at, (struct list *)listeners) {
		const struct listener *listener = container_of(at, struct listener, link);

		if (listener->configured && strcmp(listener->configured, address) == 0)
			return true;
	}
	return false;
}

static void close_all(struct list *listeners)
{
	list_each (at, listeners)
		listener_close(container_of(at, struct listener, link));
}

static int open_listeners(
	struct daemon *daemon, const struct config *config, struct list *to, char **out_error)
{
	const char *const *addresses;
	unsigned n;
	int r = 0;

	addresses = listen_of(daemon, config, &n);
	for (unsigned i = 0; i < n && r == 0; i++)
		if (!listens_on(&daemon->listeners, addresses[i]) && !listens_on(to, addresses[i]))
			r = listener_open(
				addresses[i], config->threads, (int)config->backlog, to, out_error);
	if (r < 0)
		close_all(to);
	return r;
}

int reload_open_listeners(struct daemon *daemon, char **out_error)
{
	return open_listeners(daemon, daemon->config, &daemon->listeners, out_error);
}

struct closing {
	struct listener *listener;
	unsigned n_left;
};

static void unlistened(void *data, int result)
{
	struct closing *closing = data;

	(void)result;
	if (--closing->n_left > 0)
		return;
	listener_close(closing->listener);
	free(closing);
}

static void stop_listening(struct daemon *daemon, struct listener *listener)
{
	struct closing *closing = malloc(sizeof(*closing));

	if (!closing)
		return;
	log_notice("no longer listening on %s", listener->address);
	closing->listener = listener;
	closing->n_left = daemon->n_ios;
	list_remove(&listener->link);
	for (unsigned i = 0; i < daemon->n_ios; i++)
		io_unlisten(&daemon->ios[i], listener, unlistened, closing);
}

static bool is_wanted(const char *const *addresses, unsigned n, const char *address)
{
	for (unsigned i = 0; i < n; i++)
		if (strcmp(addresses[i], address) == 0)
			return true;
	return false;
}

static void change_listeners(struct daemon *daemon, const struct config *config)
{
	const char *const *addresses;
	unsigned n;

	addresses = listen_of(daemon, config, &n);
	list_each (at, &daemon->listeners) {
		struct listener *listener = container_of(at, struct listener, link);

		if (listener->configured && !is_wanted(addresses, n, listener->configured))
			stop_listening(daemon, listener);
		else if (listener->configured)
			listener_set_backlog(listener, (int)config->backlog);
	}
	list_each (at, &daemon->new_listeners) {
		struct listener *listener = container_of(at, struct listener, link);

		log_notice("listening on %s", listener->address);
		for (unsigned i = 0; i < daemon->n_ios; i++)
			io_listen(&daemon->ios[i], listener, NULL, NULL);
	}
	list_splice(&daemon->listeners, &daemon->new_listeners);
}

/* ---- The reload ---- */

static void finish(struct daemon *daemon)
{
	config_unref(daemon->new_config);
	daemon->new_config = NULL;
	if (daemon->state == DAEMON_RELOADING)
		daemon->state = DAEMON_RUNNING;
	notify_busy(&daemon->notify, daemon->reload_wanted);
	/* Also after a failure: systemd would wait for it for ever. The error is in the status
	 * line. */
	notify_ready(&daemon->notify);
	daemon_tell(daemon);
	reload_next(daemon);
}

static void fail(struct daemon *daemon, const struct fleet_outcome *outcome)
{
	log_error("reload failed: %s; generation %u serves on", outcome->error,
		daemon->fleet.serving ? daemon->fleet.serving->number : 0);
	note_result(daemon, false, outcome->generation, outcome->error, outcome->duration_ms);
	close_all(&daemon->new_listeners);
	answer_all(&daemon->reload_now, outcome);
	finish(daemon);
}

static bool differs(const char *a, const char *b)
{
	return a != b && (!a || !b || strcmp(a, b) != 0);
}

/* What a reload can't change, or NULL. */
static const char *fixed_option(const struct config *now, const struct config *then)
{
	if (now->threads != then->threads)
		return "threads";
	if (differs(now->control, then->control))
		return "control";
	if (differs(now->pidfile, then->pidfile))
		return "pidfile";
	return NULL;
}

static int load(struct daemon *daemon, char **out_error)
{
	const char *fixed;
	int r = config_load(daemon->argc, daemon->argv, &daemon->new_config, out_error);

	if (r < 0)
		return r;
	fixed = fixed_option(daemon->config, daemon->new_config);
	if (fixed) {
		if (asprintf(out_error, "%s can't change without a restart", fixed) < 0)
			*out_error = NULL;
		return -1;
	}
	return open_listeners(daemon, daemon->new_config, &daemon->new_listeners, out_error);
}

static void start(struct daemon *daemon)
{
	char *error = NULL;

	daemon->reload_wanted = false;
	list_splice(&daemon->reload_now, &daemon->reload_next);
	daemon->state = DAEMON_RELOADING;
	notify_reloading(&daemon->notify);
	notify_busy(&daemon->notify, true);
	if (load(daemon, &error) < 0) {
		struct fleet_outcome outcome = {
			/* Its number is used up like that of one that did not boot. */
			.generation = ++daemon->fleet.last_generation,
			.error = error ? error : "out of memory",
			.stderr_tail = "",
		};

		fail(daemon, &outcome);
		free(error);
		return;
	}
	log_notice("reload: starting generation %u", daemon->fleet.last_generation + 1);
	daemon_tell(daemon);
	fleet_boot(&daemon->fleet, daemon->new_config);
}

void reload_next(struct daemon *daemon)
{
	/* The first generation serves before its boot is over. */
	if (daemon->reload_wanted && daemon->state == DAEMON_RUNNING &&
		!fleet_is_booting(&daemon->fleet))
		start(daemon);
}

void reload_ask(struct daemon *daemon, bool first_only, struct control_reply *reply)
{
	struct asker *asker;

	if (daemon->state == DAEMON_STOPPING) {
		if (reply)
			control_answer_error(reply, 503, "up-master is stopping");
		return;
	}
	if (reply) {
		asker = malloc(sizeof(*asker));
		if (!asker) {
			control_answer_error(reply, 500, "out of memory");
			return;
		}
		asker->first_only = first_only;
		asker->reply = reply;
		list_append(&daemon->reload_next, &asker->link);
	}
	daemon->reload_wanted = true;
	/* It may have to wait for what is running, and the service manager with it. */
	notify_busy(&daemon->notify, true);
	reload_next(daemon);
}

void reload_on_switched(struct daemon *daemon, unsigned generation, double duration_ms)
{
	list_each (at, &daemon->reload_now) {
		struct asker *asker = container_of(at, struct asker, link);

		if (!asker->first_only)
			continue;
		answer_ok(asker->reply, generation, duration_ms, NULL);
		list_remove(&asker->link);
		free(asker);
	}
}

void reload_on_outcome(struct daemon *daemon, const struct fleet_outcome *outcome)
{
	if (!outcome->ok) {
		fail(daemon, outcome);
		return;
	}
	log_notice("reload: generation %u serves, after %.0f ms%s%s", outcome->generation,
		outcome->duration_ms, outcome->error ? "; but " : "",
		outcome->error ? outcome->error : "");
	note_result(daemon, true, outcome->generation, NULL, outcome->duration_ms);
	io_limit(daemon->ios, daemon->n_ios, &daemon->gate,
		daemon_connections_max(daemon->new_config));
	log_set_level((enum log_level)daemon->new_config->log_level);
	change_listeners(daemon, daemon->new_config);
	config_unref(daemon->config);
	daemon->config = config_ref(daemon->new_config);
	answer_all(&daemon->reload_now, outcome);
	finish(daemon);
}

void reload_abandon(struct daemon *daemon)
{
	struct fleet_outcome outcome = { .error = "up-master is stopping", .stderr_tail = "" };

	answer_all(&daemon->reload_now, &outcome);
	answer_all(&daemon->reload_next, &outcome);
	daemon->reload_wanted = false;
}
