/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * libup as it ships, in a child process, over a master that is played here: it speaks wire.h, lends
 * loopback sockets, and looks at what comes back on the channel, on the page and at the client.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <up/worker.h>

#include "common/fd.h"
#include "common/wire.h"

#define DEADLINE_MS 10000
#define N_SLOTS 2048

/* ---- The application, in the child ---- */

static int events_fd = -1; /* a line for each thing that the application is told */

static void event(const char *fmt, ...)
{
	char line[256];
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	if (write(events_fd, line, (size_t)n) != n)
		_exit(99);
}

static void app_end(struct up_request *request, enum up_end how, void *data)
{
	(void)data;
	event("end %s %d\n", up_target(request), (int)how);
}

static void app_collected(struct up_request *request, const void *bytes, size_t len, void *data)
{
	(void)data;
	if (((const char *)bytes)[len] != '\0')
		_exit(98);
	up_respond(request, 200, "text/plain", bytes, len);
}

static void app_echo_piece(struct up_request *request, const void *bytes, size_t len, void *data)
{
	(void)data;
	if (!bytes)
		up_end(request);
	else if (up_write(request, bytes, len) == 1)
		up_body_pause(request);
}

static void app_echo_writable(struct up_request *request, void *data)
{
	(void)data;
	up_body_resume(request);
}

static void app_stream_more(struct up_request *request, void *data)
{
	static char chunk[10000];
	size_t *left = data;

	memset(chunk, 'x', sizeof(chunk));
	while (*left > 0) {
		size_t n = *left < sizeof(chunk) ? *left : sizeof(chunk);

		*left -= n;
		if (up_write(request, chunk, n) != 0)
			break;
	}
	if (*left == 0)
		up_end(request);
}

static void app_fields(struct up_request *request)
{
	char text[1024];
	const char *name, *value;
	int n = 0;

	for (size_t i = 0; up_field_at(request, i, &name, &value); i++)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "%s=%s;", name, value);
	value = up_field(request, "x-ONE");
	n += snprintf(text + n, sizeof(text) - (size_t)n, "%s %s %d %s %s", up_method(request),
		value ? value : "none", up_http_minor(request), up_scheme(request),
		up_peer_text(request));
	up_respond(request, 200, NULL, text, (size_t)n);
}

static void app_refused(struct up_request *request)
{
	char text[256];
	int n;

	n = snprintf(text, sizeof(text), "%d %d %d %d %d %d %d %d",
		up_add_field(request, "Content-Length", "3"), up_add_field(request, "Date", "x"),
		up_add_field(request, "X-A", "a\r\nb"), up_add_field(request, "X A", "a"),
		up_add_field(request, "Connection", "keep-alive"), up_write(request, "a", 1),
		up_respond(request, 99, NULL, NULL, 0), up_respond(request, 200, "a\nb", NULL, 0));
	up_respond(request, 200, NULL, text, (size_t)n);
}

static struct up_socket *kept;

static void app_kept_cb(struct up_socket *socket, int happened, void *data)
{
	static char buf[65536];
	long n = -EAGAIN;

	(void)data;
	if (happened & UP_WRITABLE)
		up_socket_watch(socket, UP_READABLE, app_kept_cb, NULL);
	if (happened & UP_READABLE)
		n = up_socket_read(socket, buf, sizeof(buf));
	if (n > 0) {
		if (up_socket_write(socket, buf, (size_t)n) == 1) {
			event("kept waits\n");
			up_socket_watch(socket, UP_WRITABLE, app_kept_cb, NULL);
		}
	} else if (n != -EAGAIN) {
		event("kept ends %ld\n", n);
		up_socket_close(socket);
	}
}

static void app_streams(struct up_request *request, const char *target, size_t *left)
{
	up_on_writable(request, app_stream_more, left);
	up_begin(request, 200, strstr(target, "known") ? *left : UP_LENGTH_UNKNOWN);
	app_stream_more(request, left);
}

static void app_odd(struct up_request *request, const char *target)
{
	static size_t left;
	static char big[4 * 1024 * 1024];

	if (strcmp(target, "/tick") == 0) {
		up_begin(request, 200, UP_LENGTH_UNKNOWN);
		up_write(request, "tick\n", 5);
	} else if (strncmp(target, "/stream", 7) == 0) {
		left = 3000000;
		app_streams(request, target, &left);
	} else if (strcmp(target, "/big") == 0) {
		memset(big, 'b', sizeof(big));
		up_respond(request, 200, NULL, big, sizeof(big));
	} else if (strcmp(target, "/borrowed") == 0) {
		for (size_t i = 0; i < sizeof(big); i++)
			big[i] = (char)('a' + i / 65536 % 26);
		up_respond_borrowed(request, 200, NULL, big, sizeof(big));
	} else if (strcmp(target, "/abort") == 0) {
		up_begin(request, 200, 10);
		up_abort(request);
	} else if (strcmp(target, "/short") == 0) {
		up_begin(request, 200, 10);
		up_write(request, "five!", 5);
		up_flush(request);
		up_end(request);
	} else if (strcmp(target, "/204") == 0) {
		up_respond(request, 204, NULL, "content", 7);
	} else if (strcmp(target, "/interim") == 0) {
		up_add_field(request, "Link", "</a>");
		up_interim(request, 103);
		up_respond(request, 200, NULL, "x", 1);
	} else if (strcmp(target, "/stop") == 0) {
		raise(SIGSTOP);
		up_respond(request, 200, NULL, "x", 1);
	} else if (strcmp(target, "/close") == 0) {
		up_add_field(request, "Connection", "close");
		up_respond(request, 200, NULL, "x", 1);
	} else if (strcmp(target, "/upgrade") == 0) {
		up_add_field(request, "Upgrade", "echo");
		int r = up_detach(request, &kept);

		event("detach %d\n", r);
		if (r == 0)
			up_socket_watch(kept, UP_READABLE, app_kept_cb, NULL);
	}
}

static void app_request(struct up_request *request, void *data)
{
	const char *target = up_target(request);

	(void)data;
	up_on_end(request, app_end, NULL);
	event("request %s\n", target);
	if (strcmp(target, "/hello") == 0) {
		up_respond(request, 200, "text/plain", "hello", 5);
	} else if (strcmp(target, "/collect") == 0) {
		up_body_collect(request, 100000, app_collected, NULL);
	} else if (strcmp(target, "/echo") == 0) {
		up_on_writable(request, app_echo_writable, NULL);
		up_body_pause(request);
		up_body_read(request, app_echo_piece, NULL);
		up_begin(request, 200, up_body_length(request));
		up_body_resume(request);
	} else if (strcmp(target, "/fields") == 0) {
		app_fields(request);
	} else if (strcmp(target, "/refused") == 0) {
		app_refused(request);
	} else {
		/* "/wait" and all that is not known here is never answered. */
		app_odd(request, target);
	}
}

static void app_drain(struct up_worker *worker, void *data)
{
	(void)worker;
	(void)data;
	event("drain\n");
}

