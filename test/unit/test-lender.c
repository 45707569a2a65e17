/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
/*
 * The lender on a real loop that is turned by hand, against a worker's end that the test plays.
 */
#include "master/lender.h"

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "case.h"
#include "common/fd.h"

#define N_SLOTS 2048
#define N_LOANS 2048
#define HEAD "GET /a HTTP/1.1\r\nHost: b\r\n\r\n"

/* What the kernel says to a send only under pressure from outside is made up: 0, or an errno. */
static int send_fails_with;

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	if (send_fails_with) {
		errno = send_fails_with;
		return -1;
	}
	return syscall(SYS_sendmsg, fd, msg, flags);
}

enum what { RETURNED = 1, DETACHED, REFUSED, LOST };

/* The last thing that was told of a loan. */
struct news {
	enum what what;
	unsigned n; /* how often */
	struct wire_return ret;
	char surplus[64];
	bool taken;
	uint64_t end;
	unsigned n_seats_left;
};

struct item {
	struct loan loan;
	struct news news;
};

struct fixture {
	struct thread thread;
	struct seat seat;
	struct lender *lender;
	int n_fds;
	unsigned n_opened, n_broken;
	void (*at_return)(struct fixture *f); /* what else happens meanwhile, or NULL */
	const char *why;
	/* What is lent. */
	struct item items[N_LOANS];
	char *long_head;
	struct http_head head;
	int client_fd;
	int master_fd; /* the lender's: borrowed */
	/* The worker's end. */
	int worker_fd;
	struct wire_slot *slots;
	struct wire_inbox inbox;
	struct wire_batch batch;
	uint32_t n_taken;
};

static struct news *news_of(struct loan *loan, enum what what)
{
	struct news *news = &container_of(loan, struct item, loan)->news;

	/* It is free again, but for one that is detached. */
	if (what == DETACHED)
		assert_non_null(loan->lender);
	else
		assert_null(loan->lender);
	news->what = what;
	news->n++;
	/* Its seat was left before, and once. */
	assert_int_equal(news->n_seats_left, 1);
	if (what != DETACHED)
		news->n_seats_left = 0;
	return news;
}

static void note_return(struct news *news, const struct wire_return *ret)
{
	news->ret = *ret;
	assert_true(ret->surplus_len < sizeof(news->surplus));
	memcpy(news->surplus, wire_return_surplus(ret), ret->surplus_len);
	news->surplus[ret->surplus_len] = '\0';
}

static void on_return(struct loan *loan, const struct wire_return *ret)
{
	note_return(news_of(loan, RETURNED), ret);
}

static void on_detached(struct loan *loan, const struct wire_return *ret)
{
	note_return(news_of(loan, DETACHED), ret);
}

static void on_refused(struct loan *loan)
{
	news_of(loan, REFUSED);
}

static void on_lost(struct loan *loan, bool taken, uint64_t end)
{
	struct news *news = news_of(loan, LOST);

	news->taken = taken;
	news->end = end;
}

static const struct loan_ops loan_ops = {
	.on_return = on_return,
	.on_detached = on_detached,
	.on_refused = on_refused,
	.on_lost = on_lost,
};

static void on_seat_left(void *data, struct loan *loan)
{
	struct fixture *f = data;

	container_of(loan, struct item, loan)->news.n_seats_left++;
	if (f->at_return)
		f->at_return(f);
}

static void on_opened(void *data, struct lender *lender)
{
	struct fixture *f = data;

	assert_true(lender_open(lender));
	f->n_opened++;
}

static void on_broken(void *data, struct lender *lender, const char *why)
{
	struct fixture *f = data;

	assert_false(lender_open(lender));
	f->n_broken++;
	f->why = why;
}

static const struct lender_ops ops = {
	.on_seat_left = on_seat_left,
	.on_opened = on_opened,
	.on_broken = on_broken,
};

static void open_lender(struct fixture *f, uint32_t n_slots)
{
	struct wire_slot *slots;
	int fd, page_fd;

	assert_int_equal(wire_channel_new(&fd, &f->worker_fd), 0);
	f->master_fd = fd;
	assert_int_equal(wire_page_new(n_slots, &slots, &page_fd), 0);
	assert_int_equal(wire_page_map(&page_fd, n_slots, &f->slots), 0);
	assert_int_equal(
		lender_new(&f->thread, &f->seat, &fd, &slots, n_slots, &ops, f, &f->lender), 0);
	assert_int_equal(fd, -1);
	assert_null(slots);
}

