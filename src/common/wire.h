/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Wire: the messages between the master and its workers, and the only place that sends or receives
 * descriptors. docs/up-protocol.7 describes the same for those who write a worker without libup.
 *
 * A channel is a SOCK_SEQPACKET socketpair. One datagram is one message: a struct wire_message and
 * then its records, each a struct that begins with struct wire_record and is padded to 8 bytes.
 * Numbers are in the machine's own byte order: both ends run on one machine. The descriptors of a
 * message belong to those of its records that carry one, in the order of the records.
 *
 * A worker has one control channel (WIRE_CONTROL_FD) and, from WIRE_SETUP on, one lending channel
 * for each I/O thread of the master, with a shared page for each.
 *
 * Everything here is used by one thread at a time per object; there is no state beside the objects.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define WIRE_VERSION 1
#define WIRE_CONTROL_FD 3

/* The environment of a worker. */
#define WIRE_ENV_GENERATION "UP_GENERATION"
#define WIRE_ENV_WORKER_ID "UP_WORKER_ID"
#define WIRE_ENV_MASTER_PID "UP_MASTER_PID"

/* unix(7): SCM_MAX_FD. */
#define WIRE_FDS_MAX 253
/* What a batch grows to. One record may be longer, up to WIRE_MESSAGE_MAX, and then travels alone.
 */
#define WIRE_BATCH_MAX (96 * 1024)
/* Below 212,960, the longest datagram that the default SO_SNDBUF takes. */
#define WIRE_MESSAGE_MAX (200 * 1024)
/* The longest surplus that a return can carry: see WIRE_RETURN. */
#define WIRE_SURPLUS_MAX (64 * 1024)
/* Lends that a worker may have been sent and not yet taken off one channel. */
#define WIRE_WINDOW 512

struct wire_message {
	uint16_t version; /* WIRE_VERSION */
	uint16_t n_records;
	uint32_t len; /* of the whole message, this header included */
	/* Worker to master: how many lends it has taken off this channel since the beginning,
	 * modulo 2^32. A message without records is an acknowledgement. 0 in the other direction.
	 */
	uint32_t n_taken;
	uint32_t reserved; /* 0 */
};

struct wire_record {
	uint16_t type;	/* enum wire_type */
	uint16_t flags; /* by type, 0 otherwise */
	uint32_t len;	/* with this header and the data behind the struct, before padding */
};

enum wire_type {
	/* Control channel, master to worker. */
	WIRE_SETUP = 1, /* first message; 2 descriptors per I/O thread: its channel, its page */
	WIRE_PING = 2,
	/* Control channel, worker to master. */
	WIRE_READY = 16,
	WIRE_PONG = 17,
	WIRE_CHILD = 18,       /* the application runs as a child process */
	WIRE_BOOT_FAILED = 19, /* why, as text; the worker exits after it */
	/* Lending channel, master to worker. */
	WIRE_LEND = 32, /* 1 descriptor */
	/* Give this one back as WIRE_CANCELLED, unless its response has begun. */
	WIRE_RECALL = 33,
	WIRE_LAST = 34, /* no lend follows on this channel */
	/* Lending channel, worker to master. */
	WIRE_RETURN = 48,
	WIRE_DETACHED = 49, /* the application keeps the socket; a WIRE_RETURN follows at its end */
};

/* WIRE_SETUP */
struct wire_setup {
	struct wire_record record;
	uint32_t n_channels;	  /* I/O threads: 1 to WIRE_CHANNELS_MAX */
	uint32_t n_slots;	  /* slots of each page */
	uint32_t body_timeout_ms; /* 0: none */
	uint32_t send_timeout_ms; /* 0: none */
	uint32_t buffer_bytes; /* for relays: what to read ahead each way; 0: the worker chooses */
	uint32_t assume_ready; /* 0: ready only when the application says so */
};
#define WIRE_CHANNELS_MAX 64

/* WIRE_PING, WIRE_PONG: the pong repeats the number. WIRE_READY, WIRE_LAST: number is 0.
 * WIRE_CHILD: its pid. */
struct wire_number {
	struct wire_record record;
	uint64_t number;
};

/* WIRE_BOOT_FAILED: a struct wire_record and then text without a terminator. */

