/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Log: lines to standard error that never make the caller wait.
 *
 * A line goes into a bounded ring; one writer thread takes it out and writes. Where the ring is
 * full the line is dropped and counted, and the count is written as a line when there is room
 * again. Under systemd (JOURNAL_STREAM names standard error) each line begins with <N>, see
 * sd-daemon(3); a passed-on line does where it goes to the journal. Lines of ours read "warning:
 * worker 3 …": the level, then the text, without a time, which whoever keeps the log adds. Any
 * thread may log. The log is the one thing of the process that is global.
 */
#include <stdarg.h>
#include <stddef.h>

enum log_level {
	LOG_LEVEL_ERROR,   /* act */
	LOG_LEVEL_WARNING, /* look */
	LOG_LEVEL_NOTICE,  /* a reload, a start, a stop */
	LOG_LEVEL_INFO,	   /* the life of processes */
	LOG_LEVEL_DEBUG,   /* per request */
};

/*
 * Starts the writer. Until then, and after log_stop(), lines are written by the caller. Returns 0
 * or -errno. The process ignores SIGPIPE, or a log whose reader has left ends it.
 */
int log_start(void);
/* Writes what is left, waiting at most 2 s for a reader that does not read. Ends the writer. */
void log_stop(void);
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

#define LOG_PRINTF(n) __attribute__((format(printf, n, n + 1)))
void log_error(const char *fmt, ...) LOG_PRINTF(1);
void log_warn(const char *fmt, ...) LOG_PRINTF(1);
void log_notice(const char *fmt, ...) LOG_PRINTF(1);
void log_info(const char *fmt, ...) LOG_PRINTF(1);
void log_debug(const char *fmt, ...) LOG_PRINTF(1);

/*
 * Passes on one line that a worker wrote, with a prefix of ours, whatever the level. bytes, which
 * hold no line end, are escaped as by log_escape(); of more than 64 KiB the rest is cut off. fd:
 * STDOUT_FILENO or STDERR_FILENO, where it goes to.
 */
void log_forward(int fd, const char *prefix, const char *bytes, size_t len);

/*
 * Escapes untrusted bytes for a line of the log into buf, always terminated, cut off with "..."
 * where there is no room. Control bytes but the tab, and what is not UTF-8, become \xNN. Returns
 * buf.
 */
const char *log_escape(char *buf, size_t room, const char *bytes, size_t len);
