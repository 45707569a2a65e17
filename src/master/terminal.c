/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/terminal.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/list.h"

#define CTRL_R 0x12

/* A background process that touches the terminal gets SIGTTIN or SIGTTOU, which scale the fleet. */
static bool in_foreground(void)
{
	return tcgetpgrp(STDIN_FILENO) == getpgrp();
}

static void let_go(struct terminal *terminal)
{
	ev_io_stop(terminal->loop, &terminal->watcher);
	if (terminal->changed && in_foreground())
		tcsetattr(STDIN_FILENO, TCSANOW, &terminal->before);
	terminal->changed = false;
}

static void read_cb(struct ev_loop *loop, ev_io *watcher, int events)
{
	struct terminal *terminal = container_of(watcher, struct terminal, watcher);
	char keys[64];
	ssize_t n;

	(void)loop, (void)events;
	if (!in_foreground()) {
		let_go(terminal);
		return;
	}
	n = read(STDIN_FILENO, keys, sizeof(keys));
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		ev_io_stop(terminal->loop, &terminal->watcher);
		return;
	}
	for (ssize_t i = 0; i < n; i++)
		if (keys[i] == CTRL_R)
			terminal->on_reload(terminal->data);
}

void terminal_resume(struct terminal *terminal)
{
	struct termios modes;

	if (!terminal->is_one || terminal->changed || !in_foreground() ||
		tcgetattr(STDIN_FILENO, &terminal->before) < 0)
		return;
	modes = terminal->before;
	/* ISIG stays: Ctrl+C and Ctrl+Z are the terminal's business. */
	modes.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	modes.c_cc[VMIN] = 1;
	modes.c_cc[VTIME] = 0;
	if (tcsetattr(STDIN_FILENO, TCSANOW, &modes) < 0)
		return;
	terminal->changed = true;
	ev_io_start(terminal->loop, &terminal->watcher);
}

void terminal_suspend(struct terminal *terminal)
{
	let_go(terminal);
	raise(SIGSTOP);
}

void terminal_open(
	struct terminal *terminal, struct ev_loop *loop, void (*on_reload)(void *data), void *data)
{
	memset(terminal, 0, sizeof(*terminal));
	terminal->loop = loop;
	terminal->on_reload = on_reload;
	terminal->data = data;
	terminal->is_one = isatty(STDIN_FILENO);
	ev_io_init(&terminal->watcher, read_cb, STDIN_FILENO, EV_READ);
	terminal_resume(terminal);
}

void terminal_close(struct terminal *terminal)
{
	let_go(terminal);
}

bool terminal_gone(const struct terminal *terminal)
{
	struct termios modes;

	return terminal->is_one && tcgetattr(STDIN_FILENO, &modes) < 0 && errno == EIO;
}
