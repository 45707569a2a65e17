/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "case.h"
#include "common/fd.h"

/* Nobody's: has no capabilities, and hence no more descriptors in flight than its limit. */
#define UNPRIVILEGED 65534

struct fixture {
	int master_fd, worker_fd;
	struct wire_batch batch;
	struct wire_inbox inbox;
	int pipe_fds[2]; /* descriptors to send */
	int n_fds;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	alarm(CASE_DEADLINE_S);
	f->n_fds = case_count_fds();
	assert_int_equal(wire_channel_new(&f->master_fd, &f->worker_fd), 0);
	assert_int_equal(pipe2(f->pipe_fds, O_CLOEXEC), 0);
	assert_int_equal(wire_inbox_init(&f->inbox), 0);
	wire_batch_init(&f->batch);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	wire_batch_fini(&f->batch);
	wire_inbox_fini(&f->inbox);
	fd_close(&f->master_fd);
	fd_close(&f->worker_fd);
	fd_close(&f->pipe_fds[0]);
	fd_close(&f->pipe_fds[1]);
	assert_int_equal(case_count_fds(), f->n_fds);
	alarm(0);
	free(f);
	return 0;
}

/* One datagram of any bytes, with any descriptors. */
static void send_raw(int to, const void *bytes, size_t len, const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * 4)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	assert_true(n_fds <= 4);
	if (n_fds > 0) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		*CMSG_FIRSTHDR(&msg) = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(sizeof(int) * n_fds),
		};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, sizeof(int) * n_fds);
	}
	assert_int_equal(sendmsg(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL), len);
}

static void add_number(struct wire_batch *batch, enum wire_type type, uint64_t number)
{
	struct wire_number *record = wire_batch_add(batch, type, 0, sizeof(*record), -1);

	assert_non_null(record);
	record->number = number;
}

static void expect_number(struct wire_inbox *inbox, enum wire_type type, uint64_t number)
{
	int error = 1;
	const struct wire_number *record = (const void *)wire_next(inbox, &error);

	assert_non_null(record);
	assert_int_equal(error, 0);
	assert_int_equal(record->record.type, type);
	assert_int_equal(record->record.len, sizeof(*record));
	assert_int_equal(record->number, number);
}

static void expect_end(struct wire_inbox *inbox)
{
	int error = 1;

	assert_null(wire_next(inbox, &error));
	assert_int_equal(error, 0);
}

/* ---- Channel and page ---- */

