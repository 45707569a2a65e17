/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "common/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/fd.h"

#define ALIGN8(n) (((size_t)(n) + 7) & ~(size_t)7)

/* The union gives the buffer the alignment of a struct cmsghdr: cmsg(3). */
union control_buffer {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(int) * WIRE_FDS_MAX)];
};

static size_t page_size(uint32_t n_slots)
{
	return n_slots * sizeof(struct wire_slot);
}

static int page_mmap(int fd, uint32_t n_slots, struct wire_slot **out_slots)
{
	void *mapped = mmap(NULL, page_size(n_slots), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (mapped == MAP_FAILED)
		return -errno;
	*out_slots = mapped;
	return 0;
}

int wire_page_new(uint32_t n_slots, struct wire_slot **out_slots, int *out_fd)
{
	FD_AUTO int fd = memfd_create("up-page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r;

	if (fd < 0 || ftruncate(fd, (off_t)page_size(n_slots)) < 0)
		return -errno;
	/* A worker that shrank the file would turn our next read into SIGBUS. */
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	r = page_mmap(fd, n_slots, out_slots);
	if (r < 0)
		return r;
	*out_fd = fd_take(&fd);
	return 0;
}

int wire_page_map(int *take_fd, uint32_t n_slots, struct wire_slot **out_slots)
{
	FD_AUTO int fd = fd_take(take_fd);
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (n_slots == 0 || (uint64_t)st.st_size != page_size(n_slots))
		return -EPROTO;
	return page_mmap(fd, n_slots, out_slots);
}

struct wire_slot *wire_page_free(struct wire_slot *slots, uint32_t n_slots)
{
	if (slots)
		munmap(slots, page_size(n_slots));
	return NULL;
}

int wire_channel_new(int *out_master_fd, int *out_worker_fd)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return -errno;
	*out_master_fd = pair[0];
	*out_worker_fd = pair[1];
	return 0;
}

void wire_batch_init(struct wire_batch *batch)
{
	batch->data = NULL;
	batch->room = 0;
	wire_batch_clear(batch);
}

void wire_batch_fini(struct wire_batch *batch)
{
	free(batch->data);
	wire_batch_init(batch);
}

void wire_batch_clear(struct wire_batch *batch)
{
	batch->len = sizeof(struct wire_message);
	batch->n_records = 0;
	batch->n_fds = 0;
}

bool wire_batch_fits(const struct wire_batch *batch, size_t len, bool with_fd)
{
	size_t end = batch->len + ALIGN8(len);

	if (with_fd && batch->n_fds == WIRE_FDS_MAX)
		return false;
	if (batch->n_records == 0)
		return end <= WIRE_MESSAGE_MAX;
	return end <= WIRE_BATCH_MAX && batch->n_records < UINT16_MAX;
}

static bool batch_grow(struct wire_batch *batch, size_t end)
{
	size_t room = batch->room ? batch->room : 16 * 1024;
	uint8_t *data;

	while (room < end)
		room *= 2;
	if (room == batch->room)
		return true;
	data = realloc(batch->data, room);
	if (!data)
		return false;
	batch->data = data;
	batch->room = room;
	return true;
}

void *wire_batch_add(
	struct wire_batch *batch, enum wire_type type, uint16_t flags, size_t len, int fd)
{
	size_t end = batch->len + ALIGN8(len);
	struct wire_record *record;

	errno = 0;
	if (!wire_batch_fits(batch, len, fd >= 0)) {
		errno = sizeof(struct wire_message) + ALIGN8(len) > WIRE_MESSAGE_MAX ? EMSGSIZE : 0;
		return NULL;
	}
	if (!batch_grow(batch, end)) {
		errno = ENOMEM;
		return NULL;
	}
	record = (struct wire_record *)(void *)(batch->data + batch->len);
	/* The padding too: no byte of ours goes to a worker by accident. */
	memset(batch->data + end - 8, 0, 8);
	record->type = type;
	record->flags = flags;
	record->len = (uint32_t)len;
	batch->len = end;
	batch->n_records++;
	if (fd >= 0)
		batch->fds[batch->n_fds++] = fd;
	return record;
}

static void put_fds(struct msghdr *msg, union control_buffer *control, const int *fds, unsigned n)
{
	struct cmsghdr *cmsg;

	if (n == 0)
		return;
	msg->msg_control = control->bytes;
	msg->msg_controllen = CMSG_SPACE(sizeof(int) * n);
	/* The padding behind an odd number of descriptors. */
	memset(control->bytes + msg->msg_controllen - sizeof(int), 0, sizeof(int));
	cmsg = CMSG_FIRSTHDR(msg);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n);
	memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * n);
}

static int send_error(int error)
{
	switch (error) {
	case ETOOMANYREFS: /* unix(7): descriptors in flight; passes as receivers take theirs */
	case ENOBUFS:
	case ENOMEM:
		return -EAGAIN;
	default:
		return -error;
	}
}