enum wire_body {
	WIRE_BODY_NONE = 0,
	WIRE_BODY_LENGTH = 1,
	WIRE_BODY_CHUNKED = 2,
};

/* record.flags of WIRE_LEND */
#define WIRE_LEND_KEEP_ALIVE 0x01 /* the client's socket goes on after this request */
#define WIRE_LEND_EXPECT 0x02	  /* Expect: 100-continue, and nothing of the body has come yet */
#define WIRE_LEND_UPGRADE 0x04	  /* the client wishes to upgrade */
#define WIRE_LEND_HTTPS 0x08	  /* the scheme that the client used, as far as is known */
#define WIRE_LEND_REPLAY 0x10	  /* another worker died with this request */

/*
 * WIRE_LEND. Behind the struct, without padding between: peer address, local address, head, bytes
 * read behind the head, request fields to set, response fields to add.
 */
struct wire_lend {
	struct wire_record record;
	uint64_t request_id; /* unique per I/O thread, never 0 */
	uint64_t connection_id;
	uint64_t complete_us;	 /* CLOCK_MONOTONIC when the head was complete */
	uint64_t body_len;	 /* WIRE_BODY_LENGTH: of the whole body, else 0 */
	uint32_t slot;		 /* in the channel's page */
	uint32_t head_len;	 /* up to and with the empty line; checked as http.h says */
	uint32_t ahead_len;	 /* body bytes read behind it: never past the end of a known length;
				    with WIRE_LEND_UPGRADE and without a body, all that was read */
	uint32_t set_fields_len; /* lines that replace the fields of the same name; an empty value
				    removes */
	uint32_t add_fields_len; /* lines for the response head */
	uint32_t target_len;	 /* the target begins at method_len + 1 */
	uint16_t method_len;
	uint16_t peer_len;  /* a struct sockaddr; 0: ask the socket */
	uint16_t local_len; /* likewise */
	uint8_t body;	    /* enum wire_body */
	uint8_t http_minor; /* HTTP/1.x */
};

/* WIRE_RECALL */
struct wire_recall {
	struct wire_record record;
	uint64_t request_id;
	uint32_t slot;
	uint32_t reserved; /* 0 */
};

enum wire_disposition {
	WIRE_KEEP = 1,	    /* answered; the socket goes on */
	WIRE_CLOSE = 2,	    /* answered, or as far as it got; close gently */
	WIRE_UNSERVED = 3,  /* nothing was read or written: give it to another worker */
	WIRE_CANCELLED = 4, /* recalled; nothing more will be written */
	WIRE_GONE = 5,	    /* the client reset or left: nothing to save */
	WIRE_CUT = 7,	   /* a response that began and will not be ended: close so that it shows */
	WIRE_BAD_BODY = 6, /* a fault in the body's framing, or its time-out; answered if it could
			      be; close */
};

/*
 * WIRE_RETURN: the worker has closed its copy. Behind the struct: the surplus, bytes that the
 * worker read (or was given in the lend) behind the end of this request. The counts of
 * WIRE_DETACHED are those up to then; the ones of the return at its end are not used.
 */
struct wire_return {
	struct wire_record record;
	uint64_t request_id;
	uint64_t written;    /* every byte written to the socket, interim responses too */
	uint64_t read;	     /* every byte read from the socket, the surplus too */
	uint64_t body_bytes; /* of the response's content */
	uint32_t slot;
	uint32_t head_bytes;	/* of the final response's head */
	uint32_t first_byte_us; /* from complete_us to the first byte of the final response */
	uint32_t surplus_len;
	uint16_t status;     /* of the final response; 0: none was written */
	uint8_t disposition; /* enum wire_disposition; of WIRE_DETACHED 0 */
	uint8_t reserved[5]; /* 0 */
};

/*
 * One slot of a shared page, for one lent request. The master clears it before the lend. The worker
 * sets `taken` before the application sees the request, and `end` before the write that carries the
 * last byte: how many bytes the whole response has, interim ones too. 0: not known yet.
 * Hints only: the worker may be hostile, so the master checks them against the kernel's figures.
 */
struct wire_slot {
	_Atomic uint64_t end;
	_Atomic uint32_t taken;
	uint32_t reserved;
};

