/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fd.h"
#include "ctl/client.h"
#include "ctl/table.h"

#define EXIT_USAGE 2
#define WORKERS_MAX 1024

static const char usage[] =
	"Usage: upctl [OPTION]... COMMAND\n"
	"\n"
	"Commands:\n"
	"  status               what up-master and its workers do\n"
	"  reload [--wait W]    start the application's new code, and wait until it serves:\n"
	"                       `first`: a first worker does; `all` (default): all of them do\n"
	"  scale N              run N workers\n"
	"  stop                 stop gracefully; returns when that is accepted\n"
	"\n"
	"Options:\n"
	"  -i, --instance NAME  the instance up-master@NAME.service\n"
	"      --control PATH   the control socket\n"
	"      --json           print answers as they come\n"
	"      --wait W         first or all, for reload\n"
	"  -V, --version        print the version\n"
	"  -h, --help           print this\n"
	"\n"
	"Exit status: 0 done, 1 failed or no connection, 2 bad usage.\n";

struct request {
	const char *control;  /* or NULL */
	const char *instance; /* or NULL */
	const char *wait;     /* or NULL */
	bool json;
	const char *command;
	const char *argument; /* of scale */
	char *path;	      /* of the control socket */
};

/* ---- Where the control socket is ---- */

static char *join(const char *prefix, const char *text, size_t len, const char *suffix)
{
	char *path;

	if (asprintf(&path, "%s%.*s%s", prefix, (int)len, text, suffix) < 0) {
		fputs("upctl: out of memory\n", stderr);
		exit(EXIT_FAILURE);
	}
	return path;
}

/*
 * Looks where the master listens by default, but passes over the place of a user's own master where
 * there is none: *out_tried is that place then, else NULL. Both are the caller's.
 */
static char *find_path(const struct request *request, char **out_tried)
{
	const char *runtime = getenv("RUNTIME_DIRECTORY");
	const char *user = getenv("XDG_RUNTIME_DIR");
	struct stat st;
	char *path;

	*out_tried = NULL;
	if (request->control)
		return join(request->control, "", 0, "");
	if (request->instance)
		return join("/run/up-master-", request->instance, strlen(request->instance),
			"/control.sock");
	/* systemd names several, with colons between, where the unit asks for several. */
	if (runtime && strcspn(runtime, ":") > 0)
		return join("", runtime, strcspn(runtime, ":"), "/control.sock");
	if (user && *user) {
		path = join("", user, strlen(user), "/up-master/control.sock");
		if (stat(path, &st) == 0 || (errno != ENOENT && errno != ENOTDIR))
			return path;
		*out_tried = path;
	}
	return join("/run/up-master/control.sock", "", 0, "");
}

static void explain_denied(const char *path)
{
	const struct group *group = NULL;
	struct stat st;

	if (stat(path, &st) == 0)
		group = getgrgid(st.st_gid);
	if (group)
		fprintf(stderr, "upctl: %s: permission denied: be root or in the group '%s'\n",
			path, group->gr_name);
	else
		fprintf(stderr,
			"upctl: %s: permission denied: be root or in the group of the socket\n",
			path);
}

static void explain_connect(const struct request *request, const char *tried, int error)
{
	switch (error) {
	case ENOENT:
	case ENOTDIR:
		fprintf(stderr, "upctl: no control socket at %s%s%s: is up-master running?",
			request->path, tried ? " or " : "", tried ? tried : "");
		fputs(request->control ? "\n"
				       : " Another place is named by --control PATH or -i NAME.\n",
			stderr);
		return;
	case ECONNREFUSED:
		fprintf(stderr,
			"upctl: nobody listens on %s: up-master has ended. Start it again.\n",
			request->path);
		return;
	case EACCES:
	case EPERM:
		explain_denied(request->path);
		return;
	case ENAMETOOLONG:
		fprintf(stderr, "upctl: %s: a socket's path has at most 107 bytes\n",
			request->path);
		return;
	}
	fprintf(stderr, "upctl: %s: %s\n", request->path, strerror(error));
}

/* ---- Requests ---- */

/* Asks, or says why not. Returns 0 or -1, as there is nothing left to tell. */
static int ask(
	struct request *request, const char *method, const char *target, struct client_answer *out)
{
	FD_AUTO int fd = -1;
	char *tried;
	int r;

	request->path = find_path(request, &tried);
	r = client_connect(request->path, &fd);
	if (r < 0)
		explain_connect(request, tried, -r);
	free(tried);
	if (r < 0)
		return -1;
	r = client_ask(fd, method, target, out);
	if (r == -ECONNRESET)
		fprintf(stderr, "upctl: up-master ended before it answered: see its log\n");
	else if (r == -EPROTO)
		fprintf(stderr, "upctl: %s: what answers there is not up-master\n", request->path);
	else if (r < 0)
		fprintf(stderr, "upctl: %s: %s\n", request->path, strerror(-r));
	return r < 0 ? -1 : 0;
}

/* The last lines of a worker that did not boot: an array of lines, or one text. */
static void print_stderr(const json_t *lines)
{
	const json_t *line;
	size_t i;

	if (json_is_string(lines)) {
		const char *text = json_string_value(lines);

		table_print_text(stderr, text);
		if (*text && text[strlen(text) - 1] != '\n')
			putc('\n', stderr);
	}
	json_array_foreach(lines, i, line)
	{
		fputs("  ", stderr);
		table_print_text(stderr, json_is_string(line) ? json_string_value(line) : "");
		putc('\n', stderr);
	}
}

static void print_failure(
	const char *command, const struct client_answer *answer, const json_t *json)
{
	const char *error = json_string_value(json_object_get(json, "error"));

	fprintf(stderr, "upctl: %s failed: ", command);
	if (error)
		table_print_text(stderr, error);
	else
		fprintf(stderr, "status %u", answer->status);
	putc('\n', stderr);
	print_stderr(json_object_get(json, "stderr"));
}

