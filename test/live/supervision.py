#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How many workers there are, who replaces whom, and how it all ends."""
import grp
import os
import pwd
import re
import signal
import subprocess
import time

import harness
from _fixture import Later, Stage, check_counts, facts, generation, process_group, start, stop, whole
from harness import Client, Master, Skip, alive, check, deadline, equal, holds_for, run, together, wait_until

UPCTL = os.environ["UP_CTL"]


def pids(master, state="ready"):
    return {worker["pid"] for worker in master.workers(state)}


def until_replaced(master, dead, n, seconds=10):
    """Until n workers are ready, none of them of the dead."""
    wait_until(lambda: len(pids(master) - dead) == n and not pids(master) & dead, seconds, "the dead are replaced")


def hold(master, held=0, method="GET"):
    """A client whose request is at a worker until the stage opens "it", like those of `held` others."""
    wait_until(lambda: master.status()["connections"]["lent"] == held, 10, "others are back")
    client = master.client()
    client.ask(method, "/hold/it", body=b"" if method == "POST" else None)
    wait_until(lambda: master.status()["connections"]["lent"] == held + 1, 10, "the request is at a worker")
    return client


# ---- Deaths ----

def a_killed_worker_is_replaced_and_costs_no_connection():
    master = whole("--min-lifetime", "0", workers=2)
    idle = [master.client() for _ in range(8)]
    for client in idle:
        equal(client.get("/").status, 200)
    half = master.client()
    half.send(b"GET / HT")
    for n in range(1, 4):
        dead = pids(master)
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        until_replaced(master, dead, 2)
        equal(master.status()["respawns"], 2 * n)
        equal([client.get("/").status for client in idle], [200] * 8)
    half.send(b"TP/1.1\r\nHost: test\r\n\r\n")
    equal(half.response().status, 200)
    status = master.check_sums()
    equal((status["connections"]["accepted"], status["connections"]["open"]), (9, 9))
    check("was killed by signal 9" in master.log, "the log does not say why")
    stop(master)


def requests_wait_where_every_worker_is_dead():
    stage = Stage("ready")
    master, _ = start("--min-lifetime", "0", stage=stage, workers=1)
    client = master.client()
    equal(generation(client), 1)
    stage.plan("wait:go")
    os.kill(pids(master).pop(), signal.SIGKILL)
    wait_until(lambda: master.workers("starting"), 10, "it is replaced")
    client.ask("POST", "/body", body=b"abc")
    wait_until(lambda: master.status()["requests"]["queued"] == 1, 5, "it waits")
    equal(check_counts(master, waiting=1)["workers"][0]["state"], "starting")
    equal(master.control("GET", "/healthz")[0], 503)
    stage.open("go")
    equal(client.response().status, 200)
    equal(master.control("GET", "/healthz")[0], 200)
    stop(master)


def those_that_die_young_are_replaced_after_a_rest():
    master = Master("--min-lifetime", "1m", workers=1)
    for n, rest in enumerate((1, 2), 1):
        begun = time.monotonic()
        dead = pids(master)
        os.kill(dead.copy().pop(), signal.SIGKILL)
        wait_until(lambda: not pids(master, None), 5, "the death is seen")
        equal(master.status()["respawns"], n - 1)
        until_replaced(master, dead, 1)
        took = time.monotonic() - begun
        check(rest - 0.1 < took < rest + 2 * harness.SLOW, f"replaced after {took:.2f} s")
    stop(master)


def those_that_were_old_enough_are_replaced_at_once():
    master = Master("--min-lifetime", "300ms", workers=1)
    wait_until(lambda: master.workers()[0]["uptime_s"] > 0.3, 5, "it is old enough")
    dead = pids(master)
    begun = time.monotonic()
    os.kill(dead.copy().pop(), signal.SIGKILL)
    until_replaced(master, dead, 1)
    check(time.monotonic() - begun < 0.9 * harness.SLOW, "it rested")
    stop(master)


