/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/listener.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "case.h"
#include "common/fd.h"

#define N_SOCKETS 3

struct fixture {
	struct list listeners;
	char *error;
	char directory[64];
	char path[96];	   /* in it */
	char address[112]; /* "unix:" and the path */
	int n_fds;
};

static void close_all(struct list *listeners)
{
	list_each (at, listeners)
		listener_close(container_of(at, struct listener, link));
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	alarm(CASE_DEADLINE_S);
	f->n_fds = case_count_fds();
	list_init(&f->listeners);
	strcpy(f->directory, "/tmp/test-listener.XXXXXX");
	assert_non_null(mkdtemp(f->directory));
	snprintf(f->path, sizeof(f->path), "%s/sock", f->directory);
	snprintf(f->address, sizeof(f->address), "unix:%s", f->path);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	close_all(&f->listeners);
	assert_int_equal(rmdir(f->directory), 0);
	assert_int_equal(case_count_fds(), f->n_fds);
	alarm(0);
	free(f->error);
	free(f);
	return 0;
}

static struct listener *first(struct fixture *f)
{
	assert_false(list_empty(&f->listeners));
	return container_of(f->listeners.next, struct listener, link);
}

static struct listener *open_one(struct fixture *f, const char *address)
{
	int r = listener_open(address, N_SOCKETS, 16, &f->listeners, &f->error);

	if (r < 0)
		print_error("%s\n", f->error);
	assert_int_equal(r, 0);
	assert_ptr_equal(f->listeners.next, f->listeners.prev);
	assert_string_equal(first(f)->configured, address);
	assert_false(first(f)->inherited);
	return first(f);
}

static void expect_refused(struct fixture *f, const char *address, int error)
{
	struct list none;
	char *why = NULL;
	int before = case_count_fds();

	list_init(&none);
	assert_int_equal(listener_open(address, N_SOCKETS, 16, &none, &why), -error);
	assert_true(list_empty(&none));
	assert_non_null(why);
	/* It names the address and says why. */
	assert_non_null(strstr(why, address));
	assert_non_null(strstr(why, strerror(error)));
	free(why);
	assert_int_equal(case_count_fds(), before);
	(void)f;
}

/* ---- TCP ---- */

static uint16_t port_of(int fd)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} address;
	socklen_t len = sizeof(address);

	assert_int_equal(getsockname(fd, &address.any, &len), 0);
	return ntohs(address.any.sa_family == AF_INET ? address.v4.sin_port : address.v6.sin6_port);
}

static int connect_port(uint16_t port)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void sockets_of_one_address_share_the_port_that_the_kernel_chose(void **state)
{
	struct fixture *f = *state;
	struct listener *listener = open_one(f, "127.0.0.1:0");
	uint16_t port = port_of(listener->fds[0]);
	char address[32];

	assert_int_equal(listener->n_fds, N_SOCKETS);
	assert_true(port != 0);
	for (unsigned i = 0; i < N_SOCKETS; i++) {
		assert_int_equal(port_of(listener->fds[i]), port);
		assert_true(fcntl(listener->fds[i], F_GETFD) & FD_CLOEXEC);
		assert_true(fcntl(listener->fds[i], F_GETFL) & O_NONBLOCK);
	}
	snprintf(address, sizeof(address), "127.0.0.1:%u", port);
	assert_string_equal(listener->address, address);
}

static void connections_are_spread_over_the_sockets(void **state)
{
	struct fixture *f = *state;
	struct listener *listener = open_one(f, "127.0.0.1:0");
	unsigned n_accepted[N_SOCKETS] = { 0 }, n_all = 0;
	int clients[15];

	for (unsigned i = 0; i < 15; i++)
		clients[i] = connect_port(port_of(listener->fds[0]));
	for (unsigned i = 0; i < N_SOCKETS; i++)
		for (;;) {
			FD_AUTO int fd = accept4(listener->fds[i], NULL, NULL, SOCK_CLOEXEC);
			int no_delay = 0;
			socklen_t len = sizeof(no_delay);

			if (fd < 0)
				break;
			n_accepted[i]++;
			n_all++;
			assert_int_equal(
				getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &no_delay, &len), 0);
			assert_int_equal(no_delay, 1);
		}
	assert_int_equal(n_all, 15);
	/* By a hash of the ports: all 15 at one socket is one in 5 million. */
	for (unsigned i = 0; i < N_SOCKETS; i++)
		assert_true(n_accepted[i] < 15);
	for (unsigned i = 0; i < 15; i++)
		fd_close(&clients[i]);
}

