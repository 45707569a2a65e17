/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/* The smallest application: see README.md for how it is built and run. */
#include <up/worker.h>

static void hello(struct up_request *request, void *data)
{
	(void)data;
	up_respond(request, 200, "text/plain", "Hello\n", 6);
}

int up_app(struct up_worker *worker)
{
	up_on_request(worker, hello, NULL);
	return 0;
}
