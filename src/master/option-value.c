/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * Option values: from text and JSON into the fields of struct config, and back.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <strings.h>

#include "master/config.h"
#include "master/expression.h"
#include "master/option.h"

/* Sums of products of decimal fractions miss a whole number by less than this: 100 * 0.29. */
#define ROUNDING_SLACK 1e-9
/* Digits after the point of a duration or size. */
#define FRACTION_DIGITS_MAX 6

struct unit {
	const char *suffix;
	uint64_t factor;
};

/* Largest first: the range in a message is told in the largest that fits. */
static const struct unit duration_units[] = {
	{ "h", 3600000 },
	{ "m", 60000 },
	{ "s", 1000 },
	{ "ms", 1 },
	{ "", 1 },
	{ NULL, 0 },
};

static const struct unit size_units[] = {
	{ "g", 1 << 30 },
	{ "m", 1 << 20 },
	{ "k", 1 << 10 },
	{ "", 1 },
	{ "G", 1 << 30 },
	{ "M", 1 << 20 },
	{ "K", 1 << 10 },
	{ NULL, 0 },
};

static const struct unit count_units[] = { { "", 1 }, { NULL, 0 } };

static void *field_of(const struct option *option, struct config *config)
{
	return (char *)config + option->offset;
}

static const void *const_field_of(const struct option *option, const struct config *config)
{
	return (const char *)config + option->offset;
}

static const struct unit *units_of(const struct option *option)
{
	switch (option->kind) {
	case OPTION_DURATION:
		return duration_units;
	case OPTION_SIZE:
		return size_units;
	default:
		return count_units;
	}
}

/* ---- Storing ---- */

static int strings_append(struct config_strings *strings, const char *text, char **out_why)
{
	char **at = realloc(strings->at, (strings->n + 2) * sizeof(*at));
	char *copy = strdup(text);

	if (at)
		strings->at = at;
	if (!at || !copy) {
		free(copy);
		return option_refuse(out_why, "out of memory");
	}
	at[strings->n++] = copy;
	at[strings->n] = NULL;
	return 0;
}

static void strings_clear(struct config_strings *strings)
{
	for (unsigned i = 0; i < strings->n; i++)
		free(strings->at[i]);
	free(strings->at);
	*strings = (struct config_strings){ 0 };
}

static int store_text(
	const struct option *option, struct config *config, const char *text, char **out_why)
{
	char **field = field_of(option, config);
	char *copy;
	int r = option->check ? option->check(text, out_why) : 0;

	if (r < 0)
		return r;
	if (option->kind == OPTION_LIST)
		return strings_append(field_of(option, config), text, out_why);
	copy = strdup(text);
	if (!copy)
		return option_refuse(out_why, "out of memory");
	free(*field);
	*field = copy;
	return 0;
}

static void format_number(uint64_t value, const struct unit *unit, char *buf, size_t room)
{
	while (unit->factor > 1 && (value == 0 || value % unit->factor != 0))
		unit++;
	snprintf(buf, room, "%llu%s", (unsigned long long)(value / unit->factor),
		value ? unit->suffix : "");
}

/* shown: the value as it was written. */
static int refuse_range(const struct option *option, const char *shown, char **out_why)
{
	char min[32], max[32];

	format_number(option->min, units_of(option), min, sizeof(min));
	format_number(option->max, units_of(option), max, sizeof(max));
	return option_refuse(out_why, "%s is out of range: %s to %s", shown, min, max);
}

static int store_port(
	struct config *config, const struct option *option, uint64_t port, char **out_why)
{
	char address[16];

	snprintf(address, sizeof(address), ":%u", (unsigned)port);
	return strings_append(field_of(option, config), address, out_why);
}

static int store_number(const struct option *option, struct config *config, uint64_t value,
	const char *shown, char **out_why)
{
	void *field = field_of(option, config);

	if (value < option->min || value > option->max)
		return refuse_range(option, shown, out_why);
	switch (option->kind) {
	case OPTION_PORT:
		return store_port(config, option, value, out_why);
	case OPTION_COUNT:
	case OPTION_EXPRESSION:
		*(unsigned *)field = (unsigned)value;
		return 0;
	default:
		*(uint64_t *)field = value;
		return 0;
	}
}

