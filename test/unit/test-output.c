/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Standard error of the test is a pipe of its own while a case runs: what the log wrote is read
 * from there. The writer of the log is not started, so that a line is there when the call returns.
 */
#include "master/output.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "case.h"
#include "common/fd.h"

#define TEXT_MAX (128 * 1024)

struct fixture {
	struct ev_loop *loop;
	struct output output;
	struct output_tail tail;
	int write_fd; /* the worker's */
	int log_fd;   /* what the log wrote */
	int stderr_fd;
	int n_fds;
	char text[TEXT_MAX];
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int pipe_fds[2], log_fds[2];

	alarm(CASE_DEADLINE_S);
	unsetenv("JOURNAL_STREAM");
	f->n_fds = case_count_fds();
	assert_int_equal(pipe2(log_fds, O_CLOEXEC | O_NONBLOCK), 0);
	assert_true(fcntl(log_fds[1], F_SETPIPE_SZ, TEXT_MAX) >= TEXT_MAX);
	f->stderr_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
	f->log_fd = log_fds[0];
	assert_int_equal(dup2(log_fds[1], STDERR_FILENO), STDERR_FILENO);
	fd_close(&log_fds[1]);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK), 0);
	f->write_fd = pipe_fds[1];
	f->loop = ev_loop_new(EVFLAG_NOENV | EVBACKEND_EPOLL);
	output_init(&f->output, f->loop, &pipe_fds[0], STDERR_FILENO, &f->tail, "worker 3: ");
	assert_int_equal(pipe_fds[0], -1);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	output_fini(&f->output);
	assert_int_equal(f->output.fd, -1);
	dup2(f->stderr_fd, STDERR_FILENO);
	fd_close(&f->stderr_fd);
	fd_close(&f->log_fd);
	fd_close(&f->write_fd);
	ev_loop_destroy(f->loop);
	assert_int_equal(case_count_fds(), f->n_fds);
	alarm(0);
	free(f);
	return 0;
}

static void put(struct fixture *f, const char *bytes, size_t len)
{
	assert_int_equal(write(f->write_fd, bytes, len), len);
}

static void say(struct fixture *f, const char *text)
{
	put(f, text, strlen(text));
	ev_run(f->loop, EVRUN_NOWAIT);
}

/* What has been written to the log since the last look. */
static const char *logged(struct fixture *f)
{
	size_t len = 0;
	ssize_t n;

	while ((n = read(f->log_fd, f->text + len, sizeof(f->text) - 1 - len)) > 0)
		len += (size_t)n;
	f->text[len] = '\0';
	return f->text;
}

static void lines_go_to_the_log_with_their_prefix(void **state)
{
	struct fixture *f = *state;

	say(f, "one\n");
	assert_string_equal(logged(f), "worker 3: one\n");
	say(f, "two\n\nthree\n");
	assert_string_equal(logged(f), "worker 3: two\nworker 3: \nworker 3: three\n");
	assert_string_equal(f->tail.text, "one\ntwo\n\nthree\n");
	assert_int_equal(f->tail.len, strlen(f->tail.text));
}

static void a_line_waits_for_its_end(void **state)
{
	struct fixture *f = *state;

	say(f, "be");
	say(f, "gin");
	assert_string_equal(logged(f), "");
	assert_string_equal(f->tail.text, "");
	say(f, "ning\nnext");
	assert_string_equal(logged(f), "worker 3: beginning\n");
	say(f, "\n");
	assert_string_equal(logged(f), "worker 3: next\n");
}

static void bytes_of_the_worker_are_escaped_in_the_log(void **state)
{
	struct fixture *f = *state;
	static const char bytes[] = "a\0b\x1b[2J\n";

	put(f, bytes, sizeof(bytes) - 1);
	ev_run(f->loop, EVRUN_NOWAIT);
	assert_string_equal(logged(f), "worker 3: a\\x00b\\x1b[2J\n");
}

static void the_last_line_needs_no_end(void **state)
{
	struct fixture *f = *state;

	say(f, "first\nlast");
	assert_string_equal(logged(f), "worker 3: first\n");
	fd_close(&f->write_fd);
	ev_run(f->loop, EVRUN_NOWAIT);
	assert_int_equal(f->output.fd, -1);
	output_fini(&f->output);
	assert_string_equal(logged(f), "worker 3: last\n");
	assert_string_equal(f->tail.text, "first\nlast\n");
	/* Nothing is said twice. */
	output_fini(&f->output);
	assert_string_equal(logged(f), "");
}

