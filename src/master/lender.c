/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/lender.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/fd.h"
#include "master/log.h"

/* Messages read before other watchers of the loop get their turn. */
#define RECEIVE_MAX 64
/* How long to rest where the channel has room and yet can't be sent to: see wait_for_room(). */
#define PRESSURE_S 0.002

struct lender {
	struct list link; /* the caller's */
	struct thread *thread;
	struct seat *seat;
	const struct lender_ops *ops;
	void *data;
	int fd;
	ev_io read_watcher, write_watcher;
	ev_timer pressure;
	struct wire_batch batch;
	struct loan *collected[WIRE_FDS_MAX]; /* the loans in batch */
	unsigned n_collected;
	uint32_t n_sent, n_taken; /* lends, modulo 2^32; sent - taken <= WIRE_WINDOW */
	bool full;		  /* the channel refused a message */
	bool tried_again;	  /* nothing was sent since it was last said to have room */
	bool retired;		  /* lender_retire() */
	bool last_sent;		  /* WIRE_LAST has gone out */
	bool alone;		  /* what is collected is to have no company */
	bool broken;
	bool settling; /* the worker is dead: an end of the channel is no news */
	/* Slots: those at 0 to n_used - 1 have been used; the free ones among them are stacked. */
	struct wire_slot *slots;
	uint32_t n_slots;
	struct loan **loans; /* by slot; NULL: free */
	uint32_t *free_slots;
	uint32_t n_used, n_free, room;
};

struct list *lender_link(struct lender *lender)
{
	return &lender->link;
}

struct lender *lender_of(struct list *link)
{
	return container_of(link, struct lender, link);
}

struct seat *lender_seat(const struct lender *lender)
{
	return lender->seat;
}

static bool window_open(const struct lender *lender)
{
	return lender->n_sent - lender->n_taken + lender->n_collected < WIRE_WINDOW;
}

bool lender_open(const struct lender *lender)
{
	return !lender->full && !lender->retired && !lender->broken && !lender->settling &&
	       window_open(lender);
}

static void break_off(struct lender *lender, const char *why)
{
	if (lender->broken)
		return;
	lender->broken = true;
	lender->full = false;
	ev_io_stop(lender->thread->loop, &lender->read_watcher);
	ev_io_stop(lender->thread->loop, &lender->write_watcher);
	ev_timer_stop(lender->thread->loop, &lender->pressure);
	if (!lender->settling)
		lender->ops->on_broken(lender->data, lender, why);
}

/* ---- Slots ---- */

static int slots_grow(struct lender *lender)
{
	uint32_t room = lender->room ? lender->room * 2 : 64;
	struct loan **loans;
	uint32_t *free_slots;

	if (room > lender->n_slots)
		room = lender->n_slots;
	if (room == lender->room)
		return -EAGAIN;
	loans = realloc(lender->loans, room * sizeof(struct loan *));
	if (!loans)
		return -ENOMEM;
	lender->loans = loans;
	free_slots = realloc(lender->free_slots, room * sizeof(uint32_t));
	if (!free_slots)
		return -ENOMEM;
	lender->free_slots = free_slots;
	lender->room = room;
	return 0;
}

static int slot_take(struct lender *lender, struct loan *loan)
{
	int r = 0;

	if (lender->n_free > 0) {
		loan->slot = lender->free_slots[--lender->n_free];
	} else {
		if (lender->n_used == lender->room)
			r = slots_grow(lender);
		if (r < 0)
			return r;
		loan->slot = lender->n_used++;
	}
	lender->loans[loan->slot] = loan;
	/* Before the send, which orders it: the worker sees a clear slot. */
	atomic_store_explicit(&lender->slots[loan->slot].end, 0, memory_order_relaxed);
	atomic_store_explicit(&lender->slots[loan->slot].taken, 0, memory_order_relaxed);
	return 0;
}