static void app_shutdown(struct up_worker *worker, void *data)
{
	(void)worker;
	(void)data;
	event("shutdown\n");
}

static int app(struct up_worker *worker)
{
	if (getenv("APP_FAILS"))
		return 7;
	up_on_request(worker, app_request, NULL);
	up_on_drain(worker, app_drain, NULL);
	up_on_shutdown(worker, app_shutdown, NULL);
	return 0;
}

/* ---- The master ---- */

struct master {
	pid_t pid;
	int control_fd, channel_fd, page_fd, events_fd;
	struct wire_slot *slots;
	struct wire_batch batch;
	struct wire_inbox inbox; /* of the lending channel */
	struct wire_inbox control_inbox;
	uint64_t next_id;
	uint32_t n_taken;
	char events[65536];
	size_t events_len;
};

/* One lent socket: the client's end and ours. */
struct lent {
	int client_fd, master_fd;
	uint64_t id;
	uint32_t slot;
};

struct terms {
	const char *method, *target, *fields, *ahead, *set_fields, *add_fields;
	int body; /* enum wire_body */
	uint64_t body_len;
	uint16_t flags;
	bool http_1_0, small_buffers;
};

static struct wire_setup setup; /* for the next child */
static rlim_t child_files_max;	/* 0: as it is */

static void wait_readable(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&pollfd, 1, DEADLINE_MS), 1);
}

static _Noreturn void child(int control_fd, int events)
{
	struct rlimit files = { child_files_max, child_files_max };
	char *argv[] = { (char *)(uintptr_t) "test-up", NULL };

	/* 3 may be the events pipe. */
	events_fd = fcntl(events, F_DUPFD, 10);
	dup2(control_fd, WIRE_CONTROL_FD);
	close_range(WIRE_CONTROL_FD + 1, (unsigned)events_fd - 1, 0);
	close_range((unsigned)events_fd + 1, ~0U, 0);
	if (child_files_max)
		setrlimit(RLIMIT_NOFILE, &files);
	setenv(WIRE_ENV_MASTER_PID, "1", 1);
	setenv(WIRE_ENV_WORKER_ID, "4", 1);
	setenv(WIRE_ENV_GENERATION, "2", 1);
	_exit(up_worker_run(app, 1, argv));
}

static void send_setup(struct master *m, int worker_fd)
{
	struct wire_setup *record =
		wire_batch_add(&m->batch, WIRE_SETUP, 0, sizeof(*record), worker_fd);
	struct wire_record header = record->record;

	*record = setup;
	record->record = header;
	m->batch.fds[m->batch.n_fds++] = m->page_fd;
	assert_int_equal(wire_send(m->control_fd, &m->batch, 0), 0);
}

static const struct wire_record *receive_control(struct master *m)
{
	const struct wire_record *record;
	int error;

	wait_readable(m->control_fd);
	assert_int_equal(wire_receive(m->control_fd, &m->control_inbox), WIRE_MESSAGE);
	record = wire_next(&m->control_inbox, &error);
	assert_non_null(record);
	return record;
}

static void start(struct master *m)
{
	int worker_control, worker_fd, events[2];

	memset(m, 0, sizeof(*m));
	assert_int_equal(wire_channel_new(&m->control_fd, &worker_control), 0);
	assert_int_equal(wire_channel_new(&m->channel_fd, &worker_fd), 0);
	assert_int_equal(wire_page_new(N_SLOTS, &m->slots, &m->page_fd), 0);
	assert_int_equal(pipe2(events, O_CLOEXEC), 0);
	assert_int_equal(wire_inbox_init(&m->inbox), 0);
	assert_int_equal(wire_inbox_init(&m->control_inbox), 0);
	wire_batch_init(&m->batch);
	m->next_id = 1;
	m->events_fd = events[0];
	fflush(NULL);
	m->pid = fork();
	assert_true(m->pid >= 0);
	if (m->pid == 0)
		child(worker_control, events[1]);
	close(worker_control);
	close(events[1]);
	send_setup(m, worker_fd);
	close(worker_fd);
}

static int started(void **state)
{
	struct master *m = malloc(sizeof(*m));

	start(m);
	assert_int_equal(receive_control(m)->type, WIRE_READY);
	*state = m;
	return 0;
}

