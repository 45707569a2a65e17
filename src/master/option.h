/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Option: the one table behind the command line, the file, --help and --check-config.
 *
 * A row says what an option is called, what values it takes, and which field of struct config they
 * go to. Messages (*out_why, on the heap, NULL when out of memory) say what is wrong with a value;
 * where it stands (option; or file, line and key) is for the caller to add. Control thread only.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct config;

enum option_kind {
	OPTION_ACTION,	/* nothing to store: the reader of the command line acts on it */
	OPTION_FLAG,	/* bool; on the command line a value only as --flag=BOOL */
	OPTION_BOOL,	/* bool; the next argument is its value if it spells one, else it is true */
	OPTION_COUNT,	/* unsigned */
	OPTION_COUNT64, /* uint64_t */
	OPTION_DURATION,   /* uint64_t, in milliseconds */
	OPTION_SIZE,	   /* uint64_t, in bytes */
	OPTION_EXPRESSION, /* unsigned; see expression.h */
	OPTION_CHOICE,	   /* int: an index into choices */
	OPTION_TEXT,	   /* char *, or NULL */
	OPTION_LIST,	   /* struct config_strings: each use adds one */
	OPTION_PORT,	   /* a port, added as :N to the same struct config_strings as --listen */
};

enum option_place {
	OPTION_ANYWHERE,
	OPTION_COMMAND_LINE, /* no key of the file */
	OPTION_FILE,	     /* a key of the file that is no option */
};

struct option {
	const char *name; /* with dashes, as on the command line */
	char letter;	  /* or 0 */
	enum option_kind kind;
	enum option_place place;
	size_t offset;	    /* of the field in struct config */
	uint64_t min, max;  /* of numbers, both allowed */
	const char *preset; /* the default, as it would be written on the command line, or NULL */
	const char *preset_development; /* with NODE_ENV=development, where different */
	const char *const *choices;	/* NULL ends */
	int (*check)(
		const char *text, char **out_why); /* of texts and elements of lists, or NULL */
	const char *group;			   /* heading before this row in --help, or NULL */
	const char *argument, *help;		   /* as in --help; no argument: NULL */
};

/* The first row, and the one after each; NULL at the end. */
const struct option *option_first(void);
const struct option *option_next(const struct option *option);

/* By what the command line or the file calls it. NULL where there is none. */
const struct option *option_by_name(const char *name, size_t len);
const struct option *option_by_letter(char letter);
const struct option *option_by_key(const char *key);

/* The name in the file: the caller's, on the heap. NULL when out of memory. */
char *option_key(const struct option *option);
/* The option or key that was probably meant, or NULL. */
const struct option *option_nearest(const char *word, enum option_place place);

/* Whether text is one of true false yes no on off 1 0. */
bool option_is_bool(const char *text);

/* Gives every field its default. The fields must be zero. Returns 0 or -EINVAL. */
int option_set_presets(struct config *config, char **out_why);
/* Both replace what is there, or add to a list. Return 0 or -EINVAL. */
int option_set_text(
	const struct option *option, struct config *config, const char *text, char **out_why);
int option_set_json(
	const struct option *option, struct config *config, const json_t *value, char **out_why);
/* As option_set_json() takes it. The caller's; NULL when out of memory. */
json_t *option_get_json(const struct option *option, const struct config *config);
/* Frees what the field holds and makes it empty. Does nothing to numbers. */
void option_clear(const struct option *option, struct config *config);

void option_print_help(FILE *to);

/* Sets *out_why, to be freed. Returns -EINVAL. */
int option_refuse(char **out_why, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A string that is freed when it goes out of scope. */
static inline void option_free_text(char **text)
{
	free(*text);
}
#define OPTION_TEXT_AUTO __attribute__((cleanup(option_free_text)))
