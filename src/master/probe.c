/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/probe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/fd.h"
#include "common/http.h"

struct probe {
	struct list link;
	struct thread *thread;
	struct loan loan;
	int lent_fd, our_fd;
	ev_io drain;
	void (*done)(void *data, int status);
	void *data;
};

struct probe *probe_of(struct list *link)
{
	return container_of(link, struct probe, link);
}

void probe_free(struct probe *probe)
{
	list_remove(&probe->link);
	ev_io_stop(probe->thread->loop, &probe->drain);
	fd_close(&probe->lent_fd);
	fd_close(&probe->our_fd);
	free(probe);
}

static void finish(struct loan *loan, int status)
{
	struct probe *probe = container_of(loan, struct probe, loan);

	probe->done(probe->data, status);
	probe_free(probe);
}

static void on_return(struct loan *loan, const struct wire_return *ret)
{
	finish(loan, ret->status);
}

static void on_detached(struct loan *loan, const struct wire_return *ret)
{
	/* Its end will come as a return. */
	(void)loan, (void)ret;
}

static void on_refused(struct loan *loan)
{
	finish(loan, 0);
}

static void on_lost(struct loan *loan, bool taken, uint64_t end)
{
	(void)taken, (void)end;
	finish(loan, 0);
}

static const struct loan_ops loan_ops = {
	.on_return = on_return,
	.on_detached = on_detached,
	.on_refused = on_refused,
	.on_lost = on_lost,
};

/* The answer itself is of no interest, but it must not fill the socket. */
static void drain_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	struct probe *probe = container_of(watcher, struct probe, drain);
	ssize_t n = recv(probe->our_fd, probe->thread->scratch, THREAD_SCRATCH_BYTES, MSG_DONTWAIT);

	(void)events;
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		ev_io_stop(loop, watcher);
}

static int lend(struct round *round, const struct seat *seat, const char *path, struct probe *probe)
{
	struct sockaddr peer = { .sa_family = AF_UNIX };
	struct http_scan scan;
	char head[4096];
	int len = snprintf(head, sizeof(head),
		"GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: up-master/" UP_VERSION
		" (readiness)\r\nConnection: close\r\n\r\n",
		path);

	http_scan_init(&scan, sizeof(head));
	if (len >= (int)sizeof(head) || http_scan(&scan, head, (size_t)len) != HTTP_WHOLE)
		return -EINVAL;
	return round_lend_to(round, seat, &probe->loan,
		&(struct loan_terms){
			.fd = probe->lent_fd,
			.request_id = thread_next_id(round->thread),
			.connection_id = thread_next_id(round->thread),
			.complete_us = round->thread->now_us,
			.head = &scan.head,
			.data = head,
			.peer = &peer,
			.peer_len = sizeof(sa_family_t),
		});
}

int probe_start(struct round *round, const struct seat *seat, const char *path, struct list *probes,
	void (*done)(void *data, int status), void *data)
{
	struct probe *probe = calloc(1, sizeof(*probe));
	int pair[2], r;

	if (!probe)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
		r = -errno;
		free(probe);
		return r;
	}
	probe->thread = round->thread;
	probe->loan.ops = &loan_ops;
	probe->lent_fd = pair[0];
	probe->our_fd = pair[1];
	probe->done = done;
	probe->data = data;
	list_append(probes, &probe->link);
	ev_io_init(&probe->drain, drain_cb, probe->our_fd, EV_READ);
	ev_io_start(round->thread->loop, &probe->drain);
	r = lend(round, seat, path, probe);
	if (r < 0)
		probe_free(probe);
	return r;
}
