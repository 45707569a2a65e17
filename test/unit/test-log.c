/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Each case runs in a child whose standard output and error are descriptors of the test's.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "master/log.h"

#define DEADLINE_S 20
#define TEXT_MAX (4 * 1024 * 1024)

/* What the child wrote, NUL-terminated. */
static char text[TEXT_MAX];

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Runs act in a child; take_out and take_err become its descriptors 1 and 2, and may be the same.
 */
static pid_t start(void (*act)(void), int take_out, int take_err, int other_end)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		alarm(DEADLINE_S);
		signal(SIGPIPE, SIG_IGN);
		dup2(take_out, STDOUT_FILENO);
		dup2(take_err, STDERR_FILENO);
		close(take_out);
		if (take_err != take_out)
			close(take_err);
		if (other_end >= 0)
			close(other_end);
		act();
		_exit(0);
	}
	close(take_out);
	if (take_err != take_out)
		close(take_err);
	return pid;
}

static void expect_exit(pid_t pid, int expected)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), expected);
}

/* To the end of file. */
static void collect(int fd)
{
	size_t used = 0;
	ssize_t n;

	while ((n = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
		used += (size_t)n;
	assert_true(n == 0);
	text[used] = '\0';
	close(fd);
}

/* Both standard descriptors on one pipe; what comes out of it is in text. */
static void run(void (*act)(void))
{
	int ends[2];
	pid_t pid;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	pid = start(act, ends[1], ends[1], ends[0]);
	collect(ends[0]);
	expect_exit(pid, 0);
}

static void say_each_level(void)
{
	log_set_level(LOG_LEVEL_DEBUG);
	log_error("e %d", 1);
	log_warn("w %s", "two");
	log_start();
	log_notice("n");
	log_info("i");
	log_debug("d");
	log_stop();
	log_set_level(LOG_LEVEL_WARNING);
	log_notice("not this");
	log_warn("but this");
}

static void lines_begin_with_their_level_and_follow_the_threshold(void **state)
{
	(void)state;
	run(say_each_level);
	assert_string_equal(text, "error: e 1\nwarning: w two\nnotice: n\ninfo: i\ndebug: d\n"
				  "warning: but this\n");
}

static void say_two_lines_in_one(void)
{
	errno = ENOTTY;
	log_info("one\ninfo: two\x1b[2J");
	if (errno != ENOTTY)
		_exit(1);
}

static void a_message_is_one_line_and_leaves_errno_alone(void **state)
{
	(void)state;
	run(say_two_lines_in_one);
	assert_string_equal(text, "info: one\\x0ainfo: two\\x1b[2J\n");
}

static void say_interleaved(void)
{
	log_start();
	for (int i = 0; i < 300; i++) {
		log_info("%d", i);
		log_forward(STDOUT_FILENO, "out: ", "x\ry", 3);
		log_forward(STDERR_FILENO, "err: ", "z", 1);
	}
	log_stop();
}

static void passed_on_lines_keep_the_order(void **state)
{
	char expected[64], *at = text;

	(void)state;
	run(say_interleaved);
	for (int i = 0; i < 300; i++) {
		int n = snprintf(expected, sizeof(expected), "info: %d\nout: x\\x0dy\nerr: z\n", i);

		assert_memory_equal(at, expected, (size_t)n);
		at += n;
	}
	assert_string_equal(at, "");
}

#define N_FLOOD 20000

/* Nobody reads before this has ended: if a line waited, the alarm would end it instead. */
static void flood(void)
{
	log_start();
	for (int i = 0; i < N_FLOOD; i++)
		log_info("line %d of a flood that no pipe and no ring holds", i);
	kill(getpid(), SIGSTOP);
	log_info("after");
	log_stop();
}

static void a_full_ring_drops_lines_and_tells_how_many(void **state)
{
	int ends[2], status, next = 0, n_lost = 0, n;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	pid = start(flood, ends[1], ends[1], ends[0]);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	kill(pid, SIGCONT);
	collect(ends[0]);
	expect_exit(pid, 0);
	/* The count stands exactly where the lines are missing. */
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (sscanf(line, "warning: log: %d line", &n) == 1) {
			next += n;
			n_lost += n;
		} else if (sscanf(line, "info: line %d of a flood that no pipe and no ring holds",
				   &n) == 1) {
			assert_int_equal(n, next++);
		} else {
			assert_string_equal(line, "info: after");
			next++;
		}
	}
	assert_true(n_lost > 0);
	assert_int_equal(next, N_FLOOD + 1);
}

#define N_SLOW 4000

static void say_much_without_blocking(void)
{
	fcntl(STDERR_FILENO, F_SETFL, O_NONBLOCK);
	log_start();
	for (int i = 0; i < N_SLOW; i++)
		log_info("%04d", i);
	log_stop();
	log_info("direct");
}

static void a_nonblocking_pipe_gets_every_line(void **state)
{
	char *at = text, expected[32];
	int ends[2];
	pid_t pid;

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_true(fcntl(ends[1], F_SETPIPE_SZ, 4096) > 0);
	pid = start(say_much_without_blocking, ends[1], ends[1], ends[0]);
	collect(ends[0]);
	expect_exit(pid, 0);
	for (int i = 0; i < N_SLOW; i++, at += 11) {
		snprintf(expected, sizeof(expected), "info: %04d\n", i);
		assert_memory_equal(at, expected, 11);
	}
	assert_string_equal(at, "info: direct\n");
}

static void stop_while_nobody_reads(void)
{
	int64_t begun;

	log_start();
	for (int i = 0; i < N_FLOOD; i++)
		log_info("line %d of a flood that no pipe and no ring holds", i);
	begun = now_ms();
	log_stop();
	log_info("this does not wait again");
	_exit(now_ms() - begun < 3000 ? 0 : 1);
}

static void stopping_does_not_wait_long_for_a_reader(void **state)
{
	int ends[2];
	pid_t pid;

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	pid = start(stop_while_nobody_reads, ends[1], ends[1], ends[0]);
	expect_exit(pid, 0);
	close(ends[0]);
}

static void say_to_both(void)
{
	log_start();
	log_error("for nobody");
	log_forward(STDOUT_FILENO, "", "for somebody", 12);
	log_stop();
	log_error("for nobody");
	log_forward(STDOUT_FILENO, "", "still", 5);
}

static void a_reader_of_one_that_left_does_not_end_the_other(void **state)
{
	int out[2], err[2];
	pid_t pid;

	(void)state;
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(err, O_CLOEXEC), 0);
	close(err[0]);
	pid = start(say_to_both, out[1], err[1], out[0]);
	collect(out[0]);
	expect_exit(pid, 0);
	assert_string_equal(text, "for somebody\nstill\n");
}

