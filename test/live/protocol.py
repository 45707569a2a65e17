#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""docs/up-protocol.7 is enough to write a worker: docs/examples/worker.py was."""
import os
import signal
import threading

from harness import Client, Master, check, chunked, equal, need, run, together, wait_until

WORKER = os.environ["UP_SOURCE"] + "/docs/examples/worker.py"


def start(*options):
    need("python3")
    master = Master(*options, "--native", "--", WORKER)
    wait_until(lambda: len(master.workers()) == 2, 10, "both workers are ready")
    return master


def requests_are_answered_and_sockets_given_back():
    master = start("--threads", "2", "--ready-path", "/ready")
    client = master.client()
    equal(client.get("/a").body, b"GET /a, 0 bytes\n")
    equal(client.post("/b", b"x" * 300000).body, b"POST /b, 300000 bytes\n")
    client.send(Client.head("PUT", "/c", {"Expect": "100-continue", "Content-Length": 3}))
    equal(client.response_head().status, 100)
    client.send(b"abc")
    equal(client.response().body, b"PUT /c, 3 bytes\n")
    # Two at once: the second is answered over the same socket.
    client.send(Client.head("GET", "/d"), Client.head("GET", "/e"))
    equal([client.response().body for _ in range(2)], [b"GET /d, 0 bytes\n", b"GET /e, 0 bytes\n"])
    equal(master.check_sums()["connections"]["accepted"], 1)
    client.close()
    master.stop()


def a_body_whose_end_it_does_not_look_for_ends_the_connection():
    master = start()
    client = master.client()
    client.send(Client.head("POST", "/", {"Transfer-Encoding": "chunked"}), chunked(b"abc"))
    response = client.response()
    equal(response.status, 200)
    equal(response.field("Connection"), "close")
    client.expect_end()
    client.close()
    master.stop()


def a_reload_under_load_fails_nothing():
    master = start("--threads", "2")
    over = threading.Event()

    def ask():
        n = 0
        with master.client() as client:
            while not over.is_set():
                equal(client.post("/", b"hello").body, b"POST /, 5 bytes\n")
                n += 1
        return n

    def reload():
        try:
            for _ in range(3):
                master.reload()
        finally:
            over.set()

    together(ask, ask, ask, ask, reload)
    status = master.check_sums()
    equal(status["generation"], 4)
    equal(status["connections"]["accepted"], 4)
    check(status["requests"]["total"] > 4, status)
    # The old ones end by themselves, when they have LAST from every channel.
    wait_until(lambda: len(master.workers(None)) == 2, 10, "the old workers end")
    master.stop()


def one_that_is_killed_costs_no_connection():
    master = start("--min-lifetime", "0")
    client = master.client()
    equal(client.get("/").status, 200)
    for worker in master.workers():
        os.kill(worker["pid"], signal.SIGKILL)
    equal(client.get("/").status, 200)
    equal(master.status()["connections"]["accepted"], 1)
    client.close()
    master.stop()


run(requests_are_answered_and_sockets_given_back, a_body_whose_end_it_does_not_look_for_ends_the_connection,
    a_reload_under_load_fails_nothing, one_that_is_killed_costs_no_connection)
