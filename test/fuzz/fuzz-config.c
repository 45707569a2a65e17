/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * The JSON file: whatever it holds is refused with a message or gives a configuration whose dump is
 * read back as the same.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "master/config-file.h"
#include "master/config.h"
#include "master/option.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Returns the dump, or NULL where the text is refused. */
static char *read_and_dump(const char *text, size_t len)
{
	struct config *config = calloc(1, sizeof(*config));
	struct config_file file = { 0 };
	char *error = NULL, *dumped = NULL;
	json_t *dump;

	config->n_references = 1;
	if (option_set_presets(config, &error) < 0)
		abort();
	if (config_file_parse(&file, "fuzz.json", text, len, &error) == 0 &&
		config_file_apply(&file, config, &error) == 0) {
		dump = config_dump(config);
		dumped = json_dumps(dump, JSON_COMPACT);
		json_decref(dump);
	}
	/* Either a message, with the name of the file, or a result. */
	if (!dumped == !error || (error && strncmp(error, "fuzz.json:", 10) != 0))
		abort();
	free(error);
	config_file_close(&file);
	config_unref(config);
	return dumped;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *first = read_and_dump((const char *)data, size), *second;

	if (!first)
		return 0;
	second = read_and_dump(first, strlen(first));
	if (!second || strcmp(first, second) != 0)
		abort();
	free(first);
	free(second);
	return 0;
}