static void both_ends_are_close_on_exec_and_do_not_block(void **state)
{
	struct fixture *f = *state;

	assert_true(fcntl(f->master_fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(f->worker_fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(f->master_fd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(f->worker_fd, F_GETFL) & O_NONBLOCK);
}

static void a_page_is_shared(void **state)
{
	struct wire_slot *ours, *theirs;
	int fd = -1;

	(void)state;
	assert_int_equal(wire_page_new(8, &ours, &fd), 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(wire_page_map(&fd, 8, &theirs), 0);
	assert_int_equal(fd, -1);
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(atomic_load(&ours[i].end), 0);
		assert_int_equal(atomic_load(&ours[i].taken), 0);
	}
	atomic_store(&theirs[7].end, 4711);
	atomic_store(&theirs[7].taken, 1);
	assert_int_equal(atomic_load(&ours[7].end), 4711);
	assert_int_equal(atomic_load(&ours[7].taken), 1);
	assert_null(wire_page_free(theirs, 8));
	assert_null(wire_page_free(ours, 8));
	assert_null(wire_page_free(NULL, 8));
}

/* A worker that shrank it would end the master with SIGBUS. */
static void a_page_cant_be_resized(void **state)
{
	struct wire_slot *slots;
	FD_AUTO int fd = -1;

	(void)state;
	assert_int_equal(wire_page_new(1000, &slots, &fd), 0);
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(ftruncate(fd, 1 << 20), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	atomic_store(&slots[999].end, 1);
	wire_page_free(slots, 1000);
}

static void a_page_of_another_size_is_refused_and_closed(void **state)
{
	static const uint32_t sizes[] = { 0, 7, 9, UINT32_MAX };
	struct wire_slot *slots, *mapped = NULL;
	FD_AUTO int fd = -1;

	(void)state;
	assert_int_equal(wire_page_new(8, &slots, &fd), 0);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		int copy = dup(fd);

		assert_int_equal(wire_page_map(&copy, sizes[i], &mapped), -EPROTO);
		assert_int_equal(copy, -1);
		assert_null(mapped);
	}
	wire_page_free(slots, 8);
}

static void what_is_no_file_is_no_page(void **state)
{
	struct fixture *f = *state;
	struct wire_slot *mapped = NULL;
	int copy = dup(f->pipe_fds[0]), none = -1;

	assert_int_equal(wire_page_map(&copy, 8, &mapped), -EPROTO);
	assert_int_equal(copy, -1);
	assert_int_equal(wire_page_map(&none, 8, &mapped), -EBADF);
}

/* ---- Batches ---- */

static void records_arrive_as_they_were_added(void **state)
{
	struct fixture *f = *state;
	const struct wire_record *record;
	const struct wire_lend *got;
	struct wire_lend *lend;
	int error;

	add_number(&f->batch, WIRE_PING, 7);
	lend = wire_batch_add(
		&f->batch, WIRE_LEND, WIRE_LEND_EXPECT, sizeof(*lend) + 19, f->pipe_fds[0]);
	memset(&lend->request_id, 0, sizeof(*lend) - sizeof(lend->record));
	lend->request_id = 99;
	lend->head_len = 16;
	lend->method_len = 3;
	lend->target_len = 1;
	lend->ahead_len = 3;
	memcpy(lend + 1, "GET / HTTP/1.1\r\nabc", 19);
	record = wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, sizeof(*record) + 3, -1);
	memcpy((uint8_t *)(uintptr_t)record + sizeof(*record), "why", 3);
	add_number(&f->batch, WIRE_PONG, UINT64_MAX);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 4711), 0);
	assert_int_equal(f->batch.n_records, 0);

	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	assert_int_equal(f->inbox.n_taken, 4711);
	assert_int_equal(f->inbox.n_records, 4);
	expect_number(&f->inbox, WIRE_PING, 7);
	got = (const void *)wire_next(&f->inbox, &error);
	assert_non_null(got);
	assert_int_equal((uintptr_t)got % 8, 0);
	assert_int_equal(got->record.type, WIRE_LEND);
	assert_int_equal(got->record.flags, WIRE_LEND_EXPECT);
	assert_int_equal(got->record.len, sizeof(*got) + 19);
	assert_int_equal(got->request_id, 99);
	assert_memory_equal(wire_lend_data(got), "GET / HTTP/1.1\r\nabc", 19);
	record = wire_next(&f->inbox, &error);
	assert_int_equal(record->type, WIRE_BOOT_FAILED);
	assert_int_equal(record->len, sizeof(*record) + 3);
	assert_memory_equal(record + 1, "why", 3);
	expect_number(&f->inbox, WIRE_PONG, UINT64_MAX);
	expect_end(&f->inbox);
	expect_end(&f->inbox);
}

static void a_message_without_records_acknowledges(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(wire_send(f->worker_fd, &f->batch, UINT32_MAX), 0);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	assert_int_equal(f->inbox.n_taken, UINT32_MAX);
	expect_end(&f->inbox);
	assert_int_equal(wire_take_fd(&f->inbox), -1);
}

/* What lies in the batch's memory from before is nobody's business. */
static void padding_and_header_are_clear(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[512];
	const struct wire_message *header = (const void *)bytes;

	for (size_t len = sizeof(struct wire_record); len < 40; len++) {
		size_t padded = (len + 7) & ~(size_t)7;
		uint8_t *record;

		wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, 256, -1);
		memset(f->batch.data, 0xee, f->batch.len);
		wire_batch_clear(&f->batch);
		record = wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, len, -1);
		memset(record + sizeof(struct wire_record), 0xaa, len - sizeof(struct wire_record));
		assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
		assert_int_equal(recv(f->worker_fd, bytes, sizeof(bytes), MSG_DONTWAIT),
			sizeof(*header) + padded);
		assert_int_equal(header->version, WIRE_VERSION);
		assert_int_equal(header->n_records, 1);
		assert_int_equal(header->len, sizeof(*header) + padded);
		assert_int_equal(header->reserved, 0);
		record = bytes + sizeof(*header);
		assert_int_equal(((struct wire_record *)(void *)record)->len, len);
		for (size_t i = len; i < padded; i++)
			assert_int_equal(record[i], 0);
	}
}

