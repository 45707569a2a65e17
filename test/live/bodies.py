#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bodies: large and slow ones through reloads, every framing, every odd end.

UP_TEST_UPLOAD_MB (200) is the size of the upload that goes through five reloads.
"""
import os
import random
import re
import select
import subprocess
import zlib

from harness import (BUILD, SLOW, Client, Failure, Master, Skip, alive, check, chunked, deadline, equal, need, pattern,
                     run, together, wait_until)

UPLOAD_MB = int(os.environ.get("UP_TEST_UPLOAD_MB", "200" if SLOW <= 1 else "20"))
RELOADS = 5
MIB = 1024 * 1024


def tour():
    path = BUILD + "/docs/examples/tour.so"
    if not os.path.exists(path):
        raise Skip("docs/examples is not built")
    return path


def busy_pid(master):
    """The worker that serves the only request."""
    return wait_until(lambda: [worker["pid"] for worker in master.status()["workers"] if worker["in_flight"]], 10,
                      "a worker is busy")[0]


def ends_soon(master, pid):
    wait_until(lambda: not alive(pid) and pid not in [worker["pid"] for worker in master.workers(None)], 5,
               f"the old worker {pid} has ended")
    status = master.check_sums()
    equal(len(status["workers"]), 2, status["workers"])
    equal((status["reloads"]["count"], status["reloads"]["failed"]), (RELOADS, 0))


def reload_beside(master, pid):
    """Reloads while the worker pid is busy."""
    master.reload()
    check(alive(pid), "the old worker has gone too early")


@deadline(90)
def an_upload_goes_on_through_five_reloads():
    master = Master(tour())
    total = UPLOAD_MB * MIB
    block = random.Random(1).randbytes(MIB)
    with master.client(timeout=60) as client:
        client.send(Client.head("PUT", "/upload", {"Content-Length": total}), block)
        pid, crc = busy_pid(master), zlib.crc32(block)
        for n in range(1, UPLOAD_MB):
            if n % (UPLOAD_MB // (RELOADS + 1)) == 0 and n // (UPLOAD_MB // (RELOADS + 1)) <= RELOADS:
                reload_beside(master, pid)
            client.send(block)
            crc = zlib.crc32(block, crc)
        answer = client.response().json
        equal(answer, {"size": total, "crc32": f"{crc:08x}"})
        ends_soon(master, pid)
        equal(client.exchange("PUT", "/upload", body=b"a").json["size"], 1, "the next on the same socket:")
    master.stop()


@deadline(60)
def a_slow_download_goes_on_through_five_reloads():
    master = Master()
    total, done, reloads = 64 * MIB, 0, 0
    with master.client(receive_buffer=65536) as client:
        client.ask("GET", f"/bytes/{total}")
        response = client.response_head()
        equal(response.field("Content-Length"), str(total))
        pid = busy_pid(master)
        wanted = pattern(MIB) * 2
        for piece in client.pieces(response):
            check(piece == wanted[done % 16:done % 16 + len(piece)], "wrong content at", done)
            done += len(piece)
            # The last while far more is to come than the kernel's buffers hold.
            if reloads < RELOADS and done > (reloads + 1) * MIB:
                reloads += 1
                reload_beside(master, pid)
        equal((done, reloads), (total, RELOADS))
        ends_soon(master, pid)
        equal(client.get("/").status, 200)
    master.stop()


@deadline(60)
def an_echo_streams_both_ways_through_five_reloads():
    master = Master()
    block = random.Random(2).randbytes(MIB)
    blocks = 12
    with master.client() as client:
        client.send(Client.head("POST", "/echo", {"Transfer-Encoding": "chunked"}))

        def send():
            for n in range(blocks):
                if n in range(2, 2 + RELOADS):
                    master.reload()
                client.send(b"%x\r\n" % len(block), block, b"\r\n")
            client.send(b"0\r\n\r\n")

        def receive():
            return client.response().body

        _, body = together(send, receive)
        check(body == block * blocks, "wrong content")
        wait_until(lambda: len(master.workers(None)) == 2, 5, "the old workers have ended")
        equal(client.get("/").status, 200)
    master.check_sums()
    master.stop()


def echo_large(client, fields, sent, body):
    """A body that may be larger than the kernel's buffers: written and read at once."""
    _, response = together(lambda: client.send(Client.head("POST", "/echo", fields), sent), client.response)
    equal(response.status, 200)
    check(response.body == body, "wrong content")


