/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/fd.h"
#include "master/log.h"

/* What the master needs for itself and for each worker, so that a reload works when clients have
 * taken all other descriptors: two generations of workers at once. */
#define RESERVE_BASE 128
#define FDS_PER_WORKER 8

/* ---- Limits ---- */

static unsigned raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 1024;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_max > 4 * 1024 * 1024 ? 4 * 1024 * 1024 : (unsigned)limit.rlim_max;
}

unsigned daemon_connections_max(const struct config *config)
{
	unsigned limit = raise_file_limit();
	unsigned reserve = RESERVE_BASE + 2 * config->workers * (FDS_PER_WORKER + config->threads);
	unsigned most = limit > 2 * reserve ? limit - reserve : limit / 2;

	return config->connections_max && config->connections_max < most ? config->connections_max
									 : most;
}

/* ---- Scaling ---- */

/* Somebody wishes another number of workers. While a generation starts, the wish waits. */
struct scale_wish {
	struct list link; /* daemon->scale_wishes */
	struct daemon *daemon;
	unsigned n;		     /* 0: as many as there are then, and change */
	int change;		     /* by a signal */
	struct control_reply *reply; /* NULL: only the log tells */
};

static void scaled(void *data, const char *error)
{
	struct scale_wish *wish = data;

	if (!wish->reply && error)
		log_warn("scaling: %s", error);
	else if (wish->reply && error)
		control_answer_error(wish->reply, 503, "%s", error);
	else if (wish->reply)
		control_answer(wish->reply, 200,
			json_pack("{s:i}", "workers", (int)fleet_size(&wish->daemon->fleet)));
	free(wish);
}

static unsigned wished_size(const struct scale_wish *wish)
{
	unsigned size = fleet_size(&wish->daemon->fleet);

	if (wish->n > 0)
		return wish->n;
	if ((wish->change < 0 && size <= 1) || (wish->change > 0 && size >= CONFIG_WORKERS_MAX))
		return size;
	return size + (unsigned)wish->change;
}

static void grant_wishes(struct daemon *daemon)
{
	bool can = daemon->state == DAEMON_RUNNING && !fleet_is_booting(&daemon->fleet);
	struct list wishes;

	if (!can && daemon->state != DAEMON_STOPPING)
		return;
	list_init(&wishes);
	list_splice(&wishes, &daemon->scale_wishes);
	for (struct list *at; (at = list_pop(&wishes));) {
		struct scale_wish *wish = container_of(at, struct scale_wish, link);

		if (can)
			fleet_scale(&daemon->fleet, wished_size(wish), scaled, wish);
		else
			scaled(wish, "up-master is stopping");
	}
}

static int wish_scale(struct daemon *daemon, unsigned n, int change, struct control_reply *reply)
{
	struct scale_wish *wish = calloc(1, sizeof(*wish));

	if (!wish)
		return -ENOMEM;
	wish->daemon = daemon;
	wish->n = n;
	wish->change = change;
	wish->reply = reply;
	list_append(&daemon->scale_wishes, &wish->link);
	grant_wishes(daemon);
	return 0;
}

/* ---- What the fleet tells ---- */

void daemon_tell(struct daemon *daemon)
{
	const struct generation *serving = daemon->fleet.serving;

	if (daemon->state == DAEMON_STARTING || !serving) {
		notify_status(&daemon->notify, "%s", daemon_state_name(daemon->state));
		return;
	}
	notify_status(&daemon->notify, "%s: generation %u, %u of %u workers ready%s%s",
		daemon_state_name(daemon->state), serving->number, fleet_n_ready(&daemon->fleet),
		fleet_size(&daemon->fleet),
		daemon->last_reload.error ? "; last reload failed: " : "",
		daemon->last_reload.error ? daemon->last_reload.error : "");
}

static void begin_serving(struct daemon *daemon)
{
	list_each (at, &daemon->listeners) {
		struct listener *listener = container_of(at, struct listener, link);

		log_notice("listening on %s", listener->address);
		for (unsigned i = 0; i < daemon->n_ios; i++)
			io_listen(&daemon->ios[i], listener, NULL, NULL);
	}
	notify_busy(&daemon->notify, daemon->reload_wanted);
	notify_ready(&daemon->notify);
}

static void on_switched(void *data, unsigned generation, double duration_ms)
{
	struct daemon *daemon = data;

	/* Nobody is accepted before somebody can serve: until then clients wait in the kernel. */
	if (daemon->state == DAEMON_STARTING) {
		daemon->state = DAEMON_RUNNING;
		begin_serving(daemon);
		daemon_tell(daemon);
	} else {
		reload_on_switched(daemon, generation, duration_ms);
	}
}

