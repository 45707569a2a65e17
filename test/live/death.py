#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a worker's death promises.

UP_TEST_KILLS is how many workers the last case kills at random, 40 if unset."""
import os
import random
import select
import signal
import time

import harness
from _fixture import Stage, check_counts, facts, generation, start, stop, whole
from harness import Client, Closed, alive, check, chunked, deadline, equal, run, together, wait_until

KILLS = int(os.environ.get("UP_TEST_KILLS", "40"))
# Those that die are replaced at once, and nothing but death ends them.
AT_ONCE = ("--min-lifetime", "0", "--hang-timeout", "0")


def ended(client):
    """Everything until the connection ends, by FIN or by reset."""
    try:
        return client.rest(), "fin"
    except Closed:
        taken = bytes(client.buffer)
        client.buffer.clear()
        return taken, "reset"


def until_ready(master, n):
    wait_until(lambda: len(master.workers()) == n, 10, f"{n} workers are ready")


def blocked(stage, master, client):
    """The pid of the worker that the client's request blocks."""
    stage.fifo("plug")
    before = {worker["pid"]: worker["requests"] for worker in master.workers()}
    client.ask("POST", "/block/plug", body=b"")
    # While somebody could write, the worker reads: now it does nothing else.
    stage.hold_fifo("plug")
    return next(worker["pid"] for worker in master.workers(None) if worker["requests"] > before[worker["pid"]])


# ---- Before the application was given it ----

def a_request_that_was_not_taken_goes_to_another_whatever_its_method():
    master, stage = start(*AT_ONCE, workers=2)
    plug = master.client()
    victim = blocked(stage, master, plug)
    clients = [master.client() for _ in range(12)]
    body = b"0123456789" * 50
    for n, client in enumerate(clients):
        # Every form of a body; the last has not come whole.
        if n % 3 == 0:
            client.ask("POST", "/body", body=body)
        elif n % 3 == 1:
            client.send(Client.head("PATCH", "/body", {"Transfer-Encoding": "chunked"}) + chunked(body[:200], body[200:]))
        else:
            client.send(Client.head("POST", "/body", {"Content-Length": len(body)}) + body[:100])
    wait_until(lambda: master.status()["connections"]["lent"] >= 7, 5, "requests are at the blocked worker")
    os.kill(victim, signal.SIGKILL)
    for n, client in enumerate(clients):
        if n % 3 == 2:
            client.send(body[100:])
    said = {client.response().body for client in clients}
    equal(len(said), 1, said)
    check(said.pop().startswith(b"500 "), said)
    # The one that blocked it had been taken: it may have had effects.
    equal(plug.response().status, 502)
    equal([generation(client) for client in [plug, *clients]], [1] * 13)
    check_counts(master, failed=1, replayed=0, dropped=0, open=13)
    stop(master)


# ---- Taken, and not a byte written ----

def an_idempotent_request_is_replayed():
    master, _ = start(*AT_ONCE, workers=2)
    client = master.client()
    for n, (method, body) in enumerate((("GET", None), ("HEAD", None), ("PUT", b""), ("DELETE", None),
                                        ("OPTIONS", None), ("TRACE", None), ("PUT", b"whole with the head")), 1):
        until_ready(master, 2)
        equal(client.exchange(method, f"/die/times/1/{n}", body=body).status, 200, method)
        check_counts(master, replayed=n, failed=0, dropped=0)
    equal(generation(client), 1)
    stop(master)


def it_is_replayed_twice_and_not_more():
    master, stage = start(*AT_ONCE, workers=4)
    client = master.client()
    said = facts(client.get("/die/times/2/twice"))
    check(int(said["id"]) > 0)
    check_counts(master, replayed=2, failed=0)
    until_ready(master, 4)
    equal(client.get("/die/times/9/often").status, 502)
    equal(os.path.getsize(stage.path("often")), 3, "workers that it killed:")
    check_counts(master, replayed=4, failed=1, dropped=0)
    until_ready(master, 4)
    # The connection survives, and a fresh request has fresh chances.
    equal(client.get("/die/times/2/again").status, 200)
    stop(master)


