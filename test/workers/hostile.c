/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * A worker without libup that does wrong when it is told to. It answers every request and then,
 * where the target is one of the names of the table below, breaks a rule of the channel.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/fd.h"
#include "common/wire.h"

static struct wire_inbox inbox;
static struct wire_batch batch;
static unsigned n_channels;
static uint32_t n_slots;
static struct channel {
	int fd;
	struct wire_slot *slots;
	uint32_t n_taken;
} channels[WIRE_CHANNELS_MAX];

/* ---- Sending ---- */

static void send_batch(int fd, uint32_t n_taken)
{
	/* The master may have closed it already: that is what the test is about. */
	wire_send(fd, &batch, n_taken);
	wire_batch_clear(&batch);
}

static void *add(enum wire_type type, size_t len, int fd)
{
	struct wire_record *record = wire_batch_add(&batch, type, 0, len, fd);

	if (!record)
		abort();
	memset(record + 1, 0, len - sizeof(*record));
	return record;
}

static void send_number(enum wire_type type, uint64_t number)
{
	((struct wire_number *)add(type, sizeof(struct wire_number), -1))->number = number;
	send_batch(WIRE_CONTROL_FD, 0);
}

static struct wire_return *add_return(
	const struct wire_lend *lend, uint64_t written, enum wire_type type, int fd)
{
	struct wire_return *ret = add(type, sizeof(*ret), fd);

	ret->request_id = lend->request_id;
	ret->slot = lend->slot;
	ret->written = written;
	ret->status = 200;
	ret->disposition = type == WIRE_RETURN ? WIRE_KEEP : 0;
	return ret;
}

static void send_raw(int fd, const void *bytes, size_t len)
{
	if (write(fd, bytes, len) < 0 && errno != EPIPE && errno != ECONNRESET)
		abort();
}

/* ---- Wrongs: each is called once the answer has been written, before it is reported ---- */

struct wrong {
	const char *name;
	void (*fn)(struct channel *channel, const struct wire_lend *lend, uint64_t written);
};

static void unlent(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	add_return(lend, written, WIRE_RETURN, -1)->request_id += 1000;
	send_batch(channel->fd, channel->n_taken);
}

static void far_slot(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	add_return(lend, written, WIRE_RETURN, -1)->slot = n_slots + 7;
	send_batch(channel->fd, channel->n_taken);
}

static void twice(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	add_return(lend, written, WIRE_RETURN, -1);
	add_return(lend, written, WIRE_RETURN, -1);
	send_batch(channel->fd, channel->n_taken);
}

static void detached_twice(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	add_return(lend, written, WIRE_DETACHED, -1);
	add_return(lend, written, WIRE_DETACHED, -1);
	send_batch(channel->fd, channel->n_taken);
}

static void with_descriptors(
	struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	add_return(lend, written, WIRE_RETURN, STDIN_FILENO);
	add_return(lend, written, WIRE_RETURN, STDERR_FILENO);
	send_batch(channel->fd, channel->n_taken);
}

static void disposition(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	add_return(lend, written, WIRE_RETURN, -1)->disposition = 99;
	send_batch(channel->fd, channel->n_taken);
}

static void unknown_record(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)lend, (void)written;
	add((enum wire_type)4711, sizeof(struct wire_record), -1);
	send_batch(channel->fd, channel->n_taken);
}

static void lends_itself(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	struct wire_lend *own = add(WIRE_LEND, sizeof(*own), -1);

	(void)written;
	own->request_id = lend->request_id;
	send_batch(channel->fd, channel->n_taken);
}

static void took_too_much(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	add_return(lend, written, WIRE_RETURN, -1);
	send_batch(channel->fd, channel->n_taken + 1000);
}

static void garbage(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	char bytes[5000];

	(void)lend, (void)written;
	memset(bytes, 0xA5, sizeof(bytes));
	send_raw(channel->fd, bytes, sizeof(bytes));
}

static void version(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	struct wire_message message = { .version = WIRE_VERSION + 1, .len = sizeof(message) };

	(void)lend, (void)written;
	send_raw(channel->fd, &message, sizeof(message));
}

static void long_record(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	struct {
		struct wire_message message;
		struct wire_return ret;
	} it = { .message = { .version = WIRE_VERSION, .n_records = 1, .len = sizeof(it) } };

	(void)written;
	it.message.n_taken = channel->n_taken;
	it.ret.record = (struct wire_record){ .type = WIRE_RETURN, .len = 1u << 30 };
	it.ret.request_id = lend->request_id;
	it.ret.surplus_len = 1u << 29;
	send_raw(channel->fd, &it, sizeof(it));
}

static void cut_record(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	struct wire_message message = {
		.version = WIRE_VERSION, .n_records = 3, .len = sizeof(message)
	};

	(void)lend, (void)written;
	message.n_taken = channel->n_taken;
	send_raw(channel->fd, &message, sizeof(message));
}

static void empty_message(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)lend, (void)written;
	send_raw(channel->fd, "", 0);
}

static void closes(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)lend, (void)written;
	fd_close(&channel->fd);
}

static void control_garbage(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)channel, (void)lend, (void)written;
	send_raw(WIRE_CONTROL_FD, "hello, master", 13);
}

