/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * One datagram of arbitrary bytes, with descriptors, as a hostile worker may send it: what is
 * received lies within the message, what is inside adds up, and no descriptor is left. What was
 * accepted survives being sent again.
 *
 * The first byte of the input is for the test: how many descriptors go along (the lower two bits),
 * and whether the header is made right first (the bit above), so that mutations get past it.
 */
#include "common/wire.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define INPUT_FDS 0x03
#define INPUT_MEND 0x04

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int master_fd, worker_fd;
static struct wire_inbox inbox, again;
static struct wire_batch batch;

static void end(void)
{
	wire_inbox_fini(&inbox);
	wire_inbox_fini(&again);
	wire_batch_fini(&batch);
	close(master_fd);
	close(worker_fd);
}

static void begin(void)
{
	if (wire_channel_new(&master_fd, &worker_fd) < 0 || wire_inbox_init(&inbox) < 0 ||
		wire_inbox_init(&again) < 0)
		abort();
	wire_batch_init(&batch);
	atexit(end);
}

/* The number that the next descriptor would get. */
static int lowest_free_fd(void)
{
	int fd = dup(master_fd);

	assert(fd >= 0);
	close(fd);
	return fd;
}

/* Returns whether the kernel took it: it has no datagrams above its buffer's size. */
static bool send_bytes(uint8_t *bytes, size_t len, unsigned n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * INPUT_FDS)];
	} control = { 0 };
	const int fds[INPUT_FDS] = { master_fd, worker_fd, master_fd };
	struct iovec iov = { .iov_base = bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (n_fds > 0) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		control.align = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(sizeof(int) * n_fds),
		};
		memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * n_fds);
	}
	n = sendmsg(worker_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	assert(n == (ssize_t)len || errno == EMSGSIZE);
	return n == (ssize_t)len;
}

static void check_lend(const struct wire_lend *lend)
{
	const uint8_t *at = wire_lend_data(lend);

	assert(lend->peer_len <= sizeof(struct sockaddr_storage));
	assert(lend->local_len <= sizeof(struct sockaddr_storage));
	at += lend->peer_len + lend->local_len;
	assert((size_t)lend->method_len + lend->target_len < lend->head_len);
	at += (size_t)lend->head_len + lend->ahead_len;
	at += (size_t)lend->set_fields_len + lend->add_fields_len;
	assert(at == (const uint8_t *)lend + lend->record.len);
}

static void check_return(const struct wire_return *ret)
{
	assert(ret->surplus_len <= WIRE_SURPLUS_MAX);
	assert(wire_return_surplus(ret) + ret->surplus_len ==
		(const uint8_t *)ret + ret->record.len);
}

static void check_record(const struct wire_record *record)
{
	const uint8_t *begin_at = (const uint8_t *)record, *end_at = inbox.data + inbox.len;

	assert((uintptr_t)record % 8 == 0);
	assert(inbox.at <= inbox.len);
	assert(begin_at >= inbox.data + sizeof(struct wire_message) && begin_at < end_at);
	assert(record->len >= sizeof(*record) && record->len <= (size_t)(end_at - begin_at));
	switch (record->type) {
	case WIRE_SETUP:
		assert(record->len == sizeof(struct wire_setup));
		break;
	case WIRE_PING:
	case WIRE_READY:
	case WIRE_PONG:
	case WIRE_CHILD:
	case WIRE_LAST:
		assert(record->len == sizeof(struct wire_number));
		break;
	case WIRE_BOOT_FAILED:
		break;
	case WIRE_LEND:
		check_lend((const void *)record);
		break;
	case WIRE_RECALL:
		assert(record->len == sizeof(struct wire_recall));
		break;
	case WIRE_RETURN:
	case WIRE_DETACHED:
		check_return((const void *)record);
		break;
	default:
		abort();
	}
}

/* The record alone, sent by our own code, is received as it is. */
static void check_sent_again(const struct wire_record *record)
{
	const struct wire_record *got;
	void *copy = wire_batch_add(&batch, record->type, record->flags, record->len, -1);
	int error;

	assert(copy);
	memcpy(copy, record, record->len);
	assert(wire_send(worker_fd, &batch, 4711) == 0);
	assert(wire_receive(master_fd, &again) == WIRE_MESSAGE);
	assert(again.n_taken == 4711);
	got = wire_next(&again, &error);
	assert(got && error == 0);
	assert(got->len == record->len && memcmp(got, record, record->len) == 0);
	assert(!wire_next(&again, &error) && error == 0);
}

static void take_records(unsigned n_fds)
{
	const struct wire_record *record;
	unsigned n = inbox.n_records;
	int error, fd;

	while ((record = wire_next(&inbox, &error))) {
		assert(n-- > 0);
		check_record(record);
		check_sent_again(record);
	}
	assert(error == -EPROTO || (error == 0 && n == 0 && inbox.at == inbox.len));
	/* Some taken, the others left to the next message. */
	for (unsigned i = 0; i < n_fds; i++) {
		fd = i < 2 ? wire_take_fd(&inbox) : -1;
		assert(i >= 2 || fd >= 0);
		if (fd >= 0)
			close(fd);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned n_fds;
	uint8_t *bytes;
	int before, r;

	if (!inbox.data)
		begin();
	if (size < 1)
		return 0;
	n_fds = data[0] & INPUT_FDS;
	before = lowest_free_fd();
	bytes = malloc(size);
	if (!bytes)
		abort();
	memcpy(bytes, data + 1, size - 1);
	if ((data[0] & INPUT_MEND) && size - 1 >= sizeof(struct wire_message)) {
		struct wire_message *header = (struct wire_message *)(void *)bytes;

		header->version = WIRE_VERSION;
		header->len = (uint32_t)(size - 1);
	}
	if (send_bytes(bytes, size - 1, n_fds)) {
		r = wire_receive(master_fd, &inbox);
		assert(r == WIRE_MESSAGE || r == -EPROTO || (r == WIRE_EOF && size == 1));
		if (r == WIRE_MESSAGE)
			take_records(n_fds);
		else
			assert(lowest_free_fd() == before);
		assert(wire_receive(master_fd, &inbox) == -EAGAIN);
	}
	free(bytes);
	assert(lowest_free_fd() == before);
	return 0;
}
