/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Websocket: RFC 6455 on a socket that the application keeps.
 *
 * An example: whole messages up to WEBSOCKET_MESSAGE_MAX, no extensions, and text is not checked to
 * be UTF-8. It pushes back: while the peer does not read, nothing more is read from it.
 */
#include <stddef.h>
#include <up/worker.h>

#define WEBSOCKET_MESSAGE_MAX (64 * 1024)

enum websocket_opcode {
	WEBSOCKET_CONTINUATION = 0,
	WEBSOCKET_TEXT = 1,
	WEBSOCKET_BINARY = 2,
	WEBSOCKET_CLOSE = 8,
	WEBSOCKET_PING = 9,
	WEBSOCKET_PONG = 10,
};

struct websocket;

/*
 * Answers a request of a client that wishes to speak WebSocket with 101, and any other one with 400
 * or 426. on_message is called with each whole message, which is valid during the call. The object
 * frees itself when the socket has ended.
 */
void websocket_accept(struct up_request *request,
	void (*on_message)(struct websocket *websocket, enum websocket_opcode opcode,
		const void *bytes, size_t len));

/* Sends one message. */
void websocket_send(
	struct websocket *websocket, enum websocket_opcode opcode, const void *bytes, size_t len);