static void a_port_in_use_is_refused(void **state)
{
	struct fixture *f = *state;
	struct listener *listener = open_one(f, "127.0.0.1:0");

	expect_refused(f, listener->address, EADDRINUSE);
	/* Also to one that would share it. */
	{
		struct sockaddr_in address = { .sin_family = AF_INET,
			.sin_port = htons(port_of(listener->fds[0])),
			.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		FD_AUTO int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), -1);
		assert_int_equal(errno, EADDRINUSE);
	}
}

static void a_port_that_was_let_go_can_be_taken_at_once(void **state)
{
	struct fixture *f = *state;
	struct listener *listener = open_one(f, "127.0.0.1:0");
	char *address = strdup(listener->address);
	int client = connect_port(port_of(listener->fds[0])), served = -1;

	for (unsigned i = 0; i < N_SOCKETS && served < 0; i++)
		served = accept4(listener->fds[i], NULL, NULL, SOCK_CLOEXEC);
	assert_true(served >= 0);
	listener_close(listener);
	assert_true(list_empty(&f->listeners));
	/* The server's side closes first and goes to TIME_WAIT. */
	fd_close(&served);
	fd_close(&client);
	open_one(f, address);
	free(address);
}

static void a_port_alone_is_every_address(void **state)
{
	struct fixture *f = *state;
	struct listener *listener = open_one(f, ":0");
	uint16_t port = port_of(listener->fds[0]);
	FD_AUTO int client = connect_port(port);
	char v6[32], v4[32];

	(void)client;
	snprintf(v6, sizeof(v6), "[::]:%u", port);
	snprintf(v4, sizeof(v4), "0.0.0.0:%u", port);
	assert_true(strcmp(listener->address, v6) == 0 || strcmp(listener->address, v4) == 0);
}

static void an_address_of_version_6_is_told_in_brackets(void **state)
{
	struct fixture *f = *state;
	int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in6 address = { .sin6_family = AF_INET6,
		.sin6_addr = IN6ADDR_LOOPBACK_INIT };
	bool have = probe >= 0 && bind(probe, (struct sockaddr *)&address, sizeof(address)) == 0;
	struct listener *listener;
	char expected[32];

	fd_close(&probe);
	if (!have) {
		print_message("# no IPv6 here\n");
		return;
	}
	listener = open_one(f, "[::1]:0");
	snprintf(expected, sizeof(expected), "[::1]:%u", port_of(listener->fds[0]));
	assert_string_equal(listener->address, expected);
}

static void an_address_of_another_machine_is_refused(void **state)
{
	/* TEST-NET-1: RFC 5737. */
	expect_refused(*state, "192.0.2.1:0", EADDRNOTAVAIL);
}

/* ---- UNIX ---- */

static int connect_path(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	FD_AUTO int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	strcpy(address.sun_path, path);
	return connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
}

/* A socket with that path; listens where backlog is not negative. */
static int bind_path(const char *path, int backlog)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	if (backlog >= 0)
		assert_int_equal(listen(fd, backlog), 0);
	return fd;
}

static void a_path_has_one_socket_and_is_removed(void **state)
{
	struct fixture *f = *state;
	mode_t mask = umask(077);
	struct listener *listener = open_one(f, f->address);
	struct stat st;

	umask(mask);
	assert_int_equal(listener->n_fds, 1);
	assert_string_equal(listener->address, f->address);
	assert_int_equal(connect_path(f->path), 0);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode, S_IFSOCK | 0666);
	listener_close(listener);
	assert_int_equal(access(f->path, F_OK), -1);
}

static void a_path_that_nobody_listens_on_is_taken_over(void **state)
{
	struct fixture *f = *state;
	int stale = bind_path(f->path, 4);

	fd_close(&stale);
	assert_int_equal(access(f->path, F_OK), 0);
	assert_int_equal(connect_path(f->path), -ECONNREFUSED);
	open_one(f, f->address);
	assert_int_equal(connect_path(f->path), 0);
}

static void a_path_that_somebody_listens_on_is_refused_and_left(void **state)
{
	struct fixture *f = *state;
	int living = bind_path(f->path, 4);

	expect_refused(f, f->address, EADDRINUSE);
	assert_int_equal(connect_path(f->path), 0);
	assert_int_equal(unlink(f->path), 0);
	fd_close(&living);
}