def without_respawn_the_dead_stay_dead():
    master = whole("--respawn=false", "--min-lifetime", "0", workers=2)
    victim = min(pids(master))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(pids(master, None)) == 1, 5, "the death is seen")
    holds_for(lambda: len(pids(master, None)) == 1, 0.5)
    with master.client() as client:
        equal(client.get("/").status, 200)
    equal(master.status()["respawns"], 0)
    # A reload makes them whole again.
    master.reload()
    equal(len(pids(master)), 2)
    stop(master)


def a_worker_that_exits_by_itself_is_replaced():
    stage = Stage("fail:exit", "ready")
    master, _ = start("--min-lifetime", "0", stage=stage, workers=2)
    stage.plan("ready")
    stage.open("exit")
    wait_until(lambda: len(pids(master)) == 2, 10, "both are ready")
    check(master.status()["respawns"] >= 1)
    stop(master)


def the_process_group_ends_with_its_worker():
    master, _ = start("--min-lifetime", "0", workers=1)
    with master.client() as client:
        worker = pids(master).pop()
        child = int(client.get("/spawn").body)
        equal(process_group(worker), {worker, child})
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not alive(child), 5, "its child ends too")
        until_replaced(master, {worker}, 1)
        # And with a worker that ends as it should.
        child = int(client.get("/spawn").body)
        check(alive(child))
        master.reload()
        wait_until(lambda: not alive(child), 5, "a retired worker's child ends too")
    stop(master)


def workers_do_not_outlive_a_killed_master():
    master, _ = start(workers=3)
    clients = [master.client() for _ in range(6)]
    for client in clients:
        equal(generation(client), 1)
    hold(master)
    everybody = pids(master)
    equal(len(everybody), 3)
    master.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, everybody)), 5, "the workers end with the master")
    equal(master.process.wait(5), -signal.SIGKILL)


def a_busy_or_stopped_worker_does_not_outlive_a_killed_master():
    master, _ = start("--hang-timeout", "0", workers=2)
    master.client().ask("GET", "/spin")
    wait_until(lambda: master.status()["connections"]["lent"] == 1, 5, "it is at a worker")
    everybody = pids(master)
    for worker in master.workers():
        if not worker["in_flight"]:
            os.kill(worker["pid"], signal.SIGSTOP)
    master.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, everybody)), 5, "the workers end with the master")


# ---- How many ----

def the_control_socket_and_upctl_scale():
    master = Master(workers=1)
    client = master.client()
    for n in (4, 2, 3, 1):
        equal(master.control("POST", f"/scale?workers={n}")[0], 200)
        equal(len(master.workers()), n)
        wait_until(lambda: len(master.workers(None)) == n, 10, "those too many end")
        equal(client.get("/").status, 200)
    done = subprocess.run([UPCTL, "--control", master.control_path, "scale", "2"], capture_output=True, text=True,
                          check=False, timeout=20)
    equal((done.returncode, len(master.workers())), (0, 2), done)
    for query in ("", "?workers=0", "?workers=-1", "?workers=two", "?workers=100000"):
        check(400 <= master.control("POST", "/scale" + query)[0] < 500, query)
    equal(len(master.workers()), 2)
    # The number is that of the generation: a reload goes back to what is configured.
    master.reload()
    equal(len(master.workers()), 1)
    stop(master)


def signals_scale_by_one():
    master = Master(workers=1)
    for number, n in ((signal.SIGTTIN, 2), (signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1)):
        master.signal(number)
        wait_until(lambda: len(master.workers()) == n and len(master.workers(None)) == n, 10, f"{n} workers")
    # One is the least.
    master.signal(signal.SIGTTOU)
    holds_for(lambda: len(master.workers(None)) == 1, 0.2)
    stop(master)


def a_worker_scaled_away_finishes_its_request():
    master, stage = start(workers=2)
    holders = [hold(master), hold(master, 1)]
    equal(sorted(worker["in_flight"] for worker in master.workers()), [1, 1])
    equal(master.control("POST", "/scale?workers=1")[0], 200)
    equal((len(master.workers()), len(master.workers("draining"))), (1, 1))
    stage.open("it")
    equal(len({facts(holder.response())["pid"] for holder in holders}), 2)
    wait_until(lambda: len(master.workers(None)) == 1, 10, "it ends")
    equal(len({facts(holder.get("/"))["pid"] for holder in holders}), 1)
    master.check_sums()
    stop(master)