static void a_batch_is_full_by_bytes(void **state)
{
	struct fixture *f = *state;
	size_t n = 0, left;

	while (wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, 1000, -1))
		n++;
	assert_int_equal(errno, 0);
	assert_int_equal(n, (WIRE_BATCH_MAX - sizeof(struct wire_message)) / 1000);
	assert_int_equal(f->batch.n_records, n);
	assert_true(f->batch.len <= WIRE_BATCH_MAX);
	assert_false(wire_batch_fits(&f->batch, 1000, false));
	/* To the last byte. */
	left = WIRE_BATCH_MAX - f->batch.len;
	assert_true(wire_batch_fits(&f->batch, left, false));
	assert_false(wire_batch_fits(&f->batch, left + 1, false));
	assert_non_null(wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, left, -1));
	assert_int_equal(f->batch.len, WIRE_BATCH_MAX);
	assert_false(wire_batch_fits(&f->batch, sizeof(struct wire_record), false));
	wire_batch_clear(&f->batch);
	assert_true(wire_batch_fits(&f->batch, 1000, false));
}

static void a_batch_is_full_by_descriptors(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < WIRE_FDS_MAX; i++)
		assert_non_null(wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0,
			sizeof(struct wire_record), f->pipe_fds[i % 2]));
	assert_false(wire_batch_fits(&f->batch, sizeof(struct wire_record), true));
	assert_null(wire_batch_add(
		&f->batch, WIRE_BOOT_FAILED, 0, sizeof(struct wire_record), f->pipe_fds[0]));
	assert_int_equal(errno, 0);
	add_number(&f->batch, WIRE_PING, 1);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	assert_int_equal(f->inbox.n_fds, WIRE_FDS_MAX);
	assert_false(f->inbox.fds_lost);
	for (unsigned i = 0; i < WIRE_FDS_MAX; i++) {
		FD_AUTO int fd = wire_take_fd(&f->inbox);

		assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
		assert_int_equal(
			(fcntl(fd, F_GETFL) & O_ACCMODE), i % 2 == 0 ? O_RDONLY : O_WRONLY);
	}
	assert_int_equal(wire_take_fd(&f->inbox), -1);
}

static void a_long_record_travels_alone(void **state)
{
	struct fixture *f = *state;
	const struct wire_record *record;
	size_t longest = WIRE_MESSAGE_MAX - sizeof(struct wire_message);
	int error;

	add_number(&f->batch, WIRE_PING, 1);
	assert_null(wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, longest, -1));
	assert_int_equal(errno, 0);
	wire_batch_clear(&f->batch);
	record = wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, longest, f->pipe_fds[0]);
	assert_non_null(record);
	memset((uint8_t *)(uintptr_t)(record + 1), 0x5a, longest - sizeof(*record));
	assert_false(wire_batch_fits(&f->batch, sizeof(struct wire_record), false));
	assert_null(wire_batch_add(&f->batch, WIRE_PING, 0, sizeof(struct wire_number), -1));
	assert_int_equal(errno, 0);
	/* Through a channel with the kernel's default buffers. */
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	record = wire_next(&f->inbox, &error);
	assert_non_null(record);
	assert_int_equal(record->len, longest);
	assert_int_equal(((const uint8_t *)record)[longest - 1], 0x5a);
	expect_end(&f->inbox);
}

static void what_no_message_can_hold_is_refused(void **state)
{
	struct fixture *f = *state;
	size_t longest = WIRE_MESSAGE_MAX - sizeof(struct wire_message);

	assert_null(wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, longest + 1, -1));
	assert_int_equal(errno, EMSGSIZE);
	add_number(&f->batch, WIRE_PING, 1);
	assert_null(wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, longest + 1, -1));
	assert_int_equal(errno, EMSGSIZE);
	assert_int_equal(f->batch.n_records, 1);
}

/* ---- Sending ---- */

