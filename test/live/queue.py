#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Who serves a request, who waits, and who is turned away."""
import re
import select
import time

from harness import SLOW, Client, Master, check, deadline, equal, pattern, run, together, wait_until

BUSY_MS = int(1000 * SLOW)


def pid_of(response):
    equal(response.status, 200, response)
    return int(re.match(rb"Hello from pid (\d+),", response.body)[1])


def occupy(master, n=1, ms=BUSY_MS):
    """n clients whose requests keep workers busy for some time, once all workers are ready."""
    wait_until(lambda: len(master.workers()) == len(master.workers(None)), 10, "all workers are ready")
    clients = [master.client() for _ in range(n)]
    for client in clients:
        client.ask("GET", f"/delay/{ms}")
    wait_until(lambda: master.status()["requests"]["in_flight"] == n, 5, "the workers are busy")
    return clients


def queue(master, target="/", **how):
    """One more client, whose request waits."""
    n = master.status()["requests"]["queued"]
    client = master.client()
    client.ask("GET", target, **how)
    wait_until(lambda: master.status()["requests"]["queued"] == n + 1, 5, "one more waits")
    return client


def check_503(response, keeps=True):
    equal((response.status, response.field("Retry-After"), response.keeps), (503, "1", keeps), response)


def answered_in_order(clients):
    """Whenever some have their answers, these are the first."""
    left = list(clients)
    while left:
        ready = select.select(left, [], [], 20 * SLOW)[0]
        check(ready, "nobody is answered")
        equal([left.index(client) for client in left if client in ready], list(range(len(ready))), "order:")
        for client in ready:
            equal(client.response().status, 200)
            left.remove(client)


def those_who_wait_are_served_in_order():
    for threads in (1, 2, 3):
        master = Master("--concurrency", "1", "--threads", threads, workers=1)
        first = occupy(master, ms=int(500 * SLOW))
        waiting = [queue(master, f"/delay/{30 * SLOW:.0f}") for _ in range(8)]
        status = master.check_sums()
        equal((status["connections"]["waiting"], status["requests"]["in_flight"]), (8, 1))
        answered_in_order(first + waiting)
        equal(master.check_sums()["requests"]["refused"], 0)
        for client in first + waiting:
            client.close()
        master.stop()


def a_client_in_a_hurry_does_not_pass_those_who_wait():
    """Neither by pipelining nor by asking again at once."""
    for threads in (1, 2):
        master = Master("--concurrency", "1", "--threads", threads, workers=1)
        hurried = occupy(master, ms=int(300 * SLOW))[0]
        hurried.send(Client.head("GET", f"/delay/{20 * SLOW:.0f}") * 100)
        again = [queue(master, f"/delay/{20 * SLOW:.0f}") for _ in range(2)]
        patient = queue(master)

        def ask_again(client):
            n = 0
            while not select.select([patient], [], [], 0)[0] and n < 100:
                client.response()
                n += 1
                client.ask("GET", f"/delay/{20 * SLOW:.0f}")
            return n

        def read_pipeline():
            n = 0
            while not select.select([patient], [], [], 0)[0] and n < 100:
                hurried.response()
                n += 1
            return n

        counts = together(read_pipeline, *(lambda client=client: ask_again(client) for client in again))
        equal(patient.response().status, 200)
        # Before it: the one that was served, and one each of those two; perhaps one more that was seen
        # late. A place that another thread is still to be told of may be taken first, now and then.
        check(max(counts) <= (3 if threads == 1 else 20), "served before one who waited:", counts)
        for client in (hurried, patient, *again):
            client.close()
        master.stop()


def a_worker_holds_no_more_than_it_may():
    master = Master("--concurrency", "2", "--threads", "2")
    busy = occupy(master, 4)
    waiting = [queue(master) for _ in range(3)]
    status = master.check_sums()
    equal([worker["in_flight"] for worker in status["workers"]], [2, 2])
    equal((status["connections"]["lent"], status["connections"]["waiting"]), (4, 3))
    for client in busy + waiting:
        equal(client.response().status, 200)
        client.close()
    status = master.check_sums()
    equal((status["requests"]["in_flight"], status["requests"]["queued"]), (0, 0))
    master.stop()