def a_mebibyte_each_way_is_intact():
    master = Master()
    body = random.Random(3).randbytes(MIB)
    with master.client() as client:
        for n in (MIB - 1, MIB, MIB + 1, 65535, 65536, 65537):
            check(client.get(f"/bytes/{n}").body == pattern(n), "wrong content of", n)
            echo_large(client, {"Content-Length": n}, (body * 2)[:n], (body * 2)[:n])
        for size in (100, 4096, 32768, 100000):
            chunks = [body[at:at + size] for at in range(0, len(body), size)]
            echo_large(client, {"Transfer-Encoding": "chunked"}, chunked(*chunks), body)
        equal(client.post("/", body).status, 200)
    master.check_sums()
    master.stop()


def a_body_is_asked_for_where_the_client_waits():
    master = Master()
    with master.client() as client:
        for fields, sent in (({"Content-Length": 5}, b"hello"), ({"Transfer-Encoding": "chunked"}, chunked(b"hello"))):
            client.send(Client.head("POST", "/echo", {"Expect": "100-continue", **fields}))
            equal(client.response_head().status, 100, "while the body waits:")
            client.send(sent)
            equal(client.response().body, b"hello")
            # What has begun to come need not be asked for.
            client.send(Client.head("POST", "/echo", {"Expect": "100-Continue", **fields}) + sent)
            response = client.response()
            equal((response.status, response.body, response.interim), (200, b"hello", []))
        equal(client.post("/echo", b"a").interim, [], "without an expectation:")
        # HTTP/1.0 does not know it.
        client.send(Client.head("POST", "/", {"Content-Length": 1, "Expect": "100-continue",
                                              "Connection": "keep-alive"}, minor=0))
        client.expect_silence(0.1)
        client.send(b"a")
        equal(client.response().status, 200)
    with master.client() as client:
        response = client.post("/", b"", {"Expect": "a-miracle"})
        equal((response.status, response.keeps), (417, False))
        client.expect_end()
    master.check_sums()
    master.stop()


def a_body_nobody_asked_for_is_no_request():
    """The client waits for 100, gets its answer, and then sends the body all the same or not."""
    master = Master()
    body = Client.head("GET", "/bytes/3")
    fields = {"Expect": "100-continue", "Content-Length": len(body)}
    with master.client() as client:
        client.send(Client.head("POST", "/bytes/7", fields))
        response = client.response()
        equal((response.status, response.interim, response.body), (200, [], pattern(7)))
        if response.keeps:
            client.send(body + Client.head("GET", "/bytes/5"))
            equal(client.response().body, pattern(5))
        else:
            client.send(body)
            client.expect_end()
    with master.client() as client:
        client.send(Client.head("POST", "/bytes/7", fields))
        client.response()
        client.expect_end()
    master.check_sums()
    master.stop()


def curl_uploads_with_an_expectation():
    curl = need("curl")
    master = Master()
    body = random.Random(4).randbytes(3 * MIB)
    path = master.directory + "/body"
    with open(path, "wb") as file:
        file.write(body)
    url = f"http://127.0.0.1:{master.port}"
    for option in ("Expect: 100-continue", "Transfer-Encoding: chunked"):
        result = subprocess.run([curl, "-sSv", "--max-time", "20", "-H", option, "-H", "Expect: 100-continue",
                                 "--data-binary", "@" + path, url + "/echo", "--next", "-sS", url + "/bytes/9"],
                                capture_output=True, timeout=40, check=False)
        equal(result.returncode, 0, result.stderr.decode(errors="replace"))
        check(result.stdout == body + pattern(9), "wrong content")
        check(b"HTTP/1.1 100 Continue" in result.stderr, result.stderr)
        check(b"Re-using existing connection" in result.stderr or b"Connection #1" not in result.stderr,
              "curl had to connect again")
    master.check_sums()
    master.stop()


