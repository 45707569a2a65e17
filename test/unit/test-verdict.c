/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * The verdicts from made-up figures, and the figures from real sockets on which others did what a
 * worker does.
 */
#include "master/verdict.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "case.h"
#include "common/fd.h"

#define UNKNOWN UINT64_MAX

/* ---- Made-up evidence ---- */

/* What a request of the table is. */
enum { GET, POST_LENGTH, POST_CHUNKED };

struct trial {
	const char *name;
	int request;
	bool post; /* the method is not idempotent */
	uint32_t ahead_len;
	bool taken;
	uint64_t end;
	unsigned n_replays;
	bool unknown, ended;
	/* Since the lend. */
	int64_t written, read;
	enum verdict expected;
	uint64_t out_written, left;
};

static const struct http_head heads[] = {
	[GET] = { .body = HTTP_BODY_NONE },
	[POST_LENGTH] = { .body = HTTP_BODY_LENGTH, .body_len = 100 },
	[POST_CHUNKED] = { .body = HTTP_BODY_CHUNKED },
};

static const struct trial trials[] = {
	{ .name = "not taken, untouched", .expected = VERDICT_AGAIN },
	{ .name = "not taken, any method", .post = true, .expected = VERDICT_AGAIN },
	{ .name = "not taken, replays spent", .n_replays = 9, .expected = VERDICT_AGAIN },
	{ .name = "not taken, chunked",
		.request = POST_CHUNKED,
		.post = true,
		.left = UNKNOWN,
		.expected = VERDICT_AGAIN },
	{ .name = "not taken, length",
		.request = POST_LENGTH,
		.post = true,
		.ahead_len = 30,
		.left = 70,
		.expected = VERDICT_AGAIN },
	{ .name = "taken, idempotent", .taken = true, .expected = VERDICT_REPLAY },
	{ .name = "taken, end foretold, nothing written",
		.taken = true,
		.end = 50,
		.expected = VERDICT_REPLAY },
	{ .name = "taken, once replayed",
		.taken = true,
		.n_replays = 1,
		.expected = VERDICT_REPLAY },
	{ .name = "taken, twice replayed",
		.taken = true,
		.n_replays = 2,
		.expected = VERDICT_BAD_GATEWAY },
	{ .name = "taken, not idempotent",
		.post = true,
		.taken = true,
		.expected = VERDICT_BAD_GATEWAY },
	{ .name = "taken, PUT with its body ahead",
		.request = POST_LENGTH,
		.ahead_len = 100,
		.taken = true,
		.expected = VERDICT_REPLAY },
	{ .name = "taken, PUT with a part ahead",
		.request = POST_LENGTH,
		.ahead_len = 99,
		.taken = true,
		.left = 1,
		.expected = VERDICT_BAD_GATEWAY },
	{ .name = "taken, PUT with its body read by the worker",
		.request = POST_LENGTH,
		.ahead_len = 40,
		.read = 60,
		.taken = true,
		.expected = VERDICT_BAD_GATEWAY },
	{ .name = "taken, chunked PUT",
		.request = POST_CHUNKED,
		.taken = true,
		.left = UNKNOWN,
		.expected = VERDICT_BAD_GATEWAY },
	{ .name = "body read without the mark",
		.request = POST_LENGTH,
		.read = 10,
		.left = 90,
		.expected = VERDICT_BAD_GATEWAY },
	{ .name = "read past the body",
		.request = POST_LENGTH,
		.taken = true,
		.read = 101,
		.left = UNKNOWN,
		.expected = VERDICT_BAD_GATEWAY },
	{ .name = "response complete",
		.taken = true,
		.end = 50,
		.written = 50,
		.out_written = 50,
		.expected = VERDICT_COMPLETE },
	{ .name = "response complete, body not read",
		.request = POST_LENGTH,
		.post = true,
		.taken = true,
		.end = 50,
		.written = 50,
		.out_written = 50,
		.left = 100,
		.expected = VERDICT_COMPLETE },
	{ .name = "response cut",
		.taken = true,
		.end = 50,
		.written = 49,
		.out_written = 49,
		.expected = VERDICT_CUT },
	{ .name = "longer than foretold",
		.taken = true,
		.end = 50,
		.written = 51,
		.out_written = 51,
		.expected = VERDICT_CUT },
	{ .name = "end not known",
		.taken = true,
		.written = 50,
		.out_written = 50,
		.expected = VERDICT_CUT },
	{ .name = "written without the mark",
		.written = 1,
		.out_written = 1,
		.expected = VERDICT_CUT },
	{ .name = "an end that nobody could write",
		.taken = true,
		.end = UNKNOWN,
		.written = 50,
		.out_written = 50,
		.expected = VERDICT_CUT },
	{ .name = "sums go backwards, written",
		.taken = true,
		.written = -1,
		.left = UNKNOWN,
		.expected = VERDICT_CUT },
	{ .name = "sums go backwards, read", .read = -1, .left = UNKNOWN, .expected = VERDICT_CUT },
	{ .name = "client gone", .ended = true, .left = UNKNOWN, .expected = VERDICT_GONE },
	{ .name = "client gone in the middle",
		.ended = true,
		.taken = true,
		.end = 50,
		.written = 20,
		.left = UNKNOWN,
		.expected = VERDICT_GONE },
	{ .name = "no figures, not taken",
		.unknown = true,
		.request = POST_LENGTH,
		.ahead_len = 10,
		.left = 90,
		.expected = VERDICT_AGAIN },
	{ .name = "no figures, taken", .unknown = true, .taken = true, .expected = VERDICT_CUT },
	{ .name = "no figures, end foretold",
		.unknown = true,
		.taken = true,
		.end = 50,
		.expected = VERDICT_CUT },
};

