/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/option.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

#include "common/wire.h"
#include "master/config.h"

/* A year: long enough for anybody, and far from overflow when added to a clock. */
#define DURATION_MAX_MS UINT64_C(31536000000)
#define COUNT_MAX 10000000
#define COUNT64_MAX UINT64_C(1000000000000000)
#define PORT_MAX 65535

#define HELP_COLUMNS 80
#define HELP_INDENT 29

#define TEXT_OF(x) #x
#define TEXT_OF_VALUE(x) TEXT_OF(x)

static const char *const switch_names[] = { "first", "all", NULL };
static const char *const balance_names[] = { "round-robin", "least-busy", NULL };
static const char *const level_names[] = { "error", "warning", "notice", "info", "debug", NULL };

int option_refuse(char **out_why, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	if (vasprintf(out_why, fmt, args) < 0)
		*out_why = NULL;
	va_end(args);
	return -EINVAL;
}

static int check_not_empty(const char *text, char **out_why)
{
	return *text ? 0 : option_refuse(out_why, "may not be empty");
}

static int check_socket_path(const char *path, char **out_why)
{
	size_t room = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;

	if (strlen(path) > room)
		return option_refuse(out_why,
			"\"%s\" is too long for a UNIX socket: %zu bytes, at most %zu", path,
			strlen(path), room);
	return check_not_empty(path, out_why);
}

/* It is sent as the target of a request. */
static int check_ready_path(const char *path, char **out_why)
{
	if (*path != '/')
		return option_refuse(out_why, "\"%s\" does not begin with a slash", path);
	for (const char *at = path; *at; at++)
		if (*at <= ' ' || *at > '~' || *at == '#')
			return option_refuse(out_why,
				"\"%s\" holds a character that must be written as %%%02X", path,
				(unsigned char)*at);
	return 0;
}

static int check_environment(const char *text, char **out_why)
{
	const char *equals = strchr(text, '=');

	if (!equals)
		return option_refuse(out_why, "\"%s\" has no =: expected NAME=VALUE", text);
	if (equals == text)
		return option_refuse(out_why, "\"%s\" has no name before the =", text);
	return 0;
}

static bool is_port(const char *text)
{
	unsigned long port = 0;

	if (!*text)
		return false;
	for (; *text; text++) {
		if (!isdigit((unsigned char)*text) || port > PORT_MAX)
			return false;
		port = port * 10 + (unsigned long)(*text - '0');
	}
	return port <= PORT_MAX;
}

/* A name for the resolver, or an IPv4 address: digits and dots alone are no name. */
static bool is_host(const char *host)
{
	struct in_addr address;

	if (strspn(host, "0123456789.") == strlen(host))
		return inet_pton(AF_INET, host, &address) == 1;
	for (const char *at = host; *at; at++)
		if (!isalnum((unsigned char)*at) && !strchr("-._", *at))
			return false;
	return *host != '-' && *host != '.';
}

/* With or without a zone, as in fe80::1%eth0. */
static bool is_v6(char *host)
{
	struct in6_addr address;
	char *zone = strchr(host, '%');

	if (zone && zone[1] == '\0')
		return false;
	if (zone)
		*zone = '\0';
	return inet_pton(AF_INET6, host, &address) == 1;
}

static int check_bracketed(const char *text, char *host, char **out_why)
{
	char *end = strchr(host, ']');

	if (!end || end[1] != ':')
		return option_refuse(out_why, "\"%s\" is not of the form [V6]:PORT", text);
	*end = '\0';
	if (!is_v6(host))
		return option_refuse(out_why, "\"%s\" holds no IPv6 address in its brackets", text);
	return 0;
}

static int check_listen(const char *text, char **out_why)
{
	const char *colon = strrchr(text, ':');
	OPTION_TEXT_AUTO char *copy = strdup(text);

	if (!copy)
		return option_refuse(out_why, "out of memory");
	if (strncmp(text, "unix:", 5) == 0)
		return check_socket_path(text + 5, out_why);
	if (!colon)
		return option_refuse(out_why,
			"\"%s\" is none of HOST:PORT, [V6]:PORT, :PORT and unix:PATH", text);
	if (!is_port(colon + 1))
		return option_refuse(
			out_why, "\"%s\" does not end in a port, 0 to %d", text, PORT_MAX);
	if (*text == '[')
		return check_bracketed(text, copy + 1, out_why);
	copy[colon - text] = '\0';
	if (strchr(copy, ':'))
		return option_refuse(
			out_why, "\"%s\": an IPv6 address goes in brackets, [V6]:PORT", text);
	if (*copy && !is_host(copy))
		return option_refuse(
			out_why, "\"%s\" holds neither a host name nor an IPv4 address", text);
	return 0;
}

