/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/wire.h"
#include "master/config.h"
#include "master/expression.h"
#include "master/log.h"
#include "master/option.h"

#define ARGUMENTS_MAX 32

/* Of the last load(). */
static struct config *config;
static char *error;

/* The file that the cases write, in a directory of this run's. */
static char directory[] = "/tmp/test-config-XXXXXX";
static char path[64];

static int load_arguments(int argc, char *argv[])
{
	struct config *loaded = NULL;
	char *message = NULL;
	int r = config_load(argc, argv, &loaded, &message);

	config = config_unref(config);
	free(error);
	config = loaded;
	error = message;
	if (r == CONFIG_RUN || r == CONFIG_CHECK) {
		assert_non_null(config);
		assert_int_equal(config->n_references, 1);
	} else {
		assert_null(config);
	}
	assert_int_equal(r == -EINVAL, error != NULL);
	return r;
}

/* load("--queue", "3", NULL) */
static int load(const char *first, ...)
{
	char *argv[ARGUMENTS_MAX] = { (char *)"up-master" };
	const char *argument = first;
	int argc = 1;
	va_list args;

	va_start(args, first);
	for (; argument; argument = va_arg(args, const char *))
		argv[argc++] = (char *)argument;
	va_end(args);
	return load_arguments(argc, argv);
}

static void write_file(const char *text, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, len), len);
	close(fd);
}

static int load_text(const char *json)
{
	write_file(json, strlen(json));
	return load("-c", path, NULL);
}

static void expect_error_of(int r, const char *expected)
{
	assert_int_equal(r, -EINVAL);
	if (!strstr(error, expected))
		fail_msg("\"%s\" is not in \"%s\"", expected, error);
}

/* Name of the file, then :place, in front; why somewhere behind. */
static void expect_file_error(const char *json, const char *place, const char *why)
{
	char start[128];

	expect_error_of(load_text(json), why);
	snprintf(start, sizeof(start), "%s:%s", path, place);
	if (strncmp(error, start, strlen(start)) != 0)
		fail_msg("\"%s\" does not begin \"%s\"", error, start);
}

#define EXPECT_ERROR(expected, ...) expect_error_of(load(__VA_ARGS__, NULL), expected)
#define EXPECT_RUN(...) assert_int_equal(load(__VA_ARGS__, NULL), CONFIG_RUN)

static void expect_strings(const struct config_strings *strings, unsigned n, ...)
{
	va_list args;

	assert_int_equal(strings->n, n);
	va_start(args, n);
	for (unsigned i = 0; i < n; i++)
		assert_string_equal(strings->at[i], va_arg(args, const char *));
	va_end(args);
	if (n > 0)
		assert_null(strings->at[n]);
}

static unsigned count_cpus(void)
{
	cpu_set_t set;

	assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
	return (unsigned)CPU_COUNT(&set);
}

static void nothing_said_means_hello_and_the_defaults(void **state)
{
	unsigned cpus = count_cpus();

	(void)state;
	assert_int_equal(load(NULL), CONFIG_RUN);
	assert_int_equal(config->app_kind, CONFIG_APP_HELLO);
	assert_int_equal(config->app.n, 0);
	assert_false(config->native);
	assert_null(config->config_file);
	assert_int_equal(config->listen.n, 0);
	assert_int_equal(config->workers, cpus);
	assert_int_equal(config->threads, cpus < 4 ? cpus : 4);
	assert_int_equal(config->worker_timeout_ms, 600000);
	assert_int_equal(config->switch_when, CONFIG_SWITCH_FIRST);
	assert_int_equal(config->balance, CONFIG_BALANCE_ROUND_ROBIN);
	assert_int_equal(config->concurrency, 0);
	assert_int_equal(config->queue, 1024);
	assert_int_equal(config->queue_timeout_ms, 30000);
	assert_null(config->ready_path);
	assert_int_equal(config->ready_timeout_ms, 60000);
	assert_true(config->assume_ready);
	assert_true(config->respawn);
	assert_int_equal(config->min_lifetime_ms, 20000);
	assert_int_equal(config->max_requests, 0);
	assert_int_equal(config->hang_timeout_ms, 30000);
	assert_int_equal(config->request_timeout_ms, 0);
	assert_int_equal(config->body_timeout_ms, 60000);
	assert_int_equal(config->send_timeout_ms, 60000);
	assert_int_equal(config->header_timeout_ms, 10000);
	assert_int_equal(config->keepalive_timeout_ms, 75000);
	assert_int_equal(config->head_bytes_max, 64 * 1024);
	assert_int_equal(config->connections_max, 0);
	assert_int_equal(config->backlog, 4096);
	assert_null(config->control);
	assert_int_equal(config->log_level, LOG_LEVEL_INFO);
	assert_null(config->user);
	assert_null(config->group);
	assert_null(config->chdir);
	assert_int_equal(config->env.n, 0);
	assert_null(config->pidfile);
	assert_string_equal(config->title, "up");
	assert_int_equal(config->stop_timeout_ms, 30000);
}