/* Its end of the pipe closes with it. Returns the exit status; -1 where a signal ended it. */
static int wait_for_child(struct master *m)
{
	char rest[256];
	int status;

	do
		wait_readable(m->events_fd);
	while (read(m->events_fd, rest, sizeof(rest)) > 0);
	assert_int_equal(waitpid(m->pid, &status, 0), m->pid);
	m->pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int finished(void **state)
{
	struct master *m = *state;

	if (m->pid > 0) {
		kill(m->pid, SIGKILL);
		waitpid(m->pid, NULL, 0);
	}
	close(m->events_fd);
	close(m->page_fd);
	fd_close(&m->channel_fd);
	fd_close(&m->control_fd);
	wire_page_free(m->slots, N_SLOTS);
	wire_batch_fini(&m->batch);
	wire_inbox_fini(&m->inbox);
	wire_inbox_fini(&m->control_inbox);
	free(m);
	memset(&setup, 0, sizeof(setup));
	setup.n_channels = 1;
	setup.n_slots = N_SLOTS;
	setup.assume_ready = 1;
	child_files_max = 0;
	return 0;
}

/* Two ends of a TCP connection. */
static void connect_pair(struct lent *lent, bool small_buffers)
{
	struct sockaddr_in addr = { .sin_family = AF_INET };
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), small = 4096;

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(listener, (struct sockaddr *)&addr, len), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	lent->client_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (small_buffers) {
		setsockopt(lent->client_fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
		setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	}
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(connect(lent->client_fd, (struct sockaddr *)&addr, len), 0);
	lent->master_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	assert_true(lent->master_fd >= 0);
	close(listener);
}

static size_t text_len(const char *text)
{
	return text ? strlen(text) : 0;
}

static void *append(uint8_t **at, const char *text)
{
	memcpy(*at, text ? text : "", text_len(text));
	*at += text_len(text);
	return *at;
}

/* Adds a lend of the connection in *lent to the batch. */
static void add_lend(struct master *m, const struct terms *terms, struct lent *lent)
{
	struct wire_lend *lend;
	struct timespec now;
	char head[2048];
	int head_len;
	uint8_t *at;

	head_len = snprintf(head, sizeof(head), "%s %s HTTP/1.%d\r\nHost: a\r\n%s\r\n",
		terms->method ? terms->method : "GET", terms->target, terms->http_1_0 ? 0 : 1,
		terms->fields ? terms->fields : "");
	lent->id = m->next_id++;
	lent->slot = (uint32_t)(lent->id % N_SLOTS);
	memset(&m->slots[lent->slot], 0, sizeof(m->slots[0]));
	lend = wire_batch_add(&m->batch, WIRE_LEND, terms->flags,
		sizeof(*lend) + (size_t)head_len + text_len(terms->ahead) +
			text_len(terms->set_fields) + text_len(terms->add_fields),
		lent->master_fd);
	assert_non_null(lend);
	clock_gettime(CLOCK_MONOTONIC, &now);
	memset(&lend->record + 1, 0, sizeof(*lend) - sizeof(lend->record));
	lend->request_id = lent->id;
	lend->connection_id = 1;
	lend->complete_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
	lend->body_len = terms->body_len;
	lend->slot = lent->slot;
	lend->head_len = (uint32_t)head_len;
	lend->ahead_len = (uint32_t)text_len(terms->ahead);
	lend->set_fields_len = (uint32_t)text_len(terms->set_fields);
	lend->add_fields_len = (uint32_t)text_len(terms->add_fields);
	lend->method_len = (uint16_t)strlen(terms->method ? terms->method : "GET");
	lend->target_len = (uint32_t)strlen(terms->target);
	lend->body = (uint8_t)terms->body;
	lend->http_minor = terms->http_1_0 ? 0 : 1;
	at = (uint8_t *)(lend + 1);
	append(&at, head);
	append(&at, terms->ahead);
	append(&at, terms->set_fields);
	append(&at, terms->add_fields);
}

static void send_batch(struct master *m)
{
	assert_int_equal(wire_send(m->channel_fd, &m->batch, 0), 0);
}

static struct lent lend(struct master *m, const struct terms *terms)
{
	struct lent lent;

	connect_pair(&lent, terms->small_buffers);
	add_lend(m, terms, &lent);
	send_batch(m);
	return lent;
}

static void lent_close(struct lent *lent)
{
	fd_close(&lent->client_fd);
	fd_close(&lent->master_fd);
}

/* The next record of the lending channel, over empty messages. */
static const struct wire_return *receive_record(struct master *m)
{
	const struct wire_record *record;
	int error;

	while (!(record = wire_next(&m->inbox, &error))) {
		assert_int_equal(error, 0);
		wait_readable(m->channel_fd);
		assert_int_equal(wire_receive(m->channel_fd, &m->inbox), WIRE_MESSAGE);
		m->n_taken = m->inbox.n_taken;
	}
	return (const void *)record;
}

static const struct wire_return *receive_return(struct master *m, const struct lent *lent)
{
	const struct wire_return *ret = receive_record(m);

	assert_int_equal(ret->record.type, WIRE_RETURN);
	assert_int_equal(ret->request_id, lent->id);
	assert_int_equal(ret->slot, lent->slot);
	return ret;
}

/* Waits until the application has been told this line. */
static void expect_event(struct master *m, const char *line)
{
	for (;;) {
		char *found;
		ssize_t n;

		m->events[m->events_len] = '\0';
		found = strstr(m->events, line);
		if (found) {
			m->events_len = 0;
			memmove(m->events, found + strlen(line), strlen(found + strlen(line)) + 1);
			m->events_len = strlen(m->events);
			return;
		}
		wait_readable(m->events_fd);
		n = read(m->events_fd, m->events + m->events_len,
			sizeof(m->events) - 1 - m->events_len);
		if (n <= 0)
			fail_msg("waited for '%s', got '%s'", line, m->events);
		m->events_len += (size_t)n;
	}
}

/* Reads at the client until `until` has come, or with NULL until nothing is there. */
static const char *client_read(const struct lent *lent, const char *until)
{
	static char text[65536];
	size_t len = 0;

	text[0] = '\0';
	while (len < sizeof(text) - 1 && !(until && strstr(text, until))) {
		ssize_t n;

		if (until)
			wait_readable(lent->client_fd);
		n = recv(lent->client_fd, text + len, sizeof(text) - 1 - len, MSG_DONTWAIT);
		if (n <= 0)
			break;
		len += (size_t)n;
		text[len] = '\0';
	}
	if (until && !strstr(text, until))
		fail_msg("client waited for '%s', got '%s'", until, text);
	return text;
}

static void client_send(const struct lent *lent, const char *text)
{
	assert_int_equal(
		send(lent->client_fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* Reads and counts until n bytes have come. */
static void client_take(const struct lent *lent, size_t n)
{
	static char sink[65536];

	while (n > 0) {
		ssize_t got;

		wait_readable(lent->client_fd);
		got = recv(lent->client_fd, sink, n < sizeof(sink) ? n : sizeof(sink), 0);
		assert_true(got > 0);
		n -= (size_t)got;
	}
}

#define assert_has(text, part)                                                                     \
	do {                                                                                       \
		if (!strstr(text, part))                                                           \
			fail_msg("no '%s' in '%s'", part, text);                                   \
	} while (0)
#define assert_has_not(text, part) assert_null(strstr(text, part))

#define KEEP WIRE_LEND_KEEP_ALIVE

static uint64_t page_end(const struct master *m, const struct lent *lent)
{
	return atomic_load(&m->slots[lent->slot].end);
}

static int count_fds(pid_t pid)
{
	char path[64];
	DIR *directory;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	directory = opendir(path);
	assert_non_null(directory);
	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}

/* ---- The fast path ---- */

static void request_is_answered_and_returned(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/hello", .flags = KEEP });
	const struct wire_return *ret = receive_return(m, &lent);
	const char *text = client_read(&lent, "hello");

	assert_has(text, "HTTP/1.1 200 OK\r\n");
	assert_has(text, "\r\nDate: ");
	assert_has(text, " GMT\r\n");
	assert_has(text, "\r\nContent-Type: text/plain\r\n");
	assert_has(text, "\r\nContent-Length: 5\r\n");
	assert_has_not(text, "Connection:");
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->status, 200);
	assert_int_equal(ret->written, strlen(text));
	assert_int_equal(ret->head_bytes, strlen(text) - 5);
	assert_int_equal(ret->body_bytes, 5);
	assert_int_equal(ret->read, 0);
	assert_int_equal(ret->surplus_len, 0);
	assert_true(ret->first_byte_us > 0 && ret->first_byte_us < 10000000);
	assert_int_equal(m->n_taken, 1);
	assert_int_equal(atomic_load(&m->slots[lent.slot].taken), 1);
	assert_int_equal(page_end(m, &lent), strlen(text));
	expect_event(m, "end /hello 0\n");
	lent_close(&lent);
}

static void batch_comes_back_as_one_with_its_descriptors_closed(void **state)
{
	struct master *m = *state;
	struct lent lent[20];
	int n_fds = count_fds(m->pid);

	for (int i = 0; i < 20; i++) {
		connect_pair(&lent[i], false);
		add_lend(m, &(struct terms){ .target = "/hello", .flags = KEEP }, &lent[i]);
	}
	send_batch(m);
	for (int i = 0; i < 20; i++) {
		receive_return(m, &lent[i]);
		if (i == 0) {
			assert_int_equal(m->inbox.n_records, 19);
			assert_int_equal(count_fds(m->pid), n_fds);
		}
	}
	for (int i = 0; i < 20; i++)
		lent_close(&lent[i]);
}

/* What leaves before the turn is over has its descriptors closed too: the worker stops within it.
 */
static void long_batch_comes_back_in_parts(void **state)
{
	struct master *m = *state;
	enum { N = 258 };
	struct lent lent[N];
	int n_fds = count_fds(m->pid);

	/* It is to find both messages in one turn. */
	kill(m->pid, SIGSTOP);
	assert_int_equal(waitpid(m->pid, NULL, WUNTRACED), m->pid);
	for (int i = 0; i < N; i++) {
		connect_pair(&lent[i], false);
		add_lend(m,
			&(struct terms){ .target = i < N - 1 ? "/hello" : "/stop", .flags = KEEP },
			&lent[i]);
		/* One message has room for 253 descriptors. */
		if (i == N / 2)
			send_batch(m);
	}
	send_batch(m);
	kill(m->pid, SIGCONT);
	receive_return(m, &lent[0]);
	assert_int_equal(m->inbox.n_records, 255);
	expect_event(m, "request /stop\n");
	/* It tells before it stops: a SIGCONT between the two would be lost. */
	assert_int_equal(waitpid(m->pid, NULL, WUNTRACED), m->pid);
	assert_int_equal(count_fds(m->pid), n_fds + 1);
	kill(m->pid, SIGCONT);
	for (int i = 1; i < N; i++)
		receive_return(m, &lent[i]);
	for (int i = 0; i < N; i++)
		lent_close(&lent[i]);
}

static void head_has_a_length_and_no_content(void **state)
{
	struct master *m = *state;
	struct lent lent =
		lend(m, &(struct terms){ .method = "HEAD", .target = "/hello", .flags = KEEP });
	const struct wire_return *ret = receive_return(m, &lent);
	const char *text = client_read(&lent, "\r\n\r\n");

	assert_has(text, "\r\nContent-Length: 5\r\n");
	assert_string_equal(strstr(text, "\r\n\r\n"), "\r\n\r\n");
	assert_int_equal(ret->body_bytes, 0);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(page_end(m, &lent), ret->written);
	lent_close(&lent);
}

static void status_204_has_neither_length_nor_content(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/204", .flags = KEEP });

	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_KEEP);
	assert_has(client_read(&lent, "\r\n\r\n"), "HTTP/1.1 204 No Content\r\n");
	assert_has_not(client_read(&lent, NULL), "content");
	lent_close(&lent);
}

static void connection_ends_where_client_or_application_wish(void **state)
{
	struct master *m = *state;
	struct lent a = lend(m, &(struct terms){ .target = "/hello" });
	struct lent b;

	assert_int_equal(receive_return(m, &a)->disposition, WIRE_CLOSE);
	assert_has(client_read(&a, "hello"), "\r\nConnection: close\r\n");
	b = lend(m, &(struct terms){ .target = "/close", .flags = KEEP });
	assert_int_equal(receive_return(m, &b)->disposition, WIRE_CLOSE);
	assert_has(client_read(&b, "\r\n\r\nx"), "\r\nConnection: close\r\n");
	lent_close(&a);
	lent_close(&b);
}

static void http_1_0_is_told_that_it_is_kept(void **state)
{
	struct master *m = *state;
	struct terms terms = { .target = "/hello", .http_1_0 = true, .flags = KEEP };
	struct lent a = lend(m, &terms), b;
	const struct wire_return *ret = receive_return(m, &a);

	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_has(client_read(&a, "hello"), "\r\nConnection: keep-alive\r\n");
	terms.target = "/stream";
	b = lend(m, &terms);
	client_take(&b, 3000000);
	ret = receive_return(m, &b);
	assert_int_equal(ret->disposition, WIRE_CLOSE);
	assert_int_equal(ret->written, ret->head_bytes + 3000000);
	/* Without its close the client would wait for more. */
	assert_int_equal(page_end(m, &b), 0);
	lent_close(&a);
	lent_close(&b);
}

static void fields_of_the_master_are_seen_and_sent(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/fields",
					   .fields = "X-One: 1\r\nX-Two:  2 \r\nx-two: 3\r\n",
					   .set_fields = "X-Two:\r\nX-One: uno\r\nX-New: n\r\n",
					   .add_fields = "Set-Cookie: a=b\r\n",
					   .flags = KEEP | WIRE_LEND_HTTPS });
	const char *text;

	receive_return(m, &lent);
	text = client_read(&lent, "127.0.0.1");
	assert_has(text, "\r\nSet-Cookie: a=b\r\n");
	assert_has(text, "\r\n\r\nHost=a;X-One=uno;X-New=n;GET uno 1 https 127.0.0.1");
	lent_close(&lent);
}

