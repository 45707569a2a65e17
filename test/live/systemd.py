#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The units under a real systemd: what `meson install` puts there, started, reloaded, broken, stopped.

It is process 1 of namespaces of its own (_machine.py); nothing of this system is touched, and where
such a machine can't be made the test is skipped. As root: `systemd.py CASE…` runs those cases only.

Drop-ins are taken from docs/systemd.md, so that what is written there is what was tried.
"""
import functools
import glob
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

from harness import BUILD, SLOW, SOURCE, Client, Skip, alive, check, descendants, equal, run, wait_until
from _machine import boot

MESON = os.environ.get("UP_MESON", "meson")
PROGRAM_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8",
               "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
PORT = 3000
SHOP = "/srv/shop"  # where the application is deployed
ETC = "/etc/up-master"
# The services' working directories, where the fixture finds its plan and makes notes.
STATE, SHOP_STATE = "/var/lib/up-master", "/var/lib/up-master-shop"
DROP_INS = "/etc/systemd/system"
UNIT, SOCKET = "up-master.service", "up-master.socket"
UNITS = (UNIT, SOCKET, "up-master@shop.service", "up-master@shop.socket")


def open_text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


# Read here: in the machine the sources may not be seen.
MANUAL, STRICT = open_text(f"{SOURCE}/docs/systemd.md"), open_text(f"{SOURCE}/docs/strict.conf")


# ---- Before the machine starts ----

def install(root):
    """What a packager does, and the files that the cases use."""
    subprocess.run([*MESON.split(), "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", root],
                   check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    with open(BUILD + "/meson-info/intro-installed.json", encoding="utf-8") as file:
        installed = json.load(file).values()
    libraries = [path for path in installed if "/libup.so" in path]
    write(root + "/etc/ld.so.conf.d/up-master-test.conf", os.path.dirname(libraries[0]) + "\n")
    subprocess.run(["/sbin/ldconfig", "-r", root], check=True)
    for path in installed:
        # Other prefixes than /usr and /usr/local are not searched.
        if "/systemd/system/" in path and not path.startswith(("/usr/lib/", "/usr/local/lib/", "/lib/")):
            os.symlink(path, root + DROP_INS + "/" + os.path.basename(path))
    # The leak check of a sanitizer attaches to its process, which the sandbox does not let it.
    write(root + "/etc/systemd/system.conf.d/test.conf",
          "[Manager]\nDefaultEnvironment=ASAN_OPTIONS=detect_leaks=0:abort_on_error=1\n")
    os.makedirs(root + SHOP)
    for name in ("fixture-a.so", "fixture-b.so"):
        shutil.copy(f"{BUILD}/test/workers/{name}", root + SHOP)


# ---- Means ----

def write(path, text, mode=0o644):
    """By rename, as one deploys."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path + ".new", mode)
    os.rename(path + ".new", path)


def call(*command, seconds=30):
    """(exit status, what it wrote)"""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=PROGRAM_ENV, timeout=seconds * SLOW, text=True, check=False)
    except subprocess.TimeoutExpired:
        check(False, *command, f"has not ended within {seconds * SLOW:g} s")
    return done.returncode, done.stdout


def must(*command, seconds=30):
    status, said = call(*command, seconds=seconds)
    equal(status, 0, *command, said)
    return said


def systemctl(*arguments, seconds=30):
    return must("systemctl", *arguments, seconds=seconds)


def show(unit, name):
    return systemctl("show", "--value", "--property", name, unit).strip()


def main_pid(unit=UNIT):
    return int(show(unit, "MainPID"))


def configure(config, name="up-master"):
    write(f"{ETC}/{name}.json", config if isinstance(config, str) else json.dumps(config))


def drop_in(unit, *lines):
    write(f"{DROP_INS}/{unit}.d/test.conf", "\n".join(["[Service]", *lines, ""]))
    systemctl("daemon-reload")


def documented(name):
    """The drop-in of docs/systemd.md that begins with the comment "# NAME"."""
    blocks = re.findall(r"^```ini\n(.*?)^```$", MANUAL, re.DOTALL | re.MULTILINE)
    found = [block for block in blocks if block.startswith(f"# {name}\n")]
    equal(len(found), 1, "examples in docs/systemd.md named", name)
    return found[0]