/* Down to a whole number. One that depends on the machine is raised to the minimum: cpus / 4 of 2.
 */
static int store_real(const struct option *option, struct config *config,
	const struct expression_result *result, const char *shown, char **out_why)
{
	double value = floor(result->value + ROUNDING_SLACK);

	if (result->uses_cpus && value < (double)option->min)
		value = (double)option->min;
	if (value < 0 || value > (double)option->max)
		return refuse_range(option, shown, out_why);
	return store_number(option, config, (uint64_t)value, shown, out_why);
}

/* ---- From text ---- */

static int find_word(const char *word, const char *const *words)
{
	for (int i = 0; words[i]; i++)
		if (strcasecmp(word, words[i]) == 0)
			return i;
	return -1;
}

/* Even ones are true. */
static const char *const bool_words[] = { "true", "false", "yes", "no", "on", "off", "1", "0",
	NULL };

bool option_is_bool(const char *text)
{
	return find_word(text, bool_words) >= 0;
}

static int bool_from_text(
	const struct option *option, struct config *config, const char *text, char **out_why)
{
	int word = find_word(text, bool_words);

	if (word < 0)
		return option_refuse(out_why,
			"\"%s\" is not one of true, false, yes, no, on, off, 1 and 0", text);
	*(bool *)field_of(option, config) = word % 2 == 0;
	return 0;
}

static int choice_from_text(
	const struct option *option, struct config *config, const char *text, char **out_why)
{
	char list[128] = "";
	size_t used = 0;

	for (int i = 0; option->choices[i]; i++) {
		const char *joint = !option->choices[i + 1] ? " or " : ", ";

		if (strcmp(text, option->choices[i]) == 0) {
			*(int *)field_of(option, config) = i;
			return 0;
		}
		used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", i ? joint : "",
			option->choices[i]);
	}
	return option_refuse(out_why, "\"%s\" is not known: expected %s", text, list);
}

static int expression_from_text(
	const struct option *option, struct config *config, const char *text, char **out_why)
{
	struct expression_result result;
	struct expression_error error;

	if (expression_evaluate(text, expression_cpus(), &result, &error) < 0)
		return option_refuse(
			out_why, "\"%s\", position %zu: %s", text, error.position, error.what);
	return store_real(option, config, &result, text, out_why);
}

/* Returns 0, -ERANGE, or -EINVAL where there is no digit. */
static int parse_digits(const char **at, uint64_t *out)
{
	if (!isdigit((unsigned char)**at))
		return -EINVAL;
	*out = 0;
	for (; isdigit((unsigned char)**at); (*at)++)
		if (__builtin_mul_overflow(*out, 10, out) ||
			__builtin_add_overflow(*out, (uint64_t)(**at - '0'), out))
			return -ERANGE;
	return 0;
}

/* What stands behind a point, as numerator and denominator. */
static int parse_fraction(const char **at, uint64_t *out, uint64_t *out_denominator)
{
	const char *start = ++*at;
	int r = parse_digits(at, out);

	if (r < 0 || *at - start > FRACTION_DIGITS_MAX)
		return -EINVAL;
	for (*out_denominator = 1; start < *at; start++)
		*out_denominator *= 10;
	return 0;
}

/* Returns 0; -EINVAL: not such a number; -ERANGE: too large for anything; -EDOM: not whole in the
 * smallest unit. */
static int parse_number(const char *text, const struct unit *units, uint64_t *out)
{
	uint64_t whole, part = 0, denominator = 1;
	int r = parse_digits(&text, &whole);

	if (r == 0 && *text == '.' && units[0].factor > 1)
		r = parse_fraction(&text, &part, &denominator);
	if (r < 0)
		return r;
	while (units->suffix && strcmp(units->suffix, text) != 0)
		units++;
	if (!units->suffix)
		return -EINVAL;
	if (part * units->factor % denominator != 0)
		return -EDOM;
	if (__builtin_mul_overflow(whole, units->factor, &whole) ||
		__builtin_add_overflow(whole, part * units->factor / denominator, out))
		return -ERANGE;
	return 0;
}