static void what_cant_be_sent_is_refused(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/refused", .flags = KEEP });

	receive_return(m, &lent);
	assert_has(client_read(&lent, "-22\0"), "\r\n\r\n-22 -22 -22 -22 -22 -22 -22 -22");
	lent_close(&lent);
}

static void interim_response_goes_ahead_and_is_counted(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/interim", .flags = KEEP });
	const struct wire_return *ret = receive_return(m, &lent);
	const char *text = client_read(&lent, "\r\n\r\nx");

	assert_memory_equal(text, "HTTP/1.1 103 ", 13);
	assert_has(text, "\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n");
	assert_int_equal(ret->status, 200);
	assert_int_equal(ret->written, strlen(text));
	assert_int_equal(page_end(m, &lent), strlen(text));
	lent_close(&lent);
}

/* ---- Bodies ---- */

static void body_of_a_length_is_not_read_past(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "POST",
					   .target = "/collect",
					   .ahead = "abc",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 10,
					   .flags = KEEP });
	const struct wire_return *ret;
	char next[32];

	expect_event(m, "request /collect\n");
	client_send(&lent, "def");
	client_send(&lent, "ghijGET /next");
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->read, 7);
	assert_int_equal(ret->surplus_len, 0);
	assert_has(client_read(&lent, "abcdefghij"), "\r\nContent-Length: 10\r\n");
	assert_int_equal(recv(lent.master_fd, next, sizeof(next), 0), 9);
	assert_memory_equal(next, "GET /next", 9);
	lent_close(&lent);
}

static void chunked_body_comes_in_pieces_and_its_surplus_goes_back(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "POST",
					   .target = "/collect",
					   .ahead = "3\r\nab",
					   .body = WIRE_BODY_CHUNKED,
					   .flags = KEEP });
	const struct wire_return *ret;

	expect_event(m, "request /collect\n");
	client_send(&lent, "c\r\n4");
	client_send(&lent, "\r\ndefg\r\n0\r\n\r\nGET /next");
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->read, 4 + 13 + 9);
	assert_int_equal(ret->surplus_len, 9);
	assert_memory_equal(wire_return_surplus(ret), "GET /next", 9);
	assert_has(client_read(&lent, "abcdefg"), "\r\nContent-Length: 7\r\n");
	lent_close(&lent);
}

