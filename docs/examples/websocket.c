/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "websocket.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEADER_MAX 14

struct websocket {
	struct up_socket *socket;
	void (*on_message)(struct websocket *websocket, enum websocket_opcode opcode,
		const void *bytes, size_t len);
	bool closed; /* a close frame was sent: nothing more is */
	uint8_t in[HEADER_MAX + WEBSOCKET_MESSAGE_MAX]; /* frames that are not whole yet */
	size_t in_len;
	enum websocket_opcode opcode; /* of the message in `message`; 0: none has begun */
	uint8_t message[WEBSOCKET_MESSAGE_MAX];
	size_t message_len;
};

/* ---- The handshake ---- */

static uint32_t rotate(uint32_t word, int bits)
{
	return word << bits | word >> (32 - bits);
}

static void sha1_block(uint32_t state[5], const uint8_t *block)
{
	uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
		       (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
	for (int i = 16; i < 80; i++)
		w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
	for (int i = 0; i < 80; i++) {
		uint32_t f, k, t;

		if (i < 20)
			f = (b & c) | (~b & d), k = 0x5a827999;
		else if (i < 40)
			f = b ^ c ^ d, k = 0x6ed9eba1;
		else if (i < 60)
			f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
		else
			f = b ^ c ^ d, k = 0xca62c1d6;
		t = rotate(a, 5) + f + e + k + w[i];
		e = d, d = c, c = rotate(b, 30), b = a, a = t;
	}
	state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* For less than 120 bytes, which is enough for a key and the GUID: two blocks. */
static void sha1_short(const void *bytes, size_t len, uint8_t out[20])
{
	uint32_t state[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
	uint8_t blocks[128] = { 0 };
	size_t total = len < 56 ? 64 : 128;

	memcpy(blocks, bytes, len);
	blocks[len] = 0x80;
	blocks[total - 2] = (uint8_t)(len * 8 >> 8);
	blocks[total - 1] = (uint8_t)(len * 8);
	for (size_t at = 0; at < total; at += 64)
		sha1_block(state, blocks + at);
	for (int i = 0; i < 20; i++)
		out[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

/* 20 bytes as 28 characters. */
static void base64_20(const uint8_t in[20], char out[29])
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	for (int i = 0; i < 7; i++) {
		uint32_t word = (uint32_t)in[3 * i] << 16 | (uint32_t)in[3 * i + 1] << 8;

		word |= i < 6 ? in[3 * i + 2] : 0;
		for (int j = 0; j < 4; j++)
			out[4 * i + j] = digits[word >> (18 - 6 * j) & 63];
	}
	out[27] = '=';
	out[28] = '\0';
}

/* Sec-WebSocket-Accept for a key (RFC 6455, 4.2.2). */
static void accept_key(const char *key, char out[29])
{
	static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
	char both[24 + sizeof(guid)];
	uint8_t hash[20];

	memcpy(both, key, 24);
	memcpy(both + 24, guid, sizeof(guid));
	sha1_short(both, 24 + sizeof(guid) - 1, hash);
	base64_20(hash, out);
}

/* ---- Frames ---- */

static void send_frame(
	struct websocket *ws, enum websocket_opcode opcode, const void *bytes, size_t len)
{
	uint8_t header[10] = { (uint8_t)(0x80 | opcode) };
	size_t header_len = 2;

	if (ws->closed)
		return;
	if (len < 126) {
		header[1] = (uint8_t)len;
	} else if (len <= UINT16_MAX) {
		header[1] = 126;
		header_len = 4;
	} else {
		header[1] = 127;
		header_len = 10;
	}
	for (size_t i = header_len - 1, left = len; i > 1; i--, left >>= 8)
		header[i] = (uint8_t)left;
	/* A failure shows when the socket is read. */
	up_socket_write(ws->socket, header, header_len);
	up_socket_write(ws->socket, bytes, len);
}

static void send_close(struct websocket *ws, unsigned status)
{
	uint8_t bytes[2] = { (uint8_t)(status >> 8), (uint8_t)status };

	send_frame(ws, WEBSOCKET_CLOSE, bytes, sizeof(bytes));
	ws->closed = true;
}

/* Returns 0, or the status to close with (RFC 6455, 7.4.1). */
static unsigned control_frame(
	struct websocket *ws, enum websocket_opcode opcode, const uint8_t *bytes, size_t len)
{
	if (opcode == WEBSOCKET_PING)
		send_frame(ws, WEBSOCKET_PONG, bytes, len);
	if (opcode != WEBSOCKET_CLOSE)
		return 0;
	if (len == 1)
		return 1002;
	return len == 0 ? 1000 : (unsigned)bytes[0] << 8 | bytes[1];
}

static unsigned data_frame(struct websocket *ws, enum websocket_opcode opcode, bool final,
	const uint8_t *bytes, size_t len)
{
	bool goes_on = opcode == WEBSOCKET_CONTINUATION;

	/* The first frame of a message names its kind, the others don't. */
	if (goes_on != (ws->opcode != WEBSOCKET_CONTINUATION))
		return 1002;
	if (len > sizeof(ws->message) - ws->message_len)
		return 1009;
	if (!goes_on)
		ws->opcode = opcode;
	memcpy(ws->message + ws->message_len, bytes, len);
	ws->message_len += len;
	if (!final)
		return 0;
	opcode = ws->opcode;
	len = ws->message_len;
	ws->opcode = WEBSOCKET_CONTINUATION;
	ws->message_len = 0;
	ws->on_message(ws, opcode, ws->message, len);
	return 0;
}

static unsigned frame(struct websocket *ws, const uint8_t *header, uint8_t *bytes, size_t len)
{
	enum websocket_opcode opcode = header[0] & 0x0f;
	const uint8_t *mask = bytes - 4;
	bool final = header[0] & 0x80;

	for (size_t i = 0; i < len; i++)
		bytes[i] ^= mask[i % 4];
	if (opcode <= WEBSOCKET_BINARY)
		return data_frame(ws, opcode, final, bytes, len);
	if (opcode < WEBSOCKET_CLOSE || opcode > WEBSOCKET_PONG || !final || len > 125)
		return 1002;
	return control_frame(ws, opcode, bytes, len);
}

/*
 * Treats the first frame of the input, if it is whole. *out_used is its length, or 0 where more is
 * needed. Returns 0 or the status to close with.
 */
static unsigned first_frame(struct websocket *ws, size_t *out_used)
{
	uint8_t *in = ws->in;
	size_t at = 2;
	uint64_t len;

	*out_used = 0;
	if (ws->in_len < 2)
		return 0;
	/* Reserved bits mean extensions; frames of a client are masked. */
	if ((in[0] & 0x70) || !(in[1] & 0x80))
		return 1002;
	len = in[1] & 0x7f;
	if (len >= 126) {
		at = len == 126 ? 4 : 10;
		if (ws->in_len < at)
			return 0;
		len = 0;
		for (size_t i = 2; i < at; i++)
			len = len << 8 | in[i];
	}
	if (len > WEBSOCKET_MESSAGE_MAX)
		return 1009;
	at += 4;
	if (ws->in_len < at + len)
		return 0;
	*out_used = at + (size_t)len;
	return frame(ws, in, in + at, (size_t)len);
}

/* ---- The socket ---- */

static void happened(struct up_socket *socket, int events, void *data);

static void end(struct websocket *ws)
{
	up_socket_close(ws->socket);
	free(ws);
}

/* Returns false where the websocket is gone. */
static bool treat_frames(struct websocket *ws)
{
	size_t used;
	unsigned status;

	do {
		status = first_frame(ws, &used);
		if (status > 0) {
			send_close(ws, status);
			end(ws);
			return false;
		}
		ws->in_len -= used;
		memmove(ws->in, ws->in + used, ws->in_len);
	} while (used > 0 && up_socket_pending(ws->socket) == 0);
	return true;
}

/* While it does not read, it is not read. */
static void watch(struct websocket *ws)
{
	int events = up_socket_pending(ws->socket) > 0 ? UP_WRITABLE : UP_READABLE;

	up_socket_watch(ws->socket, events, happened, ws);
}

static void happened(struct up_socket *socket, int events, void *data)
{
	struct websocket *ws = data;
	long n = -EAGAIN;

	if (events & UP_READABLE)
		n = up_socket_read(socket, ws->in + ws->in_len, sizeof(ws->in) - ws->in_len);
	if (n > 0)
		ws->in_len += (size_t)n;
	else if (n != -EAGAIN) {
		end(ws);
		return;
	}
	if (treat_frames(ws))
		watch(ws);
}

void websocket_accept(struct up_request *request,
	void (*on_message)(struct websocket *websocket, enum websocket_opcode opcode,
		const void *bytes, size_t len))
{
	const char *protocol = up_field(request, "Upgrade");
	const char *key = up_field(request, "Sec-WebSocket-Key");
	const char *version = up_field(request, "Sec-WebSocket-Version");
	struct websocket *ws;
	char accept[29];
	int r;

	if (!up_wants_upgrade(request) || !protocol || strcasecmp(protocol, "websocket") != 0 ||
		!version || strcmp(version, "13") != 0) {
		up_add_field(request, "Upgrade", "websocket");
		up_add_field(request, "Sec-WebSocket-Version", "13");
		up_respond(request, 426, "text/plain", "speak WebSocket here\n", 21);
		return;
	}
	if (!key || strlen(key) != 24) {
		up_respond(request, 400, "text/plain", "Sec-WebSocket-Key is malformed\n", 31);
		return;
	}
	ws = calloc(1, sizeof(*ws));
	if (!ws) {
		up_respond(request, 500, "text/plain", "out of memory\n", 14);
		return;
	}
	accept_key(key, accept);
	up_add_field(request, "Upgrade", "websocket");
	up_add_field(request, "Sec-WebSocket-Accept", accept);
	r = up_detach(request, &ws->socket);
	if (r == 0) {
		ws->on_message = on_message;
		watch(ws);
		return;
	}
	free(ws);
	/* With -EPIPE the request has ended. */
	if (r != -EPIPE)
		up_respond(request, 400, "text/plain", "can't upgrade this request\n", 27);
}

void websocket_send(
	struct websocket *websocket, enum websocket_opcode opcode, const void *bytes, size_t len)
{
	send_frame(websocket, opcode, bytes, len);
}
