/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/admission.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "case.h"

#define N_THREADS 4
#define N_ROUNDS 20000

static struct admission admission;

/* An end of the line that counts how often it was woken. */
struct end {
	struct line_end line_end;
	sem_t woken;
};

static struct end ends[2];

static void wake(struct line_end *line_end)
{
	sem_post(&container_of(line_end, struct end, line_end)->woken);
}

static void end_init(struct end *end)
{
	list_init(&end->line_end.granted);
	end->line_end.wake = wake;
	sem_init(&end->woken, 0, 0);
}

static int n_woken(struct end *end)
{
	int n;

	sem_getvalue(&end->woken, &n);
	return n;
}

static int set_up(void **state)
{
	(void)state;
	alarm(CASE_DEADLINE_S);
	admission_init(&admission, 4);
	atomic_store(&admission.unlimited, false);
	end_init(&ends[0]);
	end_init(&ends[1]);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	alarm(0);
	admission_fini(&admission);
	sem_destroy(&ends[0].woken);
	sem_destroy(&ends[1].woken);
	return 0;
}

static void line_up(struct place places[], unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		place_init(&places[i], &ends[0].line_end);
		assert_true(admission_wait(&admission, &places[i]));
	}
}

static struct place *granted(void)
{
	admission_grant(&admission, 1);
	return admission_next_granted(&admission, &ends[0].line_end);
}

/* ---- Seats ---- */

static void a_seat_is_taken_as_often_as_it_may(void **state)
{
	struct seat seat = { .concurrency = 2 };

	(void)state;
	assert_true(seat_take(&seat));
	assert_true(seat_take(&seat));
	assert_false(seat_take(&seat));
	assert_int_equal(atomic_load(&seat.n_held), 2);
	seat_free(&seat, &admission);
	assert_true(seat_take(&seat));
	assert_false(seat_take(&seat));
	assert_int_equal(atomic_load(&seat.n_held), 2);
}

static void a_seat_without_limit_is_always_free(void **state)
{
	struct seat seat = { .concurrency = 0 };

	(void)state;
	for (unsigned i = 0; i < 10000; i++)
		assert_true(seat_take(&seat));
	assert_int_equal(atomic_load(&seat.n_held), 10000);
	seat_free(&seat, &admission);
	assert_int_equal(atomic_load(&seat.n_held), 9999);
}

static void a_freed_seat_grants_the_first_in_line_alone(void **state)
{
	struct seat seat = { .concurrency = 1 };
	struct place places[2];

	(void)state;
	assert_true(seat_take(&seat));
	line_up(places, 2);
	assert_null(admission_next_granted(&admission, &ends[0].line_end));
	seat_free(&seat, &admission);
	assert_int_equal(n_woken(&ends[0]), 1);
	assert_int_equal(admission_n_waiting(&admission), 1);
	assert_ptr_equal(admission_next_granted(&admission, &ends[0].line_end), &places[0]);
	assert_null(admission_next_granted(&admission, &ends[0].line_end));
}

/* ---- The line ---- */

static void first_come_first_granted(void **state)
{
	struct place places[4];

	(void)state;
	line_up(places, 4);
	assert_int_equal(admission_n_waiting(&admission), 4);
	for (unsigned i = 0; i < 4; i++)
		assert_ptr_equal(granted(), &places[i]);
	assert_null(granted());
	assert_int_equal(admission_n_waiting(&admission), 0);
}

static void the_line_is_one_for_all_threads(void **state)
{
	struct place places[4];

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		place_init(&places[i], &ends[i % 2].line_end);
		assert_true(admission_wait(&admission, &places[i]));
	}
	admission_grant(&admission, 3);
	assert_int_equal(admission_n_waiting(&admission), 1);
	assert_ptr_equal(admission_next_granted(&admission, &ends[0].line_end), &places[0]);
	assert_ptr_equal(admission_next_granted(&admission, &ends[0].line_end), &places[2]);
	assert_null(admission_next_granted(&admission, &ends[0].line_end));
	assert_ptr_equal(admission_next_granted(&admission, &ends[1].line_end), &places[1]);
	assert_null(admission_next_granted(&admission, &ends[1].line_end));
}

static void an_end_is_woken_once_until_it_has_looked(void **state)
{
	struct place places[4];

	(void)state;
	line_up(places, 4);
	admission_grant(&admission, 2);
	admission_grant(&admission, 1);
	assert_int_equal(n_woken(&ends[0]), 1);
	while (admission_next_granted(&admission, &ends[0].line_end))
		;
	admission_grant(&admission, 1);
	assert_int_equal(n_woken(&ends[0]), 2);
}

static void a_grant_without_a_line_is_nothing(void **state)
{
	struct place place;

	(void)state;
	admission_grant(&admission, 3);
	line_up(&place, 1);
	assert_null(admission_next_granted(&admission, &ends[0].line_end));
	assert_int_equal(n_woken(&ends[0]), 0);
}

