# SPDX-License-Identifier: MIT
"""What the live tests share: a running master, a strict HTTP client, cases in TAP.

A test file is

    #!/usr/bin/env python3
    from harness import Client, Master, check, run

    def hello_is_served():
        master = Master("--concurrency", "1")
        with Client(master.port) as client:
            check(client.get("/").status == 200)
        master.stop()

    run(hello_is_served)

and its name, with the seconds it may take, stands in test/meson.build. Each case is a function whose
name is a sentence; it has a deadline (@deadline(seconds), 30 without it), and everything that it
started or opened through this file is ended by the runner, however it ends. `NAME.py CASE…` runs
those cases only.

Nothing sleeps: wait_until() polls real state. UP_TEST_SLOW (1 if unset) multiplies every deadline,
for sanitizers and slow machines.

Signals and deadlines work on the main thread only: start masters there.
"""
import atexit
import ctypes
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

sys.dont_write_bytecode = True

if "UP_MASTER" not in os.environ:
    sys.exit("UP_MASTER, UP_SOURCE and UP_BUILD are to be set; `meson test` does")
MASTER = os.environ["UP_MASTER"]
SOURCE = os.environ.get("UP_SOURCE", "")
BUILD = os.environ.get("UP_BUILD", "")
SLOW = float(os.environ.get("UP_TEST_SLOW", "1"))

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_opened = []  # what the case has started or opened; ended in reverse order


# ---- Judging and waiting ----

class Failure(AssertionError):
    """The case has failed."""


class Closed(Failure):
    """The connection ended where it must not."""


class Skip(Exception):
    """The case can't be run here: Skip("wrk is not installed")."""


def check(condition, *what):
    if not condition:
        raise Failure(" ".join(str(part) for part in what) or "check failed")


def equal(got, wanted, *what):
    if got != wanted:
        raise Failure(" ".join([*map(str, what), f"got {_short(got)}, wanted {_short(wanted)}"]))


def _short(value):
    text = repr(value)
    return text if len(text) < 600 else f"{text[:400]} … {text[-150:]} ({len(text)} long)"


def wait_until(predicate, seconds=10, what="", every=0.01):
    """Polls until predicate() is true, and returns what it returned. Failure at the deadline."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"not within {seconds * SLOW:g} s: {what or predicate.__name__}; last {_short(value)}")
        select.select([], [], [], every)


def holds_for(predicate, seconds, what="", every=0.01):
    """The opposite: a predicate that must stay true for so long. Not stretched by UP_TEST_SLOW."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check(predicate(), what or predicate.__name__, "did not stay so")
        select.select([], [], [], every)