static void loan_release(struct lender *lender, struct loan *loan)
{
	lender->loans[loan->slot] = NULL;
	lender->free_slots[lender->n_free++] = loan->slot;
	loan->lender = NULL;
}

/* The loan has ended. A detached socket has given its place at the worker up already. */
static void leave(struct lender *lender, struct loan *loan)
{
	loan_release(lender, loan);
	if (!loan->detached)
		lender->ops->on_seat_left(lender->data, loan);
}

/* The loan that a record of the worker's speaks of, or NULL where it holds no such. */
static struct loan *find_loan(struct lender *lender, uint32_t slot, uint64_t request_id)
{
	struct loan *loan = slot < lender->n_used ? lender->loans[slot] : NULL;

	return loan && loan->request_id == request_id ? loan : NULL;
}

/* ---- Sending ---- */

/* Gives back what was collected and could not be sent. */
static void refuse_collected(struct lender *lender)
{
	struct loan *loans[WIRE_FDS_MAX];
	unsigned n = lender->n_collected;

	memcpy(loans, lender->collected, n * sizeof(loans[0]));
	lender->n_collected = 0;
	wire_batch_clear(&lender->batch);
	for (unsigned i = 0; i < n; i++)
		leave(lender, loans[i]);
	for (unsigned i = 0; i < n; i++)
		loans[i]->ops->on_refused(loans[i]);
}

/*
 * Too many descriptors in flight over all processes of the user (ETOOMANYREFS) gives no event when
 * it passes, and the channel is writable all the while: only then a short rest bounds the retries.
 */
static void wait_for_room(struct lender *lender)
{
	lender->full = true;
	if (!lender->tried_again) {
		ev_io_start(lender->thread->loop, &lender->write_watcher);
		return;
	}
	ev_timer_set(&lender->pressure, PRESSURE_S, 0.);
	ev_timer_start(lender->thread->loop, &lender->pressure);
}

void lender_flush(struct lender *lender)
{
	int r;

	if (lender->batch.n_records == 0 || lender->full)
		return;
	r = wire_send(lender->fd, &lender->batch, 0);
	if (r == 0) {
		lender->tried_again = false;
		lender->n_sent += lender->n_collected;
		lender->n_collected = 0;
		return;
	}
	if (r == -EAGAIN)
		wait_for_room(lender);
	else
		break_off(lender, strerror(-r));
	refuse_collected(lender);
}

bool lender_collects(const struct lender *lender)
{
	return lender->batch.n_records > 0;
}

static void *add_record(
	struct lender *lender, enum wire_type type, uint16_t flags, size_t len, int fd)
{
	if (!wire_batch_fits(&lender->batch, len, fd >= 0))
		lender_flush(lender);
	if (lender->full || lender->broken)
		return NULL;
	return wire_batch_add(&lender->batch, type, flags, len, fd);
}

static void put_terms(
	struct wire_lend *lend, const struct loan *loan, const struct loan_terms *terms)
{
	const struct http_head *head = terms->head;
	uint8_t *data = (uint8_t *)(lend + 1);

	lend->request_id = terms->request_id;
	lend->connection_id = terms->connection_id;
	lend->complete_us = terms->complete_us;
	lend->body_len = head->body == HTTP_BODY_LENGTH ? head->body_len : 0;
	lend->slot = loan->slot;
	lend->head_len = head->len;
	lend->ahead_len = terms->ahead_len;
	lend->set_fields_len = 0;
	lend->add_fields_len = 0;
	lend->target_len = head->target_len;
	lend->method_len = head->method_len;
	lend->peer_len = (uint16_t)terms->peer_len;
	lend->local_len = 0;
	lend->body = (uint8_t)head->body;
	lend->http_minor = head->http_minor;
	memcpy(data, terms->peer, terms->peer_len);
	memcpy(data + terms->peer_len, terms->data, (size_t)head->len + terms->ahead_len);
}

