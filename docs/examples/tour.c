/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * A tour of <up/worker.h>:
 *
 *     PUT /upload     reads a body of any size as it comes: how long it was, and its CRC-32
 *     GET /stream     a line each 200 ms, ten times
 *     POST /json      reads a whole JSON document and sends it back, indented
 *     GET /primes/N   counts the primes up to N on another thread
 *     GET /ws         a WebSocket that echoes
 */
#include <errno.h>
#include <ev.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <up/worker.h>

#include "websocket.h"

#define JSON_MAX (1024 * 1024)
#define PRIMES_MAX 10000000
#define JOBS_MAX 16

/* One for each worker. */
struct tour {
	struct ev_loop *loop;
	/* Jobs that threads have done, handed over to the loop. */
	ev_async done;
	pthread_mutex_t lock; /* for jobs */
	struct job *jobs;
	unsigned n_jobs; /* running, or done and not yet treated: loop thread */
};

static void respond_text(struct up_request *request, int status, const char *text)
{
	up_respond(request, status, "text/plain", text, strlen(text));
}

static void respond_json(struct up_request *request, int status, json_t *take_json)
{
	char *text = take_json ? json_dumps(take_json, JSON_INDENT(2) | JSON_ENCODE_ANY) : NULL;

	json_decref(take_json);
	if (text)
		up_respond(request, status, "application/json", text, strlen(text));
	else
		respond_text(request, 500, "out of memory\n");
	free(text);
}

/* ---- /upload: a body in pieces ---- */

struct upload {
	uint64_t size;
	uint32_t crc;
};

static uint32_t crc32_add(uint32_t crc, const uint8_t *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return crc;
}

static void upload_piece(struct up_request *request, const void *bytes, size_t len, void *data)
{
	struct upload *upload = data;
	char crc[9];

	if (bytes) {
		upload->size += len;
		upload->crc = crc32_add(upload->crc, bytes, len);
		return;
	}
	snprintf(crc, sizeof(crc), "%08" PRIx32, ~upload->crc);
	respond_json(request, 200,
		json_pack("{s:I, s:s}", "size", (json_int_t)upload->size, "crc32", crc));
}

/* However the request ends, this is called once: the place to free what belongs to it. */
static void upload_end(struct up_request *request, enum up_end how, void *data)
{
	(void)request;
	(void)how;
	free(data);
}

static void serve_upload(struct up_request *request)
{
	struct upload *upload = calloc(1, sizeof(*upload));

	if (!upload) {
		respond_text(request, 500, "out of memory\n");
		return;
	}
	upload->crc = UINT32_MAX;
	up_on_end(request, upload_end, upload);
	up_body_read(request, upload_piece, upload);
}

/* ---- /stream: a response that takes its time ---- */

struct stream {
	ev_timer timer;
	struct up_request *request;
	unsigned n_lines;
};

static void stream_cb(struct ev_loop *loop, ev_timer *timer, int revents)
{
	struct stream *stream = timer->data;
	char line[32];
	int len = snprintf(line, sizeof(line), "line %u\n", ++stream->n_lines);

	(void)loop;
	(void)revents;
	/* Something that never ends would wait for up_on_writable() where this returns 1. */
	up_write(stream->request, line, (size_t)len);
	if (stream->n_lines == 10)
		up_end(stream->request);
}

static void stream_end(struct up_request *request, enum up_end how, void *data)
{
	struct stream *stream = data;

	(void)how;
	ev_timer_stop(up_worker_loop(up_request_worker(request)), &stream->timer);
	free(stream);
}

static void serve_stream(struct up_request *request, struct tour *tour)
{
	struct stream *stream = calloc(1, sizeof(*stream));

	if (!stream) {
		respond_text(request, 500, "out of memory\n");
		return;
	}
	stream->request = request;
	up_on_end(request, stream_end, stream);
	up_add_field(request, "Content-Type", "text/plain");
	up_begin(request, 200, UP_LENGTH_UNKNOWN);
	ev_timer_init(&stream->timer, stream_cb, 0., .2);
	stream->timer.data = stream;
	ev_timer_start(tour->loop, &stream->timer);
}

/* ---- /json: a whole body ---- */

static void json_collected(struct up_request *request, const void *bytes, size_t len, void *data)
{
	json_error_t error;
	json_t *json = json_loadb(bytes, len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error);

	(void)data;
	if (json)
		respond_json(request, 200, json);
	else
		respond_json(request, 400,
			json_pack("{s:s, s:i, s:i}", "error", error.text, "line", error.line,
				"column", error.column));
}

/* ---- /primes/N: an answer from another thread ---- */

/*
 * Belongs to its thread until it is in tour->jobs, and then to the loop. The thread never looks at
 * `request`, which may end at any time.
 */
