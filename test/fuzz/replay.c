/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Runs every file of the directories given through a fuzz target, so that the corpus is an ordinary
 * test, with any compiler. A target that finds a fault aborts.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

/* Returns 0 or -errno. */
static int replay_stream(FILE *stream)
{
	uint8_t *bytes = NULL;
	size_t len = 0, room = 0;

	do {
		uint8_t *grown = realloc(bytes, room += 64 * 1024);

		if (grown == NULL) {
			free(bytes);
			return -ENOMEM;
		}
		bytes = grown;
		len += fread(bytes + len, 1, room - len, stream);
	} while (len == room);
	if (!ferror(stream))
		LLVMFuzzerTestOneInput(bytes, len);
	free(bytes);
	return ferror(stream) ? -EIO : 0;
}

/* Returns 0 or -errno. */
static int replay_file(const char *directory, const char *name)
{
	char path[4096];
	FILE *stream;
	int r;

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", directory, name) >= sizeof(path))
		return -ENAMETOOLONG;
	stream = fopen(path, "re");
	if (stream == NULL)
		return -errno;
	/* Before the file runs: an abort then names it. */
	printf("# %s\n", path);
	fflush(stdout);
	r = replay_stream(stream);
	fclose(stream);
	return r;
}

/* Returns how many files it ran, or -errno. */
static int replay_directory(const char *path)
{
	DIR *directory = opendir(path);
	struct dirent *entry;
	int n = 0, r = 0;

	if (directory == NULL)
		return -errno;
	while (r == 0 && (entry = readdir(directory)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		r = replay_file(path, entry->d_name);
		n++;
	}
	closedir(directory);
	return r < 0 ? r : n;
}

int main(int argc, char **argv)
{
	int failed = argc < 2;

	for (int i = 1; i < argc; i++) {
		int n = replay_directory(argv[i]);

		if (n < 0)
			fprintf(stderr, "%s: %s\n", argv[i], strerror(-n));
		else
			printf("%s: %d inputs\n", argv[i], n);
		/* A corpus that has got lost is no success. */
		failed |= n <= 0;
	}
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
