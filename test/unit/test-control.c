/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/control.h"

#include <dirent.h>
#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* Time-outs are tested by moving the clock, not by waiting: libev and the control ask this
 * function. */
static time_t skew_s;

int clock_gettime(clockid_t clock, struct timespec *out)
{
	int r = (int)syscall(SYS_clock_gettime, clock, out);

	out->tv_sec += skew_s;
	return r;
}

struct fixture {
	struct ev_loop *loop;
	struct control *control;
	char directory[64];
	char path[96];
	int n_fds;
	bool healthy;
	size_t status_len; /* of a text in the status document */
	bool first_only;
	unsigned n_workers;
	unsigned n_stops;
	struct control_reply *reply; /* of a reload that waits */
};

static int count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int n = 0;

	assert_non_null(directory);
	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}

/* ---- The operations behind the control, made up ---- */

static json_t *fake_status(void *data)
{
	struct fixture *f = data;
	json_t *long_text;
	char *text;

	if (f->status_len == SIZE_MAX)
		return NULL;
	text = malloc(f->status_len + 1);
	memset(text, 'x', f->status_len);
	text[f->status_len] = 0;
	long_text = json_string(text);
	free(text);
	return json_pack("{s:s, s:i, s:f, s:o}", "version", "0.1.0", "pid", 4711, "a", 12.3, "text",
		long_text);
}

static bool fake_healthy(void *data)
{
	return ((struct fixture *)data)->healthy;
}

static void fake_reload(void *data, bool first_only, struct control_reply *reply)
{
	struct fixture *f = data;

	f->first_only = first_only;
	f->reply = reply;
}

static void fake_scale(void *data, unsigned n_workers, struct control_reply *reply)
{
	((struct fixture *)data)->n_workers = n_workers;
	control_answer(reply, 200, json_pack("{s:i}", "workers", n_workers));
}

static void fake_stop(void *data, struct control_reply *reply)
{
	((struct fixture *)data)->n_stops++;
	control_answer(reply, 202, json_pack("{s:s}", "state", "stopping"));
}

static const struct control_ops fake_ops = { fake_status, fake_healthy, fake_reload, fake_scale,
	fake_stop };

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	/* A case that hangs must end. */
	alarm(30);
	skew_s = 0;
	f->n_fds = count_fds();
	f->healthy = true;
	strcpy(f->directory, "/tmp/test-control.XXXXXX");
	assert_non_null(mkdtemp(f->directory));
	snprintf(f->path, sizeof(f->path), "%s/sub/control.sock", f->directory);
	f->loop = ev_loop_new(EVFLAG_NOENV | EVBACKEND_EPOLL);
	assert_non_null(f->loop);
	assert_int_equal(control_new(f->loop, f->path, &fake_ops, f, &f->control), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char sub[80];

	control_free(f->control);
	ev_loop_destroy(f->loop);
	snprintf(sub, sizeof(sub), "%s/sub", f->directory);
	assert_int_equal(rmdir(sub), 0);
	assert_int_equal(rmdir(f->directory), 0);
	assert_int_equal(count_fds(), f->n_fds);
	free(f);
	alarm(0);
	return 0;
}

/* ---- A client by hand ---- */

struct peer {
	struct ev_loop *loop;
	struct ev_io io;
	int fd;
	size_t len;
	bool ended; /* the other end has closed or reset */
	char *text; /* all that came, terminated */
};

static void peer_read_cb(struct ev_loop *loop, struct ev_io *io, int events)
{
	struct peer *peer = io->data;
	ssize_t n;

	(void)events;
	peer->text = realloc(peer->text, peer->len + 65537);
	n = recv(peer->fd, peer->text + peer->len, 65536, MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		peer->ended = true;
		ev_io_stop(loop, io);
		n = 0;
	}
	peer->len += n;
	peer->text[peer->len] = 0;
}

static void peer_open_at(struct peer *peer, struct ev_loop *loop, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	memset(peer, 0, sizeof(*peer));
	peer->loop = loop;
	peer->text = calloc(1, 1);
	strcpy(address.sun_path, path);
	peer->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(peer->fd >= 0);
	assert_int_equal(connect(peer->fd, (struct sockaddr *)&address, sizeof(address)), 0);
	ev_io_init(&peer->io, peer_read_cb, peer->fd, EV_READ);
	peer->io.data = peer;
	ev_io_start(loop, &peer->io);
}

