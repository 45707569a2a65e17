/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fd.h"
#include "master/log.h"
#include "master/thread.h"

#define MODULE_FD 4
/* Descriptors given to a child are first moved above all numbers that the child will have. */
#define SAFE_FD 16
/* Messages of a worker read at once; more than a socket with default buffers holds. */
#define MESSAGES_MAX 300

extern char **environ;

/* ---- The program ---- */

static bool find_beside(char *path, size_t room, const char *self, const char *relative)
{
	snprintf(path, room, "%s/%s", self, relative);
	return access(path, X_OK) == 0;
}

/* up-worker, beside this program where it was built or installed, else where it belongs. */
static const char *program_path(void)
{
	static char path[4096 + 64];
	char self[4096];
	ssize_t len;

	if (*path)
		return path;
	len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (len > 0) {
		self[len] = '\0';
		*strrchr(self, '/') = '\0';
		if (find_beside(path, sizeof(path), self, "../worker/up-worker") ||
			find_beside(path, sizeof(path), self, "../libexec/up-master/up-worker"))
			return path;
	}
	snprintf(path, sizeof(path), "%s/up-worker", UP_LIBEXECDIR);
	return path;
}

/* ---- Arguments and environment ---- */

struct strings {
	char **at;
	size_t n, room;
	bool failed;
};

/* Takes the string; NULL marks the list as failed. */
static void strings_add(struct strings *strings, char *take)
{
	char **at = strings->at;

	if (strings->n + 2 > strings->room) {
		strings->room = strings->room ? strings->room * 2 : 32;
		at = realloc(strings->at, strings->room * sizeof(char *));
	}
	if (!at || !take) {
		strings->failed = true;
		free(take);
		return;
	}
	strings->at = at;
	at[strings->n++] = take;
	at[strings->n] = NULL;
}

static void strings_fini(struct strings *strings)
{
	for (size_t i = 0; i < strings->n; i++)
		free(strings->at[i]);
	free(strings->at);
}

#define STRINGS_AUTO __attribute__((cleanup(strings_fini)))

__attribute__((format(printf, 2, 3))) static void strings_addf(
	struct strings *strings, const char *fmt, ...)
{
	va_list args;
	char *text;

	va_start(args, fmt);
	if (vasprintf(&text, fmt, args) < 0)
		text = NULL;
	va_end(args);
	strings_add(strings, text);
}

static void add_option(struct strings *strings, const char *name, const char *value)
{
	if (!value)
		return;
	strings_add(strings, strdup(name));
	strings_add(strings, strdup(value));
}

static void make_arguments(struct strings *strings, const struct worker_launch *launch)
{
	static const char *const forms[] = {
		[CONFIG_APP_HELLO] = "hello",
		[CONFIG_APP_MODULE] = "module",
		[CONFIG_APP_NATIVE] = "native",
	};
	const struct config *config = launch->config;

	strings_add(strings, strdup("up-worker"));
	add_option(strings, "--user", config->user);
	add_option(strings, "--group", config->group);
	add_option(strings, "--title", config->title);
	if (launch->module_fd >= 0)
		strings_addf(strings, "--module-fd=%d", MODULE_FD);
	strings_add(strings, strdup(forms[config->app_kind]));
	for (unsigned i = 0; i < config->app.n; i++)
		strings_add(strings, strdup(config->app.at[i]));
}

/* What systemd told the master is not meant for its children: sd_notify(3), sd_listen_fds(3). */
static bool is_ours(const char *entry)
{
	static const char *const names[] = { "NOTIFY_SOCKET=", "LISTEN_FDS=", "LISTEN_PID=",
		"LISTEN_FDNAMES=", "WATCHDOG_USEC=", "WATCHDOG_PID=", WIRE_ENV_GENERATION "=",
		WIRE_ENV_WORKER_ID "=", WIRE_ENV_MASTER_PID "=" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strncmp(entry, names[i], strlen(names[i])) == 0)
			return true;
	return false;
}