#define AT(field) .offset = offsetof(struct config, field)
#define LASTS(field) AT(field), .max = DURATION_MAX_MS

/* In the order of --help. */
static const struct option options[] = {
	{ "app", 0, OPTION_LIST, OPTION_FILE, AT(app) },

	{ "config", 'c', OPTION_TEXT, OPTION_COMMAND_LINE, AT(config_file),
		.check = check_not_empty, .group = "General", .argument = "FILE",
		.help = "JSON configuration, read again at every reload" },
	{ "check-config", 0, OPTION_ACTION, OPTION_COMMAND_LINE,
		.help = "print what results as JSON, and exit" },
	{ "native", 0, OPTION_FLAG, AT(native), .preset = "false",
		.help = "the application is a program linked with libup" },
	{ "control", 0, OPTION_TEXT, AT(control), .check = check_socket_path, .argument = "PATH",
		.help = "control socket (default $RUNTIME_DIRECTORY/control.sock, else"
			" $XDG_RUNTIME_DIR/up-master/control.sock, else"
			" /run/up-master/control.sock)" },
	{ "pidfile", 'f', OPTION_TEXT, AT(pidfile), .check = check_not_empty, .argument = "FILE",
		.help = "keep the master's pid there" },
	{ "log-level", 0, OPTION_CHOICE, AT(log_level), .preset = "info", .choices = level_names,
		.argument = "LEVEL", .help = "error, warning, notice, info or debug" },
	{ "title", 'T', OPTION_TEXT, AT(title), .preset = "up", .check = check_not_empty,
		.argument = "T", .help = "process titles: T master, T worker" },
	{ "help", 'h', OPTION_ACTION, OPTION_COMMAND_LINE, .help = "print this, and exit" },
	{ "version", 'V', OPTION_ACTION, OPTION_COMMAND_LINE,
		.help = "print the version, and exit" },

	{ "port", 'p', OPTION_PORT, AT(listen), .max = PORT_MAX,
		.preset = TEXT_OF_VALUE(CONFIG_PORT_DEFAULT), .group = "Listening", .argument = "N",
		.help = "short for --listen :N" },
	{ "listen", 'l', OPTION_LIST, AT(listen), .check = check_listen, .argument = "ADDR",
		.help = "HOST:PORT, [V6]:PORT, :PORT or unix:PATH; repeatable;"
			" port 0 is any that is free" },
	{ "backlog", 0, OPTION_COUNT, AT(backlog), .min = 1, .max = PORT_MAX, .preset = "4096",
		.argument = "N", .help = "connections the kernel may hold" },
	{ "threads", 0, OPTION_EXPRESSION, AT(threads), .min = 1, .max = WIRE_CHANNELS_MAX,
		.preset = "min(cpus, 4)", .argument = "N", .help = "I/O threads" },
	{ "max-connections", 0, OPTION_COUNT, AT(connections_max), .max = COUNT_MAX, .preset = "0",
		.argument = "N",
		.help = "past it, accepting pauses; 0: what the limit on open files allows" },

	{ "workers", 'n', OPTION_EXPRESSION, AT(workers), .min = 1, .max = CONFIG_WORKERS_MAX,
		.preset = "cpus", .preset_development = "1", .group = "Workers", .argument = "N",
		.help = "a number, or an expression such as \"cpus + 2\" or"
			" \"round(cpus * 1.5)\"" },
	{ "user", 0, OPTION_TEXT, AT(user), .check = check_not_empty, .argument = "U",
		.help = "what workers run as when the master is root" },
	{ "group", 0, OPTION_TEXT, AT(group), .check = check_not_empty, .argument = "G",
		.help = "likewise" },
	{ "chdir", 0, OPTION_TEXT, AT(chdir), .check = check_not_empty, .argument = "DIR",
		.help = "the workers' directory, resolved at every reload" },
	{ "env", 0, OPTION_LIST, AT(env), .check = check_environment, .argument = "K=V",
		.help = "add to the workers' environment; repeatable" },
	{ "respawn", 'k', OPTION_BOOL, AT(respawn), .preset = "true", .argument = "BOOL",
		.help = "start a new worker when one dies" },
	{ "min-lifetime", 0, OPTION_DURATION, LASTS(min_lifetime_ms), .preset = "20s",
		.argument = "D",
		.help = "a worker that dies younger is respawned with back-off; 0: without" },
	{ "max-requests", 0, OPTION_COUNT64, AT(max_requests), .max = COUNT64_MAX, .preset = "0",
		.argument = "N", .help = "replace a worker after N requests; 0: never" },
	{ "hang-timeout", 0, OPTION_DURATION, LASTS(hang_timeout_ms), .preset = "30s",
		.argument = "D",
		.help = "replace a worker that answers nothing for so long; 0: never" },

	{ "worker-timeout", 't', OPTION_DURATION, LASTS(worker_timeout_ms), .preset = "10m",
		.preset_development = "500ms", .group = "Reload and stop", .argument = "D",
		.help = "how long a discarded worker may finish what it serves" },
	{ "switch", 0, OPTION_CHOICE, AT(switch_when), .preset = "first", .choices = switch_names,
		.argument = "WHEN",
		.help = "requests go to the new generation once its first worker is ready, or "
			"all" },
	{ "assume-ready", 0, OPTION_BOOL, AT(assume_ready), .preset = "true", .argument = "BOOL",
		.help = "false: the application says itself when it is ready" },
	{ "ready-path", 0, OPTION_TEXT, AT(ready_path), .check = check_ready_path,
		.argument = "PATH", .help = "a worker is ready when GET PATH answers 2xx or 3xx" },
	{ "ready-timeout", 0, OPTION_DURATION, LASTS(ready_timeout_ms), .preset = "60s",
		.argument = "D", .help = "a worker not ready by then has failed to boot" },
	{ "stop-timeout", 0, OPTION_DURATION, LASTS(stop_timeout_ms), .preset = "30s",
		.argument = "D", .help = "how long a stop waits for requests under way" },

	{ "balance", 0, OPTION_CHOICE, AT(balance), .preset = "round-robin",
		.choices = balance_names, .group = "Requests", .argument = "HOW",
		.help = "round-robin or least-busy" },
	{ "concurrency", 0, OPTION_COUNT, AT(concurrency), .max = COUNT_MAX, .preset = "0",
		.argument = "N", .help = "requests one worker holds at once; 0: no limit" },
	{ "queue", 0, OPTION_COUNT, AT(queue), .max = COUNT_MAX, .preset = "1024", .argument = "N",
		.help = "requests that may wait for a worker; past it, 503" },
	{ "queue-timeout", 0, OPTION_DURATION, LASTS(queue_timeout_ms), .preset = "30s",
		.argument = "D", .help = "how long one may wait; then 503" },
	{ "max-head", 0, OPTION_SIZE, AT(head_bytes_max), .min = 1024, .max = 128 * 1024,
		.preset = "64k", .argument = "SIZE",
		.help = "request line and headers; past it, 431 or 414" },
	{ "header-timeout", 0, OPTION_DURATION, LASTS(header_timeout_ms), .preset = "10s",
		.argument = "D", .help = "for a request head to come whole; then 408" },
	{ "body-timeout", 0, OPTION_DURATION, LASTS(body_timeout_ms), .preset = "60s",
		.argument = "D", .help = "longest pause within a request's body" },
	{ "send-timeout", 0, OPTION_DURATION, LASTS(send_timeout_ms), .preset = "60s",
		.argument = "D", .help = "longest pause of a client that reads a response" },
	{ "request-timeout", 0, OPTION_DURATION, LASTS(request_timeout_ms), .preset = "0",
		.argument = "D", .help = "until a response begins, then 504; 0: none" },
	{ "keepalive-timeout", 0, OPTION_DURATION, LASTS(keepalive_timeout_ms), .preset = "75s",
		.argument = "D", .help = "idle time of a connection, then it is closed" },
};

