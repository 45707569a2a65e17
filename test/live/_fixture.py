# SPDX-License-Identifier: MIT
"""What the tests of reloads, supervision and deaths share: test/workers, and threads that wait.

test/workers/fixture.c says what the fixture understands."""
import os
import shutil
import tempfile
import threading

import harness
from harness import BUILD, SLOW, Client, Failure, Master, check, equal, wait_until

HOSTILE = BUILD + "/test/workers/hostile"


def module(version="a"):
    return f"{BUILD}/test/workers/fixture-{version}.so"


class Stage:
    """The directory through which a test tells the fixture what to do."""

    def __init__(self, *plan):
        self.directory = tempfile.mkdtemp(prefix="up-stage.")
        # Also for workers of another user.
        os.chmod(self.directory, 0o777)
        self.held = []
        harness._opened.append(self)
        if plan:
            self.plan(*plan)

    def path(self, name):
        return f"{self.directory}/{name}"

    def plan(self, *words):
        """How the workers of generations that start from now on boot, in the order of their start."""
        with open(self.path("plan.new"), "w", encoding="utf-8") as file:
            file.write(" ".join(words) + "\n")
        os.rename(self.path("plan.new"), self.path("plan"))

    def open(self, name):
        """Lets those go on that wait for the name."""
        with open(self.path(name), "w", encoding="utf-8"):
            pass

    def fifo(self, name):
        os.mkfifo(self.path(name))

    def hold_fifo(self, name):
        """Until a worker is blocked by the FIFO. It goes on when the stage is closed."""
        def opened():
            try:
                self.held.append(os.open(self.path(name), os.O_WRONLY | os.O_NONBLOCK))
                return True
            except OSError:
                return False

        wait_until(opened, 5, "a worker blocks")

    def close(self):
        for fd in self.held:
            os.close(fd)
        self.held.clear()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self in harness._opened:
            harness._opened.remove(self)


def whole(*options, make=Master, **keywords):
    """A master whose workers are all ready, not only the first."""
    master = make(*options, **keywords)
    n = keywords.get("workers", 2)
    wait_until(lambda: len(master.workers()) == n, 10, f"{n} workers are ready")
    return master


def start(*options, stage=None, version="a", **keywords):
    """A master with the fixture as its application. Returns it and the stage."""
    make = whole if stage is None else keywords.pop("make", Master)
    stage = stage or Stage()
    return make(*options, module(version), stage.directory, **keywords), stage


def facts(response):
    """What the fixture says of itself."""
    equal(response.status, 200, response)
    return dict(line.split("=", 1) for line in response.body.decode().splitlines())


def generation(client):
    return int(facts(client.get("/"))["generation"])


class Later:
    """Calls the function on a thread of its own."""

    def __init__(self, function, *arguments):
        self.value, self.error = None, None
        self.thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self.thread.start()

    def _run(self, function, arguments):
        try:
            self.value = function(*arguments)
        except BaseException as error:  # handed over to whoever asks for the result
            self.error = error

    @property
    def done(self):
        return not self.thread.is_alive()

    def result(self, seconds=20):
        self.thread.join(seconds * SLOW)
        if not self.done:
            raise Failure(f"no result within {seconds * SLOW:g} s")
        if self.error:
            raise self.error
        return self.value


def stop(master):
    """A graceful stop without the clients: those that do not close would be waited for."""
    for thing in list(harness._opened):
        if isinstance(thing, Client):
            thing.close()
    master.stop()


def replace_file(source, target):
    """As a deployment does it: never over the file that others have mapped."""
    shutil.copy(source, target + ".new")
    os.rename(target + ".new", target)


def point(link, target):
    os.symlink(target, link + ".new")
    os.rename(link + ".new", link)


def process_group(pid):
    """The pids of a process group."""
    found = set()
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == pid and harness.alive(int(name)):
                found.add(int(name))
        except ProcessLookupError:
            pass
    return found


def check_counts(master, **wanted):
    """Figures of connections and requests, by name."""
    status = master.status()
    figures = {**status["connections"], **status["requests"], "respawns": status["respawns"]}
    for name, value in wanted.items():
        equal(figures[name], value, f"{name}:")
    check(status["connections"]["open"] == sum(
        status["connections"][part] for part in ("reading", "waiting", "lent", "idle", "upgraded")), status)
    return status