static void on_outcome(void *data, const struct fleet_outcome *outcome)
{
	struct daemon *daemon = data;

	if (daemon->new_config) {
		reload_on_outcome(daemon, outcome);
		grant_wishes(daemon);
		return;
	}
	if (outcome->ok) {
		if (outcome->error)
			log_warn("%s", outcome->error);
		reload_next(daemon);
		grant_wishes(daemon);
		return;
	}
	if (daemon->state != DAEMON_STOPPING) {
		log_error("can't start: %s", outcome->error);
		daemon->exit_status = 1;
		daemon_stop_now(daemon);
	}
}

static void on_changed(void *data)
{
	daemon_tell(data);
}

static void on_stopped(void *data)
{
	struct daemon *daemon = data;

	daemon->stopped = true;
	ev_break(daemon->loop, EVBREAK_ALL);
}

static const struct fleet_ops fleet_ops = {
	.on_switched = on_switched,
	.on_outcome = on_outcome,
	.on_changed = on_changed,
	.on_stopped = on_stopped,
};

static void on_report(void *data, struct seat *seat, const char *why)
{
	struct daemon *daemon = data;

	if (why)
		fleet_on_broken(&daemon->fleet, seat, why);
	else
		fleet_on_spent(&daemon->fleet, seat);
}

/* ---- Stopping ---- */

static void on_io_stopped(void *data, int result)
{
	struct daemon *daemon = data;

	(void)result;
	if (--daemon->n_ios_busy == 0 && !daemon->stop_at_once)
		fleet_stop(&daemon->fleet);
}

/* Whoever connects from now on is refused by the kernel, and can go elsewhere. */
static void on_io_deaf(void *data, int result)
{
	struct daemon *daemon = data;

	(void)result;
	if (--daemon->n_ios_accepting > 0)
		return;
	list_each (at, &daemon->listeners) {
		struct listener *listener = container_of(at, struct listener, link);

		if (!listener->inherited)
			listener_close(listener);
	}
}

static void stop_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct daemon *daemon = container_of(watcher, struct daemon, stop_timer);

	(void)loop, (void)events;
	log_warn("requests are still under way at the end of the stop time-out");
	daemon_stop_now(daemon);
}

void daemon_stop_now(struct daemon *daemon)
{
	if (daemon->stop_at_once)
		return;
	daemon->stop_at_once = true;
	daemon->state = DAEMON_STOPPING;
	notify_stopping(&daemon->notify);
	ev_timer_stop(daemon->loop, &daemon->stop_timer);
	reload_abandon(daemon);
	grant_wishes(daemon);
	fleet_kill(&daemon->fleet);
}

void daemon_stop(struct daemon *daemon)
{
	if (daemon->state == DAEMON_STOPPING) {
		log_notice("stopping at once");
		daemon_stop_now(daemon);
		return;
	}
	log_notice("stopping");
	daemon->state = DAEMON_STOPPING;
	notify_stopping(&daemon->notify);
	/* Until --stop-timeout, which may be longer than the service manager's own. */
	notify_busy(&daemon->notify, true);
	daemon_tell(daemon);
	reload_abandon(daemon);
	grant_wishes(daemon);
	ev_timer_set(&daemon->stop_timer, (double)daemon->config->stop_timeout_ms / 1000., 0.);
	ev_timer_start(daemon->loop, &daemon->stop_timer);
	daemon->n_ios_busy = daemon->n_ios_accepting = daemon->n_ios;
	for (unsigned i = 0; i < daemon->n_ios; i++) {
		io_stop(&daemon->ios[i], on_io_stopped, daemon);
		/* Orders are followed one after the other: the answer to this one says that no
		 * listener is used any more, while requests go on. */
		io_ping(&daemon->ios[i], on_io_deaf, daemon);
	}
}

/* ---- What the control socket asks ---- */

static json_t *ops_status(void *data)
{
	return status_document(data);
}

static bool ops_healthy(void *data)
{
	struct daemon *daemon = data;

	return daemon->state != DAEMON_STOPPING && fleet_n_ready(&daemon->fleet) > 0;
}

static void ops_reload(void *data, bool first_only, struct control_reply *reply)
{
	reload_ask(data, first_only, reply);
}

