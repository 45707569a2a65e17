/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/thread.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

struct settings settings_of(const struct config *config)
{
	return (struct settings){
		.header_timeout_us = config->header_timeout_ms * 1000,
		.keepalive_timeout_us = config->keepalive_timeout_ms * 1000,
		.queue_timeout_us = config->queue_timeout_ms * 1000,
		.request_timeout_us = config->request_timeout_ms * 1000,
		.head_bytes_max = (uint32_t)config->head_bytes_max,
		.balance = (enum config_balance)config->balance,
	};
}

static void check_cb(struct ev_loop *loop, ev_check *watcher, int events)
{
	struct thread *thread = container_of(watcher, struct thread, check);

	(void)loop, (void)events;
	thread->now_us = clock_us();
}

static void stop_run(struct mail *mail)
{
	struct thread *thread = container_of(mail, struct thread, stop_mail);

	ev_break(thread->loop, EVBREAK_ALL);
}

int thread_init(struct thread *thread, unsigned id, const struct settings *settings)
{
	memset(thread, 0, sizeof(*thread));
	thread->id = id;
	thread->settings = *settings;
	thread->scratch = malloc(THREAD_SCRATCH_BYTES);
	thread->loop = ev_loop_new(EVBACKEND_EPOLL | EVFLAG_NOENV);
	if (!thread->scratch || !thread->loop || wire_inbox_init(&thread->inbox) < 0) {
		if (thread->loop)
			ev_loop_destroy(thread->loop);
		free(thread->scratch);
		return -ENOMEM;
	}
	mailbox_init(&thread->mailbox, thread->loop);
	/* First after the poll, so that every other callback of the turn sees the new time. */
	ev_check_init(&thread->check, check_cb);
	ev_set_priority(&thread->check, EV_MAXPRI);
	ev_check_start(thread->loop, &thread->check);
	thread->now_us = clock_us();
	return 0;
}

static void *thread_main(void *data)
{
	struct thread *thread = data;

	ev_run(thread->loop, 0);
	return NULL;
}

int thread_start(struct thread *thread)
{
	sigset_t all, before;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&thread->handle, NULL, thread_main, thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	thread->running = r == 0;
	return -r;
}

void thread_stop(struct thread *thread)
{
	if (!thread->running)
		return;
	thread->stop_mail.run = stop_run;
	mailbox_send(&thread->mailbox, &thread->stop_mail);
	pthread_join(thread->handle, NULL);
	thread->running = false;
}

void thread_fini(struct thread *thread)
{
	ev_check_stop(thread->loop, &thread->check);
	mailbox_fini(&thread->mailbox);
	ev_loop_destroy(thread->loop);
	wire_inbox_fini(&thread->inbox);
	free(thread->scratch);
}

uint64_t thread_next_id(struct thread *thread)
{
	return ++thread->last_id * 64 + thread->id + 1;
}
