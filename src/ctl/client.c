/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "ctl/client.h"

#include <errno.h>
#include <http_parser.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/fd.h"

#define CONTENT_MAX (64u * 1024 * 1024)

int client_connect(const char *path, int *out_fd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	FD_AUTO int fd = -1;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	*out_fd = fd_take(&fd);
	return 0;
}

static int send_all(int fd, const char *bytes, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EPIPE ? -ECONNRESET : -errno;
		bytes += n;
		len -= n;
	}
	return 0;
}

/* An answer that is being read. */
struct reading {
	struct client_answer answer;
	bool whole;
	int error; /* 0 or -errno, for what http-parser can't tell */
};

static int on_body(http_parser *parser, const char *bytes, size_t len)
{
	struct reading *reading = parser->data;
	struct client_answer *answer = &reading->answer;
	char *content;

	if (answer->len + len > CONTENT_MAX) {
		reading->error = -EMSGSIZE;
		return 1;
	}
	content = realloc(answer->content, answer->len + len + 1);
	if (!content) {
		reading->error = -ENOMEM;
		return 1;
	}
	memcpy(content + answer->len, bytes, len);
	answer->content = content;
	answer->len += len;
	content[answer->len] = 0;
	return 0;
}

static int on_message_complete(http_parser *parser)
{
	struct reading *reading = parser->data;

	/* Interim answers come before the one that counts. */
	if (parser->status_code < 200)
		return 0;
	reading->answer.status = parser->status_code;
	reading->whole = true;
	http_parser_pause(parser, 1);
	return 0;
}

static int read_answer(int fd, struct reading *reading)
{
	http_parser_settings settings;
	http_parser parser;
	char buf[16384];

	http_parser_settings_init(&settings);
	settings.on_body = on_body;
	settings.on_message_complete = on_message_complete;
	http_parser_init(&parser, HTTP_RESPONSE);
	parser.data = reading;
	while (!reading->whole) {
		ssize_t n = recv(fd, buf, sizeof(buf), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		/* At the end 0 bytes tell the parser so: some answers are whole only then. */
		http_parser_execute(&parser, &settings, buf, n);
		if (reading->error < 0)
			return reading->error;
		if (n == 0 && !reading->whole)
			return -ECONNRESET;
		if (HTTP_PARSER_ERRNO(&parser) != HPE_OK && !reading->whole)
			return -EPROTO;
	}
	return 0;
}

int client_ask(int fd, const char *method, const char *target, struct client_answer *out)
{
	struct reading reading = { .whole = false };
	char *request;
	int len, r;

	len = asprintf(&request,
		"%s %s HTTP/1.1\r\n"
		"Host: up\r\n"
		"Content-Length: 0\r\n"
		"Connection: close\r\n"
		"\r\n",
		method, target);
	if (len < 0)
		return -ENOMEM;
	r = send_all(fd, request, len);
	free(request);
	if (r == 0)
		r = read_answer(fd, &reading);
	if (r == 0 && !reading.answer.content && !(reading.answer.content = strdup("")))
		r = -ENOMEM;
	if (r < 0) {
		free(reading.answer.content);
		return r;
	}
	*out = reading.answer;
	return 0;
}