static void ops_scale(void *data, unsigned n, struct control_reply *reply)
{
	struct daemon *daemon = data;

	if (wish_scale(daemon, n, 0, reply) < 0)
		control_answer_error(reply, 500, "out of memory");
}

static void ops_stop(void *data, struct control_reply *reply)
{
	struct daemon *daemon = data;

	control_answer(reply, 202, json_pack("{s:s}", "state", "stopping"));
	if (daemon->state != DAEMON_STOPPING)
		daemon_stop(daemon);
}

static const struct control_ops control_ops = {
	.status = ops_status,
	.healthy = ops_healthy,
	.reload = ops_reload,
	.scale = ops_scale,
	.stop = ops_stop,
};

/* ---- Signals and the terminal ---- */

static void on_key_reload(void *data)
{
	reload_ask(data, false, NULL);
}

static bool is_worker(const struct daemon *daemon, pid_t pid)
{
	list_each (at, (struct list *)&daemon->fleet.workers)
		if (container_of(at, struct worker, link)->pid == pid)
			return true;
	return false;
}

/* As PID 1 of a container: orphans of the workers are ours to bury. */
static void reap_orphans(struct daemon *daemon)
{
	siginfo_t info;

	if (getpid() != 1)
		return;
	for (;;) {
		info.si_pid = 0;
		/* A worker is reaped by its pidfd, and signals again when the next orphan ends. */
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0 ||
			is_worker(daemon, info.si_pid))
			return;
		waitpid(info.si_pid, NULL, WNOHANG);
	}
}

static void on_signal(void *data, int signal)
{
	struct daemon *daemon = data;

	switch (signal) {
	case SIGHUP:
		if (terminal_gone(&daemon->terminal)) {
			daemon_stop(daemon);
			break;
		}
		/* fall through */
	case SIGUSR2:
		reload_ask(daemon, false, NULL);
		break;
	case SIGTERM:
	case SIGINT:
		daemon_stop(daemon);
		break;
	case SIGQUIT:
		daemon_stop_now(daemon);
		break;
	case SIGTTIN:
		wish_scale(daemon, 0, 1, NULL);
		break;
	case SIGTTOU:
		wish_scale(daemon, 0, -1, NULL);
		break;
	case SIGTSTP:
		terminal_suspend(&daemon->terminal);
		break;
	case SIGCONT:
		terminal_resume(&daemon->terminal);
		break;
	case SIGCHLD:
		reap_orphans(daemon);
		break;
	default:
		/* SIGUSR1: no log files are open. */
		break;
	}
}

/* ---- Setting up ---- */

static int take_inherited(struct daemon *daemon)
{
	int n = sd_listen_fds(1), r = 0;

	for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + n && r == 0; fd++) {
		int taken = fd;

		if (!sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1)) {
			log_error("inherited descriptor %d is no listening stream socket", fd);
			return -EINVAL;
		}
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
		r = listener_inherit(&taken, &daemon->listeners);
	}
	return r;
}

static int open_listeners(struct daemon *daemon)
{
	char *error = NULL;
	int r = take_inherited(daemon);

	if (r == 0)
		r = reload_open_listeners(daemon, &error);
	if (r < 0)
		log_error("%s", error ? error : strerror(-r));
	free(error);
	return r;
}

static int open_control(struct daemon *daemon)
{
	char *path = control_path(daemon->config->control);
	int r = path ? control_new(daemon->loop, path, &control_ops, daemon, &daemon->control)
		     : -ENOMEM;

	if (r == -EADDRINUSE)
		log_error(
			"control socket %s: another up-master uses it; give this one another with "
			"--control",
			path);
	else if (r < 0 && (daemon->config->control || r == -ENOMEM))
		log_error("control socket %s: %s", path ? path : "", strerror(-r));
	else if (r < 0)
		/* Asked for by nobody: a first try as an ordinary user must not fail for it. */
		log_warn(
			"control socket %s: %s; going on without, upctl won't work (see --control)",
			path, strerror(-r));
	if (r < 0 && r != -EADDRINUSE && r != -ENOMEM && !daemon->config->control)
		r = 0;
	free(path);
	return r;
}

