#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a reload promises."""
import os
import pty
import signal
import subprocess
import termios
import time

import harness
from _fixture import Later, Stage, facts, generation, module, point, replace_file, start, stop, whole
from harness import Client, Master, alive, check, deadline, equal, holds_for, run, together, wait_until

UPCTL = os.environ["UP_CTL"]


def reload(master, query=""):
    return master.control("POST", "/reload" + query)


def reloads(master):
    return master.status()["reloads"]


def until_starting(master, number, n=1):
    """Until n workers of that generation have been started and are not ready."""
    wait_until(lambda: sum(worker["generation"] == number for worker in master.workers("starting")) == n, 10,
               f"{n} workers of generation {number} start")


def fresh_generation(master):
    with master.client() as client:
        return generation(client)


# ---- The switch ----

def nothing_changes_until_a_worker_is_ready():
    master, stage = start()
    stage.plan("wait:first", "wait:second")
    client = master.client()
    asked = Later(reload, master)
    until_starting(master, 2, 2)
    status = master.status()
    equal((status["state"], status["generation"]), ("reloading", 1))
    equal([generation(client) for _ in range(6)] + [fresh_generation(master) for _ in range(4)], [1] * 10)
    stage.open("first")
    wait_until(lambda: master.status()["generation"] == 2, 10, "the switch")
    equal([generation(client) for _ in range(6)] + [fresh_generation(master) for _ in range(4)], [2] * 10)
    check(not asked.done, "a reload is answered before every worker is ready")
    stage.open("second")
    code, document = asked.result()
    equal((code, document["generation"]), (200, 2), document)
    check(document["duration_ms"] > 0, document)
    equal(len({facts(client.get("/"))["pid"] for _ in range(10)}), 2, "workers that serve:")
    stop(master)


def from_the_first_ready_worker_on_all_goes_to_the_new_generation():
    master, stage = start(workers=3)
    stage.plan("ready", "wait:second")
    clients = [master.client() for _ in range(4)]
    equal([generation(client) for client in clients], [1] * 4)
    code, document = reload(master, "?wait=first")
    equal((code, document["generation"]), (200, 2), document)
    # Not one request later than the answer.
    equal([generation(client) for client in clients for _ in range(5)], [2] * 20)
    equal(master.status()["state"], "reloading")
    wait_until(lambda: all(worker["generation"] == 2 for worker in master.workers(None)), 10, "the old ones end")
    stage.open("second")
    wait_until(lambda: master.status()["state"] == "running", 10, "the reload ends")
    equal(len(master.workers()), 3)
    equal(reloads(master)["count"], 1)
    stop(master)


def switch_all_waits_for_every_worker():
    master, stage = start("--switch", "all")
    stage.plan("ready", "wait:second")
    client = master.client()
    asked = Later(reload, master, "?wait=first")
    wait_until(lambda: [worker["generation"] for worker in master.workers()].count(2) == 1, 10, "the first is ready")
    until_starting(master, 2)
    equal([generation(client) for _ in range(6)], [1] * 6)
    check(not asked.done, "answered before the switch")
    stage.open("second")
    equal(asked.result()[0], 200)
    equal([generation(client) for _ in range(6)], [2] * 6)
    stop(master)


def switch_all_goes_on_without_those_that_do_not_boot():
    master, stage = start("--switch", "all")
    stage.plan("wait:first", "fail:second")
    asked = Later(reload, master)
    until_starting(master, 2, 2)
    stage.open("second")
    wait_until(lambda: "failed to boot" in master.log, 10, "one fails")
    equal(fresh_generation(master), 1)
    stage.open("first")
    equal(asked.result()[0], 200)
    equal(fresh_generation(master), 2)


# ---- The old generation ----

def an_old_worker_ends_right_after_its_last_request():
    master, stage = start()
    old = {worker["id"]: worker["pid"] for worker in master.workers()}
    client = master.client()
    client.ask("GET", "/hold/it")
    wait_until(lambda: master.status()["connections"]["lent"] == 1, 10, "the request is at a worker")
    holder = wait_until(lambda: [worker["pid"] for worker in master.workers() if worker["in_flight"]], 10)[0]
    equal(master.reload(), 2)
    wait_until(lambda: not any(alive(pid) for pid in old.values() if pid != holder), 10, "the idle one ends")
    check(alive(holder), "a worker that holds a request was ended")
    equal([(worker["pid"], worker["generation"], worker["in_flight"]) for worker in master.workers("draining")],
          [(holder, 1, 1)])
    stage.open("it")
    said = facts(client.response())
    equal((said["generation"], int(said["pid"])), ("1", holder))
    wait_until(lambda: not alive(holder), 10, "it ends after its last request")
    equal(generation(client), 2)
    equal(reloads(master)["failed"], 0)
    stop(master)