def what_a_request_kills_takes_no_neighbours_along():
    master, stage = start(*AT_ONCE, workers=2)
    killer = master.client()
    neighbours = [master.client() for _ in range(6)]
    for neighbour in neighbours:
        neighbour.ask("POST", "/hold/it", body=b"")
    wait_until(lambda: master.status()["connections"]["lent"] == 6, 5, "all are held")
    stage.open("it")
    equal([neighbour.response().status for neighbour in neighbours], [200] * 6)
    equal(killer.get("/die/now").status, 502)
    equal([neighbour.post("/body", b"x").status for neighbour in neighbours], [200] * 6)
    check_counts(master, failed=1, dropped=0)
    stop(master)


def what_may_have_had_effects_is_502_and_the_connection_goes_on():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    for n, (method, body) in enumerate((("POST", b""), ("POST", b"in the head's packet"), ("PATCH", b"x" * 1000)), 1):
        until_ready(master, 1)
        response = client.exchange(method, "/die/now", body=body)
        equal((response.status, response.keeps), (502, True), method)
        check_counts(master, failed=n, replayed=0, dropped=0)
    until_ready(master, 1)
    equal(generation(client), 1)
    stop(master)


def the_rest_of_a_body_is_drained_behind_a_502():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    for sent, late in ((0, 20000), (1000, 30000), (5000, 1)):
        until_ready(master, 1)
        client.send(Client.head("POST", "/die/now", {"Content-Length": sent + late}) + b"a" * sent)
        response = client.response()
        equal((response.status, response.keeps), (502, True), sent, late)
        # Were a byte of it taken for the next request, that one would be refused.
        client.send(b"b" * late + Client.head("GET", "/"))
        equal(facts(client.response())["generation"], "1")
    stop(master)


def too_long_a_rest_is_not_drained():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    client.send(Client.head("POST", "/die/now", {"Content-Length": 100_000_000}) + b"a" * 1000)
    response = client.response()
    equal((response.status, response.keeps), (502, False))
    client.expect_end()
    stop(master)


def a_body_that_was_read_is_502_where_its_end_is_known():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    # Larger than what goes with the head: some of it is read by the worker itself.
    for path in ("/die/piece", "/die/body"):
        for method in ("POST", "PUT"):
            until_ready(master, 1)
            response = client.exchange(method, path, body=b"a" * 40000)
            equal((response.status, response.keeps), (502, True), method, path)
    until_ready(master, 1)
    equal(generation(client), 1)
    check_counts(master, failed=4, replayed=0, dropped=0)
    stop(master)


def a_chunked_body_is_502_and_the_end():
    master, _ = start(*AT_ONCE, workers=1)
    for path in ("/die/now", "/die/piece", "/die/body"):
        until_ready(master, 1)
        client = master.client()
        client.send(Client.head("POST", path, {"Transfer-Encoding": "chunked"}) + chunked(b"a" * 1000, b"b" * 1000))
        response = client.response()
        equal((response.status, response.keeps), (502, False), path)
        client.expect_end()
    check_counts(master, failed=3, replayed=0, dropped=0)
    stop(master)


def http_1_0_is_502_and_the_end_unless_it_is_to_go_on():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    equal(client.exchange("POST", "/die/now", body=b"", minor=0).status, 502)
    client.expect_end()
    until_ready(master, 1)
    client = master.client()
    response = client.exchange("POST", "/die/now", {"Connection": "keep-alive"}, b"", minor=0)
    equal((response.status, response.keeps), (502, True))
    until_ready(master, 1)
    equal(client.get("/").status, 200)
    stop(master)


# ---- A response had begun ----

def a_response_that_had_begun_is_cut():
    master, _ = start(*AT_ONCE, workers=1)
    n = 0
    for path, head in (("/die/half", b"Content-Length: 2000\r\n"), ("/die/open", b"Transfer-Encoding: chunked\r\n")):
        for method in ("GET", "POST"):
            until_ready(master, 1)
            client = master.client()
            client.ask(method, path, body=b"abc" if method == "POST" else None)
            got, _ = ended(client)
            check(got.startswith(b"HTTP/1.1 200 ") and head in got and got.count(b"HTTP/1.") == 1, got)
            equal(got.count(b"a" * 1000), 1, "the half that was sent:")
            check(b"\r\n0\r\n" not in got, "it looks whole:", got[-20:])
            n += 1
            check_counts(master, failed=n, dropped=n, replayed=0)
    stop(master)


def a_cut_response_to_http_1_0_does_not_look_whole():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    client.ask("GET", "/die/open", minor=0)
    got, how = ended(client)
    check(got.startswith(b"HTTP/1.1 200 ") or got == b"", got)
    # Its end is the end of the connection: only a reset tells it from a whole one.
    equal(how, "reset")
    check_counts(master, failed=1, dropped=1)
    stop(master)