static void close_lender(struct fixture *f, uint32_t n_slots)
{
	lender_settle(f->lender);
	f->lender = lender_free(f->lender);
	fd_close(&f->worker_fd);
	f->slots = wire_page_free(f->slots, n_slots);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct settings settings = { 0 };

	alarm(CASE_DEADLINE_S);
	send_fails_with = 0;
	f->n_fds = case_count_fds();
	assert_int_equal(thread_init(&f->thread, 0, &settings), 0);
	open_lender(f, N_SLOTS);
	assert_int_equal(wire_inbox_init(&f->inbox), 0);
	wire_batch_init(&f->batch);
	f->client_fd = memfd_create("client", MFD_CLOEXEC);
	f->head = (struct http_head){
		.len = sizeof(HEAD) - 1, .method_len = 3, .target_len = 2, .http_minor = 1
	};
	for (unsigned i = 0; i < N_LOANS; i++)
		f->items[i].loan.ops = &loan_ops;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	if (f->lender)
		close_lender(f, N_SLOTS);
	thread_fini(&f->thread);
	wire_inbox_fini(&f->inbox);
	wire_batch_fini(&f->batch);
	fd_close(&f->client_fd);
	free(f->long_head);
	for (unsigned i = 0; i < N_LOANS; i++)
		assert_null(f->items[i].loan.lender);
	assert_int_equal(case_count_fds(), f->n_fds);
	alarm(0);
	free(f);
	return 0;
}

/* ---- The master's side ---- */

static void turn(struct fixture *f)
{
	ev_run(f->thread.loop, EVRUN_NOWAIT);
}

/* Turns the loop until on_opened has been told so often. */
static void turn_until_opened(struct fixture *f, unsigned n_opened)
{
	int64_t deadline = case_now_ms() + CASE_WAIT_MS;

	while (f->n_opened < n_opened) {
		assert_true(case_now_ms() < deadline);
		turn(f);
	}
	assert_int_equal(f->n_opened, n_opened);
}

static struct loan_terms terms_of(struct fixture *f, unsigned i)
{
	static const struct sockaddr_in peer = { .sin_family = AF_INET, .sin_port = 0x1234 };

	return (struct loan_terms){
		.fd = f->client_fd,
		.flags = WIRE_LEND_KEEP_ALIVE,
		.request_id = 1000 + i,
		.connection_id = 5000 + i,
		.complete_us = 77,
		.head = &f->head,
		.data = f->long_head ? f->long_head : HEAD,
		.peer = (const struct sockaddr *)&peer,
		.peer_len = sizeof(peer),
	};
}

static int try_lend(struct fixture *f, unsigned i)
{
	struct loan_terms terms = terms_of(f, i);

	return lender_lend(f->lender, &f->items[i].loan, &terms);
}

static void lend(struct fixture *f, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++) {
		assert_int_equal(try_lend(f, i), 0);
		assert_ptr_equal(f->items[i].loan.lender, f->lender);
	}
	lender_flush(f->lender);
}

/* Heads of so many bytes from now on. */
static void use_long_heads(struct fixture *f, uint32_t len)
{
	f->long_head = calloc(1, len);
	memcpy(f->long_head, HEAD, sizeof(HEAD) - 1);
	f->head.len = len;
}

static void expect_news(struct fixture *f, unsigned i, enum what what, unsigned n)
{
	assert_int_equal(f->items[i].news.what, what);
	assert_int_equal(f->items[i].news.n, n);
}

/* ---- The worker's side ---- */

/* Takes one message of so many lends, in order from the loan `first`, and their descriptors. */
static void worker_takes(struct fixture *f, unsigned first, unsigned n)
{
	int error;

	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	for (unsigned i = first; i < first + n; i++) {
		const struct wire_lend *got = (const void *)wire_next(&f->inbox, &error);
		FD_AUTO int fd = wire_take_fd(&f->inbox);

		assert_non_null(got);
		assert_int_equal(got->record.type, WIRE_LEND);
		assert_int_equal(got->request_id, 1000 + i);
		assert_int_equal(got->slot, f->items[i].loan.slot);
		assert_true(case_same_file(fd, f->client_fd));
		f->n_taken++;
	}
	assert_null(wire_next(&f->inbox, &error));
	assert_int_equal(error, 0);
	assert_int_equal(wire_take_fd(&f->inbox), -1);
}

/* Takes everything there is without looking. Returns the messages. */
static unsigned worker_takes_all(struct fixture *f)
{
	const struct wire_record *record;
	unsigned n = 0;
	int error;

	while (wire_receive(f->worker_fd, &f->inbox) == WIRE_MESSAGE) {
		while ((record = wire_next(&f->inbox, &error)))
			f->n_taken += record->type == WIRE_LEND;
		assert_int_equal(error, 0);
		n++;
	}
	return n;
}

static void worker_sends(struct fixture *f)
{
	assert_int_equal(wire_send(f->worker_fd, &f->batch, f->n_taken), 0);
}

static struct wire_return *worker_adds(
	struct fixture *f, enum wire_type type, unsigned i, const char *surplus)
{
	size_t surplus_len = strlen(surplus);
	struct wire_return *ret =
		wire_batch_add(&f->batch, type, 0, sizeof(*ret) + surplus_len, -1);

