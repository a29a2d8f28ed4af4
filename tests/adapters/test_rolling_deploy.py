"""Two processes behind a real proxy, restarted one after the other under load."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.adapters.test_http_servers import SERVERS, SHORT, wait_for_each
from tests.adapters.web import (
    LONG_DRAIN,
    PATIENCE,
    UNHURRIED,
    Target,
    Web,
    held_port,
    load,
    total,
)
from tests.debian import require

# No request is sent twice by the proxy: one that fails, fails at the client.
CONFIGURATION = """
global
    stats socket {admin} mode 600 level user
defaults
    mode http
    retries 0
    timeout connect 10s
    timeout check 10s
    timeout client 30s
    timeout server 30s
frontend web
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    option httpchk GET /ready
    http-check expect status 200
    default-server check inter 50ms fall 1 rise 1
    server a 127.0.0.1:{a}
    server b 127.0.0.1:{b}
"""


class Proxy(Target):
    """HAProxy before two ports."""

    def __init__(self, directory: Path, port: int, ports: dict[str, int]) -> None:
        self._admin = directory / "admin"
        self.address = ("127.0.0.1", port)
        path = directory / "haproxy.cfg"
        path.write_text(
            CONFIGURATION.format(
                admin=self._admin, port=self.address[1], a=ports["a"], b=ports["b"]
            )
        )
        self.process = subprocess.Popen(
            [require("haproxy"), "-q", "-db", "-f", str(path)], stderr=subprocess.DEVNULL
        )

    def wait_for(self, **wanted: str) -> None:
        """Until it sees servers as wanted, UP or DOWN."""
        until = time.monotonic() + PATIENCE
        while not all(self._state(server) == state for server, state in wanted.items()):
            assert time.monotonic() < until, wanted
            time.sleep(0.01)

    def _state(self, server: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self._admin))
                client.sendall(b"show stat\n")
                text = client.makefile().read()
        except OSError:
            return ""
        rows = [line.split(",") for line in text.splitlines()]
        return next((row[17] for row in rows if row[:2] == ["servers", server]), "")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def deployed(directory: Path, program: str) -> Iterator[tuple[Proxy, dict[str, Web]]]:
    with ExitStack() as stack:
        ports = {name: stack.enter_context(held_port()) for name in ("a", "b")}
        proxy = Proxy(directory, stack.enter_context(held_port()), ports)
        stack.callback(proxy.end)
        webs = {name: start(program, port) for name, port in ports.items()}
        try:
            proxy.wait_for(a="UP", b="UP")
            yield proxy, webs
        finally:
            for web in webs.values():
                web.__exit__(None, None, None)


def start(program: str, port: int) -> Web:
    return Web(program, server={"port": port}, first=UNHURRIED, **LONG_DRAIN)


def deploy(directory: Path, program: str, times: int) -> None:
    with deployed(directory, program) as (proxy, webs):
        clients = load(proxy)
        for _ in range(times):
            for name in webs:
                old = webs[name]
                old.terminate()
                proxy.wait_for(**{name: "DOWN"})
                old.end_drain()
                assert old.end() == 0
                webs[name] = start(program, old.address[1])
                old.__exit__(None, None, None)
                proxy.wait_for(a="UP", b="UP")
        wait_for_each(clients, lambda tally: tally.answered > 12)
        for client in clients:
            client.told_to_end = True
        whole = total(clients)
        assert whole.lost == []
        assert whole.repeated == 0
        assert whole.refused == 0
        assert whole.answered > 100


@pytest.mark.parametrize("program", SHORT)
def test_no_request_fails_while_two_processes_are_restarted(program: str, tmp_path: Path) -> None:
    deploy(tmp_path, program, 1)


@pytest.mark.slow
@pytest.mark.parametrize("program", SERVERS)
def test_no_request_fails_in_many_deploys(program: str, tmp_path: Path) -> None:
    deploy(tmp_path, program, 4)  # on each of three interpreters
