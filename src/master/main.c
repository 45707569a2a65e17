/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/title.h"
#include "master/config.h"
#include "master/daemon.h"
#include "master/log.h"
#include "master/signals.h"

static int print_config(const struct config *config)
{
	json_t *dump = config_dump(config);
	int failed = !dump || json_dumpf(dump, stdout, JSON_INDENT(2)) < 0 ||
		     putchar('\n') == EOF || fflush(stdout) == EOF;

	json_decref(dump);
	return failed ? 1 : 0;
}

int main(int argc, char *argv[])
{
	struct config *config = NULL;
	char *error = NULL;
	int r = config_load(argc, argv, &config, &error);

	if (r < 0) {
		fprintf(stderr, "up-master: %s\n", error ? error : "out of memory");
		free(error);
		return 2;
	}
	if (r == CONFIG_EXIT)
		return 0;
	if (r == CONFIG_CHECK) {
		r = print_config(config);
		config_unref(config);
		return r;
	}
	signals_block();
	log_set_level((enum log_level)config->log_level);
	log_start();
	/* A reload reads the arguments again: from the copy. */
	title_set(&argv, config->title, "master");
	r = daemon_run(config, argc, argv);
	log_stop();
	return r;
}