def deploy(version, plan="ready"):
    """The application's new code, where the old one was, and how it boots."""
    shutil.copy(f"{SHOP}/fixture-{version}.so", f"{SHOP}/app.so.new")
    os.rename(f"{SHOP}/app.so.new", f"{SHOP}/app.so")
    write(f"{STATE}/plan", plan)


APP = {"app": [f"{SHOP}/app.so", "."], "workers": 2}


def facts(client):
    """What the fixture says of itself, or hello."""
    response = client.get("/")
    equal(response.status, 200, response)
    return response.body.decode()


def generation(client):
    text = facts(client)
    return int(re.search(r"\bgeneration[ :=]+(\d+)", text)[1])


def status(*options):
    return json.loads(must("upctl", *options, "--json", "status"))


def uid(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(r"^Uid:\s+(\d+)", file.read(), re.MULTILINE)[1])


class Journal:
    """What the journal gets, as it comes."""

    def __init__(self):
        self.process = subprocess.Popen(["journalctl", "--follow", "--lines=all", "--output=json"], env=PROGRAM_ENV,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.buffer, self.entries, self.at = b"", [], 0

    def _read(self, seconds):
        if not select.select([self.process.stdout], [], [], max(0, seconds))[0]:
            return False
        piece = os.read(self.process.stdout.fileno(), 1 << 16)
        check(piece, "journalctl has ended")
        *lines, self.buffer = (self.buffer + piece).split(b"\n")
        self.entries += map(json.loads, lines)
        return True

    def wait(self, pattern, seconds=20, **fields):
        """The next entry whose message matches, and whose fields are these."""
        end = time.monotonic() + seconds * SLOW
        while True:
            for i in range(self.at, len(self.entries)):
                entry = self.entries[i]
                if re.search(pattern, str(entry.get("MESSAGE"))) and fields.items() <= entry.items():
                    self.at = i + 1
                    return entry
            check(self._read(end - time.monotonic()), "the journal has not got:", pattern, fields)

    def skip(self):
        """Past all that was written before now."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            mark = os.urandom(8).hex()
            log.sendto(f"<6>mark: {mark}".encode(), "/dev/log")
        self.wait(mark)
        self.begun = self.at

    def print(self):
        while self._read(0.2):
            pass
        for entry in self.entries[self.begun:]:
            print("#", entry.get("SYSLOG_IDENTIFIER"), entry.get("_PID"), entry.get("MESSAGE"))


journal = None


def fresh():
    call("systemctl", "stop", *UNITS, "up-master@tea.service", seconds=60)
    for path in (*glob.glob(f"{DROP_INS}/up-master*.d"), *glob.glob(f"{DROP_INS}/*.requires"), ETC,
                 *glob.glob("/var/lib/private/up-master*")):
        shutil.rmtree(path, ignore_errors=True)
    for path in glob.glob("/etc/default/up-master*") + glob.glob("/var/lib/up-master*"):
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
        else:
            shutil.rmtree(path)
    os.makedirs("/var/lib/private", 0o700, exist_ok=True)
    for path in (STATE, SHOP_STATE):
        # As systemd makes it for a user of its own.
        os.mkdir(f"/var/lib/private/{os.path.basename(path)}")
        os.symlink(f"private/{os.path.basename(path)}", path)
    systemctl("daemon-reload")
    systemctl("reset-failed")
    deploy("a")
    journal.skip()


def case(function):
    """Begins with nothing running and nothing configured; shows the journal where it fails."""
    @functools.wraps(function)
    def wrapped():
        fresh()
        try:
            function()
        except Skip:
            raise
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0)
            journal.print()
            raise
    wrapped.deadline = getattr(function, "deadline", 60)
    return wrapped


# ---- Cases ----

@case
def units_are_without_fault():
    for unit in UNITS:
        equal(call("systemd-analyze", "verify", "--man=no", unit), (0, ""), unit)


@case
def hello_starts_and_says_what_it_does():
    systemctl("start", UNIT)
    with Client(PORT) as client:
        check("Hello from pid" in facts(client))
    n = len(os.sched_getaffinity(0))
    check(re.fullmatch(rf"running: generation 1, [1-9]\d* of {n} workers ready", show(UNIT, "StatusText")),
          show(UNIT, "StatusText"))
    check(uid(main_pid()) >= 61184, "not the user of its own that systemd makes:", uid(main_pid()))
    entry = journal.wait("listening on", _SYSTEMD_UNIT=UNIT)
    equal((entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]), ("up-master", "5"))
    check(not entry["MESSAGE"].startswith("<"), entry)
    equal(status()["pid"], main_pid())


@case
def reload_keeps_every_connection():
    systemctl("start", UNIT)
    with Client(PORT) as busy, Client(PORT) as idle:
        equal(generation(busy), 1)
        for n in range(2, 7):
            systemctl("reload", UNIT)
            equal(generation(busy), n)
            check(f"generation {n}," in show(UNIT, "StatusText"))
        equal(generation(idle), 6)
        equal(status()["connections"]["accepted"], 2)
        equal(status()["connections"]["dropped"], 0)


@case
def reload_returns_when_the_new_code_serves():
    configure(APP)
    systemctl("start", UNIT)
    with Client(PORT) as client:
        check("version=a" in facts(client), facts(client))
        deploy("b", "wait:go")
        with subprocess.Popen(["systemctl", "reload", UNIT], env=PROGRAM_ENV) as reload:
            journal.wait("starting generation 2", _SYSTEMD_UNIT=UNIT)
            wait_until(lambda: show(UNIT, "ActiveState") == "reloading", 10)
            check("version=a" in facts(client))
            equal(reload.poll(), None, "the reload has returned early:")
            write(f"{STATE}/go", "")
            equal(reload.wait(20 * SLOW), 0)
        check("version=b" in facts(client))


def refused(client, why):
    """A reload that must fail, with the reason in the journal and the old code still serving."""
    n = status()["reloads"]["failed"]
    code, said = call("systemctl", "reload", UNIT)
    check(code != 0, "a reload that can't succeed has:", said)
    journal.wait(why, _SYSTEMD_UNIT=UNIT)
    wait_until(lambda: show(UNIT, "ActiveState") == "active", 10, "the unit is active")
    check("version=a" in facts(client) and generation(client) == 1, facts(client))
    equal(status()["reloads"]["failed"], n + 1)
    check("last reload failed:" in show(UNIT, "StatusText"), show(UNIT, "StatusText"))


@case
def reload_that_fails_says_so_and_changes_nothing():
    configure(APP)
    systemctl("start", UNIT)
    pid = main_pid()
    with Client(PORT) as client:
        write(f"{STATE}/plan", "fail")
        refused(client, "reload failed")
        write(f"{STATE}/plan", "ready")
        write(f"{SHOP}/app.so", "no module\n")
        refused(client, "app.so")
        deploy("b")
        configure('{"workers": 2,\n "app": }')
        refused(client, f"{ETC}/up-master.json")
        configure({**APP, "worker": 2})
        refused(client, '"?worker"?')
        configure(APP)
        systemctl("reload", UNIT)
        check("version=b" in facts(client))
        check("failed" not in show(UNIT, "StatusText"), show(UNIT, "StatusText"))
    equal((main_pid(), show(UNIT, "NRestarts")), (pid, "0"))


@case
def configuration_that_comes_later_is_read_by_a_reload():
    systemctl("start", UNIT)
    with Client(PORT) as client:
        check("Hello" in facts(client))
        configure(APP)
        systemctl("reload", UNIT)
        check("version=a" in facts(client))
        deploy("b")
        systemctl("reload", UNIT)
        check("version=b" in facts(client))
        systemctl("restart", UNIT)
    with Client(PORT) as client:
        check("version=b" in facts(client))


@case
def bad_configuration_is_not_tried_again():
    configure({"wokers": 2})
    check(call("systemctl", "start", UNIT)[0] != 0, "started")
    journal.wait("wokers", _SYSTEMD_UNIT=UNIT)
    equal((show(UNIT, "ActiveState"), show(UNIT, "ExecMainStatus"), show(UNIT, "NRestarts")), ("failed", "2", "0"))


@case
def options_come_from_the_environment_file():
    write("/etc/default/up-master", 'UP_MASTER_OPTIONS="--listen 127.0.0.1:80 --workers 3"\n')
    systemctl("start", UNIT)
    with Client(80) as client:
        facts(client)
    equal(len(wait_until(lambda: (w := status()["workers"]) and len(w) == 3 and w, 10)), 3)
    check(uid(main_pid()) != 0, "port 80 needs no root")


@case
def socket_unit_starts_the_service():
    systemctl("start", SOCKET)
    equal(show(UNIT, "ActiveState"), "inactive")
    with Client(PORT) as client:
        equal(generation(client), 1)
        equal([item["inherited"] for item in status()["listeners"]], [True])
        systemctl("reload", UNIT)
        equal(generation(client), 2)
    systemctl("stop", UNIT)
    equal(show(SOCKET, "ActiveState"), "active")


@case
def restart_behind_a_socket_unit_refuses_nobody():
    configure(APP)
    systemctl("enable", "--quiet", SOCKET)
    systemctl("start", UNIT)
    equal(show(SOCKET, "ActiveState"), "active", "the enabled socket has not come with the service:")
    deploy("b", "wait:go")
    systemctl("restart", "--no-block", UNIT)
    journal.wait("stopped", _SYSTEMD_UNIT=UNIT)
    with Client(PORT) as client:
        client.ask("GET", "/")
        client.expect_silence(0.2)
        write(f"{STATE}/go", "")
        response = client.response()
        check(response.status == 200 and b"version=b" in response.body, response)
    # The socket's own settings can be changed too.
    write(f"{DROP_INS}/{SOCKET}.d/socket.conf", documented("socket.conf"))
    systemctl("daemon-reload")
    systemctl("restart", SOCKET)
    with Client(80) as client:
        check("version=b" in facts(client))
    systemctl("disable", "--quiet", SOCKET)


@case
def instances_are_apart():
    configure({**APP, "listen": "127.0.0.1:3001"}, "shop")
    configure({"listen": "127.0.0.1:3002", "workers": 1}, "tea")
    systemctl("start", "up-master@shop", "up-master@tea")
    with Client(3001) as shop, Client(3002) as tea:
        check("version=a" in facts(shop) and "Hello" in facts(tea))
        systemctl("reload", "up-master@tea")
        equal((generation(shop), generation(tea)), (1, 2))
        must("upctl", "-i", "shop", "reload")
        equal((generation(shop), generation(tea)), (2, 2))
    equal(status("-i", "shop")["pid"], main_pid("up-master@shop"))
    equal(status("-i", "tea")["pid"], main_pid("up-master@tea"))
    for name in ("shop", "tea"):
        check(os.path.isdir(f"/var/lib/up-master-{name}/"), "no state directory")
    check(call("upctl", "status")[0] == 1, "up-master.service does not run, but answers")


@case
def instance_has_a_socket_unit():
    configure(APP, "shop")
    systemctl("start", "up-master@shop.socket")
    with Client("/run/up-master-shop.sock") as client:
        check("version=a" in facts(client))
        systemctl("reload", "up-master@shop")
        equal(generation(client), 2)


@case
def hung_master_is_replaced():
    drop_in(UNIT, "WatchdogSec=1")
    systemctl("start", SOCKET, UNIT)
    pid = main_pid()
    processes = descendants(pid) | {pid}
    os.kill(pid, signal.SIGSTOP)
    journal.wait("[Ww]atchdog timeout", UNIT=UNIT)
    with Client(PORT) as client:
        equal(generation(client), 1)
    check(main_pid() not in (0, pid), "the same master")
    equal(show(UNIT, "NRestarts"), "1")
    check(not any(map(alive, processes)), "a process of the old master lives")


@case
def killed_master_leaves_nothing_and_comes_back():
    systemctl("start", UNIT)
    pid = main_pid()
    processes = descendants(pid) | {pid}
    check(len(processes) > 1, processes)
    os.kill(pid, signal.SIGKILL)
    journal.wait("[Ss]cheduled restart job", UNIT=UNIT)
    check(not any(map(alive, processes)), "a worker outlives its master")
    journal.wait("listening on", _SYSTEMD_UNIT=UNIT)
    with Client(PORT) as client:
        equal(generation(client), 1)
    equal((show(UNIT, "NRestarts"), show(UNIT, "ActiveState")), ("1", "active"))


@case
def stop_waits_for_requests_under_way():
    systemctl("start", UNIT)
    with Client(PORT) as client, Client(PORT) as idle:
        facts(idle)
        client.send(client.head("POST", "/echo", {"Content-Length": 10, "Expect": "100-continue"}))
        equal(client.response_head().status, 100)
        client.send(b"01234")
        with subprocess.Popen(["systemctl", "stop", UNIT], env=PROGRAM_ENV) as stop:
            idle.expect_end()
            equal(show(UNIT, "ActiveState"), "deactivating")
            equal(stop.poll(), None, "the stop has not waited:")
            client.send(b"56789")
            response = client.response()
            equal((response.status, response.body), (200, b"0123456789"))
            equal(stop.wait(20 * SLOW), 0)
    equal((show(UNIT, "ActiveState"), show(UNIT, "Result")), ("inactive", "success"))


@case
def slow_reload_is_not_cut_off():
    drop_in(UNIT, "TimeoutStartSec=1s")
    configure(APP)
    systemctl("start", UNIT)
    # A worker reads the plan when it boots: the second must not find the next one.
    wait_until(lambda: "2 of 2 workers ready" in show(UNIT, "StatusText"), 20, "both workers are ready")
    deploy("b", "wait:go")
    with Client(PORT) as client, subprocess.Popen(["systemctl", "reload", UNIT], env=PROGRAM_ENV) as reload:
        journal.wait("starting generation 2", _SYSTEMD_UNIT=UNIT)
        try:
            reload.wait(3)
            check(False, "the reload was cut off")
        except subprocess.TimeoutExpired:
            pass
        check("version=a" in facts(client))
        write(f"{STATE}/go", "")
        equal(reload.wait(20 * SLOW), 0)
        check("version=b" in facts(client))
    equal(show(UNIT, "NRestarts"), "0")


@case
def slow_start_is_not_cut_off():
    drop_in(UNIT, "TimeoutStartSec=1s")
    configure(APP)
    deploy("a", "wait:go")
    with subprocess.Popen(["systemctl", "start", UNIT], env=PROGRAM_ENV) as start:
        try:
            start.wait(3)
            check(False, "the start was cut off")
        except subprocess.TimeoutExpired:
            pass
        write(f"{STATE}/go", "")
        equal(start.wait(20 * SLOW), 0)
    equal(show(UNIT, "NRestarts"), "0")


# Run as a worker, it tells what the sandbox lets an application do, and does not become ready.
PROBE = """#!/bin/sh
exec >"$STATE_DIRECTORY/probe" 2>/dev/null
cd
for directory in "$STATE_DIRECTORY" "$LOGS_DIRECTORY" "$HOME" . /tmp /var/tmp; do
	echo yes >"$directory/written" && echo "writes $directory"
done
for directory in /etc /srv/shop /usr /var /run; do
	(echo >"$directory/written") && echo "must not write $directory"
done
mkfifo /tmp/fifo && echo fifo
grep -q MemTotal /proc/meminfo && echo meminfo
ls /proc/1 >/dev/null && echo "must not see others"
for program in node python3 java php perl; do
	command -v "$program" >/dev/null || continue
	case $program in
	node) "$program" -e 'const os = require("os"); new Function("return 1")(); os.networkInterfaces(); os.cpus()' ;;
	python3) /usr/bin/"$program" -c 'import socket, threading; threading.Thread(target=print).start()' ;;
	java) "$program" -version ;;
	*) "$program" --version ;;
	esac >/dev/null && echo "$program runs" || echo "must run $program"