static void a_full_channel_leaves_the_batch_as_it_was(void **state)
{
	struct fixture *f = *state;
	uint64_t n = 0;
	size_t len;
	int r;

	for (;;) {
		struct wire_number *record = wire_batch_add(
			&f->batch, WIRE_PING, 0, sizeof(*record), f->pipe_fds[n % 2]);

		record->number = n;
		len = f->batch.len;
		r = wire_send(f->master_fd, &f->batch, 0);
		if (r < 0)
			break;
		n++;
	}
	assert_int_equal(r, -EAGAIN);
	assert_true(n > 0);
	assert_int_equal(f->batch.n_records, 1);
	assert_int_equal(f->batch.n_fds, 1);
	assert_int_equal(f->batch.len, len);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), -EAGAIN);
	for (uint64_t i = 0; i <= n; i++) {
		FD_AUTO int fd = -1;

		/* What was refused goes out when there is room, once. */
		if (i == n)
			assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
		assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
		fd = wire_take_fd(&f->inbox);
		assert_true(case_same_file(fd, f->pipe_fds[i % 2]));
		expect_number(&f->inbox, WIRE_PING, i);
		expect_end(&f->inbox);
	}
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
}

static void a_closed_channel_is_told_and_leaves_the_batch(void **state)
{
	struct fixture *f = *state;

	fd_close(&f->worker_fd);
	add_number(&f->batch, WIRE_PING, 1);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), -EPIPE);
	assert_int_equal(f->batch.n_records, 1);
}

enum { PROVOKED = 0, BROKEN = 1, NOT_PROVOKED = 2 };

/*
 * In a child without capabilities: more descriptors in flight than its limit is ETOOMANYREFS, which
 * passes when they are received.
 */
static int provoke_too_many_references(struct fixture *f)
{
	const struct rlimit few = { .rlim_cur = 20, .rlim_max = 20 };
	int r = 0, n = 0;

	if (setrlimit(RLIMIT_NOFILE, &few) < 0 ||
		(geteuid() == 0 && setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED) < 0))
		return NOT_PROVOKED;
	while (r == 0 && n++ < 10) {
		for (unsigned i = 0; i < 8; i++)
			wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, sizeof(struct wire_record),
				f->pipe_fds[0]);
		r = wire_send(f->master_fd, &f->batch, 0);
	}
	/* Ten such messages are far from filling the channel. */
	if (r == 0)
		return NOT_PROVOKED;
	if (r != -EAGAIN || f->batch.n_fds != 8 || f->batch.n_records != 8)
		return BROKEN;
	while (wire_receive(f->worker_fd, &f->inbox) == WIRE_MESSAGE)
		;
	while (wire_receive(f->worker_fd, &f->inbox) == WIRE_MESSAGE)
		;
	return wire_send(f->master_fd, &f->batch, 0) == 0 ? PROVOKED : BROKEN;
}

static void too_many_descriptors_in_flight_is_a_full_channel(void **state)
{
	struct fixture *f = *state;
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(provoke_too_many_references(f));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == NOT_PROVOKED)
		skip();
	assert_int_equal(WEXITSTATUS(status), PROVOKED);
}

/* ---- Receiving ---- */

static void an_empty_channel_is_eagain_and_a_closed_one_is_the_end(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(wire_receive(f->master_fd, &f->inbox), -EAGAIN);
	add_number(&f->batch, WIRE_PONG, 1);
	assert_int_equal(wire_send(f->worker_fd, &f->batch, 0), 0);
	fd_close(&f->worker_fd);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	expect_number(&f->inbox, WIRE_PONG, 1);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_EOF);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_EOF);
	expect_end(&f->inbox);
}

/* Dies with a message unread, and with two of its own on the way. */
static void die_with_unread(struct fixture *f)
{
	add_number(&f->batch, WIRE_PING, 1);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	for (uint64_t i = 1; i <= 2; i++) {
		add_number(&f->batch, WIRE_PONG, i);
		assert_int_equal(wire_send(f->worker_fd, &f->batch, 0), 0);
	}
	fd_close(&f->worker_fd);
}

