#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Where clients come in: every kind of address, taken ones, inherited ones, and changes by a reload."""
import os
import socket
import stat

from harness import Client, Failure, Master, Skip, alive, check, equal, pattern, run, wait_until


def need_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        raise Skip("there is no IPv6") from None


def served(address):
    with Client(address) as client:
        equal(client.get("/bytes/3").body, pattern(3), address)


def refused(address):
    try:
        Client(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def port_of(address):
    return int(address.rpartition(":")[2])


def bound(address=("127.0.0.1", 0), listen=True):
    """A socket of somebody else's, and its address as a listener's."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(address)
    if listen:
        taken.listen()
    return taken, f"127.0.0.1:{taken.getsockname()[1]}"


def free_address():
    """An address that was free a moment ago."""
    taken, address = bound(listen=False)
    taken.close()
    return address


def every_kind_of_address_is_served():
    need_ipv6()
    master = Master("--listen", "localhost:0", listen=("127.0.0.1:0", "[::1]:0"), config={"listen": []})
    listeners = master.status()["listeners"]
    check(len(listeners) >= 3 and not any(listener["inherited"] for listener in listeners), listeners)
    for listener in listeners:
        host, _, port = listener["address"].rpartition(":")
        served((host.strip("[]"), int(port)))
    master.stop()


def a_unix_socket_is_served_beside_a_port():
    master = Master(listen=("127.0.0.1:0",), ready=False)
    directory = master.directory
    master.wait_ready()
    master.stop()
    path = directory + "/web.sock"
    master = Master(listen=("127.0.0.1:0", "unix:" + path))
    equal(master.addresses()[1], "unix:" + path)
    check(stat.S_ISSOCK(os.stat(path).st_mode))
    served(path)
    served(master.port)
    with Client(path) as client:
        body = bytes(range(256)) * 4096
        for _ in range(3):
            equal(client.get("/").status, 200)
            equal(client.post("/", body).status, 200)
            master.reload()
    master.check_sums()
    master.stop()
    check(not os.path.exists(path), "the path is left behind")


def a_port_alone_is_served_in_both_families():
    need_ipv6()
    master = Master(listen=(":0",))
    equal(len(master.addresses()), 1)
    served(("127.0.0.1", master.port))
    served(("::1", master.port))
    master.stop()


def the_short_option_for_a_port_is_the_same():
    master = Master("-p", "0", listen=())
    served(master.port)
    master.stop()


def a_taken_port_is_named_and_the_end():
    taken, address = bound()
    with taken:
        for threads in (1, 3):
            log = Master("--threads", threads, listen=(address,), ready=False).wait_end(1)
            check(address in log and "in use" in log, log)
        # One address that can't be had is enough.
        log = Master(listen=("127.0.0.1:0", address), ready=False).wait_end(1)
        check(address in log, log)
    log = Master(listen=("192.0.2.1:80",), ready=False).wait_end(1)
    check("192.0.2.1:80" in log, log)


def a_second_instance_on_the_same_port_is_refused():
    for threads in (1, 3):
        first = Master("--threads", threads)
        address = first.addresses()[0]
        for other in (address, f":{first.port}"):
            log = Master("--threads", threads, listen=(other,), ready=False).wait_end(1)
            check(other in log and "in use" in log, log)
        # None of its connections went elsewhere.
        for _ in range(20):
            served(first.port)
        equal(first.status()["connections"]["accepted"], 20)
        first.stop()


def a_port_can_be_had_again_at_once():
    first = Master()
    address = first.addresses()[0]
    with first.client() as client:
        client.get("/")
        # Closed by the server first: its end lingers in TIME_WAIT.
        client.ask("GET", "/", {"Connection": "close"})
        client.response()
        client.expect_end()
    first.stop()
    second = Master(listen=(address,))
    served(second.port)
    second.stop()


def a_second_instance_on_the_same_path_is_refused():
    first = Master(listen=(), ready=False, config={"listen": "127.0.0.1:0"})
    path = first.directory + "/web.sock"
    first.close()
    os.mkdir(os.path.dirname(path))
    try:
        first = Master(listen=("unix:" + path,))
        log = Master(listen=("unix:" + path,), ready=False).wait_end(1)
        check(path in log and "in use" in log, log)
        served(path)
        # The control socket likewise.
        log = Master("--control", first.control_path, listen=("127.0.0.1:0",), ready=False).wait_end(1)
        check(first.control_path in log, log)
        served(path)
        equal(first.control("GET", "/healthz")[0], 200)
        first.stop()
    finally:
        os.rmdir(os.path.dirname(path))


def a_stale_path_is_taken_over_and_a_foreign_file_is_not():
    master = Master()
    stale_path, file_path = master.directory + "/stale.sock", master.directory + "/file"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(stale_path)
        stale.listen()
    with open(file_path, "w", encoding="ascii") as file:
        file.write("precious")
    second = Master(listen=("unix:" + stale_path,))
    served(stale_path)
    second.stop()
    log = Master(listen=("unix:" + file_path,), ready=False).wait_end(1)
    check(file_path in log, log)
    with open(file_path, encoding="ascii") as file:
        equal(file.read(), "precious")
    # A path that somebody else has taken over meanwhile is theirs.
    third = Master(listen=("unix:" + stale_path,))
    os.unlink(stale_path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(stale_path)
        third.stop()
        check(os.path.exists(stale_path), "somebody else's socket was removed")
    master.stop()


def after_a_kill_everything_can_be_had_again():
    holder = Master()
    path = holder.directory + "/web.sock"
    first = Master(listen=("127.0.0.1:0", "unix:" + path))
    address, pids = first.addresses()[0], [worker["pid"] for worker in first.workers()]
    control = first.control_path
    first.signal(9)
    first.process.wait()
    wait_until(lambda: not any(map(alive, pids)), 10, "the workers end with their master")
    second = Master("--control", control, listen=(address, "unix:" + path), ready=False)
    second.control_path = control
    second.wait_ready()
    served(second.port)
    served(path)
    second.stop()
    holder.stop()


def inherited_sockets_are_served_and_told():
    tcp, address = bound()
    directory = Master()
    path = directory.directory + "/inherited.sock"
    with tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(path)
        local.listen()
        master = Master(listen=(), fds=(tcp.fileno(), local.fileno()))
        equal(master.status()["listeners"], [{"address": address, "inherited": True},
                                             {"address": "unix:" + path, "inherited": True}])
        served(port_of(address))
        served(path)
        master.reload()
        equal(len(master.addresses()), 2)
        served(port_of(address))
        master.stop()
        # They are not ours to remove, and who comes meanwhile waits for the next.
        check(os.path.exists(path), "somebody else's socket was removed")
        with Client(port_of(address)) as early:
            early.ask("GET", "/bytes/4")
            master = Master("--threads", "3", fds=(tcp.fileno(),))
            equal(early.response().body, pattern(4))
            equal([listener["inherited"] for listener in master.status()["listeners"]], [True, False])
            served(port_of(master.addresses()[1]))
            master.stop()
    directory.stop()


def a_descriptor_that_is_no_listener_is_refused():
    with socket.socket() as connected_to_nothing:
        log = Master(listen=(), fds=(connected_to_nothing.fileno(),), ready=False).wait_end(1)
        check("inherited descriptor 3" in log, log)


def descriptors_meant_for_somebody_else_are_left_alone():
    master = Master(env={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
    equal([listener["inherited"] for listener in master.status()["listeners"]], [False])
    served(master.port)
    master.stop()


def connections_of_one_listener_are_dealt_to_all_threads():
    holder = Master()
    path = holder.directory + "/web.sock"
    tcp, address = bound()
    with tcp:
        master = Master("--threads", "4", listen=("unix:" + path,), fds=(tcp.fileno(),))
        for where in (path, port_of(address)):
            clients = [Client(where) for _ in range(40)]
            for client in clients:
                equal(client.get("/").status, 200)
            equal([thread["connections"] for thread in master.status()["threads"]], [10] * 4, where)
            for client in clients:
                client.close()
            wait_until(lambda: master.status()["connections"]["open"] == 0, 5, "all are closed")
        master.stop()
    holder.stop()


def a_reload_changes_the_addresses():
    first, second = free_address(), free_address()
    holder = Master()
    path = holder.directory + "/web.sock"
    master = Master(listen=(), config={"listen": first})
    kept = Client(port_of(first))
    equal(kept.get("/").status, 200)
    master.configure({"listen": [first, second, "unix:" + path]})
    master.reload()
    equal(master.addresses(), [first, second, "unix:" + path])
    for address in (port_of(first), port_of(second), path):
        served(address)
    master.configure({"listen": [second]})
    master.reload()
    wait_until(lambda: refused(port_of(first)) and refused(path), 5, "nobody listens on the old addresses")
    equal(master.addresses(), [second])
    check(not os.path.exists(path), "the path is left behind")
    served(port_of(second))
    # Who came by an address that is no more is served on.
    equal(kept.get("/").status, 200)
    kept.close()
    equal(master.check_sums()["reloads"]["failed"], 0)
    master.stop()
    holder.stop()


def failed(master, text):
    """A reload that must fail, and say so."""
    n = master.status()["reloads"]["failed"]
    status, document = master.control("POST", "/reload")
    equal(status, 500, document)
    check(text in document["error"], document)
    now = master.status()
    equal((now["reloads"]["failed"], now["reloads"]["last"]["ok"]), (n + 1, False))
    check(text in now["reloads"]["last"]["error"], now)


def an_address_that_cant_be_bound_fails_the_reload():
    first, new = free_address(), free_address()
    taken, address = bound()
    master = Master(listen=(), config={"listen": [first]})
    client = Client(port_of(first))
    equal(client.get("/").status, 200)
    pids = {worker["pid"] for worker in master.workers()}
    with taken:
        master.configure({"listen": [new, address]})
        failed(master, address)
        equal(master.addresses(), [first])
        equal({worker["pid"] for worker in master.workers(None)}, pids, "the workers are the same:")
        check(refused(port_of(new)), "what could be bound is served all the same")
        served(port_of(first))
    master.reload()
    equal(master.addresses(), [new, address])
    served(port_of(new))
    equal(client.get("/").status, 200)
    client.close()
    master.check_sums()
    master.stop()


def a_bad_file_fails_the_reload():
    address = free_address()
    master = Master(listen=(), config={"listen": [address]}, workers=0)
    for config, text in (('{"listen":\n ["x"', "config.json"), ({"listen": ["nonsense"]}, "listen"),
                         ({"listen": [address], "wrokers": 1}, "wrokers"), ({"listen": [address], "workers": "x"}, "workers"),
                         ({"listen": [address], "threads": master.status()["threads"][-1]["id"] + 2}, "threads")):
        master.configure(config)
        failed(master, text)
        served(port_of(address))
    os.unlink(master.config_path)
    failed(master, "config.json")
    master.configure({"listen": [address], "workers": 3})
    master.reload()
    wait_until(lambda: len(master.workers()) == 3, 10, "three workers")
    served(port_of(address))
    master.stop()


def a_reload_that_changes_nothing_keeps_a_port_of_chance():
    master = Master(listen=(), config={"listen": ["127.0.0.1:0", ":0"]})
    addresses = master.addresses()
    for _ in range(3):
        master.reload()
        equal(master.addresses(), addresses)
    served(master.port)
    master.stop()


def nobody_is_lost_when_an_address_goes():
    """Those who wait to be accepted when a reload takes their address away are served."""
    stays, goes = free_address(), free_address()
    master = Master("--threads", "2", listen=(), config={"listen": [stays, goes]})
    for n in range(6):
        wanted = [stays] if n % 2 == 0 else [stays, goes]
        clients = []
        if n % 2 == 0:
            for _ in range(50):
                client = Client(port_of(goes))
                client.ask("GET", "/bytes/3")
                clients.append(client)
        master.configure({"listen": wanted})
        master.reload()
        for client in clients:
            equal(client.response().body, pattern(3))
            client.close()
        try:
            served(port_of(stays))
        except ConnectionRefusedError:
            raise Failure("the address that stays has gone") from None
    master.check_sums()
    master.stop()


run(every_kind_of_address_is_served, a_unix_socket_is_served_beside_a_port, a_port_alone_is_served_in_both_families,
    the_short_option_for_a_port_is_the_same, a_taken_port_is_named_and_the_end,
    a_second_instance_on_the_same_port_is_refused, a_port_can_be_had_again_at_once,
    a_second_instance_on_the_same_path_is_refused, a_stale_path_is_taken_over_and_a_foreign_file_is_not,
    after_a_kill_everything_can_be_had_again, inherited_sockets_are_served_and_told,
    a_descriptor_that_is_no_listener_is_refused, descriptors_meant_for_somebody_else_are_left_alone,
    connections_of_one_listener_are_dealt_to_all_threads, a_reload_changes_the_addresses,
    an_address_that_cant_be_bound_fails_the_reload, a_bad_file_fails_the_reload,
    a_reload_that_changes_nothing_keeps_a_port_of_chance, nobody_is_lost_when_an_address_goes)