	assert_non_null(ret);
	memset(&ret->request_id, 0, sizeof(*ret) - sizeof(ret->record));
	ret->request_id = 1000 + i;
	ret->slot = f->items[i].loan.slot;
	ret->surplus_len = (uint32_t)surplus_len;
	ret->disposition = type == WIRE_RETURN ? WIRE_KEEP : 0;
	memcpy(ret + 1, surplus, surplus_len);
	return ret;
}

static void worker_returns(struct fixture *f, unsigned i)
{
	worker_adds(f, WIRE_RETURN, i, "");
	worker_sends(f);
}

/* The channel has been given up, for that reason, and says so once. */
static void expect_broken(struct fixture *f, const char *why)
{
	turn(f);
	assert_int_equal(f->n_broken, 1);
	assert_string_equal(f->why, why);
	assert_false(lender_open(f->lender));
	assert_int_equal(try_lend(f, N_LOANS - 1), -EAGAIN);
	worker_returns(f, 0);
	turn(f);
	lender_flush(f->lender);
	assert_int_equal(f->n_broken, 1);
}

/* ---- Lending ---- */

static void a_loan_reaches_the_worker_with_all_its_terms(void **state)
{
	static const char data[] = "POST /long HTTP/1.1\r\n\r\nabcde";
	static const struct sockaddr_in6 peer = { .sin6_family = AF_INET6, .sin6_port = 0x1234 };
	struct fixture *f = *state;
	const struct http_head head = { .len = 23,
		.method_len = 4,
		.target_len = 5,
		.http_minor = 1,
		.body = HTTP_BODY_LENGTH,
		.body_len = 500 };
	struct loan_terms terms = { .fd = f->client_fd,
		.flags = WIRE_LEND_REPLAY,
		.request_id = 41,
		.connection_id = 42,
		.complete_us = 43,
		.head = &head,
		.data = data,
		.ahead_len = 5,
		.peer = (const struct sockaddr *)&peer,
		.peer_len = sizeof(peer) };
	const struct wire_lend *got;
	FD_AUTO int fd = -1;
	int error;

	assert_true(lender_open(f->lender));
	assert_false(lender_collects(f->lender));
	assert_int_equal(lender_lend(f->lender, &f->items[0].loan, &terms), 0);
	assert_true(lender_collects(f->lender));
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	lender_flush(f->lender);
	assert_false(lender_collects(f->lender));
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	got = (const void *)wire_next(&f->inbox, &error);
	assert_non_null(got);
	assert_int_equal(got->record.flags, WIRE_LEND_REPLAY);
	assert_int_equal(got->request_id, 41);
	assert_int_equal(got->connection_id, 42);
	assert_int_equal(got->complete_us, 43);
	assert_int_equal(got->body, WIRE_BODY_LENGTH);
	assert_int_equal(got->body_len, 500);
	assert_int_equal(got->http_minor, 1);
	assert_int_equal(got->head_len, 23);
	assert_int_equal(got->method_len, 4);
	assert_int_equal(got->target_len, 5);
	assert_int_equal(got->ahead_len, 5);
	assert_int_equal(got->peer_len, sizeof(peer));
	assert_int_equal(got->local_len, 0);
	assert_int_equal(got->set_fields_len, 0);
	assert_int_equal(got->add_fields_len, 0);
	assert_memory_equal(wire_lend_data(got), &peer, sizeof(peer));
	assert_memory_equal(wire_lend_data(got) + sizeof(peer), data, 28);
	fd = wire_take_fd(&f->inbox);
	assert_true(case_same_file(fd, f->client_fd));
}

static void only_a_body_of_known_length_has_one(void **state)
{
	struct fixture *f = *state;
	const struct wire_lend *got;
	int error;

	f->head.body = HTTP_BODY_CHUNKED;
	f->head.body_len = 4711;
	lend(f, 0, 1);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	got = (const void *)wire_next(&f->inbox, &error);
	assert_int_equal(got->body, WIRE_BODY_CHUNKED);
	assert_int_equal(got->body_len, 0);
}

static void loans_of_one_turn_are_one_message(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 20);
	worker_takes(f, 0, 20);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	lender_flush(f->lender);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
}

static void a_full_message_goes_out_by_itself(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i <= WIRE_FDS_MAX; i++)
		assert_int_equal(try_lend(f, i), 0);
	worker_takes(f, 0, WIRE_FDS_MAX);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	lender_flush(f->lender);
	worker_takes(f, WIRE_FDS_MAX, 1);
}

static void a_loan_that_no_message_can_hold_is_refused(void **state)
{
	struct fixture *f = *state;

	use_long_heads(f, WIRE_MESSAGE_MAX);
	assert_int_equal(try_lend(f, 0), -EMSGSIZE);
	assert_null(f->items[0].loan.lender);
	assert_true(lender_open(f->lender));
	f->head.len = 1000;
	lend(f, 1, 1);
	worker_takes(f, 1, 1);
}