static void messages_behind_a_reset_are_received(void **state)
{
	struct fixture *f = *state;
	char byte;

	/* The kernel does so: else this case would prove nothing. */
	die_with_unread(f);
	assert_int_equal(recv(f->master_fd, &byte, 1, MSG_DONTWAIT), -1);
	assert_int_equal(errno, ECONNRESET);
	fd_close(&f->master_fd);
	assert_int_equal(wire_channel_new(&f->master_fd, &f->worker_fd), 0);

	die_with_unread(f);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	expect_number(&f->inbox, WIRE_PONG, 1);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	expect_number(&f->inbox, WIRE_PONG, 2);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_EOF);
}

static void descriptors_arrive_in_order(void **state)
{
	struct fixture *f = *state;
	const int sent[] = { f->pipe_fds[1], f->master_fd, f->pipe_fds[0], f->worker_fd };

	for (unsigned i = 0; i < 4; i++)
		assert_non_null(wire_batch_add(
			&f->batch, WIRE_BOOT_FAILED, 0, sizeof(struct wire_record), sent[i]));
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	for (unsigned i = 0; i < 4; i++) {
		FD_AUTO int fd = wire_take_fd(&f->inbox);

		assert_true(case_same_file(fd, sent[i]));
		assert_int_equal(
			fcntl(fd, F_GETFL) & O_ACCMODE, fcntl(sent[i], F_GETFL) & O_ACCMODE);
		assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	}
	assert_int_equal(wire_take_fd(&f->inbox), -1);
}

static void descriptors_that_nobody_took_are_closed_with_the_next_message(void **state)
{
	struct fixture *f = *state;
	int before = case_count_fds(), taken;

	for (unsigned i = 0; i < 3; i++)
		wire_batch_add(
			&f->batch, WIRE_BOOT_FAILED, 0, sizeof(struct wire_record), f->pipe_fds[0]);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	assert_int_equal(case_count_fds(), before + 3);
	taken = wire_take_fd(&f->inbox);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	assert_int_equal(case_count_fds(), before + 1);
	assert_true(case_same_file(taken, f->pipe_fds[0]));
	fd_close(&taken);
	assert_int_equal(wire_take_fd(&f->inbox), -1);
}

/* The kernel closes what it can't install, and says only that. */
static void at_the_limit_of_descriptors_the_rest_is_lost_and_the_message_kept(void **state)
{
	struct fixture *f = *state;
	struct rlimit before, low;
	int room = dup(f->pipe_fds[0]), first, r;

	for (uint64_t i = 0; i < 3; i++) {
		struct wire_number *record =
			wire_batch_add(&f->batch, WIRE_PING, 0, sizeof(*record), f->pipe_fds[1]);

		record->number = i;
	}
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	low = (struct rlimit){ .rlim_cur = (rlim_t)room + 1, .rlim_max = before.rlim_max };
	fd_close(&room);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	r = wire_receive(f->worker_fd, &f->inbox);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(r, WIRE_MESSAGE);
	assert_true(f->inbox.fds_lost);
	first = wire_take_fd(&f->inbox);
	assert_true(case_same_file(first, f->pipe_fds[1]));
	fd_close(&first);
	assert_int_equal(wire_take_fd(&f->inbox), -1);
	assert_int_equal(wire_take_fd(&f->inbox), -1);
	for (uint64_t i = 0; i < 3; i++)
		expect_number(&f->inbox, WIRE_PING, i);
	expect_end(&f->inbox);
	/* The next message is a whole one again. */
	wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, sizeof(struct wire_record), f->pipe_fds[1]);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	assert_false(f->inbox.fds_lost);
}

/* ---- What is no message ---- */

/* Sends the bytes with two descriptors. They must be gone when the receiver is done. */
static void expect_no_message(struct fixture *f, const void *bytes, size_t len)
{
	int before = case_count_fds();

	send_raw(f->worker_fd, bytes, len, f->pipe_fds, 2);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), -EPROTO);
	assert_int_equal(case_count_fds(), before);
	assert_int_equal(wire_take_fd(&f->inbox), -1);
	expect_end(&f->inbox);
}

