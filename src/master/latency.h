/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#pragma once
/*
 * Latency: a histogram of microseconds at constant cost and size.
 *
 * Buckets grow with the value: 32 to each power of two, so a percentile is at most 3 % too high.
 * One thread adds; any thread may read meanwhile, and sees each count torn from the others by a
 * moment.
 */
#include <stdatomic.h>
#include <stdint.h>

#define LATENCY_BUCKETS (32 * 38)

struct latency {
	_Atomic uint64_t max_us;
	_Atomic uint64_t buckets[LATENCY_BUCKETS];
};

/* The owner's thread. */
void latency_add(struct latency *latency, uint64_t us);

struct latency_summary {
	uint64_t n, p50_us, p99_us, p999_us, max_us;
};

/* Sums n histograms up. Any thread. */
void latency_summarise(struct latency *const histograms[], unsigned n, struct latency_summary *out);