def past_the_queue_is_503_and_the_connection_goes_on():
    for threads in (1, 3):
        master = Master("--concurrency", "1", "--queue", "2", "--threads", threads, workers=1)
        busy = occupy(master)
        waiting = [queue(master) for _ in range(2)]
        with master.client() as client, master.client() as large:
            check_503(client.get("/"))
            check_503(client.exchange("HEAD", "/"))
            check_503(client.post("/echo", b"hello"))
            check_503(client.get("/", {"Connection": "close"}), keeps=False)
            client.expect_end()
            # What is behind a body is no request of its own.
            smuggled = Client.head("GET", "/bytes/9")
            large.ask("POST", "/echo", body=smuggled * 50)
            check_503(large.response())
            large.send(Client.head("POST", "/echo", {"Content-Length": 1000000}))
            check_503(large.response(), keeps=False)
            large.send(bytes(1000000))
            large.expect_end()
        with master.client() as chunks:
            chunks.send(Client.head("POST", "/", {"Transfer-Encoding": "chunked"}), b"5\r\nhello\r\n0\r\n\r\n")
            check_503(chunks.response(), keeps=False)
            chunks.expect_end()
        with master.client() as old:
            check_503(old.get("/", {"Connection": "keep-alive"}, minor=0))
            check_503(old.get("/", minor=0), keeps=False)
            old.expect_end()
        survivor = master.client()
        check_503(survivor.get("/"))
        for other in busy + waiting:
            equal(other.response().status, 200)
            other.close()
        equal(survivor.get("/").status, 200)
        survivor.close()
        equal(master.check_sums()["requests"]["refused"], 10)
        master.stop()


def thousands_of_pipelined_requests_may_be_turned_away():
    master = Master("--concurrency", "1", "--queue", "1", workers=1)
    busy = occupy(master, ms=3 * BUSY_MS) + [queue(master)]
    n = 10000
    with master.client() as client:
        together(lambda: client.send(b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * n),
                 lambda: [check_503(client.response()) for _ in range(n)])
    check(master.check_sums()["respawns"] == 0)
    for other in busy:
        other.reset()
    master.stop()


def waiting_too_long_is_503():
    master = Master("--concurrency", "1", "--queue-timeout", "300ms", "--threads", "2", workers=1)
    busy = occupy(master)
    waiting = [queue(master) for _ in range(3)]
    begun = time.monotonic()
    for client in waiting:
        check_503(client.response())
    check(time.monotonic() - begun > 0.1, "too early")
    equal(busy[0].response().status, 200)
    for client in waiting + busy:
        equal(client.get("/").status, 200)
        client.close()
    equal(master.check_sums()["requests"]["refused"], 3)
    master.stop()


def who_leaves_while_waiting_takes_no_place():
    master = Master("--concurrency", "1", "--threads", "2", workers=1)
    busy = occupy(master)
    gone = [queue(master) for _ in range(4)]
    waiting = queue(master, "/bytes/5")
    for client in gone[:2]:
        client.close()
    for client in gone[2:]:
        client.reset()
    equal(busy[0].response().status, 200)
    equal(waiting.response().body, pattern(5))
    for client in (*busy, waiting):
        client.close()
    wait_until(lambda: master.status()["connections"]["open"] == 0, 10, "all are closed")
    status = master.check_sums()
    equal((status["requests"]["in_flight"], status["requests"]["queued"]), (0, 0))
    master.stop()


def round_robin_is_strict():
    for workers, threads in ((2, 1), (3, 2), (4, 3)):
        master = Master("--threads", threads, workers=workers)
        clients = [master.client() for _ in range(5)]
        # Until each thread knows of every worker.
        wait_until(lambda: len(master.workers()) == workers and
                   all(len({pid_of(client.get("/")) for _ in range(workers)}) == workers for client in clients), 10,
                   "every worker has its turn")
        order = [pid_of(clients[n % 5].get("/")) for n in range(workers * 6)]
        equal(len(set(order[:workers])), workers, order)
        equal(order, order[:workers] * 6)
        # And within one pipeline.
        clients[0].send(Client.head("GET", "/") * workers * 2)
        order = [pid_of(clients[0].response()) for _ in range(workers * 2)]
        equal(len(set(order[:workers])), workers, order)
        equal(order[:workers], order[workers:])
        for client in clients:
            client.close()
        master.stop()


def round_robin_passes_over_the_full():
    master = Master("--concurrency", "1", workers=3)
    busy = occupy(master, 2)
    taken = {worker["pid"] for worker in master.workers() if worker["in_flight"]}
    with master.client() as client:
        order = {pid_of(client.get("/")) for _ in range(9)}
    check(len(order) == 1 and not order & taken, order, taken)
    for client in busy:
        client.reset()
    master.stop()


