/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * up-worker: becomes one worker. Started by up-master only, with posix_spawn(3):
 *
 *     up-worker [--user U] [--group G] [--title T] [--module-fd 4] FORM
 *
 *     hello                       the built-in application
 *     module PATH [ARG…]          up_app() of a shared object
 *     native COMMAND [ARG…]       a program that calls up_worker_run()
 *
 * Descriptors: 0, 1, 2, the control channel as WIRE_CONTROL_FD, and with --module-fd the file that
 * the module was when its generation began.
 *
 * What every worker needs before it runs foreign code happens here, in a process with one thread,
 * and not between fork and exec in the master, which has several.
 */
#include <dlfcn.h>
#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <up/worker.h>

#include "common/title.h"
#include "common/wire.h"

#define MODULE_FD (WIRE_CONTROL_FD + 1)

struct host {
	const char *user, *group, *title;
	bool has_module_fd;
	int argc; /* FORM and what follows */
	char **argv;
};

/* Tells the master why, and whoever reads standard error, and ends the process. */
static _Noreturn __attribute__((format(printf, 1, 2))) void boot_failed(const char *fmt, ...)
{
	struct wire_record *record;
	struct wire_batch batch;
	char why[1024];
	size_t len;
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, sizeof(why), fmt, args);
	va_end(args);
	fprintf(stderr, "up-worker: %s\n", why);
	len = strlen(why);
	wire_batch_init(&batch);
	record = wire_batch_add(&batch, WIRE_BOOT_FAILED, 0, sizeof(*record) + len, -1);
	if (record) {
		memcpy(record + 1, why, len);
		wire_send(WIRE_CONTROL_FD, &batch, 0);
	}
	_exit(1);
}

/* ---- The process ---- */

static void reset_signals(void)
{
	sigset_t none;

	for (int i = 1; i < NSIG; i++)
		signal(i, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* Whether text is a whole number that an id can be. */
static bool is_id(const char *text, unsigned *out)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value >= UINT_MAX)
		return false;
	*out = (unsigned)value;
	return true;
}

static gid_t find_group(const char *name)
{
	const struct group *group = getgrnam(name);
	unsigned id;

	if (group)
		return group->gr_gid;
	if (!is_id(name, &id))
		boot_failed("--group %s: there is no such group", name);
	return id;
}

/* *out_name: for initgroups(3), or NULL where the number has no name. */
static uid_t find_user(const char *text, bool has_group, const char **out_name, gid_t *out_gid)
{
	const struct passwd *user = getpwnam(text);
	unsigned id;

	if (!user && is_id(text, &id)) {
		*out_name = NULL;
		*out_gid = getegid();
		user = getpwuid(id);
		if (!user && geteuid() == 0 && !has_group)
			boot_failed(
				"--user %s: has no name and so no group, give --group too", text);
		if (!user)
			return id;
	}
	if (!user)
		boot_failed("--user %s: there is no such user", text);
	*out_name = user->pw_name;
	*out_gid = user->pw_gid;
	return user->pw_uid;
}

/* The supplementary groups first, the user last: each step needs the rights that the next gives up.
 */
static void become(uid_t uid, gid_t gid, const char *name)
{
	int r = name ? initgroups(name, gid) : setgroups(1, &gid);

	if (r < 0)
		boot_failed("can't set the groups of user %u: %s", uid, strerror(errno));
	if (setgid(gid) < 0)
		boot_failed("can't become group %u: %s", gid, strerror(errno));
	if (setuid(uid) < 0)
		boot_failed("can't become user %u: %s", uid, strerror(errno));
}

static void drop_privileges(const struct host *host)
{
	const char *name = NULL;
	uid_t uid = geteuid();
	gid_t gid = getegid();

	if (!host->user && !host->group)
		return;
	if (host->user)
		uid = find_user(host->user, host->group, &name, &gid);
	if (host->group)
		gid = find_group(host->group);
	if (geteuid() == 0 || uid != geteuid() || gid != getegid())
		become(uid, gid, name);
}

/*
 * After the change of user, which clears it. The master may have died before: then the signal never
 * comes, and the parent is somebody else.
 */
static void tie_to_master(void)
{
	const char *master = getenv(WIRE_ENV_MASTER_PID);

	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		boot_failed("PR_SET_PDEATHSIG: %s", strerror(errno));
	if (getppid() != (pid_t)strtol(master, NULL, 10))
		_exit(1);
}

/* Title and arguments are copies afterwards: what host points to has been written over. */
static void set_title(struct host *host, char *argv[])
{
	ptrdiff_t form = host->argv - argv;
	char *title = host->title ? strdup(host->title) : NULL;
	char name[16];

	if (!title)
		return;
	title_set(&argv, title, "worker");
	host->argv = argv + form;
	host->title = title;
	/* comm has 15 bytes. */
	snprintf(name, sizeof(name), "%.8s worker", title);
	prctl(PR_SET_NAME, name);
}