static void bad_headers_are_no_message(void **state)
{
	struct fixture *f = *state;
	struct wire_message good = { .version = WIRE_VERSION, .len = sizeof(good) }, bad;
	uint8_t *big = calloc(1, WIRE_MESSAGE_MAX + 8);

	for (size_t len = 1; len < sizeof(good); len++)
		expect_no_message(f, &good, len);
	bad = good;
	bad.version = WIRE_VERSION + 1;
	expect_no_message(f, &bad, sizeof(bad));
	bad.version = 0;
	expect_no_message(f, &bad, sizeof(bad));
	bad = good;
	bad.len--;
	expect_no_message(f, &bad, sizeof(bad));
	bad.len += 2;
	expect_no_message(f, &bad, sizeof(bad));
	bad.len = UINT32_MAX;
	expect_no_message(f, &bad, sizeof(bad));
	/* Longer than any message is, and cut off to one that would be right. */
	bad.len = WIRE_MESSAGE_MAX;
	memcpy(big, &bad, sizeof(bad));
	expect_no_message(f, big, WIRE_MESSAGE_MAX + 8);
	/* The good one is good. */
	send_raw(f->worker_fd, &good, sizeof(good), NULL, 0);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	free(big);
}

/* A datagram of no bytes looks like the end, but can carry descriptors. */
static void descriptors_of_an_empty_datagram_are_closed(void **state)
{
	struct fixture *f = *state;
	int before = case_count_fds();

	send_raw(f->worker_fd, "", 0, f->pipe_fds, 2);
	assert_true(wire_receive(f->master_fd, &f->inbox) != WIRE_MESSAGE);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), -EAGAIN);
	assert_int_equal(case_count_fds(), before);
}

/* A message of one record, for the cases to spoil. */
struct one {
	struct wire_message message;
	union {
		struct wire_record record;
		struct wire_number number;
		struct wire_setup setup;
		struct wire_lend lend;
		struct wire_recall recall;
		struct wire_return ret;
		uint8_t bytes[512];
	};
};

static struct one one_of(enum wire_type type, size_t len)
{
	struct one one = { .record = { .type = (uint16_t)type, .len = (uint32_t)len } };

	one.message = (struct wire_message){
		.version = WIRE_VERSION,
		.n_records = 1,
		.len = (uint32_t)(sizeof(one.message) + ((len + 7) & ~(size_t)7)),
	};
	return one;
}

static void expect_one(struct fixture *f, const struct one *one, bool good)
{
	const struct wire_record *record;
	int before = case_count_fds(), error = 1;

	send_raw(f->worker_fd, one, one->message.len, f->pipe_fds, 2);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	record = wire_next(&f->inbox, &error);
	assert_int_equal(record != NULL, good);
	assert_int_equal(error, good ? 0 : -EPROTO);
	assert_null(wire_next(&f->inbox, &error));
	assert_int_equal(error, good ? 0 : -EPROTO);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), -EAGAIN);
	assert_int_equal(case_count_fds(), before);
}

static void record_types_have_their_lengths(void **state)
{
	static const struct {
		enum wire_type type;
		size_t len;
	} fixed[] = {
		{ WIRE_SETUP, sizeof(struct wire_setup) },
		{ WIRE_PING, sizeof(struct wire_number) },
		{ WIRE_READY, sizeof(struct wire_number) },
		{ WIRE_PONG, sizeof(struct wire_number) },
		{ WIRE_CHILD, sizeof(struct wire_number) },
		{ WIRE_LAST, sizeof(struct wire_number) },
		{ WIRE_RECALL, sizeof(struct wire_recall) },
		{ WIRE_RETURN, sizeof(struct wire_return) },
		{ WIRE_DETACHED, sizeof(struct wire_return) },
	};
	struct one one;

	for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++)
		for (size_t len = 8; len <= fixed[i].len + 16; len++) {
			one = one_of(fixed[i].type, len);
			expect_one(*state, &one, len == fixed[i].len);
		}
	for (size_t len = 8; len < 24; len++) {
		one = one_of(WIRE_BOOT_FAILED, len);
		expect_one(*state, &one, true);
	}
}

static void unknown_record_types_are_malformed(void **state)
{
	static const uint16_t types[] = { 0, 3, 15, 20, 31, 35, 47, 50, 256 + WIRE_PING,
		UINT16_MAX };

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		struct one one = one_of(WIRE_PING, sizeof(struct wire_number));

		expect_one(*state, &one, true);
		one.record.type = types[i];
		expect_one(*state, &one, false);
		one.record.len = 0;
		expect_one(*state, &one, false);
	}
}

