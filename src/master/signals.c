/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/signals.h"

#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/fd.h"
#include "common/list.h"

static void handled(sigset_t *set)
{
	static const int numbers[] = { SIGUSR1, SIGUSR2, SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGTTIN,
		SIGTTOU, SIGTSTP, SIGCONT, SIGCHLD };

	sigemptyset(set);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaddset(set, numbers[i]);
}

void signals_block(void)
{
	sigset_t set;

	handled(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* Ignored, as some start their children, it would have the kernel reap the workers. */
	signal(SIGCHLD, SIG_DFL);
}

static void read_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	struct signals *signals = container_of(watcher, struct signals, watcher);
	struct signalfd_siginfo info;

	(void)loop, (void)events;
	while (signals->fd >= 0 && read(signals->fd, &info, sizeof(info)) == sizeof(info))
		signals->on_signal(signals->data, (int)info.ssi_signo);
}

int signals_open(struct signals *signals, struct ev_loop *loop,
	void (*on_signal)(void *data, int signal), void *data)
{
	sigset_t set;

	handled(&set);
	signals->loop = loop;
	signals->on_signal = on_signal;
	signals->data = data;
	signals->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals->fd < 0)
		return -errno;
	ev_io_init(&signals->watcher, read_cb, signals->fd, EV_READ);
	ev_io_start(loop, &signals->watcher);
	return 0;
}

void signals_close(struct signals *signals)
{
	if (signals->fd < 0)
		return;
	ev_io_stop(signals->loop, &signals->watcher);
	fd_close(&signals->fd);
}