static const char *expected_of(const struct option *option)
{
	switch (option->kind) {
	case OPTION_DURATION:
		return "a duration such as 500ms, 10s, 5m or 1h";
	case OPTION_SIZE:
		return "a size such as 4096, 64k or 1m";
	default:
		return "a whole number";
	}
}

static int number_from_text(
	const struct option *option, struct config *config, const char *text, char **out_why)
{
	const struct unit *units = units_of(option);
	uint64_t value = 0;
	/* A negative number is one, and out of every range. */
	int r = parse_number(text + (*text == '-'), units, &value);

	if (r == -EDOM)
		return option_refuse(out_why, "\"%s\" is not a whole number of %s", text,
			option->kind == OPTION_SIZE ? "bytes" : "milliseconds");
	if (r == -EINVAL)
		return option_refuse(out_why, "\"%s\" is not %s", text, expected_of(option));
	if (r == -ERANGE || *text == '-')
		return refuse_range(option, text, out_why);
	return store_number(option, config, value, text, out_why);
}

int option_set_text(
	const struct option *option, struct config *config, const char *text, char **out_why)
{
	switch (option->kind) {
	case OPTION_ACTION:
		return 0;
	case OPTION_FLAG:
	case OPTION_BOOL:
		return bool_from_text(option, config, text, out_why);
	case OPTION_CHOICE:
		return choice_from_text(option, config, text, out_why);
	case OPTION_EXPRESSION:
		return expression_from_text(option, config, text, out_why);
	case OPTION_TEXT:
	case OPTION_LIST:
		return store_text(option, config, text, out_why);
	case OPTION_COUNT:
	case OPTION_COUNT64:
	case OPTION_DURATION:
	case OPTION_SIZE:
	case OPTION_PORT:
		break;
	}
	return number_from_text(option, config, text, out_why);
}

int option_set_presets(struct config *config, char **out_why)
{
	const char *node_env = getenv("NODE_ENV");
	bool development = node_env && strcmp(node_env, "development") == 0;
	int r = 0;

	for (const struct option *o = option_first(); o && r == 0; o = option_next(o)) {
		bool other = development && o->preset_development;
		const char *preset = other ? o->preset_development : o->preset;

		/* The default port gives way to systemd's sockets: whoever listens applies it. */
		if (preset && o->kind != OPTION_PORT)
			r = option_set_text(o, config, preset, out_why);
	}
	return r;
}

/* ---- From JSON ---- */

static const char *type_name(const json_t *value)
{
	static const char *const names[] = {
		[JSON_OBJECT] = "an object",
		[JSON_ARRAY] = "an array",
		[JSON_STRING] = "a string",
		[JSON_INTEGER] = "an integer",
		[JSON_REAL] = "a fraction",
		[JSON_TRUE] = "true",
		[JSON_FALSE] = "false",
		[JSON_NULL] = "null",
	};

	return names[json_typeof(value)];
}

static const char *expected_type(const struct option *option)
{
	switch (option->kind) {
	case OPTION_FLAG:
	case OPTION_BOOL:
		return "true or false";
	case OPTION_COUNT:
	case OPTION_COUNT64:
	case OPTION_PORT:
		return "an integer";
	case OPTION_DURATION:
		return "a whole number of milliseconds, or a string such as \"10s\"";
	case OPTION_SIZE:
		return "a whole number of bytes, or a string such as \"64k\"";
	case OPTION_EXPRESSION:
		return "a number, or an expression in a string";
	default:
		return "a string";
	}
}

static bool takes_string(const struct option *option)
{
	switch (option->kind) {
	case OPTION_DURATION:
	case OPTION_SIZE:
	case OPTION_EXPRESSION:
	case OPTION_CHOICE:
	case OPTION_TEXT:
	case OPTION_LIST:
		return true;
	default:
		return false;
	}
}

static bool takes_integer(const struct option *option)
{
	switch (option->kind) {
	case OPTION_COUNT:
	case OPTION_COUNT64:
	case OPTION_DURATION:
	case OPTION_SIZE:
	case OPTION_EXPRESSION:
	case OPTION_PORT:
		return true;
	default:
		return false;
	}
}