static void record_lengths_past_the_message_are_malformed(void **state)
{
	static const uint32_t lens[] = { 0, 1, 7, 25, 32, 64 * 1024, UINT32_MAX - 7, UINT32_MAX };
	struct one one;

	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		one = one_of(WIRE_BOOT_FAILED, 24);
		one.record.len = lens[i];
		expect_one(*state, &one, false);
	}
	/* Its padding is cut off. */
	one = one_of(WIRE_BOOT_FAILED, 21);
	one.message.len -= 3;
	expect_one(*state, &one, false);
	/* Less than a record is left. */
	one = one_of(WIRE_BOOT_FAILED, 8);
	one.message.len -= 4;
	expect_one(*state, &one, false);
	one.message.len -= 4;
	expect_one(*state, &one, false);
}

static void more_or_fewer_records_than_announced_are_malformed(void **state)
{
	struct fixture *f = *state;
	struct one one = one_of(WIRE_BOOT_FAILED, 8);
	int error;

	one.message.n_records = 2;
	send_raw(f->worker_fd, &one, one.message.len, NULL, 0);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	assert_non_null(wire_next(&f->inbox, &error));
	assert_int_equal(error, 0);
	assert_null(wire_next(&f->inbox, &error));
	assert_int_equal(error, -EPROTO);

	one.message.n_records = 0;
	expect_one(*state, &one, false);
	one = one_of(WIRE_BOOT_FAILED, 8);
	one.message.len += 8;
	send_raw(f->worker_fd, &one, one.message.len, NULL, 0);
	assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
	assert_non_null(wire_next(&f->inbox, &error));
	assert_null(wire_next(&f->inbox, &error));
	assert_int_equal(error, -EPROTO);
}

static struct one a_lend(void)
{
	struct one one = one_of(WIRE_LEND, sizeof(struct wire_lend) + 16 + 16 + 40 + 10 + 5 + 3);

	one.lend.peer_len = 16;
	one.lend.local_len = 16;
	one.lend.head_len = 40;
	one.lend.ahead_len = 10;
	one.lend.set_fields_len = 5;
	one.lend.add_fields_len = 3;
	one.lend.method_len = 3;
	one.lend.target_len = 36;
	return one;
}

static void lengths_inside_a_lend_must_add_up(void **state)
{
	struct one good = a_lend(), bad;
	uint32_t *const lens[] = { &bad.lend.head_len, &bad.lend.ahead_len,
		&bad.lend.set_fields_len, &bad.lend.add_fields_len };

	expect_one(*state, &good, true);
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		static const uint32_t by[] = { 1, 8, UINT32_MAX };

		for (size_t j = 0; j < sizeof(by) / sizeof(by[0]); j++) {
			bad = good;
			/* The last is one less. */
			*lens[i] += by[j];
			bad.lend.target_len = 1;
			expect_one(*state, &bad, false);
		}
	}
	/* A sum that is right only modulo 2^32. */
	bad = good;
	bad.lend.head_len += (uint32_t)1 << 31;
	bad.lend.ahead_len += (uint32_t)1 << 31;
	expect_one(*state, &bad, false);
}

static void addresses_in_a_lend_fit_a_sockaddr(void **state)
{
	struct one good = a_lend(), bad = good;

	bad.lend.peer_len += 1;
	expect_one(*state, &bad, false);
	bad = one_of(WIRE_LEND, sizeof(struct wire_lend) + 128 + 40);
	bad.lend.head_len = 40;
	bad.lend.peer_len = sizeof(struct sockaddr_storage);
	expect_one(*state, &bad, true);
	bad.lend.peer_len++;
	bad.lend.head_len--;
	expect_one(*state, &bad, false);
	bad.lend.local_len = bad.lend.peer_len;
	bad.lend.peer_len = 0;
	expect_one(*state, &bad, false);
	bad.lend.local_len--;
	bad.lend.head_len++;
	expect_one(*state, &bad, true);
}

