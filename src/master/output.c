/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/output.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/fd.h"
#include "common/list.h"
#include "master/log.h"

/* Reads at most so often in one turn: a worker that floods must not hold up the control thread. */
#define READS_MAX 8

static void tail_add(struct output_tail *tail, const char *line, size_t len)
{
	const char *cut;

	if (len + 1 > OUTPUT_TAIL_MAX)
		len = OUTPUT_TAIL_MAX - 1;
	while (tail->len + len + 1 > OUTPUT_TAIL_MAX) {
		cut = memchr(tail->text, '\n', tail->len);
		cut = cut ? cut + 1 : tail->text + tail->len;
		tail->len -= (size_t)(cut - tail->text);
		memmove(tail->text, cut, tail->len);
	}
	memcpy(tail->text + tail->len, line, len);
	tail->len += len;
	tail->text[tail->len++] = '\n';
	tail->text[tail->len] = '\0';
}

static void put_line(struct output *output, const char *line, size_t len)
{
	if (output->tail)
		tail_add(output->tail, line, len);
	log_forward(output->to, output->prefix, line, len);
}

static void put_lines(struct output *output)
{
	char *at = output->line, *end = output->line + output->len, *newline;

	while ((newline = memchr(at, '\n', (size_t)(end - at)))) {
		put_line(output, at, (size_t)(newline - at));
		at = newline + 1;
	}
	if (at == output->line && output->len == sizeof(output->line)) {
		/* One byte stays, so that no empty line follows where the end comes next. */
		put_line(output, at, output->len - 1);
		at = end - 1;
	}
	output->len = (size_t)(end - at);
	memmove(output->line, at, output->len);
}

/* Returns whether there may be more. */
static bool read_some(struct output *output)
{
	ssize_t n =
		read(output->fd, output->line + output->len, sizeof(output->line) - output->len);

	if (n < 0)
		return errno == EINTR;
	if (n == 0) {
		ev_io_stop(output->loop, &output->watcher);
		fd_close(&output->fd);
		return false;
	}
	output->len += (size_t)n;
	put_lines(output);
	return true;
}

static void read_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	struct output *output = container_of(watcher, struct output, watcher);

	(void)loop, (void)events;
	for (unsigned i = 0; i < READS_MAX && output->fd >= 0 && read_some(output); i++)
		;
}

void output_init(struct output *output, struct ev_loop *loop, int *take_fd, int to,
	struct output_tail *tail, const char *prefix)
{
	output->loop = loop;
	output->fd = fd_take(take_fd);
	output->to = to;
	output->tail = tail;
	output->len = 0;
	snprintf(output->prefix, sizeof(output->prefix), "%s", prefix);
	ev_io_init(&output->watcher, read_cb, output->fd, EV_READ);
	ev_io_start(loop, &output->watcher);
}

void output_fini(struct output *output)
{
	/* What a dead process left is at most a full pipe; a grandchild that writes on is not
	 * awaited. */
	for (unsigned i = 0; i < 64 && output->fd >= 0 && read_some(output); i++)
		;
	if (output->len > 0)
		put_line(output, output->line, output->len);
	output->len = 0;
	if (output->fd < 0)
		return;
	ev_io_stop(output->loop, &output->watcher);
	fd_close(&output->fd);
}