static int integer_from_json(
	const struct option *option, struct config *config, json_int_t value, char **out_why)
{
	char shown[32];

	snprintf(shown, sizeof(shown), "%" JSON_INTEGER_FORMAT, value);
	if (value < 0)
		return refuse_range(option, shown, out_why);
	return store_number(option, config, (uint64_t)value, shown, out_why);
}

static int real_from_json(
	const struct option *option, struct config *config, double value, char **out_why)
{
	struct expression_result result = { .value = value };
	char shown[32];

	snprintf(shown, sizeof(shown), "%g", value);
	return store_real(option, config, &result, shown, out_why);
}

static int scalar_from_json(
	const struct option *option, struct config *config, const json_t *value, char **out_why)
{
	if (json_is_string(value) && takes_string(option))
		return option_set_text(option, config, json_string_value(value), out_why);
	if (json_is_integer(value) && takes_integer(option))
		return integer_from_json(option, config, json_integer_value(value), out_why);
	if (json_is_real(value) && option->kind == OPTION_EXPRESSION)
		return real_from_json(option, config, json_real_value(value), out_why);
	if (json_is_boolean(value) &&
		(option->kind == OPTION_FLAG || option->kind == OPTION_BOOL)) {
		*(bool *)field_of(option, config) = json_is_true(value);
		return 0;
	}
	return option_refuse(
		out_why, "expected %s, not %s", expected_type(option), type_name(value));
}

int option_set_json(
	const struct option *option, struct config *config, const json_t *value, char **out_why)
{
	bool repeatable = option->kind == OPTION_LIST || option->kind == OPTION_PORT;
	int r = 0;

	/* Unset, where that is a value: so reads what --check-config prints. */
	if (json_is_null(value) && (option->kind == OPTION_TEXT || repeatable) &&
		(!option->preset || repeatable))
		return 0;
	if (!json_is_array(value) || !repeatable)
		return scalar_from_json(option, config, value, out_why);
	for (size_t i = 0; i < json_array_size(value) && r == 0; i++)
		r = scalar_from_json(option, config, json_array_get(value, i), out_why);
	return r;
}

/* ---- To JSON ---- */

/* A file name need not be UTF-8, and JSON has nothing else: its other bytes are shown as ?. */
static json_t *text_to_json(const char *text)
{
	OPTION_TEXT_AUTO char *copy = NULL;
	json_t *json = json_string(text);

	if (json)
		return json;
	copy = strdup(text);
	for (char *at = copy; at && *at; at++)
		if ((unsigned char)*at >= 0x80)
			*at = '?';
	return copy ? json_string(copy) : NULL;
}

static json_t *strings_to_json(const struct config_strings *strings)
{
	json_t *array = json_array();

	for (unsigned i = 0; array && i < strings->n; i++) {
		if (json_array_append_new(array, text_to_json(strings->at[i])) < 0) {
			json_decref(array);
			array = NULL;
		}
	}
	return array;
}

json_t *option_get_json(const struct option *option, const struct config *config)
{
	const void *field = const_field_of(option, config);
	const char *text;

	switch (option->kind) {
	case OPTION_ACTION:
		return json_null();
	case OPTION_FLAG:
	case OPTION_BOOL:
		return json_boolean(*(const bool *)field);
	case OPTION_COUNT:
	case OPTION_EXPRESSION:
		return json_integer(*(const unsigned *)field);
	case OPTION_CHOICE:
		return json_string(option->choices[*(const int *)field]);
	case OPTION_TEXT:
		text = *(char *const *)field;
		return text ? text_to_json(text) : json_null();
	case OPTION_LIST:
	case OPTION_PORT:
		return strings_to_json(field);
	case OPTION_COUNT64:
	case OPTION_DURATION:
	case OPTION_SIZE:
		break;
	}
	return json_integer((json_int_t) * (const uint64_t *)field);
}

void option_clear(const struct option *option, struct config *config)
{
	char **text = field_of(option, config);

	if (option->kind == OPTION_TEXT) {
		free(*text);
		*text = NULL;
	} else if (option->kind == OPTION_LIST || option->kind == OPTION_PORT) {
		strings_clear(field_of(option, config));
	}
}
