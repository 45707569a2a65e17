#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Request heads on a real socket: what is refused, with which status, and that nothing else follows."""
import itertools
import select
import subprocess

from harness import Client, Failure, Master, check, equal, need, pattern, run, together, wait_until

HOST = b"Host: test\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def post(*fields, body=b"hello"):
    return b"POST /echo HTTP/1.1\r\n" + HOST + b"".join(fields) + b"\r\n" + body


def get(*fields, version=b"1.1", host=HOST):
    return b"GET / HTTP/" + version + b"\r\n" + host + b"".join(fields) + b"\r\n"


# What, the status, and the bytes.
REFUSED = (
    ("a bare LF behind the request line", 400, b"GET / HTTP/1.1\nHost: test\r\n\r\n"),
    ("a bare LF behind a field", 400, get(b"A: b\n")),
    ("a bare LF as the empty line", 400, b"GET / HTTP/1.1\r\nHost: test\r\n\n"),
    ("a bare LF first", 400, b"\n" + get()),
    ("a bare CR in a value", 400, get(b"A: b\rc\r\n")),
    ("a bare CR behind the request line", 400, b"GET / HTTP/1.1\rHost: test\r\n\r\n"),
    ("CR CR LF", 400, get(b"A: b\r\r\n")),
    ("NUL in a value", 400, get(b"A: b\0c\r\n")),
    ("NUL in the target", 400, b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("NUL in a name", 400, get(b"A\0: b\r\n")),
    ("a control byte in a value", 400, get(b"A: b\x01\r\n")),
    ("DEL in a value", 400, get(b"A: b\x7f\r\n")),
    ("a space before the colon", 400, post(b"Transfer-Encoding : chunked\r\n")),
    ("a tab before the colon", 400, get(b"A\t: b\r\n")),
    ("a folded line", 400, get(b"A: b\r\n c\r\n")),
    ("a folded coding", 400, post(b"Transfer-Encoding:\r\n chunked\r\n")),
    ("a space before the first name", 400, b"GET / HTTP/1.1\r\n Host: test\r\n\r\n"),
    ("an empty name", 400, get(b": b\r\n")),
    ("a bad name", 400, get(b"A(b): c\r\n")),
    ("a name with a byte over 127", 400, get(b"\xc3\xa4: c\r\n")),
    ("no colon", 400, get(b"A\r\n")),
    ("no Host", 400, get(host=b"")),
    ("two Hosts", 400, get(HOST)),
    ("two Hosts that differ", 400, get(b"Host: other\r\n")),
    ("a space in the Host", 400, get(host=b"Host: te st\r\n")),
    ("a slash in the Host", 400, get(host=b"Host: test/x\r\n")),
    ("a comma in the Host", 400, get(host=b"Host: a,b\r\n")),
    ("an @ in the Host", 400, get(host=b"Host: a@b\r\n")),
    ("a port that is none", 400, get(host=b"Host: a:b\r\n")),
    ("two lengths that differ", 400, post(b"Content-Length: 5\r\n", b"Content-Length: 6\r\n")),
    ("a list of lengths that differ", 400, post(b"Content-Length: 5, 6\r\n")),
    ("a signed length", 400, post(b"Content-Length: +5\r\n")),
    ("a negative length", 400, post(b"Content-Length: -5\r\n")),
    ("a hexadecimal length", 400, post(b"Content-Length: 0x5\r\n")),
    ("an empty length", 400, post(b"Content-Length: \r\n")),
    ("a length with a space", 400, post(b"Content-Length: 5 5\r\n")),
    ("a length past 64 bits", 400, post(b"Content-Length: 18446744073709551621\r\n")),
    ("length and coding", 400, post(b"Content-Length: 5\r\n", CHUNKED)),
    ("coding and length", 400, post(CHUNKED, b"Content-Length: 5\r\n")),
    ("a coding on HTTP/1.0", 400, b"POST /echo HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n"),
    ("xchunked", (400, 501), post(b"Transfer-Encoding: xchunked\r\n")),
    ("identity", (400, 501), post(b"Transfer-Encoding: identity\r\n")),
    ("gzip", (400, 501), post(b"Transfer-Encoding: gzip\r\n")),
    ("gzip, chunked", (400, 501), post(b"Transfer-Encoding: gzip, chunked\r\n")),
    ("chunked, identity", (400, 501), post(b"Transfer-Encoding: chunked, identity\r\n")),
    ("chunked twice", 400, post(CHUNKED, CHUNKED)),
    ("chunked, chunked", 400, post(b"Transfer-Encoding: chunked, chunked\r\n")),
    ("chunked in quotes", (400, 501), post(b'Transfer-Encoding: "chunked"\r\n')),
    ("chunked with a parameter", (400, 501), post(b"Transfer-Encoding: chunked;a=b\r\n")),
    ("an empty coding", (400, 501), post(b"Transfer-Encoding:\r\n")),
    ("a vertical tab before chunked", 400, post(b"Transfer-Encoding: \x0bchunked\r\n")),
    ("a space in the target", 400, b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("two spaces before the version", 400, b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a fragment", 400, b"GET /#a HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a byte over 127 in the target", 400, b"GET /\xe4 HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a tab for the space", 400, b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("no target", 400, b"GET  HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a relative target", 400, b"GET a HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a space first", 400, b" " + get()),
    ("HTTP/0.9", 400, b"GET /\r\n\r\n"),
    ("no HTTP", 400, b"GET / FTP/1.1\r\n" + HOST + b"\r\n"),
    ("http in small letters", 400, b"GET / http/1.1\r\n" + HOST + b"\r\n"),
    ("garbage", 400, b"\x01\x02\x03\x04"),
    ("TLS", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)),
    ("an unknown method", 501, b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("QUERY", 501, b"QUERY / HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a method in small letters", 501, b"get / HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("CONNECT", 501, b"CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n"),
    ("HTTP/1.2", 505, get(version=b"1.2")),
    ("HTTP/2.0", 505, get(version=b"2.0")),
    ("HTTP/0.1", 505, get(version=b"0.1")),
    ("the HTTP/2 preface", 505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("an unknown expectation", 417, get(b"Expect: more\r\n")),
    ("a target that is too long", 414, b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a field that is too long", 431, get(b"A: " + b"b" * 70000 + b"\r\n")),
    ("a name that is too long", 431, get(b"a" * 70000 + b": b\r\n")),
    ("too many fields", 431, get(*(b"A%d: b\r\n" % i for i in range(9000)))),
)
SMUGGLED = b"GET /bytes/9 HTTP/1.1\r\nHost: test\r\n\r\n"


def check_refusal(client, status, what):
    """One answer, of the master's own, and then the end."""
    try:
        response = client.response()
    except Failure as failure:
        raise Failure(f"{what}: {failure}") from None
    check(response.status in (status if isinstance(status, tuple) else (status,)), what, response)
    equal((response.keeps, response.field("Content-Type")), (False, "text/plain"), what)
    check(0 < len(response.body) < 200 and response.body.endswith(b"\n"), what, response)
    client.expect_end()


def each_refused_head_gets_one_answer():
    master = Master()
    for what, status, head in REFUSED:
        with master.client() as client:
            client.send(head + SMUGGLED * 3)
            check_refusal(client, status, what)
    status = wait_until(lambda: (now := master.status())["connections"]["open"] == 0 and now, 10, "all are closed")
    equal(status["requests"]["refused"], len(REFUSED))
    equal(status["requests"]["total"], 0, "no worker saw any:")
    master.check_sums()
    master.stop()


def it_is_the_same_behind_a_good_request_and_in_pieces():
    master = Master()
    for what, status, head in REFUSED:
        with master.client() as client:
            client.send(SMUGGLED + head[:len(head) // 2], head[len(head) // 2:] + SMUGGLED)
            equal(client.response().body, pattern(9), what)
            check_refusal(client, status, what)
    # The worker reads behind a chunked body, and hands it back.
    for what, status, head in REFUSED:
        if len(head) < 1000:
            with master.client() as client:
                client.send(post(CHUNKED, body=b"2\r\nab\r\n0\r\n\r\n" + head + SMUGGLED))
                equal(client.response().body, b"ab", what)
                check_refusal(client, status, what)
    master.check_sums()
    master.stop()


def the_answer_can_be_read_while_the_client_still_sends():
    master = Master()
    for what, status, head in itertools.islice(REFUSED, 0, None, 6):
        with master.client() as client:
            together(lambda: client.send(head, *[SMUGGLED * 1000] * 50), lambda: check_refusal(client, status, what))
    # A whole upload that is refused by its head.
    with master.client() as client:
        client.send(post(b"Content-Length: 3000000\r\n", b"A : b\r\n"), bytes(3000000))
        check_refusal(client, 400, "an upload")
    master.check_sums()
    master.stop()


def what_can_never_become_a_request_is_refused_at_once():
    master = Master("--header-timeout", "1h")
    for what, status, begin in (("TLS", 400, b"\x16"), ("TLS", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"),
                                ("garbage", 400, b"\xff"), ("a bare LF", 400, b"GET / HTTP/1.1\n"),
                                ("HTTP/2", 505, b"PRI * HTTP/2.0\r\n"), ("HTTP/3", 505, b"GET / HTTP/3.0\r\n"),
                                ("a method", 501, b"BREW "), ("CONNECT", 501, b"CONNECT "),
                                ("a method without end", (400, 501), b"A" * 500), ("SSH", (400, 501), b"SSH-2.0-x\r\n"),
                                ("a space", 400, get()[:-2] + b"A "), ("a fold", 400, get()[:-2] + b" "),
                                ("length and coding", 400, post(CHUNKED, b"Content-Length: 5\r\n")),
                                ("a long target", 414, b"GET /" + b"a" * 66000),
                                ("a long field", 431, b"GET / HTTP/1.1\r\nA: " + b"a" * 66000)):
        with master.client(timeout=5) as client:
            client.send(begin)
            check_refusal(client, status, what)
    master.check_sums()
    master.stop()


def good_heads_are_served():
    master = Master()
    with master.client() as client:
        for head in (get(), b"\r\n" + get(), get(b"A:b\r\n"), get(b"A:\r\n"), get(b"A: \t b c\t\r\n"), get(b"A: \xe4\r\n"),
                     get(b"Content-Length: 0\r\n"), get(host=b"hOST:test\r\n"), get(host=b"Host: [::1]:80\r\n"),
                     get(b"!#$%&'*+-.^_`|~: a\r\n"), get(b"Connection: keep-alive, foo\r\n"),
                     b"GET http://test/bytes/3 HTTP/1.1\r\n" + HOST + b"\r\n",
                     b"GET http://other:80/a?b HTTP/1.1\r\n" + HOST + b"\r\n",
                     b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /?a=b&c=%20 HTTP/1.1\r\n" + HOST + b"\r\n",
                     get(*(b"A%d: b\r\n" % i for i in range(5000))), get(b"A: " + b"b" * 65000 + b"\r\n"),
                     b"GET /" + b"a" * 65000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"):
            for pieces in ((head,), (head[:7], head[7:])):
                client.send(*pieces)
                response = client.response()
                check(response.status == 200 and response.keeps and response.body.startswith(b"Hello"), head[:200],
                      response)
        for method in (b"GET", b"PUT", b"POST", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"PROPFIND", b"PURGE"):
            client.send(get().replace(b"GET", method))
            equal(client.response().status, 200, method)
        for coding in (b"chunked", b"Chunked", b"CHUNKED"):
            client.send(post(b"Transfer-Encoding: " + coding + b"\r\n", body=b"2\r\nab\r\n0\r\n\r\n"))
            equal(client.response().body, b"ab")
        client.send(post(b"Content-Length: 005\r\n"))
        equal(client.response().body, b"hello")
    master.check_sums()
    master.stop()


def the_length_of_a_head_has_a_limit_of_choice():
    master = Master("--max-head", "1k")
    with master.client() as client:
        for n in (900, 1024):
            client.send(get(b"A: " + b"b" * (n - len(get(b"A: \r\n"))) + b"\r\n"))
            equal(client.response().status, 200, n)
        # It counts for each request, not for what is pipelined.
        client.send(get() * 100)
        for _ in range(100):
            equal(client.response().status, 200)
    with master.client() as client:
        client.send(get(b"A: " + b"b" * (1025 - len(get(b"A: \r\n"))) + b"\r\n"))
        check_refusal(client, 431, "one byte more")
    with master.client() as client:
        client.send(b"GET /" + b"a" * 2000)
        check_refusal(client, 414, "target")
    master.stop()


def h2c_is_not_taken_up():
    master = Master()
    with master.client() as client:
        for fields in ((b"Connection: Upgrade, HTTP2-Settings\r\n", b"Upgrade: h2c\r\n", b"HTTP2-Settings: AAMAAABk\r\n"),
                       (b"Upgrade: h2c\r\n",), (b"HTTP2-Settings: AAMAAABk\r\n",)):
            client.send(get(*fields))
            response = client.response()
            check(response.status == 200 and response.keeps and not response.field("Upgrade"), response)
            client.send(post(*fields, b"Content-Length: 5\r\n"))
            equal(client.response().body, b"hello")
    master.check_sums()
    master.stop()


def curl_asks_for_http_2_in_vain():
    curl = need("curl")
    master = Master()
    result = subprocess.run([curl, "-sS", "--http2", "--max-time", "10", "-w", "%{http_code} %{http_version}",
                             f"http://127.0.0.1:{master.port}/bytes/3"], capture_output=True, text=True, timeout=20,
                            check=False)
    equal((result.returncode, result.stdout), (0, "012200 1.1"), result.stderr)
    result = subprocess.run([curl, "-sS", "--http2-prior-knowledge", "--max-time", "10",
                             f"http://127.0.0.1:{master.port}/"], capture_output=True, text=True, timeout=20,
                            check=False)
    check(result.returncode != 0, "HTTP/2 was spoken")
    result = subprocess.run([curl, "-sSk", "--max-time", "10", f"https://127.0.0.1:{master.port}/"],
                            capture_output=True, text=True, timeout=20, check=False)
    check(result.returncode not in (0, 28), "TLS on a plain port is left hanging", result.returncode)
    master.check_sums()
    master.stop()


def a_head_that_takes_too_long_is_answered_with_408():
    master = Master("--header-timeout", "400ms")
    with master.client() as client:
        client.send(get()[:-2])
        check_refusal(client, 408, "half a head")
    # A byte now and then does not help, and the time counts anew for each request.
    with master.client() as client:
        for _ in range(3):
            select.select([], [], [], 0.2)
            equal(client.get("/").status, 200)
        client.send(get()[:-2] + b"A: ")
        for n in range(200):
            if select.select([client], [], [], 0.05)[0]:
                break
            client.send(b"a")
        check(n < 199, "a slow head is read for ever")
        check_refusal(client, 408, "dripping")
    # Behind a pipelined request.
    with master.client() as client:
        client.send(SMUGGLED + b"GE")
        equal(client.response().body, pattern(9))
        check_refusal(client, 408, "pipelined")
    # A blank line is no request, but the first byte of one.
    with master.client() as client:
        client.send(b"\r\n")
        check_refusal(client, 408, "a blank line")
    master.check_sums()
    master.stop()


def an_idle_connection_is_closed_without_a_word():
    master = Master("--keepalive-timeout", "400ms")
    before, after, upload = master.client(), master.client(), master.client()
    upload.send(post(b"Content-Length: 5\r\n", body=b"he"))
    equal(after.get("/").status, 200)
    before.expect_end()
    after.expect_end()
    before.close()
    after.close()
    # What is not idle is left alone.
    slow = master.client()
    equal(slow.get("/delay/900").status, 200)
    upload.send(b"llo")
    equal(upload.response().body, b"hello")
    upload.close()
    slow.expect_end()
    slow.close()
    wait_until(lambda: master.status()["connections"]["open"] == 0, 10, "all are closed")
    master.check_sums()
    master.stop()


def a_client_that_leaves_within_a_head_leaves_nothing():
    master = Master()
    for begin in (b"", b"G", get()[:-1], SMUGGLED + b"G"):
        for leave in (Client.close, Client.reset):
            client = master.client()
            client.send(begin)
            leave(client)
    wait_until(lambda: master.status()["connections"]["open"] == 0, 10, "all are closed")
    with master.client() as client:
        client.send(b"GET / HTT")
        client.half_close()
        try:
            equal(client.rest(), b"")
        except Failure as failure:
            check("reset" in str(failure), failure)
    equal(master.check_sums()["respawns"], 0)
    master.stop()


run(each_refused_head_gets_one_answer, it_is_the_same_behind_a_good_request_and_in_pieces,
    the_answer_can_be_read_while_the_client_still_sends, what_can_never_become_a_request_is_refused_at_once,
    good_heads_are_served, the_length_of_a_head_has_a_limit_of_choice, h2c_is_not_taken_up,
    curl_asks_for_http_2_in_vain, a_head_that_takes_too_long_is_answered_with_408,
    an_idle_connection_is_closed_without_a_word, a_client_that_leaves_within_a_head_leaves_nothing)