static void set_journal_stream(int fd, int inode_offset)
{
	char stream[64];
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev,
		(uintmax_t)st.st_ino + (uintmax_t)inode_offset);
	setenv("JOURNAL_STREAM", stream, 1);
}

static void say_to_journal(void)
{
	set_journal_stream(STDERR_FILENO, 0);
	log_set_level(LOG_LEVEL_DEBUG);
	log_error("e");
	log_start();
	log_warn("w");
	log_notice("n");
	log_info("i");
	log_debug("d");
	log_forward(STDERR_FILENO, "worker 1: ", "x", 1);
	log_forward(STDOUT_FILENO, "worker 1: ", "y", 1);
	log_stop();
}

static void lines_to_the_journal_carry_their_priority(void **state)
{
	int out[2], err[2];
	pid_t pid;

	(void)state;
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, err), 0);
	pid = start(say_to_journal, out[1], err[1], err[0]);
	collect(err[0]);
	assert_string_equal(text, "<3>error: e\n<4>warning: w\n<5>notice: n\n<6>info: i\n"
				  "<7>debug: d\n<6>worker 1: x\n");
	collect(out[0]);
	assert_string_equal(text, "worker 1: y\n");
	expect_exit(pid, 0);
}

static void say_to_somebody_elses_journal(void)
{
	set_journal_stream(STDERR_FILENO, 1);
	log_info("i");
	log_forward(STDOUT_FILENO, "", "y", 1);
}

static void another_journal_stream_means_no_priority(void **state)
{
	(void)state;
	run(say_to_somebody_elses_journal);
	assert_string_equal(text, "info: i\ny\n");
}

static void say_long_lines(void)
{
	static char bytes[100000];

	memset(bytes, 'a', sizeof(bytes));
	log_forward(STDOUT_FILENO, "1 ", bytes, 20000);
	log_start();
	log_forward(STDOUT_FILENO, "2 ", bytes, 20000);
	log_forward(STDOUT_FILENO, "3 ", bytes, sizeof(bytes));
	log_info("%.*s", 10000, bytes);
	log_stop();
}

static void long_lines_stay_whole_up_to_the_limit(void **state)
{
	char *lines[4];

	(void)state;
	run(say_long_lines);
	for (int i = 0; i < 4; i++) {
		lines[i] = strtok(i ? NULL : text, "\n");
		assert_non_null(lines[i]);
	}
	assert_null(strtok(NULL, "\n"));
	assert_int_equal(strlen(lines[0]), 20002);
	assert_int_equal(strlen(lines[1]), 20002);
	assert_in_range(strlen(lines[2]), 65000, 65536);
	assert_string_equal(lines[2] + strlen(lines[2]) - 4, "a...");
	assert_in_range(strlen(lines[3]), 4000, 4096);
	assert_string_equal(lines[3] + strlen(lines[3]) - 4, "a...");
}