#define N_OPTIONS (sizeof(options) / sizeof(options[0]))

const struct option *option_first(void)
{
	return options;
}

const struct option *option_next(const struct option *option)
{
	return option + 1 < options + N_OPTIONS ? option + 1 : NULL;
}

const struct option *option_by_name(const char *name, size_t len)
{
	for (const struct option *o = option_first(); o; o = option_next(o))
		if (o->place != OPTION_FILE && strlen(o->name) == len &&
			memcmp(o->name, name, len) == 0)
			return o;
	return NULL;
}

const struct option *option_by_letter(char letter)
{
	for (const struct option *o = option_first(); o; o = option_next(o))
		if (o->letter && o->letter == letter)
			return o;
	return NULL;
}

static char key_char(char c)
{
	return c == '-' ? '_' : c;
}

static bool has_key(const struct option *option, const char *key)
{
	const char *name = option->name;

	while (*name && key_char(*name) == *key)
		name++, key++;
	return *name == '\0' && *key == '\0';
}

const struct option *option_by_key(const char *key)
{
	for (const struct option *o = option_first(); o; o = option_next(o))
		if (o->place != OPTION_COMMAND_LINE && has_key(o, key))
			return o;
	return NULL;
}

char *option_key(const struct option *option)
{
	char *key = strdup(option->name);

	for (char *at = key; at && *at; at++)
		*at = key_char(*at);
	return key;
}