static void development_changes_two_defaults_and_no_more(void **state)
{
	(void)state;
	setenv("NODE_ENV", "development", 1);
	assert_int_equal(load(NULL), CONFIG_RUN);
	assert_int_equal(config->workers, 1);
	assert_int_equal(config->worker_timeout_ms, 500);
	assert_int_equal(config->ready_timeout_ms, 60000);
	EXPECT_RUN("-n", "3", "-t", "7s");
	assert_int_equal(config->workers, 3);
	assert_int_equal(config->worker_timeout_ms, 7000);
	setenv("NODE_ENV", "production", 1);
	assert_int_equal(load(NULL), CONFIG_RUN);
	assert_int_equal(config->worker_timeout_ms, 600000);
	unsetenv("NODE_ENV");
}

static void values_may_stand_apart_or_attached(void **state)
{
	(void)state;
	EXPECT_RUN("--queue=5", "--concurrency", "6", "-n7", "-t", "8", "-fpid", "-T", "web",
		"--balance=least-busy", "--switch", "all", "--log-level=debug");
	assert_int_equal(config->queue, 5);
	assert_int_equal(config->concurrency, 6);
	assert_int_equal(config->workers, 7);
	assert_int_equal(config->worker_timeout_ms, 8);
	assert_string_equal(config->pidfile, "pid");
	assert_string_equal(config->title, "web");
	assert_int_equal(config->balance, CONFIG_BALANCE_LEAST_BUSY);
	assert_int_equal(config->switch_when, CONFIG_SWITCH_ALL);
	assert_int_equal(config->log_level, LOG_LEVEL_DEBUG);
	EXPECT_RUN("--queue=5", "--queue=9");
	assert_int_equal(config->queue, 9);
}

static void expect_respawn(bool expected, const char *a, const char *b)
{
	assert_int_equal(load(a, b, NULL), CONFIG_RUN);
	assert_int_equal(config->respawn, expected);
	assert_int_equal(config->app.n, b && strcmp(b, "x.so") == 0);
}

static void booleans_take_a_value_where_there_is_one(void **state)
{
	static const char *const words[] = { "true", "false", "yes", "no", "on", "off", "1", "0" };

	(void)state;
	for (int i = 0; i < 8; i++) {
		char attached[32], letter[32];

		snprintf(attached, sizeof(attached), "--respawn=%s", words[i]);
		snprintf(letter, sizeof(letter), "-k%s", words[i]);
		expect_respawn(i % 2 == 0, "--respawn", words[i]);
		expect_respawn(i % 2 == 0, attached, NULL);
		expect_respawn(i % 2 == 0, letter, NULL);
		expect_respawn(i % 2 == 0, "-k", words[i]);
	}
	expect_respawn(true, "--respawn", NULL);
	expect_respawn(true, "-k", "x.so");
	EXPECT_ERROR("--respawn: \"maybe\" is not one of true, false", "--respawn=maybe");
	EXPECT_ERROR("--assume-ready: \"\" is not one of", "--assume-ready=");
}

static void durations_and_sizes_have_units(void **state)
{
	(void)state;
	EXPECT_RUN("-t", "250ms", "--queue-timeout", "3s", "--ready-timeout", "4m",
		"--stop-timeout", "5h", "--header-timeout", "1.5s", "--hang-timeout", "0",
		"--max-head", "1k");
	assert_int_equal(config->worker_timeout_ms, 250);
	assert_int_equal(config->queue_timeout_ms, 3000);
	assert_int_equal(config->ready_timeout_ms, 240000);
	assert_int_equal(config->stop_timeout_ms, 18000000);
	assert_int_equal(config->header_timeout_ms, 1500);
	assert_int_equal(config->hang_timeout_ms, 0);
	assert_int_equal(config->head_bytes_max, 1024);
	EXPECT_RUN("--max-head", "4096");
	assert_int_equal(config->head_bytes_max, 4096);
	EXPECT_RUN("--max-head", "128K");
	assert_int_equal(config->head_bytes_max, 131072);
}

static void odd_numbers_are_refused(void **state)
{
	static const char *const bad[] = { "", "s", "1d", "10 s", " 10", "+1", "1e3", "0x10", "1.",
		".5", "1s2", "--5", "ten" };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		EXPECT_ERROR("is not a duration such as", "--queue-timeout", bad[i]);
		EXPECT_ERROR("is not a size such as", "--max-head", bad[i]);
		EXPECT_ERROR("is not a whole number", "--queue", bad[i]);
	}
	EXPECT_ERROR("--queue: \"1.5\" is not a whole number", "--queue", "1.5");
	EXPECT_ERROR("\"1.5ms\" is not a whole number of milliseconds", "-t", "1.5ms");
	EXPECT_ERROR("\"1.0001k\" is not a whole number of bytes", "--max-head", "1.0001k");
}

