#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures up-master beside a one-process epoll server, nginx and HAProxy, on this machine.

README.md, in this directory, says how to run it and how to read what it prints.

All set-ups run at the same time, one of them is loaded at a time, in an order that rotates, and
again for each round: what disturbs the machine meets all of them. Ratios are taken between
neighbours of the same round, and the medians over the rounds are reported.
"""
import argparse
import contextlib
import ctypes
import json
import os
import platform
import pwd
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BODY = 1024 * 1024
WORKERS = 2  # worker processes and threads, of every server that has any
SKIPPED = 77  # what meson takes for a skipped test
STRACE_CONNECTIONS = 64
PACKAGES = {"nginx": "nginx", "haproxy": "haproxy", "wrk": "wrk", "strace": "strace"}
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Failure(Exception):
    """A set-up that can't be measured, or a measurement that is void."""


def say(*what):
    print(*what, file=sys.stderr, flush=True)


def find_program(name):
    """Where it is, or None. Debian keeps servers where only root looks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


def read_text(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return default


def output_of(*command):
    """Both streams of a short command, or what went wrong."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, timeout=10, check=False)
        return done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


# ---- Processes ----

def _before_exec():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """One server, with its children; its output goes to a file."""

    def __init__(self, command, log):
        self.command, self.log = command, log
        self.seen = {}  # pid: when it began, of all that were ever in its tree
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
        with open(log, "wb") as output:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                          stderr=subprocess.STDOUT, env=environment,
                                          start_new_session=True, preexec_fn=_before_exec)

    def tree(self):
        """Its pid, and those of all that descend from it."""
        parents = {}
        for name in os.listdir("/proc"):
            fields = read_text(f"/proc/{name}/stat").rpartition(")")[2].split() if name.isdigit() else []
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(name))
        pids = [self.popen.pid]
        for pid in pids:
            pids.extend(parents.get(pid, []))
        self.seen.update((pid, started(pid)) for pid in pids)
        return sorted(pids)

    def wait_until(self, predicate, what, seconds=10):
        """Polls until predicate() returns something true, and returns it."""
        end = time.monotonic() + seconds
        while True:
            value = predicate()
            if value:
                return value
            if self.popen.poll() is not None or time.monotonic() > end:
                raise Failure(f"{os.path.basename(self.command[0])}: {what}: {self.tail()}")
            select.select([], [], [], 0.01)

    def tail(self):
        return read_text(self.log).strip()[-500:] or "it wrote nothing"

    def end(self):
        """SIGTERM, and after 5 s SIGKILL; to what its tree then still holds, SIGKILL."""
        if self.popen.poll() is None:
            self.tree()
            self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(5)
        for pid, since in self.seen.items():
            if since and started(pid) == since:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.popen.wait(5)


def started(pid):
    """When a process began, which tells its pid from the same one reused; None where it has ended."""
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else None


# ---- What the servers have used ----

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def cpu_source():
    fields = read_text("/proc/self/schedstat").split()
    return "schedstat" if len(fields) == 3 and fields[0] != "0" else "stat"


CPU_SOURCE = cpu_source()