def a_response_half_sent_is_finished_by_the_old_generation():
    master, stage = start()
    client = master.client()
    client.ask("GET", "/half/rest")
    head = client.response_head()
    first = client.take(2000)
    equal(master.reload(), 2)
    stage.open("rest")
    equal((head.field("Content-Length"), first + client.take(2000)), ("4000", b"a" * 2000 + b"b" * 2000))
    equal(generation(client), 2)
    master.check_sums()
    stop(master)


def an_upgraded_socket_goes_on_until_the_worker_time_out():
    master, _ = start("--worker-timeout", "1s", workers=1)
    client = master.client()
    client.ask("GET", "/upgrade", {"Connection": "Upgrade", "Upgrade": "echo"})
    equal(client.response().status, 101)
    old = master.workers()[0]["pid"]
    equal(master.reload(), 2)
    client.send(b"still here")
    equal(client.take(10), b"still here")
    equal(master.status()["connections"]["upgraded"], 1)
    client.expect_end()
    wait_until(lambda: not alive(old), 10, "it ends at its time-out")
    equal(master.status()["connections"]["dropped"], 0, "a time-out is counted as dropped:")
    stop(master)


@deadline(40)
def a_deaf_worker_is_killed_five_seconds_after_its_time():
    stage = Stage("deaf")
    master, _ = start("--worker-timeout", "200ms", stage=stage, workers=1)
    getting, posting = master.client(), master.client()
    getting.ask("GET", "/hold/it")
    posting.ask("POST", "/hold/it", body=b"")
    wait_until(lambda: master.status()["connections"]["lent"] == 2, 10, "both are at the worker")
    old = master.workers()[0]["pid"]
    stage.plan("ready")
    equal(master.reload(), 2)
    wait_until(lambda: "still busy" in master.log, 10, "its time is over")
    begun = time.monotonic()
    wait_until(lambda: not alive(old), 15, "it is killed")
    took = time.monotonic() - begun
    check(4 < took < 5 + 3 * harness.SLOW, f"killed after {took:.1f} s")
    # What crashes promise holds for these too: the one is asked of another worker, the other is not.
    equal(posting.response().status, 502)
    stage.open("it")
    equal(facts(getting.response())["generation"], "2")
    equal([generation(getting), generation(posting)], [2, 2])
    stop(master)


# ---- Rolling back ----

def failing(plan, error, stderr, *options):
    """A reload with this plan fails and says so, and nothing has changed."""
    master, stage = start(*options)
    client = master.client()
    equal(generation(client), 1)
    before = {worker["pid"] for worker in master.workers()}
    stage.plan(plan)
    code, document = reload(master)
    equal(code, 500, document)
    check(error in document["error"], document)
    for line in stderr:
        check(line in document["stderr"].splitlines(), document)
    equal((generation(client), fresh_generation(master)), (1, 1))
    equal({worker["pid"] for worker in master.workers()}, before)
    status = master.status()
    equal((status["generation"], status["state"]), (1, "running"))
    equal((status["reloads"]["count"], status["reloads"]["failed"]), (1, 1))
    last = status["reloads"]["last"]
    equal((last["ok"], last["generation"], last["error"]), (False, 2, document["error"]))
    wait_until(lambda: all(worker["generation"] == 1 for worker in master.workers(None)), 10, "generation 2 is gone")
    stage.plan("ready")
    # The number of the failed one is not used again.
    equal(master.reload(), 3)
    equal(generation(client), 3)
    equal((reloads(master)["count"], reloads(master)["failed"]), (2, 1))
    master.check_sums()
    stop(master)


def a_generation_that_returns_an_error_is_rolled_back():
    failing("fail", "up_app() returned 7", ["the database is not there", "and so it can't start"])