static void a_range_is_named_by_who_leaves_it(void **state)
{
	(void)state;
	EXPECT_ERROR("--port: 65536 is out of range: 0 to 65535", "-p", "65536");
	EXPECT_ERROR("--port: -1 is out of range: 0 to 65535", "-p", "-1");
	EXPECT_ERROR("--max-head: 1023 is out of range: 1k to 128k", "--max-head", "1023");
	EXPECT_ERROR("--max-head: 129k is out of range: 1k to 128k", "--max-head", "129k");
	EXPECT_ERROR("--backlog: 0 is out of range: 1 to 65535", "--backlog", "0");
	EXPECT_ERROR("--threads: 65 is out of range: 1 to 64", "--threads", "65");
	EXPECT_ERROR("--threads: 0 is out of range: 1 to 64", "--threads", "0");
	EXPECT_ERROR("--workers: 0 is out of range: 1 to 1024", "-n", "0");
	EXPECT_ERROR("--workers: 1025 is out of range: 1 to 1024", "-n", "1025");
	EXPECT_ERROR(
		"--stop-timeout: 8761h is out of range: 0 to 8760h", "--stop-timeout", "8761h");
	EXPECT_ERROR("99999999999999999999 is out of range", "--queue", "99999999999999999999");
	EXPECT_ERROR("5124095576031h is out of range", "-t", "5124095576031h");
	EXPECT_RUN("--max-head", "128k", "--threads", "64", "-n", "1024", "-t", "8760h");
}

static void expect_result(const char *text, double expected)
{
	struct expression_result result;
	struct expression_error why;

	if (expression_evaluate(text, 6, &result, &why) < 0)
		fail_msg("\"%s\", %zu: %s", text, why.position, why.what);
	assert_true(result.value > expected - 1e-9 && result.value < expected + 1e-9);
}

static void expect_position(const char *text, size_t position)
{
	struct expression_result result;
	struct expression_error why;

	assert_int_equal(expression_evaluate(text, 6, &result, &why), -EINVAL);
	if (why.position != position)
		fail_msg("\"%s\": %zu, not %zu: %s", text, why.position, position, why.what);
}

static void expressions_follow_the_rules_of_arithmetic(void **state)
{
	(void)state;
	expect_result("cpus", 6);
	expect_result(" cpus+2 ", 8);
	expect_result("cpus / 4", 1.5);
	expect_result("1 + 2 * 3 - 4 / 2", 5);
	expect_result("(1 + 2) * 3", 9);
	expect_result("8 / 2 / 2", 2);
	expect_result("10 - 3 - 2", 5);
	expect_result("-cpus + 10", 4);
	expect_result("round(cpus * 1.25)", 8);
	expect_result("floor(2.9) + ceil(.1)", 3);
	expect_result("min(cpus, 4, 5)", 4);
	expect_result("max(1, min(cpus, 4), 5)", 5);
	expect_result("max(2)", 2);
	/* Long is not deep. */
	expect_result("1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+1-1+(1)", 1);
}

static void expressions_name_the_position_of_a_fault(void **state)
{
	char deep[512];

	(void)state;
	expect_position("", 1);
	expect_position("cpus +", 7);
	expect_position("cpus 2", 6);
	expect_position("2 * (3 + 4", 11);
	expect_position("cpu", 1);
	expect_position("1 + cpuses", 5);
	expect_position("round 2", 7);
	expect_position("round(1, 2)", 8);
	expect_position("min(1 2)", 7);
	expect_position("1 / (cpus - 6)", 3);
	expect_position("1 / 0", 3);
	expect_position("2 ** 3", 4);
	expect_position("1e3", 2);
	expect_position("1..2", 3);
	expect_position(".", 1);
	expect_position("2)", 2);
	memset(deep, '(', sizeof(deep) - 1);
	deep[sizeof(deep) - 1] = '\0';
	expect_position(deep, 33);
	memset(deep, '9', sizeof(deep) - 1); /* more than a double holds */
	expect_position(deep, 1);
	expect_result("99999999999999999999 / 99999999999999999999", 1);
	EXPECT_ERROR("--workers: \"cpus +\", position 7: expected a number", "-n", "cpus +");
}