static void a_recall_names_its_loan(void **state)
{
	struct fixture *f = *state;
	const struct wire_recall *got;
	int error;

	lend(f, 0, 2);
	worker_takes(f, 0, 2);
	lender_recall(f->lender, &f->items[1].loan);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	got = (const void *)wire_next(&f->inbox, &error);
	assert_non_null(got);
	assert_int_equal(got->record.type, WIRE_RECALL);
	assert_int_equal(got->request_id, 1001);
	assert_int_equal(got->slot, f->items[1].loan.slot);
	worker_adds(f, WIRE_RETURN, 1, "")->disposition = WIRE_CANCELLED;
	worker_sends(f);
	turn(f);
	expect_news(f, 1, RETURNED, 1);
	assert_int_equal(f->items[1].news.ret.disposition, WIRE_CANCELLED);
}

/* ---- Slots ---- */

static void loans_have_slots_of_their_own_and_clear(void **state)
{
	struct fixture *f = *state;
	bool seen[N_SLOTS] = { false };

	for (unsigned i = 0; i < N_SLOTS; i++) {
		atomic_store(&f->slots[i].end, 99);
		atomic_store(&f->slots[i].taken, 1);
	}
	lend(f, 0, 200);
	for (unsigned i = 0; i < 200; i++) {
		uint32_t slot = f->items[i].loan.slot;

		assert_true(slot < N_SLOTS);
		assert_false(seen[slot]);
		seen[slot] = true;
		assert_int_equal(atomic_load(&f->slots[slot].end), 0);
		assert_int_equal(atomic_load(&f->slots[slot].taken), 0);
	}
}

static void a_slot_is_used_again_and_cleared(void **state)
{
	struct fixture *f = *state;
	uint32_t slot;

	lend(f, 0, 3);
	worker_takes(f, 0, 3);
	slot = f->items[1].loan.slot;
	atomic_store(&f->slots[slot].taken, 1);
	atomic_store(&f->slots[slot].end, 4711);
	worker_returns(f, 1);
	turn(f);
	lend(f, 3, 1);
	assert_int_equal(f->items[3].loan.slot, slot);
	assert_int_equal(atomic_load(&f->slots[slot].taken), 0);
	assert_int_equal(atomic_load(&f->slots[slot].end), 0);
}

static void without_a_slot_a_loan_must_wait(void **state)
{
	struct fixture *f = *state;

	close_lender(f, N_SLOTS);
	open_lender(f, 3);
	lend(f, 0, 3);
	assert_int_equal(try_lend(f, 3), -EAGAIN);
	assert_null(f->items[3].loan.lender);
	worker_takes(f, 0, 3);
	worker_returns(f, 2);
	turn(f);
	lend(f, 3, 1);
	worker_takes(f, 3, 1);
	close_lender(f, 3);
	expect_news(f, 0, LOST, 1);
	expect_news(f, 1, LOST, 1);
	expect_news(f, 3, LOST, 1);
}

/* ---- Returns ---- */

static void returns_find_their_loans(void **state)
{
	struct fixture *f = *state;
	struct wire_return *ret;

	lend(f, 0, 4);
	worker_takes(f, 0, 4);
	ret = worker_adds(f, WIRE_RETURN, 2, "GET /next");
	ret->written = 123;
	ret->read = 45;
	ret->status = 200;
	ret->disposition = WIRE_CLOSE;
	worker_adds(f, WIRE_RETURN, 0, "");
	worker_sends(f);
	turn(f);
	expect_news(f, 0, RETURNED, 1);
	expect_news(f, 1, 0, 0);
	expect_news(f, 2, RETURNED, 1);
	expect_news(f, 3, 0, 0);
	assert_int_equal(f->items[2].news.ret.written, 123);
	assert_int_equal(f->items[2].news.ret.read, 45);
	assert_int_equal(f->items[2].news.ret.status, 200);
	assert_int_equal(f->items[2].news.ret.disposition, WIRE_CLOSE);
	assert_string_equal(f->items[2].news.surplus, "GET /next");
	assert_int_equal(f->items[0].news.ret.disposition, WIRE_KEEP);
	assert_int_equal(f->n_broken, 0);
}

static void a_detached_loan_returns_later(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 1);
	worker_takes(f, 0, 1);
	worker_adds(f, WIRE_DETACHED, 0, "")->written = 129;
	worker_sends(f);
	turn(f);
	expect_news(f, 0, DETACHED, 1);
	assert_true(f->items[0].loan.detached);
	assert_int_equal(f->items[0].news.ret.written, 129);
	worker_returns(f, 0);
	turn(f);
	expect_news(f, 0, RETURNED, 2);
	assert_int_equal(f->n_broken, 0);
}

