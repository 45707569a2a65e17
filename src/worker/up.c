/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "worker/up.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/fd.h"
#include "worker/channel.h"
#include "worker/request.h"

void worker_die(const char *fmt, ...)
{
	char why[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, sizeof(why), fmt, args);
	va_end(args);
	fprintf(stderr, "worker %d: %s\n", (int)getpid(), why);
	_exit(1);
}

void worker_later(struct up_worker *worker, struct later *later)
{
	if (!list_empty(&later->link))
		return;
	list_append(&worker->laters, &later->link);
}

/* What is put off meanwhile comes in the next turn, which begins at once. */
static void worker_run_laters(struct up_worker *w)
{
	struct list now;
	struct list *first;

	list_init(&now);
	list_splice(&now, &w->laters);
	while ((first = list_pop(&now))) {
		struct later *later = container_of(first, struct later, link);

		later->run(later);
	}
	if (list_empty(&w->laters))
		ev_idle_stop(w->loop, &w->idle);
	else
		ev_idle_start(w->loop, &w->idle);
}

void worker_close(struct up_worker *worker, int *take_fd)
{
	int fd = fd_take(take_fd);

	if (fd < 0)
		return;
	if (worker->n_closing == WIRE_FDS_MAX)
		worker_close_all(worker);
	worker->closing[worker->n_closing++] = fd;
}

