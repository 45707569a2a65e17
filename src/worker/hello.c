/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Hello: what is served where no application is named. An ordinary module.
 *
 *     any path     200, who answered, after the body has been read
 *     /bytes/N     N bytes
 *     /delay/MS    the same as any path, after MS milliseconds
 *     /echo        the request's body as it comes, with its Content-Type
 */
#include <errno.h>
#include <ev.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <up/worker.h>

/* Each piece wakes the client: in pieces of 64 KiB, 1 MiB takes half as much time again. */
#define PATTERN_MAX (1024 * 1024)

struct hello {
	char text[64];
	size_t text_len;
	char *pattern; /* PATTERN_MAX bytes of "0123456789abcdef…"; NULL until asked for */
};

static void answer(struct up_request *request, const struct hello *hello)
{
	up_respond(request, 200, "text/plain", hello->text, hello->text_len);
}

static void body_piece(struct up_request *request, const void *bytes, size_t len, void *data)
{
	(void)len;
	if (!bytes)
		answer(request, data);
}

static void serve_hello(struct up_request *request, struct hello *hello)
{
	if (up_body_length(request) == 0)
		answer(request, hello);
	else
		up_body_read(request, body_piece, hello);
}

/* Whether the target is prefix and then a number, and nothing else but a query. */
static bool number_behind(const char *target, const char *prefix, uint64_t *out)
{
	size_t len = strlen(prefix);
	char *end;

	if (strncmp(target, prefix, len) != 0 || target[len] < '0' || target[len] > '9')
		return false;
	errno = 0;
	*out = strtoull(target + len, &end, 10);
	return errno == 0 && (*end == '\0' || *end == '?');
}

/* ---- /bytes/N ---- */

struct bytes {
	struct hello *hello;
	uint64_t left;
};

static void bytes_end(struct up_request *request, enum up_end how, void *data)
{
	(void)request;
	(void)how;
	free(data);
}

static void bytes_go_on(struct up_request *request, void *data)
{
	struct bytes *bytes = data;
	int r = 0;

	while (bytes->left > 0 && r == 0) {
		size_t n = bytes->left < PATTERN_MAX ? (size_t)bytes->left : PATTERN_MAX;

		r = up_write(request, bytes->hello->pattern, n);
		bytes->left -= n;
	}
	if (bytes->left == 0 && r >= 0)
		up_end(request);
}

static bool make_pattern(struct hello *hello)
{
	if (hello->pattern)
		return true;
	hello->pattern = malloc(PATTERN_MAX);
	for (size_t i = 0; hello->pattern && i < PATTERN_MAX; i++)
		hello->pattern[i] = "0123456789abcdef"[i % 16];
	return hello->pattern;
}

static void serve_bytes(struct up_request *request, struct hello *hello, uint64_t n)
{
	struct bytes *bytes;

	if (!make_pattern(hello)) {
		up_respond(request, 500, NULL, NULL, 0);
		return;
	}
	if (n <= PATTERN_MAX) {
		up_respond_borrowed(
			request, 200, "application/octet-stream", hello->pattern, (size_t)n);
		return;
	}
	bytes = malloc(sizeof(*bytes));
	if (!bytes) {
		up_respond(request, 500, NULL, NULL, 0);
		return;
	}
	/* To HEAD nothing is sent, so that nothing would ever stop the loop over what is left. */
	*bytes = (struct bytes){
		.hello = hello,
		.left = strcmp(up_method(request), "HEAD") == 0 ? 0 : n,
	};
	up_on_end(request, bytes_end, bytes);
	up_on_writable(request, bytes_go_on, bytes);
	up_add_field(request, "Content-Type", "application/octet-stream");
	up_begin(request, 200, n);
	bytes_go_on(request, bytes);
}

/* ---- /delay/MS ---- */

struct delay {
	ev_timer timer;
	struct up_request *request;
	struct hello *hello;
};

static void delay_end(struct up_request *request, enum up_end how, void *data)
{
	struct delay *delay = data;

	(void)how;
	ev_timer_stop(up_worker_loop(up_request_worker(request)), &delay->timer);
	free(delay);
}

static void delay_cb(struct ev_loop *loop, ev_timer *timer, int revents)
{
	struct delay *delay = timer->data;

	(void)loop;
	(void)revents;
	serve_hello(delay->request, delay->hello);
}

static void serve_delay(struct up_request *request, struct hello *hello, uint64_t ms)
{
	struct delay *delay = malloc(sizeof(*delay));

	if (!delay) {
		up_respond(request, 500, NULL, NULL, 0);
		return;
	}
	delay->request = request;
	delay->hello = hello;
	ev_timer_init(&delay->timer, delay_cb, (double)ms / 1e3, 0.);
	delay->timer.data = delay;
	ev_timer_start(up_worker_loop(up_request_worker(request)), &delay->timer);
	up_on_end(request, delay_end, delay);
}

/* ---- /echo ---- */

static void echo_piece(struct up_request *request, const void *bytes, size_t len, void *data)
{
	(void)data;
	if (!bytes)
		up_end(request);
	else if (up_write(request, bytes, len) == 1)
		up_body_pause(request);
}

static void echo_writable(struct up_request *request, void *data)
{
	(void)data;
	up_body_resume(request);
}

/*
 * Content-Length where the request has it. Reading is started before the response begins: the
 * client may wait for 100 Continue; no piece comes before up_body_resume().
 */
static void serve_echo(struct up_request *request)
{
	const char *type = up_field(request, "Content-Type");

	if (type)
		up_add_field(request, "Content-Type", type);
	up_on_writable(request, echo_writable, NULL);
	up_body_pause(request);
	up_body_read(request, echo_piece, NULL);
	up_begin(request, 200, up_body_length(request));
	up_body_resume(request);
}

static void on_request(struct up_request *request, void *data)
{
	struct hello *hello = data;
	const char *target = up_target(request);
	uint64_t number;

	if (strncmp(target, "/echo", 5) == 0 && (target[5] == '\0' || target[5] == '?'))
		serve_echo(request);
	else if (number_behind(target, "/bytes/", &number))
		serve_bytes(request, hello, number);
	else if (number_behind(target, "/delay/", &number))
		serve_delay(request, hello, number);
	else
		serve_hello(request, hello);
}

static void on_shutdown(struct up_worker *worker, void *data)
{
	struct hello *hello = data;

	(void)worker;
	free(hello->pattern);
	free(hello);
}

int up_app(struct up_worker *worker)
{
	struct hello *hello = malloc(sizeof(*hello));

	if (!hello)
		return -ENOMEM;
	hello->pattern = NULL;
	hello->text_len = (size_t)snprintf(hello->text, sizeof(hello->text),
		"Hello from pid %d, generation %u\n", (int)getpid(), up_worker_generation(worker));
	up_on_request(worker, on_request, hello);
	up_on_shutdown(worker, on_shutdown, hello);
	return 0;
}