/* What the connection had been through before the lend. */
static void try_after(const struct trial *trial, uint64_t before)
{
	const struct evidence evidence = {
		.head = &heads[trial->request],
		.ahead_len = trial->ahead_len,
		.written = before,
		.read = before,
		.taken = trial->taken,
		.end = trial->end,
		.n_replays = trial->n_replays,
	};
	const struct socket_figures figures = {
		.known = !trial->unknown,
		.ended = trial->ended,
		.written = trial->unknown ? 0 : before + (uint64_t)trial->written,
		.read = trial->unknown ? 0 : before + (uint64_t)trial->read,
	};
	uint64_t written = 4711, left = 4711;
	enum verdict got = verdict(&evidence, &figures, !trial->post, &written, &left);

	if (got != trial->expected || written != trial->out_written || left != trial->left)
		print_error("%s: verdict %d, written %ju, left %ju\n", trial->name, got,
			(uintmax_t)written, (uintmax_t)left);
	assert_int_equal(got, trial->expected);
	assert_int_equal(written, trial->out_written);
	assert_int_equal(left, trial->left);
}

static void every_verdict_has_its_evidence(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(trials) / sizeof(trials[0]); i++) {
		try_after(&trials[i], 1);
		try_after(&trials[i], 123456789012);
	}
}

/* ---- Real sockets ---- */

struct fixture {
	int client_fd;
	int fd;	     /* the master's */
	int lent_fd; /* a worker's duplicate of it */
	int n_fds;
};

static void connect_pair(struct fixture *f)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	FD_AUTO int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	f->client_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(f->client_fd, (struct sockaddr *)&address, sizeof(address)), 0);
	f->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	assert_true(f->fd >= 0);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	alarm(CASE_DEADLINE_S);
	f->n_fds = case_count_fds();
	connect_pair(f);
	f->lent_fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	fd_close(&f->client_fd);
	fd_close(&f->fd);
	fd_close(&f->lent_fd);
	assert_int_equal(case_count_fds(), f->n_fds);
	alarm(0);
	free(f);
	return 0;
}

static void expect_figures(int fd, uint64_t written, uint64_t n_read)
{
	struct socket_figures figures;

	socket_figures(fd, &figures);
	assert_true(figures.known);
	assert_false(figures.ended);
	assert_int_equal(figures.written, written);
	assert_int_equal(figures.read, n_read);
}