int lender_lend(struct lender *lender, struct loan *loan, const struct loan_terms *terms)
{
	size_t len =
		sizeof(struct wire_lend) + terms->peer_len + terms->head->len + terms->ahead_len;
	struct wire_lend *lend;
	int r;

	loan->request_id = terms->request_id;
	loan->detached = false;
	r = slot_take(lender, loan);
	if (r < 0)
		return r;
	/* A replay travels alone: one that kills its worker takes no neighbours along. */
	if (lender->alone || (terms->flags & WIRE_LEND_REPLAY))
		lender_flush(lender);
	lender->alone = (terms->flags & WIRE_LEND_REPLAY) != 0;
	lend = add_record(lender, WIRE_LEND, terms->flags, len, terms->fd);
	if (!lend) {
		r = lender->full || lender->broken || errno == 0 ? -EAGAIN : -errno;
		loan_release(lender, loan);
		return r;
	}
	loan->lender = lender;
	lender->collected[lender->n_collected++] = loan;
	put_terms(lend, loan, terms);
	return 0;
}

void lender_recall(struct lender *lender, struct loan *loan)
{
	struct wire_recall *recall;

	recall = add_record(lender, WIRE_RECALL, 0, sizeof(*recall), -1);
	if (!recall)
		return;
	recall->request_id = loan->request_id;
	recall->slot = loan->slot;
	recall->reserved = 0;
	lender_flush(lender);
}

static void send_last(struct lender *lender)
{
	struct wire_number *last;

	if (lender->last_sent || lender->full || lender->broken)
		return;
	last = add_record(lender, WIRE_LAST, 0, sizeof(*last), -1);
	if (!last)
		return;
	last->number = 0;
	lender_flush(lender);
	lender->last_sent = !lender->full && !lender->broken;
}

void lender_retire(struct lender *lender)
{
	lender_flush(lender);
	lender->retired = true;
	send_last(lender);
}

static void reopen(struct lender *lender)
{
	ev_io_stop(lender->thread->loop, &lender->write_watcher);
	ev_timer_stop(lender->thread->loop, &lender->pressure);
	lender->full = false;
	lender->tried_again = true;
	if (lender->retired)
		send_last(lender);
	else
		lender->ops->on_opened(lender->data, lender);
}

static void pressure_cb(struct ev_loop *loop, ev_timer *watcher, int events)
{
	(void)loop, (void)events;
	reopen(container_of(watcher, struct lender, pressure));
}

static void write_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	(void)loop, (void)events;
	reopen(container_of(watcher, struct lender, write_watcher));
}

/* ---- Receiving ---- */

static const char *take_return(struct lender *lender, const struct wire_return *ret)
{
	struct loan *loan = find_loan(lender, ret->slot, ret->request_id);

	if (!loan)
		return "returned what it does not hold";
	if (ret->disposition < WIRE_KEEP || ret->disposition > WIRE_CUT)
		return "unknown disposition";
	leave(lender, loan);
	loan->ops->on_return(loan, ret);
	return NULL;
}

static const char *take_detached(struct lender *lender, const struct wire_return *ret)
{
	struct loan *loan = find_loan(lender, ret->slot, ret->request_id);

	if (!loan || loan->detached)
		return "detached what it does not hold";
	lender->ops->on_seat_left(lender->data, loan);
	loan->detached = true;
	loan->ops->on_detached(loan, ret);
	return NULL;
}

/* Returns NULL, or what is wrong with the message. */
static const char *take_message(struct lender *lender)
{
	struct wire_inbox *inbox = &lender->thread->inbox;
	const struct wire_record *record;
	const char *why = NULL;
	int error;

	if (inbox->n_fds > 0 || inbox->fds_lost)
		return "sent a descriptor";
	if (lender->n_sent - inbox->n_taken > lender->n_sent - lender->n_taken)
		return "took what was not sent";
	lender->n_taken = inbox->n_taken;
	while (!why && (record = wire_next(inbox, &error))) {
		if (record->type == WIRE_RETURN)
			why = take_return(lender, (const void *)record);
		else if (record->type == WIRE_DETACHED)
			why = take_detached(lender, (const void *)record);
		else
			why = "sent an unexpected record";
	}
	return why ? why : error < 0 ? "sent a malformed record" : NULL;
}

