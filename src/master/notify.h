/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Notify: what the service manager is told (sd_notify(3)), and the watchdog
 * (sd_watchdog_enabled(3)). Without a service manager all of it does nothing. Control thread only.
 */
#include <ev.h>
#include <stdbool.h>

struct io;

struct notify {
	struct ev_loop *loop;
	struct io *ios;
	unsigned n_ios;
	unsigned n_silent; /* I/O threads that have not answered the last ping */
	ev_timer watchdog; /* inactive: not asked for */
	ev_timer extend;   /* runs while a start or a reload does */
};

void notify_init(struct notify *notify, struct ev_loop *loop, struct io *ios, unsigned n_ios);
void notify_fini(struct notify *notify);

/* While it lasts the manager's time-outs for starting and reloading are put off. */
void notify_busy(struct notify *notify, bool busy);
void notify_ready(struct notify *notify);
void notify_reloading(struct notify *notify);
void notify_stopping(struct notify *notify);
/* One line for people. */
__attribute__((format(printf, 2, 3))) void notify_status(
	struct notify *notify, const char *fmt, ...);
