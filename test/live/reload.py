#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A reload is an event that no client can observe.

UP_TEST_CLIENTS (16) clients in a hurry and as many that think for 50 ms between two requests, for
UP_TEST_SECONDS (8), with a reload each 200 ms. For a long run: UP_TEST_CLIENTS=64 UP_TEST_SECONDS=60
UP_TEST_SLOW=4.
"""
import os
import random
import re
import signal
import threading
import time

from harness import SLOW, Client, Master, check, chunked, deadline, equal, holds_for, pattern, run, together, wait_until

CLIENTS = int(os.environ.get("UP_TEST_CLIENTS", "16"))
SECONDS = float(os.environ.get("UP_TEST_SECONDS", "8"))
RELOAD_EACH_S = 0.2
THINK_S = 0.05


def cut(data, dice):
    """data in one to five pieces."""
    places = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(5)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)]) if a < b]


class User:
    """One client with one connection, that asks for anything and compares everything."""

    def __init__(self, port, seed, think_s):
        self.client = Client(port)
        self.dice = random.Random(seed)
        self.think_s = think_s
        self.n_requests = 0

    def run(self, stop):
        """Until told to stop. Returns how many requests were answered."""
        asks = (self.hello, self.bytes, self.echo_counted, self.echo_chunked, self.pipeline)
        while not stop.is_set():
            self.dice.choice(asks)()
            if self.think_s:
                self.client.expect_silence(self.think_s)
        return self.n_requests

    def answer(self):
        response = self.client.response()
        equal(response.status, 200, response)
        check(response.keeps, "the connection is to end:", response)
        self.n_requests += 1
        return response.body

    def hello(self):
        self.client.ask("GET", "/")
        body = self.answer()
        check(re.fullmatch(rb"Hello from pid \d+, generation \d+\n", body), body)

    def bytes(self):
        n = self.dice.choice((0, 1, 1000, 20000, 200000))
        self.client.ask("GET", f"/bytes/{n}")
        equal(self.answer(), pattern(n))

    def echo(self, fields, body, sent):
        request = Client.head("POST", "/echo", fields) + sent
        self.client.send(*cut(request, self.dice))
        equal(self.answer(), body)

    def body(self):
        return self.dice.randbytes(self.dice.choice((1, 10, 5000, 50000)))

    def echo_counted(self):
        body = self.body()
        self.echo({"Content-Length": len(body)}, body, body)

    def echo_chunked(self):
        body = self.body()
        self.echo({"Transfer-Encoding": "chunked"}, body, chunked(*cut(body, self.dice)))

    def pipeline(self):
        """Eight at once, two of them with bodies; the answers in order."""
        requests, wanted = [], []
        for i in range(8):
            if i in (2, 5):
                body = b"%d %d" % (i, self.dice.randrange(10**9))
                framed = {2: ({"Content-Length": len(body)}, body),
                          5: ({"Transfer-Encoding": "chunked"}, chunked(body))}[i]
                requests.append(Client.head("POST", "/echo", framed[0]) + framed[1])
            else:
                n = self.dice.randrange(3000)
                body = pattern(n)
                requests.append(Client.head("GET", f"/bytes/{n}"))
            wanted.append(body)
        self.client.send(*cut(b"".join(requests), self.dice))
        for i, body in enumerate(wanted):
            equal(self.answer(), body, f"answer {i} of the pipeline:")


def under_load(master, seconds, reload):
    """Clients of all kinds, and reload() again and again."""
    users = [User(master.port, seed, THINK_S if seed % 2 else 0) for seed in range(2 * CLIENTS)]
    stop = threading.Event()

    def reloads():
        n, end = 0, time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                reload()
                n += 1
                master.check_sums()
                holds_for(lambda: True, RELOAD_EACH_S)
        finally:
            stop.set()
        return n

    def user_runs(user):
        try:
            return user.run(stop)
        except BaseException:
            stop.set()
            raise

    n_reloads, *answered = together(reloads, *(lambda user=user: user_runs(user) for user in users),
                                    seconds=seconds + 40)
    check(min(answered) > 0, "a client was never answered", answered)
    status = wait_until(lambda: (now := master.status())["connections"]["idle"] == len(users) and now, 10,
                        "every connection idle at the end")
    master.check_sums()
    equal(status["connections"]["accepted"], len(users), "no socket more than clients:")
    equal(status["requests"]["total"], sum(answered), "answered:")
    equal(status["requests"]["replayed"], 0, "replayed:")
    equal(status["requests"]["refused"], 0, "refused:")
    equal(status["respawns"], 0, "respawns:")
    print(f"# {sum(answered)} requests, {n_reloads} reloads, {len(users)} clients in {seconds:g} s")
    for user in users:
        user.client.close()
    return n_reloads


@deadline(SECONDS + 60)
def no_request_fails_and_no_socket_closes():
    master = Master()
    n = under_load(master, SECONDS, master.reload)
    reloads = master.status()["reloads"]
    equal((reloads["count"], reloads["failed"]), (n, 0))
    wait_until(lambda: len(master.workers(None)) == 2, 10, "the old workers have gone")
    master.stop()


@deadline(SECONDS + 60)
def nor_when_all_must_be_ready_and_the_workers_are_full():
    master = Master("--switch", "all", "--balance", "least-busy", "--concurrency", "2", "--threads", "3",
                    "--queue", 16 * CLIENTS)
    n = under_load(master, SECONDS / 2, master.reload)
    reloads = master.status()["reloads"]
    equal((reloads["count"], reloads["failed"]), (n, 0))
    master.stop()


@deadline(SECONDS + 60)
def nor_when_signals_ask_and_nobody_waits():
    master = Master("--threads", "1")
    numbers = [signal.SIGHUP, signal.SIGUSR2]

    def reload():
        master.signal(numbers[0])
        numbers.reverse()

    under_load(master, SECONDS / 4, reload)
    wait_until(lambda: (now := master.status())["state"] == "running" and now["reloads"]["count"] > 0, 20,
               "the reloads are done")
    equal(master.status()["reloads"]["failed"], 0)
    master.stop()


def generation_of(body):
    return int(re.search(rb"generation (\d+)", body)[1])


def a_connection_in_any_state_goes_on_with_the_new_generation():
    master = Master("--concurrency", "1", workers=1)
    states = ("fresh", "idle", "half", "served", "waiting", "piped", "body")
    fresh, idle, half, served, waiting, piped, body = clients = [master.client() for _ in states]
    # Full: from here on what is complete waits, in this order.
    equal(generation_of(idle.get("/").body), 1)
    served.ask("GET", f"/delay/{1500 * SLOW:.0f}")
    wait_until(lambda: master.status()["requests"]["in_flight"] == 1, 5, "the first is at the worker")
    waiting.ask("GET", "/")
    piped.send(Client.head("GET", "/bytes/5") + Client.head("GET", "/") + b"GET / HT")
    wait_until(lambda: master.status()["requests"]["queued"] == 2, 5, "two wait")
    body.send(Client.head("POST", "/echo", {"Content-Length": 6}) + b"abc")
    half.send(b"GET / HTTP/1.1\r\nHo")
    wait_until(lambda: master.status()["requests"]["queued"] == 3, 5, "three wait")
    equal(master.reload(), 2)
    # The new worker serves those that waited, while the old one is still at the first.
    equal(generation_of(waiting.response().body), 2, "waited:")
    check(1 in [worker["generation"] for worker in master.workers(None)], "those who waited had to wait for the old one")
    equal(piped.response().body, pattern(5))
    # Its second request stands in line behind the body.
    body.send(b"def")
    equal(body.response().body, b"abcdef")
    equal(generation_of(piped.response().body), 2, "pipelined:")
    half.send(b"st: test\r\n\r\n")
    equal(generation_of(half.response().body), 2, "half a head:")
    equal(generation_of(idle.get("/").body), 2, "idle:")
    equal(generation_of(fresh.get("/").body), 2, "fresh:")
    piped.send(b"TP/1.1\r\nHost: test\r\n\r\n")
    equal(generation_of(piped.response().body), 2, "half of a pipelined head:")
    equal(generation_of(served.response().body), 1, "served:")
    equal(generation_of(served.get("/").body), 2, "served, next:")
    equal(master.check_sums()["connections"]["open"], len(clients))
    for client in clients:
        client.close()
    master.stop()


def from_the_answer_on_the_old_generation_gets_nothing():
    master = Master(workers=2)
    with master.client() as client:
        for _ in range(20):
            wanted = master.reload("first")
            for _ in range(10):
                equal(generation_of(client.get("/").body), wanted)
    master.check_sums()
    master.stop()


run(no_request_fails_and_no_socket_closes, nor_when_all_must_be_ready_and_the_workers_are_full,
    nor_when_signals_ask_and_nobody_waits, a_connection_in_any_state_goes_on_with_the_new_generation,
    from_the_answer_on_the_old_generation_gets_nothing)
