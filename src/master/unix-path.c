/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/unix-path.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/fd.h"

/* Returns -ECONNREFUSED or -ENOENT where nobody listens, -EADDRINUSE where somebody does. */
static int path_probe(const struct sockaddr_un *address)
{
	FD_AUTO int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
		(errno == ECONNREFUSED || errno == ENOENT || errno == EACCES))
		return -errno;
	/* Connected, or refused because the queue is full, or a socket of another type. */
	return -EADDRINUSE;
}

static int path_take_over(const struct sockaddr_un *address)
{
	const struct timespec moment = { .tv_nsec = 50 * 1000 * 1000 };
	struct stat st;
	int r;

	if (lstat(address->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	/* Connecting to a plain file is refused too, and it is not ours to remove. */
	if (!S_ISSOCK(st.st_mode))
		return -ENOTSOCK;
	r = path_probe(address);
	if (r == -ECONNREFUSED) {
		/* A server that starts right now has bound and does not listen yet: look again. */
		nanosleep(&moment, NULL);
		r = path_probe(address);
	}
	if (r == -ENOENT)
		return 0;
	if (r != -ECONNREFUSED)
		return r;
	return unlink(address->sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

static int make_directory(const char *path)
{
	char *directory = strdup(path), *slash;
	int r = 0;

	if (!directory)
		return -ENOMEM;
	slash = strrchr(directory, '/');
	if (slash && slash != directory) {
		*slash = '\0';
		if (mkdir(directory, 0755) < 0 && errno != EEXIST)
			r = -errno;
	}
	free(directory);
	return r;
}

/*
 * fchmod() before bind(2) gives the file its mode at birth, less the umask; what the umask took is
 * given back after. Nobody can connect before listen(2).
 */
static int path_bind(const struct sockaddr_un *address, mode_t mode, int backlog, int *out_fd)
{
	FD_AUTO int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || fchmod(fd, mode) < 0 ||
		bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
		return -errno;
	if (chmod(address->sun_path, mode) < 0 || listen(fd, backlog) < 0) {
		int error = errno;

		unlink(address->sun_path);
		return -error;
	}
	*out_fd = fd_take(&fd);
	return 0;
}

int unix_path_listen(
	const char *path, mode_t mode, int backlog, struct unix_path *out_path, int *out_fd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	FD_AUTO int fd = -1;
	struct stat st;
	int r;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	r = make_directory(path);
	if (r == 0)
		r = path_take_over(&address);
	if (r == 0)
		r = path_bind(&address, mode, backlog, &fd);
	if (r < 0)
		return r;
	if (lstat(path, &st) < 0)
		return -errno;
	out_path->device = st.st_dev;
	out_path->inode = st.st_ino;
	out_path->path = strdup(path);
	if (!out_path->path) {
		unlink(path);
		return -ENOMEM;
	}
	*out_fd = fd_take(&fd);
	return 0;
}

void unix_path_remove(struct unix_path *path)
{
	struct stat st;

	if (!path->path)
		return;
	if (lstat(path->path, &st) == 0 && st.st_dev == path->device && st.st_ino == path->inode)
		unlink(path->path);
	free(path->path);
	path->path = NULL;
}