def least_busy_prefers_the_free():
    for threads in (1, 3):
        master = Master("--balance", "least-busy", "--threads", threads, workers=3)
        busy = occupy(master, 2)
        taken = {worker["pid"] for worker in master.workers() if worker["in_flight"]}
        equal(len(taken), 2, "each took one:")
        with master.client() as client:
            order = {pid_of(client.get("/")) for _ in range(12)}
        check(len(order) == 1 and not order & taken, order, taken)
        busy.append(master.client())
        busy[-1].ask("GET", f"/delay/{BUSY_MS}")
        wait_until(lambda: master.status()["requests"]["in_flight"] == 3, 5, "one more is busy")
        equal(sorted(worker["in_flight"] for worker in master.workers()), [1, 1, 1])
        for client in busy:
            client.reset()
        master.stop()


def past_max_connections_the_next_waits_to_be_accepted():
    for threads in (1, 3):
        master = Master("--max-connections", "4", "--threads", threads)
        inside = [master.client() for _ in range(4)]
        for client in inside:
            equal(client.get("/").status, 200)
        outside = [master.client() for _ in range(3)]
        for client in outside:
            client.ask("GET", "/bytes/5")
        select.select(outside, [], [], 0.2)
        equal(master.status()["connections"]["accepted"], 4)
        # Those inside go on, reloads too.
        master.reload()
        for client in inside:
            equal(client.get("/").status, 200)
        for leaver in inside[:3]:
            leaver.close()
            ready = select.select(outside, [], [], 10 * SLOW)[0]
            equal(len(ready), 1, "served when one leaves:")
            equal(ready[0].response().body, pattern(5))
            outside.remove(ready[0])
            inside.append(ready[0])
        equal(master.check_sums()["connections"]["accepted"], 7)
        for client in inside:
            client.close()
        master.stop()


def a_raised_limit_lets_in_who_waits():
    config = {"max_connections": 2, "threads": 3}
    master = Master(config=config)
    inside = [master.client() for _ in range(2)]
    for client in inside:
        equal(client.get("/").status, 200)
    outside = [master.client() for _ in range(6)]
    for client in outside:
        client.ask("GET", "/bytes/5")
    wait_until(lambda: master.status()["connections"]["accepted"] == 2, 5, "two are inside")
    master.configure({**config, "max_connections": 8})
    master.reload()
    for client in outside:
        equal(client.response().body, pattern(5))
    # A lowered one closes nobody.
    master.configure({**config, "max_connections": 1})
    master.reload()
    for client in inside + outside:
        equal(client.get("/bytes/3").body, pattern(3))
        client.close()
    master.check_sums()
    master.stop()


@deadline(90)
def no_place_is_lost_at_the_limit():
    """As many as there may be come at once and on all threads, again and again: nobody waits while there is room."""
    master = Master("--max-connections", "2", "--threads", "4")
    for n in range(400):
        clients = [master.client(timeout=5) for _ in range(2)]
        for client in clients:
            client.ask("GET", "/bytes/3")
        for client in clients:
            equal(client.response().body, pattern(3), n)
        for client in clients:
            client.close()

    def come_and_go():
        for _ in range(100):
            with master.client(timeout=8) as client:
                equal(client.get("/bytes/3").body, pattern(3))

    together(*[come_and_go] * 12, seconds=80)
    master.check_sums()
    master.stop()


@deadline(60)
def any_number_of_threads_serves():
    for threads in (1, 2, 3, 4):
        master = Master("--threads", threads)
        equal([thread["id"] for thread in master.status()["threads"]], list(range(threads)))
        clients = [master.client() for _ in range(32)]
        for _ in range(3):
            for n, client in enumerate(clients):
                client.ask("GET", f"/bytes/{n}")
            for n, client in enumerate(clients):
                equal(client.response().body, pattern(n))
        status = master.check_sums()
        equal(sum(thread["connections"] for thread in status["threads"]), 32)
        equal(status["requests"]["total"], 96)
        for client in clients:
            client.close()
        master.stop()


run(those_who_wait_are_served_in_order, a_client_in_a_hurry_does_not_pass_those_who_wait,
    a_worker_holds_no_more_than_it_may, past_the_queue_is_503_and_the_connection_goes_on,
    thousands_of_pipelined_requests_may_be_turned_away, waiting_too_long_is_503,
    who_leaves_while_waiting_takes_no_place, round_robin_is_strict, round_robin_passes_over_the_full,
    least_busy_prefers_the_free, past_max_connections_the_next_waits_to_be_accepted,
    a_raised_limit_lets_in_who_waits, no_place_is_lost_at_the_limit, any_number_of_threads_serves)
