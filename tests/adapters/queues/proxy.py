"""A TCP proxy between a consumer and its broker that does what networks do."""

from __future__ import annotations

import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the end is an RST


class Proxy:
    """Listens on `port`, and passes everything on to `target` on this machine, and back.

    Attributes:
        seconds: how long each piece is held up.
        size: bytes of each piece.
        open: cleared, nothing passes: a black hole.
    """

    def __init__(self, target: int) -> None:
        self.seconds = 0.0
        self.size = 65536
        self.open = threading.Event()
        self.open.set()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.open.set()
        self.reset()

    def reset(self) -> int:
        """Reset all connections; how many there were."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
        return len(sockets) // 2

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                continue
            with self._lock:
                self._sockets |= {client, server}
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(self.size):
                self.open.wait()
                if self.seconds:
                    time.sleep(self.seconds)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other direction closes both
        with self._lock:
            done = one in self._sockets and one.fileno() >= 0
            self._sockets.discard(one)
        if done:
            one.close()
