# SPDX-License-Identifier: MIT
"""A machine of a test's own: the installed systemd as process 1 of new namespaces.

    from _machine import boot
    sys.exit(boot(prepare, test))

prepare(root) puts files into the machine before it starts; test() then runs inside, as root, and its
result is the exit status. Where such a machine can't be had, TAP says why and the test is skipped.

Everything inside is a copy: an overlay of this system's files whose writes stay in memory, and new
process, mount, network (a loopback only), IPC, host name and cgroup namespaces. None of the units of
this system is started but the journal. It keeps a test from this system; it is no security boundary.

    boot()            the caller's process: waits, and hands signals over by ending its pipe
    +- keeper         a session of its own; ends the machine when test() or the caller has ended
       +- systemd     process 1 in there; the kernel ends it with the keeper, and everything inside with it
       +- test()      in systemd's namespaces

So nothing is left behind however the caller ends: the mounts exist in these namespaces only, and the
keeper removes the cgroup.
"""
import ctypes
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback

SYSTEMD = "/lib/systemd/systemd"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# Of the vendor's units that a boot wants by default, those that are started.
WANTED = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
VENDOR_UNITS = "usr/lib/systemd/system", "lib/systemd/system"
BOOT_S = 60
# What no namespace keeps from the rest of the machine: SYS_MODULE, SYS_RAWIO, SYS_TIME, AUDIT_CONTROL,
# MAC_OVERRIDE, MAC_ADMIN, SYSLOG.
DROPPED = (16, 17, 25, 30, 32, 33, 34)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = \
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18, 1 << 20
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = \
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
INNER = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """There is no such machine here, and why."""


# ---- System calls that Python has no name for ----