static int start_threads(struct daemon *daemon)
{
	struct settings settings = settings_of(daemon->config);
	int r = 0;

	daemon->ios = calloc(daemon->config->threads, sizeof(struct io));
	if (!daemon->ios)
		return -ENOMEM;
	for (unsigned i = 0; i < daemon->config->threads && r == 0; i++) {
		r = io_init(&daemon->ios[i], i, &settings, &daemon->admission, &daemon->gate,
			daemon->ios, daemon->config->threads, &daemon->mailbox, on_report, daemon);
		daemon->n_ios += r == 0;
	}
	for (unsigned i = 0; i < daemon->n_ios && r == 0; i++)
		r = io_start(&daemon->ios[i]);
	if (r < 0)
		log_error("can't start the I/O threads: %s", strerror(-r));
	return r;
}

static int write_pidfile(struct daemon *daemon)
{
	FILE *file;

	if (!daemon->config->pidfile)
		return 0;
	file = fopen(daemon->config->pidfile, "we");
	if (!file || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file) != 0) {
		log_error("pidfile %s: %s", daemon->config->pidfile, strerror(errno));
		return -EIO;
	}
	daemon->pidfile_written = true;
	return 0;
}

static void daemon_init(struct daemon *daemon, struct config *config, int argc, char *argv[])
{
	memset(daemon, 0, sizeof(*daemon));
	daemon->loop = ev_loop_new(EVBACKEND_EPOLL | EVFLAG_NOENV);
	daemon->argc = argc;
	daemon->argv = argv;
	daemon->config = config;
	daemon->started_us = clock_us();
	daemon->gate.max = daemon_connections_max(config);
	daemon->signals.fd = -1;
	list_init(&daemon->listeners);
	list_init(&daemon->new_listeners);
	list_init(&daemon->reload_now);
	list_init(&daemon->reload_next);
	list_init(&daemon->scale_wishes);
	mailbox_init(&daemon->mailbox, daemon->loop);
	admission_init(&daemon->admission, config->queue);
	ev_timer_init(&daemon->stop_timer, stop_cb, 0., 0.);
}

/* The order: what can fail for reasons of the operator's first; nothing is accepted before a worker
 * is ready. */
static int set_up(struct daemon *daemon)
{
	int r = open_control(daemon);

	if (r == 0)
		r = open_listeners(daemon);
	if (r == 0)
		r = write_pidfile(daemon);
	if (r == 0)
		r = signals_open(&daemon->signals, daemon->loop, on_signal, daemon);
	if (r == 0)
		r = start_threads(daemon);
	return r;
}

static void clean_up(struct daemon *daemon)
{
	/* All of them first: they use the listeners, and write to each other. */
	for (unsigned i = 0; i < daemon->n_ios; i++)
		io_halt(&daemon->ios[i]);
	for (unsigned i = 0; i < daemon->n_ios; i++)
		io_fini(&daemon->ios[i]);
	free(daemon->ios);
	list_each (at, &daemon->listeners)
		listener_close(container_of(at, struct listener, link));
	list_each (at, &daemon->new_listeners)
		listener_close(container_of(at, struct listener, link));
	control_free(daemon->control);
	signals_close(&daemon->signals);
	ev_timer_stop(daemon->loop, &daemon->stop_timer);
	mailbox_fini(&daemon->mailbox);
	admission_fini(&daemon->admission);
	/* A start that was refused leaves the file of whoever runs alone. */
	if (daemon->pidfile_written)
		unlink(daemon->config->pidfile);
	free(daemon->last_reload.error);
	config_unref(daemon->new_config);
	config_unref(daemon->config);
	ev_loop_destroy(daemon->loop);
}

static void serve(struct daemon *daemon)
{
	fleet_init(&daemon->fleet, daemon->loop, daemon->ios, daemon->n_ios, raise_file_limit(),
		&daemon->admission, &fleet_ops, daemon);
	notify_init(&daemon->notify, daemon->loop, daemon->ios, daemon->n_ios);
	notify_busy(&daemon->notify, true);
	terminal_open(&daemon->terminal, daemon->loop, on_key_reload, daemon);
	fleet_boot(&daemon->fleet, daemon->config);
	/* A start that fails at once is over before the loop begins. */
	if (!daemon->stopped)
		ev_run(daemon->loop, 0);
	terminal_close(&daemon->terminal);
	notify_fini(&daemon->notify);
	fleet_fini(&daemon->fleet);
}

int daemon_run(struct config *config, int argc, char *argv[])
{
	struct daemon daemon;
	int exit_status = 1;

	daemon_init(&daemon, config, argc, argv);
	if (set_up(&daemon) == 0) {
		serve(&daemon);
		exit_status = daemon.exit_status;
		log_notice("stopped");
	}
	clean_up(&daemon);
	return exit_status;
}
