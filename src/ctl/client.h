/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Client: one HTTP request to the control socket.
 *
 * Blocks until the answer is there; there is no time-out, as a reload takes what the application
 * takes.
 */
#include <stddef.h>

struct client_answer {
	unsigned status;
	char *content; /* terminated; the caller's to free */
	size_t len;
};

/* Connects. Returns 0 or -errno. */
int client_connect(const char *path, int *out_fd);
/*
 * Sends a request without a body and reads its answer. Returns 0; -ECONNRESET where the other end
 * left before the answer was whole, -EPROTO where it was no HTTP, -EMSGSIZE where it was too long,
 * else -errno.
 */
int client_ask(int fd, const char *method, const char *target, struct client_answer *out);