/* Letters to insert, remove or change to get from one word to the other; - and _ are the same. */
static unsigned distance(const char *from, const char *to, size_t to_len)
{
	unsigned row[64], corner, above;

	if (to_len >= sizeof(row) / sizeof(row[0]))
		return UINT32_MAX;
	for (unsigned i = 0; i <= to_len; i++)
		row[i] = i;
	for (; *from; from++) {
		corner = row[0]++;
		for (size_t i = 1; i <= to_len; i++) {
			above = row[i];
			row[i] = corner + (key_char(*from) != key_char(to[i - 1]));
			if (above + 1 < row[i])
				row[i] = above + 1;
			if (row[i - 1] + 1 < row[i])
				row[i] = row[i - 1] + 1;
			corner = above;
		}
	}
	return row[to_len];
}

const struct option *option_nearest(const char *word, enum option_place place)
{
	const struct option *best = NULL;
	size_t len = strlen(word);
	/* A third of the word may be wrong; more would be guessing. */
	size_t best_distance = len / 3 + 1;

	for (const struct option *o = option_first(); o; o = option_next(o)) {
		unsigned d = distance(o->name, word, len);

		if ((o->place == OPTION_ANYWHERE || o->place == place) && d < best_distance) {
			best = o;
			best_distance = d;
		}
	}
	return best;
}

/* At column, or on a new line where there is no room. */
static void print_word(FILE *to, const char *word, size_t len, size_t *column)
{
	if (*column > HELP_INDENT && *column + 1 + len >= HELP_COLUMNS) {
		fprintf(to, "\n%*s", HELP_INDENT, "");
		*column = HELP_INDENT;
	}
	*column += (size_t)fprintf(to, "%s%.*s", *column > HELP_INDENT ? " " : "", (int)len, word);
}

static void print_words(FILE *to, const char *text, size_t *column)
{
	while (*text) {
		size_t len = strcspn(text, " ");

		print_word(to, text, len, column);
		text += len + (text[len] == ' ');
	}
}

static void print_option(FILE *to, const struct option *option)
{
	char letter[] = "    ", preset[64] = "";
	size_t column;

	if (option->letter)
		snprintf(letter, sizeof(letter), "-%c, ", option->letter);
	if (option->preset && option->kind != OPTION_FLAG)
		snprintf(preset, sizeof(preset), "(default %s)", option->preset);
	column = (size_t)fprintf(to, "  %s--%s%s%s", letter, option->name,
		option->argument ? " " : "", option->argument ? option->argument : "");
	column += (size_t)fprintf(to, "%*s", HELP_INDENT - (int)column, "");
	print_words(to, option->help, &column);
	if (*preset)
		print_word(to, preset, strlen(preset), &column);
	fputc('\n', to);
}

void option_print_help(FILE *to)
{
	fputs("Usage: up-master [OPTION]... [APP.so [ARG]...]\n"
	      "       up-master [OPTION]... --native -- COMMAND [ARG]...\n"
	      "Serves HTTP with workers that can be replaced without losing a request.\n"
	      "Without an application it serves a built-in one that says hello.\n"
	      "Options come before the application; what follows it is passed on to it.\n",
		to);
	for (const struct option *o = option_first(); o; o = option_next(o)) {
		if (o->group)
			fprintf(to, "\n%s:\n", o->group);
		if (o->place != OPTION_FILE)
			print_option(to, o);
	}
	fputs("\nD is a duration: 500ms, 10s, 5m, 1h; a bare number is milliseconds.\n"
	      "SIZE is in bytes, or with k, m or g.\n"
	      "BOOL is true or false, or yes, no, on, off, 1 or 0; left out, it is true.\n"
	      "A key of the file is an option's name with _ for -.\n"
	      "With NODE_ENV=development",
		to);
	for (const struct option *o = option_first(); o; o = option_next(o))
		if (o->preset_development)
			fprintf(to, " --%s is %s,", o->name, o->preset_development);
	fputs("\nunless set.\n", to);
}