def a_scale_waits_for_a_generation_that_starts():
    master, stage = start(workers=1)
    stage.plan("wait:go")
    reload = Later(master.control, "POST", "/reload")
    wait_until(lambda: master.workers("starting"), 10, "the reload runs")
    scale = Later(master.control, "POST", "/scale?workers=2")
    holds_for(lambda: not scale.done, 0.2)
    master.signal(signal.SIGTTIN)
    stage.plan("ready")
    stage.open("go")
    equal((reload.result()[0], scale.result()[0]), (200, 200))
    wait_until(lambda: len(master.workers()) == 3, 10, "two, and one more")
    equal({worker["generation"] for worker in master.workers()}, {2})
    stop(master)


def a_scale_that_can_not_be_had_says_why():
    master, stage = start("--ready-timeout", "300ms", workers=1)
    stage.plan("fail")
    code, document = master.control("POST", "/scale?workers=2")
    check(code >= 500 and "up_app() returned 7" in document["error"], code, document)
    with master.client() as client:
        equal(generation(client), 1)
    stop(master)


@deadline(40)
def scaling_under_load_loses_no_request():
    master = whole(workers=2)
    over = []

    def load(method):
        n = 0
        with master.client() as client:
            while not over:
                response = client.exchange(method, "/bytes/3000", body=b"x" * 2000 if method == "POST" else None)
                equal((response.status, len(response.body)), (200, 3000))
                n += 1
        return n

    def scale():
        try:
            for n in (1, 4, 2, 5, 1, 3, 1, 2):
                equal(master.control("POST", f"/scale?workers={n}")[0], 200)
                enough = master.status()["requests"]["total"] + 200
                wait_until(lambda: master.status()["requests"]["total"] > enough, 10, "load")
        finally:
            over.append(True)

    done = together(*[lambda method=method: load(method) for method in ["GET", "POST"] * 3], scale, seconds=30)
    status = master.check_sums()
    equal((status["requests"]["total"], status["requests"]["replayed"]), (sum(done[:-1]), 0))
    stop(master)


# ---- Stopping ----

def refused(port):
    try:
        Client(port).close()
    except ConnectionRefusedError:
        return True
    return False


def a_graceful_stop_finishes_what_is_under_way():
    master, stage = start(workers=2)
    idle, half, port = master.client(), master.client(), master.port
    equal(generation(idle), 1)
    half.send(b"GET / HTTP/1.1\r\n")
    holders = [hold(master), hold(master, 1, "POST")]
    middle = master.client()
    middle.ask("GET", "/half/it")
    head = middle.response_head()
    master.signal(signal.SIGTERM)
    idle.expect_end()
    equal(master.status()["state"], "stopping")
    equal(master.control("GET", "/healthz")[0], 503)
    wait_until(lambda: refused(port), 5, "it accepts no more")
    # A head that had begun is still served, and told that it is the last.
    half.send(b"Host: test\r\n\r\n")
    response = half.response()
    equal((response.status, response.field("Connection")), (200, "close"))
    half.expect_end()
    check(master.process.poll() is None, "it has not waited")
    stage.open("it")
    for holder in holders:
        equal(facts(holder.response())["generation"], "1")
        holder.expect_end()
    equal(len(b"".join(middle.pieces(head))), 4000)
    middle.expect_end()
    for client in (idle, half, middle, *holders):
        client.close()
    master.wait_end(0)
    check(not os.path.exists(master.control_path), "the control socket is still there")


def waiting_requests_are_served_by_a_graceful_stop():
    master, stage = start("--concurrency", "1", workers=1)
    holding = hold(master)
    waiting = [master.client() for _ in range(3)]
    for client in waiting:
        client.ask("POST", "/body", body=b"abc")
    wait_until(lambda: master.status()["requests"]["queued"] == 3, 5, "three wait")
    master.signal(signal.SIGINT)
    wait_until(lambda: master.status()["state"] == "stopping", 5, "it stops")
    stage.open("it")
    equal(facts(holding.response())["generation"], "1")
    for client in waiting:
        response = client.response()
        equal((response.status, response.field("Connection")), (200, "close"))
        client.expect_end()
        client.close()
    holding.close()
    master.wait_end(0)