def _call(name, *arguments):
    arguments = [argument.encode() if isinstance(argument, str) else argument for argument in arguments]
    if getattr(_libc, name)(*arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _mount(source, target, kind=None, flags=0, data=None):
    try:
        _call("mount", source, target, kind, ctypes.c_ulong(flags), data)
    except OSError as error:
        raise OSError(error.errno, f"mounting {kind or source} on {target}: {os.strerror(error.errno)}") from None


def _end_with_parent():
    _call("prctl", PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def _text(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


# ---- The cgroup ----

class Cgroup:
    """A cgroup below the caller's; what is in it believes that it is the root."""

    def __init__(self, mountpoint):
        os.mkdir(mountpoint)
        _mount("cgroup2", mountpoint, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        own = [line[3:].strip() for line in _text("/proc/self/cgroup").splitlines() if line.startswith("0::")]
        if not own:
            raise Unavailable("there is no cgroup v2 here")
        self.path = f"{mountpoint}{own[0].rstrip('/')}/up-test-{os.getpid()}"
        os.mkdir(self.path)

    def enter(self):
        _write(self.path + "/cgroup.procs", "0")

    def remove(self):
        """The last processes have ended, but may not have left yet."""
        end = time.monotonic() + 10
        with open(self.path + "/cgroup.events", encoding="ascii") as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "populated 0" not in os.pread(events.fileno(), 4096, 0).decode() and time.monotonic() < end:
                poll.poll(1000)
        for directory, _, _ in os.walk(self.path, topdown=False):
            os.rmdir(directory)


# ---- The file system ----

def _place():
    """A directory that a mount may hide from us: nobody else sees it, and none has to be made."""
    needed = [sys.executable, __file__, *(os.environ.get(name, "/") for name in ("UP_BUILD", "UP_SOURCE"))]
    for path in ("/mnt", "/media", "/srv", "/opt"):
        if os.path.isdir(path) and not any(os.path.realpath(file).startswith(path + "/") for file in needed):
            return path
    raise Unavailable("no directory to mount on")


def _file_systems():
    """Where other file systems are mounted, an outer one before those inside it."""
    for line in _text("/proc/self/mountinfo").splitlines():
        path = line.split()[4].encode().decode("unicode_escape")
        if path != "/" and not f"{path}/".startswith(("/proc/", "/sys/", "/dev/", "/run/", "/tmp/")):
            yield path


class Files:
    """The machine's file system, at .root."""

    def __init__(self, place):
        self.place, self.root, self.n_layers = place, place + "/root", 0
        below = [path for path in dict.fromkeys(_file_systems()) if not path.startswith(place + "/")]
        _mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        os.mkdir(self.root)
        self._overlay("/", self.root)
        for path in below:
            self._show(path)
        # Here, so that the keeper sees the socket in it that systemd reports its boot to.
        _mount("tmpfs", self.root + "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        _write(place + "/systemd.log", "")

    def _overlay(self, lower, target):
        self.n_layers += 1
        upper, work = (f"{self.place}/{name}-{self.n_layers}" for name in ("upper", "work"))
        os.mkdir(upper)
        os.mkdir(work)
        _mount("overlay", target, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")

    def _show(self, path):
        """Another file system, where it can be copied as well; else as it is, but for writing."""
        try:
            if os.path.isdir(path):
                self._overlay(path, self.root + path)
                return
        except OSError:
            pass
        try:
            _mount(path, self.root + path, None, MS_BIND)
            _mount(None, self.root + path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
        except OSError as error:
            print(f"# not visible in the machine: {path}: {error}")

    def forget_settings(self):
        """Nothing of this system's configuration of systemd holds in there."""
        etc = self.root + "/etc"
        shutil.rmtree(etc + "/systemd")
        os.makedirs(etc + "/systemd/system")
        for name, text in (("fstab", ""), ("crypttab", ""), ("hostname", "machine\n"),
                           ("machine-id", os.urandom(16).hex() + "\n"),
                           ("systemd/system.conf", "[Manager]\nDefaultLimitCORE=0\n"),
                           ("systemd/journald.conf",
                            "[Journal]\nStorage=volatile\nAudit=no\nRateLimitIntervalSec=0\nReadKMsg=no\n")):
            if os.path.islink(f"{etc}/{name}"):
                os.unlink(f"{etc}/{name}")
            _write(f"{etc}/{name}", text)
        for units in VENDOR_UNITS:
            for target in ("sysinit", "basic", "local-fs", "sockets", "timers", "paths", "slices"):
                self._mask_wants(f"{self.root}/{units}/{target}.target.wants")
        self._mask("tmp.mount")

    def _mask_wants(self, directory):
        for unit in os.listdir(directory) if os.path.isdir(directory) else ():
            if unit not in WANTED:
                self._mask(unit)

    def _mask(self, unit):
        path = f"{self.root}/etc/systemd/system/{unit}"
        if not os.path.lexists(path):
            os.symlink("/dev/null", path)

    def mount_kernels(self):
        """The kernel's file systems, as the caller's namespaces have them. What is the whole machine's
        can't be written; systemd mounts the rest itself."""
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
        _mount("proc", self.root + "/proc", "proc", flags)
        for name in ("sys", "sysrq-trigger"):
            path = f"{self.root}/proc/{name}"
            if not os.path.exists(path):
                continue
            _mount(path, path, None, MS_BIND)
            _mount(None, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | flags)
        _mount("sysfs", self.root + "/sys", "sysfs", flags | MS_RDONLY)
        _mount("cgroup2", self.root + "/sys/fs/cgroup", "cgroup2", flags)
        _mount("tmpfs", self.root + "/dev", "tmpfs", MS_NOSUID, "mode=755")
        for name in DEVICES:
            _write(f"{self.root}/dev/{name}", "")
            _mount(f"/dev/{name}", f"{self.root}/dev/{name}", None, MS_BIND)
        for n, name in enumerate(("stdin", "stdout", "stderr")):
            os.symlink(f"/proc/self/fd/{n}", f"{self.root}/dev/{name}")
        os.symlink("/proc/self/fd", self.root + "/dev/fd")
        os.symlink("pts/ptmx", self.root + "/dev/ptmx")
        # Takes what systemd says before there is a journal.
        _write(self.root + "/dev/kmsg", "")
        _mount(self.place + "/systemd.log", self.root + "/dev/kmsg", None, MS_BIND)

    def become_root(self):
        os.chdir(self.root)
        _call("pivot_root", ".", ".")
        _call("umount2", ".", MNT_DETACH)
        os.chdir("/")
        _mount(None, "/", None, MS_REC | MS_SHARED)


# ---- systemd ----

def _become_systemd(files, cgroup):
    cgroup.enter()
    _call("unshare", INNER)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    files.mount_kernels()
    files.become_root()
    for capability in DROPPED:
        _call("prctl", PR_CAPBSET_DROP, ctypes.c_ulong(capability))
    # `container` keeps it from the clock, swap and the like; without generators nothing of this
    # system's fstab and scripts becomes a unit.
    os.execve(SYSTEMD, [SYSTEMD, "--system", "--unit=basic.target", "--log-target=journal-or-kmsg"],
              {"container": "test", "PATH": os.defpath, "LANG": "C.UTF-8", "NOTIFY_SOCKET": "/run/boot",
               "SYSTEMD_GENERATOR_PATH": "/nonexistent"})


# ---- Processes ----

def _in_child(function, *arguments):
    """Runs it in a child that ends with this process. Returns the child's pid."""
    go, let_go = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(go)
        os.write(let_go, b"!")
        os.close(let_go)
        return pid
    status = 1
    try:
        os.close(let_go)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _end_with_parent()
        # Where nothing comes, the parent ended before it could take this process along.
        if os.read(go, 1):
            os.close(go)
            status = function(*arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status or 0))


def _test_inside(systemd_fd, test):
    _call("setns", systemd_fd, INNER)
    os.chdir("/")
    return test()


def _end(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class _CallerEnded(BaseException):
    pass


def _wait(caller, seconds, *fds):
    """The first of these descriptors that can be read, or None at the deadline."""
    readable, _, _ = select.select([caller, *fds], [], [], seconds)
    if caller in readable:
        raise _CallerEnded
    return readable[0] if readable else None


def _wait_for_boot(caller, systemd_fd, notifications, files):
    end = time.monotonic() + BOOT_S
    while (left := end - time.monotonic()) > 0:
        readable = _wait(caller, left, notifications, systemd_fd)
        if readable == notifications and b"READY=1" in notifications.recv(4096).split(b"\n"):
            return
        if readable == systemd_fd:
            break
    for line in _text(files.place + "/systemd.log").splitlines()[-40:]:
        print("#", line)
    raise Unavailable("systemd does not boot here")


def _keep(caller, files, cgroup, test):
    """Boots, tests, and ends it all. Returns the status of the test."""
    children = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(files.root + "/run/boot")
        try:
            _call("unshare", CLONE_NEWPID)
            children.append(_in_child(_become_systemd, files, cgroup))
            systemd_fd = os.pidfd_open(children[0])
            _wait_for_boot(caller, systemd_fd, notifications, files)
            # systemd goes on telling, and would wait for a reader.
            notifications.close()
            children.append(_in_child(_test_inside, systemd_fd, test))
            test_fd = os.pidfd_open(children[1])
            _wait(caller, None, test_fd, systemd_fd)
            return _end(children.pop())
        finally:
            for pid in reversed(children):
                _end(pid)


def _make_and_keep(caller, prepare, test):
    try:
        _call("unshare", CLONE_NEWNS)
        _mount(None, "/", None, MS_REC | MS_PRIVATE)
        files = Files(_place())
        cgroup = Cgroup(files.place + "/cgroup")
    except OSError as error:
        raise Unavailable(error) from None
    try:
        files.forget_settings()
        prepare(files.root)
        return _keep(caller, files, cgroup, test)
    finally:
        cgroup.remove()


def _look():
    """What can be known without trying."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Unavailable("needs Linux and root")
    for path in (SYSTEMD, "/bin/systemctl", "/bin/journalctl"):
        if not os.path.exists(path):
            raise Unavailable(f"{path} is not installed")
    if not any(line.split()[4] == "/" for line in _text("/proc/self/mountinfo").splitlines()):
        raise Unavailable("the root directory is no mount point: this is a chroot")
    if not hasattr(os, "pidfd_open"):
        raise Unavailable("needs Python 3.9")
    for kind in ("overlay", "cgroup2"):
        if kind not in _text("/proc/filesystems").split():
            raise Unavailable(f"the kernel has no {kind}")
    try:
        pid = _in_child(_call, "unshare", INNER | CLONE_NEWPID)
    except OSError as error:
        raise Unavailable(error) from None
    if os.waitpid(pid, 0)[1] != 0:
        raise Unavailable("namespaces can't be made")


def _keeper(caller, prepare, test):
    """The keeper's life. Only the caller's pipe tells it to end early."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        return _make_and_keep(caller, prepare, test)
    except Unavailable as why:
        print(f"1..0 # SKIP {why}")
        return 0
    except _CallerEnded:
        return 1


def boot(prepare, test):
    try:
        _look()
    except Unavailable as why:
        print(f"1..0 # SKIP {why}")
        return 0
    caller, life = os.pipe()
    signals = []
    sys.stdout.flush()
    keeper = os.fork()
    if keeper == 0:
        os.close(life)
        status = 1
        try:
            status = _keeper(caller, prepare, test)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def on_signal(number, _):
        if not signals:
            os.close(life)
        signals.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    status = os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])
    return 128 + signals[0] if signals else status
