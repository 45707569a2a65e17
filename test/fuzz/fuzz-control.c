/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * The control socket under arbitrary bytes: whatever comes is answered in HTTP or not at all, and
 * the connection ends when the client has said all.
 */
#include "master/control.h"

#include <assert.h>
#include <errno.h>
#include <ev.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ev_loop *loop;
static struct control *control;
static char path[64];

static json_t *status(void *unused)
{
	(void)unused;
	return json_pack("{s:s}", "version", "0");
}

static bool healthy(void *unused)
{
	(void)unused;
	return true;
}

static void reload(void *unused, bool first_only, struct control_reply *reply)
{
	(void)unused;
	if (first_only)
		control_answer_error(reply, 500, "failed");
	else
		control_answer(reply, 200, json_object());
}

static void scale(void *unused, unsigned n_workers, struct control_reply *reply)
{
	(void)unused;
	assert(n_workers >= 1 && n_workers <= 1024);
	control_answer(reply, 200, json_pack("{s:i}", "workers", n_workers));
}

static void stop(void *unused, struct control_reply *reply)
{
	(void)unused;
	control_answer(reply, 202, json_object());
}

static void end(void)
{
	control_free(control);
	ev_loop_destroy(loop);
	*strrchr(path, '/') = 0;
	rmdir(path);
}

static void begin(void)
{
	static const struct control_ops ops = { status, healthy, reload, scale, stop };
	char directory[] = "/tmp/fuzz-control.XXXXXX";
	int r;

	loop = ev_loop_new(EVFLAG_NOENV);
	if (!loop || !mkdtemp(directory))
		abort();
	snprintf(path, sizeof(path), "%s/control.sock", directory);
	r = control_new(loop, path, &ops, NULL, &control);
	if (r < 0)
		abort();
	atexit(end);
}

static int connect_control(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		abort();
	return fd;
}

/* Reads what has come. Returns whether the connection has ended. */
static bool drain(int fd, bool *in_out_begun)
{
	char buf[4096];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
		assert(*in_out_begun || n < 9 || memcmp(buf, "HTTP/1.1 ", 9) == 0);
		*in_out_begun = true;
	}
	return n == 0 || errno != EAGAIN;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool begun = false;
	size_t at = 0;
	int fd;

	if (!control)
		begin();
	fd = connect_control();
	while (!drain(fd, &begun)) {
		ssize_t n =
			at < size ? send(fd, data + at, size - at, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

		at += n > 0 ? n : 0;
		if (at == size)
			shutdown(fd, SHUT_WR);
		ev_run(loop, EVRUN_NOWAIT);
	}
	close(fd);
	ev_run(loop, EVRUN_NOWAIT);
	return 0;
}
