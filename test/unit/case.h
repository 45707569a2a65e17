/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Case: what many test cases need: counting descriptors, and waiting for something with a deadline.
 */
#include <dirent.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>

/* A case that hangs is ended by alarm(2) after so long; what is waited for comes sooner. */
#define CASE_DEADLINE_S 30
#define CASE_WAIT_MS 10000

/* The descriptors that are open; the one that counts them is always among them. -1: can't tell. */
static inline int case_count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int n = 0;

	if (!directory)
		return -1;
	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}

/* Whether two descriptors are of the same file or socket. */
static inline bool case_same_file(int a, int b)
{
	struct stat of_a, of_b;

	return fstat(a, &of_a) == 0 && fstat(b, &of_b) == 0 && of_a.st_dev == of_b.st_dev &&
	       of_a.st_ino == of_b.st_ino;
}

/* Whether the events, or an error, came before the deadline. */
static inline bool case_wait(int fd, short events)
{
	struct pollfd poll_fd = { .fd = fd, .events = events };

	return poll(&poll_fd, 1, CASE_WAIT_MS) == 1;
}

static inline int64_t case_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}
