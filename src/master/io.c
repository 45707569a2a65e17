/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/fd.h"
#include "master/log.h"
#include "master/probe.h"

/* Connections accepted before the loop looks at others. */
#define ACCEPT_MAX 64
/* Where accept(2) fails for want of descriptors or memory that others hold, no event tells of
 * relief. */
#define SHORTAGE_S 0.1

/* What the control thread asked for; it goes to the I/O thread and comes back. */
struct order {
	struct mail mail;
	struct io *io;
	io_done *done;
	void *data;
	int result;
	struct seat *seat;
	int fd;
	struct wire_slot *slots;
	uint32_t n_slots;
	struct listener *listener;
	struct settings settings;
	char *path;
	unsigned n_seats;
	struct seat *seats[];
};

struct acceptor {
	struct list link; /* of io->acceptors */
	struct io *io;
	struct listener *listener;
	int fd; /* the listener's */
	ev_io watcher;
};

/* ---- Orders ---- */

static void answered_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);

	if (order->done)
		order->done(order->data, order->result);
	free(order->path);
	free(order);
}

static void order_answer(struct order *order, int result)
{
	order->result = result;
	order->mail.run = answered_run;
	mailbox_send(order->io->control, &order->mail);
}

static struct order *order_new(struct io *io, unsigned n_seats, io_done *done, void *data)
{
	struct order *order = calloc(1, sizeof(*order) + n_seats * sizeof(struct seat *));

	/* The control thread can't go on with threads that disagree; nothing is lost by systemd's
	 * restart that would not be lost by serving on half. */
	if (!order) {
		log_error("out of memory");
		log_stop();
		_exit(1);
	}
	order->io = io;
	order->done = done;
	order->data = data;
	order->fd = -1;
	return order;
}

static void order_send(struct order *order, void (*run)(struct mail *mail))
{
	order->mail.run = run;
	mailbox_send(&order->io->thread.mailbox, &order->mail);
}

/* ---- Accepting ---- */

static void pause_accepting(struct io *io)
{
	io->accepting = false;
	list_each (at, &io->acceptors)
		ev_io_stop(io->thread.loop, &container_of(at, struct acceptor, link)->watcher);
}

static void go_on_accepting(struct io *io)
{
	if (io->conns.stopping)
		return;
	ev_timer_stop(io->thread.loop, &io->shortage);
	io->accepting = true;
	list_each (at, &io->acceptors)
		ev_io_start(io->thread.loop, &container_of(at, struct acceptor, link)->watcher);
}

static void shortage_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	(void)loop, (void)events;
	go_on_accepting(container_of(watcher, struct io, shortage));
}

static void open_run(struct mail *mail)
{
	struct io *io = container_of(mail, struct io, open_mail);

	atomic_store(&io->open_mail_sent, false);
	go_on_accepting(io);
}

static bool gate_enter(struct gate *gate)
{
	if (atomic_fetch_add(&gate->n_open, 1) < atomic_load(&gate->max))
		return true;
	atomic_fetch_sub(&gate->n_open, 1);
	atomic_store(&gate->shut, true);
	return false;
}

/* Whoever waits at the gate looks again. Any thread. */
static void gate_open(struct gate *gate, struct io *ios, unsigned n_ios)
{
	if (!atomic_load(&gate->shut) || !atomic_exchange(&gate->shut, false))
		return;
	for (unsigned i = 0; i < n_ios; i++)
		if (!atomic_exchange(&ios[i].open_mail_sent, true))
			mailbox_send(&ios[i].thread.mailbox, &ios[i].open_mail);
}

static void gate_leave(struct io *io)
{
	atomic_fetch_sub(&io->gate->n_open, 1);
	gate_open(io->gate, io->ios, io->n_ios);
}

static void begin_conn(struct io *io, int *take_fd, const struct sockaddr *peer, socklen_t len)
{
	if (conn_new(&io->conns, take_fd, peer, len) == 0)
		return;
	counter_add(&io->thread.counters.n_dropped, 1);
	gate_leave(io);
}

/* A connection accepted by one thread for another. */
struct dealt {
	struct mail mail;
	struct io *io;
	int fd;
	socklen_t peer_len;
	struct sockaddr_storage peer;
};