#define N_THREADS 4
#define N_LINES 500

static void *say_from_thread(void *data)
{
	for (int i = 0; i < N_LINES; i++)
		log_info("thread %d line %d", *(int *)data, i);
	return NULL;
}

static void say_from_threads(void)
{
	pthread_t threads[N_THREADS];
	int ids[N_THREADS];

	log_start();
	for (int i = 0; i < N_THREADS; i++) {
		ids[i] = i;
		pthread_create(&threads[i], NULL, say_from_thread, &ids[i]);
	}
	for (int i = 0; i < N_THREADS; i++)
		pthread_join(threads[i], NULL);
	log_stop();
}

static void threads_do_not_mix_their_lines(void **state)
{
	int next[N_THREADS] = { 0 }, thread, line, n = 0;

	(void)state;
	run(say_from_threads);
	for (char *at = strtok(text, "\n"); at; at = strtok(NULL, "\n"), n++) {
		char expected[64];

		assert_int_equal(sscanf(at, "info: thread %d line %d", &thread, &line), 2);
		assert_in_range(thread, 0, N_THREADS - 1);
		assert_int_equal(line, next[thread]++);
		snprintf(expected, sizeof(expected), "info: thread %d line %d", thread, line);
		assert_string_equal(at, expected);
	}
	assert_int_equal(n, N_THREADS * N_LINES);
}

static void start_twice(void)
{
	if (log_start() != 0 || log_start() != -EALREADY)
		_exit(1);
	log_stop();
	log_stop();
	if (log_start() != 0)
		_exit(2);
	log_info("again");
	log_stop();
}

static void the_writer_may_be_started_again_but_not_twice(void **state)
{
	(void)state;
	run(start_twice);
	assert_string_equal(text, "info: again\n");
}

static void escaping_leaves_text_and_nothing_else(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
		const char *expected;
	} cases[] = {
		{ "", 0, "" }, { "plain \\ \"text\"", 14, "plain \\ \"text\"" },
		{ "a\tb", 3, "a\tb" }, { "a\0b\n\x7f", 5, "a\\x00b\\x0a\\x7f" },
		{ "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 9,
			"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80" },
		{ "\xc2\x9b", 2, "\\xc2\\x9b" },		   /* a control character, CSI */
		{ "\xc0\xaf", 2, "\\xc0\\xaf" },		   /* overlong */
		{ "\xe0\x80\xaf", 3, "\\xe0\\x80\\xaf" },	   /* overlong */
		{ "\xed\xa0\x80", 3, "\\xed\\xa0\\x80" },	   /* a surrogate */
		{ "\xe2\x82", 2, "\\xe2\\x82" },		   /* cut off */
		{ "\xf4\x90\x80\x80", 4, "\\xf4\\x90\\x80\\x80" }, /* past the last character */
	};
	char buf[64];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(log_escape(buf, sizeof(buf), cases[i].bytes, cases[i].len),
			cases[i].expected);
}

static void escaping_never_leaves_its_room(void **state)
{
	static const char bytes[] = "ab\n\xc3\xa4yz";
	/* By the room there is. */
	static const char *const expected[] = { "", "", "a", "ab", "...", "a...", "ab...", "ab...",
		"ab...", "ab...", "ab\\x0a...", "ab\\x0a\xc3\xa4yz" };

	(void)state;
	for (size_t room = 1; room < sizeof(expected) / sizeof(expected[0]); room++) {
		char *buf = malloc(room);

		log_escape(buf, room, bytes, strlen(bytes));
		assert_true(strlen(buf) < room);
		assert_string_equal(buf, expected[room]);
		free(buf);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines_begin_with_their_level_and_follow_the_threshold),
		cmocka_unit_test(a_message_is_one_line_and_leaves_errno_alone),
		cmocka_unit_test(passed_on_lines_keep_the_order),
		cmocka_unit_test(a_full_ring_drops_lines_and_tells_how_many),
		cmocka_unit_test(a_nonblocking_pipe_gets_every_line),
		cmocka_unit_test(stopping_does_not_wait_long_for_a_reader),
		cmocka_unit_test(a_reader_of_one_that_left_does_not_end_the_other),
		cmocka_unit_test(lines_to_the_journal_carry_their_priority),
		cmocka_unit_test(another_journal_stream_means_no_priority),
		cmocka_unit_test(long_lines_stay_whole_up_to_the_limit),
		cmocka_unit_test(threads_do_not_mix_their_lines),
		cmocka_unit_test(the_writer_may_be_started_again_but_not_twice),
		cmocka_unit_test(escaping_leaves_text_and_nothing_else),
		cmocka_unit_test(escaping_never_leaves_its_room),
	};

	unsetenv("JOURNAL_STREAM");
	return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
