/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Fd: one owner for every descriptor.
 *
 * `int fd` is borrowed for the call, `int *take_fd` is taken (also on failure, it is -1
 * afterwards), `int *out_fd` is the caller's from now on. In structs a descriptor is -1 when there
 * is none.
 */
#include <errno.h>
#include <unistd.h>

/* Moves the descriptor out of *fd, which becomes -1. */
static inline int fd_take(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/* Closes *fd if there is one. Keeps errno. */
static inline void fd_close(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(fd_take(fd));
	errno = saved;
}

/* A local descriptor that is closed when it goes out of scope, unless taken. */
#define FD_AUTO __attribute__((cleanup(fd_close)))