static void any_cut_of_a_chunked_body_is_the_same(void **state)
{
	static const char body[] = "3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nT: v\r\n\r\nGET /n";
	struct master *m = *state;

	for (size_t cut = 0; cut < sizeof(body); cut++) {
		char ahead[sizeof(body)];
		struct terms terms = { .method = "POST",
			.target = "/collect",
			.ahead = ahead,
			.body = WIRE_BODY_CHUNKED,
			.flags = KEEP };
		const struct wire_return *ret;
		struct lent lent;

		memcpy(ahead, body, cut);
		ahead[cut] = '\0';
		lent = lend(m, &terms);
		expect_event(m, "request /collect\n");
		client_send(&lent, body + cut);
		ret = receive_return(m, &lent);
		assert_int_equal(ret->disposition, WIRE_KEEP);
		assert_has(client_read(&lent, "abcd"), "Content-Length: 4\r\n");
		/* What was not read is still in the socket. */
		assert_true(ret->surplus_len <= 6);
		assert_memory_equal(wire_return_surplus(ret), "GET /n", ret->surplus_len);
		assert_int_equal(cut + ret->read + (6 - ret->surplus_len), sizeof(body) - 1);
		lent_close(&lent);
	}
}

static void surplus_that_came_with_the_lend_goes_back(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "POST",
					   .target = "/collect",
					   .ahead = "1\r\na\r\n0\r\n\r\nGET /next",
					   .body = WIRE_BODY_CHUNKED,
					   .flags = KEEP });
	const struct wire_return *ret = receive_return(m, &lent);

	assert_int_equal(ret->read, 0);
	assert_int_equal(ret->surplus_len, 9);
	assert_memory_equal(wire_return_surplus(ret), "GET /next", 9);
	lent_close(&lent);
}

static void malformed_body_is_400(void **state)
{
	struct master *m = *state;
	struct terms terms = { .method = "POST",
		.target = "/collect",
		.ahead = "zz\r\n",
		.body = WIRE_BODY_CHUNKED,
		.flags = KEEP };
	struct lent lent = lend(m, &terms);
	const struct wire_return *ret = receive_return(m, &lent);
	const char *text = client_read(&lent, "\r\n\r\n");

	assert_has(text, "HTTP/1.1 400 Bad Request\r\n");
	assert_has(text, "\r\nConnection: close\r\n");
	assert_int_equal(ret->disposition, WIRE_BAD_BODY);
	assert_int_equal(ret->status, 400);
	expect_event(m, "end /collect 3\n");
	lent_close(&lent);
	/* Here the response was begun in the same turn, and nothing of it had left. */
	terms.target = "/echo";
	lent = lend(m, &terms);
	ret = receive_return(m, &lent);
	assert_has(client_read(&lent, "\r\n\r\n"), "HTTP/1.1 400 Bad Request\r\n");
	assert_int_equal(ret->disposition, WIRE_BAD_BODY);
	lent_close(&lent);
}

static void malformed_body_behind_a_begun_response_only_cuts_it(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "POST",
					   .target = "/echo",
					   .ahead = "3\r\nabc\r\n",
					   .body = WIRE_BODY_CHUNKED,
					   .flags = KEEP });
	const struct wire_return *ret;

	client_read(&lent, "abc\r\n");
	client_send(&lent, "zz\r\n");
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_CUT);
	assert_int_equal(ret->status, 200);
	assert_int_equal(page_end(m, &lent), 0);
	assert_string_equal(client_read(&lent, NULL), "");
	lent_close(&lent);
}

static void body_that_breaks_off_is_told_as_gone(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "POST",
					   .target = "/collect",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 10,
					   .flags = KEEP });

	client_send(&lent, "abc");
	shutdown(lent.client_fd, SHUT_WR);
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_BAD_BODY);
	client_read(&lent, "HTTP/1.1 400");
	expect_event(m, "end /collect 1\n");
	lent_close(&lent);
}

static void waiting_client_is_invited(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/collect",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 3,
					   .flags = KEEP | WIRE_LEND_EXPECT });
	const struct wire_return *ret;

	assert_string_equal(client_read(&lent, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
	client_send(&lent, "abc");
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->written, 25 + strlen(client_read(&lent, "abc")));
	assert_int_equal(page_end(m, &lent), ret->written);
	lent_close(&lent);
}

static void client_that_waits_in_vain_is_closed(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/hello",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 3,
					   .flags = KEEP | WIRE_LEND_EXPECT });

	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_CLOSE);
	assert_has(client_read(&lent, "hello"), "\r\nConnection: close\r\n");
	lent_close(&lent);
}

static void short_body_that_nobody_reads_is_drained(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/hello",
					   .ahead = "a",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 5,
					   .flags = KEEP });
	const struct wire_return *ret;

	assert_has_not(client_read(&lent, "hello"), "Connection: close");
	expect_event(m, "end /hello 0\n");
	client_send(&lent, "bcdeGET");
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->read, 4);
	lent_close(&lent);
}

static void body_that_does_not_come_is_waited_for_1_s(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/hello",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 5,
					   .flags = KEEP });

	client_read(&lent, "hello");
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_CLOSE);
	lent_close(&lent);
}

static void long_body_that_nobody_reads_ends_the_connection(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/hello",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 65537,
					   .flags = KEEP });

	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_CLOSE);
	assert_has(client_read(&lent, "hello"), "\r\nConnection: close\r\n");
	lent_close(&lent);
}

static void chunked_body_that_nobody_reads_keeps_where_its_end_is_there(void **state)
{
	struct master *m = *state;
	struct terms terms = { .method = "PUT",
		.target = "/hello",
		.ahead = "1\r\na\r\n0\r\n\r\n",
		.body = WIRE_BODY_CHUNKED,
		.flags = KEEP };
	struct lent lent = lend(m, &terms);

	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_KEEP);
	assert_has_not(client_read(&lent, "hello"), "Connection: close");
	lent_close(&lent);
	terms.ahead = "1\r\na\r\n0\r\n";
	lent = lend(m, &terms);
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_CLOSE);
	assert_has(client_read(&lent, "hello"), "\r\nConnection: close\r\n");
	lent_close(&lent);
}

static void too_long_a_body_to_collect_is_413(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/collect",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 100001,
					   .flags = KEEP });

	client_read(&lent, "HTTP/1.1 413");
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_CLOSE);
	lent_close(&lent);
}

