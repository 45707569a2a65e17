/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/latency.h"

#define SUB_BITS 5
#define SUB (1u << SUB_BITS)

/* Values below 64 have a bucket each; then 32 buckets for each power of two. */
static unsigned bucket_of(uint64_t us)
{
	unsigned shift;
	uint64_t index;

	if (us < 2 * SUB)
		return (unsigned)us;
	shift = 63u - (unsigned)__builtin_clzll(us) - SUB_BITS;
	index = (uint64_t)shift * SUB + (us >> shift);
	return index < LATENCY_BUCKETS ? (unsigned)index : LATENCY_BUCKETS - 1;
}

/* The largest value that falls into the bucket. */
static uint64_t bucket_top(unsigned index)
{
	unsigned shift;

	if (index < 2 * SUB)
		return index;
	shift = index / SUB - 1;
	return (((uint64_t)(index % SUB) + SUB + 1) << shift) - 1;
}

void latency_add(struct latency *latency, uint64_t us)
{
	_Atomic uint64_t *bucket = &latency->buckets[bucket_of(us)];

	/* One writer, so no read-modify-write is needed. */
	atomic_store_explicit(bucket, atomic_load_explicit(bucket, memory_order_relaxed) + 1,
		memory_order_relaxed);
	if (us > atomic_load_explicit(&latency->max_us, memory_order_relaxed))
		atomic_store_explicit(&latency->max_us, us, memory_order_relaxed);
}

static uint64_t percentile(
	const uint64_t counts[LATENCY_BUCKETS], uint64_t n, unsigned per_mille, uint64_t max_us)
{
	uint64_t rank = (n * per_mille + 999) / 1000, seen = 0;

	for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
		seen += counts[i];
		if (seen >= rank && seen > 0)
			return bucket_top(i) < max_us ? bucket_top(i) : max_us;
	}
	return max_us;
}

void latency_summarise(struct latency *const histograms[], unsigned n, struct latency_summary *out)
{
	uint64_t counts[LATENCY_BUCKETS] = { 0 };
	struct latency_summary sum = { 0 };

	for (unsigned t = 0; t < n; t++) {
		uint64_t max_us =
			atomic_load_explicit(&histograms[t]->max_us, memory_order_relaxed);

		if (max_us > sum.max_us)
			sum.max_us = max_us;
		for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
			counts[i] += atomic_load_explicit(
				&histograms[t]->buckets[i], memory_order_relaxed);
	}
	for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
		sum.n += counts[i];
	if (sum.n > 0) {
		sum.p50_us = percentile(counts, sum.n, 500, sum.max_us);
		sum.p99_us = percentile(counts, sum.n, 990, sum.max_us);
		sum.p999_us = percentile(counts, sum.n, 999, sum.max_us);
	}
	*out = sum;
}
