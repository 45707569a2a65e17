/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/mailbox.h"

static void wake_cb(struct ev_loop *loop, ev_async *watcher, int events)
{
	struct mailbox *mailbox = container_of(watcher, struct mailbox, wake);
	struct list mails;

	(void)loop, (void)events;
	list_init(&mails);
	/* ev_async coalesces: one wake-up may stand for many mails. */
	pthread_mutex_lock(&mailbox->lock);
	list_splice(&mails, &mailbox->mails);
	pthread_mutex_unlock(&mailbox->lock);
	for (struct list *at; (at = list_pop(&mails));) {
		struct mail *mail = container_of(at, struct mail, link);

		mail->run(mail);
	}
}

void mailbox_init(struct mailbox *mailbox, struct ev_loop *loop)
{
	mailbox->loop = loop;
	pthread_mutex_init(&mailbox->lock, NULL);
	list_init(&mailbox->mails);
	ev_async_init(&mailbox->wake, wake_cb);
	ev_async_start(loop, &mailbox->wake);
}

void mailbox_fini(struct mailbox *mailbox)
{
	ev_async_stop(mailbox->loop, &mailbox->wake);
	pthread_mutex_destroy(&mailbox->lock);
}

void mailbox_send(struct mailbox *mailbox, struct mail *mail)
{
	pthread_mutex_lock(&mailbox->lock);
	list_append(&mailbox->mails, &mail->link);
	pthread_mutex_unlock(&mailbox->lock);
	ev_async_send(mailbox->loop, &mailbox->wake);
}