def http_1_0_gets_what_it_knows():
    master = Master()
    with master.client() as client:
        response = client.get("/", minor=0)
        check(response.status == 200 and not response.keeps and response.body.startswith(b"Hello"), response)
        client.expect_end()
    with master.client() as client:
        for body in (b"", b"abc", bytes(70000)):
            response = client.post("/echo", body, {"Connection": "Keep-Alive"}, minor=0)
            check(response.keeps and response.body == body, response)
            check(response.field("Transfer-Encoding") is None, response)
        check(not client.get("/", {"Connection": "close"}, minor=0).keeps)
        client.expect_end()
    # Both at once: the answers in order, and nothing behind the one that closes.
    with master.client() as client:
        client.send(Client.head("GET", "/bytes/5", {"Connection": "keep-alive"}, minor=0) +
                    Client.head("GET", "/bytes/6", minor=0) + Client.head("GET", "/bytes/7"))
        equal(client.response().body, pattern(5))
        equal(client.response().body, pattern(6))
        client.expect_end()
    master.check_sums()
    master.stop()


def head_gets_no_body():
    master = Master()
    with master.client() as client:
        for n in (0, 10, 1000, 100000, 10 * MIB):
            response = client.exchange("HEAD", f"/bytes/{n}")
            equal((response.status, response.field("Content-Length")), (200, str(n)))
        client.send(Client.head("HEAD", "/") + Client.head("GET", "/bytes/4"))
        client.response(head_only=True)
        equal(client.response().body, pattern(4))
    master.check_sums()
    master.stop()


def an_early_answer_is_delivered_and_the_rest_is_no_request():
    master = Master()
    smuggled = Client.head("GET", "/bytes/666")
    # Little is to come: the connection goes on behind it.
    with master.client() as client:
        rest = smuggled * 100
        client.send(Client.head("POST", "/bytes/7", {"Content-Length": 10 + len(rest)}) + bytes(10))
        response = client.response()
        check(response.body == pattern(7) and response.keeps, response)
        client.send(rest + Client.head("GET", "/bytes/5"))
        equal(client.response().body, pattern(5))
    # Much is to come: the answer says so, and can be read while the client still sends.
    with master.client() as client:
        client.send(Client.head("POST", "/bytes/7", {"Content-Length": MIB}) + bytes(10))
        response = client.response()
        check(response.body == pattern(7) and not response.keeps, response)
        client.send(smuggled * 1000)
        client.expect_end()
    # It never comes.
    for fields in ({"Content-Length": 100}, {"Transfer-Encoding": "chunked"}):
        with master.client() as client:
            client.send(Client.head("POST", "/bytes/7", fields))
            equal(client.response().body, pattern(7))
            client.expect_end()
    # A chunked rest.
    with master.client() as client:
        client.send(Client.head("POST", "/bytes/7", {"Transfer-Encoding": "chunked"}) + b"5\r\nhel")
        response = client.response()
        equal(response.body, pattern(7))
        client.send(b"lo\r\n" + chunked(smuggled) + Client.head("GET", "/bytes/5"))
        if response.keeps:
            equal(client.response().body, pattern(5))
        else:
            client.expect_end()
    master.check_sums()
    master.stop()