static void peer_open(struct peer *peer, struct fixture *f)
{
	peer_open_at(peer, f->loop, f->path);
}

static void peer_close(struct peer *peer)
{
	ev_io_stop(peer->loop, &peer->io);
	close(peer->fd);
	free(peer->text);
}

static void peer_send(struct peer *peer, const char *text)
{
	assert_int_equal(send(peer->fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void late_cb(struct ev_loop *loop, struct ev_timer *timer, int events)
{
	(void)loop;
	(void)events;
	*(bool *)timer->data = true;
}

/* Runs the loop until the condition holds; fails after 10 s of it. */
#define RUN_UNTIL(f, condition)                                                                    \
	do {                                                                                       \
		bool is_late = false;                                                              \
		struct ev_timer deadline;                                                          \
		ev_timer_init(&deadline, late_cb, 10, 0);                                          \
		deadline.data = &is_late;                                                          \
		ev_timer_start((f)->loop, &deadline);                                              \
		while (!(condition) && !is_late)                                                   \
			ev_run((f)->loop, EVRUN_ONCE);                                             \
		ev_timer_stop((f)->loop, &deadline);                                               \
		if (!(condition))                                                                  \
			fail_msg("never came: %s", #condition);                                    \
	} while (0)

/* Runs what is already due, a few turns of it. */
static void run_due(struct fixture *f)
{
	for (int i = 0; i < 10; i++)
		ev_run(f->loop, EVRUN_NOWAIT);
}

/* Seconds pass. */
static void pass(struct fixture *f, time_t seconds)
{
	skew_s += seconds;
	ev_now_update(f->loop);
	run_due(f);
}

static unsigned count_text(const char *text, const char *needle)
{
	unsigned n = 0;

	for (; (text = strstr(text, needle)); text++)
		n++;
	return n;
}

/* Sends a request on a connection of its own, and expects these texts in the answer. */
static void expect(struct fixture *f, const char *request, const char *first, const char *second)
{
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, request);
	RUN_UNTIL(f, strstr(peer.text, first) && strstr(peer.text, second));
	assert_int_equal(count_text(peer.text, "HTTP/1.1 "), 1);
	peer_close(&peer);
	run_due(f);
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: up\r\n\r\n"
#define POST(path) "POST " path " HTTP/1.1\r\nHost: up\r\n\r\n"

/* ---- Answers ---- */

static void status_is_compact_and_in_order(void **state)
{
	struct fixture *f = *state;

	expect(f, GET("/status"), "HTTP/1.1 200 OK\r\n",
		"\r\n\r\n{\"version\":\"0.1.0\",\"pid\":4711,\"a\":12.3,\"text\":\"\"}\n");
	expect(f, GET("/status?t=1"), "HTTP/1.1 200 OK\r\n", "Content-Length: 50\r\n");
	expect(f, GET("http://up/status"), "HTTP/1.1 200 OK\r\n",
		"Content-Type: application/json\r\n");
}

static void head_gets_the_same_head_and_no_content(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, "HEAD /status HTTP/1.1\r\nHost: up\r\nConnection: close\r\n\r\n");
	RUN_UNTIL(f, peer.ended);
	assert_non_null(strstr(peer.text, "HTTP/1.1 200 OK\r\n"));
	assert_non_null(strstr(peer.text, "Content-Length: 50\r\n"));
	assert_string_equal(peer.text + peer.len - 4, "\r\n\r\n");
	peer_close(&peer);
}

static void status_without_memory_is_500(void **state)
{
	struct fixture *f = *state;

	f->status_len = SIZE_MAX;
	expect(f, GET("/status"), "HTTP/1.1 500 Internal Server Error\r\n",
		"{\"error\":\"out of memory\"}\n");
}

static void healthz_tells_whether_a_worker_is_ready(void **state)
{
	struct fixture *f = *state;

	expect(f, GET("/healthz"), "HTTP/1.1 200 OK\r\n", "{\"status\":\"ok\"}\n");
	f->healthy = false;
	expect(f, GET("/healthz"), "HTTP/1.1 503 Service Unavailable\r\n", "{\"error\":\"");
}

static void unknown_paths_are_404(void **state)
{
	struct fixture *f = *state;

	expect(f, GET("/metrics"), "HTTP/1.1 404 Not Found\r\n",
		"{\"error\":\"there is no '/metrics' here\"}\n");
	expect(f, GET("/status/"), "HTTP/1.1 404 Not Found\r\n", "{\"error\":\"");
	expect(f, GET("http://up"), "HTTP/1.1 404 Not Found\r\n", "{\"error\":\"");
	expect(f, "OPTIONS * HTTP/1.1\r\nHost: up\r\n\r\n", "HTTP/1.1 404 Not Found\r\n",
		"{\"error\":\"");
}

static void wrong_methods_are_405_with_allow(void **state)
{
	struct fixture *f = *state;

	expect(f, POST("/status"), "HTTP/1.1 405 Method Not Allowed\r\n",
		"\r\nAllow: GET, HEAD\r\n");
	expect(f, GET("/stop"), "HTTP/1.1 405 Method Not Allowed\r\n", "\r\nAllow: POST\r\n");
	expect(f, GET("/reload"), "{\"error\":\"/reload is asked for with POST\"}\n",
		"\r\nAllow: POST\r\n");
	assert_int_equal(f->n_stops, 0);
	assert_null(f->reply);
}

static void scale_wants_a_number_from_1_to_1024(void **state)
{
	struct fixture *f = *state;
	static const char *const bad[] = { "0", "1025", "", "-1", "%2B1", "1x", "4294967297",
		"99999999999999999999999", "0x10" };

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		char request[128];

		snprintf(request, sizeof(request),
			"POST /scale?workers=%s HTTP/1.1\r\nHost: up\r\n\r\n", bad[i]);
		expect(f, request, "HTTP/1.1 400 Bad Request\r\n",
			"workers is a number from 1 to 1024");
	}
	expect(f, POST("/scale"), "HTTP/1.1 400 Bad Request\r\n", "'workers' is missing");
	expect(f, POST("/scale?worker=3"), "HTTP/1.1 400 Bad Request\r\n",
		"unknown parameter 'worker'");
	expect(f, POST("/scale?workers=3&workers=4"), "HTTP/1.1 400 Bad Request\r\n",
		"given twice");
	assert_int_equal(f->n_workers, 0);
	expect(f, POST("/scale?workers=1024"), "HTTP/1.1 200 OK\r\n", "{\"workers\":1024}\n");
	assert_int_equal(f->n_workers, 1024);
}

static void stop_is_202(void **state)
{
	struct fixture *f = *state;

	expect(f, POST("/stop"), "HTTP/1.1 202 Accepted\r\n", "{\"state\":\"stopping\"}\n");
	assert_int_equal(f->n_stops, 1);
	expect(f, POST("/stop?now"), "HTTP/1.1 400 Bad Request\r\n", "unknown parameter 'now'");
	assert_int_equal(f->n_stops, 1);
}

/* ---- Waiting ---- */

static void reload_waits_for_its_reply(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, POST("/reload?wait=first"));
	RUN_UNTIL(f, f->reply);
	assert_true(f->first_only);
	pass(f, 3600);
	assert_int_equal(peer.len, 0);
	control_answer(
		f->reply, 200, json_pack("{s:i, s:f}", "generation", 2, "duration_ms", 31.5));
	RUN_UNTIL(f, strstr(peer.text, "{\"generation\":2,\"duration_ms\":31.5}\n"));
	f->reply = NULL;
	peer_send(&peer, POST("/reload"));
	RUN_UNTIL(f, f->reply);
	assert_false(f->first_only);
	control_answer_error(f->reply, 500, "worker said \"%s\"", "caf\xe9");
	RUN_UNTIL(f, strstr(peer.text, "{\"error\":\"worker said \\\"caf?\\\"\"}\n"));
	peer_close(&peer);
	expect(f, POST("/reload?wait=some"), "HTTP/1.1 400 Bad Request\r\n",
		"'first' or 'all', not 'some'");
	expect(f, POST("/reload?wiat=all"), "HTTP/1.1 400 Bad Request\r\n",
		"unknown parameter 'wiat'");
}

static void client_that_leaves_while_it_waits_is_let_go(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	int n_fds = count_fds();

	peer_open(&peer, f);
	peer_send(&peer, POST("/reload"));
	RUN_UNTIL(f, f->reply);
	peer_close(&peer);
	RUN_UNTIL(f, count_fds() == n_fds);
	control_answer(f->reply, 200, json_object());
	run_due(f);
}

static void client_that_half_closes_while_it_waits_gets_its_answer(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, POST("/reload"));
	shutdown(peer.fd, SHUT_WR);
	RUN_UNTIL(f, f->reply);
	run_due(f);
	control_answer(f->reply, 200, json_object());
	RUN_UNTIL(f, peer.ended);
	assert_non_null(strstr(peer.text, "\r\n\r\n{}\n"));
	peer_close(&peer);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, POST("/reload") GET("/healthz") POST("/scale?workers=7") GET("/nowhere"));
	RUN_UNTIL(f, f->reply);
	run_due(f);
	assert_int_equal(peer.len, 0);
	control_answer(f->reply, 200, json_pack("{s:i}", "generation", 2));
	RUN_UNTIL(f, strstr(peer.text, "nowhere"));
	assert_true(strstr(peer.text, "generation") < strstr(peer.text, "status"));
	assert_true(strstr(peer.text, "status") < strstr(peer.text, "workers"));
	assert_true(strstr(peer.text, "workers") < strstr(peer.text, "nowhere"));
	peer_close(&peer);
}

