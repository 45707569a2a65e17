/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/listener.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/fd.h"

static struct listener *listener_new(const char *configured, unsigned n_fds)
{
	struct listener *listener = calloc(1, sizeof(*listener));

	if (!listener)
		return NULL;
	list_init(&listener->link);
	listener->fds = malloc(n_fds * sizeof(int));
	listener->configured = configured ? strdup(configured) : NULL;
	listener->n_fds = n_fds;
	if (!listener->fds || (configured && !listener->configured)) {
		free(listener->fds);
		free(listener->configured);
		free(listener);
		return NULL;
	}
	for (unsigned i = 0; i < n_fds; i++)
		listener->fds[i] = -1;
	return listener;
}

void listener_close(struct listener *listener)
{
	list_remove(&listener->link);
	for (unsigned i = 0; i < listener->n_fds; i++)
		fd_close(&listener->fds[i]);
	unix_path_remove(&listener->path);
	free(listener->fds);
	free(listener->configured);
	free(listener->address);
	free(listener);
}

/* The name that the kernel gives the socket, for people. Heap, or NULL. */
static char *socket_name(int fd)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);
	char host[64], port[8], *name = NULL;

	if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
		return NULL;
	if (addr.ss_family == AF_UNIX) {
		const struct sockaddr_un *local = (const struct sockaddr_un *)&addr;
		int path_len = (int)(len - offsetof(struct sockaddr_un, sun_path));

		if (asprintf(&name, "unix:%.*s", path_len, local->sun_path) < 0)
			return NULL;
		return name;
	}
	if (getnameinfo((struct sockaddr *)&addr, len, host, sizeof(host), port, sizeof(port),
		    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		return NULL;
	if (asprintf(&name, addr.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port) < 0)
		return NULL;
	return name;
}

static int set_on(int fd, int level, int option)
{
	int on = 1;

	return setsockopt(fd, level, option, &on, sizeof(on)) < 0 ? -errno : 0;
}

/*
 * One more socket for the same address. The first is bound without SO_REUSEPORT, so that a second
 * up-master gets EADDRINUSE and does not share the port in silence; the option, set afterwards,
 * lets the others of ours in.
 */
static int tcp_bind(int *out_fd, const struct sockaddr *addr, socklen_t len, bool first, bool dual)
{
	FD_AUTO int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int v6only = !dual, r;

	if (fd < 0)
		return -errno;
	r = set_on(fd, SOL_SOCKET, SO_REUSEADDR);
	if (r == 0 && !first)
		r = set_on(fd, SOL_SOCKET, SO_REUSEPORT);
	if (r == 0 && addr->sa_family == AF_INET6 &&
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof(v6only)) < 0)
		r = -errno;
	if (r == 0 && bind(fd, addr, len) < 0)
		r = -errno;
	if (r == 0 && first)
		r = set_on(fd, SOL_SOCKET, SO_REUSEPORT);
	/* accept(2) inherits it. */
	if (r == 0)
		r = set_on(fd, IPPROTO_TCP, TCP_NODELAY);
	if (r == 0)
		*out_fd = fd_take(&fd);
	return r;
}

static int tcp_open_all(
	struct listener *listener, const struct addrinfo *info, int backlog, bool dual)
{
	struct sockaddr_storage addr;
	socklen_t len = info->ai_addrlen;
	int r = 0;

	memcpy(&addr, info->ai_addr, len);
	for (unsigned i = 0; i < listener->n_fds && r == 0; i++) {
		r = tcp_bind(&listener->fds[i], (struct sockaddr *)&addr, len, i == 0, dual);
		/* Port 0: the others take the port that the first was given. */
		if (r == 0 && i == 0) {
			len = sizeof(addr);
			if (getsockname(listener->fds[0], (struct sockaddr *)&addr, &len) < 0)
				r = -errno;
		}
	}
	/* All are bound first: with one listening alone its queue would get the first connections.
	 */
	for (unsigned i = 0; i < listener->n_fds && r == 0; i++)
		if (listen(listener->fds[i], backlog) < 0)
			r = -errno;
	return r;
}

static int tcp_listener(const char *address, const struct addrinfo *info, unsigned n_threads,
	int backlog, bool dual, struct list *to)
{
	struct listener *listener = listener_new(address, n_threads);
	int r = listener ? tcp_open_all(listener, info, backlog, dual) : -ENOMEM;

	if (r == 0) {
		listener->address = socket_name(listener->fds[0]);
		r = listener->address ? 0 : -ENOMEM;
	}
	if (r == 0)
		list_append(to, &listener->link);
	else if (listener)
		listener_close(listener);
	return r;
}

