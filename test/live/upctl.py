#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""upctl against a control socket that this script plays: what it asks, prints and exits with."""
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading

import harness
from harness import check

UPCTL = os.environ["UP_CTL"]

STATUS = {
    "version": "0.1.0", "pid": 4711, "uptime_s": 3723.5, "state": "running", "generation": 2,
    "listeners": [{"address": "127.0.0.1:3000", "inherited": False}, {"address": "[::]:80", "inherited": True}],
    "connections": {"accepted": 10, "open": 4, "reading": 0, "waiting": 0, "lent": 1, "idle": 3, "upgraded": 0,
                    "dropped": 0},
    "requests": {"total": 99, "in_flight": 1, "queued": 0, "replayed": 0, "refused": 0, "failed": 0,
                 "latency_us": {"p50": 90, "p99": 1400, "p999": 9000000, "max": None}},
    "workers": [{"id": 3, "pid": 4720, "app_pid": None, "generation": 2, "state": "ready", "uptime_s": 5.1,
                 "requests": 50, "in_flight": 1, "rss_bytes": 7340032}],
    "respawns": 0,
    "reloads": {"count": 1, "failed": 0, "last": {"generation": 2, "ok": True, "error": None, "duration_ms": 31.0}},
    "threads": [{"id": 0, "connections": 4}],
}


def answer(status, document):
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


class Control:
    """Answers one request with the bytes given, and keeps its request line."""

    def __init__(self, path, reply):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.listener.settimeout(10)
        self.path, self.reply, self.line = path, reply, None
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        try:
            client = self.listener.accept()[0]
        except TimeoutError:
            return
        with client:
            client.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            self.line = head.split(b"\r\n")[0].decode()
            client.sendall(self.reply)

    def end(self):
        self.thread.join()
        self.listener.close()
        os.unlink(self.path)


def run(*arguments, environment=None):
    result = subprocess.run([UPCTL, *arguments], capture_output=True, text=True, timeout=20,
                            stdin=subprocess.DEVNULL, env={**(environment or {}), "LC_ALL": "C"})
    return result.returncode, result.stdout, result.stderr


def ask(path, reply, *arguments):
    control = Control(path, reply)
    try:
        return (*run("--control", path, *arguments), control)
    finally:
        control.end()


def status_is_a_table_for_people(path):
    code, out, err, control = ask(path, answer(200, STATUS), "status")
    check(control.line == "GET /status HTTP/1.1", control.line)
    check(code == 0 and err == "", code, err)
    for text in ("up-master 0.1.0, pid 4711, running, generation 2, up 1h 2m\n",
                 "127.0.0.1:3000, [::]:80 (inherited)\n",
                 "4 open: 0 reading, 0 waiting, 1 lent, 3 idle, 0 upgraded; 10 accepted, 0 dropped\n",
                 "99 total, 1 in flight,", "p50 90 us, p99 1.4 ms, p99.9 9.0 s, max -\n",
                 "1, 0 failed; last: generation 2, after 31 ms\n"):
        check(text in out, text, out)
    check(re.search(r"\n +3 +4720 +2 +ready +5\.1 s +50 +1 +7\.0 MiB\n$", out), out)
    check("APP PID" not in out, out)


def status_may_lack_anything(path):
    for document in ({}, dict.fromkeys(STATUS), {"workers": [{}], "listeners": [None], "reloads": {"last": {}}},
                     {**STATUS, "workers": [{"app_pid": 7, "state": "a\x1b[31m" * 20}]}):
        code, out, err, _ = ask(path, answer(200, document), "status")
        check(code == 0 and out.startswith("up-master ") and "\x1b" not in out, code, out, err)


def json_is_passed_on_as_it_came(path):
    code, out, _, _ = ask(path, answer(200, STATUS), "--json", "status")
    check(code == 0 and json.loads(out) == STATUS, code, out)
    code, out, err, _ = ask(path, answer(500, {"error": "no"}), "reload", "--json")
    check(code == 1 and json.loads(out) == {"error": "no"} and err == "", code, out, err)


def reload_says_which_generation_serves(path):
    code, out, _, control = ask(path, answer(200, {"generation": 3, "duration_ms": 31.4}), "reload")
    check((code, out) == (0, "generation 3 serves, after 31 ms\n"), code, out)
    check(control.line == "POST /reload?wait=all HTTP/1.1", control.line)
    *_, control = ask(path, answer(200, {"generation": 3}), "reload", "--wait", "first")
    check(control.line == "POST /reload?wait=first HTTP/1.1", control.line)