static void control_that_ends_sends_what_it_has_and_outlives_its_replies(void **state)
{
	struct fixture *f = *state;
	struct peer answered, waiting;
	struct control_reply *replies[2];

	peer_open(&answered, f);
	peer_send(&answered, POST("/reload"));
	RUN_UNTIL(f, f->reply);
	replies[0] = f->reply;
	f->reply = NULL;
	peer_open(&waiting, f);
	peer_send(&waiting, POST("/reload"));
	RUN_UNTIL(f, f->reply);
	replies[1] = f->reply;
	control_answer(replies[0], 202, json_pack("{s:s}", "state", "stopping"));
	f->control = control_free(f->control);
	assert_int_equal(access(f->path, F_OK), -1);
	RUN_UNTIL(f, answered.ended && waiting.ended);
	assert_non_null(strstr(answered.text, "{\"state\":\"stopping\"}\n"));
	assert_int_equal(waiting.len, 0);
	control_answer(replies[1], 200, json_object());
	peer_close(&answered);
	peer_close(&waiting);
}

/* ---- Reading and writing ---- */

static void bytes_may_come_one_at_a_time(void **state)
{
	static const char request[] =
		"POST /scale?workers=5 HTTP/1.1\r\nHost: up\r\n"
		"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n";
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	for (const char *at = request; *at; at++) {
		char byte[2] = { *at, 0 };

		assert_int_equal(peer.len, 0);
		peer_send(&peer, byte);
		run_due(f);
	}
	RUN_UNTIL(f, strstr(peer.text, "{\"workers\":5}\n"));
	peer_close(&peer);
}

