/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Terminal: Ctrl+R while the daemon is in the foreground of one. Control thread only.
 */
#include <ev.h>
#include <stdbool.h>
#include <termios.h>

struct terminal {
	struct ev_loop *loop;
	bool is_one;  /* standard input was a terminal at the start */
	bool changed; /* its modes are ours at the moment */
	struct termios before;
	ev_io watcher;
	void (*on_reload)(void *data);
	void *data;
};

void terminal_open(
	struct terminal *terminal, struct ev_loop *loop, void (*on_reload)(void *data), void *data);
/* Gives the terminal its modes back. */
void terminal_close(struct terminal *terminal);
/* SIGTSTP: gives the modes back and stops; SIGCONT: takes them again if in the foreground. */
void terminal_suspend(struct terminal *terminal);
void terminal_resume(struct terminal *terminal);
/* Whether there was a terminal and there is none any more: SIGHUP then is its farewell. */
bool terminal_gone(const struct terminal *terminal);