/* "HOST:PORT", "[V6]:PORT" or ":PORT" in its two parts. The syntax was checked with the options. */
static char *split_host(const char *address, const char **out_port)
{
	const char *colon = strrchr(address, ':');
	size_t len = (size_t)(colon - address);

	*out_port = colon + 1;
	if (len >= 2 && address[0] == '[')
		return strndup(address + 1, len - 2);
	return strndup(address, len);
}

static int open_any(
	const char *address, const char *port, unsigned n_threads, int backlog, struct list *to)
{
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6,
		.sin6_port = htons((uint16_t)atoi(port)) };
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = v6.sin6_port };
	struct addrinfo info = { .ai_addr = (struct sockaddr *)&v6, .ai_addrlen = sizeof(v6) };
	int r = tcp_listener(address, &info, n_threads, backlog, true, to);

	if (r != -EAFNOSUPPORT && r != -EADDRNOTAVAIL)
		return r;
	/* A machine without IPv6. */
	info.ai_addr = (struct sockaddr *)&v4;
	info.ai_addrlen = sizeof(v4);
	return tcp_listener(address, &info, n_threads, backlog, false, to);
}

static int open_tcp(
	const char *address, unsigned n_threads, int backlog, struct list *to, const char **out_why)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
		.ai_flags = AI_PASSIVE | AI_NUMERICSERV };
	struct addrinfo *found = NULL;
	const char *port;
	char *host = split_host(address, &port);
	int r;

	if (!host)
		return -ENOMEM;
	if (!*host) {
		free(host);
		return open_any(address, port, n_threads, backlog, to);
	}
	r = getaddrinfo(host, port, &hints, &found);
	free(host);
	if (r != 0) {
		*out_why = gai_strerror(r);
		return -EADDRNOTAVAIL;
	}
	for (struct addrinfo *at = found; at && r == 0; at = at->ai_next) {
		r = tcp_listener(address, at, n_threads, backlog, false, to);
		/* "localhost" names ::1 also on a machine without IPv6. */
		if ((r == -EADDRNOTAVAIL || r == -EAFNOSUPPORT) && (at->ai_next || !list_empty(to)))
			r = 0;
	}
	freeaddrinfo(found);
	return r;
}

static int open_unix(const char *address, int backlog, struct list *to)
{
	struct listener *listener = listener_new(address, 1);
	const char *path = address + strlen("unix:");
	int r;

	if (!listener)
		return -ENOMEM;
	listener->address = strdup(address);
	/* Whoever may enter the directory may connect, as nginx has it. */
	r = listener->address
		    ? unix_path_listen(path, 0666, backlog, &listener->path, &listener->fds[0])
		    : -ENOMEM;
	if (r == 0) {
		list_append(to, &listener->link);
		return 0;
	}
	listener_close(listener);
	return r;
}

int listener_open(
	const char *address, unsigned n_threads, int backlog, struct list *to, char **out_error)
{
	const char *why = NULL;
	struct list opened;
	int r;

	list_init(&opened);
	if (strncmp(address, "unix:", 5) == 0)
		r = open_unix(address, backlog, &opened);
	else
		r = open_tcp(address, n_threads, backlog, &opened, &why);
	if (r == 0) {
		list_splice(to, &opened);
		return 0;
	}
	list_each (at, &opened)
		listener_close(container_of(at, struct listener, link));
	if (asprintf(out_error, "can't listen on %s: %s", address, why ? why : strerror(-r)) < 0)
		*out_error = NULL;
	return r;
}

void listener_set_backlog(struct listener *listener, int backlog)
{
	for (unsigned i = 0; i < listener->n_fds; i++)
		listen(listener->fds[i], backlog);
}

int listener_inherit(int *take_fd, struct list *to)
{
	FD_AUTO int fd = fd_take(take_fd);
	struct listener *listener = listener_new(NULL, 1);
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);

	if (!listener)
		return -ENOMEM;
	listener->inherited = true;
	listener->address = socket_name(fd);
	if (getsockname(fd, (struct sockaddr *)&addr, &len) == 0 && addr.ss_family != AF_UNIX)
		set_on(fd, IPPROTO_TCP, TCP_NODELAY);
	listener->fds[0] = fd_take(&fd);
	if (!listener->address) {
		listener_close(listener);
		return -EINVAL;
	}
	list_append(to, &listener->link);
	return 0;
}