static void bodies_are_dropped(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(
		&peer, "POST /stop HTTP/1.1\r\nHost: up\r\nContent-Length: 9\r\n\r\nGET /nope" GET(
			       "/healthz"));
	RUN_UNTIL(f, strstr(peer.text, "{\"status\":\"ok\"}\n"));
	assert_int_equal(count_text(peer.text, "HTTP/1.1 "), 2);
	assert_int_equal(f->n_stops, 1);
	peer_close(&peer);
}

static void expectation_is_met_once(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, "POST /stop HTTP/1.1\r\nHost: up\r\nContent-Length: 3\r\nExpect: "
			 "100-continue\r\n\r\n");
	RUN_UNTIL(f, strstr(peer.text, "HTTP/1.1 100 Continue\r\n\r\n"));
	assert_int_equal(f->n_stops, 0);
	peer_send(&peer, "abc");
	RUN_UNTIL(f, strstr(peer.text, "HTTP/1.1 202 "));
	assert_int_equal(count_text(peer.text, "HTTP/1.1 "), 2);
	peer_close(&peer);
}

static void too_large_a_body_is_413_and_the_end(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	char chunk[1100];

	peer_open(&peer, f);
	peer_send(&peer, "POST /stop HTTP/1.1\r\nHost: up\r\nContent-Length: 65537\r\n\r\nabc");
	RUN_UNTIL(f, peer.ended);
	assert_non_null(strstr(peer.text, "HTTP/1.1 413 "));
	assert_non_null(strstr(peer.text, "\r\nConnection: close\r\n"));
	peer_close(&peer);

	peer_open(&peer, f);
	peer_send(&peer, "POST /stop HTTP/1.1\r\nHost: up\r\nTransfer-Encoding: chunked\r\n\r\n");
	memset(chunk, 'x', sizeof(chunk));
	memcpy(chunk, "400\r\n", 5);
	strcpy(chunk + 5 + 0x400, "\r\n");
	for (int i = 0; i < 64; i++) {
		peer_send(&peer, chunk);
		run_due(f);
	}
	RUN_UNTIL(f, peer.ended);
	assert_non_null(strstr(peer.text, "HTTP/1.1 413 "));
	peer_close(&peer);
	assert_int_equal(f->n_stops, 0);
}