def task_cpu_ns(task):
    """User and system together. schedstat has nanoseconds, stat ticks of mostly 10 ms."""
    if CPU_SOURCE == "schedstat":
        return int((read_text(f"{task}/schedstat").split() or ["0"])[0])
    fields = read_text(f"{task}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_NS if fields else 0


def task_switches(task):
    return sum(map(int, re.findall(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)", read_text(f"{task}/status"), re.M)))


def used_by(pids):
    """{(pid, tid): (nanoseconds, context switches)} of all threads."""
    used = {}
    for pid in pids:
        try:
            tids = os.listdir(f"/proc/{pid}/task")
        except OSError as error:
            raise Failure(f"process {pid} has ended while it was measured") from error
        for tid in tids:
            task = f"/proc/{pid}/task/{tid}"
            used[pid, tid] = task_cpu_ns(task), task_switches(task)
    return used


def used_since(before, after):
    """(nanoseconds, context switches) between two answers of used_by()."""
    gone = before.keys() - after.keys()
    if gone:
        raise Failure(f"threads have ended while they were measured: {sorted(gone)}")
    return tuple(sum(after[task][i] - before.get(task, (0, 0))[i] for task in after) for i in (0, 1))


def machine_busy_ns():
    """All processors together, what other guests stole included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, read_text("/proc/stat").split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK_NS


def ended_children_ns():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


# ---- Set-ups ----

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def accepts(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


class Setup:
    """What is measured under one name. start() gives it a port; stop() ends all of it."""

    name = title = needs = None

    def __init__(self, bench):
        self.bench, self.processes, self.port, self.directory = bench, [], None, None

    def start(self):
        self.directory = tempfile.mkdtemp(prefix=self.name + "-", dir=self.bench.directory)
        try:
            self.launch()
        except BaseException:
            self.stop()
            raise

    def stop(self):
        with contextlib.ExitStack() as stack:
            while self.processes:
                stack.callback(self.processes.pop().end)

    def path(self, name):
        return os.path.join(self.directory, name)

    def run(self, *command):
        process = Process(command, self.path(os.path.basename(command[0]) + ".log"))
        self.processes.append(process)
        self.bench.note_command(self.name, " ".join(command))
        return process

    def configure(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        self.bench.note_command(self.name, f"# {self.path(name)}\n{text.strip()}")
        return self.path(name)

    def tree(self):
        return sorted(pid for process in self.processes for pid in process.tree())

    def launch(self):
        raise NotImplementedError

    def launch_server(self, address="127.0.0.1:0"):
        """The epoll server; returns where it listens."""
        server = self.run(self.bench.epoll_server, address)
        return server.wait_until(lambda: "".join(re.findall(r"^listening on (.+)\n", read_text(server.log))),
                                 "does not listen")

    def launch_proxy(self, command_on):
        """command_on(port) returns a command that listens there. The port may be taken meanwhile."""
        for attempt in range(3):
            self.port = free_port()
            proxy = self.run(*command_on(self.port))
            try:
                proxy.wait_until(lambda: accepts(self.port), "does not listen")
                return
            except Failure:
                self.processes.remove(proxy)
                proxy.end()
                if attempt == 2:
                    raise


class Direct(Setup):
    name, title = "direct", "epoll server, one process, direct"

    def launch(self):
        self.port = int(self.launch_server().rpartition(":")[2])


class NginxTcp(Setup):
    name, title, needs = "nginx-tcp", f"nginx, {WORKERS} processes, to it over TCP", "nginx"

    def server_address(self):
        return "127.0.0.1:0"

    def launch(self):
        upstream = self.launch_server(self.server_address())
        self.launch_proxy(lambda port: [
            self.bench.programs["nginx"], "-p", self.directory, "-e", self.path("error.log"),
            "-c", self.configure("nginx.conf", self.configuration(upstream, port))])

    def configuration(self, upstream, port):
        # As root the workers would become a user who can't enter our directory.
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        temporary = "\n".join(f"\t{kind}_temp_path {self.path(kind)};"
                              for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        return f"""
{user}
daemon off;
worker_processes {WORKERS};
pid {self.path("nginx.pid")};
events {{
	worker_connections 8192;
	multi_accept on;
}}
http {{
	access_log off;
	server_tokens off;
	tcp_nodelay on;
	keepalive_requests 1000000000;
	client_max_body_size 0;
	client_body_buffer_size 64k;
{temporary}
	upstream server {{
		server {upstream};
		keepalive 512;
		keepalive_requests 1000000000;
	}}
	server {{
		listen 127.0.0.1:{port} reuseport backlog=4096;
		location / {{
			proxy_pass http://server;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_request_buffering off;
			proxy_buffers 16 16k;
			proxy_busy_buffers_size 128k;
			proxy_max_temp_file_size 0;
		}}
	}}
}}
"""


class NginxUnix(NginxTcp):
    name, title = "nginx-unix", f"nginx, {WORKERS} processes, to it over a UNIX socket"

    def server_address(self):
        return "unix:" + self.path("server")


class Haproxy(Setup):
    name, title, needs = "haproxy", f"HAProxy, {WORKERS} threads, to it over TCP", "haproxy"

    def launch(self):
        upstream = self.launch_server()
        self.launch_proxy(lambda port: [
            self.bench.programs["haproxy"], "-db", "-f",
            self.configure("haproxy.cfg", self.configuration(upstream, port))])

    def configuration(self, upstream, port):
        return f"""
global
	nbthread {WORKERS}
	maxconn 4096
	tune.bufsize 65536
defaults
	mode http
	option http-keep-alive
	http-reuse always
	timeout connect 5s
	timeout client 75s
	timeout server 75s
frontend front
	bind 127.0.0.1:{port} backlog 4096
	default_backend back
backend back
	server server {upstream} pool-purge-delay 60s
"""


class UpMaster(Setup):
    name, title = "up-master", f"up-master, {WORKERS} workers, {WORKERS} I/O threads, hello"

    def launch(self):
        master = self.run(self.bench.up_master, "--listen", "127.0.0.1:0", "--workers", str(WORKERS),
                          "--threads", str(WORKERS), "--control", self.path("control"))
        status = master.wait_until(self.status_when_ready, "is not ready")
        self.port = int(status["listeners"][0]["address"].rpartition(":")[2])

    def status_when_ready(self):
        try:
            status = self.status()
        except OSError:
            return None
        ready = [worker for worker in status["workers"] if worker["state"] == "ready"]
        return status if len(ready) == WORKERS else None

    def status(self):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(self.path("control"))
            control.sendall(b"GET /status HTTP/1.1\r\nHost: up\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := control.recv(65536):
                answer += piece
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    def io_threads(self):
        """The threads of the master that have used most; its first thread serves no request."""
        pid = self.processes[0].popen.pid
        used = {int(tid): ns for (_, tid), (ns, _) in used_by([pid]).items() if int(tid) != pid}
        return sorted(sorted(used, key=used.get)[-WORKERS:])

    def workers(self):
        return sorted(worker["pid"] for worker in self.status()["workers"])


SETUPS = [Direct, NginxTcp, NginxUnix, Haproxy, UpMaster]


def read_response(stream):
    """The body of the next response, which must be a 200 with a length."""
    status, length = stream.readline(), None
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if not status.startswith(b"HTTP/1.1 200 ") or length is None:
        raise Failure(f"answers {status!r}, length {length}")
    body = stream.read(length)
    if len(body) != length:
        raise Failure(f"cuts its answer after {len(body)} of {length} bytes")
    return body


def check_answers(port):
    """What is measured must be right: all on one connection, and two requests sent together."""
    get = "GET {} HTTP/1.1\r\nHost: bench\r\n\r\n".format
    post = f"POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: {BODY}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as client, client.makefile("rb") as stream:
        client.sendall((get("/") + get("/")).encode())
        for _ in range(2):
            if not read_response(stream).startswith(b"Hello from pid "):
                raise Failure("does not say hello")
        client.sendall(get(f"/bytes/{BODY}").encode())
        if read_response(stream) != b"0123456789abcdef" * (BODY // 16):
            raise Failure("sends other bytes than were asked for")
        client.sendall(post.encode() + bytes(BODY))
        if not read_response(stream).startswith(b"Hello from pid "):
            raise Failure("does not answer an upload")


# ---- Load ----

LUA_DONE = """
function done(summary, latency, requests)
	local e = summary.errors
	print(string.format('RESULT {"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}',
		summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
		e.connect + e.read + e.write + e.status + e.timeout))
end
"""
LUA_UPLOAD = f"""
wrk.method = "POST"
wrk.body = string.rep("0123456789abcdef", {BODY // 16})
"""
WORKLOADS = {  # name: (path, script)
    "hello": ("/", LUA_DONE),
    "download": (f"/bytes/{BODY}", LUA_DONE),
    "upload": ("/", LUA_UPLOAD + LUA_DONE),
}


class Bench:
    """The tools, the directory, the set-ups that run, and what has been measured so far."""

    def __init__(self, options, directory):
        self.options, self.directory = options, directory
        self.epoll_server = os.path.join(options.build, "bench", "epoll-server")
        self.up_master = os.path.join(options.build, "src", "master", "up-master")
        self.programs = {name: find_program(name) for name in PACKAGES}
        self.commands, self.results, self.straces, self.failures = {}, [], [], []
        for name, (_, script) in WORKLOADS.items():
            with open(self.script(name), "w", encoding="utf-8") as file:
                file.write(script)

    def missing(self):
        return [name for name, path in self.programs.items() if not path]

    def script(self, workload):
        return os.path.join(self.directory, workload + ".lua")

    def note_command(self, name, text):
        """The first of each kind; the others differ by ports and directories only."""
        text = text.replace(self.directory, "$TMP").replace(self.options.build, "$BUILD")
        text = re.sub(r"(\$TMP/[a-z-]+)-[a-z0-9_]{8}\b", r"\1", text)
        known = self.commands.setdefault(name, {})
        known.setdefault(re.sub(r"127\.0\.0\.1:\d+", "", text), text)

    def fail(self, name, error):
        say(f"  {name}: {error}")
        self.failures.append(f"{name}: {error}")

    def wrk(self, setup, workload, connections, seconds):
        """What wrk counted, as a dictionary."""
        path = WORKLOADS[workload][0]
        command = [self.programs["wrk"], "--latency", "-t", "1", "-c", str(connections), "-d", f"{seconds}s",
                   "-s", self.script(workload), f"http://127.0.0.1:{setup.port}{path}"]
        self.note_command("wrk", re.sub(r" -c \d+ -d \d+s", " -c CONNECTIONS -d SECONDS", " ".join(command)))
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, preexec_fn=_before_exec) as wrk:
            try:
                text = wrk.communicate(timeout=seconds + 15)[0]
            except BaseException as error:
                wrk.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise Failure("wrk does not end") from error
                raise
        found = re.search(r"^RESULT (.+)$", text, re.M)
        if not found:
            raise Failure(f"wrk: {text.strip()[-300:]}")
        result = json.loads(found[1])
        if result["errors"] or not result["requests"]:
            raise Failure(f"wrk: {result['errors']} errors, {result['requests']} requests: {text.strip()[-300:]}")
        return result

    def measure(self, setup, workload, connections):
        """One line of the results."""
        pids = setup.tree()
        busy, children, began = machine_busy_ns(), ended_children_ns(), time.monotonic_ns()
        before = used_by(pids)
        wrk = self.wrk(setup, workload, connections, self.options.seconds)
        cpu_ns, switches = used_since(before, used_by(pids))
        if setup.tree() != pids:
            raise Failure("its processes have changed while they were measured")
        elapsed = (time.monotonic_ns() - began) * (os.cpu_count() or 1)
        others = machine_busy_ns() - busy - cpu_ns - (ended_children_ns() - children)
        n = wrk["requests"]
        return {"setup": setup.name, "workload": workload, "connections": connections, "requests": n,
                "requests_per_s": n * 1e6 / wrk["us"], "p50_us": wrk["p50_us"], "p99_us": wrk["p99_us"],
                "cpu_us_per_request": cpu_ns / 1e3 / n, "switches_per_request": switches / n,
                "others_share": max(0.0, others / elapsed)}

    # What is called per round.

    def start_setups(self, kinds):
        running = []
        try:
            for kind in kinds:
                setup = kind(self)
                try:
                    setup.start()
                    running.append(setup)
                    check_answers(setup.port)
                    # Connections to upstream, memory, caches.
                    self.wrk(setup, "hello", max(self.options.connections), 1)
                except (Failure, OSError, KeyError, ValueError) as error:
                    self.fail(setup.name, error)
                    if setup in running:
                        running.remove(setup)
                    setup.stop()
        except BaseException:
            self.stop_setups(running)
            raise
        return running

    @staticmethod
    def stop_setups(setups):
        with contextlib.ExitStack() as stack:
            for setup in setups:
                stack.callback(setup.stop)

    def run_round(self, number, kinds):
        setups = self.start_setups(kinds)
        try:
            steps = [("hello", connections) for connections in self.options.connections]
            steps += [(workload, self.options.body_connections) for workload in ("download", "upload")]
            for i, (workload, connections) in enumerate(steps):
                first = (number + i) % max(1, len(setups))
                for setup in setups[first:] + setups[:first]:
                    self.run_step(number, setup, workload, connections)
            for setup in setups:
                if isinstance(setup, UpMaster) and self.programs["strace"]:
                    self.run_straces(number, setup)
        finally:
            self.stop_setups(setups)

    def run_step(self, number, setup, workload, connections):
        try:
            result = self.measure(setup, workload, connections)
        except Failure as error:
            self.fail(f"{setup.name}, {workload}, {connections} connections, round {number + 1}", error)
            return
        self.results.append({"round": number + 1, **result})
        say(f"  {setup.name:10} {workload:8} {connections:4} connections: {result['requests_per_s']:9.0f}/s "
            f"{result['cpu_us_per_request']:8.1f} us CPU/request")

    def run_straces(self, number, setup):
        for who, tids in (("I/O threads", setup.io_threads()), ("workers", setup.workers())):
            try:
                self.straces.append({"round": number + 1, "who": who, **self.strace(setup, tids)})
            except Failure as error:
                self.fail(f"strace of the {who}, round {number + 1}", error)

    def strace(self, setup, tids):
        """System calls per request of these threads, and of none that they start."""
        summary = setup.path("strace")
        command = [self.programs["strace"], "-c", "-o", summary]
        for tid in tids:
            command += ["-p", str(tid)]
        self.note_command("strace", re.sub(r"( -p \d+)+", " -p TID...", " ".join(command)))
        tracer = Process(command, setup.path("strace.log"))
        try:
            tracer.wait_until(lambda: read_text(tracer.log).count(" attached") >= len(tids), "does not attach")
            wrk = self.wrk(setup, "hello", STRACE_CONNECTIONS, 1)
            tracer.popen.send_signal(signal.SIGINT)
            tracer.popen.wait(5)
        except subprocess.TimeoutExpired as error:
            raise Failure("strace does not end") from error
        finally:
            tracer.end()
        calls = {}
        for line in read_text(summary).splitlines():
            fields = line.split()
            if len(fields) >= 5 and fields[0][0].isdigit() and fields[-1] != "total":
                calls[fields[-1]] = int(fields[3])
        if not calls:
            raise Failure(f"strace counted nothing: {tracer.tail()}")
        return {"requests": wrk["requests"], "requests_per_s": wrk["requests"] * 1e6 / wrk["us"],
                "calls_per_request": {name: n / wrk["requests"] for name, n in calls.items()}}


# ---- Summary ----

def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


MEASURES = ("requests_per_s", "p50_us", "p99_us", "cpu_us_per_request", "switches_per_request")
RATIOS = ("requests_per_s", "cpu_us_per_request")


def ratios_to(results, base, other, measure):
    """other / base, round by round."""
    by_round = {row["round"]: row for row in results if row["setup"] == base}
    return [row[measure] / by_round[row["round"]][measure] for row in results
            if row["setup"] == other and by_round.get(row["round"], {}).get(measure)]


def summarise_step(rows):
    """One summary per set-up, of the rows of one workload and number of connections."""
    summaries = []
    for name in [kind.name for kind in SETUPS if any(row["setup"] == kind.name for row in rows)]:
        mine = [row for row in rows if row["setup"] == name]
        summary = {key: mine[0][key] for key in ("setup", "workload", "connections")}
        summary["rounds"] = len(mine)
        summary.update({key: spread([row[key] for row in mine]) for key in MEASURES})
        for base in (Direct.name, UpMaster.name):
            for key in RATIOS:
                ratios = ratios_to(rows, base, name, key)
                summary[f"{key}_to_{base}"] = spread(ratios) if ratios else None
        summaries.append(summary)
    return summaries


def summarise(results):
    steps = dict.fromkeys((row["workload"], row["connections"]) for row in results)
    return [summary for step in steps for summary in
            summarise_step([row for row in results if (row["workload"], row["connections"]) == step])]


def summarise_straces(straces):
    summaries = []
    for who in dict.fromkeys(row["who"] for row in straces):
        rows = [row for row in straces if row["who"] == who]
        names = dict.fromkeys(name for row in rows for name in row["calls_per_request"])
        calls = {name: statistics.median(row["calls_per_request"].get(name, 0) for row in rows) for name in names}
        summaries.append({
            "who": who, "connections": STRACE_CONNECTIONS,
            "requests_per_s": statistics.median(row["requests_per_s"] for row in rows),
            "calls_per_request": dict(sorted(calls.items(), key=lambda pair: -pair[1])),
            "all_per_request": statistics.median(sum(row["calls_per_request"].values()) for row in rows)})
    return summaries


# ---- The machine ----

def build_options(build):
    try:
        with open(os.path.join(build, "meson-info", "intro-buildoptions.json"), encoding="utf-8") as file:
            options = {option["name"]: option["value"] for option in json.load(file)}
    except (OSError, ValueError):
        return {}
    return {key: options.get(key) for key in ("buildtype", "optimization", "b_ndebug", "b_sanitize")}


def describe_machine():
    processor = re.search(r"^model name\s*:\s*(.+)$", read_text("/proc/cpuinfo"), re.M)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', read_text("/etc/os-release"), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", read_text("/proc/meminfo"), re.M)
    return {"processor": processor[1] if processor else platform.machine(),
            "processors": len(os.sched_getaffinity(0)), "memory_mib": int(memory[1]) // 1024 if memory else None,
            "kernel": platform.release(), "system": system[1] if system else None,
            "load_average_before": os.getloadavg()[0], "cpu_time_from": f"/proc/PID/task/TID/{CPU_SOURCE}"}


def versions(bench):
    flags = {"nginx": "-v", "haproxy": "-v", "wrk": "-v", "strace": "-V"}
    found = {name: re.split(r" Copyright|\n", output_of(path, flags[name]))[0]
             for name, path in bench.programs.items() if path}
    if os.access(bench.up_master, os.X_OK):
        found["up-master"] = output_of(bench.up_master, "--version")
    commit = output_of("git", "-C", SOURCE, "describe", "--always", "--dirty")
    if re.fullmatch(r"[\w.-]+", commit):
        found["source"] = f"source {commit}"
    return found


def document(bench, began):
    options = bench.options
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "duration_s": round(time.time() - began, 1),
        "machine": bench.machine, "versions": versions(bench), "build": build_options(options.build),
        "settings": {"seconds": options.seconds, "rounds": options.rounds, "connections": options.connections,
                     "body_connections": options.body_connections, "body_bytes": BODY, "workers": WORKERS},
        "others_share": spread([row["others_share"] for row in bench.results]) if bench.results else None,
        "missing": bench.missing(), "failures": bench.failures,
        "summary": summarise(bench.results), "strace": summarise_straces(bench.straces),
        "results": bench.results, "strace_results": bench.straces,
        "commands": {name: list(texts.values()) for name, texts in bench.commands.items()},
    }


# ---- Markdown ----

TITLES = {kind.name: kind.title for kind in SETUPS}


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def with_range(values):
    if values["min"] == values["max"]:
        return number(values["median"])
    return f"{number(values['median'])} ({number(values['min'])}–{number(values['max'])})"


def ratio(values):
    return f"{values['median']:.2f}" if values else "-"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| --- " + "| ---: " * (len(header) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def hello_tables(summaries):
    lines = []
    for connections in dict.fromkeys(row["connections"] for row in summaries):
        lines += [f"## GET /, {connections} connection{'s' if connections > 1 else ''}", ""]
        lines += table(
            ["set-up", "requests/s", "× direct", "p50 µs", "p99 µs", "CPU µs/request", "× direct", "switches/request"],
            [[TITLES[row["setup"]], with_range(row["requests_per_s"]), ratio(row["requests_per_s_to_direct"]),
              number(row["p50_us"]["median"]), number(row["p99_us"]["median"]),
              with_range(row["cpu_us_per_request"]), ratio(row["cpu_us_per_request_to_direct"]),
              number(row["switches_per_request"]["median"])]
             for row in summaries if row["connections"] == connections])
    return lines


def body_tables(summaries):
    lines = []
    for workload, title in (("download", "Response of 1 MiB"), ("upload", "Upload of 1 MiB")):
        rows = [row for row in summaries if row["workload"] == workload]
        if not rows:
            continue
        lines += [f"## {title}, {rows[0]['connections']} connections", ""]
        lines += table(
            ["set-up", "MiB/s", "× direct", "p50 µs", "p99 µs", "CPU µs/body", "× direct"],
            [[TITLES[row["setup"]], with_range(row["requests_per_s"]), ratio(row["requests_per_s_to_direct"]),
              number(row["p50_us"]["median"]), number(row["p99_us"]["median"]),
              with_range(row["cpu_us_per_request"]), ratio(row["cpu_us_per_request_to_direct"])] for row in rows])
    return lines


def comparison_table(summaries):
    """Each of the others as a multiple of up-master."""
    others = [name for name in TITLES if name != UpMaster.name and any(row["setup"] == name for row in summaries)]
    cells = {}
    for row in summaries:
        step = (row["workload"], row["connections"])
        cells.setdefault(step, {})[row["setup"]] = row
    rows = []
    for (workload, connections), by_setup in cells.items():
        if UpMaster.name not in by_setup:
            continue
        rows.append([f"{workload}, {connections}"] + [
            " / ".join(ratio(by_setup[name][f"{key}_to_up-master"]) for key in RATIOS) if name in by_setup else "-"
            for name in others])
    if not rows or not others:
        return []
    return ["## As multiples of up-master: requests/s / CPU per request", "",
            *table(["workload, connections"] + others, rows)]


def strace_tables(straces):
    lines = []
    for row in straces:
        lines += [f"## System calls of up-master's {row['who']} per request, {row['connections']} connections", "",
                  f"Under strace, which slows them: {number(row['requests_per_s'])} requests/s.", ""]
        lines += table(["call", "per request"],
                       [[name, f"{n:.3f}"] for name, n in row["calls_per_request"].items() if n >= 0.001]
                       + [["all", f"{row['all_per_request']:.3f}"]])
    return lines


def environment_lines(report):
    machine, settings, build = report["machine"], report["settings"], report["build"]
    lines = [f"Measured {report['date']} by `bench/compare.py` in {report['duration_s']:.0f} s: {settings['rounds']} "
             f"round{'s' if settings['rounds'] > 1 else ''} of {settings['seconds']} s each; medians, lowest and "
             "highest in parentheses, ratios within a round. README.md in `bench/` says how to read this.", "",
             f"- machine: {machine['processor']}, {machine['processors']} processors, {machine['memory_mib']} MiB, "
             f"{machine['system']}, kernel {machine['kernel']}; load average before {machine['load_average_before']:.2f}"]
    if report["others_share"]:
        others = report["others_share"]
        lines.append(f"- processor time that went to anything else meanwhile: {others['median']:.1%} "
                     f"({others['min']:.1%}–{others['max']:.1%})")
    lines.append("- versions: " + "; ".join(report["versions"].values()))
    lines.append("- build: " + ", ".join(f"{key} {value}" for key, value in build.items()))
    lines.append(f"- CPU time: {machine['cpu_time_from']}, all threads of all processes of the set-up, "
                 "the server behind a proxy included, wrk not")
    lines += [f"- **not measured**: {name} is missing (`apt-get install {PACKAGES[name]}`)"
              for name in report["missing"]]
    lines += ["- **failed**: " + " ".join(failure.split()) for failure in report["failures"]]
    return lines + [""]


def markdown(report):
    hello = [row for row in report["summary"] if row["workload"] == "hello"]
    lines = ["# up-master, measured", "", *environment_lines(report), *hello_tables(hello),
             *body_tables(report["summary"]), *comparison_table(report["summary"]), *strace_tables(report["strace"]),
             "## Commands", ""]
    for name, texts in report["commands"].items():
        lines += [f"{TITLES.get(name, name)}:", "", *(f"    {line}" for text in texts for line in text.split("\n")), ""]
    return "\n".join(lines)


# ---- The command ----

def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def positives(text):
    return [positive(piece) for piece in text.split(",")]


def setup_list(text):
    names = text.split(",")
    kinds = [kind for kind in SETUPS if kind.name in names]
    if len(kinds) != len(names):
        raise ValueError(text)
    return kinds


def parse_options():
    parser = argparse.ArgumentParser(description="Measures up-master beside other servers, on this machine.")
    parser.add_argument("--build", default=os.path.join(SOURCE, "build"), metavar="DIR",
                        help="the build directory (default: build, in the source)")
    parser.add_argument("--seconds", type=positive, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--rounds", type=positive, default=3, help="default: 3")
    parser.add_argument("--connections", type=positives, default=[1, 16, 64, 256], metavar="N,N...",
                        help="default: 1,16,64,256")
    parser.add_argument("--body-connections", type=positive, default=16, metavar="N",
                        help="for responses and uploads of 1 MiB (default: 16)")
    parser.add_argument("--setups", type=setup_list, default=SETUPS, metavar="NAME,NAME...",
                        help="default: " + ",".join(kind.name for kind in SETUPS))
    parser.add_argument("--json", metavar="FILE", help="every measurement, and the summary")
    parser.add_argument("--markdown", metavar="FILE", help="the report, which is printed in any case")
    options = parser.parse_args()
    options.build = os.path.abspath(options.build)
    return options


def raise_file_limit():
    """To the hard limit: two descriptors for each connection through a proxy."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def usable_setups(bench):
    """The set-ups that can be measured; says what the others lack. Exits where nothing can be."""
    missing = bench.missing()
    if missing:
        say("missing: " + " ".join(missing) + "; apt-get install " + " ".join(PACKAGES[name] for name in missing))
    if "wrk" in missing:
        sys.exit(SKIPPED)
    for path in (bench.epoll_server, bench.up_master):
        if not os.access(path, os.X_OK):
            say(f"{path} is not there: meson setup --buildtype=release {bench.options.build} && "
                f"ninja -C {bench.options.build}")
            sys.exit(2)
    build = build_options(bench.options.build)
    if build.get("optimization") == "0" or build.get("b_sanitize") not in (None, "none"):
        say(f"warning: this build is not one to measure: {build}")
    return [kind for kind in bench.options.setups if kind.needs not in missing]


def write_file(path, text):
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def main():
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    raise_file_limit()
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="up-bench-") as directory:
        bench = Bench(options, directory)
        bench.machine = describe_machine()
        kinds = usable_setups(bench)
        steps = len(options.connections) + 2
        say(f"about {options.rounds * len(kinds) * (1 + steps * (options.seconds + 0.2)):.0f} s")
        for i in range(options.rounds):
            say(f"round {i + 1} of {options.rounds}")
            bench.run_round(i, kinds)
        report = document(bench, began)
    text = markdown(report)
    write_file(options.json, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_file(options.markdown, text)
    print(text)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
