/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Signals: read from a signalfd on the control thread, so that no handler runs anywhere.
 */
#include <ev.h>

struct signals {
	struct ev_loop *loop;
	ev_io watcher;
	int fd; /* -1: closed */
	void (*on_signal)(void *data, int signal);
	void *data;
};

/* Blocks the signals that the daemon handles, in this thread and those made later. Before any is.
 */
void signals_block(void);
/* Returns 0 or -errno. */
int signals_open(struct signals *signals, struct ev_loop *loop,
	void (*on_signal)(void *data, int signal), void *data);
void signals_close(struct signals *signals);