def an_interim_response_counts_as_begun():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    client.ask("GET", "/die/interim")
    got, _ = ended(client)
    check(got.startswith(b"HTTP/1.1 102 ") and got.count(b"HTTP/1.1") == 1, got)
    check_counts(master, failed=1, dropped=1, replayed=0)
    stop(master)


def requests_behind_a_cut_one_are_not_answered():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    client.send(Client.head("GET", "/") + Client.head("GET", "/die/half") + Client.head("GET", "/"))
    equal(client.response().status, 200)
    got, _ = ended(client)
    equal(got.count(b"HTTP/1.1"), 1, got)
    stop(master)


def a_whole_response_counts_as_delivered():
    master, _ = start(*AT_ONCE, workers=1)
    client = master.client()
    for n, method in enumerate(("GET", "POST", "HEAD"), 1):
        response = client.exchange(method, "/die/whole", body=b"x" * 50 if method == "POST" else None)
        equal((response.status, response.body), (200, b"" if method == "HEAD" else b"whole\n"))
        wait_until(lambda: master.status()["respawns"] == n, 5, "the death is seen")
        until_ready(master, 1)
        equal(generation(client), 1)
    # Its length was foretold: that up_end() was not called makes it no less whole.
    equal(client.get("/die/last").body, b"a" * 1000)
    wait_until(lambda: master.status()["respawns"] == 4, 5, "the death is seen")
    until_ready(master, 1)
    equal(generation(client), 1)
    check_counts(master, failed=0, dropped=0, replayed=0, open=1)
    stop(master)


def a_whole_response_goes_out_to_those_that_pipeline():
    master, _ = start(*AT_ONCE, workers=2)
    client = master.client()
    client.send((Client.head("GET", "/die/whole") + Client.head("GET", "/")) * 4)
    for _ in range(4):
        equal(client.response().body, b"whole\n")
        equal(facts(client.response())["generation"], "1")
    check_counts(master, failed=0, dropped=0, replayed=0)
    stop(master)


# ---- Upgraded sockets, UNIX sockets ----

def an_upgraded_socket_ends_with_its_worker_and_counts_as_dropped():
    master, _ = start(*AT_ONCE, workers=1)
    upgraded, idle = master.client(), master.client()
    equal(generation(idle), 1)
    upgraded.ask("GET", "/upgrade", {"Connection": "Upgrade", "Upgrade": "echo"})
    equal(upgraded.response().status, 101)
    upgraded.send(b"hello")
    equal(upgraded.take(5), b"hello")
    check_counts(master, upgraded=1, idle=1)
    upgraded.send(b"die")
    ended(upgraded)
    until_ready(master, 1)
    check_counts(master, upgraded=0, dropped=1, failed=0, open=1)
    equal(generation(idle), 1)
    stop(master)


def a_unix_socket_is_on_the_safe_side():
    stage = Stage()
    path = stage.path("web.sock")
    master, _ = start(*AT_ONCE, stage=stage, make=whole, listen=("unix:" + path,), workers=2)
    plug, waiting = Client(path), [Client(path) for _ in range(6)]
    victim = blocked(stage, master, plug)
    for client in waiting:
        client.ask("POST", "/body", body=b"abc")
    wait_until(lambda: master.status()["connections"]["lent"] >= 4, 5, "requests are at the blocked worker")
    os.kill(victim, signal.SIGKILL)
    # Not taken: to another, as everywhere.
    equal([client.response().body[:2] for client in waiting], [b"3 "] * 6)
    # Taken: nobody can tell how far it got.
    equal(ended(plug)[0], b"")
    until_ready(master, 2)
    for how in ("now", "half"):
        with Client(path) as client:
            client.ask("GET", "/die/" + how)
            check(ended(client)[0].count(b"HTTP/1.1") == (how == "half"), how)
            until_ready(master, 2)
    check_counts(master, replayed=0, failed=3, dropped=3, open=6)
    equal([generation(client) for client in waiting], [1] * 6)
    stop(master)


# ---- Workers that do not answer ----

