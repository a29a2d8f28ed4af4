"""Calls a gRPC server, as wrk asks an HTTP server: one call after the other on each connection.

The arguments are the port, how many connections, and for how many seconds. It prints the calls a
second, and the 99th percentile of the seconds that each took. With the library's own client, this
program would be slower than the server, and measure itself: so it writes the frames of HTTP/2.
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys
import time

from benchmarks.programs.answers import BODY, GRPC_METHOD, GRPC_SERVICE
from benchmarks.statistic import percentile

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
ACK, END_STREAM, END_HEADERS = 0x1, 0x1, 0x4
HEAD = 9  # bytes of a frame before what it carries


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


# HPACK by the numbers of its static table, and nothing that would have to be kept.
ASKED = (
    b"\x83\x86"  # POST, http
    + (b"\x04" + text(f"/{GRPC_SERVICE}/{GRPC_METHOD}"))
    + (b"\x01" + text("localhost"))
    + (b"\x0f\x10" + text("application/grpc"))
    + (b"\x00" + text("te") + text("trailers"))
)
MESSAGE = struct.pack(">BI", 0, len(BODY)) + BODY


class Connection:
    def __init__(self, port: int, took: list[float]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.took = took
        self.received = b""
        self.stream = -1
        # All that will ever be answered may be sent.
        window = frame(WINDOW, 0, 0, struct.pack(">I", 2**31 - 2**16))
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0) + window)
        self.ask()

    def ask(self) -> None:
        self.stream += 2
        self.answered = 0
        self.begun = time.perf_counter()
        self.socket.sendall(
            frame(HEADERS, END_HEADERS, self.stream, ASKED)
            + frame(DATA, END_STREAM, self.stream, MESSAGE)
        )

    def read(self) -> None:
        received = self.received + self.socket.recv(65536)
        if received == self.received:
            raise SystemExit("the server hung up")
        at = 0
        while len(received) >= at + HEAD:
            size = int.from_bytes(received[at : at + 3], "big")
            if len(received) < at + HEAD + size:
                break
            kind, flags, _stream = struct.unpack_from(">BBI", received, at + 3)
            self._take(kind, flags, received[at + HEAD : at + HEAD + size])
            at += HEAD + size
        self.received = received[at:]

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == DATA:
            self.answered += len(payload)
        elif kind == HEADERS and flags & END_STREAM:
            if self.answered != len(MESSAGE):
                raise SystemExit(f"an answer was wrong: {payload!r}")
            self.took.append(time.perf_counter() - self.begun)
            self.ask()
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind in (RESET, GOAWAY):
            raise SystemExit(f"the server refuses: {payload!r}")


def main() -> None:
    port, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    took: list[float] = []
    begun = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            connection = Connection(port, took)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while time.perf_counter() < begun + seconds:
            for key, _events in selector.select(seconds):
                key.data.read()
    if not took:
        raise SystemExit("no call was answered")
    print(len(took) / (time.perf_counter() - begun), percentile(took, 99))


if __name__ == "__main__":
    main()
