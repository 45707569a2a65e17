/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RING_BYTES (256 * 1024)
/* Of one line, escaped, with its prefix and line end. A quarter of the ring, so that a few fit. */
#define LINE_BYTES_MAX (64 * 1024)
/* Of one of our own lines. */
#define MESSAGE_BYTES_MAX 4096
/* Lines of one batch: what a pipe takes whole or not at all. */
#define BATCH_BYTES_MAX PIPE_BUF
#define STOP_MS 2000
/* The writer gives up a little before log_stop() does, so that it usually ends in order. */
#define WRITER_STOP_MS (STOP_MS - 200)
/* How soon a writer that waits for its reader sees that it is to stop. */
#define POLL_MS 100

enum log_state {
	LOG_DIRECT,   /* no writer: the caller writes */
	LOG_RUNNING,  /* the writer writes */
	LOG_STOPPING, /* the writer ends when the ring is empty, or at the deadline */
	LOG_ENDED,    /* it has, and is to be joined */
	LOG_STUCK,    /* nobody reads: lines are dropped */
};

/* What stands before each line in the ring. */
struct entry {
	uint32_t len; /* of the line, with its end */
	int32_t fd;
};

static struct {
	pthread_mutex_t lock; /* of everything here but level */
	pthread_cond_t filled, ended;
	pthread_t writer;
	enum log_state state;
	int64_t deadline_ms; /* of LOG_STOPPING */
	unsigned long n_lost;
	bool journal_known, journal[3]; /* by descriptor: leads to the journal */
	size_t head, used; /* of bytes: where the oldest entry begins; how many there are */
	bool left_behind;  /* a writer that log_stop() could not end */
	_Atomic int level;
} ring = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.filled = PTHREAD_COND_INITIALIZER,
	.ended = PTHREAD_COND_INITIALIZER,
	.level = LOG_LEVEL_INFO,
};

/* Apart from its counters, so that it takes no room in the program's file. */
static char ring_bytes[RING_BYTES];

/* The lines being written. Only the writer's while there is one, else under the lock. */
static char batch[LINE_BYTES_MAX];

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- Escaping ---- */

/* Bytes of the UTF-8 character at bytes; 0 where there is none, or one of the C1 control
 * characters. */