static void malformed_requests_are_refused_and_end_the_connection(void **state)
{
	static const struct {
		const char *request, *answer;
	} cases[] = {
		{ "GET /status HTTP/1.1\r\n\r\n", "HTTP/1.1 400 " },
		{ "GET /status HTTP/1.1\nHost: up\n\n", "HTTP/1.1 400 " },
		{ "BREW /status HTTP/1.1\r\nHost: up\r\n\r\n", "HTTP/1.1 501 " },
		{ "GET /status HTTP/2.0\r\nHost: up\r\n\r\n", "HTTP/1.1 505 " },
		{ "POST /stop HTTP/1.1\r\nHost: up\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\n",
			"HTTP/1.1 400 " },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct peer peer;

		peer_open(&peer, f);
		peer_send(&peer, cases[i].request);
		RUN_UNTIL(f, peer.ended);
		assert_non_null(strstr(peer.text, cases[i].answer));
		assert_non_null(strstr(peer.text, "{\"error\":\""));
		assert_non_null(strstr(peer.text, "\r\nConnection: close\r\n"));
		peer_close(&peer);
	}
	assert_int_equal(f->n_stops, 0);
}

static void too_long_a_head_is_431(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	char field[1025];

	peer_open(&peer, f);
	peer_send(&peer, "GET /status HTTP/1.1\r\nHost: up\r\n");
	memset(field, 'x', sizeof(field));
	field[1] = ':';
	strcpy(field + sizeof(field) - 3, "\r\n");
	for (int i = 0; i < 20 && !peer.ended; i++) {
		if (send(peer.fd, field, strlen(field), MSG_NOSIGNAL) < 0)
			break;
		run_due(f);
	}
	RUN_UNTIL(f, strstr(peer.text, "HTTP/1.1 431 "));
	peer_close(&peer);
}

static void http_1_0_ends_unless_asked_to_stay(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
	RUN_UNTIL(f, strstr(peer.text, "\r\nConnection: keep-alive\r\n"));
	peer_send(&peer, "GET /healthz HTTP/1.0\r\n\r\n");
	RUN_UNTIL(f, peer.ended);
	assert_int_equal(count_text(peer.text, "{\"status\":\"ok\"}\n"), 2);
	peer_close(&peer);
}

static void long_answers_go_out_in_pieces(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	f->status_len = 3 * 1024 * 1024;
	peer_open(&peer, f);
	ev_io_stop(f->loop, &peer.io);
	peer_send(&peer, GET("/status") GET("/healthz"));
	run_due(f);
	ev_io_start(f->loop, &peer.io);
	RUN_UNTIL(f, peer.len > f->status_len && strstr(peer.text, "{\"status\":\"ok\"}\n"));
	assert_int_equal(
		strspn(strchr(peer.text, 'x') + strcspn(strchr(peer.text, 'x'), ":") + 2, "x"),
		f->status_len);
	peer_close(&peer);
}

/* ---- Time ---- */

static void idle_clients_are_closed_after_60_s(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	peer_send(&peer, GET("/healthz"));
	RUN_UNTIL(f, strstr(peer.text, "{\"status\":\"ok\"}\n"));
	run_due(f);
	pass(f, 58);
	assert_false(peer.ended);
	pass(f, 4);
	RUN_UNTIL(f, peer.ended);
	assert_int_equal(count_text(peer.text, "HTTP/1.1 "), 1);
	peer_close(&peer);
}

static void half_a_head_is_408_after_10_s(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	peer_open(&peer, f);
	run_due(f);
	pass(f, 30);
	peer_send(&peer, "GET /sta");
	run_due(f);
	pass(f, 8);
	/* More of it does not start the time anew. */
	peer_send(&peer, "tus HTTP");
	run_due(f);
	assert_int_equal(peer.len, 0);
	pass(f, 4);
	RUN_UNTIL(f, peer.ended);
	assert_non_null(strstr(peer.text, "HTTP/1.1 408 Request Timeout\r\n"));
	peer_close(&peer);
}