/* Workers that did not boot in a reload that did not fail. */
static void print_failed_workers(const json_t *failed)
{
	const json_t *worker;
	size_t i;

	json_array_foreach(failed, i, worker)
	{
		const json_t *id = json_object_get(worker, "id");
		const char *error = json_string_value(json_object_get(worker, "error"));

		fprintf(stderr,
			"upctl: worker %lld failed to boot: ", (long long)json_integer_value(id));
		table_print_text(stderr, error ? error : "-");
		putc('\n', stderr);
		print_stderr(json_object_get(worker, "stderr"));
	}
}

static void print_success(const struct request *request, const json_t *json)
{
	if (strcmp(request->command, "status") == 0) {
		table_print(stdout, json);
	} else if (strcmp(request->command, "reload") == 0) {
		printf("generation %lld serves, after %.0f ms\n",
			(long long)json_integer_value(json_object_get(json, "generation")),
			json_number_value(json_object_get(json, "duration_ms")));
		print_failed_workers(json_object_get(json, "failed"));
	} else if (strcmp(request->command, "scale") == 0) {
		printf("%s workers\n", request->argument);
	} else {
		puts("stopping");
	}
}

static int run(struct request *request, const char *method, const char *target)
{
	struct client_answer answer;
	json_t *json;
	bool ok;

	if (ask(request, method, target, &answer) < 0)
		return EXIT_FAILURE;
	json = json_loadb(answer.content, answer.len, 0, NULL);
	ok = answer.status >= 200 && answer.status < 300;
	if (ok && !json_is_object(json)) {
		fprintf(stderr, "upctl: %s: what answers there is not up-master\n", request->path);
		ok = false;
	} else if (request->json && json) {
		fwrite(answer.content, 1, answer.len, stdout);
	} else if (ok) {
		print_success(request, json);
	} else {
		print_failure(request->command, &answer, json);
	}
	json_decref(json);
	free(answer.content);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "upctl: standard output: %s\n", strerror(errno));
		ok = false;
	}
	return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* ---- The command line ---- */

static int bad_usage(const char *what, const char *which)
{
	fprintf(stderr, "upctl: %s%s%s%s\nTry: upctl --help\n", what, which ? " '" : "",
		which ? which : "", which ? "'" : "");
	return EXIT_USAGE;
}

static bool is_count(const char *text)
{
	return *text && strlen(text) <= 4 && strspn(text, "0123456789") == strlen(text) &&
	       atoi(text) >= 1 && atoi(text) <= WORKERS_MAX;
}

static int run_command(struct request *request, int n_arguments)
{
	const char *command = request->command;
	bool is_scale = strcmp(command, "scale") == 0, is_reload = strcmp(command, "reload") == 0;
	char target[64];

	if (!is_scale && !is_reload && strcmp(command, "status") != 0 &&
		strcmp(command, "stop") != 0)
		return bad_usage("unknown command", command);
	if (is_scale && n_arguments == 0)
		return bad_usage("scale: how many workers?", NULL);
	if (n_arguments > (is_scale ? 1 : 0))
		return bad_usage("too many arguments for", command);
	if (is_scale && !is_count(request->argument))
		return bad_usage("scale: not a number from 1 to 1024:", request->argument);
	if (request->wait && !is_reload)
		return bad_usage("--wait does not go with", command);
	if (strcmp(command, "status") == 0)
		return run(request, "GET", "/status");
	if (is_reload)
		snprintf(target, sizeof(target), "/reload?wait=%s",
			request->wait ? request->wait : "all");
	else if (is_scale)
		snprintf(target, sizeof(target), "/scale?workers=%s", request->argument);
	else
		strcpy(target, "/stop");
	return run(request, "POST", target);
}

enum option_only_long {
	OPTION_CONTROL = 256,
	OPTION_JSON,
	OPTION_WAIT,
};

/* Returns -1 to go on, or the exit status. */
static int take_option(struct request *request, int option)
{
	switch (option) {
	case 'i':
		request->instance = optarg;
		if (!*optarg || strchr(optarg, '/'))
			return bad_usage("not the name of an instance:", optarg);
		return -1;
	case OPTION_CONTROL:
		request->control = optarg;
		return -1;
	case OPTION_JSON:
		request->json = true;
		return -1;
	case OPTION_WAIT:
		request->wait = optarg;
		if (strcmp(optarg, "first") != 0 && strcmp(optarg, "all") != 0)
			return bad_usage("--wait is first or all, not", optarg);
		return -1;
	case 'V':
		puts("upctl " UP_VERSION);
		return EXIT_SUCCESS;
	case 'h':
		fputs(usage, stdout);
		return EXIT_SUCCESS;
	}
	/* getopt has said what is wrong. */
	fputs("Try: upctl --help\n", stderr);
	return EXIT_USAGE;
}

int main(int argc, char *argv[])
{
	static const struct option options[] = {
		{ "instance", required_argument, NULL, 'i' },
		{ "control", required_argument, NULL, OPTION_CONTROL },
		{ "json", no_argument, NULL, OPTION_JSON },
		{ "wait", required_argument, NULL, OPTION_WAIT },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct request request = { .json = false };
	int option, status;

	while ((option = getopt_long(argc, argv, "i:Vh", options, NULL)) != -1) {
		status = take_option(&request, option);
		if (status >= 0)
			return status;
	}
	if (optind == argc)
		return bad_usage("which command? status, reload, scale or stop", NULL);
	request.command = argv[optind];
	request.argument = argv[optind + 1];
	status = run_command(&request, argc - optind - 1);
	free(request.path);
	return status;
}