def failed_reload_says_why(path):
    for lines in (["one", "two \x1b[2J"], "one\ntwo \x1b[2J\n"):
        reply = answer(500, {"error": "worker 4 exited with 1", "stderr": lines})
        code, out, err, _ = ask(path, reply, "reload")
        check(code == 1 and out == "", code, out)
        check(err.startswith("upctl: reload failed: worker 4 exited with 1\n"), err)
        check("one\n" in err and "two ?[2J\n" in err, err)


def scale_and_stop(path):
    code, out, _, control = ask(path, answer(200, {}), "scale", "7")
    check((code, out) == (0, "7 workers\n"), code, out)
    check(control.line == "POST /scale?workers=7 HTTP/1.1", control.line)
    code, out, _, control = ask(path, answer(202, {}), "stop")
    check((code, out) == (0, "stopping\n"), code, out)
    check(control.line == "POST /stop HTTP/1.1", control.line)


def bad_usage_is_2(path):
    for arguments in ((), ("restart",), ("scale",), ("scale", "0"), ("scale", "x"), ("scale", "1025"),
                      ("scale", "1", "2"), ("status", "x"), ("reload", "--wait", "some"),
                      ("status", "--wait", "all"), ("--nope", "status"), ("-i", "a/b", "status"), ("-i", "", "status")):
        code, out, err = run("--control", path, *arguments)
        check(code == 2 and out == "" and "Try: upctl --help" in err, arguments, code, out, err)
    for option in ("--help", "--version"):
        code, out, err = run(option)
        check(code == 0 and "upctl" in out and err == "", option, code, out, err)


def no_connection_is_1_and_says_what_to_do(path):
    code, _, err = run("--control", path, "status")
    check(code == 1 and f"no control socket at {path}: is up-master running?" in err, code, err)
    directory = os.path.dirname(path)
    code, _, err = run("status", environment={"RUNTIME_DIRECTORY": directory + "/a:/b"})
    check(code == 1 and f"no control socket at {directory}/a/control.sock:" in err, code, err)
    code, _, err = run("-i", "no-such-one", "status", environment={"RUNTIME_DIRECTORY": directory})
    check(code == 1 and "/run/up-master-no-such-one/control.sock" in err, code, err)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    code, _, err = run("--control", path, "status")
    check(code == 1 and "nobody listens" in err, code, err)
    stale.close()
    os.unlink(path)


def places_are_searched_in_order(path):
    directory = os.path.dirname(path)
    os.mkdir(directory + "/up-master")
    for environment, name in (({"XDG_RUNTIME_DIR": directory}, "/up-master/control.sock"),
                              ({"RUNTIME_DIRECTORY": directory, "XDG_RUNTIME_DIR": "/nowhere"}, "/control.sock")):
        control = Control(directory + name, answer(202, {}))
        code, _, err = run("stop", environment=environment)
        control.end()
        check(code == 0, code, err)


def answers_that_are_none_are_told(path):
    for reply, text in ((b"", "ended before it answered"), (b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n{", "ended"),
                        (b"220 smtp\r\n", "not up-master"), (answer(200, b"<html>"), "not up-master"),
                        (answer(502, b"<html>"), "status 502")):
        code, out, err, _ = ask(path, reply, "status")
        check(code == 1 and out == "" and text in err, reply, code, out, err)


def full_disk_is_told(path):
    control = Control(path, answer(200, STATUS))
    with open("/dev/full", "w") as full:
        result = subprocess.run([UPCTL, "--control", path, "status"], stdout=full, stderr=subprocess.PIPE, text=True,
                                timeout=20)
    control.end()
    check(result.returncode == 1 and "No space left" in result.stderr, result)


def with_path(case):
    """The case, given a path for a control socket in a directory of its own."""
    def run_case():
        directory = tempfile.mkdtemp(prefix="upctl.")
        try:
            case(os.path.join(directory, "control.sock"))
        finally:
            shutil.rmtree(directory)

    run_case.__name__ = case.__name__
    return run_case


harness.run(*map(with_path, (
    status_is_a_table_for_people, status_may_lack_anything, json_is_passed_on_as_it_came,
    reload_says_which_generation_serves, failed_reload_says_why, scale_and_stop, bad_usage_is_2,
    no_connection_is_1_and_says_what_to_do, places_are_searched_in_order, answers_that_are_none_are_told,
    full_disk_is_told)))