/* As much as fits nowhere goes in and comes out: both directions push back. */
static void long_body_is_echoed_with_back_pressure(void **state)
{
	struct master *m = *state;
	const size_t total = 4 * 1024 * 1024;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/echo",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = total,
					   .small_buffers = true,
					   .flags = KEEP });
	static char bytes[65536];
	size_t sent = 0, got = 0;
	const struct wire_return *ret;

	client_take(&lent, 0);
	fcntl(lent.client_fd, F_SETFL, O_NONBLOCK);
	while (got < total) {
		struct pollfd pollfd = { .fd = lent.client_fd,
			.events = POLLIN | (sent < total ? POLLOUT : 0) };
		ssize_t n;

		assert_int_equal(poll(&pollfd, 1, DEADLINE_MS), 1);
		n = sent < total
			    ? send(lent.client_fd, bytes,
				      total - sent < sizeof(bytes) ? total - sent : sizeof(bytes),
				      MSG_NOSIGNAL)
			    : 0;
		sent += n > 0 ? (size_t)n : 0;
		if (got == 0 && (pollfd.revents & POLLIN)) {
			const char *text = client_read(&lent, "\r\n\r\n");

			assert_has(text, "Content-Length: 4194304");
			/* Content is zeros: text ends with the head. */
			got = 0;
			break;
		}
	}
	/* The rest without looking at where the head ends: the return says how long it was. */
	for (bool closed = false; !closed;) {
		struct pollfd pollfd[2] = {
			{ .fd = lent.client_fd, .events = POLLIN | (sent < total ? POLLOUT : 0) },
			{ .fd = m->channel_fd, .events = POLLIN },
		};
		ssize_t n;

		assert_true(poll(pollfd, 2, DEADLINE_MS) > 0);
		if (sent < total) {
			n = send(lent.client_fd, bytes,
				total - sent < sizeof(bytes) ? total - sent : sizeof(bytes),
				MSG_NOSIGNAL);
			sent += n > 0 ? (size_t)n : 0;
		}
		n = recv(lent.client_fd, bytes, sizeof(bytes), 0);
		got += n > 0 ? (size_t)n : 0;
		memset(bytes, 0, sizeof(bytes));
		closed = (pollfd[1].revents & POLLIN) && n < 0;
	}
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->read, total);
	assert_int_equal(ret->body_bytes, total);
	assert_int_equal(ret->written, total + ret->head_bytes);
	assert_int_equal(page_end(m, &lent), ret->written);
	lent_close(&lent);
}

/* ---- Time-outs and clients that leave ---- */

static int started_with_time_outs(void **state)
{
	setup.body_timeout_ms = 100;
	setup.send_timeout_ms = 100;
	return started(state);
}

static void body_that_stalls_is_408(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/collect",
					   .ahead = "a",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 5,
					   .flags = KEEP });
	const struct wire_return *ret = receive_return(m, &lent);

	assert_int_equal(ret->disposition, WIRE_BAD_BODY);
	assert_int_equal(ret->status, 408);
	assert_has(client_read(&lent, "\r\n\r\n"), "HTTP/1.1 408 Request Timeout\r\n");
	expect_event(m, "end /collect 2\n");
	lent_close(&lent);
}

static void client_that_does_not_read_times_out(void **state)
{
	struct master *m = *state;
	struct lent lent =
		lend(m, &(struct terms){ .target = "/big", .small_buffers = true, .flags = KEEP });
	const struct wire_return *ret = receive_return(m, &lent);

	assert_int_equal(ret->disposition, WIRE_CUT);
	assert_true(ret->written < 4 * 1024 * 1024);
	assert_int_equal(page_end(m, &lent), 4 * 1024 * 1024 + ret->head_bytes);
	assert_int_equal(ret->body_bytes + ret->head_bytes, ret->written);
	expect_event(m, "end /big 2\n");
	lent_close(&lent);
}

static void slow_client_gets_all_of_it(void **state)
{
	struct master *m = *state;
	struct lent lent =
		lend(m, &(struct terms){ .target = "/big", .small_buffers = true, .flags = KEEP });
	const struct wire_return *ret;

	expect_event(m, "request /big\n");
	client_take(&lent, 4 * 1024 * 1024);
	client_read(&lent, "b");
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->body_bytes, 4 * 1024 * 1024);
	assert_int_equal(ret->written, 4 * 1024 * 1024 + ret->head_bytes);
	expect_event(m, "end /big 0\n");
	lent_close(&lent);
}

static void borrowed_content_arrives_whole_and_in_order(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(
		m, &(struct terms){ .target = "/borrowed", .small_buffers = true, .flags = KEEP });
	const struct wire_return *ret;
	const char *text;

	expect_event(m, "request /borrowed\n");
	client_take(&lent, 4 * 1024 * 1024 - 1000);
	/* The last of its 64 blocks is all of one letter. */
	text = client_read(&lent, "llllllll");
	assert_int_equal(strspn(text, "l"), strlen(text));
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->body_bytes, 4 * 1024 * 1024);
	assert_int_equal(ret->written, 4 * 1024 * 1024 + ret->head_bytes);
	assert_int_equal(page_end(m, &lent), ret->written);
	expect_event(m, "end /borrowed 0\n");
	lent_close(&lent);
}

static void stream_goes_on_as_the_client_reads(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m,
		&(struct terms){ .target = "/stream-known", .small_buffers = true, .flags = KEEP });
	const struct wire_return *ret;

	client_take(&lent, 3000000);
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(ret->written, 3000000 + ret->head_bytes);
	lent_close(&lent);
	lent = lend(
		m, &(struct terms){ .target = "/stream", .small_buffers = true, .flags = KEEP });
	client_take(&lent, 3000000);
	client_read(&lent, "\r\n0\r\n\r\n");
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	assert_int_equal(page_end(m, &lent), ret->written);
	lent_close(&lent);
}

static void reset_ends_the_request(void **state)
{
	struct master *m = *state;
	struct linger reset = { .l_onoff = 1 };
	struct lent lent = lend(m, &(struct terms){ .target = "/wait", .flags = KEEP });

	expect_event(m, "request /wait\n");
	setsockopt(lent.client_fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	fd_close(&lent.client_fd);
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_GONE);
	expect_event(m, "end /wait 1\n");
	lent_close(&lent);
}

static void half_closed_client_gets_its_answer(void **state)
{
	struct master *m = *state;
	struct lent lent;
	const struct wire_return *ret;

	connect_pair(&lent, false);
	shutdown(lent.client_fd, SHUT_WR);
	add_lend(m, &(struct terms){ .target = "/stream-known", .flags = KEEP }, &lent);
	send_batch(m);
	client_take(&lent, 3000000);
	ret = receive_return(m, &lent);
	assert_int_equal(ret->disposition, WIRE_KEEP);
	lent_close(&lent);
}

static void endless_response_ends_5_s_after_a_half_close(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/tick", .flags = KEEP });

	client_read(&lent, "5\r\ntick\n\r\n");
	shutdown(lent.client_fd, SHUT_WR);
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_GONE);
	expect_event(m, "end /tick 1\n");
	lent_close(&lent);
}