/* The client sends n bytes, and all have come. */
static void client_sends(struct fixture *f, size_t n)
{
	char bytes[8192] = { 0 };
	int64_t deadline = case_now_ms() + CASE_WAIT_MS;
	int before, unread;

	assert_true(n <= sizeof(bytes));
	assert_int_equal(ioctl(f->fd, FIONREAD, &before), 0);
	assert_int_equal(send(f->client_fd, bytes, n, MSG_NOSIGNAL), n);
	do {
		assert_true(case_now_ms() < deadline);
		assert_int_equal(ioctl(f->fd, FIONREAD, &unread), 0);
	} while (unread < before + (int)n);
}

static void worker_reads(struct fixture *f, size_t n)
{
	char bytes[8192];

	assert_true(n <= sizeof(bytes));
	assert_int_equal(recv(f->lent_fd, bytes, n, MSG_DONTWAIT), n);
}

static void worker_writes(struct fixture *f, size_t n)
{
	char bytes[8192] = { 0 };

	assert_true(n <= sizeof(bytes));
	assert_int_equal(send(f->lent_fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL), n);
}

static void a_new_socket_is_at_its_beginning(void **state)
{
	struct fixture *f = *state;

	expect_figures(f->fd, 0, 0);
}

static void figures_are_what_was_done_through_another_descriptor(void **state)
{
	struct fixture *f = *state;

	client_sends(f, 300);
	expect_figures(f->fd, 0, 0);
	worker_reads(f, 100);
	expect_figures(f->fd, 0, 100);
	worker_writes(f, 5000);
	expect_figures(f->fd, 5000, 100);
	worker_reads(f, 200);
	expect_figures(f->fd, 5000, 300);
	/* The same when the duplicate has gone, and through either. */
	fd_close(&f->lent_fd);
	expect_figures(f->fd, 5000, 300);
}

static void serve_in_child(struct fixture *f, size_t n_read, size_t n_written)
{
	char bytes[8192] = { 0 };
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (n_read > 0 && recv(f->lent_fd, bytes, n_read, MSG_WAITALL) != (ssize_t)n_read)
			_exit(1);
		if (n_written > 0 &&
			send(f->lent_fd, bytes, n_written, MSG_NOSIGNAL) != (ssize_t)n_written)
			_exit(2);
		raise(SIGKILL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
}

static void figures_of_a_killed_process_are_what_it_did(void **state)
{
	struct fixture *f = *state;

	client_sends(f, 1000);
	serve_in_child(f, 400, 0);
	expect_figures(f->fd, 0, 400);
	serve_in_child(f, 0, 8000);
	expect_figures(f->fd, 8000, 400);
	serve_in_child(f, 600, 1);
	expect_figures(f->fd, 8001, 1000);
}

/* Neither what the client has not acknowledged nor what was not sent yet is missed. */
static void bytes_that_the_client_does_not_read_count_as_written(void **state)
{
	static const char bytes[64 * 1024];
	struct fixture *f = *state;
	uint64_t written = 0;
	ssize_t n;

	while ((n = send(f->lent_fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL)) > 0) {
		written += (uint64_t)n;
		expect_figures(f->fd, written, 0);
	}
	assert_int_equal(errno, EAGAIN);
	assert_true(written > sizeof(bytes));
	expect_figures(f->fd, written, 0);
}

/* Reads in a child to the end, so that acknowledgements come in at any moment. */
static pid_t start_reader(struct fixture *f)
{
	static char bytes[256 * 1024];
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		fd_close(&f->fd);
		fd_close(&f->lent_fd);
		while (read(f->client_fd, bytes, sizeof(bytes)) > 0)
			;
		_exit(0);
	}
	return pid;
}

