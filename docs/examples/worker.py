#!/usr/bin/python3
# SPDX-License-Identifier: MIT
# SPDX-FileCopyrightText: the up-master authors
"""A worker in another language, written from up-protocol(7) alone.

    up-master --native -- ./worker.py

It serves one request after the other and answers with the method, the target and the length of the
body. A client that is slow holds up the others, and pings: good enough to show the protocol.
"""
import array
import mmap
import os
import select
import signal
import socket
import struct
import sys

VERSION = 1
SETUP, PING, READY, PONG = 1, 2, 16, 17
LEND, RECALL, LAST, RETURN = 32, 33, 34, 48
KEEP, CLOSE, UNSERVED, GONE = 1, 2, 3, 5
KEEP_ALIVE, EXPECT = 0x01, 0x02
BODY_CHUNKED = 2

HEADER = struct.Struct("=HHIII")
RECORD = struct.Struct("=HHI")
NUMBER = struct.Struct("=HHIQ")
SETUP_FIELDS = struct.Struct("=IIIIII")
LEND_FIELDS = struct.Struct("=QQQQIIIIIIHHHBB")
RETURN_FIELDS = struct.Struct("=HHIQQQQIIIIHB5x")
TIMEOUT_MS = 60000


def receive(channel):
    """The records of one message and its descriptors."""
    fds = array.array("i")
    room = socket.CMSG_SPACE(4 * 253)
    data, ancillary, _, _ = channel.recvmsg(204800, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, bytes_ in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(bytes_[: len(bytes_) // 4 * 4])
    if not data:
        sys.exit(1)  # the master is gone
    version, n_records, length, _, _ = HEADER.unpack_from(data)
    if version != VERSION or length != len(data):
        sys.exit("another version of the protocol")
    records, at = [], HEADER.size
    for _ in range(n_records):
        kind, flags, length = RECORD.unpack_from(data, at)
        records.append((kind, flags, data[at + RECORD.size : at + length]))
        at += (length + 7) // 8 * 8
    return records, list(fds)


def send(channel, n_taken, *records):
    """One message; waits where the channel is full."""
    body = b"".join(record + bytes(-len(record) % 8) for record in records)
    message = HEADER.pack(VERSION, len(records), HEADER.size + len(body), n_taken, 0) + body
    while True:
        try:
            channel.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
        except BlockingIOError:
            select.select([], [channel], [])


def wait_for(fd, event):
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(TIMEOUT_MS):
        raise TimeoutError


def read_some(client, most):
    while True:
        try:
            data = client.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            wait_for(client, select.POLLIN)
            continue
        if not data:
            raise ConnectionError
        return len(data)


class Channel:
    """A lending channel and its page."""

    def __init__(self, fd, page_fd, n_slots):
        self.socket = socket.socket(fileno=fd)
        self.page = mmap.mmap(page_fd, n_slots * 16)
        os.close(page_fd)
        self.n_taken = 0
        self.last = False

    def serve(self, flags, data, fd):
        self.n_taken += 1
        fields = LEND_FIELDS.unpack_from(data)
        (request_id, _, _, body_len, slot, head_len, ahead_len, _, _, target_len,
         method_len, peer_len, local_len, body, minor) = fields
        if fd is None:
            self.give_back(request_id, slot, UNSERVED, 0, 0, 0)
            return
        struct.pack_into("=I", self.page, slot * 16 + 8, 1)  # taken
        head = data[LEND_FIELDS.size + peer_len + local_len :][:head_len]
        method = head[:method_len]
        target = head[method_len + 1 :][:target_len]
        read = written = status = 0
        client = socket.socket(fileno=fd)
        try:
            # The end of a chunked body is not looked for here, so the connection can't go on; nor
            # where bytes came behind the wish to upgrade, which is declined.
            keep = flags & KEEP_ALIVE and body != BODY_CHUNKED and ahead_len <= body_len
            if flags & EXPECT and body != BODY_CHUNKED:
                written += self.write(client, b"HTTP/1.1 100 Continue\r\n\r\n")
            if body != BODY_CHUNKED:
                while ahead_len + read < body_len:
                    read += read_some(client, min(65536, body_len - ahead_len - read))
            content = b"%s %s, %d bytes\n" % (method, target, ahead_len + read)
            response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(content)
            if not keep or minor == 0:
                response += b"Connection: %s\r\n" % (b"keep-alive" if keep else b"close")
            response += b"\r\n" + (b"" if method == b"HEAD" else content)
            struct.pack_into("=Q", self.page, slot * 16, written + len(response))  # end
            written += self.write(client, response)
            status, disposition = 200, KEEP if keep else CLOSE
        except OSError:
            disposition = GONE
        client.close()
        self.give_back(request_id, slot, disposition, written, read, status)

    @staticmethod
    def write(client, data):
        sent = 0
        while sent < len(data):
            try:
                sent += client.send(data[sent:], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                wait_for(client, select.POLLOUT)
        return sent

    def give_back(self, request_id, slot, disposition, written, read, status):
        record = (RETURN, 0, RETURN_FIELDS.size, request_id, written, read, 0, slot, 0, 0, 0)
        packed = RETURN_FIELDS.pack(*record, status, disposition)
        send(self.socket, self.n_taken & 0xFFFFFFFF, packed)

    def take_message(self):
        records, fds = receive(self.socket)
        for kind, flags, data in records:
            if kind == LEND:
                self.serve(flags, data, fds.pop(0) if fds else None)
            elif kind == LAST:
                self.last = True
            elif kind != RECALL:  # one that is recalled has been returned already
                sys.exit("an unexpected record")


def main():
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    control = socket.socket(fileno=3)
    control.set_inheritable(False)
    select.select([control], [], [])
    records, fds = receive(control)
    if records[0][0] != SETUP:
        sys.exit("no set-up")
    n_channels, n_slots, _, _, _, _ = SETUP_FIELDS.unpack(records[0][2])
    channels = [Channel(fds[2 * i], fds[2 * i + 1], n_slots) for i in range(n_channels)]
    send(control, 0, NUMBER.pack(READY, 0, NUMBER.size, 0))
    while not all(channel.last for channel in channels):
        ready = select.select([control] + [channel.socket for channel in channels], [], [])[0]
        for channel in channels:
            if channel.socket in ready:
                channel.take_message()
        if control in ready:
            for kind, _, data in receive(control)[0]:
                if kind == PING:
                    send(control, 0, NUMBER.pack(PONG, 0, NUMBER.size, *struct.unpack("=Q", data)))


main()