def what_follows_a_chunked_body_is_the_next_request():
    master = Master()
    first = Client.head("POST", "/echo", {"Transfer-Encoding": "chunked"})
    last = Client.head("GET", "/bytes/3")
    with master.client() as client:
        for body in (chunked(b"hello"), chunked(b"hel", b"lo"), b"5;name=value\r\nhello\r\n0\r\n\r\n",
                     chunked(b"hello", trailer=b"X-Sum: 1\r\nX-More: 2\r\n"), b"000005\r\nhello\r\n0;a=\"b\"\r\n\r\n"):
            for split in (0, 1, len(body) // 2, len(body) - 1, len(body)):
                client.send(first + body[:split], body[split:] + last + last[:9], last[9:])
                equal(client.response().body, b"hello", body, split)
                equal(client.response().body, pattern(3))
                equal(client.response().body, pattern(3))
        # More than a worker may read behind a body at once.
        many = 3000
        together(lambda: client.send(first, chunked(bytes(20000)) + last * many),
                 lambda: [equal(len(client.response().body), n) for n in (20000, *[3] * many)])
        # Bodies of both kinds and none, in one piece.
        client.send(first + chunked(b"1") + Client.head("POST", "/echo", {"Content-Length": 1}) + b"2" + last +
                    first + chunked(b"4") + first + chunked() + last)
        equal([client.response().body for _ in range(6)], [b"1", b"2", pattern(3), b"4", b"", pattern(3)])
    master.check_sums()
    master.stop()


@deadline(60)
def a_request_may_be_cut_anywhere():
    master = Master()
    requests = ((Client.head("GET", "/bytes/3"), pattern(3)),
                (Client.head("POST", "/echo", {"Content-Length": 5}) + b"hello", b"hello"),
                (Client.head("POST", "/echo", {"Transfer-Encoding": "chunked"}) +
                 b"3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n", b"hello"))
    with master.client() as client:
        for request, wanted in requests:
            for at in range(1, len(request)):
                client.send(request[:at])
                # So that the server has most likely read the first piece: the second is not in time.
                select.select([client], [], [], 0.001)
                client.send(request[at:])
                equal(client.response().body, wanted, "cut at", at)
            for byte in request:
                client.send(bytes([byte]))
                select.select([client], [], [], 0.0005)
            equal(client.response().body, wanted, "byte by byte")
    status = master.check_sums()
    equal(status["connections"]["accepted"], 1)
    master.stop()


def a_client_that_half_closes_gets_its_answers():
    master = Master()
    three = b"".join(Client.head("GET", f"/bytes/{n}") for n in (5, 6, 7))
    for request, bodies in ((Client.head("GET", "/bytes/4"), [pattern(4)]),
                            (Client.head("POST", "/echo", {"Content-Length": 3}) + b"abc", [b"abc"]),
                            (Client.head("POST", "/echo", {"Transfer-Encoding": "chunked"}) + chunked(b"ab"), [b"ab"]),
                            (Client.head("GET", "/bytes/5000000"), [pattern(5000000)]),
                            (three, [pattern(5), pattern(6), pattern(7)])):
        for pieces in ((request,), (request[:10], request[10:])):
            with master.client() as client:
                client.send(*pieces)
                client.half_close()
                for body in bodies:
                    check(client.response().body == body, "wrong content")
                client.expect_end()
    with master.client() as client:
        client.ask("GET", "/delay/300")
        client.half_close()
        check(client.response().body.startswith(b"Hello"))
        client.expect_end()
    # Within a request there is nothing to answer, or no more than a complaint.
    for request in (b"GET / HT", Client.head("POST", "/", {"Content-Length": 5}) + b"ab",
                    Client.head("POST", "/", {"Transfer-Encoding": "chunked"}) + b"5\r\nab"):
        with master.client() as client:
            client.send(request)
            client.half_close()
            check(re.match(rb"HTTP/1.1 4|$", client.rest()), "an answer to half a request")
    wait_until(lambda: master.status()["connections"]["open"] == 0, 10, "no connection is left")
    master.check_sums()
    master.stop()


def a_client_that_resets_harms_nobody():
    master = Master("--concurrency", "4")
    wait_until(lambda: len(master.workers()) == 2, 10, "both are ready")
    pids = {worker["pid"] for worker in master.workers()}
    for request in (Client.head("GET", "/bytes/100000000"), Client.head("GET", "/delay/600000"),
                    Client.head("POST", "/echo", {"Content-Length": 1000000}) + bytes(500000),
                    Client.head("POST", "/", {"Content-Length": 1000000}) + bytes(5),
                    Client.head("POST", "/", {"Transfer-Encoding": "chunked"}) + b"ffff\r\nabc"):
        clients = [master.client(receive_buffer=4096) for _ in range(4)]
        for client in clients:
            client.send(request)
        wait_until(lambda: master.status()["requests"]["in_flight"] == 4, 5, "all are served")
        for client in clients:
            client.reset()
        wait_until(lambda: master.status()["requests"]["in_flight"] == 0, 5, f"noticed: {request[:40]}")
        wait_until(lambda: master.status()["connections"]["open"] == 0, 5, "closed")
        with master.client() as client:
            equal(client.get("/").status, 200)
    wait_until(lambda: master.status()["connections"]["open"] == 0, 5, "closed")
    status = master.check_sums()
    equal({worker["pid"] for worker in status["workers"]}, pids, "the workers are the same:")
    equal(status["respawns"], 0)
    master.stop()


def connection_close_is_honoured_gently():
    master = Master()
    smuggled = Client.head("GET", "/bytes/9")
    for target in ("/bytes/3", "/bytes/3000000", "/delay/50"):
        for behind in (b"", smuggled, bytes(200000)):
            with master.client() as client:
                client.send(Client.head("GET", target, {"Connection": "Close"}))
                together(lambda: client.send(behind), lambda: check(not client.response().keeps, "keeps", target))
                # No reset, although something was never read.
                client.expect_end()
    with master.client() as client:
        response = client.post("/echo", b"abc", {"Connection": "foo, close, bar"})
        check(response.body == b"abc" and not response.keeps, response)
        client.expect_end()
    master.check_sums()
    master.stop()


def faults_in_a_chunked_body_are_refused():
    master = Master()
    smuggled = Client.head("GET", "/bytes/9")
    for body in (b"x\r\n", b"\r\n", b" 5\r\nhello\r\n0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n",
                 b"5\rhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n",
                 b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"ffffffffffffffff5\r\nhello\r\n",
                 b"5;a=\x01\r\nhello\r\n0\r\n\r\n", b"5;a=b\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nno field\r\n\r\n",
                 b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n", b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
                 b"5\r\nhello\r\n0\r\nX : y\r\n\r\n", b"5\r\nhello\r\n0\r\n X: y\r\n\r\n", b"5\r\nhello\r\n0\r\nX: y\n\r\n"):
        with master.client() as client:
            client.send(Client.head("POST", "/", {"Transfer-Encoding": "chunked"}), body, smuggled)
            response = client.response()
            equal((response.status, response.keeps), (400, False), body)
            client.expect_end()
        # Where the answer may have begun it breaks off, and nothing follows.
        with master.client() as client:
            client.send(Client.head("POST", "/echo", {"Transfer-Encoding": "chunked"}) + body + smuggled)
            try:
                answer = client.rest()
            except Failure:
                continue
            check(pattern(9) not in answer and answer.count(b"HTTP/1.1 ") <= 1, body, answer)
            check(answer.startswith(b"HTTP/1.1 400 ") or not answer.endswith(b"0\r\n\r\n"), body, answer)
    equal(master.check_sums()["respawns"], 0)
    master.stop()


def a_body_that_pauses_too_long_is_refused():
    master = Master("--body-timeout", "300ms", "--send-timeout", "300ms")
    for fields, begin in (({"Content-Length": 9}, b"ab"), ({"Transfer-Encoding": "chunked"}, b"9\r\nab")):
        with master.client() as client:
            client.send(Client.head("POST", "/", fields) + begin)
            response = client.response()
            equal((response.status, response.keeps), (408, False))
            client.expect_end()
    # Nor is a response kept for who does not read it.
    with master.client(receive_buffer=4096) as client:
        client.ask("GET", "/bytes/100000000")
        wait_until(lambda: master.status()["requests"]["in_flight"] == 1, 5, "served")
        wait_until(lambda: master.status()["requests"]["in_flight"] == 0, 10, "given up")
    # Slow is not too slow.
    with master.client() as client:
        client.send(Client.head("POST", "/echo", {"Content-Length": 10}))
        for i in range(10):
            client.send(b"%d" % i)
            select.select([], [], [], 0.06)
        equal(client.response().body, b"0123456789")
    equal(master.status()["connections"]["dropped"], 0)
    master.stop()


run(an_upload_goes_on_through_five_reloads, a_slow_download_goes_on_through_five_reloads,
    an_echo_streams_both_ways_through_five_reloads, a_mebibyte_each_way_is_intact,
    a_body_is_asked_for_where_the_client_waits, a_body_nobody_asked_for_is_no_request,
    curl_uploads_with_an_expectation, http_1_0_gets_what_it_knows, head_gets_no_body,
    an_early_answer_is_delivered_and_the_rest_is_no_request, what_follows_a_chunked_body_is_the_next_request,
    a_request_may_be_cut_anywhere, a_client_that_half_closes_gets_its_answers, a_client_that_resets_harms_nobody,
    connection_close_is_honoured_gently, faults_in_a_chunked_body_are_refused, a_body_that_pauses_too_long_is_refused)
