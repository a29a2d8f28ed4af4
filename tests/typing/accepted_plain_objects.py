"""Anything with start() and stop() is a service, whatever these return."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import assert_type

from servicegroup import ServiceGroup


class Plain:
    port = 80

    def start(self) -> int:
        return self.port

    def stop(self, hard: bool = False) -> str:
        return "hard" if hard else "soft"


class Poller(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()

    def run(self) -> None:
        self.stopping.wait()

    def stop(self) -> None:
        self.stopping.set()


class Server(ThreadingHTTPServer):
    def start(self) -> None:
        self.serve_forever()

    def stop(self) -> None:
        self.shutdown()


group = ServiceGroup()
plain = group.add(Plain())
assert_type(plain, Plain)
assert_type(plain.port, int)
assert_type(group.add(Poller(), ready_when="returned"), Poller)
with Server(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
    assert_type(group.add(server), Server)