static void the_target_lies_within_the_head(void **state)
{
	struct one one = a_lend();

	one.lend.target_len++;
	expect_one(*state, &one, false);
	one.lend.target_len = UINT32_MAX;
	expect_one(*state, &one, false);
	one.lend.target_len = 1;
	one.lend.method_len = 39;
	expect_one(*state, &one, false);
	one.lend.method_len = UINT16_MAX;
	expect_one(*state, &one, false);
	one.lend.method_len = 38;
	expect_one(*state, &one, true);
}

static void the_surplus_of_a_return_is_all_that_follows(void **state)
{
	struct one one = one_of(WIRE_RETURN, sizeof(struct wire_return) + 100);

	expect_one(*state, &one, false);
	one.ret.surplus_len = 100;
	expect_one(*state, &one, true);
	one.record.type = WIRE_DETACHED;
	expect_one(*state, &one, true);
	one.ret.surplus_len = 101;
	expect_one(*state, &one, false);
	one.ret.surplus_len = UINT32_MAX;
	expect_one(*state, &one, false);
}

static void the_surplus_of_a_return_has_a_limit(void **state)
{
	struct fixture *f = *state;

	for (uint32_t surplus = WIRE_SURPLUS_MAX; surplus <= WIRE_SURPLUS_MAX + 1; surplus++) {
		struct wire_return *ret =
			wire_batch_add(&f->batch, WIRE_RETURN, 0, sizeof(*ret) + surplus, -1);
		int error;

		memset(&ret->request_id, 0, sizeof(*ret) + surplus - sizeof(ret->record));
		ret->surplus_len = surplus;
		assert_int_equal(wire_send(f->worker_fd, &f->batch, 0), 0);
		assert_int_equal(wire_receive(f->master_fd, &f->inbox), WIRE_MESSAGE);
		assert_int_equal(wire_next(&f->inbox, &error) != NULL, surplus <= WIRE_SURPLUS_MAX);
	}
}

static void descriptors_are_closed_with_the_inbox(void **state)
{
	struct fixture *f = *state;
	int before = case_count_fds();

	wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, sizeof(struct wire_record), f->pipe_fds[0]);
	assert_int_equal(wire_send(f->master_fd, &f->batch, 0), 0);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	assert_int_equal(case_count_fds(), before + 1);
	wire_inbox_fini(&f->inbox);
	assert_int_equal(case_count_fds(), before);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(both_ends_are_close_on_exec_and_do_not_block),
		CASE(a_page_is_shared),
		CASE(a_page_cant_be_resized),
		CASE(a_page_of_another_size_is_refused_and_closed),
		CASE(what_is_no_file_is_no_page),
		CASE(records_arrive_as_they_were_added),
		CASE(a_message_without_records_acknowledges),
		CASE(padding_and_header_are_clear),
		CASE(a_batch_is_full_by_bytes),
		CASE(a_batch_is_full_by_descriptors),
		CASE(a_long_record_travels_alone),
		CASE(what_no_message_can_hold_is_refused),
		CASE(a_full_channel_leaves_the_batch_as_it_was),
		CASE(a_closed_channel_is_told_and_leaves_the_batch),
		CASE(too_many_descriptors_in_flight_is_a_full_channel),
		CASE(an_empty_channel_is_eagain_and_a_closed_one_is_the_end),
		CASE(messages_behind_a_reset_are_received),
		CASE(descriptors_arrive_in_order),
		CASE(descriptors_that_nobody_took_are_closed_with_the_next_message),
		CASE(at_the_limit_of_descriptors_the_rest_is_lost_and_the_message_kept),
		CASE(bad_headers_are_no_message),
		CASE(descriptors_of_an_empty_datagram_are_closed),
		CASE(record_types_have_their_lengths),
		CASE(unknown_record_types_are_malformed),
		CASE(record_lengths_past_the_message_are_malformed),
		CASE(more_or_fewer_records_than_announced_are_malformed),
		CASE(lengths_inside_a_lend_must_add_up),
		CASE(addresses_in_a_lend_fit_a_sockaddr),
		CASE(the_target_lies_within_the_head),
		CASE(the_surplus_of_a_return_is_all_that_follows),
		CASE(the_surplus_of_a_return_has_a_limit),
		CASE(descriptors_are_closed_with_the_inbox),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