static void workers_are_rounded_down_and_at_least_one(void **state)
{
	unsigned cpus = count_cpus();

	(void)state;
	EXPECT_RUN("-n", "cpus + 2");
	assert_int_equal(config->workers, cpus + 2);
	EXPECT_RUN("-n", "3.9");
	assert_int_equal(config->workers, 3);
	EXPECT_RUN("-n", "100 * 0.29");
	assert_int_equal(config->workers, 29);
	EXPECT_RUN("-n", "cpus / 1000");
	assert_int_equal(config->workers, 1);
	EXPECT_RUN("-n", "cpus - 1000");
	assert_int_equal(config->workers, 1);
	EXPECT_ERROR("-2 is out of range: 1 to 1024", "-n", "-2");
	EXPECT_ERROR("is out of range: 1 to 1024", "-n", "cpus * 100000000000");
	assert_int_equal(load_text("{\"workers\": \"cpus * 2\", \"threads\": 2}"), CONFIG_RUN);
	assert_int_equal(config->workers, 2 * cpus);
	assert_int_equal(config->threads, 2);
	assert_int_equal(load_text("{\"workers\": 2.5}"), CONFIG_RUN);
	assert_int_equal(config->workers, 2);
	expect_file_error("{\"workers\": 0}", "1: \"workers\"", "0 is out of range: 1 to 1024");
	expect_file_error("{\"workers\": \"cpus *\"}", "1: \"workers\"", "position 7: expected");
}

static void ports_and_addresses_make_one_list(void **state)
{
	(void)state;
	EXPECT_RUN("-p", "80", "-l", "localhost:81", "--listen=[::1]:82", "--port=0", "-l",
		"unix:/run/x.sock");
	expect_strings(
		&config->listen, 5, ":80", "localhost:81", "[::1]:82", ":0", "unix:/run/x.sock");
	assert_int_equal(
		load_text("{\"port\": [80, 81], \"listen\": \"127.0.0.1:1\"}"), CONFIG_RUN);
	expect_strings(&config->listen, 3, ":80", ":81", "127.0.0.1:1");
	EXPECT_RUN("-c", path, "-p", "9");
	expect_strings(&config->listen, 1, ":9");
	EXPECT_RUN("-l", "a:1", "-c", path, "-p", "9", "--listen", "b:2");
	expect_strings(&config->listen, 3, "a:1", ":9", "b:2");
}

static void addresses_are_checked(void **state)
{
	static const char *const good[] = { ":0", ":65535", "0.0.0.0:80", "example.org:80",
		"a_b-c:1", "[::]:80", "[fe80::1%eth0]:80", "[::ffff:1.2.3.4]:1", "unix:a",
		"unix:/a:b" };
	static const char *const bad[] = { "", "80", "localhost", ":", ":x", ":65536", ":-1", ":+1",
		": 80", ":99999999999999999999", "::1:80", "[::1]", "[::1", "[::1]80", "[]:80",
		"[localhost]:80", "[fe80::1%]:80", "1.2.3:80", "1.2.3.400:80", "a b:80", "*:80",
		"http://a:80", "-a:80", "unix:" };
	char long_path[200];

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		EXPECT_RUN("--listen", good[i]);
		expect_strings(&config->listen, 1, good[i]);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		EXPECT_ERROR("--listen: ", "--listen", bad[i]);
	EXPECT_ERROR("an IPv6 address goes in brackets", "-l", "::1:80");
	/* The longest that sun_path holds with its NUL, and one more. */
	snprintf(long_path, sizeof(long_path), "unix:%0107d", 0);
	EXPECT_RUN("-l", long_path);
	EXPECT_RUN("--control", long_path + 5);
	snprintf(long_path, sizeof(long_path), "unix:%0108d", 0);
	EXPECT_ERROR("is too long for a UNIX socket: 108 bytes, at most 107", "-l", long_path);
	EXPECT_ERROR("--control: ", "--control", long_path + 5);
}

static void the_application_is_what_follows_the_options(void **state)
{
	(void)state;
	EXPECT_RUN("-n", "1", "./app.so", "-p", "80", "--", "--help");
	assert_int_equal(config->app_kind, CONFIG_APP_MODULE);
	expect_strings(&config->app, 5, "./app.so", "-p", "80", "--", "--help");
	assert_int_equal(config->listen.n, 0);
	EXPECT_RUN("app.so");
	expect_strings(&config->app, 1, "./app.so");
	EXPECT_RUN("--native", "--", "true", "--help");
	assert_int_equal(config->app_kind, CONFIG_APP_NATIVE);
	assert_true(config->native);
	expect_strings(&config->app, 2, "true", "--help");
	EXPECT_RUN("--native", "true");
	expect_strings(&config->app, 1, "true");
	EXPECT_RUN("--native", "--", "app.so");
	expect_strings(&config->app, 1, "app.so");
	assert_int_equal(config->app_kind, CONFIG_APP_NATIVE);
}