/* Reads up to n messages. Returns whether there may be more. */
static bool receive(struct lender *lender, unsigned n)
{
	const char *why = NULL;
	int r = WIRE_MESSAGE;

	while (!why && n-- > 0 &&
		(r = wire_receive(lender->fd, &lender->thread->inbox)) == WIRE_MESSAGE) {
		/* For each message: what one of them brings back may close it again. */
		bool was_open = lender_open(lender);

		why = take_message(lender);
		if (!why && !was_open && lender_open(lender))
			lender->ops->on_opened(lender->data, lender);
	}
	if (r == WIRE_EOF)
		why = LENDER_CLOSED;
	else if (r < 0 && r != -EAGAIN)
		why = strerror(-r);
	if (why)
		break_off(lender, why);
	return r == WIRE_MESSAGE && !why;
}

static void read_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	(void)loop, (void)events;
	receive(container_of(watcher, struct lender, read_watcher), RECEIVE_MAX);
}

void lender_settle(struct lender *lender)
{
	lender->settling = true;
	/* What was not sent can't have been taken. */
	refuse_collected(lender);
	while (!lender->broken && receive(lender, RECEIVE_MAX))
		;
	break_off(lender, "the worker is dead");
	for (uint32_t i = 0; i < lender->n_used; i++) {
		struct loan *loan = lender->loans[i];
		struct wire_slot *slot = &lender->slots[i];

		if (!loan)
			continue;
		leave(lender, loan);
		loan->ops->on_lost(loan, atomic_load(&slot->taken) != 0, atomic_load(&slot->end));
	}
}

/* ---- Life ---- */

int lender_new(struct thread *thread, struct seat *seat, int *take_fd,
	struct wire_slot **take_slots, uint32_t n_slots, const struct lender_ops *ops, void *data,
	struct lender **out)
{
	FD_AUTO int fd = fd_take(take_fd);
	struct wire_slot *slots = *take_slots;
	struct lender *lender = calloc(1, sizeof(*lender));

	*take_slots = NULL;
	if (!lender) {
		wire_page_free(slots, n_slots);
		return -ENOMEM;
	}
	lender->thread = thread;
	lender->seat = seat;
	lender->ops = ops;
	lender->data = data;
	lender->slots = slots;
	lender->n_slots = n_slots;
	lender->fd = fd_take(&fd);
	list_init(&lender->link);
	wire_batch_init(&lender->batch);
	ev_timer_init(&lender->pressure, pressure_cb, PRESSURE_S, 0.);
	ev_io_init(&lender->write_watcher, write_cb, lender->fd, EV_WRITE);
	ev_io_init(&lender->read_watcher, read_cb, lender->fd, EV_READ);
	/* Before the connections: a client's next request then finds its last one returned. */
	ev_set_priority(&lender->read_watcher, 1);
	ev_io_start(thread->loop, &lender->read_watcher);
	*out = lender;
	return 0;
}

struct lender *lender_free(struct lender *lender)
{
	if (!lender)
		return NULL;
	ev_io_stop(lender->thread->loop, &lender->read_watcher);
	ev_io_stop(lender->thread->loop, &lender->write_watcher);
	ev_timer_stop(lender->thread->loop, &lender->pressure);
	list_remove(&lender->link);
	wire_batch_fini(&lender->batch);
	fd_close(&lender->fd);
	wire_page_free(lender->slots, lender->n_slots);
	free(lender->loans);
	free(lender->free_slots);
	free(lender);
	return NULL;
}