static void a_listener_with_a_full_queue_is_alive(void **state)
{
	struct fixture *f = *state;
	int living = bind_path(f->path, 0);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int waiting[4];

	strcpy(address.sun_path, f->path);
	for (unsigned i = 0; i < 4; i++) {
		waiting[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (connect(waiting[i], (struct sockaddr *)&address, sizeof(address)) < 0)
			assert_int_equal(errno, EAGAIN);
	}
	assert_int_equal(connect_path(f->path), -EAGAIN);
	expect_refused(f, f->address, EADDRINUSE);
	assert_int_equal(access(f->path, F_OK), 0);
	assert_int_equal(unlink(f->path), 0);
	for (unsigned i = 0; i < 4; i++)
		fd_close(&waiting[i]);
	fd_close(&living);
}

static void a_file_that_is_no_socket_is_left_alone(void **state)
{
	struct fixture *f = *state;
	char byte = 0;
	int fd = open(f->path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);

	assert_int_equal(write(fd, "x", 1), 1);
	expect_refused(f, f->address, ENOTSOCK);
	assert_int_equal(pread(fd, &byte, 1, 0), 1);
	assert_int_equal(byte, 'x');
	fd_close(&fd);
	assert_int_equal(unlink(f->path), 0);
	/* A link is no socket either, wherever it leads. */
	assert_int_equal(symlink("/nowhere", f->path), 0);
	expect_refused(f, f->address, ENOTSOCK);
	assert_int_equal(unlink(f->path), 0);
}

static void a_path_that_somebody_else_took_meanwhile_is_left(void **state)
{
	struct fixture *f = *state;
	struct listener *listener = open_one(f, f->address);
	int other;

	assert_int_equal(unlink(f->path), 0);
	other = bind_path(f->path, 4);
	listener_close(listener);
	assert_int_equal(connect_path(f->path), 0);
	assert_int_equal(unlink(f->path), 0);
	fd_close(&other);
}

static void a_missing_directory_is_made(void **state)
{
	struct fixture *f = *state;
	char address[160], directory[128];

	snprintf(directory, sizeof(directory), "%s/new", f->directory);
	snprintf(address, sizeof(address), "unix:%s/sock", directory);
	listener_close(open_one(f, address));
	assert_int_equal(rmdir(directory), 0);
	/* Only the last one. */
	snprintf(address, sizeof(address), "unix:%s/one/two/sock", f->directory);
	expect_refused(f, address, ENOENT);
}

static void a_path_must_fit(void **state)
{
	struct fixture *f = *state;
	char address[256];
	int len = snprintf(address, sizeof(address), "unix:%s/", f->directory);

	memset(address + len, 'a', sizeof(address) - (size_t)len);
	address[strlen("unix:") + 108] = '\0';
	expect_refused(f, address, ENAMETOOLONG);
	address[strlen("unix:") + 107] = '\0';
	open_one(f, address);
	assert_int_equal(connect_path(address + 5), 0);
}

/* ---- Inherited ---- */

static void an_inherited_socket_is_named_and_its_path_left(void **state)
{
	struct fixture *f = *state;
	int fd = bind_path(f->path, 4);

	assert_int_equal(listener_inherit(&fd, &f->listeners), 0);
	assert_int_equal(fd, -1);
	assert_true(first(f)->inherited);
	assert_null(first(f)->configured);
	assert_int_equal(first(f)->n_fds, 1);
	assert_string_equal(first(f)->address, f->address);
	listener_close(first(f));
	assert_int_equal(unlink(f->path), 0);
}

static void an_inherited_port_answers_without_delay(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_in address = { .sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), no_delay = 0;
	socklen_t len = sizeof(no_delay);
	char expected[32];

	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 4), 0);
	assert_int_equal(listener_inherit(&fd, &f->listeners), 0);
	fd = first(f)->fds[0];
	snprintf(expected, sizeof(expected), "127.0.0.1:%u", port_of(fd));
	assert_string_equal(first(f)->address, expected);
	assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &no_delay, &len), 0);
	assert_int_equal(no_delay, 1);
}

static void what_is_no_socket_is_not_inherited(void **state)
{
	struct fixture *f = *state;
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	assert_true(listener_inherit(&fd, &f->listeners) < 0);
	assert_int_equal(fd, -1);
	assert_true(list_empty(&f->listeners));
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(sockets_of_one_address_share_the_port_that_the_kernel_chose),
		CASE(connections_are_spread_over_the_sockets),
		CASE(a_port_in_use_is_refused),
		CASE(a_port_that_was_let_go_can_be_taken_at_once),
		CASE(a_port_alone_is_every_address),
		CASE(an_address_of_version_6_is_told_in_brackets),
		CASE(an_address_of_another_machine_is_refused),
		CASE(a_path_has_one_socket_and_is_removed),
		CASE(a_path_that_nobody_listens_on_is_taken_over),
		CASE(a_path_that_somebody_listens_on_is_refused_and_left),
		CASE(a_listener_with_a_full_queue_is_alive),
		CASE(a_file_that_is_no_socket_is_left_alone),
		CASE(a_path_that_somebody_else_took_meanwhile_is_left),
		CASE(a_missing_directory_is_made),
		CASE(a_path_must_fit),
		CASE(an_inherited_socket_is_named_and_its_path_left),
		CASE(an_inherited_port_answers_without_delay),
		CASE(what_is_no_socket_is_not_inherited),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