def those_in_the_accept_queue_are_served_by_a_graceful_stop():
    master = Master("--max-connections", "1", workers=1)
    first = master.client()
    equal(first.get("/").status, 200)
    queued = [master.client() for _ in range(3)]
    for client in queued:
        client.ask("GET", "/")
    master.signal(signal.SIGTERM)
    first.expect_end()
    first.close()
    for client in queued:
        equal(client.response().status, 200)
        client.expect_end()
        client.close()
    master.wait_end(0)


def stopped_at_once(*numbers, after="stopping"):
    master, _ = start(workers=2)
    client = hold(master)
    everybody = pids(master)
    for number in numbers[:-1]:
        master.signal(number)
        wait_until(lambda: master.status()["state"] == after, 5, "it stops")
    begun = time.monotonic()
    master.signal(numbers[-1])
    master.wait_end(0, 5)
    check(time.monotonic() - begun < 3 * harness.SLOW, "that was not at once")
    check(not any(map(alive, everybody)), "workers live on")
    try:
        # Closed, or answered that it can't be; never a whole 200.
        check(client.response().status >= 500)
    except harness.Closed:
        pass


def a_second_sigterm_stops_at_once():
    stopped_at_once(signal.SIGTERM, signal.SIGTERM)


def sigint_and_then_sigterm_stop_at_once():
    stopped_at_once(signal.SIGINT, signal.SIGTERM)


def sigquit_stops_at_once():
    stopped_at_once(signal.SIGQUIT)


def the_stop_time_out_ends_what_goes_on():
    master, _ = start("--stop-timeout", "400ms", workers=1)
    hold(master)
    begun = time.monotonic()
    master.signal(signal.SIGTERM)
    master.wait_end(0, 10)
    check(0.3 < time.monotonic() - begun < 3 * harness.SLOW, "not at its time")


def the_control_socket_and_upctl_stop():
    for ask in (lambda: equal(master.control("POST", "/stop")[0], 202),
                lambda: subprocess.run([UPCTL, "--control", master.control_path, "stop"], check=True, timeout=20,
                                       stdout=subprocess.DEVNULL)):
        master = Master(workers=1)
        ask()
        master.wait_end(0)


def a_stop_during_a_reload_ends_both():
    master, stage = start(workers=2)
    stage.plan("wait:never")
    asked = Later(master.control, "POST", "/reload")
    wait_until(lambda: len(master.workers("starting")) == 2, 5, "the reload runs")
    client = hold(master)
    master.signal(signal.SIGTERM)
    code, document = asked.result()
    check(code >= 500 and "stopping" in document["error"], code, document)
    stage.open("it")
    equal(facts(client.response())["generation"], "1")
    client.close()
    master.wait_end(0)


def a_stop_before_the_first_worker_is_ready_ends_it():
    stage = Stage("never")
    master, _ = start(stage=stage, ready=False)
    wait_until(lambda: os.path.exists(master.control_path) and len(master.workers("starting")) == 2, 10, "it starts")
    equal(master.status()["state"], "starting")
    master.signal(signal.SIGTERM)
    master.wait_end(0)


# ---- Failing ----

def a_first_generation_that_does_not_boot_is_exit_1_and_why():
    for plan, why in (("fail", "up_app() returned 7"), ("exit", "exited with status 3"), ("kill", "signal 9"),
                      ("never", "not ready after 0.3 s")):
        master, _ = start("--ready-timeout", "300ms", stage=Stage(plan), ready=False)
        log = master.wait_end(1, 10)
        check(re.search(r"error: .*" + re.escape(why), log), log)
        check(plan != "fail" or "the database is not there" in log, log)


def one_worker_that_boots_is_enough():
    master, _ = start(stage=Stage("fail", "ready", "fail", "ready"), workers=3)
    with master.client() as client:
        equal(generation(client), 1)
    wait_until(lambda: len(master.workers()) == 3, 10, "the others are respawned")
    stop(master)


