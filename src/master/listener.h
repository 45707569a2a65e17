/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Listener: one address that is listened on, with a socket for each I/O thread where the kernel can
 * spread connections over several (TCP), else one that one thread accepts from.
 *
 * Control thread; the descriptors are borrowed by the I/O threads while they accept.
 */
#include <stdbool.h>

#include "common/list.h"
#include "master/unix-path.h"

struct listener {
	struct list link;
	char *configured; /* as in --listen; NULL where inherited */
	char *address;	  /* as in the status: "127.0.0.1:3000", "[::]:3000", "unix:/run/x" */
	bool inherited;
	unsigned n_fds; /* the number of I/O threads, or 1: shared */
	int *fds;
	struct unix_path path;
};

/*
 * Binds and listens on an address of --listen, one listener for each that its host stands for, and
 * appends them to `to`. Returns 0, or -errno with *out_error set to a sentence, to be freed; then
 * nothing was appended.
 */
int listener_open(
	const char *address, unsigned n_threads, int backlog, struct list *to, char **out_error);
/* Takes a listening socket that somebody else made. Takes *take_fd. Returns 0 or -errno. */
int listener_inherit(int *take_fd, struct list *to);
/* listen(2) may be called again to change it. */
void listener_set_backlog(struct listener *listener, int backlog);
/* Closes its sockets and removes a UNIX path of ours. Takes it out of its list. */
void listener_close(struct listener *listener);
