#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Nothing is left behind: descriptors and memory after many connections, reloads and dead workers.

UP_TEST_CONNECTIONS (5000) and UP_TEST_RELOADS (40); for a long run 100000 and 500, with
UP_TEST_SLOW=10. Sanitizers keep memory for their own ends: under them only descriptors are judged.
"""
import os
import re
import signal

from harness import (MASTER, Client, Master, check, deadline, descriptors, equal, pattern, rss_anonymous, run,
                     wait_until)

CONNECTIONS = int(os.environ.get("UP_TEST_CONNECTIONS", "5000"))
RELOADS = int(os.environ.get("UP_TEST_RELOADS", "40"))
IDLE = int(os.environ.get("UP_TEST_IDLE", "2000"))
BATCH = 100

with open(MASTER, "rb") as binary:
    SANITIZED = re.search(rb"__[at]san_init", binary.read())

GET = Client.head("GET", "/bytes/100")
KINDS = (
    # What is sent, how many answers are read, and how it ends.
    (b"", 0, Client.close),
    (GET, 1, Client.close),
    (GET, 1, Client.reset),
    (GET, 0, Client.reset),
    (GET[:20], 0, Client.close),
    (GET * 5, 2, Client.close),
    (GET * 5, 5, Client.close),
    (Client.head("POST", "/echo", {"Content-Length": 10}) + b"hello", 0, Client.reset),
    (Client.head("POST", "/", {"Transfer-Encoding": "chunked"}) + b"5\r\nhello\r\n0\r\n\r\n", 1, Client.close),
    (Client.head("GET", "/bytes/1000000"), 0, Client.reset),
    (Client.head("GET", "/delay/600000"), 0, Client.reset),
    (b"GARBAGE\r\n\r\n", 1, Client.close),
    (Client.head("GET", "/", {"Connection": "close"}), 1, Client.close),
    (Client.head("POST", "/bytes/3", {"Content-Length": 100000}) + bytes(1000), 1, Client.close),
)


def batch(master, begun, n):
    """n connections at once, of every kind."""
    clients = []
    for i in range(begun, begun + n):
        clients.append((Client(master.port, source=f"127.0.0.{2 + i // 5000 % 200}"), *KINDS[i % len(KINDS)]))
    for client, sent, _, _ in clients:
        client.send(sent)
    for client, _, n_answers, end in clients:
        for _ in range(n_answers):
            client.response()
        end(client)


def open_files(pid):
    directory, found = f"/proc/{pid}/fd", []
    for fd in os.listdir(directory):
        try:
            found.append(os.readlink(f"{directory}/{fd}"))
        except FileNotFoundError:  # closed since it was listed
            pass
    return sorted(found)


def settled(master):
    """The numbers when nobody is connected and nobody is on the way."""
    def calm():
        status = master.check_sums()
        return (status["connections"]["open"] == 0 and status["requests"]["in_flight"] == 0 and
                len(status["workers"]) == 2 and all(worker["state"] == "ready" for worker in status["workers"]))

    wait_until(calm, 20, "nobody is connected, and two workers are ready")
    # What has just ended may not be closed yet: the lowest of some looks, or what it was before.
    if not hasattr(master, "n_descriptors"):
        looks = [descriptors(master.pid)]
        wait_until(lambda: looks.append(descriptors(master.pid)) or len(looks) > 20, 10, "looks")
        master.n_descriptors = min(looks)
    wait_until(lambda: descriptors(master.pid) <= master.n_descriptors, 10,
               f"{master.n_descriptors} descriptors as before, not {open_files(master.pid)}")
    return rss_anonymous(master.pid), [descriptors(worker["pid"]) for worker in master.workers()]


def judge(what, before, after, n, most_each):
    """Memory may not have grown by more than most_each bytes for each of n, and 512 KiB of chance."""
    grown = after - before
    print(f"# {what}: {grown / 1024:.0f} KiB more after {n}, {grown / n:.0f} bytes each")
    check(SANITIZED or grown < n * most_each + 512 * 1024, what, "have cost", grown, "bytes")


@deadline(90)
def connections_and_reloads_leave_nothing():
    master = Master("--threads", "2")
    begun = 0

    def some(n, n_reloads):
        nonlocal begun
        for i in range(0, n, BATCH):
            batch(master, begun, min(BATCH, n - i))
            begun += BATCH
            if (i + BATCH) * n_reloads // n > i * n_reloads // n:
                for _ in range((i + BATCH) * n_reloads // n - i * n_reloads // n):
                    master.reload()

    # What is allocated once and kept.
    settled(master)
    some(CONNECTIONS // 4, max(1, RELOADS // 4))
    before, workers_before = settled(master)
    some(CONNECTIONS, RELOADS)
    after, workers_after = settled(master)
    equal(workers_after, workers_before, "descriptors of the workers:")
    # Less than a connection or a configuration has.
    judge("connections", before, after, CONNECTIONS, 40)
    equal(master.status()["respawns"], 0)
    master.stop()


@deadline(60)
def reloads_alone_leave_nothing():
    master = Master()
    for _ in range(10):
        master.reload()
    before, _ = settled(master)
    for _ in range(RELOADS):
        master.reload()
    after, _ = settled(master)
    judge("reloads", before, after, RELOADS, 2048)
    master.stop()


@deadline(60)
def failed_reloads_leave_nothing():
    master = Master(config={"listen": "127.0.0.1:0"}, listen=())
    settled(master)
    configs = ("{", {"listen": "127.0.0.1:0", "chdir": "/nowhere"}, {"listen": ["127.0.0.1:0", "192.0.2.1:1"]},
               {"listen": "127.0.0.1:0", "env": ["A=b", "LD_PRELOAD="], "chdir": "/nowhere"})

    def fail(n):
        for i in range(n):
            master.configure(configs[i % len(configs)])
            equal(master.control("POST", "/reload")[0], 500, configs[i % len(configs)])

    fail(8)
    before, _ = settled(master)
    fail(RELOADS)
    after, _ = settled(master)
    judge("failed reloads", before, after, RELOADS, 2048)
    with master.client() as client:
        equal(client.get("/").status, 200)
    master.stop()


@deadline(60)
def killed_workers_leave_nothing():
    master = Master("--min-lifetime", "0", "--threads", "2")

    def kill():
        worker = master.workers()[0]
        clients = [master.client() for _ in range(4)]
        for client in clients:
            client.ask("GET", "/delay/50")
        n = master.status()["respawns"]
        os.kill(worker["pid"], signal.SIGKILL)
        for client in clients:
            equal(client.response().status, 200)
            client.close()
        wait_until(lambda: master.status()["respawns"] == n + 1 and len(master.workers()) == 2, 10, "respawned")

    for _ in range(3):
        kill()
    before, _ = settled(master)
    for _ in range(12):
        kill()
    after, _ = settled(master)
    judge("killed workers", before, after, 12, 4096)
    master.stop()


@deadline(60)
def an_idle_connection_costs_little():
    master = Master("--threads", "2")
    with master.client() as client:
        client.get("/")
    empty, _ = settled(master)
    clients = [Client(master.port) for _ in range(IDLE)]
    for client in clients:
        equal(client.get("/bytes/10").body, pattern(10))
    wait_until(lambda: master.status()["connections"]["idle"] == IDLE, 10, "all are idle")
    wait_until(lambda: descriptors(master.pid) - master.n_descriptors == IDLE, 5, "one descriptor each")
    each = (rss_anonymous(master.pid) - empty) / IDLE
    print(f"# {each:.0f} bytes of the master's memory for each of {IDLE} idle connections")
    check(SANITIZED or each < 1000, "an idle connection costs", each, "bytes")
    for worker in master.workers():
        check(descriptors(worker["pid"]) < 50, "a worker holds sockets between requests")
    master.reload()
    for client in clients:
        equal(client.get("/bytes/10").body, pattern(10))
        client.close()
    settled(master)
    master.stop()


@deadline(60)
def control_clients_leave_nothing():
    master = Master()

    def ask(n):
        for i in range(n):
            client = Client(master.control_path)
            client.send((Client.head("GET", "/status"), b"GET /sta", b"", b"nonsense\r\n\r\n")[i % 4])
            if i % 8 < 4 and i % 4 in (0, 3):
                client.response()
            client.close()

    ask(50)
    before, _ = settled(master)
    ask(500)
    after, _ = settled(master)
    judge("control clients", before, after, 500, 100)
    master.stop()


run(connections_and_reloads_leave_nothing, reloads_alone_leave_nothing, failed_reloads_leave_nothing,
    killed_workers_leave_nothing, an_idle_connection_costs_little, control_clients_leave_nothing)