def a_generation_that_exits_is_rolled_back():
    failing("exit", "exited with status 3", [])


def a_generation_that_is_killed_is_rolled_back():
    failing("kill", "signal 9", [])


def a_generation_that_never_gets_ready_is_rolled_back():
    failing("never", "not ready after 0.4 s", [], "--ready-timeout", "400ms")


def a_module_that_does_not_load_is_rolled_back():
    master = Master(config={"app": [module("a")]}, workers=1)
    path = master.directory + "/broken.so"
    with open(path, "w", encoding="utf-8") as file:
        file.write("no module\n" * 1000)
    for app, word in ((path, "invalid ELF header"), (master.directory + "/absent.so", "No such file")):
        master.configure({"app": [app]})
        code, document = reload(master)
        equal(code, 500, document)
        check(word in document["error"] and app in document["error"], document)
    master.configure({"app": [module("b")]})
    equal(master.reload(), 4)
    with master.client() as client:
        equal(facts(client.get("/"))["version"], "b")
    stop(master)


def some_that_do_not_boot_are_named_and_respawned():
    master, stage = start(workers=2)
    stage.plan("ready", "fail")
    code, document = reload(master)
    equal((code, document["generation"]), (200, 2), document)
    failed = document["failed"]
    equal(len(failed), 1, document)
    check("up_app() returned 7" in failed[0]["error"] and str(failed[0]["id"]) in failed[0]["error"], document)
    check("the database is not there" in failed[0]["stderr"], document)
    equal((reloads(master)["count"], reloads(master)["failed"]), (1, 0))
    equal(len(master.workers()), 1)
    stage.plan("ready")
    wait_until(lambda: len(master.workers()) == 2, 10, "the failed one is respawned")
    equal({worker["generation"] for worker in master.workers(None)}, {2})
    check(master.status()["respawns"] >= 1)
    stop(master)


# ---- Reloads at once ----

def a_reload_during_a_reload_is_followed_by_one_more():
    master, stage = start()
    stage.plan("wait:go")
    first = Later(reload, master)
    until_starting(master, 2, 2)
    others = [Later(reload, master, query) for query in ["", "?wait=first"] * 10]
    holds_for(lambda: not any(asked.done for asked in others), 0.3)
    stage.open("go")
    equal(first.result()[1]["generation"], 2)
    for asked in others:
        code, document = asked.result()
        equal((code, document["generation"]), (200, 3), document)
    wait_until(lambda: master.status()["state"] == "running", 10, "all is done")
    equal((master.status()["generation"], reloads(master)["count"]), (3, 2))
    stop(master)


def a_reload_asked_for_during_a_failing_one_follows_it():
    master, stage = start()
    stage.plan("fail:go")
    first = Later(reload, master)
    until_starting(master, 2, 2)
    second = Later(reload, master)
    master.signal(signal.SIGHUP)
    holds_for(lambda: not second.done, 0.2)
    # Those of generation 3 find the other plan.
    stage.plan("ready")
    stage.open("go")
    equal(first.result()[0], 500)
    code, document = second.result()
    equal((code, document["generation"]), (200, 3), document)
    equal((reloads(master)["count"], reloads(master)["failed"]), (2, 1))
    stop(master)


# ---- Configuration ----

def the_configuration_is_read_anew():
    stage = Stage()
    old = {"app": [module("a"), stage.directory], "workers": 1, "env": "COLOUR=red", "worker_timeout": "1m"}
    master = Master(config=old, workers=None)
    with master.client() as client:
        equal((client.get("/env/COLOUR").body, facts(client.get("/"))["version"]), (b"red", "a"))
        master.configure({**old, "app": [module("b"), stage.directory], "workers": 3,
                          "env": ["COLOUR=blue", "SHAPE=round"], "worker_timeout": "100ms", "concurrency": 1})
        equal(master.reload(), 2)
        equal((client.get("/env/COLOUR").body, client.get("/env/SHAPE").body), (b"blue", b"round"))
        equal(facts(client.get("/"))["version"], "b")
        equal(len(master.workers()), 3)
        # The new limits hold: one of four requests waits, and goes to the third generation.
        holders = [master.client() for _ in range(4)]
        for holder in holders:
            holder.ask("POST", "/hold/it", body=b"")
        wait_until(lambda: master.status()["requests"]["queued"] == 1, 10, "the fourth waits")
        equal(master.status()["connections"]["lent"], 3)
        answers = [Later(holder.response) for holder in holders]
        equal(master.reload(), 3)
        wait_until(lambda: sum(answer.done for answer in answers) == 3, 10, "the new worker time-out")
        stage.open("it")
        equal(sorted(answer.result().status for answer in answers), [200, 502, 502, 502])
    stop(master)