static void client_that_reads_nothing_is_dropped(void **state)
{
	struct fixture *f = *state;
	struct peer peer;

	f->status_len = 3 * 1024 * 1024;
	peer_open(&peer, f);
	ev_io_stop(f->loop, &peer.io);
	peer_send(&peer, GET("/status"));
	run_due(f);
	pass(f, 31);
	ev_io_start(f->loop, &peer.io);
	RUN_UNTIL(f, peer.ended);
	assert_true(peer.len < f->status_len);
	peer_close(&peer);
}

/* ---- Many ---- */

static void the_sixty_fifth_client_takes_the_place_of_the_oldest_idle_one(void **state)
{
	struct fixture *f = *state;
	static struct peer peers[65];

	for (int i = 0; i < 64; i++) {
		peer_open(&peers[i], f);
		if (i == 1)
			peer_send(&peers[i], "GET /sta");
		run_due(f);
	}
	/* The first waits and the second has begun, so it is the third that goes. */
	peer_send(&peers[0], POST("/reload"));
	RUN_UNTIL(f, f->reply);
	peer_open(&peers[64], f);
	peer_send(&peers[64], GET("/healthz"));
	RUN_UNTIL(f, strstr(peers[64].text, "{\"status\":\"ok\"}\n"));
	RUN_UNTIL(f, peers[2].ended);
	assert_false(peers[0].ended);
	assert_false(peers[1].ended);
	assert_false(peers[3].ended);
	control_answer(f->reply, 200, json_object());
	RUN_UNTIL(f, strstr(peers[0].text, "{}\n"));
	for (int i = 0; i < 65; i++)
		peer_close(&peers[i]);
}

static unsigned n_turns;

static void turn_cb(struct ev_loop *loop, struct ev_prepare *prepare, int events)
{
	(void)loop;
	(void)prepare;
	(void)events;
	n_turns++;
}

static void without_descriptors_one_client_is_served_and_the_next_does_not_spin(void **state)
{
	struct fixture *f = *state;
	struct rlimit before, none;
	struct ev_prepare prepare;
	struct ev_timer timer;
	struct peer first, second;
	bool late = false;
	int lowest;

	peer_open(&first, f);
	peer_open(&second, f);
	lowest = dup(0);
	close(lowest);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = lowest;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	peer_send(&first, POST("/reload"));
	RUN_UNTIL(f, f->reply);
	peer_send(&second, GET("/healthz"));
	run_due(f);
	ev_prepare_init(&prepare, turn_cb);
	ev_prepare_start(f->loop, &prepare);
	n_turns = 0;
	/* A few pauses long: a loop that spins turns thousands of times. */
	ev_timer_init(&timer, late_cb, 0.5, 0);
	timer.data = &late;
	ev_timer_start(f->loop, &timer);
	while (!late)
		ev_run(f->loop, EVRUN_ONCE);
	assert_true(n_turns < 50);
	assert_int_equal(second.len, 0);
	ev_prepare_stop(f->loop, &prepare);
	control_answer(f->reply, 200, json_object());
	RUN_UNTIL(f, strstr(first.text, "{}\n"));
	peer_close(&first);
	RUN_UNTIL(f, strstr(second.text, "{\"status\":\"ok\"}\n"));
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	peer_close(&second);
}

/* ---- The path ---- */

static unsigned mode_of(const char *path)
{
	struct stat st;

	assert_int_equal(lstat(path, &st), 0);
	return st.st_mode & 07777;
}

static void mode_is_0660_whatever_the_umask(void **state)
{
	struct fixture *f = *state;
	struct control *other;
	char path[128];
	mode_t before;

	assert_int_equal(mode_of(f->path), 0660);
	before = umask(0077);
	snprintf(path, sizeof(path), "%s/two.sock", f->directory);
	assert_int_equal(control_new(f->loop, path, &fake_ops, f, &other), 0);
	umask(before);
	assert_int_equal(mode_of(path), 0660);
	control_free(other);
	assert_int_equal(access(path, F_OK), -1);
}

static void path_in_use_is_left_alone(void **state)
{
	struct fixture *f = *state;
	struct control *other = NULL;

	assert_int_equal(control_new(f->loop, f->path, &fake_ops, f, &other), -EADDRINUSE);
	assert_null(other);
	expect(f, GET("/healthz"), "HTTP/1.1 200 OK\r\n", "ok");
}