def together(*functions, seconds=60):
    """Runs each on a thread of its own, and raises the first failure. Returns what they returned."""
    results, failures = [None] * len(functions), []

    def call(i, function):
        try:
            results[i] = function()
        except BaseException as error:  # handed over to the main thread
            failures.append(error)

    threads = [threading.Thread(target=call, args=pair, daemon=True) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds * SLOW
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    if failures:
        raise failures[0]
    check(not any(thread.is_alive() for thread in threads), f"threads still run after {seconds * SLOW:g} s")
    return results


def need(program):
    """The path of a program, or the case is skipped."""
    path = shutil.which(program)
    if not path:
        raise Skip(f"{program} is not installed")
    return path


# ---- HTTP ----

class Response:
    """status, reason, minor (of HTTP/1.x), fields (list of pairs, as sent), body, and interim: the
    status codes of 1xx responses that came before it."""

    def __init__(self, status, reason, minor, fields):
        self.status, self.reason, self.minor, self.fields = status, reason, minor, fields
        self.body, self.interim = b"", []

    def field(self, name):
        """The value of the only field of that name, or None."""
        values = [value for key, value in self.fields if key.lower() == name.lower()]
        check(len(values) <= 1, "several", name, values)
        return values[0] if values else None

    @property
    def keeps(self):
        """Whether the connection goes on after it."""
        tokens = (self.field("Connection") or "").lower()
        return "close" not in tokens if self.minor else "keep-alive" in tokens

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"<{self.status} {self.fields} {_short(self.body)}>"


class Client:
    """One connection, for ever: never connects again, and every early end is a Failure.

    The address is a port (of 127.0.0.1), (host, port) or a UNIX path. After a time-out (seconds
    without a byte) a Failure. `socket` is the socket, `buffer` what was read and not yet used.
    source: the address to come from, for more connections than one address has ports.
    """

    def __init__(self, address, timeout=20, receive_buffer=None, source=None):
        self.buffer = bytearray()
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            address = ("127.0.0.1", address) if isinstance(address, int) else address
            self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _opened.append(self)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(timeout * SLOW)
        self.socket.connect(address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def fileno(self):
        return self.socket.fileno()

    # Sending

    def send(self, *pieces):
        """Sends bytes; several pieces go out in as many packets."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except TimeoutError:
            raise Failure("the server does not read") from None
        except OSError as error:
            raise Closed(f"while sending: {error}") from None

    @staticmethod
    def head(method, target, fields=(), minor=1):
        """The bytes of a request head; Host is added where it is not among the fields of HTTP/1.1."""
        fields = list(fields.items() if isinstance(fields, dict) else fields)
        if minor and not any(name.lower() == "host" for name, _ in fields):
            fields.insert(0, ("Host", "test"))
        lines = [f"{method} {target} HTTP/1.{minor}", *(f"{name}: {value}" for name, value in fields), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def ask(self, method, target, fields=(), body=None, minor=1):
        """Sends a whole request. A body gets its Content-Length."""
        fields = list(fields.items() if isinstance(fields, dict) else fields)
        if body is not None:
            fields.append(("Content-Length", len(body)))
        self.send(self.head(method, target, fields, minor) + (body or b""))

    def exchange(self, method, target, fields=(), body=None, minor=1):
        self.ask(method, target, fields, body, minor)
        return self.response(head_only=method == "HEAD")

    def get(self, target, fields=(), minor=1):
        return self.exchange("GET", target, fields, minor=minor)

    def post(self, target, body, fields=(), minor=1):
        return self.exchange("POST", target, fields, body, minor)

    # Receiving

    def fill(self):
        """Reads once into the buffer. False at the end."""
        try:
            piece = self.socket.recv(1 << 16)
        except TimeoutError:
            raise Failure(f"nothing came for {self.socket.gettimeout():g} s; so far {_short(bytes(self.buffer))}") \
                from None
        except OSError as error:
            raise Closed(f"while receiving: {error}; so far {_short(bytes(self.buffer))}") from None
        self.buffer += piece
        return bool(piece)

    def need(self):
        if not self.fill():
            raise Closed(f"closed early; so far {_short(bytes(self.buffer))}")

    def take(self, n):
        """Exactly n bytes."""
        while len(self.buffer) < n:
            self.need()
        taken = bytes(self.buffer[:n])
        del self.buffer[:n]
        return taken

    def line(self):
        """A line, which must end in CRLF, without it."""
        start = 0
        while (end := self.buffer.find(b"\n", start)) < 0:
            start = len(self.buffer)
            self.need()
        line = self.take(end + 1)
        check(line.endswith(b"\r\n") and b"\r" not in line[:-2] and b"\0" not in line, "no clean line:", line)
        return line[:-2]

    def response_head(self):
        """The next head, an interim one too."""
        line = self.line()
        match = re.fullmatch(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) ([^\x00-\x1f]*)", line)
        check(match, "no status line:", line)
        fields = []
        while line := self.line():
            field = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", line)
            check(field, "no field:", line)
            fields.append((field[1].decode(), field[2].decode("latin-1")))
        return Response(int(match[2]), match[3].decode(), int(match[1]), fields)

    def response(self, head_only=False):
        """The next response whole, past interim ones. head_only: to a HEAD request."""
        interim = []
        while (response := self.response_head()).status < 200 and response.status != 101:
            check(not response.field("Content-Length") and not response.field("Transfer-Encoding"), response)
            interim.append(response.status)
        response.interim = interim
        if not head_only and response.status not in (101, 204, 304):
            response.body = b"".join(self.pieces(response))
        return response

    def pieces(self, response):
        """The content of a response whose head was read, as it comes."""
        length, coding = response.field("Content-Length"), response.field("Transfer-Encoding")
        check(length is None or coding is None, "two lengths", response)
        if coding is not None:
            check(coding == "chunked" and response.minor, "coding", response)
            yield from self._chunks()
        elif length is not None:
            check(re.fullmatch(r"[0-9]+", length), "length", response)
            yield from self._counted(int(length))
        else:
            check(not response.keeps, "no length, and the connection is to go on", response)
            while self.buffer or self.fill():
                yield bytes(self.buffer)
                self.buffer.clear()

    def _counted(self, n):
        while n > 0:
            if not self.buffer:
                self.need()
            piece = bytes(self.buffer[:n])
            del self.buffer[:n]
            n -= len(piece)
            yield piece

    def _chunks(self):
        while True:
            line = self.line()
            check(re.fullmatch(rb"[0-9A-Fa-f]{1,16}", line), "no chunk size:", line)
            if (size := int(line, 16)) == 0:
                break
            yield from self._counted(size)
            equal(self.line(), b"", "behind a chunk:")
        while line := self.line():
            check(b":" in line, "no trailer:", line)

    def expect_end(self):
        """The connection ends now, with FIN and not one byte more."""
        while not self.buffer and self.fill():
            pass
        equal(bytes(self.buffer), b"", "instead of the end")

    def expect_silence(self, seconds=0.2):
        """Neither a byte nor an end comes for so long."""
        equal(bytes(self.buffer), b"", "instead of silence")
        if select.select([self.socket], [], [], seconds)[0]:
            raise Failure(f"instead of silence {'bytes' if self.fill() else 'the end'}: {_short(bytes(self.buffer))}")

    def rest(self):
        """Everything until the end, which must be a FIN."""
        while self.fill():
            pass
        taken = bytes(self.buffer)
        self.buffer.clear()
        return taken

    # Ending

    def half_close(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        """Ends with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        self.socket.close()
        if self in _opened:
            _opened.remove(self)


def chunked(*chunks, trailer=b""):
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n" + trailer + b"\r\n"


def pattern(n):
    """What /bytes/N answers."""
    return (b"0123456789abcdef" * (n // 16 + 1))[:n]


# ---- Processes ----

def rss(pid):
    """Resident bytes."""
    return _status_line(pid, "VmRSS") * 1024


def rss_anonymous(pid):
    """Resident bytes that are no file's: what leaks."""
    return _status_line(pid, "RssAnon") * 1024


def _status_line(pid, name):
    with open(f"/proc/{pid}/status", encoding="latin-1") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.split()[1])
    raise Failure(f"process {pid} has no {name}")


def descriptors(pid):
    """The number of open descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def alive(pid):
    """Whether there is such a process that has not ended (a zombie has)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid):
    """Every process below pid, as a set of pids."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="latin-1") as stat:
                    parents[int(name)] = int(stat.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                pass
    found, left = set(), {pid}
    while left:
        left = {child for child, parent in parents.items() if parent in left} - found
        found |= left
    return found


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Master:
    """A running up-master: 2 workers, 127.0.0.1 on a free port, the hello module, where the
    arguments do not say otherwise.

    arguments   options and the application, as on the command line
    listen      addresses; () for none, where the arguments or the file name them
    config      written as JSON to .config_path and given as --config; .configure() writes it anew
    env, fds    added to the environment; descriptors handed over (3, 4, …; with LISTEN_FDS)
    ready       False: return at once, as for one that is to fail; see .wait_end()

    .directory is its own temporary directory, .control_path the control socket.
    """

    def __init__(self, *arguments, listen=("127.0.0.1:0",), workers=2, config=None, env=None, fds=(), ready=True,
                 stdout=None):
        self.directory = tempfile.mkdtemp(prefix="up-live.")
        self.control_path = self.directory + "/control.sock"
        self.config_path = self.directory + "/config.json"
        self.log_path = self.directory + "/log"
        self._port = None
        command = [MASTER, "--control", self.control_path]
        for address in listen:
            command += ["--listen", address]
        if workers:
            command += ["--workers", str(workers)]
        if config is not None:
            self.configure(config)
            command += ["--config", self.config_path]
        command += map(str, arguments)
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(("UP_", "LISTEN_")) and name not in ("NOTIFY_SOCKET", "NODE_ENV")}
        environment.update(env or {})
        _opened.append(self)
        with open(self.log_path, "wb") as log:
            self.process = self._start(command, environment, fds, stdout, log)
        self.pid = self.process.pid
        if ready:
            self.wait_ready()

    @staticmethod
    def _start(command, environment, fds, stdout, log):
        saved = []
        if fds:
            # LISTEN_PID is the pid of who reads it: only the process itself can name it.
            command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
            environment["LISTEN_FDS"] = str(len(fds))
            saved = [os.dup(fd) for fd in fds]

        def become():
            _die_with_parent()
            # First out of the way of the numbers to be filled.
            aside = [_above(fd, 3 + len(saved)) for fd in saved]
            for number, fd in enumerate(aside, 3):
                os.dup2(fd, number)

        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log,
                                    env=environment, start_new_session=True, preexec_fn=become,
                                    close_fds=not fds, pass_fds=())
        finally:
            for fd in saved:
                os.close(fd)

    def configure(self, config):
        """Writes the configuration file, by rename; a str is written as it is."""
        text = config if isinstance(config, str) else json.dumps(config)
        with open(self.config_path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(self.config_path + ".new", self.config_path)

    # Asking

    @property
    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def control(self, method, path, timeout=60):
        """(status, document) from the control socket; the text where it is no JSON."""
        with Client(self.control_path, timeout=timeout) as client:
            response = client.exchange(method, path, {"Connection": "close"})
            body = response.body.decode()
            return response.status, json.loads(body) if body[:1] in "{[" else body

    def status(self):
        status, document = self.control("GET", "/status")
        equal(status, 200, "/status")
        return document

    def workers(self, state="ready"):
        """The workers of that state, as in the status; state=None for all."""
        return [worker for worker in self.status()["workers"] if state in (None, worker["state"])]

    @property
    def port(self):
        if self._port is None:
            self._port = int(self.addresses()[0].rpartition(":")[2])
        return self._port

    def addresses(self):
        return [listener["address"] for listener in self.status()["listeners"]]

    def client(self, **options):
        return Client(self.port, **options)

    def check_sums(self):
        """What must hold at any time. Returns the status."""
        status = self.status()
        connections = status["connections"]
        parts = ("reading", "waiting", "lent", "idle", "upgraded")
        equal(connections["open"], sum(connections[part] for part in parts), connections)
        check(all(connections[part] >= 0 for part in parts), connections)
        equal(connections["dropped"], 0, "dropped:")
        equal(status["requests"]["failed"], 0, "failed:")
        return status

    # Commanding

    def reload(self, wait="all"):
        """Asks for a reload, which must succeed. Returns the new generation's number."""
        status, document = self.control("POST", f"/reload?wait={wait}")
        equal(status, 200, "reload:", document)
        return document["generation"]

    def signal(self, number):
        os.kill(self.pid, number)

    def stop(self, seconds=20):
        """A graceful stop, which must end in time, with 0 and without a sanitizer's complaint."""
        self.signal(signal.SIGTERM)
        self.wait_end(0, seconds)

    def wait_end(self, code, seconds=20):
        """Waits for its end with that status, and for that of every worker. Returns the log."""
        below = descendants(self.pid)
        try:
            got = self.process.wait(seconds * SLOW)
        except subprocess.TimeoutExpired:
            raise Failure(f"the master has not ended within {seconds * SLOW:g} s") from None
        equal(got, code, "exit status of the master:")
        wait_until(lambda: not any(map(alive, below)), 10, "workers outlive the master")
        self.check_log()
        return self.log

    def check_log(self):
        """No sanitizer has complained."""
        for text in ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer",
                     "runtime error:", "Assertion `"):
            check(text not in self.log, text, "in the log")

    def wait_ready(self, seconds=20):
        """Until the control socket answers, a worker is ready and the first address is known."""
        def is_ready():
            check(self.process.poll() is None, "the master has ended with", self.process.returncode)
            if not os.path.exists(self.control_path):
                return False
            try:
                return self.control("GET", "/healthz")[0] == 200 and self.addresses()
            except (Closed, OSError):
                return False

        wait_until(is_ready, seconds, "the master is ready")

    def close(self):
        """Ends it at once, with everything below it. The runner calls this."""
        if self in _opened:
            _opened.remove(self)
        below = descendants(self.pid) if self.process.poll() is None else set()
        held = [fd for fd in map(_pidfd, below) if fd is not None]
        self.process.kill()
        self.process.wait()
        try:
            # They end by themselves with the master; what does not is ended here.
            end = time.monotonic() + 3
            waiting = set(held)
            while waiting and time.monotonic() < end:
                waiting -= set(select.select(list(waiting), [], [], 0.1)[0])
            for fd in waiting:
                _signal_pidfd(fd, signal.SIGKILL)
            if waiting:
                print(f"# {len(waiting)} processes outlived the killed master {self.pid}", flush=True)
        finally:
            for fd in held:
                os.close(fd)
            shutil.rmtree(self.directory, ignore_errors=True)


def _above(fd, lowest):
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)


