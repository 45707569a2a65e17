/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/notify.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "common/list.h"
#include "master/io.h"

/* The manager waits so much longer each time it is told. */
#define EXTEND_US 60000000ull
#define EXTEND_EVERY_S 10.

static void on_pong(void *data, int result)
{
	struct notify *notify = data;

	(void)result;
	/* Only while every thread answers: one that hangs holds connections nobody else can serve.
	 */
	if (--notify->n_silent == 0)
		sd_notify(0, "WATCHDOG=1");
}

static void watchdog_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	struct notify *notify = container_of(watcher, struct notify, watchdog);

	(void)loop, (void)events;
	if (notify->n_silent > 0)
		return;
	notify->n_silent = notify->n_ios;
	for (unsigned i = 0; i < notify->n_ios; i++)
		io_ping(&notify->ios[i], on_pong, notify);
}

static void extend_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	(void)loop, (void)watcher, (void)events;
	sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%llu", EXTEND_US);
}

void notify_init(struct notify *notify, struct ev_loop *loop, struct io *ios, unsigned n_ios)
{
	uint64_t watchdog_us = 0;

	memset(notify, 0, sizeof(*notify));
	notify->loop = loop;
	notify->ios = ios;
	notify->n_ios = n_ios;
	ev_timer_init(&notify->watchdog, watchdog_cb, 0., 0.);
	ev_timer_init(&notify->extend, extend_cb, 0., EXTEND_EVERY_S);
	if (sd_watchdog_enabled(0, &watchdog_us) <= 0)
		return;
	/* A third, so that one late answer does no harm. */
	ev_timer_set(&notify->watchdog, 0., (double)watchdog_us / 3e6);
	ev_timer_start(loop, &notify->watchdog);
}

void notify_fini(struct notify *notify)
{
	ev_timer_stop(notify->loop, &notify->watchdog);
	ev_timer_stop(notify->loop, &notify->extend);
}

void notify_busy(struct notify *notify, bool busy)
{
	if (!busy) {
		ev_timer_stop(notify->loop, &notify->extend);
	} else if (!ev_is_active(&notify->extend)) {
		ev_timer_set(&notify->extend, 0., EXTEND_EVERY_S);
		ev_timer_start(notify->loop, &notify->extend);
	}
}

void notify_ready(struct notify *notify)
{
	(void)notify;
	sd_notify(0, "READY=1");
}

void notify_reloading(struct notify *notify)
{
	(void)notify;
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)clock_us());
}

void notify_stopping(struct notify *notify)
{
	(void)notify;
	sd_notify(0, "STOPPING=1");
}

void notify_status(struct notify *notify, const char *fmt, ...)
{
	char text[512];
	va_list args;

	(void)notify;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	/* A line end would begin another assignment. */
	for (char *at = text; *at; at++)
		if (*at == '\n' || *at == '\r')
			*at = ' ';
	sd_notifyf(0, "STATUS=%s", text);
}