int wire_send(int channel_fd, struct wire_batch *batch, uint32_t n_taken)
{
	struct wire_message header = {
		.version = WIRE_VERSION,
		.n_records = batch->n_records,
		.len = (uint32_t)batch->len,
		.n_taken = n_taken,
	};
	union control_buffer control;
	struct iovec iov = { .iov_base = &header, .iov_len = sizeof(header) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (batch->n_records > 0) {
		memcpy(batch->data, &header, sizeof(header));
		iov.iov_base = batch->data;
		iov.iov_len = batch->len;
	}
	put_fds(&msg, &control, batch->fds, batch->n_fds);
	if (sendmsg(channel_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return send_error(errno);
	wire_batch_clear(batch);
	return 0;
}

int wire_inbox_init(struct wire_inbox *inbox)
{
	memset(inbox, 0, sizeof(*inbox));
	inbox->data = malloc(WIRE_MESSAGE_MAX);
	return inbox->data ? 0 : -ENOMEM;
}

static void inbox_drop(struct wire_inbox *inbox)
{
	while (inbox->next_fd < inbox->n_fds)
		close(inbox->fds[inbox->next_fd++]);
	inbox->n_fds = inbox->next_fd = 0;
	inbox->n_records = 0;
	inbox->len = inbox->at = 0;
	inbox->fds_lost = false;
}

void wire_inbox_fini(struct wire_inbox *inbox)
{
	inbox_drop(inbox);
	free(inbox->data);
	inbox->data = NULL;
}

static void collect_fds(struct wire_inbox *inbox, struct msghdr *msg)
{
	struct cmsghdr *cmsg;

	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		size_t n;

		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		/* The room of the last descriptor may be padding: count what the kernel says. */
		n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		if (n > WIRE_FDS_MAX - inbox->n_fds)
			n = WIRE_FDS_MAX - inbox->n_fds;
		memcpy(inbox->fds + inbox->n_fds, CMSG_DATA(cmsg), n * sizeof(int));
		inbox->n_fds += (unsigned)n;
	}
}

static int inbox_open(struct wire_inbox *inbox, size_t len)
{
	const struct wire_message *header = (const struct wire_message *)(void *)inbox->data;

	if (len < sizeof(*header) || header->version != WIRE_VERSION || header->len != len)
		return -EPROTO;
	inbox->len = len;
	inbox->at = sizeof(*header);
	inbox->n_taken = header->n_taken;
	inbox->n_records = header->n_records;
	return WIRE_MESSAGE;
}

int wire_receive(int channel_fd, struct wire_inbox *inbox)
{
	union control_buffer control;
	struct iovec iov = { .iov_base = inbox->data, .iov_len = WIRE_MESSAGE_MAX };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;
	int r;

	inbox_drop(inbox);
	do {
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		n = recvmsg(channel_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		/* A peer that died with unread messages is told first, what it sent comes after. */
	} while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	if (n < 0)
		return -errno;
	collect_fds(inbox, &msg);
	if (n == 0) {
		/* An empty datagram looks the same, and can carry descriptors. */
		inbox_drop(inbox);
		return WIRE_EOF;
	}
	inbox->fds_lost = (msg.msg_flags & MSG_CTRUNC) != 0;
	r = (msg.msg_flags & MSG_TRUNC) ? -EPROTO : inbox_open(inbox, (size_t)n);
	if (r < 0)
		inbox_drop(inbox);
	return r;
}

/* The shortest a record of that type may be; 0: no such type. */
static size_t struct_len(uint16_t type)
{
	switch (type) {
	case WIRE_SETUP:
		return sizeof(struct wire_setup);
	case WIRE_PING:
	case WIRE_PONG:
	case WIRE_READY:
	case WIRE_CHILD:
	case WIRE_LAST:
		return sizeof(struct wire_number);
	case WIRE_BOOT_FAILED:
		return sizeof(struct wire_record);
	case WIRE_LEND:
		return sizeof(struct wire_lend);
	case WIRE_RECALL:
		return sizeof(struct wire_recall);
	case WIRE_RETURN:
	case WIRE_DETACHED:
		return sizeof(struct wire_return);
	default:
		return 0;
	}
}

/* Whether the lengths inside add up to the record's. */
static bool lengths_agree(const struct wire_record *record)
{
	const struct wire_lend *lend = (const void *)record;
	const struct wire_return *ret = (const void *)record;
	uint64_t sum;

	switch (record->type) {
	case WIRE_LEND:
		sum = sizeof(*lend) + (uint64_t)lend->peer_len + lend->local_len + lend->head_len +
		      lend->ahead_len + lend->set_fields_len + lend->add_fields_len;
		return sum == record->len && lend->peer_len <= sizeof(struct sockaddr_storage) &&
		       lend->local_len <= sizeof(struct sockaddr_storage) &&
		       (uint64_t)lend->method_len + 1 + lend->target_len <= lend->head_len;
	case WIRE_RETURN:
	case WIRE_DETACHED:
		return sizeof(*ret) + (uint64_t)ret->surplus_len == record->len &&
		       ret->surplus_len <= WIRE_SURPLUS_MAX;
	case WIRE_BOOT_FAILED:
		return true;
	default:
		return record->len == struct_len(record->type);
	}
}

const struct wire_record *wire_next(struct wire_inbox *inbox, int *out_error)
{
	const struct wire_record *record = (const void *)(inbox->data + inbox->at);
	size_t left = inbox->len - inbox->at, shortest;

	*out_error = 0;
	if (inbox->n_records == 0) {
		*out_error = left == 0 ? 0 : -EPROTO;
		return NULL;
	}
	*out_error = -EPROTO;
	if (left < sizeof(*record) || record->len > left || ALIGN8(record->len) > left)
		return NULL;
	shortest = struct_len(record->type);
	if (shortest == 0 || record->len < shortest || !lengths_agree(record))
		return NULL;
	*out_error = 0;
	inbox->at += ALIGN8(record->len);
	inbox->n_records--;
	return record;
}

int wire_take_fd(struct wire_inbox *inbox)
{
	if (inbox->next_fd == inbox->n_fds)
		return -1;
	return inbox->fds[inbox->next_fd++];
}