def a_broken_configuration_is_a_failed_reload():
    master = Master(config={"workers": 1}, workers=None)
    for text, place in (('{\n  "workers": 2,\n  "env": [\n}', ":4"), ('{\n  "workers": 2,\n\n  "colour": "red"\n}', ":4"),
                        ('{\n  "workers": "many"\n}', ":2"), ('{"workers": 1, "workers": 2}', ":1")):
        master.configure(text)
        code, document = reload(master)
        equal(code, 500, document)
        check(master.config_path + place in document["error"], document)
    os.unlink(master.config_path)
    code, document = reload(master)
    equal(code, 500, document)
    check(master.config_path in document["error"] and "No such file" in document["error"], document)
    equal((reloads(master)["count"], reloads(master)["failed"]), (5, 5))
    equal((master.status()["generation"], len(master.workers())), (1, 1))
    master.configure({"workers": 2})
    equal(master.reload(), 7)
    equal(len(master.workers()), 2)
    stop(master)


def what_needs_a_restart_is_refused_by_name():
    master = Master(config={"threads": 2}, workers=1)
    for changed, name in (({"threads": 3}, "threads"), ({"threads": 2, "pidfile": "/tmp/other"}, "pidfile")):
        master.configure(changed)
        code, document = reload(master)
        equal(code, 500, document)
        check(name in document["error"], document)
    master.configure({"threads": 2})
    master.reload()
    stop(master)


def listeners_come_and_go_with_a_reload():
    master = Master(config={"listen": ["127.0.0.1:0"]}, listen=(), workers=1)
    path = master.directory + "/web.sock"
    client = master.client()
    check(client.get("/").status == 200)
    master.configure({"listen": ["127.0.0.1:0", "192.0.2.1:0"]})
    code, document = reload(master)
    equal(code, 500, document)
    check("192.0.2.1:0" in document["error"], document)
    equal(len(master.addresses()), 1)
    master.configure({"listen": ["127.0.0.1:0", "unix:" + path]})
    master.reload()
    with Client(path) as local:
        equal(local.get("/").status, 200)
        master.configure({"listen": ["127.0.0.1:0"]})
        master.reload()
        # Its connections are not those of the listener.
        equal((local.get("/").status, client.get("/").status), (200, 200))
    wait_until(lambda: not os.path.exists(path), 5, "the path goes with its listener")
    equal(len(master.addresses()), 1)
    stop(master)


def a_moved_link_is_followed_by_the_next_generation_only():
    stage = Stage()
    for name, version in (("one", "a"), ("two", "b")):
        os.mkdir(stage.path(name))
        replace_file(module(version), stage.path(name + "/app.so"))
        with open(stage.path(name + "/marker"), "w", encoding="utf-8") as file:
            file.write(name)
    point(stage.path("current"), "one")
    master = Master("--chdir", stage.path("current"), "--min-lifetime", "0", "./app.so", stage.directory, workers=1)
    client = master.client()

    def who():
        said = facts(client.get("/"))
        return said["generation"], said["version"], said["marker"], os.path.basename(said["cwd"])

    def kill_and_wait():
        # Two, so that a request finds one.
        pid = master.workers()[0]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: [worker for worker in master.workers() if worker["pid"] != pid], 10, "respawned")

    equal(who(), ("1", "a", "one", "one"))
    point(stage.path("current"), "two")
    equal(who(), ("1", "a", "one", "one"))
    kill_and_wait()
    equal(who(), ("1", "a", "one", "one"), "respawned:")
    stage.plan("fail")
    equal(reload(master)[0], 500)
    stage.plan("ready")
    # A module that was replaced, too: the old generation has the file that it began with.
    replace_file(module("b"), stage.path("one/app.so"))
    kill_and_wait()
    equal(who(), ("1", "a", "one", "one"), "respawned after a failed reload:")
    equal(master.reload(), 3)
    equal(who(), ("3", "b", "two", "two"))
    # The same path, a new file: dlopen(3) of a mapped path would give the old code.
    replace_file(module("a"), stage.path("two/app.so"))
    kill_and_wait()
    equal(who(), ("3", "b", "two", "two"))
    equal(master.reload(), 4)
    equal(who(), ("4", "a", "two", "two"))
    stop(master)


