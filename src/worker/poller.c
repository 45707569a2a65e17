/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "worker/poller.h"

#include <errno.h>

#include "common/fd.h"
#include "common/list.h"

static void poller_cb(struct ev_loop *loop, ev_io *io, int revents)
{
	struct poller *p = container_of(io, struct poller, io);

	(void)loop;
	(void)revents;
	/* From one count of the batch to the next a callback may remove any watch: see
	 * poller_remove(). */
	p->n_events = epoll_wait(p->epoll_fd, p->events, POLLER_BATCH, 0);
	for (p->at = 0; p->at < p->n_events;) {
		struct epoll_event *e = &p->events[p->at++];
		struct poller_watch *watch = e->data.ptr;

		if (watch)
			watch->happened_cb(watch, e->events);
	}
	p->n_events = 0;
}

int poller_init(struct poller *poller, struct ev_loop *loop)
{
	poller->loop = loop;
	poller->n_events = poller->at = 0;
	poller->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (poller->epoll_fd < 0)
		return -errno;
	ev_io_init(&poller->io, poller_cb, poller->epoll_fd, EV_READ);
	ev_io_start(loop, &poller->io);
	return 0;
}

void poller_fini(struct poller *poller)
{
	ev_io_stop(poller->loop, &poller->io);
	fd_close(&poller->epoll_fd);
}

int poller_set(struct poller *poller, struct poller_watch *watch, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.ptr = watch };
	int op = watch->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

	if (epoll_ctl(poller->epoll_fd, op, watch->fd, &e) < 0)
		return -errno;
	watch->events = events;
	return 0;
}

void poller_remove(struct poller *poller, struct poller_watch *watch)
{
	if (!watch->events)
		return;
	epoll_ctl(poller->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	watch->events = 0;
	for (int i = poller->at; i < poller->n_events; i++)
		if (poller->events[i].data.ptr == watch)
			poller->events[i].data.ptr = NULL;
}
