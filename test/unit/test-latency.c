/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/latency.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_VALUES 100000
#define N_HISTOGRAMS 4

static struct latency histograms[N_HISTOGRAMS];

static int set_up(void **state)
{
	(void)state;
	memset(histograms, 0, sizeof(histograms));
	return 0;
}

static struct latency_summary summarise(unsigned n)
{
	struct latency *all[N_HISTOGRAMS];
	struct latency_summary summary;

	for (unsigned i = 0; i < N_HISTOGRAMS; i++)
		all[i] = &histograms[i];
	memset(&summary, 0xff, sizeof(summary));
	latency_summarise(all, n, &summary);
	return summary;
}

/* Never too low, and at most 1/32 too high. */
static void assert_close(uint64_t measured, uint64_t exact)
{
	if (measured < exact || measured - exact > exact / 32)
		print_error("%ju for %ju\n", (uintmax_t)measured, (uintmax_t)exact);
	assert_true(measured >= exact && measured - exact <= exact / 32);
}

static void without_values_everything_is_0(void **state)
{
	static const struct latency_summary nothing;
	struct latency_summary summary = summarise(N_HISTOGRAMS);

	(void)state;
	assert_memory_equal(&summary, &nothing, sizeof(summary));
	summary = summarise(0);
	assert_memory_equal(&summary, &nothing, sizeof(summary));
}

static void one_value_is_told_exactly(void **state)
{
	static const uint64_t values[] = { 0, 1, 63, 64, 1000, 123457, UINT64_MAX };

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		struct latency_summary summary;

		set_up(state);
		latency_add(&histograms[0], values[i]);
		summary = summarise(1);
		assert_int_equal(summary.n, 1);
		assert_int_equal(summary.max_us, values[i]);
		if (values[i] == UINT64_MAX)
			continue;
		assert_int_equal(summary.p50_us, values[i]);
		assert_int_equal(summary.p99_us, values[i]);
		assert_int_equal(summary.p999_us, values[i]);
	}
}

/* The highest value is told exactly and would hide the bucket, so a second one lies above. */
static uint64_t bucket_bound(uint64_t value)
{
	void *unused = NULL;

	set_up(&unused);
	latency_add(&histograms[0], value);
	latency_add(&histograms[0], UINT64_MAX);
	return summarise(1).p50_us;
}

static void small_values_have_a_bucket_each(void **state)
{
	(void)state;
	for (uint64_t value = 0; value < 64; value++)
		assert_int_equal(bucket_bound(value), value);
}

static void buckets_grow_with_the_value_and_leave_no_gap(void **state)
{
	(void)state;
	for (unsigned bit = 6; bit < 42; bit++) {
		uint64_t power = (uint64_t)1 << bit, width = power / 32;

		for (uint64_t i = 0; i < 32; i++) {
			uint64_t first = power + i * width, last = first + width - 1;

			assert_int_equal(bucket_bound(first), last);
			assert_int_equal(bucket_bound(last), last);
		}
	}
}

static void values_past_the_last_bucket_fall_into_it(void **state)
{
	uint64_t past = (uint64_t)1 << 42;

	(void)state;
	assert_int_equal(bucket_bound(past - 1), past - 1);
	assert_int_equal(bucket_bound(past), past - 1);
	assert_int_equal(bucket_bound(UINT64_MAX - 1), past - 1);
}

/* Numerical Recipes' generator: the same values at each run. */
static uint64_t next_random(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return *seed >> 33;
}

static int compare(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return left < right ? -1 : left > right;
}

/* The smallest value that so many of the values are not above. */
static uint64_t exact_percentile(const uint64_t *sorted, size_t n, unsigned per_mille)
{
	size_t rank = (n * per_mille + 999) / 1000;

	return sorted[rank - 1];
}

static void check_against_sorted(size_t n, uint64_t seed)
{
	uint64_t *values = malloc(n * sizeof(*values));
	struct latency_summary summary;
	void *unused = NULL;

	assert_non_null(values);
	set_up(&unused);
	for (size_t i = 0; i < n; i++) {
		/* As many short ones as long ones: 1 us to 17 minutes. */
		values[i] = next_random(&seed) % ((uint64_t)1 << (1 + next_random(&seed) % 30));
		latency_add(&histograms[i % N_HISTOGRAMS], values[i]);
	}
	summary = summarise(N_HISTOGRAMS);
	qsort(values, n, sizeof(*values), compare);
	assert_int_equal(summary.n, n);
	assert_int_equal(summary.max_us, values[n - 1]);
	assert_close(summary.p50_us, exact_percentile(values, n, 500));
	assert_close(summary.p99_us, exact_percentile(values, n, 990));
	assert_close(summary.p999_us, exact_percentile(values, n, 999));
	free(values);
}

static void percentiles_are_those_of_the_sorted_values(void **state)
{
	(void)state;
	for (size_t n = 1; n <= 40; n++)
		check_against_sorted(n, n);
	check_against_sorted(999, 1);
	check_against_sorted(1000, 2);
	check_against_sorted(1001, 3);
	check_against_sorted(N_VALUES, 4);
}

static void only_the_histograms_given_count(void **state)
{
	(void)state;
	latency_add(&histograms[0], 5);
	latency_add(&histograms[1], 7);
	assert_int_equal(summarise(1).max_us, 5);
	assert_int_equal(summarise(1).n, 1);
	assert_int_equal(summarise(2).max_us, 7);
	assert_int_equal(summarise(2).n, 2);
}

#define CASE(name) cmocka_unit_test_setup(name, set_up)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(without_values_everything_is_0),
		CASE(one_value_is_told_exactly),
		CASE(small_values_have_a_bucket_each),
		CASE(buckets_grow_with_the_value_and_leave_no_gap),
		CASE(values_past_the_last_bucket_fall_into_it),
		CASE(percentiles_are_those_of_the_sorted_values),
		CASE(only_the_histograms_given_count),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