/*
 * A shared page: n_slots slots in a memfd that is sealed against resizing, so that a worker can't
 * make the master fault. Returns 0 or -errno.
 */
int wire_page_new(uint32_t n_slots, struct wire_slot **out_slots, int *out_fd);
/* Maps a page that was received, after checking its size. Takes *take_fd. Returns 0 or -errno. */
int wire_page_map(int *take_fd, uint32_t n_slots, struct wire_slot **out_slots);
/* Accepts NULL. Returns NULL. */
struct wire_slot *wire_page_free(struct wire_slot *slots, uint32_t n_slots);

/* A channel: two connected ends, non-blocking. Returns 0 or -errno. */
int wire_channel_new(int *out_master_fd, int *out_worker_fd);

/* Messages that wait to be sent as one. The descriptors in it are borrowed until then. */
struct wire_batch {
	uint8_t *data; /* NULL until the first record */
	size_t len, room;
	uint16_t n_records;
	unsigned n_fds;
	int fds[WIRE_FDS_MAX];
};

void wire_batch_init(struct wire_batch *batch);
void wire_batch_fini(struct wire_batch *batch);
/* Forgets the records. The memory stays. */
void wire_batch_clear(struct wire_batch *batch);

/*
 * Adds a record of len bytes (its struct and the data behind), zeroed struct wire_record filled in;
 * the rest is the caller's to write. fd: a descriptor that goes with it, or -1.
 * Returns NULL where the batch is full (send it first), or, with errno ENOMEM, out of memory, or
 * EMSGSIZE where no message could hold it.
 */
void *wire_batch_add(
	struct wire_batch *batch, enum wire_type type, uint16_t flags, size_t len, int fd);
/* Whether wire_batch_add() of such a record would find room. */
bool wire_batch_fits(const struct wire_batch *batch, size_t len, bool with_fd);

/*
 * Sends the batch as one message and clears it. Returns 0; -EAGAIN where the channel is full, also
 * for ETOOMANYREFS, ENOBUFS and ENOMEM, which pass; or -errno (EPIPE, ECONNRESET: the other end has
 * gone). Unless 0, the batch is as before.
 */
int wire_send(int channel_fd, struct wire_batch *batch, uint32_t n_taken);

/* One received message. Owns the descriptors that were not taken. */
struct wire_inbox {
	uint8_t *data; /* WIRE_MESSAGE_MAX bytes */
	size_t len, at;
	uint32_t n_taken;
	unsigned n_records; /* still to come */
	unsigned n_fds, next_fd;
	bool fds_lost; /* some descriptors could not be installed: later ones of this message are -1
			*/
	int fds[WIRE_FDS_MAX];
};

/* Returns 0 or -ENOMEM. */
int wire_inbox_init(struct wire_inbox *inbox);
void wire_inbox_fini(struct wire_inbox *inbox);

enum wire_received {
	WIRE_MESSAGE = 1,
	WIRE_EOF = 2, /* the other end is closed, and everything it sent has been received */
};
/*
 * Receives one message. What the previous one left, descriptors too, is dropped.
 * Returns enum wire_received, -EAGAIN, -EPROTO where it is no message of this version (its
 * descriptors are closed), or -errno. ECONNRESET is no end: messages may follow it, so it is
 * swallowed and the next message received.
 */
int wire_receive(int channel_fd, struct wire_inbox *inbox);
/*
 * The next record of the message, 8-byte aligned, with at least as many bytes as its type's struct
 * has and all of record->len readable, and the lengths inside checked against it; NULL at the end.
 * Unless the end was reached, NULL means malformed: `*out_error` is then -EPROTO, else 0.
 */
const struct wire_record *wire_next(struct wire_inbox *inbox, int *out_error);
/* The next descriptor of the message, now the caller's, or -1 where there is none (or it was lost).
 */
int wire_take_fd(struct wire_inbox *inbox);

/* The data behind a lend or return, in order. Checked by wire_next(). */
static inline const uint8_t *wire_lend_data(const struct wire_lend *lend)
{
	return (const uint8_t *)(lend + 1);
}

static inline const uint8_t *wire_return_surplus(const struct wire_return *ret)
{
	return (const uint8_t *)(ret + 1);
}
