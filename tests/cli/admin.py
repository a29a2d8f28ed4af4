"""Groups with an admin server, and servers that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest import mock

import attrs

from servicegroup import Service, ServiceGroup
from servicegroup.observe import admin as module
from servicegroup.observe.admin import AdminServer
from servicegroup.observe.health import Health
from tests.child import PATIENCE


class Waits(Service):
    def start(self) -> None:
        self.stopping.wait()


@attrs.frozen
class Running:
    """A group that is seen by its admin server."""

    group: ServiceGroup
    admin: AdminServer

    @property
    def port(self) -> str:
        return str(self.admin.port)


@contextmanager
def running(*services: Service) -> Iterator[Running]:
    """A group of them while it runs, ready; its limits are far, for threads that come late."""
    group = ServiceGroup(name="shop", stop_timeout=3 * PATIENCE, shutdown_timeout=9 * PATIENCE)
    health = Health(group, check_timeout=PATIENCE)
    admin = group.add(AdminServer(group, port=0, health=health))
    for service in services:
        group.add(service)
    with mock.patch.multiple(module, TELL_SECONDS=PATIENCE, LAST_SECONDS=PATIENCE), group:
        yield Running(group, admin)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """The port of a server that gives each connection the next of these, the last one on and on."""
    left = list(answers)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):  # its client was first
                        connection.recv(65536)
                        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def ok(body: bytes, kind: bytes = b"application/json") -> bytes:
    """An answer with 200."""
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %s\r\n\r\n%s" % (kind, body)