# ---- Who may ask ----

def signals_reload():
    master = Master()
    for number, name in enumerate((signal.SIGUSR2, signal.SIGHUP), 2):
        master.signal(name)
        wait_until(lambda: reloads(master)["count"] == number - 1, 10, name)
        equal((master.status()["generation"], reloads(master)["last"]["ok"]), (number, True))
    stop(master)


def upctl_tells_by_its_exit_status():
    master, stage = start()

    def upctl(*arguments):
        return subprocess.run([UPCTL, "--control", master.control_path, *arguments], capture_output=True, text=True,
                              timeout=30 * harness.SLOW, check=False)

    done = upctl("reload")
    equal((done.returncode, done.stderr), (0, ""), done)
    check("generation 2" in done.stdout, done)
    stage.plan("fail")
    done = upctl("reload")
    equal((done.returncode, done.stdout), (1, ""), done)
    check("up_app() returned 7" in done.stderr and "the database is not there" in done.stderr, done)
    stage.plan("ready", "fail")
    done = upctl("reload")
    equal(done.returncode, 0, done)
    check("up_app() returned 7" in done.stderr, "a worker that failed is not named:", done)
    stage.plan("ready", "wait:go")
    done = upctl("reload", "--wait", "first")
    equal(done.returncode, 0, done)
    stage.open("go")
    stop(master)


class Terminal(Master):
    """A master in the foreground of a terminal."""

    def _start(self, command, environment, fds, stdout, log):
        self.terminal, self.slave = pty.openpty()
        harness._opened.append(self)

        def become():
            harness._die_with_parent()
            os.setsid()
            harness.fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        return subprocess.Popen(command, stdin=self.slave, stdout=log, stderr=log, env=environment, preexec_fn=become)

    def hang_up(self):
        os.close(self.terminal)
        self.terminal = -1

    def close(self):
        super().close()
        for fd in (self.terminal, self.slave):
            if fd >= 0:
                os.close(fd)
        self.terminal = self.slave = -1


def modes(terminal):
    return termios.tcgetattr(terminal.slave)[3] & (termios.ICANON | termios.ECHO)


def a_key_reloads_and_the_terminal_is_restored():
    master = Terminal()
    equal(modes(master), 0, "modes while it runs:")
    os.write(master.terminal, b"x\x12y")
    wait_until(lambda: reloads(master)["count"] == 1, 10, "Ctrl+R")
    equal(master.status()["generation"], 2)
    # A job that is stopped leaves the terminal to the shell, and takes it again.
    os.write(master.terminal, b"\x1a")
    wait_until(lambda: modes(master) == termios.ICANON | termios.ECHO, 10, "restored at Ctrl+Z")
    master.signal(signal.SIGCONT)
    wait_until(lambda: modes(master) == 0, 10, "changed again")
    # Ctrl+C is a graceful stop.
    os.write(master.terminal, b"\x03")
    master.wait_end(0)
    equal(modes(master), termios.ICANON | termios.ECHO, "modes afterwards:")


def a_terminal_that_goes_is_a_graceful_stop():
    stage = Stage()
    master, _ = start(stage=stage, make=Terminal)
    client, idle = master.client(), master.client()
    equal(generation(idle), 1)
    wait_until(lambda: master.status()["connections"]["lent"] == 0, 10, "it is back")
    client.ask("GET", "/hold/it")
    wait_until(lambda: master.status()["connections"]["lent"] == 1, 10, "the request is at a worker")
    os.close(master.slave)
    master.slave = -1
    master.hang_up()
    idle.expect_end()
    stage.open("it")
    equal(facts(client.response())["generation"], "1")
    master.wait_end(0)


# ---- Connections ----