def bad_usage_is_exit_2():
    for arguments, word in ((["--no-such-option"], "no-such-option"), (["--workers", "many"], "workers"),
                            (["--threads", "0"], "threads"), (["--worker-timeout", "1parsec"], "worker-timeout"),
                            (["--listen", "nowhere"], "listen"), (["--config", "/no/such/file"], "/no/such/file"),
                            (["--switch", "last"], "switch")):
        master = Master(*arguments, workers=None, ready=False)
        check(word in master.wait_end(2), arguments, master.log)


def what_can_not_be_had_is_exit_1():
    other = Master(workers=1)
    for arguments, word in ((["--listen", f"127.0.0.1:{other.port}"], f"127.0.0.1:{other.port}"),
                            (["--control", other.control_path], other.control_path),
                            (["--pidfile", "/no/such/directory/pid"], "/no/such/directory/pid"),
                            (["--chdir", "/no/such/directory"], "/no/such/directory"),
                            (["/no/such/module.so"], "/no/such/module.so"),
                            (["--user", "no-such-user"], "no-such-user")):
        master = Master(*arguments, workers=1, ready=False)
        check(word in master.wait_end(1), arguments, master.log)
    stop(other)


# ---- What a worker is given ----

def the_pidfile_is_written_and_removed():
    stage = Stage()
    master = Master("--pidfile", stage.path("pid"), workers=1)
    with open(stage.path("pid"), encoding="ascii") as file:
        equal(int(file.read()), master.pid)
    stop(master)
    check(not os.path.exists(stage.path("pid")), "the pidfile is still there")


def a_start_that_fails_leaves_the_pidfile_of_another_alone():
    stage = Stage()
    master = Master("--pidfile", stage.path("pid"), workers=1)
    other = Master("--pidfile", stage.path("pid"), listen=(f"127.0.0.1:{master.port}",), workers=1, ready=False)
    other.wait_end(1)
    with open(stage.path("pid"), encoding="ascii") as file:
        equal(int(file.read()), master.pid)
    stop(master)


def workers_know_who_they_are():
    master, _ = start("--env", "COLOUR=red", "--env", "HOME=/elsewhere", "--env=EMPTY=", workers=2,
                      env={"COLOUR": "green", "INHERITED": "yes", "NOTIFY_SOCKET": "", "UP_GENERATION": "77"})
    told = {}
    with master.client() as client:
        for name, value in (("COLOUR", b"red"), ("HOME", b"/elsewhere"), ("EMPTY", b""), ("INHERITED", b"yes"),
                            ("UP_GENERATION", b"1"), ("UP_MASTER_PID", str(master.pid).encode()),
                            ("LISTEN_FDS", b"(none)")):
            equal(client.get("/env/" + name).body, value, name)
        for _ in range(2):
            said = facts(client.get("/"))
            told[int(said["pid"])] = int(said["id"])
        equal(told, {worker["pid"]: worker["id"] for worker in master.workers()})
        equal({int(client.get("/env/UP_WORKER_ID").body) for _ in range(2)}, set(told.values()))
        master.reload()
        equal(client.get("/env/UP_GENERATION").body, b"2")
    stop(master)


def command_line(pid):
    with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
        return file.read().rstrip("\0").split("\0")[0]


def titles_are_shown():
    for options, title in (((), "up"), (("--title", "shop"), "shop")):
        master = whole(*options, workers=2)
        for pid in pids(master):
            equal(command_line(pid), title + " worker")
        equal(command_line(master.pid), title + " master")
        stop(master)


def what_workers_print_is_forwarded_with_their_name():
    stage = Stage()
    with open(stage.path("out"), "wb") as out:
        master, _ = start(stage=stage, workers=1, stdout=out)
    number = master.workers()[0]["id"]
    with master.client() as client:
        client.get("/print/hello")
        client.get("/print/" + "x" * 3000)

    def printed():
        with open(stage.path("out"), encoding="utf-8") as file:
            return file.read()

    wait_until(lambda: "x" * 3000 in printed() and "x" * 3000 in master.log, 5, "the lines arrive")
    check(f"worker {number} (generation 1): out hello\n" in printed(), printed()[:300])
    check(f"worker {number} (generation 1): err hello\n" in master.log)
    check("out hello" not in master.log and "err hello" not in printed(), "standard output and error are mixed")
    stop(master)