static void path_that_nobody_listens_on_is_taken_over(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct control *other;
	struct peer peer;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/stale.sock", f->directory);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	assert_int_equal(control_new(f->loop, address.sun_path, &fake_ops, f, &other), 0);
	peer_open_at(&peer, f->loop, address.sun_path);
	peer_send(&peer, GET("/healthz"));
	RUN_UNTIL(f, strstr(peer.text, "{\"status\":\"ok\"}\n"));
	peer_close(&peer);
	control_free(other);
}

static void file_that_is_no_socket_is_left_alone(void **state)
{
	struct fixture *f = *state;
	struct control *other;
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/file", f->directory);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(control_new(f->loop, path, &fake_ops, f, &other), -ENOTSOCK);
	assert_int_equal(unlink(path), 0);
}

static void path_of_somebody_else_is_not_removed_at_the_end(void **state)
{
	struct fixture *f = *state;
	struct control *other;

	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(control_new(f->loop, f->path, &fake_ops, f, &other), 0);
	f->control = control_free(f->control);
	expect(f, GET("/healthz"), "HTTP/1.1 200 OK\r\n", "ok");
	control_free(other);
}

static void bad_paths_are_refused(void **state)
{
	struct fixture *f = *state;
	struct control *other;
	char path[200];

	snprintf(path, sizeof(path), "%s/none/none/control.sock", f->directory);
	assert_int_equal(control_new(f->loop, path, &fake_ops, f, &other), -ENOENT);
	memset(path, 'x', sizeof(path));
	path[sizeof(path) - 1] = 0;
	assert_int_equal(control_new(f->loop, path, &fake_ops, f, &other), -ENAMETOOLONG);
}

static void assert_path(const char *configured, const char *expected)
{
	char *path = control_path(configured);

	assert_string_equal(path, expected);
	free(path);
}

static void default_path_follows_the_environment(void **state)
{
	(void)state;
	unsetenv("RUNTIME_DIRECTORY");
	unsetenv("XDG_RUNTIME_DIR");
	assert_path(NULL, "/run/up-master/control.sock");
	setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
	assert_path(NULL, "/run/user/7/up-master/control.sock");
	setenv("RUNTIME_DIRECTORY", "/run/up-master-a:/run/more", 1);
	assert_path(NULL, "/run/up-master-a/control.sock");
	assert_path("/x", "/x");
	setenv("RUNTIME_DIRECTORY", "", 1);
	setenv("XDG_RUNTIME_DIR", "", 1);
	assert_path(NULL, "/run/up-master/control.sock");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(status_is_compact_and_in_order),
		CASE(head_gets_the_same_head_and_no_content),
		CASE(status_without_memory_is_500),
		CASE(healthz_tells_whether_a_worker_is_ready),
		CASE(unknown_paths_are_404),
		CASE(wrong_methods_are_405_with_allow),
		CASE(scale_wants_a_number_from_1_to_1024),
		CASE(stop_is_202),
		CASE(reload_waits_for_its_reply),
		CASE(client_that_leaves_while_it_waits_is_let_go),
		CASE(client_that_half_closes_while_it_waits_gets_its_answer),
		CASE(pipelined_requests_are_answered_in_order),
		CASE(control_that_ends_sends_what_it_has_and_outlives_its_replies),
		CASE(bytes_may_come_one_at_a_time),
		CASE(bodies_are_dropped),
		CASE(expectation_is_met_once),
		CASE(too_large_a_body_is_413_and_the_end),
		CASE(malformed_requests_are_refused_and_end_the_connection),
		CASE(too_long_a_head_is_431),
		CASE(http_1_0_ends_unless_asked_to_stay),
		CASE(long_answers_go_out_in_pieces),
		CASE(idle_clients_are_closed_after_60_s),
		CASE(half_a_head_is_408_after_10_s),
		CASE(client_that_reads_nothing_is_dropped),
		CASE(the_sixty_fifth_client_takes_the_place_of_the_oldest_idle_one),
		CASE(without_descriptors_one_client_is_served_and_the_next_does_not_spin),
		CASE(mode_is_0660_whatever_the_umask),
		CASE(path_in_use_is_left_alone),
		CASE(path_that_nobody_listens_on_is_taken_over),
		CASE(file_that_is_no_socket_is_left_alone),
		CASE(path_of_somebody_else_is_not_removed_at_the_end),
		CASE(bad_paths_are_refused),
		cmocka_unit_test(default_path_follows_the_environment),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
