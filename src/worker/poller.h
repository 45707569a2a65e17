/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Poller: an epoll of our own for lent sockets, one descriptor in the libev loop.
 *
 * The master keeps a copy of every lent socket, so a registration outlives our close(2): each one
 * has to be deleted by hand before. libev deletes none, and must never see a lent descriptor.
 * Loop thread only.
 */
#include <ev.h>
#include <stdint.h>
#include <sys/epoll.h>

/* Embedded in its owner; .fd borrowed. */
struct poller_watch {
	int fd;
	uint32_t events; /* what is registered; 0: not registered */
	void (*happened_cb)(struct poller_watch *watch, uint32_t happened);
};

#define POLLER_BATCH 64

struct poller {
	struct ev_loop *loop;
	ev_io io;
	int epoll_fd;
	int n_events, at; /* of the batch that is being told */
	struct epoll_event events[POLLER_BATCH];
};

/* Returns 0 or -errno. */
int poller_init(struct poller *poller, struct ev_loop *loop);
void poller_fini(struct poller *poller);
/* Registers for exactly these events (epoll_ctl(2)); what holds already is told again. Returns 0 or
 * -errno. */
int poller_set(struct poller *poller, struct poller_watch *watch, uint32_t events);
/* Before the descriptor is closed. Nothing more is told, also not what was fetched already. */
void poller_remove(struct poller *poller, struct poller_watch *watch);