def no_connection_is_closed_whatever_its_state():
    master, stage = start("--concurrency", "1", workers=1)
    idle, half, holding, waiting, piping = (master.client() for _ in range(5))
    equal(generation(idle), 1)
    wait_until(lambda: master.status()["connections"]["lent"] == 0, 10, "it is back")
    half.send(b"GET / HTTP/1.1\r\nHo")
    holding.ask("POST", "/hold/it", body=b"abc")
    wait_until(lambda: master.status()["connections"]["lent"] == 1, 10, "one at the worker")
    waiting.ask("POST", "/", body=b"abc")
    piping.send(b"".join(Client.head("GET", "/") for _ in range(5)))
    wait_until(lambda: master.status()["connections"]["waiting"] == 2, 10, "two wait")
    stage.plan("wait:go")
    asked = Later(reload, master)
    until_starting(master, 2)
    late = master.client()
    late.ask("GET", "/")
    wait_until(lambda: master.status()["connections"]["waiting"] == 3, 10, "three wait")
    stage.open("go")
    equal(asked.result()[1]["generation"], 2)
    equal([facts(client.response())["generation"] for client in (waiting, late)], ["2", "2"])
    equal([facts(piping.response())["generation"] for _ in range(5)], ["2"] * 5)
    stage.open("it")
    equal(facts(holding.response())["generation"], "1")
    half.send(b"st: test\r\n\r\n")
    equal(facts(half.response())["generation"], "2")
    equal([generation(client) for client in (idle, half, holding, waiting, piping, late)], [2] * 6)
    status = master.check_sums()
    equal((status["connections"]["accepted"], status["connections"]["open"]), (6, 6))
    stop(master)


@deadline(40)
def reloads_under_load_lose_no_request():
    master = whole(workers=2)
    over = []

    def load(method):
        n, seen = 0, 0
        client = master.client()
        while not over:
            body = b"x" * 3000 if method == "POST" else None
            response = client.exchange(method, "/bytes/5000" if n % 2 else "/", body=body)
            equal(response.status, 200)
            if not n % 2:
                now = int(response.body.rpartition(b" ")[2])
                check(now >= seen, f"generation {now} after {seen}")
                seen = now
            n += 1
        client.close()
        return n

    def reload_often():
        try:
            for number in range(2, 8):
                equal(master.reload("first" if number % 2 else "all"), number)
                enough = master.status()["requests"]["total"] + 200
                wait_until(lambda: master.status()["requests"]["total"] > enough, 10, "load")
        finally:
            over.append(True)

    done = together(*[lambda method=method: load(method) for method in ["GET", "POST"] * 4], reload_often, seconds=30)
    check(min(done[:-1]) > 10, done)
    wait_until(lambda: master.status()["state"] == "running", 10, "the last reload ends")
    status = master.check_sums()
    equal((status["reloads"]["count"], status["reloads"]["failed"]), (6, 0))
    equal((status["connections"]["accepted"], status["requests"]["replayed"]), (8, 0))
    equal(status["requests"]["total"], sum(done[:-1]))
    stop(master)


run(nothing_changes_until_a_worker_is_ready, from_the_first_ready_worker_on_all_goes_to_the_new_generation,
    switch_all_waits_for_every_worker, switch_all_goes_on_without_those_that_do_not_boot,
    an_old_worker_ends_right_after_its_last_request, a_response_half_sent_is_finished_by_the_old_generation,
    an_upgraded_socket_goes_on_until_the_worker_time_out, a_deaf_worker_is_killed_five_seconds_after_its_time,
    a_generation_that_returns_an_error_is_rolled_back, a_generation_that_exits_is_rolled_back,
    a_generation_that_is_killed_is_rolled_back, a_generation_that_never_gets_ready_is_rolled_back,
    a_module_that_does_not_load_is_rolled_back, some_that_do_not_boot_are_named_and_respawned,
    a_reload_during_a_reload_is_followed_by_one_more, a_reload_asked_for_during_a_failing_one_follows_it,
    the_configuration_is_read_anew, a_broken_configuration_is_a_failed_reload,
    what_needs_a_restart_is_refused_by_name, listeners_come_and_go_with_a_reload,
    a_moved_link_is_followed_by_the_next_generation_only, signals_reload, upctl_tells_by_its_exit_status,
    a_key_reloads_and_the_terminal_is_restored, a_terminal_that_goes_is_a_graceful_stop,
    no_connection_is_closed_whatever_its_state, reloads_under_load_lose_no_request)