static void a_worker_that_closes_its_channel_breaks_it(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 2);
	worker_takes(f, 0, 2);
	worker_returns(f, 1);
	fd_close(&f->worker_fd);
	turn(f);
	expect_news(f, 1, RETURNED, 1);
	assert_int_equal(f->n_broken, 1);
	assert_string_equal(f->why, LENDER_CLOSED);
	assert_false(lender_open(f->lender));
	turn(f);
	assert_int_equal(f->n_broken, 1);
	/* No death: what it holds is not lost yet. */
	expect_news(f, 0, 0, 0);
}

static void a_return_of_an_unknown_slot_breaks(void **state)
{
	struct fixture *f = *state;
	static const uint32_t slots[] = { 1, N_SLOTS, UINT32_MAX };

	for (unsigned i = 0; i < 3; i++) {
		f->n_broken = 0;
		lend(f, 0, 1);
		worker_takes_all(f);
		worker_adds(f, WIRE_RETURN, 0, "")->slot = slots[i];
		worker_sends(f);
		expect_broken(f, "returned what it does not hold");
		close_lender(f, N_SLOTS);
		expect_news(f, 0, LOST, i + 1);
		f->n_taken = 0;
		open_lender(f, N_SLOTS);
	}
}

static void a_return_of_another_request_breaks(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 2);
	worker_takes(f, 0, 2);
	worker_adds(f, WIRE_RETURN, 0, "")->slot = f->items[1].loan.slot;
	worker_sends(f);
	expect_broken(f, "returned what it does not hold");
}

static void a_second_return_breaks(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 2);
	worker_takes(f, 0, 2);
	worker_adds(f, WIRE_RETURN, 1, "");
	worker_adds(f, WIRE_RETURN, 1, "");
	worker_sends(f);
	expect_broken(f, "returned what it does not hold");
	expect_news(f, 1, RETURNED, 1);
}

static void what_follows_a_fault_is_not_believed(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 3);
	worker_takes(f, 0, 3);
	worker_adds(f, WIRE_RETURN, 1, "")->request_id = 1;
	worker_adds(f, WIRE_RETURN, 2, "");
	worker_sends(f);
	expect_broken(f, "returned what it does not hold");
	expect_news(f, 2, 0, 0);
}

static void unknown_dispositions_break(void **state)
{
	struct fixture *f = *state;
	static const uint8_t bad[] = { 0, WIRE_CUT + 1, 255 };

	for (unsigned i = 0; i < 3; i++) {
		f->n_broken = 0;
		lend(f, 0, 1);
		worker_takes_all(f);
		worker_adds(f, WIRE_RETURN, 0, "")->disposition = bad[i];
		worker_sends(f);
		expect_broken(f, "unknown disposition");
		close_lender(f, N_SLOTS);
		expect_news(f, 0, LOST, i + 1);
		f->n_taken = 0;
		open_lender(f, N_SLOTS);
	}
}

static void detaching_twice_breaks(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 1);
	worker_takes(f, 0, 1);
	worker_adds(f, WIRE_DETACHED, 0, "");
	worker_adds(f, WIRE_DETACHED, 0, "");
	worker_sends(f);
	expect_broken(f, "detached what it does not hold");
	expect_news(f, 0, DETACHED, 1);
}

static void a_descriptor_breaks_and_is_closed(void **state)
{
	struct fixture *f = *state;
	int before;

	lend(f, 0, 1);
	worker_takes(f, 0, 1);
	before = case_count_fds();
	wire_batch_add(&f->batch, WIRE_BOOT_FAILED, 0, sizeof(struct wire_record), f->client_fd);
	worker_adds(f, WIRE_RETURN, 0, "");
	worker_sends(f);
	expect_broken(f, "sent a descriptor");
	expect_news(f, 0, 0, 0);
	lender_settle(f->lender);
	wire_receive(f->worker_fd, &f->thread.inbox);
	assert_int_equal(case_count_fds(), before);
}

static void records_of_the_master_break(void **state)
{
	struct fixture *f = *state;
	struct wire_number *record = wire_batch_add(&f->batch, WIRE_LAST, 0, sizeof(*record), -1);

	record->number = 0;
	worker_sends(f);
	expect_broken(f, "sent an unexpected record");
}

static void garbage_breaks(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(send(f->worker_fd, "garbage", 7, MSG_DONTWAIT), 7);
	expect_broken(f, strerror(EPROTO));
}

static void malformed_records_break(void **state)
{
	struct fixture *f = *state;

	wire_batch_add(&f->batch, WIRE_RETURN, 0, sizeof(struct wire_record), -1);
	worker_sends(f);
	expect_broken(f, "sent a malformed record");
}

static void a_worker_that_took_what_was_not_sent_breaks(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 2);
	worker_takes(f, 0, 2);
	worker_sends(f);
	turn(f);
	assert_int_equal(f->n_broken, 0);
	f->n_taken++;
	worker_sends(f);
	expect_broken(f, "took what was not sent");
}