static void aborted_response_is_500_or_cut(void **state)
{
	struct master *m = *state;
	struct lent a = lend(m, &(struct terms){ .target = "/abort", .flags = KEEP }), b;
	const struct wire_return *ret = receive_return(m, &a);

	assert_int_equal(ret->disposition, WIRE_CLOSE);
	assert_int_equal(ret->status, 500);
	client_read(&a, "HTTP/1.1 500 Internal Server Error\r\n");
	expect_event(m, "end /abort 5\n");
	b = lend(m, &(struct terms){ .target = "/short", .flags = KEEP });
	ret = receive_return(m, &b);
	assert_int_equal(ret->disposition, WIRE_CUT);
	assert_int_equal(ret->status, 200);
	assert_int_equal(ret->body_bytes, 5);
	/* It does not look whole. */
	assert_true(ret->written < page_end(m, &b));
	expect_event(m, "end /short 5\n");
	lent_close(&a);
	lent_close(&b);
}

/* ---- The master's wishes ---- */

static void send_recall(struct master *m, const struct lent *lent)
{
	struct wire_recall *recall = wire_batch_add(&m->batch, WIRE_RECALL, 0, sizeof(*recall), -1);

	recall->request_id = lent->id;
	recall->slot = lent->slot;
	recall->reserved = 0;
	send_batch(m);
}

static void send_last(struct master *m)
{
	struct wire_number *last = wire_batch_add(&m->batch, WIRE_LAST, 0, sizeof(*last), -1);

	last->number = 0;
	send_batch(m);
}

static void recalled_request_is_cancelled(void **state)
{
	struct master *m = *state;
	struct lent a = lend(m, &(struct terms){ .target = "/wait", .flags = KEEP });
	struct lent b = lend(m, &(struct terms){ .target = "/tick", .flags = KEEP });
	const struct wire_return *ret;

	client_read(&b, "tick\n");
	send_recall(m, &a);
	ret = receive_return(m, &a);
	assert_int_equal(ret->disposition, WIRE_CANCELLED);
	assert_int_equal(ret->written, 0);
	assert_int_equal(ret->status, 0);
	expect_event(m, "end /wait 4\n");
	/* A response that has begun goes on: the next return is not b's. */
	send_recall(m, &b);
	/* Twice means nothing, and neither does one that was never lent. */
	send_recall(m, &a);
	lent_close(&a);
	a = lend(m, &(struct terms){ .target = "/hello", .flags = KEEP });
	assert_int_equal(receive_return(m, &a)->disposition, WIRE_KEEP);
	lent_close(&a);
	lent_close(&b);
}

static void worker_ends_after_the_last_when_it_holds_nothing(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .method = "PUT",
					   .target = "/collect",
					   .body = WIRE_BODY_LENGTH,
					   .body_len = 3,
					   .flags = KEEP });

	send_last(m);
	expect_event(m, "drain\n");
	client_send(&lent, "abc");
	client_read(&lent, "abc");
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_KEEP);
	expect_event(m, "shutdown\n");
	assert_int_equal(wait_for_child(m), 0);
	lent_close(&lent);
}

static void worker_ends_with_its_master(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/wait", .flags = KEEP });

	expect_event(m, "request /wait\n");
	fd_close(&m->control_fd);
	assert_int_equal(wait_for_child(m), 1);
	lent_close(&lent);
}

static void worker_ends_when_a_channel_ends_too_early(void **state)
{
	struct master *m = *state;

	fd_close(&m->channel_fd);
	assert_int_equal(wait_for_child(m), 1);
}

static void term_ends_it_with_shutdown(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/wait", .flags = KEEP });

	expect_event(m, "request /wait\n");
	kill(m->pid, SIGINT);
	kill(m->pid, SIGHUP);
	kill(m->pid, SIGTERM);
	expect_event(m, "shutdown\n");
	assert_int_equal(wait_for_child(m), 0);
	lent_close(&lent);
}

static void ping_is_answered(void **state)
{
	struct master *m = *state;
	struct wire_number *ping = wire_batch_add(&m->batch, WIRE_PING, 0, sizeof(*ping), -1);
	const struct wire_number *pong;

	ping->number = 77;
	assert_int_equal(wire_send(m->control_fd, &m->batch, 0), 0);
	pong = (const void *)receive_control(m);
	assert_int_equal(pong->record.type, WIRE_PONG);
	assert_int_equal(pong->number, 77);
}

static void lends_that_stay_are_acknowledged(void **state)
{
	struct master *m = *state;
	struct lent lent[150];
	int error;

	for (int i = 0; i < 150; i++) {
		connect_pair(&lent[i], false);
		add_lend(m, &(struct terms){ .target = "/wait", .flags = KEEP }, &lent[i]);
	}
	send_batch(m);
	wait_readable(m->channel_fd);
	assert_int_equal(wire_receive(m->channel_fd, &m->inbox), WIRE_MESSAGE);
	assert_null(wire_next(&m->inbox, &error));
	assert_int_equal(m->inbox.n_taken, 150);
	for (int i = 0; i < 150; i++)
		lent_close(&lent[i]);
}

static void full_channel_loses_no_return(void **state)
{
	struct master *m = *state;
	enum { N = 600 };
	struct lent lent = lend(m, &(struct terms){ .target = "/hello", .flags = KEEP });
	uint64_t first = lent.id;

	/* One by one, so that each return is a message, and none is taken: the channel holds 278.
	 */
	client_read(&lent, "hello");
	for (int i = 1; i < N; i++) {
		add_lend(m, &(struct terms){ .target = "/hello", .flags = KEEP }, &lent);
		send_batch(m);
		client_read(&lent, "hello");
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(receive_record(m)->request_id, first + (uint64_t)i);
	assert_int_equal(m->n_taken, N);
	lent_close(&lent);
}

static int started_with_few_descriptors(void **state)
{
	child_files_max = 40;
	return started(state);
}

static void lend_without_its_descriptor_is_unserved(void **state)
{
	struct master *m = *state;
	const char *preload = getenv("LD_PRELOAD");
	struct lent lent[60];
	const struct wire_return *ret;
	int n_unserved = 0;

	/* valgrind has a limit of its own, and plays this one. */
	if (preload && strstr(preload, "vgpreload"))
		skip();
	for (int i = 0; i < 60; i++) {
		connect_pair(&lent[i], false);
		add_lend(m, &(struct terms){ .target = "/wait", .flags = KEEP }, &lent[i]);
	}
	send_batch(m);
	do {
		ret = receive_record(m);
		assert_int_equal(ret->disposition, WIRE_UNSERVED);
		assert_int_equal(atomic_load(&m->slots[ret->slot].taken), 0);
		n_unserved++;
	} while (ret->request_id != lent[59].id);
	assert_true(n_unserved >= 20 && n_unserved < 60);
	for (int i = 0; i < 60; i++)
		lent_close(&lent[i]);
}

static void malformed_message_ends_the_worker(void **state)
{
	struct master *m = *state;

	assert_int_equal(send(m->channel_fd, "nonsense", 8, 0), 8);
	assert_int_equal(wait_for_child(m), 1);
}

static void lend_of_a_slot_in_use_ends_the_worker(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/wait", .flags = KEEP });

	m->next_id = lent.id + N_SLOTS;
	add_lend(m, &(struct terms){ .target = "/hello", .flags = KEEP }, &lent);
	send_batch(m);
	assert_int_equal(wait_for_child(m), 1);
	lent_close(&lent);
}

static int started_to_fail(void **state)
{
	struct master *m = malloc(sizeof(*m));

	setenv("APP_FAILS", "1", 1);
	start(m);
	unsetenv("APP_FAILS");
	*state = m;
	return 0;
}

static void application_that_does_not_start_is_told(void **state)
{
	struct master *m = *state;
	const struct wire_record *record = receive_control(m);

	assert_int_equal(record->type, WIRE_BOOT_FAILED);
	assert_memory_equal(record + 1, "up_app() returned 7", record->len - sizeof(*record));
	assert_int_equal(wait_for_child(m), 1);
}

/* ---- Upgrades ---- */

static void upgraded_socket_is_the_applications_until_it_ends_it(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/upgrade",
					   .ahead = "early",
					   .flags = KEEP | WIRE_LEND_UPGRADE });
	const struct wire_return *ret = receive_record(m);
	const char *text;

	assert_int_equal(ret->record.type, WIRE_DETACHED);
	assert_int_equal(ret->request_id, lent.id);
	assert_int_equal(ret->disposition, 0);
	assert_int_equal(ret->status, 101);
	text = client_read(&lent, "early");
	assert_has(text, "HTTP/1.1 101 Switching Protocols\r\n");
	assert_has(text, "\r\nUpgrade: echo\r\n");
	assert_has(text, "\r\nConnection: Upgrade\r\n");
	assert_int_equal(ret->written, strlen(text) - 5);
	expect_event(m, "end /upgrade 0\n");
	client_send(&lent, "more");
	client_read(&lent, "more");
	send_last(m);
	expect_event(m, "drain\n");
	shutdown(lent.client_fd, SHUT_WR);
	expect_event(m, "kept ends 0\n");
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_CLOSE);
	assert_int_equal(wait_for_child(m), 0);
	lent_close(&lent);
}