done
echo end
exit 1
"""


@case
def sandbox_lets_applications_work_and_no_more():
    write(f"{SHOP}/probe", PROBE, 0o755)
    configure({"app": [f"{SHOP}/probe"], "native": True, "workers": 1})
    check(call("systemctl", "start", UNIT, seconds=60)[0] != 0, "a worker that ends at once counts as ready")
    systemctl("stop", UNIT)
    with open("/var/lib/up-master/probe", encoding="ascii") as file:
        said = file.read().splitlines()
    for line in said:
        print("#", line)
        check("must" not in line, line)
    for line in ("writes /var/lib/up-master", "writes /var/log/up-master", "writes /tmp", "fifo", "meminfo", "end"):
        check(line in said, "not in the sandbox:", line)
    check(not os.path.exists("/tmp/written"), "/tmp is not private")


@case
def strict_drop_in_serves_hello():
    write(f"{DROP_INS}/{UNIT}.d/strict.conf", STRICT)
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    with Client(PORT) as client:
        equal(generation(client), 1)
        systemctl("reload", UNIT)
        equal(generation(client), 2)
    configure({**APP, "listen": "127.0.0.1:3000"})
    drop_in(UNIT, f"ExecPaths={SHOP}")
    systemctl("restart", UNIT)
    with Client(PORT) as client:
        check("version=a" in facts(client))


@case
def user_of_a_site_is_used():
    """The code is readable, and a directory below it writable, by that user only."""
    if call("id", "shop")[0] != 0:
        must("useradd", "--system", "--no-create-home", "--home-dir", SHOP, "shop")
    write(f"{DROP_INS}/{UNIT}.d/user.conf", documented("user.conf"))
    systemctl("daemon-reload")
    write(f"{SHOP}/probe", '#!/bin/sh\nid -un >/srv/shop/uploads/written\nexit 1\n', 0o755)
    os.makedirs(f"{SHOP}/uploads", exist_ok=True)
    must("chown", "-R", "shop:", SHOP)
    os.chmod(SHOP, 0o750)
    try:
        configure({"app": [f"{SHOP}/probe"], "native": True, "workers": 1})
        check(call("systemctl", "start", UNIT)[0] != 0, "the probe counts as ready")
        systemctl("stop", UNIT)
        equal(open_text(f"{SHOP}/uploads/written"), "shop\n")
        configure(APP)
        systemctl("start", UNIT)
        with Client(PORT) as client:
            check("version=a" in facts(client))
            systemctl("reload", UNIT)
            equal(generation(client), 2)
    finally:
        os.chmod(SHOP, 0o755)


@case
def workers_of_a_root_master_have_a_user():
    write(f"{DROP_INS}/{UNIT}.d/root.conf", documented("root.conf"))
    systemctl("daemon-reload")
    os.mkdir(f"{STATE}/notes")
    os.chmod(f"{STATE}/notes", 0o777)
    configure({"app": [f"{SHOP}/app.so", "notes"], "user": "nobody", "workers": 2})
    systemctl("start", UNIT)
    with Client(PORT) as client:
        systemctl("reload", UNIT)
        equal(generation(client), 2)
        workers = wait_until(lambda: (w := status()["workers"]) and {x["generation"] for x in w} == {2} and w, 20)
        nobody = int(must("id", "-u", "nobody"))
        equal({uid(worker["pid"]) for worker in workers}, {nobody})
        check(all(worker["rss_bytes"] for worker in workers), workers)
        equal(uid(main_pid()), 0)
    pids = [worker["pid"] for worker in workers]
    systemctl("stop", UNIT)
    check(not any(map(alive, pids)), "a worker outlives the service")
    equal(show(UNIT, "Result"), "success")


@case
def scores_are_printed():
    scores = {}
    for name, text in (("units", None), ("strict.conf", STRICT)):
        if text:
            write(f"{DROP_INS}/{UNIT}.d/strict.conf", text)
            systemctl("daemon-reload")
        said = must("systemd-analyze", "security", UNIT)
        scores[name] = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)[1])
        print(f"# exposure with {name}: {scores[name]}")
    check(scores["units"] <= 2.0 and scores["strict.conf"] <= 1.2, scores)


def test():
    global journal
    os.environ.update(PROGRAM_ENV)
    journal = Journal()
    run(*(value for value in globals().values() if callable(value) and hasattr(value, "__wrapped__")))


if __name__ == "__main__":
    sys.exit(boot(install, test))
