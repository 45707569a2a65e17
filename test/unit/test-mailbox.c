/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/mailbox.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "case.h"

#define N_THREADS 4
#define N_MAILS 20000

struct fixture {
	struct ev_loop *loop;
	struct mailbox mailbox;
	int n_fds;
};

struct letter {
	struct mail mail;
	struct fixture *fixture;
	unsigned sender, number;
	unsigned n_more; /* how often it sends itself again */
};

/* What has run; touched by the receiver's thread alone. */
static unsigned n_run, n_run_of[N_THREADS], n_out_of_order;

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	alarm(CASE_DEADLINE_S);
	f->n_fds = case_count_fds();
	f->loop = ev_loop_new(EVFLAG_NOENV | EVBACKEND_EPOLL);
	mailbox_init(&f->mailbox, f->loop);
	n_run = n_out_of_order = 0;
	for (unsigned i = 0; i < N_THREADS; i++)
		n_run_of[i] = 0;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	mailbox_fini(&f->mailbox);
	ev_loop_destroy(f->loop);
	assert_int_equal(case_count_fds(), f->n_fds);
	alarm(0);
	free(f);
	return 0;
}

static void run_letter(struct mail *mail)
{
	struct letter *letter = container_of(mail, struct letter, mail);

	n_run++;
	if (letter->number != n_run_of[letter->sender]++)
		n_out_of_order++;
	if (letter->n_more == 0)
		return;
	letter->n_more--;
	letter->number++;
	mailbox_send(&letter->fixture->mailbox, mail);
}

static void mails_run_in_order_in_one_wake_up(void **state)
{
	struct fixture *f = *state;
	struct letter letters[10] = { 0 };

	for (unsigned i = 0; i < 10; i++) {
		letters[i].mail.run = run_letter;
		letters[i].number = i;
		mailbox_send(&f->mailbox, &letters[i].mail);
	}
	assert_int_equal(n_run, 0);
	ev_run(f->loop, EVRUN_NOWAIT);
	assert_int_equal(n_run, 10);
	assert_int_equal(n_out_of_order, 0);
	ev_run(f->loop, EVRUN_NOWAIT);
	assert_int_equal(n_run, 10);
}

static void mail_that_is_sent_again_while_it_runs_waits_for_the_next_turn(void **state)
{
	struct fixture *f = *state;
	struct letter letter = { .mail.run = run_letter, .fixture = f, .n_more = 3 };

	mailbox_send(&f->mailbox, &letter.mail);
	for (unsigned turn = 1; turn <= 4; turn++) {
		ev_run(f->loop, EVRUN_NOWAIT);
		assert_int_equal(n_run, turn);
	}
	ev_run(f->loop, EVRUN_NOWAIT);
	assert_int_equal(n_run, 4);
	assert_int_equal(n_out_of_order, 0);
}

static void run_last(struct mail *mail)
{
	struct letter *letter = container_of(mail, struct letter, mail);

	run_letter(mail);
	if (n_run == N_THREADS * N_MAILS)
		ev_break(letter->fixture->loop, EVBREAK_ALL);
}

static void *send_many(void *data)
{
	struct letter *letters = data;

	for (unsigned i = 0; i < N_MAILS; i++)
		mailbox_send(&letters[i].fixture->mailbox, &letters[i].mail);
	return NULL;
}

/* A mail that was put in and not announced would leave the loop asleep: alarm(2). */
static void mails_of_many_threads_all_run_each_senders_in_order(void **state)
{
	struct fixture *f = *state;
	struct letter *letters[N_THREADS];
	pthread_t threads[N_THREADS];

	for (unsigned t = 0; t < N_THREADS; t++) {
		letters[t] = calloc(N_MAILS, sizeof(struct letter));
		for (unsigned i = 0; i < N_MAILS; i++)
			letters[t][i] = (struct letter){
				.mail.run = run_last, .fixture = f, .sender = t, .number = i
			};
		assert_int_equal(pthread_create(&threads[t], NULL, send_many, letters[t]), 0);
	}
	ev_run(f->loop, 0);
	for (unsigned t = 0; t < N_THREADS; t++) {
		pthread_join(threads[t], NULL);
		free(letters[t]);
		assert_int_equal(n_run_of[t], N_MAILS);
	}
	assert_int_equal(n_out_of_order, 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(mails_run_in_order_in_one_wake_up),
		CASE(mail_that_is_sent_again_while_it_runs_waits_for_the_next_turn),
		CASE(mails_of_many_threads_all_run_each_senders_in_order),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