def _pidfd(pid):
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _signal_pidfd(fd, number):
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass


# ---- Cases ----

class _Deadline(BaseException):
    pass


def deadline(seconds):
    """How long the case may take."""
    def mark(case):
        case.deadline = seconds
        return case
    return mark


def _close_all():
    for thing in reversed(list(_opened)):
        try:
            thing.close()
        except OSError:
            pass
    _opened.clear()


def _on_alarm(*_):
    raise _Deadline()


def _diagnose(text):
    for line in text.rstrip().splitlines():
        print("#", line)


def _run_case(case):
    """Returns (passed, directive)."""
    # Again each 5 s, should something swallow the first.
    signal.setitimer(signal.ITIMER_REAL, getattr(case, "deadline", 30) * SLOW, 5)
    try:
        case()
        for thing in list(_opened):
            if isinstance(thing, Master):
                thing.check_log()
        return True, ""
    except Skip as skip:
        return True, f" # SKIP {skip}"
    except (Exception, _Deadline):
        signal.setitimer(signal.ITIMER_REAL, 0)
        _diagnose(traceback.format_exc())
        for thing in _opened:
            if isinstance(thing, Master):
                _diagnose("log:\n" + "\n".join(thing.log.splitlines()[-40:]))
        return False, ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(*cases):
    """Runs the cases in order, prints TAP, and exits."""
    signal.signal(signal.SIGALRM, _on_alarm)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    atexit.register(_close_all)
    if sys.argv[1:]:
        cases = [case for case in cases if case.__name__ in sys.argv[1:]]
    print(f"1..{len(cases)}", flush=True)
    n_failed = 0
    for n, case in enumerate(cases, 1):
        begun = time.monotonic()
        before = len(os.listdir("/proc/self/fd"))
        passed, directive = _run_case(case)
        _close_all()
        left = len(os.listdir("/proc/self/fd")) - before
        if passed and not directive and left > 0:
            print(f"# the case has left {left} descriptors open")
            passed = False
        n_failed += not passed
        print(f"# {time.monotonic() - begun:.2f} s")
        print(f"{'ok' if passed else 'not ok'} {n} - {case.__name__}{directive}", flush=True)
    sys.exit(n_failed > 0)