static void dealt_run(struct mail *mail)
{
	struct dealt *dealt = container_of(mail, struct dealt, mail);

	begin_conn(dealt->io, &dealt->fd, (struct sockaddr *)&dealt->peer, dealt->peer_len);
	free(dealt);
}

static void deal(struct io *from, struct io *to, int *take_fd, const struct sockaddr_storage *peer,
	socklen_t len)
{
	struct dealt *dealt = to == from ? NULL : malloc(sizeof(*dealt));

	if (!dealt) {
		begin_conn(from, take_fd, (const struct sockaddr *)peer, len);
		return;
	}
	dealt->io = to;
	dealt->fd = fd_take(take_fd);
	dealt->peer = *peer;
	dealt->peer_len = len;
	dealt->mail.run = dealt_run;
	mailbox_send(&to->thread.mailbox, &dealt->mail);
}

static struct io *whose(struct acceptor *acceptor)
{
	struct io *io = acceptor->io;

	/* Another thread may have closed its last connection already when this one stops. */
	if (acceptor->listener->n_fds > 1 || io->conns.stopping)
		return io;
	return &io->ios[io->next_io++ % io->n_ios];
}

/* Returns 0, -EAGAIN where nobody waits, or -errno. */
static int accept_one(struct acceptor *acceptor)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(peer);
	int fd =
		accept4(acceptor->fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return -errno;
	acceptor->io->shortage_logged = false;
	deal(acceptor->io, whose(acceptor), &fd, &peer, len);
	return 0;
}

/* accept(2): errors that are the one connection's own. */
static bool is_passing(int r)
{
	return r == -EINTR || r == -ECONNABORTED || r == -EPROTO || r == -EPERM || r == -ENETDOWN ||
	       r == -EHOSTUNREACH || r == -ENETUNREACH || r == -EOPNOTSUPP;
}

static void shortage(struct io *io, int r)
{
	if (!io->shortage_logged)
		log_warn("thread %u: can't accept: %s; trying again", io->thread.id, strerror(-r));
	io->shortage_logged = true;
	pause_accepting(io);
	ev_timer_set(&io->shortage, SHORTAGE_S, 0.);
	ev_timer_start(io->thread.loop, &io->shortage);
}

/* Whether there is room, as things are. Where not, accepting pauses until there is. */
static bool has_room(struct io *io)
{
	if (gate_enter(io->gate))
		return true;
	pause_accepting(io);
	/* A close between the two looks has not seen us, and our own try may have kept another
	 * thread out: then nobody else would tell. */
	if (atomic_load(&io->gate->n_open) < atomic_load(&io->gate->max))
		gate_open(io->gate, io->ios, io->n_ios);
	return false;
}

static void accept_some(struct acceptor *acceptor, unsigned n, bool is_last)
{
	struct io *io = acceptor->io;

	while (n-- > 0) {
		int r;

		/* The last of a listener are let in past the limit: else they would be reset. */
		if (is_last)
			atomic_fetch_add(&io->gate->n_open, 1);
		else if (!has_room(io))
			return;
		r = accept_one(acceptor);
		if (r == 0)
			continue;
		gate_leave(io);
		if (r == -EAGAIN)
			return;
		if (!is_passing(r)) {
			shortage(io, r);
			return;
		}
	}
}

static void accept_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	(void)loop, (void)events;
	accept_some(container_of(watcher, struct acceptor, watcher), ACCEPT_MAX, false);
}

static int acceptor_new(struct io *io, struct listener *listener, int fd)
{
	struct acceptor *acceptor = calloc(1, sizeof(*acceptor));

	if (!acceptor)
		return -ENOMEM;
	acceptor->io = io;
	acceptor->listener = listener;
	acceptor->fd = fd;
	ev_io_init(&acceptor->watcher, accept_cb, fd, EV_READ);
	list_append(&io->acceptors, &acceptor->link);
	if (io->accepting)
		ev_io_start(io->thread.loop, &acceptor->watcher);
	return 0;
}

