/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "worker/channel.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fd.h"
#include "worker/request.h"

/* Messages received in one turn, so that a busy channel does not keep the others waiting. */
#define MESSAGES_MAX 8
/* Returns that leave before the turn is over: the master can go on with them meanwhile. */
#define RETURNS_MAX 256

/* A record for a lend that no request was made of. */
struct refusal {
	struct note note;
};

static void refusal_sent_cb(struct note *note)
{
	free(container_of(note, struct refusal, note));
}

/* Nothing was read or written: the master can give it to somebody else. */
static void channel_refuse(struct channel *ch, const struct wire_lend *lend)
{
	struct refusal *refusal = calloc(1, sizeof(*refusal));

	/* Without a note the master would wait for this one for ever; without us it would not. */
	if (!refusal)
		worker_die("out of memory");
	refusal->note.type = WIRE_RETURN;
	refusal->note.sent_cb = refusal_sent_cb;
	refusal->note.ret.request_id = lend->request_id;
	refusal->note.ret.slot = lend->slot;
	refusal->note.ret.disposition = WIRE_UNSERVED;
	channel_post(ch, &refusal->note);
}

/* Beyond what wire_next() has checked: what the rest of libup relies on. */
static bool is_sound(const struct channel *ch, const struct wire_lend *lend)
{
	return lend->slot < ch->n_slots && !ch->lent[lend->slot] && !ch->last &&
	       lend->body <= WIRE_BODY_CHUNKED &&
	       lend->head_len > (uint64_t)lend->method_len + 1 + lend->target_len;
}

static int channel_lend(struct channel *ch, const struct wire_lend *lend)
{
	FD_AUTO int fd = wire_take_fd(&ch->worker->inbox);

	ch->n_taken++;
	if (!is_sound(ch, lend))
		return -EPROTO;
	/* Our limit on descriptors was reached, and the kernel has closed this one. */
	if (fd < 0 || request_serve(ch, lend, &fd) < 0) {
		worker_close(ch->worker, &fd);
		channel_refuse(ch, lend);
	}
	return 0;
}

/* One that is not there has been returned, and the return is under way. */
static int channel_recall(struct channel *ch, const struct wire_recall *recall)
{
	struct up_request *r = recall->slot < ch->n_slots ? ch->lent[recall->slot] : NULL;

	if (r && r->lend.request_id == recall->request_id)
		request_recall(r);
	return 0;
}

static int channel_record(struct channel *ch, const struct wire_record *record)
{
	switch (record->type) {
	case WIRE_LEND:
		return channel_lend(ch, (const struct wire_lend *)(const void *)record);
	case WIRE_RECALL:
		return channel_recall(ch, (const struct wire_recall *)(const void *)record);
	case WIRE_LAST:
		if (ch->last)
			return -EPROTO;
		ch->last = true;
		worker_last(ch->worker);
		return 0;
	default:
		return -EPROTO;
	}
}

static int channel_message(struct channel *ch)
{
	const struct wire_record *record;
	int error, r;

	while ((record = wire_next(&ch->worker->inbox, &error))) {
		r = channel_record(ch, record);
		if (r < 0)
			return r;
	}
	return error;
}

static void channel_read_cb(struct ev_loop *loop, ev_io *io, int revents)
{
	struct channel *ch = container_of(io, struct channel, read_io);

	(void)revents;
	for (int i = 0; i < MESSAGES_MAX; i++) {
		int r = wire_receive(ch->fd, &ch->worker->inbox);

		if (r == -EAGAIN)
			return;
		/* Behind its last record the master may close; before, it has died. */
		if (r == WIRE_EOF && ch->last) {
			ev_io_stop(loop, io);
			return;
		}
		if (r == WIRE_EOF)
			_exit(1);
		if (r == WIRE_MESSAGE)
			r = channel_message(ch);
		if (r < 0)
			worker_die("a lending channel: %s", strerror(-r));
	}
}

static void channel_write_cb(struct ev_loop *loop, ev_io *io, int revents)
{
	struct channel *ch = container_of(io, struct channel, write_io);

	(void)revents;
	ev_io_stop(loop, io);
	channel_flush(ch);
}

void channel_init(struct channel *channel, struct up_worker *worker, int fd)
{
	memset(channel, 0, sizeof(*channel));
	channel->worker = worker;
	channel->fd = fd;
	wire_batch_init(&channel->batch);
	list_init(&channel->notes);
	ev_io_init(&channel->read_io, channel_read_cb, fd, EV_READ);
	ev_io_init(&channel->write_io, channel_write_cb, fd, EV_WRITE);
}

int channel_open(struct channel *channel, int *take_page_fd, uint32_t n_slots)
{
	int r = wire_page_map(take_page_fd, n_slots, &channel->slots);

	if (r < 0)
		return r;
	channel->n_slots = n_slots;
	channel->lent = calloc(n_slots, sizeof(*channel->lent));
	if (!channel->lent)
		return -ENOMEM;
	ev_io_start(channel->worker->loop, &channel->read_io);
	return 0;
}

void channel_fini(struct channel *channel)
{
	ev_io_stop(channel->worker->loop, &channel->read_io);
	ev_io_stop(channel->worker->loop, &channel->write_io);
	wire_batch_fini(&channel->batch);
	channel->slots = wire_page_free(channel->slots, channel->n_slots);
	free(channel->lent);
	fd_close(&channel->fd);
}

/* Puts the note into the batch. False where it has to wait. */
static bool channel_put(struct channel *ch, struct note *note)
{
	size_t len = sizeof(note->ret) + note->ret.surplus_len;
	struct wire_return *ret = wire_batch_add(&ch->batch, note->type, 0, len, -1);

	if (!ret)
		return false;
	note->ret.record = ret->record;
	*ret = note->ret;
	if (note->ret.surplus_len > 0)
		memcpy(ret + 1, note->surplus, note->ret.surplus_len);
	note->sent_cb(note);
	return true;
}

static void channel_fill(struct channel *ch)
{
	while (!list_empty(&ch->notes)) {
		struct list *first = list_pop(&ch->notes);

		if (!channel_put(ch, container_of(first, struct note, link))) {
			list_prepend(&ch->notes, first);
			return;
		}
	}
}

bool channel_is_empty(const struct channel *channel)
{
	return channel->batch.n_records == 0 && list_empty(&channel->notes);
}

void channel_flush(struct channel *channel)
{
	struct up_worker *w = channel->worker;

	while (!ev_is_active(&channel->write_io)) {
		uint32_t n_new = channel->n_taken - channel->n_acknowledged;
		int r;

		channel_fill(channel);
		if (channel->batch.n_records == 0 && list_empty(&channel->notes) &&
			n_new <= WIRE_WINDOW / 4)
			return;
		worker_close_all(w);
		r = wire_send(channel->fd, &channel->batch, channel->n_taken);
		if (r == -EAGAIN) {
			ev_io_start(w->loop, &channel->write_io);
			return;
		}
		if (r < 0)
			_exit(1); /* the master is gone */
		channel->n_acknowledged = channel->n_taken;
	}
}

void channel_post(struct channel *channel, struct note *note)
{
	if (channel->batch.n_records >= RETURNS_MAX)
		channel_flush(channel);
	if (!list_empty(&channel->notes) || !channel_put(channel, note))
		list_append(&channel->notes, &note->link);
}