static size_t utf8_length(const unsigned char *bytes, size_t len)
{
	static const uint32_t smallest[] = { 0, 0, 0xa0, 0x800, 0x10000 };
	size_t n = bytes[0] >= 0xf0 ? 4 : bytes[0] >= 0xe0 ? 3 : 2;
	uint32_t c = bytes[0] & (0xff >> (n + 1));

	if (bytes[0] < 0xc2 || bytes[0] > 0xf4 || n > len)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((bytes[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (bytes[i] & 0x3f);
	}
	if (c < smallest[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	return n;
}

/* Bytes of the character at bytes that may stand as they are; 0: one byte is to be escaped. */
static size_t plain_length(const unsigned char *bytes, size_t len)
{
	if (bytes[0] >= 0x80)
		return utf8_length(bytes, len);
	return bytes[0] == '\t' || (bytes[0] >= 0x20 && bytes[0] != 0x7f);
}

/* room: at least 1. Returns the length of what is in buf. */
static size_t escape(char *buf, size_t room, const char *bytes, size_t len)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *at = (const unsigned char *)bytes, *end = at + len;
	size_t used = 0, cut = 0;

	while (at < end) {
		size_t plain = plain_length(at, (size_t)(end - at));
		size_t n = plain ? plain : 4;

		if (used + n >= room)
			break;
		if (plain)
			memcpy(buf + used, at, plain);
		else
			memcpy(buf + used, (char[]){ '\\', 'x', hex[*at >> 4], hex[*at & 15] }, 4);
		at += plain ? plain : 1;
		used += n;
		/* The last place between two characters where the dots still fit. */
		if (used + 4 <= room)
			cut = used;
	}
	if (at < end && room >= 4) {
		memcpy(buf + cut, "...", 3);
		used = cut + 3;
	}
	buf[used] = '\0';
	return used;
}

const char *log_escape(char *buf, size_t room, const char *bytes, size_t len)
{
	if (room > 0)
		escape(buf, room, bytes, len);
	return buf;
}

/* ---- The ring: all under the lock ---- */

static void ring_put(const void *data, size_t len)
{
	size_t tail = (ring.head + ring.used) % RING_BYTES;
	size_t first = len < RING_BYTES - tail ? len : RING_BYTES - tail;

	memcpy(ring_bytes + tail, data, first);
	memcpy(ring_bytes, (const char *)data + first, len - first);
	ring.used += len;
}

static void ring_peek(void *data, size_t len)
{
	size_t first = len < RING_BYTES - ring.head ? len : RING_BYTES - ring.head;

	memcpy(data, ring_bytes + ring.head, first);
	memcpy((char *)data + first, ring_bytes, len - first);
}

static void ring_take(void *data, size_t len)
{
	ring_peek(data, len);
	ring.head = (ring.head + len) % RING_BYTES;
	ring.used -= len;
}

static bool ring_push(int fd, const char *line, size_t len)
{
	struct entry entry = { .len = (uint32_t)len, .fd = fd };

	if (ring.used + sizeof(entry) + len > RING_BYTES)
		return false;
	ring_put(&entry, sizeof(entry));
	ring_put(line, len);
	return true;
}

/* JOURNAL_STREAM is DEVICE:INODE of the socket to the journal; see systemd.exec(5). */
static bool is_journal(int fd)
{
	const char *stream = getenv("JOURNAL_STREAM");
	uintmax_t device, inode;
	struct stat st;
	char end;

	return stream &&
	       sscanf(stream, "%" SCNuMAX ":%" SCNuMAX "%c", &device, &inode, &end) == 2 &&
	       fstat(fd, &st) == 0 && st.st_dev == (dev_t)device && st.st_ino == (ino_t)inode;
}

static void find_journal(void)
{
	for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++)
		ring.journal[fd] = is_journal(fd);
	ring.journal_known = true;
}

/* The <N> of syslog(3) levels; empty where the line does not go to the journal. */
static const char *level_prefix(int fd, enum log_level level)
{
	static const char *const prefixes[] = { "<3>", "<4>", "<5>", "<6>", "<7>" };

	if (!ring.journal_known)
		find_journal();
	return ring.journal[fd] ? prefixes[level] : "";
}

/* Where lines were lost, says so first: before the next line that fits, or when all is written. */
static bool push_lost(void)
{
	char line[64];
	int n;

	if (ring.n_lost == 0)
		return true;
	n = snprintf(line, sizeof(line), "%swarning: log: %lu %s lost\n",
		level_prefix(STDERR_FILENO, LOG_LEVEL_WARNING), ring.n_lost,
		ring.n_lost == 1 ? "line" : "lines");
	if (!ring_push(STDERR_FILENO, line, (size_t)n))
		return false;
	ring.n_lost = 0;
	return true;
}

/* As many whole lines for one descriptor as fit in a batch; one that is longer goes alone. */
static size_t take_batch(int *out_fd)
{
	struct entry entry;
	size_t len = 0;

	if (ring.used == 0)
		push_lost();
	while (ring.used > 0) {
		ring_peek(&entry, sizeof(entry));
		if (len > 0 && (entry.fd != *out_fd || len + entry.len > BATCH_BYTES_MAX))
			break;
		ring_take(&entry, sizeof(entry));
		ring_take(batch + len, entry.len);
		len += entry.len;
		*out_fd = entry.fd;
	}
	return len;
}

/* ---- Writing ---- */

/* Until when the writer may wait for its reader; INT64_MAX: for ever. */
static int64_t writer_deadline_ms(void)
{
	int64_t deadline;

	pthread_mutex_lock(&ring.lock);
	deadline = ring.state == LOG_RUNNING ? INT64_MAX : ring.deadline_ms;
	pthread_mutex_unlock(&ring.lock);
	return deadline;
}

/* deadline_of: asked again and again, because it may come nearer. Returns 0, -ETIMEDOUT or -errno.
 */
static int wait_writable(int fd, int64_t (*deadline_of)(void))
{
	struct pollfd poller = { .fd = fd, .events = POLLOUT };
	int n = 0;

	while (n == 0) {
		int64_t left = deadline_of() - now_ms();

		n = poll(&poller, 1, left <= 0 ? 0 : left < POLL_MS ? (int)left : POLL_MS);
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return -errno;
		if (n == 0 && left <= 0)
			return -ETIMEDOUT;
		n = n < 0 ? 0 : n;
	}
	return 0;
}

/* A pipe that poll(2) calls writable takes so much without blocking; a file takes everything. */
static size_t write_size(int fd, size_t len)
{
	struct stat st;

	if (len <= PIPE_BUF || (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)))
		return len;
	return PIPE_BUF;
}

/* Returns 0, -ETIMEDOUT where nobody reads, or another -errno: there is nobody to tell then. */
static int write_batch(int fd, size_t len, int64_t (*deadline_of)(void))
{
	size_t done = 0;

	while (done < len) {
		int r = wait_writable(fd, deadline_of);
		ssize_t n = r < 0 ? 0 : write(fd, batch + done, write_size(fd, len - done));

		if (r < 0)
			return r;
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return -errno;
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

/* The next batch, or 0 when the writer is to end. */
static size_t await_batch(int *out_fd)
{
	size_t len;

	pthread_mutex_lock(&ring.lock);
	while ((len = take_batch(out_fd)) == 0 && ring.state == LOG_RUNNING)
		pthread_cond_wait(&ring.filled, &ring.lock);
	pthread_mutex_unlock(&ring.lock);
	return len;
}

static void *writer_main(void *data)
{
	int fd, r = 0;
	size_t len;

	(void)data;
	pthread_setname_np(pthread_self(), "up-log");
	while (r != -ETIMEDOUT && (len = await_batch(&fd)) > 0)
		r = write_batch(fd, len, writer_deadline_ms);
	pthread_mutex_lock(&ring.lock);
	/* Not when log_stop() has already given up. */
	if (ring.state == LOG_STOPPING)
		ring.state = r == -ETIMEDOUT ? LOG_STUCK : LOG_ENDED;
	pthread_cond_signal(&ring.ended);
	pthread_mutex_unlock(&ring.lock);
	return NULL;
}

static int64_t direct_deadline_ms(void)
{
	return ring.deadline_ms;
}

/* Under the lock, which here nobody else wants for long: there is one thread, or the end is near.
 */
static void write_direct(void)
{
	size_t len;
	int fd;

	ring.deadline_ms = now_ms() + STOP_MS;
	while (ring.state == LOG_DIRECT && (len = take_batch(&fd)) > 0)
		if (write_batch(fd, len, direct_deadline_ms) == -ETIMEDOUT)
			ring.state = LOG_STUCK;
}

static void submit(int fd, const char *line, size_t len)
{
	pthread_mutex_lock(&ring.lock);
	if (ring.state == LOG_STUCK || !push_lost() || !ring_push(fd, line, len))
		ring.n_lost++;
	if (ring.state == LOG_DIRECT)
		write_direct();
	else
		pthread_cond_signal(&ring.filled);
	pthread_mutex_unlock(&ring.lock);
}

/* prefix goes in as it is, bytes escaped; line is room for both, made without the lock. */
static void log_line(int fd, enum log_level level, const char *prefix, const char *bytes,
	size_t len, char *line, size_t room)
{
	const char *journal;
	size_t used;
	int saved = errno;

	assert(fd == STDOUT_FILENO || fd == STDERR_FILENO);
	pthread_mutex_lock(&ring.lock);
	journal = level_prefix(fd, level);
	pthread_mutex_unlock(&ring.lock);
	used = (size_t)snprintf(line, room, "%s%s", journal, prefix);
	if (used > room / 2)
		used = room / 2;
	used += escape(line + used, room - used - 1, bytes, len);
	line[used++] = '\n';
	submit(fd, line, used);
	errno = saved;
}

/* ---- Life ---- */

int log_start(void)
{
	sigset_t all, before;
	int r;

	if (ring.state == LOG_RUNNING || ring.left_behind)
		return -EALREADY;
	find_journal();
	ring.state = LOG_RUNNING;
	/* The writer inherits the mask: no handler runs on it, and a write without a reader fails.
	 */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&ring.writer, NULL, writer_main, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r != 0)
		ring.state = LOG_DIRECT;
	return -r;
}

/* Under the lock. Returns whether the writer has ended. */
static bool await_writer(void)
{
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += STOP_MS / 1000;
	ring.deadline_ms = now_ms() + WRITER_STOP_MS;
	ring.state = LOG_STOPPING;
	pthread_cond_signal(&ring.filled);
	while (ring.state == LOG_STOPPING && r == 0)
		r = pthread_cond_clockwait(&ring.ended, &ring.lock, CLOCK_MONOTONIC, &until);
	return ring.state != LOG_STOPPING;
}

void log_stop(void)
{
	pthread_mutex_lock(&ring.lock);
	if (ring.state == LOG_RUNNING && await_writer()) {
		pthread_join(ring.writer, NULL);
	} else if (ring.state == LOG_STOPPING) {
		/* A write that blocks for good keeps the writer: it is left behind. */
		pthread_detach(ring.writer);
		ring.left_behind = true;
		ring.state = LOG_STUCK;
	}
	if (ring.state == LOG_ENDED) {
		ring.state = LOG_DIRECT;
		write_direct();
	}
	pthread_mutex_unlock(&ring.lock);
}

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&ring.level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
	return (enum log_level)atomic_load_explicit(&ring.level, memory_order_relaxed);
}

/* ---- Lines ---- */

static void log_message(enum log_level level, const char *fmt, va_list args)
{
	static const char *const names[] = {
		"error: ", "warning: ", "notice: ", "info: ", "debug: "
	};
	char message[MESSAGE_BYTES_MAX], line[MESSAGE_BYTES_MAX];
	int len;

	if (level > log_get_level())
		return;
	len = vsnprintf(message, sizeof(message), fmt, args);
	if (len < 0)
		return;
	if ((size_t)len >= sizeof(message))
		len = sizeof(message) - 1;
	/* Escaped although callers escape what they quote: a line of ours is one line in any case.
	 */
	log_line(STDERR_FILENO, level, names[level], message, (size_t)len, line, sizeof(line));
}

#define LOG_AT(level)                                                                              \
	va_list args;                                                                              \
	va_start(args, fmt);                                                                       \
	log_message(level, fmt, args);                                                             \
	va_end(args)

void log_error(const char *fmt, ...)
{
	LOG_AT(LOG_LEVEL_ERROR);
}

void log_warn(const char *fmt, ...)
{
	LOG_AT(LOG_LEVEL_WARNING);
}

void log_notice(const char *fmt, ...)
{
	LOG_AT(LOG_LEVEL_NOTICE);
}

void log_info(const char *fmt, ...)
{
	LOG_AT(LOG_LEVEL_INFO);
}

void log_debug(const char *fmt, ...)
{
	LOG_AT(LOG_LEVEL_DEBUG);
}

void log_forward(int fd, const char *prefix, const char *bytes, size_t len)
{
	char line[LINE_BYTES_MAX];

	log_line(fd, LOG_LEVEL_INFO, prefix, bytes, len, line, sizeof(line));
}