static void an_old_number_goes_back_to_its_place(void **state)
{
	struct place places[4];

	(void)state;
	line_up(places, 4);
	assert_ptr_equal(granted(), &places[0]);
	assert_ptr_equal(granted(), &places[1]);
	assert_ptr_equal(granted(), &places[2]);
	/* They come back in another order than they have. */
	assert_true(admission_wait(&admission, &places[1]));
	assert_true(admission_wait(&admission, &places[2]));
	assert_true(admission_wait(&admission, &places[0]));
	for (unsigned i = 0; i < 4; i++)
		assert_ptr_equal(granted(), &places[i]);
}

static void the_youngest_number_goes_back_to_the_end(void **state)
{
	struct place places[3];

	(void)state;
	line_up(places, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_ptr_equal(granted(), &places[i]);
	assert_true(admission_wait(&admission, &places[0]));
	assert_true(admission_wait(&admission, &places[2]));
	assert_true(admission_wait(&admission, &places[1]));
	for (unsigned i = 0; i < 3; i++)
		assert_ptr_equal(granted(), &places[i]);
}

static void a_full_line_takes_nobody_new(void **state)
{
	struct place places[5];

	(void)state;
	line_up(places, 4);
	place_init(&places[4], &ends[0].line_end);
	assert_false(admission_wait(&admission, &places[4]));
	assert_int_equal(admission_n_waiting(&admission), 4);
	assert_int_equal(places[4].where, PLACE_NOWHERE);
	assert_ptr_equal(granted(), &places[0]);
	assert_true(admission_wait(&admission, &places[4]));
	/* Who has been in line may come back to it, full or not. */
	assert_true(admission_wait(&admission, &places[0]));
	assert_int_equal(admission_n_waiting(&admission), 5);
	for (unsigned i = 0; i < 5; i++)
		assert_ptr_equal(granted(), &places[i]);
}

static void a_refused_place_may_leave(void **state)
{
	struct place places[5];

	(void)state;
	line_up(places, 4);
	place_init(&places[4], &ends[0].line_end);
	assert_false(admission_wait(&admission, &places[4]));
	admission_leave(&admission, &places[4]);
	assert_int_equal(admission_n_waiting(&admission), 4);
}

static void while_a_generation_boots_nobody_is_refused(void **state)
{
	struct place places[100];

	(void)state;
	atomic_store(&admission.unlimited, true);
	line_up(places, 100);
	assert_int_equal(admission_n_waiting(&admission), 100);
}

/* ---- Leaving ---- */

static void who_leaves_the_line_is_passed_over(void **state)
{
	struct place places[3];

	(void)state;
	line_up(places, 3);
	admission_leave(&admission, &places[1]);
	assert_int_equal(admission_n_waiting(&admission), 2);
	admission_leave(&admission, &places[1]);
	assert_int_equal(admission_n_waiting(&admission), 2);
	assert_ptr_equal(granted(), &places[0]);
	assert_ptr_equal(granted(), &places[2]);
	assert_null(granted());
}

static void who_leaves_with_a_grant_is_not_served(void **state)
{
	struct place place;

	(void)state;
	line_up(&place, 1);
	admission_grant(&admission, 1);
	assert_int_equal(admission_n_waiting(&admission), 0);
	admission_leave(&admission, &place);
	assert_int_equal(admission_n_waiting(&admission), 0);
	assert_null(admission_next_granted(&admission, &ends[0].line_end));
}

/* Else the seat that it was granted for stays empty while others wait. */
static void who_leaves_with_a_grant_passes_it_on(void **state)
{
	struct place places[2];

	(void)state;
	line_up(places, 2);
	admission_grant(&admission, 1);
	admission_leave(&admission, &places[0]);
	assert_ptr_equal(admission_next_granted(&admission, &ends[0].line_end), &places[1]);
	assert_int_equal(admission_n_waiting(&admission), 0);
}

/* ---- Many threads ---- */

struct server {
	struct end end;
	pthread_t handle;
	struct seat *seats;
	unsigned n_seats;
	unsigned leaves_every; /* gives its place up at every so manieth grant; 0: never */
	uint64_t n_served, n_waited, n_left;
	bool starved; /* nothing came before the deadline */
	bool crowded; /* a seat held more than it may */
};

/* One for each seat of the stress: how many hold it, counted apart from it. */
static _Atomic unsigned n_holders[N_THREADS];

static int take_any(struct server *server)
{
	for (unsigned i = 0; i < server->n_seats; i++)
		if (seat_take(&server->seats[i]))
			return (int)i;
	return -1;
}

/* As the round has it: in line first, and then a look whether a seat was freed meanwhile. */
static void get_in_line(struct server *server, struct place *place)
{
	if (!admission_wait(&admission, place))
		abort();
	for (unsigned i = 0; i < server->n_seats; i++)
		if (atomic_load(&server->seats[i].n_held) < server->seats[i].concurrency) {
			admission_grant(&admission, 1);
			return;
		}
}

static bool await_grant(struct server *server)
{
	struct timespec deadline;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += CASE_WAIT_MS / 1000;
	while (sem_timedwait(&server->end.woken, &deadline) < 0)
		if (errno != EINTR)
			return false;
	return true;
}

/* Returns the seat, -1 where it left, -2 where nothing came. */
static int get_seat(struct server *server)
{
	struct place place;
	int seat = take_any(server);

	if (seat >= 0)
		return seat;
	place_init(&place, &server->end.line_end);
	get_in_line(server, &place);
	for (;;) {
		if (!await_grant(server)) {
			admission_leave(&admission, &place);
			return -2;
		}
		server->n_waited++;
		if (server->leaves_every && server->n_waited % server->leaves_every == 0) {
			admission_leave(&admission, &place);
			return -1;
		}
		if (!admission_next_granted(&admission, &server->end.line_end))
			continue;
		seat = take_any(server);
		if (seat >= 0)
			return seat;
		get_in_line(server, &place);
	}
}

static void *serve(void *data)
{
	struct server *server = data;

	while (server->n_served + server->n_left < N_ROUNDS) {
		int seat = get_seat(server);

		if (seat == -2) {
			server->starved = true;
			break;
		}
		if (seat == -1) {
			server->n_left++;
			continue;
		}
		if (atomic_fetch_add(&n_holders[seat], 1) >= server->seats[seat].concurrency)
			server->crowded = true;
		server->n_served++;
		atomic_fetch_sub(&n_holders[seat], 1);
		seat_free(&server->seats[seat], &admission);
	}
	return NULL;
}

static void run_stress(struct seat seats[], unsigned n_seats, unsigned leaves_every)
{
	static struct server servers[N_THREADS];
	uint64_t n_done = 0;

	for (unsigned i = 0; i < N_THREADS; i++) {
		servers[i] = (struct server){
			.seats = seats, .n_seats = n_seats, .leaves_every = leaves_every
		};
		end_init(&servers[i].end);
	}
	for (unsigned i = 0; i < N_THREADS; i++)
		assert_int_equal(pthread_create(&servers[i].handle, NULL, serve, &servers[i]), 0);
	for (unsigned i = 0; i < N_THREADS; i++)
		pthread_join(servers[i].handle, NULL);
	for (unsigned i = 0; i < N_THREADS; i++) {
		assert_false(servers[i].starved);
		assert_false(servers[i].crowded);
		n_done += servers[i].n_served + servers[i].n_left;
		sem_destroy(&servers[i].end.woken);
	}
	assert_int_equal(n_done, N_THREADS * N_ROUNDS);
	assert_int_equal(admission_n_waiting(&admission), 0);
	for (unsigned i = 0; i < n_seats; i++)
		assert_int_equal(atomic_load(&seats[i].n_held), 0);
}

static void no_wake_up_is_lost_at_one_seat(void **state)
{
	struct seat seats[1] = { { .concurrency = 1 } };

	(void)state;
	run_stress(seats, 1, 0);
}

static void no_wake_up_is_lost_at_several_seats(void **state)
{
	struct seat seats[2] = { { .concurrency = 1 }, { .concurrency = 2 } };

	(void)state;
	run_stress(seats, 2, 0);
}

static void no_wake_up_is_lost_where_some_leave(void **state)
{
	struct seat seats[1] = { { .concurrency = 1 } };

	(void)state;
	run_stress(seats, 1, 3);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(a_seat_is_taken_as_often_as_it_may),
		CASE(a_seat_without_limit_is_always_free),
		CASE(a_freed_seat_grants_the_first_in_line_alone),
		CASE(first_come_first_granted),
		CASE(the_line_is_one_for_all_threads),
		CASE(an_end_is_woken_once_until_it_has_looked),
		CASE(a_grant_without_a_line_is_nothing),
		CASE(an_old_number_goes_back_to_its_place),
		CASE(the_youngest_number_goes_back_to_the_end),
		CASE(a_full_line_takes_nobody_new),
		CASE(a_refused_place_may_leave),
		CASE(while_a_generation_boots_nobody_is_refused),
		CASE(who_leaves_the_line_is_passed_over),
		CASE(who_leaves_with_a_grant_is_not_served),
		CASE(who_leaves_with_a_grant_passes_it_on),
		CASE(no_wake_up_is_lost_at_one_seat),
		CASE(no_wake_up_is_lost_at_several_seats),
		CASE(no_wake_up_is_lost_where_some_leave),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