struct job {
	struct job *next;
	struct tour *tour;
	struct up_request *request; /* NULL: the client has not waited */
	unsigned limit, n_primes;
};

static unsigned count_primes(unsigned limit)
{
	unsigned n = 0;

	for (unsigned i = 2; i <= limit; i++) {
		unsigned divisor = 2;

		while (divisor * divisor <= i && i % divisor != 0)
			divisor++;
		n += divisor * divisor > i;
	}
	return n;
}

static void *job_run(void *data)
{
	struct job *job = data;
	struct tour *tour = job->tour;

	job->n_primes = count_primes(job->limit);
	pthread_mutex_lock(&tour->lock);
	job->next = tour->jobs;
	tour->jobs = job;
	pthread_mutex_unlock(&tour->lock);
	/* The one call of libev that may come from any thread. */
	ev_async_send(tour->loop, &tour->done);
	return NULL;
}

static void job_answer(struct job *job)
{
	char text[64];

	if (!job->request)
		return;
	snprintf(text, sizeof(text), "%u\n", job->n_primes);
	respond_text(job->request, 200, text);
}

/* Sends are put together: one call may mean many jobs. */
static void done_cb(struct ev_loop *loop, ev_async *done, int revents)
{
	struct tour *tour = done->data;
	struct job *jobs;

	(void)loop;
	(void)revents;
	pthread_mutex_lock(&tour->lock);
	jobs = tour->jobs;
	tour->jobs = NULL;
	pthread_mutex_unlock(&tour->lock);
	while (jobs) {
		struct job *job = jobs;

		jobs = job->next;
		job_answer(job);
		free(job);
		tour->n_jobs--;
	}
}

static void job_end(struct up_request *request, enum up_end how, void *data)
{
	struct job *job = data;

	(void)request;
	(void)how;
	job->request = NULL;
}

static int job_start(struct job *job)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int r;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attributes, job_run, job);
	pthread_attr_destroy(&attributes);
	return -r;
}

static void serve_primes(struct up_request *request, struct tour *tour, const char *number)
{
	unsigned long limit = strtoul(number, NULL, 10);
	struct job *job;

	if (limit < 2 || limit > PRIMES_MAX) {
		respond_text(request, 404, "from 2 to 10000000\n");
		return;
	}
	job = tour->n_jobs < JOBS_MAX ? calloc(1, sizeof(*job)) : NULL;
	if (!job) {
		up_add_field(request, "Retry-After", "1");
		respond_text(request, 503, "busy\n");
		return;
	}
	*job = (struct job){ .tour = tour, .request = request, .limit = (unsigned)limit };
	if (job_start(job) < 0) {
		free(job);
		respond_text(request, 503, "no thread\n");
		return;
	}
	tour->n_jobs++;
	up_on_end(request, job_end, job);
}

/* ---- /ws ---- */

static void on_message(
	struct websocket *websocket, enum websocket_opcode opcode, const void *bytes, size_t len)
{
	websocket_send(websocket, opcode, bytes, len);
}

/* ---- */

static bool is(const char *target, const char *path)
{
	size_t len = strlen(path);

	return strncmp(target, path, len) == 0 && (target[len] == '\0' || target[len] == '?');
}

static void on_request(struct up_request *request, void *data)
{
	const char *target = up_target(request), *method = up_method(request);
	bool brings = strcmp(method, "PUT") == 0 || strcmp(method, "POST") == 0;
	struct tour *tour = data;

	if (is(target, "/upload") && brings)
		serve_upload(request);
	else if (is(target, "/json") && brings)
		up_body_collect(request, JSON_MAX, json_collected, NULL);
	else if (is(target, "/stream"))
		serve_stream(request, tour);
	else if (strncmp(target, "/primes/", 8) == 0)
		serve_primes(request, tour, target + 8);
	else if (is(target, "/ws"))
		websocket_accept(request, on_message);
	else
		respond_text(request, 404,
			"PUT /upload, GET /stream, POST /json, GET /primes/N, "
			"GET /ws\n");
}

/* From here on only requests under way are served. */
static void on_drain(struct up_worker *worker, void *data)
{
	(void)data;
	fprintf(stderr, "worker %u of generation %u drains\n", up_worker_id(worker),
		up_worker_generation(worker));
}

/* Not freed: a thread whose client has left may still run when the process ends. */
int up_app(struct up_worker *worker)
{
	struct tour *tour = calloc(1, sizeof(*tour));

	if (!tour)
		return -ENOMEM;
	tour->loop = up_worker_loop(worker);
	pthread_mutex_init(&tour->lock, NULL);
	ev_async_init(&tour->done, done_cb);
	tour->done.data = tour;
	ev_async_start(tour->loop, &tour->done);
	up_on_request(worker, on_request, tour);
	up_on_drain(worker, on_drain, NULL);
	return 0;
}