static void a_worker_that_takes_back_what_it_took_breaks(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 2);
	worker_takes(f, 0, 2);
	worker_sends(f);
	turn(f);
	f->n_taken--;
	worker_sends(f);
	expect_broken(f, "took what was not sent");
}

static void a_send_to_a_closed_channel_breaks_and_refuses(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(try_lend(f, 0), 0);
	assert_int_equal(try_lend(f, 1), 0);
	fd_close(&f->worker_fd);
	lender_flush(f->lender);
	expect_news(f, 0, REFUSED, 1);
	expect_news(f, 1, REFUSED, 1);
	assert_int_equal(f->n_broken, 1);
	assert_string_equal(f->why, strerror(EPIPE));
	turn(f);
	assert_int_equal(f->n_broken, 1);
	assert_int_equal(try_lend(f, 2), -EAGAIN);
}

static void lend_another(struct fixture *f)
{
	f->at_return = NULL;
	lend(f, 1, 1);
}

static void a_channel_that_breaks_while_it_is_read_breaks_once(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 1);
	worker_takes(f, 0, 1);
	worker_returns(f, 0);
	fd_close(&f->worker_fd);
	f->at_return = lend_another;
	turn(f);
	expect_news(f, 0, RETURNED, 1);
	expect_news(f, 1, REFUSED, 1);
	assert_int_equal(f->n_broken, 1);
	assert_string_equal(f->why, strerror(EPIPE));
}

/* ---- When the channel has no room ---- */

static void the_window_counts_what_was_not_taken(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < WIRE_WINDOW; i++) {
		assert_true(lender_open(f->lender));
		assert_int_equal(try_lend(f, i), 0);
	}
	assert_false(lender_open(f->lender));
	lender_flush(f->lender);
	assert_false(lender_open(f->lender));
	turn(f);
	assert_int_equal(f->n_opened, 0);
	/* One message taken: serving them does not matter. */
	worker_takes(f, 0, WIRE_FDS_MAX);
	turn(f);
	assert_int_equal(f->n_opened, 0);
	worker_sends(f);
	turn(f);
	assert_int_equal(f->n_opened, 1);
	assert_true(lender_open(f->lender));
	for (unsigned i = 0; i < WIRE_FDS_MAX; i++) {
		assert_true(lender_open(f->lender));
		assert_int_equal(try_lend(f, WIRE_WINDOW + i), 0);
	}
	assert_false(lender_open(f->lender));
	worker_takes_all(f);
	worker_sends(f);
	turn(f);
	assert_int_equal(f->n_opened, 2);
}

static void many_more_lends_than_the_window_pass_one_after_the_other(void **state)
{
	struct fixture *f = *state;

	for (unsigned round = 0; round < 30; round++) {
		lend(f, 0, 100);
		worker_takes(f, 0, 100);
		for (unsigned i = 0; i < 100; i++)
			worker_adds(f, WIRE_RETURN, i, "");
		worker_sends(f);
		turn(f);
		assert_int_equal(f->n_broken, 0);
		assert_true(lender_open(f->lender));
		expect_news(f, 99, RETURNED, round + 1);
	}
	assert_int_equal(f->n_opened, 0);
}

/* Lends long heads until the channel takes no more. Returns how many it took. */
static unsigned fill(struct fixture *f)
{
	unsigned n = 0;

	use_long_heads(f, 60 * 1024);
	while (lender_open(f->lender)) {
		assert_true(n < 100);
		lend(f, n, 1);
		n++;
	}
	return n - 1;
}

static void a_full_channel_refuses_and_opens_again(void **state)
{
	struct fixture *f = *state;
	unsigned n = fill(f);

	assert_true(n > 0);
	for (unsigned i = 0; i < n; i++)
		expect_news(f, i, 0, 0);
	expect_news(f, n, REFUSED, 1);
	assert_false(lender_collects(f->lender));
	assert_int_equal(try_lend(f, n), -EAGAIN);
	turn(f);
	turn(f);
	assert_int_equal(f->n_opened, 0);
	for (unsigned i = 0; i < n; i++)
		worker_takes(f, i, 1);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	turn_until_opened(f, 1);
	lend(f, n, 1);
	worker_takes(f, n, 1);
	turn(f);
	assert_int_equal(f->n_opened, 1);
	assert_int_equal(f->n_broken, 0);
}

/* By the master's end of the channel, behind the lender's back. Returns the messages. */
static unsigned stuff(struct fixture *f)
{
	struct wire_recall *record;
	unsigned n = 0;
	int r;

	do {
		record = wire_batch_add(&f->batch, WIRE_RECALL, 0, sizeof(*record), -1);
		assert_non_null(record);
		memset(&record->request_id, 0, sizeof(*record) - sizeof(record->record));
		r = wire_send(f->master_fd, &f->batch, 0);
		n += r == 0;
	} while (r == 0);
	assert_int_equal(r, -EAGAIN);
	wire_batch_clear(&f->batch);
	return n;
}