static int compare_ints(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Descriptors that came together mostly leave together: runs of them cost one call. */
void worker_close_all(struct up_worker *worker)
{
	int *fds = worker->closing;
	unsigned n = worker->n_closing, i, end;

	for (i = 1; i < n && fds[i - 1] < fds[i]; i++)
		;
	if (i < n)
		qsort(fds, n, sizeof(*fds), compare_ints);
	for (i = 0; i < n; i = end) {
		for (end = i + 1; end < n && fds[end] == fds[end - 1] + 1; end++)
			;
		if (end - i > 1 && close_range((unsigned)fds[i], (unsigned)fds[end - 1], 0) == 0)
			continue;
		/* One, or a sandbox that does not know the call. */
		while (i < end)
			close(fds[i++]);
	}
	worker->n_closing = 0;
}

const char *worker_date(struct up_worker *worker)
{
	static const char days[][4] = { "Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat" };
	static const char months[][4] = { "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug",
		"Sep", "Oct", "Nov", "Dec" };
	time_t now = (time_t)ev_now(worker->loop);
	struct tm tm;

	if (worker->date_at == now)
		return worker->date;
	gmtime_r(&now, &tm);
	/* Not strftime(): an application may have set a locale. */
	snprintf(worker->date, sizeof(worker->date),
		"Date: %s, %02d %s %04d %02d:%02d:%02d GMT\r\n", days[tm.tm_wday], tm.tm_mday,
		months[tm.tm_mon], (tm.tm_year + 1900) % 10000, tm.tm_hour, tm.tm_min, tm.tm_sec);
	worker->date_at = now;
	return worker->date;
}

/* ---- The control channel ---- */

static void control_post(struct up_worker *w, enum wire_type type, uint64_t number)
{
	struct wire_number *record =
		wire_batch_add(&w->control.batch, type, 0, sizeof(*record), -1);

	if (!record)
		worker_die("out of memory");
	record->number = number;
}

static void say_ready(struct up_worker *w)
{
	if (w->ready_said)
		return;
	w->ready_said = true;
	control_post(w, WIRE_READY, 0);
}

static void control_message(struct up_worker *w)
{
	const struct wire_record *record;
	int error;

	while ((record = wire_next(&w->inbox, &error))) {
		const struct wire_number *number = (const void *)record;

		if (record->type != WIRE_PING)
			worker_die("the control channel: unexpected record %u", record->type);
		control_post(w, WIRE_PONG, number->number);
	}
	if (error < 0)
		worker_die("the control channel: %s", strerror(-error));
}

static void control_read_cb(struct ev_loop *loop, ev_io *io, int revents)
{
	struct channel *control = container_of(io, struct channel, read_io);
	int r = wire_receive(control->fd, &control->worker->inbox);

	(void)loop;
	(void)revents;
	if (r == WIRE_EOF)
		_exit(1); /* the master is gone */
	if (r == WIRE_MESSAGE)
		control_message(control->worker);
	else if (r != -EAGAIN)
		worker_die("the control channel: %s", strerror(-r));
}

/* ---- The turn of the loop ---- */

static bool is_done(const struct up_worker *w)
{
	if (w->n_last < w->n_channels || w->n_held > 0)
		return false;
	for (unsigned i = 0; i < w->n_channels; i++)
		if (!channel_is_empty(&w->channels[i]))
			return false;
	return true;
}

static void prepare_cb(struct ev_loop *loop, ev_prepare *prepare, int revents)
{
	struct up_worker *w = container_of(prepare, struct up_worker, prepare);

	(void)revents;
	worker_run_laters(w);
	worker_close_all(w);
	for (unsigned i = 0; i < w->n_channels; i++)
		channel_flush(&w->channels[i]);
	channel_flush(&w->control);
	if (w->ending || is_done(w))
		ev_break(loop, EVBREAK_ALL);
}

/* Active only to keep the loop from sleeping. */
static void idle_cb(struct ev_loop *loop, ev_idle *idle, int revents)
{
	(void)loop;
	(void)idle;
	(void)revents;
}

static void term_cb(struct ev_loop *loop, ev_signal *term, int revents)
{
	struct up_worker *w = container_of(term, struct up_worker, term);

	(void)loop;
	(void)revents;
	w->ending = true;
}

void worker_last(struct up_worker *worker)
{
	if (++worker->n_last == worker->n_channels && worker->on_drain)
		worker->on_drain(worker, worker->drain_data);
}

/* ---- Boot ---- */

static bool is_channel(int fd)
{
	int type = 0;
	socklen_t len = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_SEQPACKET;
}

static unsigned number_from_env(const char *name)
{
	const char *text = getenv(name);

	return text ? (unsigned)strtoul(text, NULL, 10) : 0;
}

static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* The terminal's Ctrl+C and a reload of the whole group are the master's business. */
static void set_signals(void)
{
	static const int ignored[] = { SIGPIPE, SIGINT, SIGHUP, SIGUSR2 };

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		signal(ignored[i], SIG_IGN);
}

static int open_channel(struct up_worker *w, struct channel *ch)
{
	FD_AUTO int fd = wire_take_fd(&w->inbox);
	FD_AUTO int page_fd = wire_take_fd(&w->inbox);

	if (fd < 0 || page_fd < 0)
		return -EMFILE;
	channel_init(ch, w, fd_take(&fd));
	return channel_open(ch, &page_fd, w->setup.n_slots);
}

static int open_channels(struct up_worker *w)
{
	if (w->setup.n_channels == 0 || w->setup.n_channels > WIRE_CHANNELS_MAX)
		return -EPROTO;
	w->channels = calloc(w->setup.n_channels, sizeof(*w->channels));
	if (!w->channels)
		return -ENOMEM;
	for (unsigned i = 0; i < w->setup.n_channels; i++) {
		int r = open_channel(w, &w->channels[i]);

		if (r < 0)
			return r;
		w->n_channels++;
	}
	return 0;
}

/* Waits for the master's first message. */
static int receive_setup(struct up_worker *w)
{
	struct pollfd pollfd = { .fd = WIRE_CONTROL_FD, .events = POLLIN };
	const struct wire_record *record;
	int r, error;

	do {
		poll(&pollfd, 1, -1);
		r = wire_receive(WIRE_CONTROL_FD, &w->inbox);
	} while (r == -EAGAIN);
	if (r == WIRE_EOF)
		_exit(1); /* the master is gone */
	if (r < 0)
		return r;
	record = wire_next(&w->inbox, &error);
	if (!record || record->type != WIRE_SETUP)
		return -EPROTO;
	memcpy(&w->setup, record, sizeof(w->setup));
	return open_channels(w);
}

static void init_deadlines(struct up_worker *w)
{
	deadlines_init(
		&w->body_deadlines, w->loop, w->setup.body_timeout_ms / 1e3, request_body_expired);
	deadlines_init(
		&w->send_deadlines, w->loop, w->setup.send_timeout_ms / 1e3, request_send_expired);
	deadlines_init(&w->drain_deadlines, w->loop, UP_DRAIN_S, request_drain_expired);
	deadlines_init(&w->departure_deadlines, w->loop, UP_DEPARTURE_S, request_departure_expired);
	deadlines_init(
		&w->close_deadlines, w->loop, w->setup.send_timeout_ms / 1e3, socket_close_expired);
}

static int init_loop(struct up_worker *w)
{
	w->loop = ev_default_loop(EVBACKEND_EPOLL | EVFLAG_NOENV);
	if (!w->loop)
		return -EIO;
	ev_prepare_init(&w->prepare, prepare_cb);
	/* After those of the application, which may answer in one. */
	ev_set_priority(&w->prepare, EV_MINPRI);
	ev_prepare_start(w->loop, &w->prepare);
	ev_idle_init(&w->idle, idle_cb);
	ev_signal_init(&w->term, term_cb, SIGTERM);
	ev_signal_start(w->loop, &w->term);
	return poller_init(&w->poller, w->loop);
}

static int init_memory(struct up_worker *w)
{
	list_init(&w->laters);
	list_init(&w->pool);
	w->date_at = -1;
	w->scratch = malloc(UP_READ_MAX);
	w->sink = malloc(UP_READ_MAX);
	if (!w->scratch || !w->sink || !buf_reserve(&w->out, UP_WHOLE_MAX + 1024))
		return -ENOMEM;
	return wire_inbox_init(&w->inbox);
}

static int worker_init(struct up_worker *w)
{
	int r = init_memory(w);

	if (r == 0)
		r = init_loop(w);
	if (r < 0)
		return r;
	/* The application's children must not keep it. */
	fcntl(WIRE_CONTROL_FD, F_SETFD, FD_CLOEXEC);
	channel_init(&w->control, w, WIRE_CONTROL_FD);
	ev_set_cb(&w->control.read_io, control_read_cb);
	r = receive_setup(w);
	if (r < 0)
		return r;
	init_deadlines(w);
	ev_io_start(w->loop, &w->control.read_io);
	return 0;
}

static void lose_unfinished(struct up_worker *w)
{
	for (unsigned i = 0; i < w->n_channels; i++)
		for (uint32_t slot = 0; slot < w->channels[i].n_used; slot++)
			if (w->channels[i].lent[slot])
				request_lose(w->channels[i].lent[slot]);
}

static void worker_fini(struct up_worker *w)
{
	lose_unfinished(w);
	for (unsigned i = 0; i < w->n_channels; i++)
		channel_fini(&w->channels[i]);
	free(w->channels);
	channel_fini(&w->control);
	request_pool_fini(w);
	deadlines_fini(&w->body_deadlines);
	deadlines_fini(&w->send_deadlines);
	deadlines_fini(&w->drain_deadlines);
	deadlines_fini(&w->departure_deadlines);
	deadlines_fini(&w->close_deadlines);
	poller_fini(&w->poller);
	/* The loop is the application's too, and may go on. */
	ev_prepare_stop(w->loop, &w->prepare);
	ev_idle_stop(w->loop, &w->idle);
	ev_signal_stop(w->loop, &w->term);
	wire_inbox_fini(&w->inbox);
	buf_fini(&w->out);
	free(w->scratch);
	free(w->sink);
	free(w);
}

static void say_boot_failed(struct up_worker *w, int app_result)
{
	struct wire_record *record;
	char why[64];
	int len = snprintf(why, sizeof(why), "up_app() returned %d", app_result);

	fprintf(stderr, "worker %u: %s\n", w->id, why);
	record = wire_batch_add(
		&w->control.batch, WIRE_BOOT_FAILED, 0, sizeof(*record) + (size_t)len, -1);
	if (!record)
		return;
	memcpy(record + 1, why, (size_t)len);
	channel_flush(&w->control);
}

/* Only told: what becomes of their clients the master decides when this process is dead. */
static void tell_unfinished(struct up_worker *w)
{
	for (unsigned i = 0; i < w->n_channels; i++)
		for (uint32_t slot = 0; slot < w->channels[i].n_used; slot++)
			if (w->channels[i].lent[slot])
				request_tell(w->channels[i].lent[slot], UP_END_CANCELLED);
}

static void worker_serve(struct up_worker *w)
{
	if (w->setup.assume_ready && !w->ready_deferred)
		say_ready(w);
	while (!w->ending && !is_done(w))
		ev_run(w->loop, 0);
	tell_unfinished(w);
	if (w->on_shutdown)
		w->on_shutdown(w, w->shutdown_data);
}

int up_worker_run(int (*app)(struct up_worker *worker), int argc, char *argv[])
{
	struct up_worker *w;
	int r;

	if (!getenv(WIRE_ENV_MASTER_PID) || !is_channel(WIRE_CONTROL_FD)) {
		fprintf(stderr, "%s: is started by up-master only\n",
			argc > 0 ? argv[0] : "worker");
		return 1;
	}
	w = calloc(1, sizeof(*w));
	if (!w)
		worker_die("out of memory");
	w->id = number_from_env(WIRE_ENV_WORKER_ID);
	w->generation = number_from_env(WIRE_ENV_GENERATION);
	w->argc = argc;
	w->argv = argv;
	raise_file_limit();
	set_signals();
	r = worker_init(w);
	if (r < 0)
		worker_die("can't start: %s", strerror(-r));
	r = app(w);
	if (r == 0)
		worker_serve(w);
	else
		say_boot_failed(w, r);
	worker_fini(w);
	return r == 0 ? 0 : 1;
}

/* ---- What an application asks and sets ---- */

struct ev_loop *up_worker_loop(struct up_worker *worker)
{
	return worker->loop;
}

unsigned up_worker_id(const struct up_worker *worker)
{
	return worker->id;
}

unsigned up_worker_generation(const struct up_worker *worker)
{
	return worker->generation;
}

int up_worker_argc(const struct up_worker *worker)
{
	return worker->argc;
}

char **up_worker_argv(const struct up_worker *worker)
{
	return worker->argv;
}

void up_on_request(
	struct up_worker *worker, void (*fn)(struct up_request *request, void *data), void *data)
{
	worker->on_request = fn;
	worker->request_data = data;
}

void up_on_drain(
	struct up_worker *worker, void (*fn)(struct up_worker *worker, void *data), void *data)
{
	worker->on_drain = fn;
	worker->drain_data = data;
}

void up_on_shutdown(
	struct up_worker *worker, void (*fn)(struct up_worker *worker, void *data), void *data)
{
	worker->on_shutdown = fn;
	worker->shutdown_data = data;
}

void up_worker_defer_ready(struct up_worker *worker)
{
	worker->ready_deferred = true;
}

void up_worker_ready(struct up_worker *worker)
{
	say_ready(worker);
}