static void acceptor_free(struct acceptor *acceptor)
{
	ev_io_stop(acceptor->io->thread.loop, &acceptor->watcher);
	list_remove(&acceptor->link);
	free(acceptor);
}

/* ---- What happens on the I/O thread ---- */

static void add_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);

	order_answer(order, round_add(&order->io->conns.round, order->seat, &order->fd,
				    &order->slots, order->n_slots));
}

static void set_round_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);
	struct io *io = order->io;

	conns_set(&io->conns, &order->settings);
	order_answer(order, round_set(&io->conns.round, order->seats, order->n_seats));
}

static void bury_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);

	round_bury(&order->io->conns.round, order->seat);
	order_answer(order, 0);
}

static void listen_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);
	struct io *io = order->io;
	struct listener *listener = order->listener;

	if (listener->n_fds > 1)
		order_answer(order, acceptor_new(io, listener, listener->fds[io->thread.id]));
	else if (io->thread.id == 0)
		order_answer(order, acceptor_new(io, listener, listener->fds[0]));
	else
		order_answer(order, 0);
}

static struct acceptor *find_acceptor(struct io *io, const struct listener *listener)
{
	list_each (at, &io->acceptors)
		if (container_of(at, struct acceptor, link)->listener == listener)
			return container_of(at, struct acceptor, link);
	return NULL;
}

static void shutdown_unix(int fd)
{
	int domain = 0;
	socklen_t len = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX)
		shutdown(fd, SHUT_RD);
}

/*
 * Closing a listener resets those that wait in its queue; an inherited one goes on elsewhere. It is
 * closed here and at once, so that nobody comes between the last look and the close. A UNIX socket
 * that is shut down takes nobody new and still gives out its queue.
 */
static void stop_accepting(struct acceptor *acceptor)
{
	struct listener *listener = acceptor->listener;
	int *fd = &listener->fds[listener->n_fds > 1 ? acceptor->io->thread.id : 0];

	if (listener->inherited) {
		acceptor_free(acceptor);
		return;
	}
	shutdown_unix(*fd);
	accept_some(acceptor, UINT32_MAX, true);
	acceptor_free(acceptor);
	fd_close(fd);
}

static void unlisten_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);
	struct acceptor *acceptor = find_acceptor(order->io, order->listener);

	if (acceptor)
		stop_accepting(acceptor);
	order_answer(order, 0);
}

static void check_stopped(struct io *io)
{
	struct order *order = io->stop_order;

	if (!order || conns_n_open(&io->conns) > 0)
		return;
	io->stop_order = NULL;
	order_answer(order, 0);
}

static void stop_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);
	struct io *io = order->io;

	io->conns.stopping = true;
	io->accepting = false;
	list_each (at, &io->acceptors)
		stop_accepting(container_of(at, struct acceptor, link));
	ev_timer_stop(io->thread.loop, &io->shortage);
	io->stop_order = order;
	conns_stop(&io->conns);
	check_stopped(io);
}

static void probed(void *data, int status)
{
	order_answer(data, status);
}

static void probe_run(struct mail *mail)
{
	struct order *order = container_of(mail, struct order, mail);
	struct io *io = order->io;
	int r = order->path ? probe_start(&io->conns.round, order->seat, order->path, &io->probes,
				      probed, order)
			    : -ENOMEM;

	if (r < 0)
		order_answer(order, 0);
}

static void ping_run(struct mail *mail)
{
	order_answer(container_of(mail, struct order, mail), 0);
}

/* ---- What the control thread asks ---- */

void io_add(struct io *io, struct seat *seat, int *take_fd, struct wire_slot **take_slots,
	uint32_t n_slots, io_done *done, void *data)
{
	struct order *order = order_new(io, 0, done, data);

	order->seat = seat;
	order->fd = fd_take(take_fd);
	order->slots = *take_slots;
	order->n_slots = n_slots;
	*take_slots = NULL;
	order_send(order, add_run);
}

void io_set_round(struct io *io, struct seat *const seats[], unsigned n_seats,
	const struct settings *settings, io_done *done, void *data)
{
	struct order *order = order_new(io, n_seats, done, data);

	order->settings = *settings;
	order->n_seats = n_seats;
	if (n_seats > 0)
		memcpy(order->seats, seats, n_seats * sizeof(struct seat *));
	order_send(order, set_round_run);
}