def workers_run_as_somebody_else():
    if os.geteuid() != 0:
        raise Skip("not root")
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise Skip("there is no nobody") from None
    # The tree that is tested may be open to root only.
    probe = subprocess.run(["setpriv", "--reuid", "nobody", "--clear-groups", "test", "-x", os.environ["UP_WORKER"]],
                           check=False)
    if probe.returncode:
        raise Skip("nobody can't reach the programs")
    master, _ = start("--user", "nobody", workers=1)
    with master.client() as client:
        said = facts(client.get("/"))
    equal((int(said["uid"]), int(said["gid"])), (nobody.pw_uid, nobody.pw_gid))
    with open(f"/proc/{said['pid']}/status", encoding="utf-8") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    equal(status["Uid"].split(), [str(nobody.pw_uid)] * 4)
    equal(status["Gid"].split(), [str(nobody.pw_gid)] * 4)
    check("0" not in status["Groups"].split(), "root's groups:", status["Groups"])
    equal(int(status["CapEff"], 16), 0)
    # The change of user clears the tie to the master: it has to come after.
    master.signal(signal.SIGKILL)
    wait_until(lambda: not alive(int(said["pid"])), 5, "it ends with the master")
    master, _ = start("--user", "nobody", "--group", "daemon", workers=1)
    with master.client() as client:
        equal(int(facts(client.get("/"))["gid"]), grp.getgrnam("daemon").gr_gid)
    stop(master)


def workers_hold_no_descriptor_of_the_master():
    master = whole(workers=2)
    clients = [master.client() for _ in range(5)]
    for client in clients:
        equal(client.get("/").status, 200)
    for pid in pids(master):
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        n_threads = len(master.status()["threads"])
        # The control channel and a lending channel for each thread; no client's, no listener.
        equal(len([name for name in held if name.startswith("socket:")]), 1 + n_threads, held)
        check("/dev/null" in held, held)
    equal(master.check_sums()["connections"]["open"], 5)
    stop(master)


run(a_killed_worker_is_replaced_and_costs_no_connection, requests_wait_where_every_worker_is_dead,
    those_that_die_young_are_replaced_after_a_rest, those_that_were_old_enough_are_replaced_at_once,
    without_respawn_the_dead_stay_dead, a_worker_that_exits_by_itself_is_replaced,
    the_process_group_ends_with_its_worker, workers_do_not_outlive_a_killed_master,
    a_busy_or_stopped_worker_does_not_outlive_a_killed_master,
    the_control_socket_and_upctl_scale, signals_scale_by_one, a_worker_scaled_away_finishes_its_request,
    a_scale_waits_for_a_generation_that_starts,
    a_scale_that_can_not_be_had_says_why, scaling_under_load_loses_no_request,
    a_graceful_stop_finishes_what_is_under_way, waiting_requests_are_served_by_a_graceful_stop,
    those_in_the_accept_queue_are_served_by_a_graceful_stop, a_second_sigterm_stops_at_once,
    sigint_and_then_sigterm_stop_at_once, sigquit_stops_at_once, the_stop_time_out_ends_what_goes_on,
    the_control_socket_and_upctl_stop, a_stop_during_a_reload_ends_both,
    a_stop_before_the_first_worker_is_ready_ends_it, a_first_generation_that_does_not_boot_is_exit_1_and_why,
    one_worker_that_boots_is_enough, bad_usage_is_exit_2, what_can_not_be_had_is_exit_1,
    the_pidfile_is_written_and_removed, a_start_that_fails_leaves_the_pidfile_of_another_alone, workers_know_who_they_are,
    titles_are_shown, what_workers_print_is_forwarded_with_their_name, workers_run_as_somebody_else,
    workers_hold_no_descriptor_of_the_master)