static void what_this_version_does_not_serve_is_refused(void **state)
{
	static const char serves[] = "this version serves C modules (NAME.so) and native programs";

	(void)state;
	EXPECT_ERROR("\"server.js\" is a Node module", "server.js");
	EXPECT_ERROR("\"server.cjs\" is a Node module", "server.cjs");
	EXPECT_ERROR(serves, "./server.mjs");
	EXPECT_ERROR(serves, "--", "node", "server.js");
	EXPECT_ERROR(serves, "--", "app.so");
	EXPECT_ERROR(serves, "--native=false", "--", "node");
	EXPECT_ERROR(serves, "node");
	EXPECT_ERROR(serves, ".so");
	EXPECT_ERROR(serves, "-");
	EXPECT_ERROR("name is empty", "");
	EXPECT_ERROR("--native: no command is named", "--native");
	EXPECT_ERROR("--: no command is named", "--");
	EXPECT_ERROR("see up-master --help", "server.js");
	expect_file_error("{\n\n\"app\": [\"server.js\"]}", "3: \"app\"", serves);
	expect_file_error("{\"app\": \"server.js\"}", "1: \"app\"", "is a Node module");
	expect_file_error("{\"app\": [\"\"]}", "1: \"app\"", "name is empty");
	expect_file_error("{\n\"native\": true}", "2: \"native\"", "no command is named");
}

static void options_of_later_versions_are_unknown(void **state)
{
	static const char *const later[] = { "--sticky", "--proxy-protocol", "--access-log",
		"--log-format", "--watch", "--require", "--use", "--trust-forwarded", "-w", "-r" };

	(void)state;
	for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++)
		EXPECT_ERROR("unknown option", later[i]);
}

static void the_command_lines_application_replaces_the_files(void **state)
{
	(void)state;
	assert_int_equal(load_text("{\"app\": [\"prog\", \"a\"], \"native\": true}"), CONFIG_RUN);
	assert_int_equal(config->app_kind, CONFIG_APP_NATIVE);
	expect_strings(&config->app, 2, "prog", "a");
	EXPECT_RUN("-c", path, "/x/app.so", "b");
	assert_int_equal(config->app_kind, CONFIG_APP_MODULE);
	assert_false(config->native);
	expect_strings(&config->app, 2, "/x/app.so", "b");
	assert_int_equal(load_text("{\"app\": \"app.so\"}"), CONFIG_RUN);
	assert_int_equal(config->app_kind, CONFIG_APP_MODULE);
	expect_strings(&config->app, 1, "./app.so");
	assert_int_equal(load_text("{\"app\": []}"), CONFIG_RUN);
	assert_int_equal(config->app_kind, CONFIG_APP_HELLO);
}

static void the_command_line_wins_key_by_key(void **state)
{
	(void)state;
	load_text(
		"{\"queue\": 1, \"concurrency\": 2, \"env\": [\"A=1\", \"B=2\"], \"title\": \"t\","
		" \"worker_timeout\": \"3s\", \"max_head\": \"2k\", \"respawn\": false}");
	EXPECT_RUN("-c", path);
	assert_string_equal(config->config_file, path);
	assert_int_equal(config->queue, 1);
	assert_int_equal(config->concurrency, 2);
	expect_strings(&config->env, 2, "A=1", "B=2");
	assert_int_equal(config->worker_timeout_ms, 3000);
	assert_int_equal(config->head_bytes_max, 2048);
	assert_false(config->respawn);
	EXPECT_RUN("--queue", "7", "-c", path, "--env", "C=3", "-k", "-t4", "--env=D=", "-T", "u");
	assert_int_equal(config->queue, 7);
	assert_int_equal(config->concurrency, 2);
	expect_strings(&config->env, 2, "C=3", "D=");
	assert_int_equal(config->worker_timeout_ms, 4);
	assert_true(config->respawn);
	assert_string_equal(config->title, "u");
}

static void texts_are_checked(void **state)
{
	(void)state;
	EXPECT_RUN("--env", "A==b c", "--ready-path", "/a?b=%20", "--chdir", "/", "--user", "u");
	expect_strings(&config->env, 1, "A==b c");
	EXPECT_ERROR("--env: \"A\" has no =", "--env", "A");
	EXPECT_ERROR("--env: \"=b\" has no name", "--env", "=b");
	EXPECT_ERROR("--ready-path: \"a\" does not begin with a slash", "--ready-path", "a");
	EXPECT_ERROR("must be written as %20", "--ready-path", "/a b");
	EXPECT_ERROR("must be written as %0D", "--ready-path", "/a\r\nb");
	EXPECT_ERROR("--pidfile: may not be empty", "-f", "");
	EXPECT_ERROR("--user: may not be empty", "--user=");
	EXPECT_ERROR("--title: may not be empty", "-T", "");
	EXPECT_ERROR("--config: may not be empty", "--config=");
	EXPECT_ERROR("--log-level: \"warn\" is not known: expected error, warning, notice, info or "
		     "debug",
		"--log-level", "warn");
	EXPECT_ERROR("--switch: \"last\" is not known: expected first or all", "--switch", "last");
	EXPECT_ERROR("expected round-robin or least-busy", "--balance", "random");
}

