/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Unix-path: a listening UNIX socket with a path that is ours, and only ours, to remove.
 */
#include <sys/types.h>

/* Which file bind(2) made. */
struct unix_path {
	char *path; /* NULL: none */
	dev_t device;
	ino_t inode;
};

/*
 * Binds and listens on path with exactly that mode, making the last directory of it where it is
 * missing. A socket file that nobody listens on is taken over. Returns 0; -EADDRINUSE where
 * somebody listens, -ENOTSOCK where the path is no socket, or -errno.
 */
int unix_path_listen(
	const char *path, mode_t mode, int backlog, struct unix_path *out_path, int *out_fd);
/* Removes the file if it is still the one that was made. Nothing where path->path is NULL. */
void unix_path_remove(struct unix_path *path);
