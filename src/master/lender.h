/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Lender: the master's end of one lending channel, from one I/O thread to one worker.
 *
 * Collects the loans of one turn of the loop and sends them as one message, matches returns with
 * loans, and knows when the channel can take more. A loan's memory is the caller's, who keeps it
 * until it was returned, refused or lost. All on the thread of the lender.
 */
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/http.h"
#include "common/list.h"
#include "common/wire.h"
#include "master/admission.h"
#include "master/thread.h"

struct lender;

struct loan;

/* What becomes of a loan. In each case it is free again, but for on_detached. */
struct loan_ops {
	/* The worker is done with it. */
	void (*on_return)(struct loan *loan, const struct wire_return *ret);
	/* The worker keeps the socket; on_return or on_lost will follow. */
	void (*on_detached)(struct loan *loan, const struct wire_return *ret);
	/* It was not sent after all: the channel is full or broken. */
	void (*on_refused)(struct loan *loan);
	/* The worker died with it. `taken` and `end`: see struct wire_slot. */
	void (*on_lost)(struct loan *loan, bool taken, uint64_t end);
};

/* One request lent, or about to be. Zero it and set ops; the other fields are the lender's. */
struct loan {
	const struct loan_ops *ops;
	struct lender *lender; /* NULL: not lent */
	struct seat *seat;     /* the caller's note of whose seat it takes */
	uint64_t request_id;
	uint32_t slot;
	bool detached;
};

/* What is lent. All of it is borrowed for the call. */
struct loan_terms {
	int fd;
	uint16_t flags; /* WIRE_LEND_* */
	uint64_t request_id, connection_id, complete_us;
	const struct http_head *head;
	const char *data; /* head->len bytes of the head, then ahead_len of the body */
	uint32_t ahead_len;
	const struct sockaddr *peer;
	socklen_t peer_len;
};

/* Why a channel broke that just ended: the usual one where a worker dies. */
#define LENDER_CLOSED "closed its channel"

struct lender_ops {
	/* The worker has given its place at the seat up: before loan->ops is called, but after a
	 * detached loan only once. */
	void (*on_seat_left)(void *data, struct loan *loan);
	/* lender_open() is true again. */
	void (*on_opened)(void *data, struct lender *lender);
	/* The worker closed the channel or talks nonsense: why. It lends no more. Called once. */
	void (*on_broken)(void *data, struct lender *lender, const char *why);
};

/*
 * Takes *take_fd and *take_slots, also on failure; borrows the seat for its life. Returns 0 or
 * -errno.
 */
int lender_new(struct thread *thread, struct seat *seat, int *take_fd,
	struct wire_slot **take_slots, uint32_t n_slots, const struct lender_ops *ops, void *data,
	struct lender **out);
/* Nothing may be lent any more: lender_settle() first. Accepts NULL. Returns NULL. */
struct lender *lender_free(struct lender *lender);

struct seat *lender_seat(const struct lender *lender);

/* Whether it can take a loan now. */
bool lender_open(const struct lender *lender);
/*
 * Adds the loan to this turn's message. Returns 0, -EAGAIN where the channel is full, -EMSGSIZE or
 * -ENOMEM; then the loan is as before.
 */
int lender_lend(struct lender *lender, struct loan *loan, const struct loan_terms *terms);
/* Whether loans wait for lender_flush(). */
bool lender_collects(const struct lender *lender);
/* Sends what was collected. May call on_refused and on_broken. */
void lender_flush(struct lender *lender);
/* Asks for the loan back: on_return will follow, usually with WIRE_CANCELLED. */
void lender_recall(struct lender *lender, struct loan *loan);

/* Lends no more, and tells the worker so when the channel has room. Flushes. */
void lender_retire(struct lender *lender);
/* The worker is dead: reads what it still sent, and then tells on_lost for what it held. */
void lender_settle(struct lender *lender);

/* Links of the caller's. */
struct list *lender_link(struct lender *lender);
struct lender *lender_of(struct list *link);