static void usage_errors_name_the_option_and_the_help(void **state)
{
	(void)state;
	EXPECT_ERROR("--que: unknown option", "--que");
	EXPECT_ERROR("--workerz: unknown option; did you mean --workers? see up-master --help",
		"--workerz=3");
	EXPECT_ERROR("--worker_timeout: unknown option; did you mean --worker-timeout?",
		"--worker_timeout=3");
	EXPECT_ERROR("-z: unknown option; see up-master --help", "-zoo");
	EXPECT_ERROR("--frobnicate: unknown option; see up-master --help", "--frobnicate");
	EXPECT_ERROR("--queue: needs a value; see up-master --help", "--queue");
	EXPECT_ERROR("--workers: needs a value", "-n");
	EXPECT_ERROR("--help: takes no value", "--help=me");
	EXPECT_ERROR("--check-config: takes no value", "--check-config=1");
	EXPECT_ERROR("--app: unknown option", "--app=x");
}

static void a_file_that_is_no_json_is_refused_with_line_and_column(void **state)
{
	(void)state;
	expect_file_error("{\n  \"queue\": 1,\n  oops\n}", "3:", "");
	expect_file_error("{\n\"queue\": 1,\n \"queue\": 2}", "3:", "duplicate");
	expect_file_error("{\"queue\": 1, \"\\u0071ueue\": 2}", "1:", "duplicate");
	expect_file_error("", "1:1: ", "");
	expect_file_error("[1]", "1:1: ", "expected an object");
	expect_file_error("\n\n  [1]", "3:3: ", "expected an object");
	expect_file_error("3", "1:", "");
	expect_file_error("{} {}", "1:", "");
	expect_file_error("{\"queue\": 99999999999999999999}", "1:", "");
	expect_file_error("{\"title\": \"a\\u0000b\"}", "1:", "");
	expect_file_error("{\"title\": \"\xff\"}", "1:", "");
}

static void a_file_that_cannot_be_read_is_refused_by_name(void **state)
{
	char fifo[80];

	(void)state;
	EXPECT_ERROR("/nonexistent/x.json: No such file or directory", "-c", "/nonexistent/x.json");
	EXPECT_ERROR(": Is a directory", "-c", directory);
	EXPECT_ERROR("/dev/null: not a regular file", "-c", "/dev/null");
	/* Nobody writes into it: an open that waited would wait for ever. */
	snprintf(fifo, sizeof(fifo), "%s/fifo", directory);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	EXPECT_ERROR("not a regular file", "-c", fifo);
	unlink(fifo);
	write_file("{}", 2);
	assert_int_equal(truncate(path, 2 * 1024 * 1024), 0);
	EXPECT_ERROR("File too large", "-c", path);
}

static void a_bad_key_is_refused_with_its_line(void **state)
{
	(void)state;
	expect_file_error("{\"queue\": 1,\n\"workrs\": 1}",
		"2: \"workrs\": ", "unknown key; did you mean \"workers\"?");
	expect_file_error("{\"worker-timeout\": 1}", "1: ", "did you mean \"worker_timeout\"?");
	expect_file_error("{\"frobnicate\": 1}", "1: \"frobnicate\": unknown key", "");
	expect_file_error("{\"sticky\": \"ip\"}", "1: \"sticky\": unknown key", "");
	expect_file_error("{\"config\": \"x\"}", "1: \"config\": unknown key", "");
	expect_file_error("{\"check_config\": true}", "1: ", "unknown key");
	expect_file_error("{\"help\": true}", "1: ", "unknown key");
	expect_file_error("{\"\": true}", "1: \"\": unknown key", "");
	/* The same word elsewhere: as a value, in an array, behind an escaped quote. */
	expect_file_error("{\n\"title\":\n\"queue\",\n\"env\": [\"queue=1\", \"a=\\\"\\\\\"],\n"
			  "\"app\": [\"x.so\",\n\"queue\", \"queue\"],\n"
			  "\"pidfile\": \"queue\",\n\t\"queue\" :\n-1}",
		"8: \"queue\": ", "-1 is out of range: 0 to 10000000");
	/* Written with an escape; within a nested object first. */
	expect_file_error(
		"{\n\"qu\\u0065ue\": true}", "2: \"queue\": ", "expected an integer, not true");
	expect_file_error("{\"env\": [],\n\n\"x\": {\"x\": 1}}", "3: \"x\": ", "unknown key");
}