static void figures_are_exact_while_acknowledgements_come_in(void **state)
{
	static const char bytes[30000];
	struct fixture *f = *state;
	pid_t reader = start_reader(f);
	uint64_t written = 0;
	int status;

	for (unsigned i = 0; i < 5000; i++) {
		ssize_t n = send(
			f->lent_fd, bytes, 1 + i * 7 % sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0) {
			assert_int_equal(errno, EAGAIN);
			assert_true(case_wait(f->lent_fd, POLLOUT));
			continue;
		}
		written += (uint64_t)n;
		expect_figures(f->fd, written, 0);
		expect_figures(f->fd, written, 0);
	}
	shutdown(f->fd, SHUT_WR);
	fd_close(&f->client_fd);
	assert_int_equal(waitpid(reader, &status, 0), reader);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The kernel counts a FIN as a byte received: before it is read, and after. */
static void the_clients_fin_is_no_byte(void **state)
{
	struct fixture *f = *state;
	char byte;

	client_sends(f, 50);
	assert_int_equal(shutdown(f->client_fd, SHUT_WR), 0);
	assert_true(case_wait(f->fd, POLLRDHUP));
	expect_figures(f->fd, 0, 0);
	worker_reads(f, 30);
	expect_figures(f->fd, 0, 30);
	worker_reads(f, 20);
	expect_figures(f->fd, 0, 50);
	assert_int_equal(recv(f->lent_fd, &byte, 1, MSG_DONTWAIT), 0);
	expect_figures(f->fd, 0, 50);
	worker_writes(f, 10);
	expect_figures(f->fd, 10, 50);
}

static void a_fin_alone_is_no_byte(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(shutdown(f->client_fd, SHUT_WR), 0);
	assert_true(case_wait(f->fd, POLLRDHUP));
	expect_figures(f->fd, 0, 0);
}

static void a_reset_ends_the_socket(void **state)
{
	const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
	struct fixture *f = *state;
	struct socket_figures figures;

	client_sends(f, 50);
	worker_writes(f, 10);
	assert_int_equal(
		setsockopt(f->client_fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), 0);
	fd_close(&f->client_fd);
	/* POLLIN was there before: wait for the error itself. */
	assert_true(case_wait(f->fd, 0));
	socket_figures(f->fd, &figures);
	assert_true(figures.known);
	assert_true(figures.ended);
}

static void without_tcp_there_are_no_figures(void **state)
{
	struct socket_figures figures;
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(send(pair[0], "abc", 3, 0), 3);
	memset(&figures, 0xff, sizeof(figures));
	socket_figures(pair[0], &figures);
	assert_false(figures.known);
	assert_false(figures.ended);
	assert_int_equal(figures.written, 0);
	assert_int_equal(figures.read, 0);
	fd_close(&pair[0]);
	fd_close(&pair[1]);
	socket_figures(-1, &figures);
	assert_false(figures.known);
}

/* From the first request of a connection to the death in its second. */
static void a_killed_workers_response_is_judged_by_the_sums(void **state)
{
	struct fixture *f = *state;
	struct http_head head = { .body = HTTP_BODY_LENGTH, .body_len = 600 };
	struct evidence evidence = { .head = &head, .ahead_len = 100, .taken = true, .end = 8000 };
	struct socket_figures figures;
	uint64_t written, left;

	client_sends(f, 1000);
	serve_in_child(f, 1000, 200);
	evidence.read = 1000;
	evidence.written = 200;
	client_sends(f, 500);
	socket_figures(f->fd, &figures);
	assert_int_equal(verdict(&evidence, &figures, false, &written, &left), VERDICT_BAD_GATEWAY);
	assert_int_equal(left, 500);
	serve_in_child(f, 450, 7999);
	socket_figures(f->fd, &figures);
	assert_int_equal(verdict(&evidence, &figures, false, &written, &left), VERDICT_CUT);
	assert_int_equal(written, 7999);
	serve_in_child(f, 0, 1);
	socket_figures(f->fd, &figures);
	assert_int_equal(verdict(&evidence, &figures, false, &written, &left), VERDICT_COMPLETE);
	assert_int_equal(written, 8000);
	assert_int_equal(left, 50);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		cmocka_unit_test(every_verdict_has_its_evidence),
		CASE(a_new_socket_is_at_its_beginning),
		CASE(figures_are_what_was_done_through_another_descriptor),
		CASE(figures_of_a_killed_process_are_what_it_did),
		CASE(bytes_that_the_client_does_not_read_count_as_written),
		CASE(figures_are_exact_while_acknowledgements_come_in),
		CASE(the_clients_fin_is_no_byte),
		CASE(a_fin_alone_is_no_byte),
		CASE(a_reset_ends_the_socket),
		CASE(without_tcp_there_are_no_figures),
		CASE(a_killed_workers_response_is_judged_by_the_sums),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
