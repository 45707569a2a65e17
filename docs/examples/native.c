/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/* With this file any module is a program: up-master --native -- ./program */
#include <up/worker.h>

int main(int argc, char *argv[])
{
	return up_worker_run(up_app, argc, argv);
}