def a_stopped_worker_is_passed_over_and_loses_nothing():
    master, _ = start("--min-lifetime", "0", workers=2)
    clients = [master.client() for _ in range(8)]
    equal([generation(client) for client in clients], [1] * 8)
    victim = min(worker["pid"] for worker in master.workers())
    os.kill(victim, signal.SIGSTOP)
    try:
        for client in clients:
            client.ask("POST", "/body", body=b"abc")
        # Half of them are answered by the other one.
        fresh = wait_until(lambda: len(ready := select.select(clients, [], [], 0)[0]) == 4 and ready, 5)
        equal([client.response().body[:2] for client in fresh], [b"3 "] * 4)
        wait_until(lambda: [worker["pid"] for worker in master.workers("suspect")] == [victim], 5, "it is suspect")
        equal(master.status()["connections"]["lent"], 4)
        # From now on everything goes to the other.
        equal({facts(client.get("/"))["pid"] == str(victim) for client in fresh for _ in range(3)}, {False})
        check(not select.select(set(clients) - set(fresh), [], [], 0)[0])
    finally:
        os.kill(victim, signal.SIGCONT)
    equal([client.response().body[:2] for client in set(clients) - set(fresh)], [b"3 "] * 4)
    wait_until(lambda: len(master.workers()) == 2, 5, "it answers again")
    wait_until(lambda: int(facts(clients[0].get("/"))["pid"]) == victim, 5, "it gets requests again")
    equal(master.check_sums()["respawns"], 0)
    stop(master)


def requests_wait_where_every_worker_is_suspect():
    master, _ = start(workers=1)
    client = master.client()
    victim = master.workers()[0]["pid"]
    os.kill(victim, signal.SIGSTOP)
    try:
        wait_until(lambda: master.workers("suspect"), 5, "it is suspect")
        client.ask("GET", "/")
        wait_until(lambda: master.status()["requests"]["queued"] == 1, 5, "it waits")
    finally:
        os.kill(victim, signal.SIGCONT)
    equal(facts(client.response())["pid"], str(victim))
    stop(master)


def hung(hang):
    """A worker hangs with requests in its hands; the short hang time-out ends it."""
    master, stage = start("--hang-timeout", "1200ms", "--min-lifetime", "0", workers=2)
    plug = master.client()
    victim, held = hang(master, stage, plug)
    begun = time.monotonic()
    clients = [master.client() for _ in range(6)]
    for client in clients:
        client.ask("POST", "/body", body=b"abc")
    equal([client.response().body[:2] for client in clients], [b"3 "] * 6)
    wait_until(lambda: not alive(victim), 15, "it is ended")
    took = time.monotonic() - begun
    # By the first signal, not by the one that follows 5 s later.
    check(1 < took < 4.5 * harness.SLOW, f"ended after {took:.1f} s")
    if held:
        equal(plug.response().status, held)
    until_ready(master, 2)
    equal(master.status()["respawns"], 1)
    check("hung" in master.log, "the log does not say why")
    equal([generation(client) for client in [plug, *clients]], [1] * 7)
    check_counts(master, dropped=0, failed=1 if held else 0)
    stop(master)


def a_worker_that_spins_is_replaced():
    def hang(master, _, plug):
        before = {worker["pid"]: worker["requests"] for worker in master.workers()}
        plug.ask("POST", "/spin", body=b"")
        return wait_until(lambda: next((worker["pid"] for worker in master.workers(None)
                                        if worker["requests"] > before[worker["pid"]]), None), 5), 502

    hung(hang)


def a_worker_that_is_stopped_for_good_is_replaced():
    def hang(master, *_):
        victim = min(worker["pid"] for worker in master.workers())
        os.kill(victim, signal.SIGSTOP)
        return victim, None

    hung(hang)


# ---- At random ----

class Seen:
    """What one client has seen."""

    def __init__(self):
        self.whole = self.bad_gateway = self.cut = 0


def right(response, path, body):
    """Whether this is the whole answer to that request, and to no other."""
    if path.startswith("/bytes/"):
        return response.body == harness.pattern(int(path[7:]))
    if path == "/echo":
        return response.body == body
    return response.body.startswith(b"Hello from pid ") and response.body.endswith(b"\n")