static void the_end_reads_what_is_there_and_waits_for_nobody(void **state)
{
	struct fixture *f = *state;
	char line[1000];

	memset(line, 'x', sizeof(line));
	line[sizeof(line) - 1] = '\n';
	for (unsigned i = 0; i < 40; i++)
		put(f, line, sizeof(line));
	put(f, "last\n", 5);
	/* The writing end is open, as a grandchild would hold it. */
	output_fini(&f->output);
	assert_int_equal(strlen(logged(f)), 40 * (sizeof("worker 3: ") - 1 + sizeof(line)) + 15);
	assert_string_equal(f->tail.text + f->tail.len - 5, "last\n");
}

static void one_turn_does_not_read_for_ever(void **state)
{
	struct fixture *f = *state;
	static char bytes[60000];
	size_t first;

	memset(bytes, '\n', sizeof(bytes));
	/* Few enough lines for the log's pipe, which is not read meanwhile. */
	memset(bytes, 'x', sizeof(bytes) - 1);
	put(f, bytes, sizeof(bytes));
	ev_run(f->loop, EVRUN_NOWAIT);
	first = strlen(logged(f));
	assert_true(first > 0 && first < sizeof(bytes));
	ev_run(f->loop, EVRUN_NOWAIT);
	assert_true(first + strlen(logged(f)) >= sizeof(bytes));
}

static void a_long_line_is_cut_in_two(void **state)
{
	struct fixture *f = *state;
	char line[OUTPUT_LINE_MAX + 10];
	const char *second;

	memset(line, 'x', OUTPUT_LINE_MAX);
	strcpy(line + OUTPUT_LINE_MAX, "yyy\nz\n");
	say(f, line);
	logged(f);
	second = strchr(f->text, '\n') + 1;
	assert_int_equal(second - f->text, sizeof("worker 3: ") - 1 + OUTPUT_LINE_MAX + 1);
	assert_string_equal(second, "worker 3: yyy\nworker 3: z\n");
}

static void a_line_that_just_fits_is_one_line(void **state)
{
	struct fixture *f = *state;
	char line[OUTPUT_LINE_MAX + 8];

	memset(line, 'x', OUTPUT_LINE_MAX - 1);
	strcpy(line + OUTPUT_LINE_MAX - 1, "\nz\n");
	say(f, line);
	assert_string_equal(strchr(logged(f), '\n') + 1, "worker 3: z\n");
	memset(line, 'x', OUTPUT_LINE_MAX);
	strcpy(line + OUTPUT_LINE_MAX, "\nz\n");
	say(f, line);
	assert_string_equal(strchr(logged(f), '\n') + 1, "worker 3: z\n");
}

static void the_tail_keeps_the_last_whole_lines(void **state)
{
	struct fixture *f = *state;
	char line[32];

	for (unsigned i = 0; i < 1000; i++) {
		snprintf(line, sizeof(line), "line %u\n", i);
		say(f, line);
		assert_true(f->tail.len <= OUTPUT_TAIL_MAX);
		assert_int_equal(strlen(f->tail.text), f->tail.len);
		assert_memory_equal(f->tail.text, "line ", 5);
		assert_string_equal(f->tail.text + f->tail.len - strlen(line), line);
		logged(f);
	}
	/* As many as fit. */
	assert_true(f->tail.len + strlen(line) > OUTPUT_TAIL_MAX);
}

static void a_line_longer_than_the_tail_is_its_begin(void **state)
{
	struct fixture *f = *state;
	char line[OUTPUT_LINE_MAX + 2];

	say(f, "before\n");
	memset(line, 'x', OUTPUT_LINE_MAX);
	line[0] = 'a';
	strcpy(line + OUTPUT_LINE_MAX, "\n");
	say(f, line);
	assert_int_equal(f->tail.len, OUTPUT_TAIL_MAX);
	assert_memory_equal(f->tail.text, "axxx", 4);
	assert_int_equal(f->tail.text[OUTPUT_TAIL_MAX - 1], '\n');
	say(f, "after\n");
	assert_string_equal(f->tail.text, "after\n");
}

static void without_a_tail_lines_are_only_logged(void **state)
{
	struct fixture *f = *state;

	f->output.tail = NULL;
	say(f, "one\n");
	assert_string_equal(logged(f), "worker 3: one\n");
	assert_int_equal(f->tail.len, 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(lines_go_to_the_log_with_their_prefix),
		CASE(a_line_waits_for_its_end),
		CASE(bytes_of_the_worker_are_escaped_in_the_log),
		CASE(the_last_line_needs_no_end),
		CASE(the_end_reads_what_is_there_and_waits_for_nobody),
		CASE(one_turn_does_not_read_for_ever),
		CASE(a_long_line_is_cut_in_two),
		CASE(a_line_that_just_fits_is_one_line),
		CASE(the_tail_keeps_the_last_whole_lines),
		CASE(a_line_longer_than_the_tail_is_its_begin),
		CASE(without_a_tail_lines_are_only_logged),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
