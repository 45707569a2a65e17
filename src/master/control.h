/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Control: HTTP/1.1 on a UNIX socket, for upctl, curl and monitoring.
 *
 * Knows HTTP and JSON, and nothing of workers: what a request does is a callback given by the
 * caller. Control thread only.
 */
#include <jansson.h>
#include <stdbool.h>

struct control;
struct control_reply; /* one request that waits for its answer */
struct ev_loop;

struct control_ops {
	/* The status document, the caller's; NULL when out of memory. */
	json_t *(*status)(void *data);
	bool (*healthy)(void *data);
	/* Each of these answers reply now or later, exactly once. */
	void (*reload)(void *data, bool first_only, struct control_reply *reply);
	void (*scale)(void *data, unsigned n_workers, struct control_reply *reply);
	void (*stop)(void *data, struct control_reply *reply);
};

/*
 * The path to listen on: configured, or the default ($RUNTIME_DIRECTORY/control.sock, else
 * $XDG_RUNTIME_DIR/up-master/control.sock, else /run/up-master/control.sock). Heap; NULL when out
 * of memory.
 */
char *control_path(const char *configured);

/*
 * Binds and listens, mode 0660, making the last directory of the path where it is missing. A path
 * that nobody listens on any more is taken over; -EADDRINUSE where somebody does, else -errno.
 */
int control_new(struct ev_loop *loop, const char *path, const struct control_ops *ops, void *data,
	struct control **out);
/* Closes the listener and every connection (after a moment's try to send answers under way), and
 * removes the path. Accepts NULL. Returns NULL. */
struct control *control_free(struct control *control);

/*
 * Answers. Takes take_body, which may not be NULL. The client may have left: then nothing happens.
 * The reply is dead afterwards.
 */
void control_answer(struct control_reply *reply, int status, json_t *take_body);
/* The same with {"error": text}. */
void control_answer_error(struct control_reply *reply, int status, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