/* ---- A module ---- */

/* up_worker_run() passes nothing on but the arguments. */
static bool has_module_fd;

/* Whether the path still names the file that the generation began with. */
static bool is_same_file(const char *path, int fd)
{
	struct stat a, b;

	return stat(path, &a) == 0 && fstat(fd, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino && a.st_size == b.st_size &&
	       a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

static void *load(const char *path, bool has_fd)
{
	char by_fd[32], real[PATH_MAX];
	const char *from = path;
	ssize_t len;

	if (has_fd && !is_same_file(path, MODULE_FD)) {
		/* Replaced since: this worker gets what the others of its generation have. */
		snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", MODULE_FD);
		from = by_fd;
		/* Where only a link has moved on, under its own name: libraries beside it are found
		 * by $ORIGIN. */
		len = readlink(by_fd, real, sizeof(real) - 1);
		real[len > 0 ? len : 0] = '\0';
		if (is_same_file(real, MODULE_FD))
			from = real;
	} else if (realpath(path, real)) {
		/* Not a link's name: $ORIGIN is where the file is. And with a slash, or dlopen(3)
		 * would search for it. */
		from = real;
	} else {
		boot_failed("%s: %s", path, strerror(errno));
	}
	return dlopen(from, RTLD_NOW | RTLD_LOCAL);
}

static int module_app(struct up_worker *worker)
{
	const char *path = up_worker_argv(worker)[0];
	void *module = load(path, has_module_fd);
	int (*app)(struct up_worker *) = NULL;

	if (has_module_fd)
		close(MODULE_FD);
	if (!module)
		boot_failed("can't load %s: %s", path, dlerror());
	*(void **)&app = dlsym(module, "up_app");
	if (!app)
		boot_failed("%s has no function up_app(): %s", path, dlerror());
	return app(worker);
}

/* ---- */

static int usage(void)
{
	fprintf(stderr, "usage: up-worker [--user U] [--group G] [--title T] [--module-fd 4] "
			"hello | module PATH [ARG…] | native COMMAND [ARG…]\n");
	return 2;
}

static int read_options(int argc, char *argv[], struct host *host)
{
	static const struct option options[] = {
		{ "user", required_argument, NULL, 'u' },
		{ "group", required_argument, NULL, 'g' },
		{ "title", required_argument, NULL, 't' },
		{ "module-fd", required_argument, NULL, 'm' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		if (c == 'u')
			host->user = optarg;
		else if (c == 'g')
			host->group = optarg;
		else if (c == 't')
			host->title = optarg;
		else if (c == 'm' && atoi(optarg) == MODULE_FD)
			host->has_module_fd = true;
		else
			return -EINVAL;
	}
	host->argc = argc - optind;
	host->argv = argv + optind;
	return host->argc > 0 ? 0 : -EINVAL;
}

static bool was_started_by_master(void)
{
	int type = 0;
	socklen_t len = sizeof(type);

	return getenv(WIRE_ENV_MASTER_PID) &&
	       getsockopt(WIRE_CONTROL_FD, SOL_SOCKET, SO_TYPE, &type, &len) == 0 &&
	       type == SOCK_SEQPACKET;
}

static int run_native(const struct host *host)
{
	execvp(host->argv[1], host->argv + 1);
	boot_failed("can't run %s: %s", host->argv[1], strerror(errno));
}

static int run(struct host *host, char *argv[])
{
	const char *form;

	if (strcmp(host->argv[0], "native") == 0 && host->argc > 1)
		return run_native(host);
	set_title(host, argv);
	form = host->argv[0];
	if (strcmp(form, "hello") == 0 && host->argc == 1)
		return up_worker_run(up_app, host->argc, host->argv);
	if (strcmp(form, "module") != 0 || host->argc < 2)
		return usage();
	has_module_fd = host->has_module_fd;
	return up_worker_run(module_app, host->argc - 1, host->argv + 1);
}

int main(int argc, char *argv[])
{
	static struct host host; /* its arguments live as long as the process */

	if (!was_started_by_master()) {
		fprintf(stderr, "up-worker: is started by up-master only\n");
		return 2;
	}
	if (read_options(argc, argv, &host) < 0)
		return usage();
	close_range(host.has_module_fd ? MODULE_FD + 1 : MODULE_FD, UINT_MAX, 0);
	raise_file_limit();
	drop_privileges(&host);
	tie_to_master();
	reset_signals();
	return run(&host, argv);
}
