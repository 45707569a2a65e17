/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/generation.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fd.h"
#include "master/thread.h"

static int open_directory(struct generation *generation, char **out_error)
{
	const char *path = generation->config->chdir;
	int r;

	if (!path)
		return 0;
	/* Opened now, so that a `current` link that moves later changes the next generation only.
	 */
	generation->directory_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (generation->directory_fd >= 0)
		return 0;
	r = -errno;
	if (asprintf(out_error, "can't change to the directory %s: %s", path, strerror(-r)) < 0)
		*out_error = NULL;
	return r;
}

static int open_module(struct generation *generation, char **out_error)
{
	const char *path = generation->config->app_kind == CONFIG_APP_MODULE
				   ? generation->config->app.at[0]
				   : NULL;
	int at = generation->directory_fd >= 0 ? generation->directory_fd : AT_FDCWD, r;

	if (!path)
		return 0;
	generation->module_fd = openat(at, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (generation->module_fd >= 0)
		return 0;
	r = -errno;
	if (asprintf(out_error, "can't open the module %s: %s", path, strerror(-r)) < 0)
		*out_error = NULL;
	return r;
}

int generation_new(
	struct config *config, unsigned number, struct generation **out, char **out_error)
{
	struct generation *generation = calloc(1, sizeof(*generation));
	int r;

	*out_error = NULL;
	if (!generation)
		return -ENOMEM;
	list_init(&generation->link);
	list_init(&generation->failures);
	generation->number = number;
	generation->config = config_ref(config);
	generation->directory_fd = generation->module_fd = -1;
	generation->started_us = clock_us();
	generation->n_wanted = config->workers;
	r = open_directory(generation, out_error);
	if (r == 0)
		r = open_module(generation, out_error);
	if (r < 0) {
		generation_free(generation);
		return r;
	}
	*out = generation;
	return 0;
}

static void failure_free(struct boot_failure *failure)
{
	free(failure->error);
	free(failure->stderr_tail);
	free(failure);
}

static void forget_failures(struct generation *generation)
{
	for (struct list *at; (at = list_pop(&generation->failures));)
		failure_free(container_of(at, struct boot_failure, link));
}

struct generation *generation_free(struct generation *generation)
{
	if (!generation)
		return NULL;
	list_remove(&generation->link);
	fd_close(&generation->directory_fd);
	fd_close(&generation->module_fd);
	config_unref(generation->config);
	forget_failures(generation);
	free(generation);
	return NULL;
}

void generation_fail(struct generation *generation, unsigned worker_id, bool initial,
	const char *error, const char *stderr_tail)
{
	struct boot_failure *failure;

	/* Without a rest between respawns there is no end of them. */
	if (!generation->finished && !initial)
		return;
	if (generation->finished)
		forget_failures(generation);
	failure = calloc(1, sizeof(*failure));
	if (!failure)
		return;
	failure->worker_id = worker_id;
	failure->error = strdup(error);
	failure->stderr_tail = strdup(stderr_tail);
	if (failure->error && failure->stderr_tail)
		list_append(&generation->failures, &failure->link);
	else
		failure_free(failure);
}

const struct boot_failure *generation_failure(const struct generation *generation)
{
	const struct list *first = generation->failures.next;

	return list_empty(&generation->failures) ? NULL
						 : container_of(first, struct boot_failure, link);
}