static void a_wrong_type_is_refused(void **state)
{
	static const struct {
		const char *json, *why;
	} cases[] = {
		{ "{\"queue\": \"3\"}", "expected an integer, not a string" },
		{ "{\"queue\": 3.0}", "expected an integer, not a fraction" },
		{ "{\"queue\": null}", "expected an integer, not null" },
		{ "{\"queue\": [3]}", "expected an integer, not an array" },
		{ "{\"port\": \"80\"}", "expected an integer, not a string" },
		{ "{\"port\": [80, \"x\"]}", "expected an integer, not a string" },
		{ "{\"port\": 65536}", "65536 is out of range: 0 to 65535" },
		{ "{\"respawn\": 1}", "expected true or false, not an integer" },
		{ "{\"respawn\": \"true\"}", "expected true or false, not a string" },
		{ "{\"native\": null}", "expected true or false, not null" },
		{ "{\"worker_timeout\": 1.5}", "expected a whole number of milliseconds" },
		{ "{\"worker_timeout\": \"soon\"}", "\"soon\" is not a duration" },
		{ "{\"max_head\": 1000}", "1000 is out of range: 1k to 128k" },
		{ "{\"max_head\": {}}", "expected a whole number of bytes" },
		{ "{\"workers\": true}", "expected a number, or an expression" },
		{ "{\"title\": null}", "expected a string, not null" },
		{ "{\"title\": [\"a\"]}", "expected a string, not an array" },
		{ "{\"switch\": \"none\"}", "expected first or all" },
		{ "{\"switch\": 1}", "expected a string, not an integer" },
		{ "{\"listen\": 80}", "expected a string, not an integer" },
		{ "{\"listen\": [\":1\", \"x\"]}", "\"x\" is none of HOST:PORT" },
		{ "{\"listen\": [null]}", "expected a string, not null" },
		{ "{\"env\": {\"A\": \"b\"}}", "expected a string, not an object" },
		{ "{\"env\": [\"A\"]}", "has no =" },
		{ "{\"app\": [1]}", "expected a string, not an integer" },
		{ "{\"app\": true}", "expected a string, not true" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		expect_file_error(cases[i].json, "1: \"", cases[i].why);
}

static void null_means_unset(void **state)
{
	(void)state;
	assert_int_equal(load_text("{\"pidfile\": null, \"control\": null, \"ready_path\": null,"
				   "\"listen\": null, \"app\": null, \"env\": null}"),
		CONFIG_RUN);
	assert_null(config->pidfile);
	assert_int_equal(config->listen.n, 0);
}

/* What --check-config prints for these arguments, read back, is printed the same. */
static void expect_round_trip(const char *const *arguments)
{
	char *argv[ARGUMENTS_MAX] = { (char *)"up-master", (char *)"--check-config" };
	char *first, *second;
	json_t *dump;
	int argc = 2;

	while (*arguments)
		argv[argc++] = (char *)*arguments++;
	assert_int_equal(load_arguments(argc, argv), CONFIG_CHECK);
	dump = config_dump(config);
	first = json_dumps(dump, JSON_INDENT(2));
	json_decref(dump);
	assert_non_null(first);
	assert_int_equal(load_text(first), CONFIG_RUN);
	dump = config_dump(config);
	second = json_dumps(dump, JSON_INDENT(2));
	json_decref(dump);
	assert_string_equal(first, second);
	free(first);
	free(second);
}

static void a_dump_can_be_read_back(void **state)
{
	static const char *const none[] = { NULL };
	static const char *const module[] = { "-p", "1", "-l", "unix:/x", "-n", "cpus*3", "-t",
		"1.5s", "--env", "A=\xc3\xa4", "--pidfile", "/p\"\\", "--respawn", "off",
		"--max-head=9k", "--log-level", "debug", "--switch=all", "--ready-path=/r",
		"app.so", "", "-x", NULL };
	static const char *const native[] = { "--native", "--user", "u", "--group", "g", "--", "p",
		NULL };

	(void)state;
	expect_round_trip(none);
	expect_round_trip(module);
	assert_int_equal(config->worker_timeout_ms, 1500);
	expect_strings(&config->app, 3, "./app.so", "", "-x");
	expect_round_trip(native);
	assert_int_equal(config->app_kind, CONFIG_APP_NATIVE);
	setenv("NODE_ENV", "development", 1);
	expect_round_trip(none);
	unsetenv("NODE_ENV");
}

static void a_dump_has_every_key_in_units_of_the_file(void **state)
{
	size_t n = 0;
	json_t *dump;

	(void)state;
	EXPECT_RUN("-p", "1", "-t", "10m", "--title", "\xff");
	dump = config_dump(config);
	assert_non_null(dump);
	for (const struct option *o = option_first(); o; o = option_next(o)) {
		char *key = option_key(o);
		bool expected = o->place != OPTION_COMMAND_LINE && strcmp(key, "port") != 0;

		assert_int_equal(json_object_get(dump, key) != NULL, expected);
		n += expected;
		free(key);
	}
	assert_int_equal(json_object_size(dump), n);
	assert_int_equal(json_integer_value(json_object_get(dump, "worker_timeout")), 600000);
	assert_int_equal(json_integer_value(json_object_get(dump, "max_head")), 65536);
	assert_string_equal(json_string_value(json_object_get(dump, "switch")), "first");
	assert_true(json_is_null(json_object_get(dump, "pidfile")));
	assert_int_equal(json_array_size(json_object_get(dump, "listen")), 1);
	/* Not UTF-8, so not to be told in JSON. */
	assert_string_equal(json_string_value(json_object_get(dump, "title")), "?");
	json_decref(dump);
}

/* What config_load() prints on standard output, on the heap. */
static char *capture(const char *argument)
{
	char *text = calloc(1, 65536);
	int saved, fd, r;

	fflush(stdout);
	saved = dup(STDOUT_FILENO);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	dup2(fd, STDOUT_FILENO);
	r = load(argument, "--this-is-not-read", NULL);
	dup2(saved, STDOUT_FILENO);
	close(saved);
	assert_true(pread(fd, text, 65535, 0) > 0);
	close(fd);
	assert_int_equal(r, CONFIG_EXIT);
	return text;
}

static void help_names_every_option_within_80_columns(void **state)
{
	char *help = capture("--help"), *again = capture("-h");

	(void)state;
	assert_string_equal(help, again);
	for (const struct option *o = option_first(); o; o = option_next(o)) {
		char name[64];

		snprintf(name, sizeof(name), " --%s%s", o->name, o->argument ? " " : "");
		assert_int_equal(strstr(help, name) != NULL, o->place != OPTION_FILE);
		if (o->place != OPTION_FILE)
			assert_true(o->help && *o->help);
	}
	assert_non_null(strstr(help, "(default 3000)"));
	assert_non_null(strstr(help, "(default min(cpus, 4))"));
	for (char *line = strtok(help, "\n"); line; line = strtok(NULL, "\n"))
		assert_in_range(strlen(line), 1, 80);
	free(help);
	free(again);
}

static void version_is_one_line(void **state)
{
	char *version = capture("--version"), *again = capture("-V");

	(void)state;
	assert_string_equal(version, "up-master " UP_VERSION "\n");
	assert_string_equal(version, again);
	free(version);
	free(again);
}

static void a_configuration_lives_as_long_as_its_references(void **state)
{
	struct config *held;

	(void)state;
	EXPECT_RUN("--env", "A=1");
	held = config_ref(config);
	assert_ptr_equal(held, config);
	assert_null(config_unref(config));
	expect_strings(&held->env, 1, "A=1");
	assert_null(config_unref(NULL));
	/* The last one is dropped by the next load. */
}

static void every_default_can_be_set_as_told(void **state)
{
	(void)state;
	for (const struct option *o = option_first(); o; o = option_next(o)) {
		char argument[128];

		if (!o->preset)
			continue;
		snprintf(argument, sizeof(argument), "--%s=%s", o->name, o->preset);
		EXPECT_RUN(argument);
	}
}

static int set_up(void **state)
{
	(void)state;
	unsetenv("NODE_ENV");
	if (!mkdtemp(directory))
		return -1;
	snprintf(path, sizeof(path), "%s/up.json", directory);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	config = config_unref(config);
	free(error);
	unlink(path);
	return rmdir(directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_said_means_hello_and_the_defaults),
		cmocka_unit_test(development_changes_two_defaults_and_no_more),
		cmocka_unit_test(values_may_stand_apart_or_attached),
		cmocka_unit_test(booleans_take_a_value_where_there_is_one),
		cmocka_unit_test(durations_and_sizes_have_units),
		cmocka_unit_test(odd_numbers_are_refused),
		cmocka_unit_test(a_range_is_named_by_who_leaves_it),
		cmocka_unit_test(expressions_follow_the_rules_of_arithmetic),
		cmocka_unit_test(expressions_name_the_position_of_a_fault),
		cmocka_unit_test(workers_are_rounded_down_and_at_least_one),
		cmocka_unit_test(ports_and_addresses_make_one_list),
		cmocka_unit_test(addresses_are_checked),
		cmocka_unit_test(the_application_is_what_follows_the_options),
		cmocka_unit_test(what_this_version_does_not_serve_is_refused),
		cmocka_unit_test(options_of_later_versions_are_unknown),
		cmocka_unit_test(the_command_lines_application_replaces_the_files),
		cmocka_unit_test(the_command_line_wins_key_by_key),
		cmocka_unit_test(texts_are_checked),
		cmocka_unit_test(usage_errors_name_the_option_and_the_help),
		cmocka_unit_test(a_file_that_is_no_json_is_refused_with_line_and_column),
		cmocka_unit_test(a_file_that_cannot_be_read_is_refused_by_name),
		cmocka_unit_test(a_bad_key_is_refused_with_its_line),
		cmocka_unit_test(a_wrong_type_is_refused),
		cmocka_unit_test(null_means_unset),
		cmocka_unit_test(a_dump_can_be_read_back),
		cmocka_unit_test(a_dump_has_every_key_in_units_of_the_file),
		cmocka_unit_test(help_names_every_option_within_80_columns),
		cmocka_unit_test(version_is_one_line),
		cmocka_unit_test(a_configuration_lives_as_long_as_its_references),
		cmocka_unit_test(every_default_can_be_set_as_told),
	};

	return cmocka_run_group_tests_name("config", tests, set_up, tear_down);
}
