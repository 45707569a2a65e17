#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Clients that people use, on connections that they keep, while the server reloads."""
import http.client
import subprocess
import threading

from harness import Master, check, deadline, equal, need, pattern, run, wait_until

RELOADS = 10

NODE = r"""
// Keep-alive sockets of Node's own agent: none may be closed, none may be opened again.
const http = require('http');
const agent = new http.Agent({keepAlive: true, maxSockets: 4});
let left = 800, sockets = new Set(), failed = 0;
function one() {
  if (left-- <= 0) return;
  const body = left % 2 ? Buffer.alloc(left * 7, 'n') : null;
  const options = {port: +process.argv[1], path: body ? '/echo' : '/bytes/100', agent,
    method: body ? 'POST' : 'GET'};
  const request = http.request(options, response => {
    const parts = [];
    response.on('data', part => parts.push(part));
    response.on('end', () => {
      const got = Buffer.concat(parts);
      if (response.statusCode !== 200 || got.length !== (body ? body.length : 100)) failed++;
      one();
    });
  });
  request.on('socket', socket => sockets.add(socket));
  request.on('error', () => { failed++; one(); });
  request.end(body);
}
for (let i = 0; i < 4; i++) one();
process.on('exit', () => console.log(JSON.stringify({failed, sockets: sockets.size})));
"""


def while_reloading(master, command):
    """Runs the client, reloads until it has ended, and returns what it printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed = []
    reader = threading.Thread(target=lambda: printed.append(process.stdout.read()))
    reader.start()
    try:
        n = 0
        while process.poll() is None or n < RELOADS:
            master.reload()
            n += 1
    finally:
        if process.poll() is None:
            process.kill()
        reader.join()
        process.wait()
    equal(process.returncode, 0, printed[0])
    return printed[0]


def nothing_was_lost(master):
    status = master.check_sums()
    equal([status["requests"][name] for name in ("failed", "refused", "replayed")], [0, 0, 0])
    equal(status["connections"]["dropped"], 0)
    return status


@deadline(60)
def curl_keeps_its_connection():
    curl, master = need("curl"), Master()
    urls = [f"http://127.0.0.1:{master.port}/bytes/{n}" for n in range(300)]
    printed = while_reloading(
        master, [curl, "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{num_connects}\\n"] +
        [word for url in urls for word in ("-o", "/dev/null", url)][2:])
    lines = [line.split() for line in printed.splitlines()]
    equal([(code, size) for code, size, _ in lines], [("200", str(n)) for n in range(300)])
    equal(sum(int(connects) for _, _, connects in lines), 1, "connections made:")
    nothing_was_lost(master)
    master.stop()


@deadline(60)
def wrk_sees_no_error():
    wrk, master = need("wrk"), Master()
    printed = while_reloading(master, [wrk, "-t", "1", "-c", "32", "-d", "3", f"http://127.0.0.1:{master.port}/"])
    check("Socket errors" not in printed and "Non-2xx" not in printed, printed)
    status = nothing_was_lost(master)
    # wrk opens one more, to see whether the server is there.
    check(status["connections"]["accepted"] <= 33, "connections made:", status["connections"]["accepted"])
    master.stop()


@deadline(60)
def nodes_agent_keeps_its_sockets():
    node, master = need("node"), Master()
    printed = while_reloading(master, [node, "-e", NODE, str(master.port)])
    equal(printed.strip().splitlines()[-1], '{"failed":0,"sockets":4}')
    nothing_was_lost(master)
    master.stop()


@deadline(60)
def pythons_http_client_keeps_its_connection():
    master = Master()
    connection = http.client.HTTPConnection("127.0.0.1", master.port, timeout=20)
    connection.connect()
    kept = connection.sock
    for n in range(200):
        if n % (200 // RELOADS) == 0:
            master.reload()
        if n % 2:
            connection.request("POST", "/echo", body=(pattern(10) for _ in range(n)), encode_chunked=True,
                               headers={"Transfer-Encoding": "chunked"})
            wanted = pattern(10) * n
        else:
            connection.request("GET", f"/bytes/{n}")
            wanted = pattern(n)
        response = connection.getresponse()
        equal(response.status, 200)
        equal(response.read(), wanted)
        check(connection.sock is kept, "the connection was given up after request", n)
    connection.close()
    wait_until(lambda: master.status()["connections"]["open"] == 0, 5, "it is closed")
    nothing_was_lost(master)
    master.stop()


run(curl_keeps_its_connection, wrk_sees_no_error, nodes_agent_keeps_its_sockets,
    pythons_http_client_keeps_its_connection)
