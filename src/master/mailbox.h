/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Mailbox: how threads talk. Each has one on its own loop; any thread may put a mail in it.
 *
 * A mail is embedded in an object of the sender's. From mailbox_send() until its run callback it
 * belongs to the receiver, who may send it back as the answer. Mails of one sender run in order.
 */
#include <ev.h>
#include <pthread.h>

#include "common/list.h"

struct mail {
	struct list link;
	/* Runs on the receiver's thread. The mail is the callback's from now on. */
	void (*run)(struct mail *mail);
};

struct mailbox {
	struct ev_loop *loop;
	ev_async wake;
	pthread_mutex_t lock;
	struct list mails; /* guarded by lock */
};

/* On the thread that will run loop, or before it runs. */
void mailbox_init(struct mailbox *mailbox, struct ev_loop *loop);
/* The loop no longer runs. Mails that are left are forgotten, not run. */
void mailbox_fini(struct mailbox *mailbox);
/* Any thread. mail->run must be set. */
void mailbox_send(struct mailbox *mailbox, struct mail *mail);