static void a_refused_message_is_refused_as_a_whole(void **state)
{
	struct fixture *f = *state;
	unsigned n = stuff(f);
	uint32_t slots[3];

	lend(f, 0, 3);
	for (unsigned i = 0; i < 3; i++) {
		expect_news(f, i, REFUSED, 1);
		slots[i] = f->items[i].loan.slot;
	}
	assert_false(lender_open(f->lender));
	assert_int_equal(worker_takes_all(f), n);
	turn_until_opened(f, 1);
	/* Their slots are free, and what was refused is not sent. */
	lend(f, 3, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_true(f->items[3 + i].loan.slot == slots[0] ||
			    f->items[3 + i].loan.slot == slots[1] ||
			    f->items[3 + i].loan.slot == slots[2]);
	worker_takes(f, 3, 3);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	/* Nor counted as sent. */
	assert_int_equal(f->n_taken, 3);
	worker_sends(f);
	turn(f);
	assert_int_equal(f->n_broken, 0);
}

/*
 * Too many descriptors in flight: the channel is writable all the while, so that no event tells
 * when they have become fewer.
 */
static void where_no_event_tells_of_room_it_is_tried_again_after_a_rest(void **state)
{
	struct fixture *f = *state;
	uint64_t begin = clock_us();

	send_fails_with = ETOOMANYREFS;
	lend(f, 0, 1);
	expect_news(f, 0, REFUSED, 1);
	assert_false(lender_open(f->lender));
	for (unsigned n = 1; n <= 4; n++) {
		turn_until_opened(f, n);
		lend(f, 0, 1);
		expect_news(f, 0, REFUSED, n + 1);
	}
	/* The first at once, the others after 2 ms each. */
	assert_true(clock_us() - begin >= 5900);
	send_fails_with = 0;
	turn_until_opened(f, 5);
	lend(f, 0, 1);
	worker_takes(f, 0, 1);
	assert_int_equal(f->n_broken, 0);
	/* And from the start again. */
	send_fails_with = ENOBUFS;
	lend(f, 1, 1);
	expect_news(f, 1, REFUSED, 1);
	turn(f);
	assert_int_equal(f->n_opened, 6);
}

/* ---- The end ---- */

/* The next message is a WIRE_LAST and nothing else. */
static void worker_takes_last(struct fixture *f)
{
	const struct wire_record *record;
	int error;

	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), WIRE_MESSAGE);
	record = wire_next(&f->inbox, &error);
	assert_non_null(record);
	assert_int_equal(record->type, WIRE_LAST);
	assert_int_equal(((const struct wire_number *)record)->number, 0);
	assert_null(wire_next(&f->inbox, &error));
	assert_int_equal(error, 0);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
}

static void last_follows_what_was_collected(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(try_lend(f, 0), 0);
	assert_int_equal(try_lend(f, 1), 0);
	lender_retire(f->lender);
	assert_false(lender_open(f->lender));
	worker_takes(f, 0, 2);
	worker_takes_last(f);
	/* Returns still come, and nothing is said twice. */
	worker_returns(f, 1);
	turn(f);
	expect_news(f, 1, RETURNED, 1);
	lender_retire(f->lender);
	lender_flush(f->lender);
	turn(f);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	assert_int_equal(f->n_opened, 0);
}

static bool has_message(struct fixture *f)
{
	struct pollfd poll_fd = { .fd = f->worker_fd, .events = POLLIN };

	return poll(&poll_fd, 1, 0) == 1;
}

static void last_waits_for_room(void **state)
{
	struct fixture *f = *state;
	unsigned n = fill(f);
	int64_t deadline = case_now_ms() + CASE_WAIT_MS;

	lender_retire(f->lender);
	for (unsigned i = 0; i < n; i++)
		worker_takes(f, i, 1);
	assert_int_equal(wire_receive(f->worker_fd, &f->inbox), -EAGAIN);
	while (!has_message(f)) {
		assert_true(case_now_ms() < deadline);
		turn(f);
	}
	worker_takes_last(f);
	assert_int_equal(f->n_opened, 0);
	assert_false(lender_open(f->lender));
}