static bool is_set(const struct config_strings *env, const char *entry)
{
	size_t name_len = strcspn(entry, "=") + 1;

	for (unsigned i = 0; i < env->n; i++)
		if (strncmp(env->at[i], entry, name_len) == 0)
			return true;
	return false;
}

static void make_environment(struct strings *strings, const struct worker_launch *launch)
{
	const struct config_strings *env = &launch->config->env;

	for (char **at = environ; *at; at++)
		if (!is_ours(*at) && !is_set(env, *at))
			strings_add(strings, strdup(*at));
	for (unsigned i = 0; i < env->n; i++)
		strings_add(strings, strdup(env->at[i]));
	strings_addf(strings, WIRE_ENV_GENERATION "=%u", launch->generation);
	strings_addf(strings, WIRE_ENV_WORKER_ID "=%u", launch->id);
	strings_addf(strings, WIRE_ENV_MASTER_PID "=%d", (int)getpid());
}

/* ---- Spawning ---- */

/* Descriptors of the child, each above SAFE_FD. */
struct child_fds {
	int in, out, err, channel, module;
};

static void child_fds_fini(struct child_fds *fds)
{
	fd_close(&fds->in);
	fd_close(&fds->out);
	fd_close(&fds->err);
	fd_close(&fds->channel);
	fd_close(&fds->module);
}

static int move_up(int *fd)
{
	int moved = fcntl(*fd, F_DUPFD_CLOEXEC, SAFE_FD);

	if (moved < 0)
		return -errno;
	fd_close(fd);
	*fd = moved;
	return 0;
}

/* The reading end of a pipe is non-blocking; the child's end is as any program expects it. */
static int make_pipe(int *out_read, int *out_write)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	*out_read = ends[0];
	*out_write = ends[1];
	if (fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	return move_up(out_write);
}

static int spawn(struct worker *worker, const struct worker_launch *launch, struct child_fds *fds)
{
	STRINGS_AUTO struct strings arguments = { 0 }, environment = { 0 };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	int r;

	make_arguments(&arguments, launch);
	make_environment(&environment, launch);
	if (arguments.failed || environment.failed)
		return -ENOMEM;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setpgroup(&attributes, 0);
	posix_spawnattr_setflags(&attributes,
		POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, fds->in, STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&actions, fds->out, STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&actions, fds->err, STDERR_FILENO);
	posix_spawn_file_actions_adddup2(&actions, fds->channel, WIRE_CONTROL_FD);
	if (fds->module >= 0)
		posix_spawn_file_actions_adddup2(&actions, fds->module, MODULE_FD);
	if (launch->directory_fd >= 0)
		posix_spawn_file_actions_addfchdir_np(&actions, launch->directory_fd);
	posix_spawn_file_actions_addclosefrom_np(
		&actions, fds->module >= 0 ? MODULE_FD + 1 : MODULE_FD);
	r = posix_spawn(
		&worker->pid, program_path(), &actions, &attributes, arguments.at, environment.at);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	return -r;
}

static int send_setup(struct worker *worker, const struct worker_launch *launch)
{
	struct wire_batch batch;
	struct wire_setup *setup;
	int r = -ENOMEM;

	wire_batch_init(&batch);
	setup = wire_batch_add(&batch, WIRE_SETUP, 0, sizeof(*setup), -1);
	if (setup) {
		struct wire_record record = setup->record;

		*setup = *launch->setup;
		setup->record = record;
		batch.n_fds = 2 * setup->n_channels;
		memcpy(batch.fds, launch->setup_fds, batch.n_fds * sizeof(int));
		r = wire_send(worker->control_fd, &batch, 0);
	}
	wire_batch_fini(&batch);
	return r;
}

