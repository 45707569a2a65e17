#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Workers that break the rules of their channels are ended and replaced, and nobody else is harmed."""
import os
import signal
import subprocess

from _fixture import HOSTILE, stop, whole
from harness import Closed, Master, alive, check, deadline, descriptors, equal, run, wait_until

# Whose message can't be part of any conversation, and what the log says.
WRONGS = {
    "/unlent": "returned what it does not hold",
    "/far-slot": "returned what it does not hold",
    "/twice": "returned what it does not hold",
    "/detached-twice": "detached what it does not hold",
    "/descriptors": "sent a descriptor",
    "/disposition": "unknown disposition",
    "/unknown-record": "malformed record",
    "/lends-itself": "record",
    "/took-too-much": "took what was not sent",
    "/garbage": "",
    "/version": "",
    "/long-record": "malformed record",
    "/cut-record": "malformed record",
    "/empty-message": "",
    "/closes": "",
    "/control-garbage": "malformed message",
    "/control-record": "unexpected record",
    "/control-descriptor": "malformed message",
    "/control-closes": "",
    "/scribble": "",
}


def hostile(*options, **keywords):
    return whole("--min-lifetime", "0", "--native", *options, "--", HOSTILE, **keywords)


def ask(client, path):
    """What comes of it: a status, or None where the connection is closed."""
    try:
        client.ask("GET", path)
        return client.response().status
    except Closed:
        return None


@deadline(60)
def rule_breakers_are_killed_and_replaced():
    master = hostile("--threads", "2", workers=2)
    others = [master.client() for _ in range(4)]
    equal([ask(client, "/") for client in others], [200] * 4)
    n_descriptors = descriptors(master.pid)
    for n, (path, why) in enumerate(WRONGS.items(), 1):
        before = {worker["pid"] for worker in master.workers()}
        log = len(master.log)
        with master.client() as client:
            # It has answered before it does wrong.
            equal(ask(client, path), 200, path)
            wait_until(lambda: master.status()["respawns"] == n, 10, f"{path}: it is replaced")
            wait_until(lambda: len(master.workers()) == 2, 10, f"{path}: two are ready")
        after = {worker["pid"] for worker in master.workers()}
        equal(len(after - before), 1, path)
        check(not any(map(alive, before - after)), path, "it lives on")
        wait_until(lambda: why in master.log[log:], 5, f"{path}: the log says why")
        equal([ask(client, "/") for client in others for _ in range(2)], [200] * 8, path)
    wait_until(lambda: master.status()["connections"]["open"] == 4, 10, "the others' connections are all")
    status = master.status()
    equal(status["connections"]["accepted"], 4 + len(WRONGS))
    wait_until(lambda: descriptors(master.pid) <= n_descriptors, 5,
               f"no descriptor is left behind: {n_descriptors} before, {descriptors(master.pid)} now")
    stop(master)


def their_request_is_judged_by_the_kernel_and_not_by_them():
    """Marks and sums that they made up cost their own client its connection, at most."""
    master = hostile(workers=2)
    for path in ("/scribble", "/garbage", "/closes"):
        with master.client() as client:
            equal(ask(client, path), 200, path)
            # Either the response counted as whole, or the connection is closed; no second answer.
            check(ask(client, "/") in (200, None), path)
        wait_until(lambda: len(master.workers()) == 2, 10)
    stop(master)


def a_mute_worker_is_ended_by_the_hang_time_out():
    master = hostile("--hang-timeout", "3s", workers=2)
    client, other = master.client(), master.client()
    equal(ask(client, "/mute"), 200)
    victim = wait_until(lambda: master.workers("suspect"), 5, "it is suspect")[0]["pid"]
    equal([ask(other, "/") for _ in range(6)], [200] * 6)
    wait_until(lambda: not alive(victim), 15, "it is ended")
    wait_until(lambda: len(master.workers()) == 2, 5, "it is replaced")
    equal(ask(client, "/"), 200)
    master.check_sums()
    stop(master)


def one_that_never_reads_does_not_hold_up_the_master():
    """More requests than its channel takes: what does not fit goes to the other worker."""
    master = hostile("--hang-timeout", "0", "--threads", "1", workers=2)
    equal(ask(master.client(), "/mute"), 200)
    wait_until(lambda: master.status()["requests"]["total"] == 1, 5)
    clients = [master.client() for _ in range(60)]
    asked = b"GET / HTTP/1.1\r\nHost: test\r\nX-Pad: " + b"x" * 16000 + b"\r\n\r\n"
    for client in clients:
        client.send(asked)

    def settled():
        """Round about half are in its hands or in its channel; the others are answered."""
        status = master.status()
        held = {worker["pid"]: worker["in_flight"] for worker in status["workers"]}
        return status["requests"]["total"] == 61 and status["connections"]["idle"] >= 25 and held

    held = wait_until(settled, 10, "the others are served")
    mute = max(held, key=held.get)
    check(held[mute] > 5, held)
    os.kill(mute, signal.SIGKILL)
    # They were not taken: all are served.
    for client in clients:
        equal(client.response().status, 200)
    wait_until(lambda: len(master.workers()) == 2, 5)
    equal(master.status()["requests"]["failed"], 0)
    stop(master)


def one_that_breaks_the_rules_while_it_boots_fails_to_boot():
    master = Master(config={"app": ["/bin/cat"], "native": True, "workers": 1}, workers=None, ready=False)
    check("error:" in master.wait_end(1))


def up_worker_and_native_programs_need_a_master():
    for command in ([os.environ["UP_WORKER"], "hello"],):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        check(done.returncode != 0 and "up-master" in done.stderr, done)


run(rule_breakers_are_killed_and_replaced, their_request_is_judged_by_the_kernel_and_not_by_them,
    a_mute_worker_is_ended_by_the_hang_time_out, one_that_never_reads_does_not_hold_up_the_master,
    one_that_breaks_the_rules_while_it_boots_fails_to_boot, up_worker_and_native_programs_need_a_master)