def keep_asking(master, seen, over, seed):
    dice = random.Random(seed)
    client = master.client()
    while not over:
        path = dice.choice(["/", "/", "/bytes/100", "/bytes/70000", "/bytes/3000000", "/bytes/3000000", "/echo",
                            "/delay/3", "/delay/30"])
        method = "POST" if path == "/echo" else dice.choice(["GET", "GET", "POST"])
        body = dice.randbytes(dice.choice([0, 10, 2000, 90000])) if method == "POST" else None
        try:
            client.ask(method, path, body=body)
            response = client.response()
        except Closed as closed:
            # Only where bytes of a response had come.
            check(seen_bytes(client), f"{method} {path}: {closed}")
            seen.cut += 1
            client.close()
            client = master.client()
            continue
        if response.status == 200:
            check(right(response, path, body), method, path, response)
            seen.whole += 1
        else:
            equal(response.status, 502, method, path)
            seen.bad_gateway += 1
        if not response.keeps:
            client.expect_end()
            client.close()
            client = master.client()
    client.close()


def kill_at_random(master, over, n_killed, seed):
    dice, killed = random.Random(seed), set()
    try:
        begun = time.monotonic()
        while n_killed[0] < KILLS and time.monotonic() - begun < 20 * harness.SLOW:
            victims = wait_until(lambda: len(ready := [worker for worker in master.workers()
                                                       if worker["pid"] not in killed]) > 1 and ready, 10, "victims")
            # Those that hold something are worth more.
            victim = dice.choice([worker for worker in victims if worker["in_flight"]] or victims)["pid"]
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)
            n_killed[0] += 1
            # A moment of its own for each death, at any point of what the workers do.
            select.select([], [], [], dice.random() * 0.1)
    finally:
        over.append(True)


class Watching(Client):
    """Knows whether bytes of the response that is under way have come."""

    def ask(self, *arguments, **keywords):
        self.came = False
        super().ask(*arguments, **keywords)

    def fill(self):
        more = super().fill()
        self.came |= more
        return more


def seen_bytes(client):
    return client.came


@deadline(60)
def deaths_at_random_are_told_and_nothing_else_happens():
    seed = int(os.environ.get("UP_TEST_SEED", random.randrange(1 << 30)))
    print(f"# UP_TEST_SEED={seed}", flush=True)
    master = whole("--min-lifetime", "0", workers=3)
    master.client = lambda: Watching(master.port, receive_buffer=16384)
    over, n_killed, all_seen = [], [0], [Seen() for _ in range(10)]
    together(*[lambda n=n, seen=seen: keep_asking(master, seen, over, seed + n) for n, seen in enumerate(all_seen)],
             lambda: kill_at_random(master, over, n_killed, seed), seconds=50)
    until_ready(master, 3)
    right_ones, bad_gateway, cut = (sum(getattr(seen, name) for seen in all_seen) for name in ("whole", "bad_gateway", "cut"))
    status = wait_until(lambda: (now := master.status())["connections"]["open"] == 0 and now, 10, "all are gone")
    requests = status["requests"]
    print(f"# {n_killed[0]} kills: {right_ones} whole, {bad_gateway} of 502, {cut} cut, {requests['replayed']} replayed")
    check(right_ones > 5 * n_killed[0], "too little load to say anything")
    equal(requests["failed"], bad_gateway + cut, "failed:")
    equal(status["connections"]["dropped"], cut, "dropped:")
    equal(status["respawns"], n_killed[0])
    check(requests["total"] == right_ones + bad_gateway + cut, requests, right_ones, bad_gateway, cut)
    stop(master)


run(a_request_that_was_not_taken_goes_to_another_whatever_its_method, an_idempotent_request_is_replayed,
    it_is_replayed_twice_and_not_more, what_a_request_kills_takes_no_neighbours_along,
    what_may_have_had_effects_is_502_and_the_connection_goes_on, the_rest_of_a_body_is_drained_behind_a_502,
    too_long_a_rest_is_not_drained, a_body_that_was_read_is_502_where_its_end_is_known,
    a_chunked_body_is_502_and_the_end, http_1_0_is_502_and_the_end_unless_it_is_to_go_on,
    a_response_that_had_begun_is_cut, a_cut_response_to_http_1_0_does_not_look_whole,
    an_interim_response_counts_as_begun, requests_behind_a_cut_one_are_not_answered,
    a_whole_response_counts_as_delivered, a_whole_response_goes_out_to_those_that_pipeline,
    an_upgraded_socket_ends_with_its_worker_and_counts_as_dropped, a_unix_socket_is_on_the_safe_side,
    a_stopped_worker_is_passed_over_and_loses_nothing, requests_wait_where_every_worker_is_suspect,
    a_worker_that_spins_is_replaced, a_worker_that_is_stopped_for_good_is_replaced,
    deaths_at_random_are_told_and_nothing_else_happens)