static int prepare(struct worker *worker, const struct worker_launch *launch, struct child_fds *fds,
	int *out_read, int *err_read)
{
	int r;

	fds->in = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (fds->in < 0)
		return -errno;
	r = move_up(&fds->in);
	if (r == 0)
		r = make_pipe(out_read, &fds->out);
	if (r == 0)
		r = make_pipe(err_read, &fds->err);
	if (r == 0)
		r = wire_channel_new(&worker->control_fd, &fds->channel);
	if (r == 0)
		r = move_up(&fds->channel);
	if (r == 0 && launch->module_fd >= 0) {
		fds->module = fcntl(launch->module_fd, F_DUPFD_CLOEXEC, SAFE_FD);
		r = fds->module < 0 ? -errno : 0;
	}
	/* Before the process exists: it finds its set-up whenever it looks. */
	return r == 0 ? send_setup(worker, launch) : r;
}

/* ---- Its life ---- */

static void describe_exit(struct worker *worker, const siginfo_t *info)
{
	if (info->si_code == CLD_EXITED)
		snprintf(worker->exit_text, sizeof(worker->exit_text), "exited with status %d",
			info->si_status);
	else
		snprintf(worker->exit_text, sizeof(worker->exit_text),
			"was killed by signal %d (%s)", info->si_status,
			strsignal(info->si_status));
}

static void control_cb(struct ev_loop *loop, ev_io *watcher, int events);

static void pid_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	struct worker *worker = container_of(watcher, struct worker, pid_watcher);
	siginfo_t info = { 0 };

	(void)events;
	/* Its group before the zombie is gone: until then nobody else can have the number. */
	kill(-worker->pid, SIGKILL);
	if (waitid(P_PIDFD, (id_t)worker->pid_fd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
		return;
	ev_io_stop(loop, &worker->pid_watcher);
	worker->ended = true;
	/* Its last words came before its end. */
	if (worker->control_fd >= 0)
		control_cb(loop, &worker->control_watcher, EV_READ);
	output_fini(&worker->out);
	output_fini(&worker->err);
	describe_exit(worker, &info);
	worker->ops->on_dead(worker);
}

static void take_record(struct worker *worker, const struct wire_record *record)
{
	const struct wire_number *number = (const void *)record;
	size_t len;

	switch (record->type) {
	case WIRE_READY:
		/* Once; and a dead one is not ready, even if it said so with its last breath. */
		if (!worker->said_ready && !worker->ended)
			worker->ops->on_ready(worker);
		worker->said_ready = true;
		break;
	case WIRE_PONG:
		worker->ping_us = 0;
		break;
	case WIRE_CHILD:
		worker->app_pid = (pid_t)number->number;
		break;
	case WIRE_BOOT_FAILED:
		len = record->len - sizeof(*record);
		log_escape(worker->boot_text, sizeof(worker->boot_text), (const char *)(record + 1),
			len);
		break;
	default:
		log_warn("worker %u (generation %u): sent an unexpected record on its control "
			 "channel",
			worker->id, worker->generation);
		worker_kill(worker);
	}
}

static void close_control(struct worker *worker)
{
	ev_io_stop(worker->loop, &worker->control_watcher);
	fd_close(&worker->control_fd);
}

static void control_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	struct worker *worker = container_of(watcher, struct worker, control_watcher);
	const struct wire_record *record;
	struct wire_inbox inbox;
	int r = -EAGAIN, error = 0;
	unsigned n = 0;

	(void)loop, (void)events;
	if (wire_inbox_init(&inbox) < 0)
		return;
	/* So many in a turn: one that floods must not hold up the control thread. */
	while (n++ < MESSAGES_MAX &&
		(r = wire_receive(worker->control_fd, &inbox)) == WIRE_MESSAGE) {
		while ((record = wire_next(&inbox, &error)))
			take_record(worker, record);
		if (inbox.n_fds > 0 || inbox.fds_lost)
			error = -EPROTO;
		if (error < 0)
			break;
	}
	wire_inbox_fini(&inbox);
	if ((r == -EAGAIN || r == WIRE_MESSAGE) && error == 0)
		return;
	if (error == -EPROTO || r == -EPROTO)
		log_warn("worker %u (generation %u): sent a malformed message on its control "
			 "channel, killing it",
			worker->id, worker->generation);
	close_control(worker);
	/* One that was told to end closes it on its way out. Any other either dies right now, or
	 * can't be spoken to any more: the pidfd tells the rest. */
	if (worker->state != WORKER_DRAINING)
		worker_kill(worker);
}

