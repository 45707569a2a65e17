/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * A module that does what a live test tells it to:
 *
 *     up-master fixture-a.so DIRECTORY
 *
 * How it boots is in DIRECTORY/plan, a word for each worker of a generation in the order of their
 * start; the last holds for all others too, and without a plan every one is ready at once:
 *
 *     ready         at once
 *     deaf          ready at once, and SIGTERM is ignored
 *     wait:NAME     ready when the file DIRECTORY/NAME exists
 *     fail          says why on standard error, and up_app() returns 7
 *     fail:NAME     the same when the file exists, by exit
 *     exit          exits with status 3
 *     kill          is killed by a signal
 *     never         never ready
 *
 * What it answers:
 *
 *     /             who it is, a line for each fact
 *     /env/NAME     that variable
 *     /print/TEXT   writes "out TEXT" to standard output and "err TEXT" to standard error first
 *     /spawn        starts a child that does nothing, and tells its pid
 *     /hold/NAME    answers when DIRECTORY/NAME exists; others are served meanwhile
 *     /half/NAME    the first half of the answer at once, the other when DIRECTORY/NAME exists
 *     /block/NAME   blocks the whole process until somebody opens the FIFO DIRECTORY/NAME
 *     /missing      404
 *     /spin         uses the processor for ever
 *     /body         reads the body, and tells its length and sum
 *     /upgrade      an echo behind a 101; "die" kills the worker, "end" ends it
 *     /die/…        deaths.c
 */
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOK_S 0.005
#define HALF 2000

extern char **environ;

static struct up_worker *this_worker;
static const char *directory = ".";
static char marker[64];

/* ---- Means ---- */

const char *fixture_behind(const char *target, const char *prefix)
{
	size_t len = strlen(prefix);

	return strncmp(target, prefix, len) == 0 ? target + len : NULL;
}

const char *fixture_path(const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return path;
}

static void look_cb(struct ev_loop *loop, ev_timer *timer, int events)
{
	struct fixture_gate *gate = timer->data;

	(void)loop, (void)events;
	if (access(fixture_path(gate->name), F_OK) < 0)
		return;
	fixture_gate_stop(gate);
	gate->fn(gate);
}

void fixture_gate_start(
	struct fixture_gate *gate, const char *name, void (*fn)(struct fixture_gate *gate))
{
	gate->fn = fn;
	snprintf(gate->name, sizeof(gate->name), "%s", name);
	ev_timer_init(&gate->timer, look_cb, 0., LOOK_S);
	gate->timer.data = gate;
	ev_timer_start(up_worker_loop(this_worker), &gate->timer);
}

void fixture_gate_stop(struct fixture_gate *gate)
{
	ev_timer_stop(up_worker_loop(this_worker), &gate->timer);
}

void fixture_answer(struct up_request *request)
{
	char cwd[PATH_MAX], text[PATH_MAX + 256];
	int len;

	if (!getcwd(cwd, sizeof(cwd)))
		strcpy(cwd, "?");
	len = snprintf(text, sizeof(text),
		"pid=%d\nid=%u\ngeneration=%u\nversion=%s\nmarker=%s\ncwd=%s\nuid=%u\ngid=%u\n",
		(int)getpid(), up_worker_id(this_worker), up_worker_generation(this_worker),
		FIXTURE_VERSION, marker, cwd, (unsigned)getuid(), (unsigned)getgid());
	up_respond(request, 200, "text/plain", text, (size_t)len);
}

static void answer_text(struct up_request *request, const char *text)
{
	up_respond(request, 200, "text/plain", text, strlen(text));
}

/* ---- Answers that wait ---- */

struct held {
	struct fixture_gate gate;
	struct up_request *request;
};

static void held_end(struct up_request *request, enum up_end how, void *data)
{
	struct held *held = data;

	(void)request, (void)how;
	fixture_gate_stop(&held->gate);
	free(held);
}

static void held_open(struct fixture_gate *gate)
{
	fixture_answer(((struct held *)gate)->request);
}

static void half_open(struct fixture_gate *gate)
{
	struct up_request *request = ((struct held *)gate)->request;
	char text[HALF];

	memset(text, 'b', sizeof(text));
	up_write(request, text, sizeof(text));
	up_end(request);
}

static void hold(
	struct up_request *request, const char *name, void (*fn)(struct fixture_gate *gate))
{
	struct held *held = calloc(1, sizeof(*held));

	if (!held)
		abort();
	held->request = request;
	up_on_end(request, held_end, held);
	fixture_gate_start(&held->gate, name, fn);
}

static void serve_half(struct up_request *request, const char *name)
{
	char text[HALF];

	memset(text, 'a', sizeof(text));
	hold(request, name, half_open);
	up_begin(request, 200, 2 * HALF);
	up_write(request, text, sizeof(text));
	up_flush(request);
}

static void block(const char *name)
{
	int fd = open(fixture_path(name), O_RDONLY | O_CLOEXEC);
	char byte;

	/* Until the writer has gone again, so that the next one blocks too. */
	while (fd >= 0 && read(fd, &byte, 1) > 0)
		;
	if (fd >= 0)
		close(fd);
}

/* ---- Other answers ---- */

static void serve_spawn(struct up_request *request)
{
	char program[] = "sleep", seconds[] = "1000";
	char *const arguments[] = { program, seconds, NULL };
	char text[32];
	pid_t pid;

	if (posix_spawnp(&pid, arguments[0], NULL, NULL, arguments, environ) != 0)
		abort();
	snprintf(text, sizeof(text), "%d\n", (int)pid);
	answer_text(request, text);
}

