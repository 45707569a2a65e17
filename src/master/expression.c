/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/expression.h"

#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Parentheses, functions and signs within each other: the parser recurses, and its input may be
 * long. */
#define DEPTH_MAX 32
/* Enough for any kernel; sched_getaffinity(2) refuses a set smaller than the kernel's own. */
#define CPU_SET_BITS_MAX (1 << 20)

struct parser {
	const char *text, *at;
	unsigned cpus, depth;
	bool uses_cpus;
	struct expression_error *error;
};

enum function {
	FUNCTION_ROUND,
	FUNCTION_FLOOR,
	FUNCTION_CEIL,
	FUNCTION_MIN,
	FUNCTION_MAX,
};

static const char *const function_names[] = { "round", "floor", "ceil", "min", "max" };
#define N_FUNCTIONS (sizeof(function_names) / sizeof(function_names[0]))

static int parse_sum(struct parser *p, double *out);

static int fail(struct parser *p, const char *at, const char *what)
{
	p->error->position = (size_t)(at - p->text) + 1;
	p->error->what = what;
	return -EINVAL;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* The next character that is not blank. */
static char peek(struct parser *p)
{
	while (*p->at == ' ' || *p->at == '\t')
		p->at++;
	return *p->at;
}

static bool accept_char(struct parser *p, char c)
{
	if (peek(p) != c)
		return false;
	p->at++;
	return true;
}

/* By hand: strtod() knows locales, exponents, hexadecimal, infinity and NaN, none of which belong
 * here. */
static int parse_number(struct parser *p, double *out)
{
	const char *start = p->at;
	double digits = 0, scale = 1;
	size_t n_digits = 0;

	for (; is_digit(*p->at); p->at++, n_digits++)
		digits = digits * 10 + (*p->at - '0');
	if (*p->at == '.')
		for (p->at++; is_digit(*p->at); p->at++, n_digits++, scale *= 10)
			digits = digits * 10 + (*p->at - '0');
	if (n_digits == 0 || !isfinite(digits) || !isfinite(scale))
		return fail(p, start, "not a number");
	*out = digits / scale;
	return 0;
}

/* A partial result of a function of several arguments. */
static double fold(enum function function, double so_far, double next)
{
	switch (function) {
	case FUNCTION_MIN:
		return next < so_far ? next : so_far;
	case FUNCTION_MAX:
		return next > so_far ? next : so_far;
	default:
		return so_far;
	}
}

static double finish(enum function function, double value)
{
	switch (function) {
	case FUNCTION_ROUND:
		return round(value);
	case FUNCTION_FLOOR:
		return floor(value);
	case FUNCTION_CEIL:
		return ceil(value);
	default:
		return value;
	}
}

static int parse_arguments(struct parser *p, enum function function, double *out)
{
	bool several = function == FUNCTION_MIN || function == FUNCTION_MAX;
	double value, next;
	int r;

	if (!accept_char(p, '('))
		return fail(p, p->at, "expected ( after the function");
	r = parse_sum(p, &value);
	if (r < 0)
		return r;
	while (several && accept_char(p, ',')) {
		r = parse_sum(p, &next);
		if (r < 0)
			return r;
		value = fold(function, value, next);
	}
	if (!accept_char(p, ')'))
		return fail(p, p->at, several ? "expected , or )" : "expected )");
	*out = finish(function, value);
	return 0;
}

static int parse_name(struct parser *p, double *out)
{
	const char *name = p->at;
	size_t len = 0;

	while (is_letter(name[len]) || is_digit(name[len]))
		len++;
	p->at += len;
	if (len == 4 && memcmp(name, "cpus", 4) == 0) {
		p->uses_cpus = true;
		*out = p->cpus;
		return 0;
	}
	for (size_t i = 0; i < N_FUNCTIONS; i++)
		if (strlen(function_names[i]) == len && memcmp(name, function_names[i], len) == 0)
			return parse_arguments(p, (enum function)i, out);
	return fail(p, name, "unknown name: only cpus, round, floor, ceil, min and max are known");
}

static int parse_group(struct parser *p, double *out)
{
	int r = parse_sum(p, out);

	if (r < 0)
		return r;
	return accept_char(p, ')') ? 0 : fail(p, p->at, "expected )");
}

static int parse_factor(struct parser *p, double *out);

static int parse_negated(struct parser *p, double *out)
{
	int r = parse_factor(p, out);

	*out = r < 0 ? 0 : -*out;
	return r;
}

static int parse_primary(struct parser *p, double *out)
{
	char c = peek(p);

	if (is_digit(c) || c == '.')
		return parse_number(p, out);
	if (is_letter(c))
		return parse_name(p, out);
	if (accept_char(p, '-'))
		return parse_negated(p, out);
	if (accept_char(p, '('))
		return parse_group(p, out);
	return fail(p, p->at, "expected a number, cpus, a function or (");
}

static int parse_factor(struct parser *p, double *out)
{
	int r;

	if (p->depth == DEPTH_MAX)
		return fail(p, p->at, "too deeply nested");
	p->depth++;
	r = parse_primary(p, out);
	p->depth--;
	return r;
}

static int parse_product(struct parser *p, double *out)
{
	double next;
	int r = parse_factor(p, out);

	while (r == 0 && (peek(p) == '*' || *p->at == '/')) {
		const char *operation = p->at++;

		r = parse_factor(p, &next);
		if (r < 0)
			return r;
		if (*operation == '/' && next == 0)
			return fail(p, operation, "division by zero");
		*out = *operation == '/' ? *out / next : *out * next;
	}
	return r;
}

static int parse_sum(struct parser *p, double *out)
{
	double next;
	int r = parse_product(p, out);

	while (r == 0 && (peek(p) == '+' || *p->at == '-')) {
		char sign = *p->at++;

		r = parse_product(p, &next);
		if (r < 0)
			return r;
		*out += sign == '-' ? -next : next;
	}
	return r;
}

int expression_evaluate(const char *text, unsigned cpus, struct expression_result *out,
	struct expression_error *out_error)
{
	struct parser p = { .text = text, .at = text, .cpus = cpus, .error = out_error };
	double value;
	int r = parse_sum(&p, &value);

	if (r < 0)
		return r;
	if (peek(&p) != '\0')
		return fail(&p, p.at, "expected an operator or the end");
	if (!isfinite(value))
		return fail(&p, text, "the result is not finite");
	out->value = value;
	out->uses_cpus = p.uses_cpus;
	return 0;
}

unsigned expression_cpus(void)
{
	long online;

	for (int bits = CPU_SETSIZE; bits <= CPU_SET_BITS_MAX; bits *= 2) {
		cpu_set_t *set = CPU_ALLOC(bits);
		int n = 0;

		if (set && sched_getaffinity(0, CPU_ALLOC_SIZE(bits), set) == 0)
			n = CPU_COUNT_S(CPU_ALLOC_SIZE(bits), set);
		CPU_FREE(set);
		if (n > 0)
			return (unsigned)n;
	}
	online = sysconf(_SC_NPROCESSORS_ONLN);
	return online > 0 ? (unsigned)online : 1;
}