int worker_start(struct worker *worker, struct ev_loop *loop, const struct worker_ops *ops,
	const struct worker_launch *launch, char **out_error)
{
	__attribute__((cleanup(child_fds_fini))) struct child_fds fds = { -1, -1, -1, -1, -1 };
	FD_AUTO int out_read = -1;
	FD_AUTO int err_read = -1;
	char prefix[64];
	int r;

	worker->loop = loop;
	worker->ops = ops;
	worker->id = launch->id;
	worker->generation = launch->generation;
	worker->pid_fd = worker->control_fd = -1;
	worker->started_us = clock_us();
	r = prepare(worker, launch, &fds, &out_read, &err_read);
	if (r == 0)
		r = spawn(worker, launch, &fds);
	if (r < 0) {
		if (asprintf(out_error, "can't start %s: %s", program_path(), strerror(-r)) < 0)
			*out_error = NULL;
		fd_close(&worker->control_fd);
		return r;
	}
	worker->pid_fd = (int)syscall(SYS_pidfd_open, worker->pid, 0);
	if (worker->pid_fd < 0) {
		r = -errno;
		kill(worker->pid, SIGKILL);
		waitpid(worker->pid, NULL, 0);
		if (asprintf(out_error, "can't watch a worker: %s", strerror(-r)) < 0)
			*out_error = NULL;
		fd_close(&worker->control_fd);
		return r;
	}
	snprintf(prefix, sizeof(prefix), "worker %u (generation %u): ", worker->id,
		worker->generation);
	output_init(&worker->out, loop, &out_read, STDOUT_FILENO, NULL, prefix);
	output_init(&worker->err, loop, &err_read, STDERR_FILENO, &worker->tail, prefix);
	ev_io_init(&worker->pid_watcher, pid_cb, worker->pid_fd, EV_READ);
	ev_io_start(loop, &worker->pid_watcher);
	ev_io_init(&worker->control_watcher, control_cb, worker->control_fd, EV_READ);
	ev_io_start(loop, &worker->control_watcher);
	worker->state = WORKER_STARTING;
	return 0;
}

void worker_fini(struct worker *worker)
{
	ev_timer_stop(worker->loop, &worker->deadline);
	ev_timer_stop(worker->loop, &worker->probe);
	ev_io_stop(worker->loop, &worker->pid_watcher);
	if (worker->control_fd >= 0)
		close_control(worker);
	fd_close(&worker->pid_fd);
}

void worker_signal(struct worker *worker, int signal)
{
	if (worker->state != WORKER_DEAD)
		syscall(SYS_pidfd_send_signal, worker->pid_fd, signal, NULL, 0);
}

void worker_kill(struct worker *worker)
{
	if (worker->state == WORKER_DEAD)
		return;
	/* Until it is reaped nobody else can have the number. */
	kill(-worker->pid, SIGKILL);
	worker_signal(worker, SIGKILL);
}

void worker_ping(struct worker *worker)
{
	struct wire_batch batch;
	struct wire_number *ping;

	if (worker->control_fd < 0)
		return;
	wire_batch_init(&batch);
	ping = wire_batch_add(&batch, WIRE_PING, 0, sizeof(*ping), -1);
	if (ping) {
		ping->number = clock_us();
		/* A full channel is no answer either. */
		if (wire_send(worker->control_fd, &batch, 0) == 0 || worker->ping_us == 0)
			worker->ping_us = clock_us();
	}
	wire_batch_fini(&batch);
}
