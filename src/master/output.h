/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Output: what a worker writes to its standard output or error, line by line into the log, and the
 * last lines kept for whoever asks why it died. Control thread only.
 */
#include <ev.h>
#include <stddef.h>

#define OUTPUT_LINE_MAX 4096
#define OUTPUT_TAIL_MAX 4096

struct output_tail {
	size_t len;
	char text[OUTPUT_TAIL_MAX + 1]; /* whole lines, terminated */
};

struct output {
	struct ev_loop *loop;
	ev_io watcher;
	int fd; /* the reading end; -1 when it has ended */
	int to; /* STDOUT_FILENO or STDERR_FILENO */
	char prefix[64];
	struct output_tail *tail; /* or NULL */
	size_t len;
	char line[OUTPUT_LINE_MAX + 1]; /* a line and its end; longer ones are cut in two */
};

/* Takes *take_fd, which is non-blocking. The tail is borrowed. */
void output_init(struct output *output, struct ev_loop *loop, int *take_fd, int to,
	struct output_tail *tail, const char *prefix);
/* Reads what is there without waiting, and ends. */
void output_fini(struct output *output);