static void returns_sent_before_death_are_taken_and_the_rest_is_lost(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 4);
	worker_takes(f, 0, 4);
	atomic_store(&f->slots[f->items[0].loan.slot].taken, 1);
	atomic_store(&f->slots[f->items[1].loan.slot].taken, 1);
	atomic_store(&f->slots[f->items[2].loan.slot].taken, 1);
	atomic_store(&f->slots[f->items[2].loan.slot].end, 4711);
	/* One message on its way in, one unread, which makes the death a reset. */
	worker_returns(f, 0);
	lend(f, 4, 1);
	fd_close(&f->worker_fd);
	assert_int_equal(try_lend(f, 5), 0);
	lender_settle(f->lender);
	expect_news(f, 0, RETURNED, 1);
	expect_news(f, 1, LOST, 1);
	assert_true(f->items[1].news.taken);
	assert_int_equal(f->items[1].news.end, 0);
	expect_news(f, 2, LOST, 1);
	assert_true(f->items[2].news.taken);
	assert_int_equal(f->items[2].news.end, 4711);
	expect_news(f, 3, LOST, 1);
	assert_false(f->items[3].news.taken);
	expect_news(f, 4, LOST, 1);
	assert_false(f->items[4].news.taken);
	/* Never sent, so never taken. */
	expect_news(f, 5, REFUSED, 1);
	assert_int_equal(f->n_broken, 0);
	assert_int_equal(f->n_opened, 0);
	assert_false(lender_open(f->lender));
	assert_int_equal(try_lend(f, 6), -EAGAIN);
}

/* A grandchild may hold the channel open: death is not told by its end. */
static void settling_does_not_wait_for_the_channels_end(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 200);
	worker_takes(f, 0, 200);
	/* More messages than are read in one turn. */
	for (unsigned i = 0; i < 150; i++)
		worker_returns(f, i);
	lender_settle(f->lender);
	for (unsigned i = 0; i < 200; i++)
		expect_news(f, i, i < 150 ? RETURNED : LOST, 1);
	assert_int_equal(f->n_broken, 0);
}

static void garbage_in_what_a_dead_worker_sent_loses_the_rest(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 2);
	worker_takes(f, 0, 2);
	assert_int_equal(send(f->worker_fd, "garbage", 7, MSG_DONTWAIT), 7);
	worker_returns(f, 1);
	fd_close(&f->worker_fd);
	lender_settle(f->lender);
	expect_news(f, 0, LOST, 1);
	expect_news(f, 1, LOST, 1);
	assert_int_equal(f->n_broken, 0);
}

static void a_detached_loan_is_lost_with_its_worker(void **state)
{
	struct fixture *f = *state;

	lend(f, 0, 1);
	worker_takes(f, 0, 1);
	worker_adds(f, WIRE_DETACHED, 0, "");
	worker_sends(f);
	turn(f);
	lender_settle(f->lender);
	expect_news(f, 0, LOST, 2);
}

static void accessors_tell_what_was_given(void **state)
{
	struct fixture *f = *state;

	assert_ptr_equal(lender_seat(f->lender), &f->seat);
	assert_ptr_equal(lender_of(lender_link(f->lender)), f->lender);
	assert_null(lender_free(NULL));
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest cases[] = {
		CASE(a_loan_reaches_the_worker_with_all_its_terms),
		CASE(only_a_body_of_known_length_has_one),
		CASE(loans_of_one_turn_are_one_message),
		CASE(a_full_message_goes_out_by_itself),
		CASE(a_loan_that_no_message_can_hold_is_refused),
		CASE(a_recall_names_its_loan),
		CASE(loans_have_slots_of_their_own_and_clear),
		CASE(a_slot_is_used_again_and_cleared),
		CASE(without_a_slot_a_loan_must_wait),
		CASE(returns_find_their_loans),
		CASE(a_detached_loan_returns_later),
		CASE(a_worker_that_closes_its_channel_breaks_it),
		CASE(a_return_of_an_unknown_slot_breaks),
		CASE(a_return_of_another_request_breaks),
		CASE(a_second_return_breaks),
		CASE(what_follows_a_fault_is_not_believed),
		CASE(unknown_dispositions_break),
		CASE(detaching_twice_breaks),
		CASE(a_descriptor_breaks_and_is_closed),
		CASE(records_of_the_master_break),
		CASE(garbage_breaks),
		CASE(malformed_records_break),
		CASE(a_worker_that_took_what_was_not_sent_breaks),
		CASE(a_worker_that_takes_back_what_it_took_breaks),
		CASE(a_send_to_a_closed_channel_breaks_and_refuses),
		CASE(a_channel_that_breaks_while_it_is_read_breaks_once),
		CASE(the_window_counts_what_was_not_taken),
		CASE(many_more_lends_than_the_window_pass_one_after_the_other),
		CASE(a_full_channel_refuses_and_opens_again),
		CASE(a_refused_message_is_refused_as_a_whole),
		CASE(where_no_event_tells_of_room_it_is_tried_again_after_a_rest),
		CASE(last_follows_what_was_collected),
		CASE(last_waits_for_room),
		CASE(returns_sent_before_death_are_taken_and_the_rest_is_lost),
		CASE(settling_does_not_wait_for_the_channels_end),
		CASE(garbage_in_what_a_dead_worker_sent_loses_the_rest),
		CASE(a_detached_loan_is_lost_with_its_worker),
		CASE(accessors_tell_what_was_given),
	};

	return cmocka_run_group_tests(cases, NULL, NULL);
}
