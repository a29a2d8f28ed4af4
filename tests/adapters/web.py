"""A web server in a process of its own, and clients that count what becomes of their requests."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from attrs import Factory, define

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 30.0  # seconds, far more than anything here takes

# What a program may do before it begins, so that nothing goes by a time that a busy machine does
# not keep. First: a drain lasts until `end_drain()`, and who has connected may be long silent.
UNHURRIED = """
from servicegroup import ServiceGroup
from servicegroup.adapters import _drain

def run(group, run=ServiceGroup.run):
    def end_drain():
        os.read(0, 1)
        group._run.post(group._run.on_stop, "the drain is to end", True)

    threading.Thread(target=end_drain, daemon=True).start()
    run(group)

ServiceGroup.run = run
_drain.FIRST_WORD = 20.0
"""
LONG_DRAIN: dict[str, Any] = {"drain_delay": 100.0, "shutdown_timeout": 140.0}
# Far longer than `end()` waits, so that who is waited for until then is a failure.
LONG_STOP: dict[str, Any] = {"stop_timeout": 100.0, "shutdown_timeout": 120.0}
# Second: what is in flight is cut after an eighth of the time to stop, and the rest is for telling
# of it. Who hangs says so.
CUT_EARLY = """
from servicegroup import _aio_service
from servicegroup.adapters import _drain, _loop_server
from tests.adapters.programs import common

def hang():
    print("hanging", flush=True)
    threading.Event().wait()

common.hang = hang
_drain.seconds_to_drain = lambda remaining: remaining / 8
_loop_server.CUT_SHARE = _aio_service.CANCEL_SHARE = 1 / 8
"""
_RUN = """
import os, runpy, sys, threading
program, first = sys.argv.pop(1), sys.argv.pop(1)
exec(first)
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


class Target:
    """Where clients send their requests."""

    address: tuple[str, int]
    tls: ssl.SSLContext | None = None
    signalled_at = float("inf")  # before then, no connection is refused

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=PATIENCE)
        return connection if self.tls is None else self.tls.wrap_socket(connection)

    def http(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection(*self.address, timeout=PATIENCE, context=self.tls)
        return http.client.HTTPConnection(*self.address, timeout=PATIENCE)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = self.http()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class Web(Target):
    """`tests/adapters/programs/NAME.py`, once it is ready; it does what `first` says before."""

    def __init__(
        self, program: str, *, server: object = None, first: str = "", **group: object
    ) -> None:
        options = {"server": server or {}, "group": group}
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the whole
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _RUN),
                *(f"tests.adapters.programs.{program}", first, json.dumps(options)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        try:
            self.url = self._line_with("ready").split()[1]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.address = (parts.hostname, parts.port)
        self.tls = ssl._create_unverified_context() if parts.scheme == "https" else None

    def _line_with(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if word in line:
                return line
        raise AssertionError(f"{word!r} was never said; {self.stderr}")

    def wait_for(self, event: str) -> None:
        """Until the group says so."""
        self._line_with(event)

    def terminate(self) -> None:
        self.signalled_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)

    def end_drain(self) -> None:
        """For one that is `UNHURRIED`."""
        assert self.process.stdin is not None
        self.process.stdin.write("!")
        self.process.stdin.flush()

    def end(self) -> int:
        """Wait for its end; its exit code."""
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self._stderr.close()


@define
class Tally:
    """What became of one client's requests.

    Attributes:
        answered: whole and right.
        repeated: sent again, since the server closed a connection that had served before just when
            the request was sent; not a byte came back.
        refused: the connection was not accepted, so nothing was sent.
        lost: anything else.
        closing: answers after which the connection was to be closed.
    """

    answered: int = 0
    repeated: int = 0
    refused: int = 0
    lost: list[str] = Factory(list)
    closing: int = 0


class Client(threading.Thread):
    """Sends one request after the other until it is refused, loses one, or is told to end."""

    def __init__(self, web: Target, *, keep_alive: bool, path: str = "/hello") -> None:
        super().__init__(daemon=True)
        self.tally = Tally()
        self.told_to_end = False
        self._web = web
        self._path = path
        self._headers = {} if keep_alive else {"Connection": "close"}
        self._expected = b"hello" if path == "/hello" else b"slow"

    def run(self) -> None:
        connection = self._web.http()
        try:
            while not self.told_to_end and self._request(connection):
                time.sleep(random.uniform(0, 0.003))
        finally:
            connection.close()

    def _request(self, connection: http.client.HTTPConnection) -> bool:
        tally = self.tally
        reused = connection.sock is not None
        try:
            if not reused:
                connection.connect()
        except ConnectionRefusedError:
            tally.refused += 1
            if time.monotonic() < self._web.signalled_at:
                tally.lost.append("refused before the signal")
            return False
        except OSError as error:
            tally.lost.append(f"connecting: {error!r}")
            return False
        try:
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if reused and isinstance(error, ConnectionError):
                tally.repeated += 1
                return True
            tally.lost.append(f"{'reused' if reused else 'new'} connection: {error!r}")
            return False
        try:
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            tally.lost.append(f"reading: {error!r}")
            return False
        tally.closing += bool(self._headers) or response.headers["Connection"] == "close"
        if self._headers:
            connection.close()
        if (response.status, body) != (200, self._expected):
            tally.lost.append(f"answered {response.status} {body!r}")
            return False
        tally.answered += 1
        return True


def load(web: Target, *, reusing: int = 6, connecting: int = 2, slow: int = 1) -> list[Client]:
    """Clients at work, of each kind."""
    clients = [Client(web, keep_alive=True) for _ in range(reusing)]
    clients += [Client(web, keep_alive=False) for _ in range(connecting)]
    clients += [Client(web, keep_alive=True, path="/slow?seconds=0.2") for _ in range(slow)]
    for client in clients:
        client.start()
    return clients


def total(clients: list[Client]) -> Tally:
    """What became of all their requests, once they have ended."""
    whole = Tally()
    for client in clients:
        client.join(PATIENCE)
        assert not client.is_alive()
        whole.answered += client.tally.answered
        whole.repeated += client.tally.repeated
        whole.refused += client.tally.refused
        whole.lost += client.tally.lost
    return whole


@contextmanager
def held_port() -> Iterator[int]:
    """A port that nobody else is given, though nobody may be listening just now.

    Only who sets SO_REUSEADDR can listen to it, as servers do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port


def is_free(port: int) -> bool:
    """Whether a server could listen to `port` of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def threads_of(process: subprocess.Popen[str]) -> int:
    return len(os.listdir(f"/proc/{process.pid}/task"))