static void control_record(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)channel;
	add_return(lend, written, WIRE_RETURN, -1);
	send_batch(WIRE_CONTROL_FD, 0);
}

static void control_descriptor(
	struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)channel, (void)lend, (void)written;
	add(WIRE_PONG, sizeof(struct wire_number), STDERR_FILENO);
	send_batch(WIRE_CONTROL_FD, 0);
}

static void control_closes(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)channel, (void)lend, (void)written;
	close(WIRE_CONTROL_FD);
	/* It lives on, and listens to nobody. */
	for (;;)
		pause();
}

static void mute(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)channel, (void)lend, (void)written;
	for (;;)
		pause();
}

/* Not seen by the master until it dies; then its marks are worth nothing. */
static void scribble(struct channel *channel, const struct wire_lend *lend, uint64_t written)
{
	(void)lend, (void)written;
	memset((void *)channel->slots, 0xFF, n_slots * sizeof(struct wire_slot));
	raise(SIGKILL);
}

static const struct wrong wrongs[] = {
	{ "/unlent", unlent },
	{ "/far-slot", far_slot },
	{ "/twice", twice },
	{ "/detached-twice", detached_twice },
	{ "/descriptors", with_descriptors },
	{ "/disposition", disposition },
	{ "/unknown-record", unknown_record },
	{ "/lends-itself", lends_itself },
	{ "/took-too-much", took_too_much },
	{ "/garbage", garbage },
	{ "/version", version },
	{ "/long-record", long_record },
	{ "/cut-record", cut_record },
	{ "/empty-message", empty_message },
	{ "/closes", closes },
	{ "/control-garbage", control_garbage },
	{ "/control-record", control_record },
	{ "/control-descriptor", control_descriptor },
	{ "/control-closes", control_closes },
	{ "/mute", mute },
	{ "/scribble", scribble },
};

/* ---- An ordinary worker ---- */

static void serve(struct channel *channel, const struct wire_lend *lend, int *take_fd)
{
	static const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nOK\n";
	FD_AUTO int fd = fd_take(take_fd);
	const char *target = (const char *)wire_lend_data(lend) + lend->peer_len + lend->local_len +
			     lend->method_len + 1;
	ssize_t n;

	channel->slots[lend->slot].taken = 1;
	channel->slots[lend->slot].end = sizeof(text) - 1;
	n = send(fd, text, sizeof(text) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	fd_close(&fd);
	if (n < 0)
		abort();
	for (size_t i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
		if (strlen(wrongs[i].name) == lend->target_len &&
			memcmp(wrongs[i].name, target, lend->target_len) == 0) {
			wrongs[i].fn(channel, lend, (uint64_t)n);
			return;
		}
	}
	add_return(lend, (uint64_t)n, WIRE_RETURN, -1);
	send_batch(channel->fd, channel->n_taken);
}

static void take_lends(struct channel *channel)
{
	const struct wire_record *record;
	int error, r = wire_receive(channel->fd, &inbox);

	if (r == WIRE_EOF)
		exit(0);
	while (r == WIRE_MESSAGE && (record = wire_next(&inbox, &error))) {
		int fd;

		if (record->type == WIRE_LAST)
			exit(0);
		if (record->type != WIRE_LEND)
			continue;
		fd = wire_take_fd(&inbox);
		channel->n_taken++;
		serve(channel, (const void *)record, &fd);
	}
}

static void set_up(const struct wire_setup *setup)
{
	n_channels = setup->n_channels;
	n_slots = setup->n_slots;
	for (unsigned i = 0; i < n_channels; i++) {
		int page_fd;

		channels[i].fd = wire_take_fd(&inbox);
		page_fd = wire_take_fd(&inbox);
		if (wire_page_map(&page_fd, n_slots, &channels[i].slots) < 0)
			abort();
	}
	send_number(WIRE_READY, 0);
}

static void take_control(void)
{
	const struct wire_record *record;
	int error, r = wire_receive(WIRE_CONTROL_FD, &inbox);

	if (r == WIRE_EOF)
		exit(0);
	while (r == WIRE_MESSAGE && (record = wire_next(&inbox, &error))) {
		if (record->type == WIRE_SETUP)
			set_up((const void *)record);
		else if (record->type == WIRE_PING)
			send_number(WIRE_PONG,
				((const struct wire_number *)(const void *)record)->number);
	}
}

int main(void)
{
	struct pollfd fds[1 + WIRE_CHANNELS_MAX];

	signal(SIGPIPE, SIG_IGN);
	wire_batch_init(&batch);
	if (wire_inbox_init(&inbox) < 0)
		return 1;
	for (;;) {
		fds[0] = (struct pollfd){ .fd = WIRE_CONTROL_FD, .events = POLLIN };
		for (unsigned i = 0; i < n_channels; i++)
			fds[1 + i] = (struct pollfd){ .fd = channels[i].fd, .events = POLLIN };
		if (poll(fds, 1 + n_channels, -1) < 0)
			return 1;
		for (unsigned i = 0; i < n_channels; i++)
			if (fds[1 + i].revents)
				take_lends(&channels[i]);
		if (fds[0].revents)
			take_control();
	}
}
