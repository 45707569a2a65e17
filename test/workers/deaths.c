/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * The moments at which a worker can die:
 *
 *     /die/now            nothing was read or written
 *     /die/times/N/NAME   the same the first N times, then an answer; DIRECTORY/NAME counts
 *     /die/piece          a piece of the body was read
 *     /die/body           the whole body was read
 *     /die/interim        an interim response was sent
 *     /die/half           half of a response of known length was sent
 *     /die/open           a piece of a response whose length is not known
 *     /die/last           the last byte of a response was sent, and up_end() not called
 *     /die/whole          a whole response was sent, and not yet reported
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"

#define SIZE 2000

static void die(void)
{
	kill(getpid(), SIGKILL);
}

static void piece(struct up_request *request, const void *bytes, size_t len, void *data)
{
	(void)request, (void)bytes, (void)len, (void)data;
	die();
}

static void whole(struct up_request *request, const void *bytes, size_t len, void *data)
{
	(void)request, (void)len, (void)data;
	if (!bytes)
		die();
}

static void half(struct up_request *request, uint64_t length)
{
	char text[SIZE / 2];

	memset(text, 'a', sizeof(text));
	up_begin(request, 200, length);
	up_write(request, text, sizeof(text));
	up_flush(request);
	die();
}

/* How often this was called with the name, this time not counted. All workers count together. */
static long count(const char *name)
{
	int fd = open(fixture_path(name), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0666);
	struct stat file;

	if (fd < 0 || write(fd, ".", 1) != 1 || fstat(fd, &file) < 0)
		abort();
	close(fd);
	return (long)file.st_size - 1;
}

static void times(struct up_request *request, const char *text)
{
	char *name;
	long n = strtol(text, &name, 10);

	if (count(name + 1) < n)
		die();
	fixture_answer(request);
}

bool fixture_die(struct up_request *request, const char *how)
{
	const char *behind = fixture_behind(how, "times/");

	if (behind)
		times(request, behind);
	else if (strcmp(how, "now") == 0)
		die();
	else if (strcmp(how, "piece") == 0)
		up_body_read(request, piece, NULL);
	else if (strcmp(how, "body") == 0)
		up_body_read(request, whole, NULL);
	else if (strcmp(how, "interim") == 0)
		up_interim(request, 102), die();
	else if (strcmp(how, "half") == 0)
		half(request, SIZE);
	else if (strcmp(how, "open") == 0)
		half(request, UP_LENGTH_UNKNOWN);
	else if (strcmp(how, "last") == 0)
		half(request, SIZE / 2);
	else if (strcmp(how, "whole") == 0)
		up_respond(request, 200, "text/plain", "whole\n", 6), die();
	else
		return false;
	return true;
}
