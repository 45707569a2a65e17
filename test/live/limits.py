#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--ready-path, --max-requests and --request-timeout."""
from _fixture import Later, Stage, facts, start, stop, whole
from harness import Client, Master, check, equal, run, wait_until


def a_worker_is_ready_when_its_path_answers():
    stage = Stage()
    master, _ = start("--ready-path", "/hold/warm", stage=stage, workers=1, ready=False)

    def starts():
        try:
            return [worker["state"] for worker in master.workers(None)] == ["starting"]
        except OSError:
            return False

    wait_until(starts, 10, "it starts")
    equal(master.control("GET", "/healthz")[0], 503)
    stage.open("warm")
    master.wait_ready()
    with master.client() as client:
        first = facts(client.get("/"))
        equal(master.reload(), 2)
        equal(facts(client.get("/"))["generation"], "2", first)
    # Asking is no request of a client's.
    equal(master.status()["requests"]["total"], 2)
    equal(master.status()["connections"]["accepted"], 1)
    stop(master)


def a_path_that_answers_badly_is_a_failed_reload():
    master, stage = start("--ready-timeout", "700ms", config={}, workers=1)
    with master.client() as client:
        equal(facts(client.get("/"))["generation"], "1")
        master.configure({"ready_path": "/missing"})
        status, answer = master.control("POST", "/reload")
        equal(status, 500)
        check("answered GET /missing with 404" in answer["error"], answer)
        equal(facts(client.get("/"))["generation"], "1")
    equal(len(master.workers()), 1)
    stop(master)


def a_worker_that_has_served_enough_is_relieved():
    master = whole("--max-requests", "100", workers=2)
    clients = [master.client() for _ in range(4)]
    seen = set()
    for _ in range(300):
        for client in clients:
            client.ask("GET", "/")
        for client in clients:
            response = client.response()
            equal(response.status, 200)
            seen.add(response.body)
    check(len(seen) >= 6, "1200 requests were served by", len(seen), "workers")
    # The successor comes before the spent one goes.
    wait_until(lambda: len(master.workers(None)) == 2 and len(master.workers()) == 2, 10, "two are left")
    status = master.check_sums()
    equal((status["requests"]["total"], status["requests"]["replayed"], status["respawns"]), (1200, 0, 0))
    # A worker gets a tenth more at the most, and what comes until its successor is ready.
    check(all(worker["requests"] < 400 for worker in status["workers"]), status["workers"])
    equal(status["generation"], 1)
    for client in clients:
        client.close()
    master.stop()


def a_response_that_does_not_begin_is_504():
    master = Master("--request-timeout", "200ms", workers=1)
    with master.client() as client:
        response = client.get("/delay/60000")
        equal((response.status, response.keeps), (504, True))
        # Nothing was written, so the connection goes on; and the worker is free.
        equal(client.get("/delay/10").status, 200)
        equal(client.post("/delay/60000", b"a body").status, 504)
        equal(client.get("/").status, 200)
    status = master.status()
    equal((status["requests"]["failed"], status["connections"]["dropped"], status["requests"]["in_flight"]), (2, 0, 0))
    master.stop()


def a_response_that_has_begun_may_take_longer():
    master, stage = start("--request-timeout", "200ms", workers=1)
    with master.client() as client, master.client() as other:
        client.ask("GET", "/half/rest")
        half = Later(client.response)
        # Another that is taken back in the meantime shows that the time is over.
        equal(other.get("/hold/never").status, 504)
        equal(other.get("/hold/never").status, 504)
        check(not half.done, "the response was cut")
        stage.open("rest")
        equal(half.result().status, 200)
        check(len(client.get("/").body) > 0)
    stop(master)


run(a_worker_is_ready_when_its_path_answers, a_path_that_answers_badly_is_a_failed_reload,
    a_worker_that_has_served_enough_is_relieved, a_response_that_does_not_begin_is_504,
    a_response_that_has_begun_may_take_longer)