void io_bury(struct io *io, struct seat *seat, io_done *done, void *data)
{
	struct order *order = order_new(io, 0, done, data);

	order->seat = seat;
	order_send(order, bury_run);
}

void io_limit(struct io *ios, unsigned n_ios, struct gate *gate, unsigned max)
{
	atomic_store(&gate->max, max);
	gate_open(gate, ios, n_ios);
}

void io_listen(struct io *io, struct listener *listener, io_done *done, void *data)
{
	struct order *order = order_new(io, 0, done, data);

	order->listener = listener;
	order_send(order, listen_run);
}

void io_unlisten(struct io *io, struct listener *listener, io_done *done, void *data)
{
	struct order *order = order_new(io, 0, done, data);

	order->listener = listener;
	order_send(order, unlisten_run);
}

void io_stop(struct io *io, io_done *done, void *data)
{
	order_send(order_new(io, 0, done, data), stop_run);
}

void io_probe(struct io *io, struct seat *seat, const char *path, io_done *done, void *data)
{
	struct order *order = order_new(io, 0, done, data);

	order->seat = seat;
	order->path = strdup(path);
	order_send(order, probe_run);
}

void io_ping(struct io *io, io_done *done, void *data)
{
	order_send(order_new(io, 0, done, data), ping_run);
}

/* ---- Life ---- */

static void on_closed(void *data)
{
	struct io *io = data;

	gate_leave(io);
	check_stopped(io);
}

struct report {
	struct mail mail;
	struct io *io;
	struct seat *seat;
	const char *why;
};

static void report_run(struct mail *mail)
{
	struct report *report = container_of(mail, struct report, mail);

	report->io->on_report(report->io->data, report->seat, report->why);
	free(report);
}

static void report_why(void *data, struct seat *seat, const char *why)
{
	struct io *io = data;
	struct report *report = malloc(sizeof(*report));

	if (!report)
		return;
	report->io = io;
	report->seat = seat;
	/* Either static or of strerror(3), which keeps known errors for good. */
	report->why = why;
	report->mail.run = report_run;
	mailbox_send(io->control, &report->mail);
}

static void report_spent(void *data, struct seat *seat)
{
	report_why(data, seat, NULL);
}

int io_init(struct io *io, unsigned id, const struct settings *settings,
	struct admission *admission, struct gate *gate, struct io *ios, unsigned n_ios,
	struct mailbox *control, void (*on_report)(void *data, struct seat *seat, const char *why),
	void *data)
{
	int r;

	memset(io, 0, sizeof(*io));
	r = thread_init(&io->thread, id, settings);
	if (r < 0)
		return r;
	conns_init(&io->conns, &io->thread, admission);
	io->conns.on_closed = on_closed;
	io->conns.on_broken = report_why;
	io->conns.on_spent = report_spent;
	io->conns.data = io;
	list_init(&io->acceptors);
	list_init(&io->probes);
	io->gate = gate;
	io->ios = ios;
	io->n_ios = n_ios;
	io->accepting = true;
	io->control = control;
	io->on_report = on_report;
	io->data = data;
	io->open_mail.run = open_run;
	ev_timer_init(&io->shortage, shortage_cb, SHORTAGE_S, 0.);
	return 0;
}

int io_start(struct io *io)
{
	return thread_start(&io->thread);
}

void io_halt(struct io *io)
{
	thread_stop(&io->thread);
}

/* Nobody accepts any more, and the other threads may have been freed already. */
static void on_cut(void *data)
{
	(void)data;
}

void io_fini(struct io *io)
{
	io->conns.on_closed = on_cut;
	free(io->stop_order);
	io->stop_order = NULL;
	list_each (at, &io->probes)
		probe_free(probe_of(at));
	conns_fini(&io->conns);
	list_each (at, &io->acceptors)
		acceptor_free(container_of(at, struct acceptor, link));
	ev_timer_stop(io->thread.loop, &io->shortage);
	thread_fini(&io->thread);
}