static void serve_print(struct up_request *request, const char *text)
{
	printf("out %s\n", text);
	fflush(stdout);
	fprintf(stderr, "err %s\n", text);
	answer_text(request, text);
}

static void body_whole(struct up_request *request, const void *bytes, size_t len, void *data)
{
	const unsigned char *at = bytes;
	unsigned long sum = 0;
	char text[64];

	(void)data;
	for (size_t i = 0; i < len; i++)
		sum = (sum * 31 + at[i]) % 1000003;
	snprintf(text, sizeof(text), "%zu %lu\n", len, sum);
	answer_text(request, text);
}

static void upgraded(struct up_socket *socket, int happened, void *data)
{
	char text[256];
	long n = up_socket_read(socket, text, sizeof(text));

	(void)happened, (void)data;
	if (n > 0 && memcmp(text, "die", 3) == 0)
		kill(getpid(), SIGKILL);
	if (n > 0 && memcmp(text, "end", 3) != 0)
		up_socket_write(socket, text, (size_t)n);
	else if (n >= 0)
		up_socket_close(socket);
}

static void serve_upgrade(struct up_request *request)
{
	/* Where the worker ends before it, it is not lost from sight: a leak checker would tell. */
	static struct up_socket *socket;

	up_add_field(request, "Connection", "Upgrade");
	up_add_field(request, "Upgrade", "echo");
	if (up_detach(request, &socket) == 0)
		up_socket_watch(socket, UP_READABLE, upgraded, NULL);
	else
		up_respond(request, 400, "text/plain", "no upgrade\n", 11);
}

static void on_request(struct up_request *request, void *data)
{
	const char *target = up_target(request), *behind;

	(void)data;
	if ((behind = fixture_behind(target, "/die/")) && fixture_die(request, behind)) {
		return;
	} else if ((behind = fixture_behind(target, "/env/"))) {
		answer_text(request, getenv(behind) ? getenv(behind) : "(none)");
	} else if ((behind = fixture_behind(target, "/print/"))) {
		serve_print(request, behind);
	} else if ((behind = fixture_behind(target, "/hold/"))) {
		hold(request, behind, held_open);
	} else if ((behind = fixture_behind(target, "/half/"))) {
		serve_half(request, behind);
	} else if ((behind = fixture_behind(target, "/block/"))) {
		block(behind);
		fixture_answer(request);
	} else if (strcmp(target, "/spawn") == 0) {
		serve_spawn(request);
	} else if (strcmp(target, "/body") == 0) {
		up_body_collect(request, 1 << 20, body_whole, NULL);
	} else if (strcmp(target, "/upgrade") == 0) {
		serve_upgrade(request);
	} else if (strcmp(target, "/missing") == 0) {
		up_respond(request, 404, "text/plain", "missing\n", 8);
	} else if (strcmp(target, "/spin") == 0) {
		for (volatile bool forever = true; forever;)
			;
	} else {
		fixture_answer(request);
	}
}

/* ---- How it boots ---- */

/* This worker's place among those of its generation: whoever makes the file first has it. */
static unsigned rank(void)
{
	char name[64];

	for (unsigned n = 0;; n++) {
		int fd;

		snprintf(name, sizeof(name), "rank-%u-%u", up_worker_generation(this_worker), n);
		fd = open(fixture_path(name), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
		if (fd >= 0)
			close(fd);
		if (fd >= 0 || errno != EEXIST)
			return n;
	}
}

static void read_word(const char *name, unsigned n, char *out, size_t room)
{
	FILE *file = fopen(name, "re");
	char word[64];

	*out = '\0';
	for (unsigned i = 0; file && i <= n && fscanf(file, "%63s", word) == 1; i++)
		snprintf(out, room, "%s", word);
	if (file)
		fclose(file);
}

static void now_ready(struct fixture_gate *gate)
{
	(void)gate;
	up_worker_ready(this_worker);
}

static void now_fail(struct fixture_gate *gate)
{
	fprintf(stderr, "the %s is not there\nand so it can't start\n", gate->name);
	exit(4);
}

static int boot(const char *how)
{
	static struct fixture_gate gate;
	const char *behind;

	if ((behind = fixture_behind(how, "wait:")))
		fixture_gate_start(&gate, behind, now_ready);
	else if ((behind = fixture_behind(how, "fail:")))
		fixture_gate_start(&gate, behind, now_fail);
	else if (strcmp(how, "deaf") == 0)
		/* libup's own handler comes before up_app(). */
		signal(SIGTERM, SIG_IGN);
	if (behind || strcmp(how, "never") == 0)
		up_worker_defer_ready(this_worker);
	if (strcmp(how, "exit") == 0)
		exit(3);
	if (strcmp(how, "kill") == 0)
		raise(SIGKILL);
	if (strcmp(how, "fail") != 0)
		return 0;
	fprintf(stderr, "the database is not there\nand so it can't start\n");
	return 7;
}

int up_app(struct up_worker *worker)
{
	char how[64];
	unsigned n;

	this_worker = worker;
	if (up_worker_argc(worker) > 1)
		directory = up_worker_argv(worker)[1];
	/* Of the working directory, not of the test's: which one did this generation get? */
	read_word("marker", 0, marker, sizeof(marker));
	up_on_request(worker, on_request, NULL);
	if (up_worker_argc(worker) < 2)
		return 0;
	n = rank();
	read_word(fixture_path("plan"), n, how, sizeof(how));
	return boot(how);
}