static void upgrade_to_the_limit(struct master *m, struct lent *lent)
{
	static char bytes[65536];

	*lent = lend(m, &(struct terms){ .target = "/upgrade",
				.small_buffers = true,
				.flags = KEEP | WIRE_LEND_UPGRADE });
	assert_int_equal(receive_record(m)->record.type, WIRE_DETACHED);
	client_read(lent, "\r\n\r\n");
	assert_int_equal(send(lent->client_fd, bytes, sizeof(bytes), MSG_NOSIGNAL), sizeof(bytes));
	expect_event(m, "kept waits\n");
}

static void upgraded_socket_goes_on_when_its_client_reads(void **state)
{
	struct master *m = *state;
	struct lent lent;

	upgrade_to_the_limit(m, &lent);
	client_take(&lent, 65536);
	client_send(&lent, "more");
	client_read(&lent, "more");
	lent_close(&lent);
}

static void lost_upgraded_socket_is_told_to_one_that_waits_for_room(void **state)
{
	struct master *m = *state;
	struct linger reset = { .l_onoff = 1 };
	struct lent lent;

	upgrade_to_the_limit(m, &lent);
	setsockopt(lent.client_fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	fd_close(&lent.client_fd);
	expect_event(m, "kept ends ");
	assert_int_equal(receive_return(m, &lent)->disposition, WIRE_CLOSE);
	lent_close(&lent);
}

static void nobody_upgrades_unasked(void **state)
{
	struct master *m = *state;
	struct lent lent = lend(m, &(struct terms){ .target = "/upgrade", .flags = KEEP });

	expect_event(m, "detach -22\n");
	lent_close(&lent);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, started, finished)
#define CASE_OF(name, how) cmocka_unit_test_setup_teardown(name, how, finished)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(request_is_answered_and_returned),
		CASE(batch_comes_back_as_one_with_its_descriptors_closed),
		CASE(long_batch_comes_back_in_parts),
		CASE(head_has_a_length_and_no_content),
		CASE(status_204_has_neither_length_nor_content),
		CASE(connection_ends_where_client_or_application_wish),
		CASE(http_1_0_is_told_that_it_is_kept),
		CASE(fields_of_the_master_are_seen_and_sent),
		CASE(what_cant_be_sent_is_refused),
		CASE(interim_response_goes_ahead_and_is_counted),
		CASE(body_of_a_length_is_not_read_past),
		CASE(chunked_body_comes_in_pieces_and_its_surplus_goes_back),
		CASE(any_cut_of_a_chunked_body_is_the_same),
		CASE(surplus_that_came_with_the_lend_goes_back),
		CASE(malformed_body_is_400),
		CASE(malformed_body_behind_a_begun_response_only_cuts_it),
		CASE(body_that_breaks_off_is_told_as_gone),
		CASE(waiting_client_is_invited),
		CASE(client_that_waits_in_vain_is_closed),
		CASE(short_body_that_nobody_reads_is_drained),
		CASE(body_that_does_not_come_is_waited_for_1_s),
		CASE(long_body_that_nobody_reads_ends_the_connection),
		CASE(chunked_body_that_nobody_reads_keeps_where_its_end_is_there),
		CASE(too_long_a_body_to_collect_is_413),
		CASE(long_body_is_echoed_with_back_pressure),
		CASE_OF(body_that_stalls_is_408, started_with_time_outs),
		CASE_OF(client_that_does_not_read_times_out, started_with_time_outs),
		CASE(slow_client_gets_all_of_it),
		CASE(borrowed_content_arrives_whole_and_in_order),
		CASE(stream_goes_on_as_the_client_reads),
		CASE(reset_ends_the_request),
		CASE(half_closed_client_gets_its_answer),
		CASE(endless_response_ends_5_s_after_a_half_close),
		CASE(aborted_response_is_500_or_cut),
		CASE(recalled_request_is_cancelled),
		CASE(worker_ends_after_the_last_when_it_holds_nothing),
		CASE(worker_ends_with_its_master),
		CASE(worker_ends_when_a_channel_ends_too_early),
		CASE(term_ends_it_with_shutdown),
		CASE(ping_is_answered),
		CASE(lends_that_stay_are_acknowledged),
		CASE(full_channel_loses_no_return),
		CASE_OF(lend_without_its_descriptor_is_unserved, started_with_few_descriptors),
		CASE(malformed_message_ends_the_worker),
		CASE(lend_of_a_slot_in_use_ends_the_worker),
		CASE_OF(application_that_does_not_start_is_told, started_to_fail),
		CASE(upgraded_socket_is_the_applications_until_it_ends_it),
		CASE(upgraded_socket_goes_on_when_its_client_reads),
		CASE(lost_upgraded_socket_is_told_to_one_that_waits_for_room),
		CASE(nobody_upgrades_unasked),
	};

	setup.n_channels = 1;
	setup.n_slots = N_SLOTS;
	setup.assume_ready = 1;
	return cmocka_run_group_tests(cases, NULL, NULL);
}
