"""The programs in examples/, run for real."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import attrs
import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PATIENCE = 60.0  # far more than anything here takes
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}"}


@attrs.frozen
class Running:
    """examples/morning_evening.py while it runs, on ports of its own."""

    child: subprocess.Popen[str]
    morning: int
    evening: int
    opened: ExitStack

    def connect(self, port: int | None = None) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.morning, timeout=PATIENCE)
        self.opened.callback(connection.close)
        connection.connect()
        return connection

    def end(self, number: int) -> str:
        """Send a signal; what was printed from now on."""
        self.child.send_signal(number)
        return self.rest()

    def rest(self) -> str:
        output = stream(self.child).read()
        assert self.child.wait(PATIENCE) == 0, output
        return output


def stream(child: subprocess.Popen[str]) -> IO[str]:
    assert child.stdout is not None
    return child.stdout


@contextmanager
def start(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        guard = threading.Timer(PATIENCE, child.kill)
        guard.start()
        try:
            yield child
        finally:
            guard.cancel()
            child.kill()


@pytest.fixture
def program() -> Iterator[Running]:
    path = str(EXAMPLES / "morning_evening.py")
    with start(path, MORNING_PORT="0", EVENING_PORT="0") as child, ExitStack() as opened:
        ports: list[int] = []
        output = ""
        for line in stream(child):
            output += line
            ports += map(int, re.findall(r"http://127\.0\.0\.1:(\d+)/", line))
            if "day: ready" in line:
                break
        assert len(ports) == 2, output
        yield Running(child, ports[0], ports[1], opened)


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    return answer(connection)


def answer(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
    response = connection.getresponse()
    return response.status, response.read()


def seconds_to_stop(output: str, service: str) -> float:
    found = re.search(rf"day: {service}: stopped after ([\d.]+) s", output)
    assert found, output
    return float(found[1])


def test_both_answer_and_the_last_one_is_stopped_first(program: Running) -> None:
    assert ask(program.connect(program.morning), "/morning") == (200, b"good morning\n")
    assert ask(program.connect(program.evening), "/evening") == (200, b"good evening\n")
    assert ask(program.connect(program.evening), "/morning") == (404, b"not here\n")

    output = program.end(signal.SIGTERM)

    assert re.findall(r"day: (\w+): (stopping|stopped)", output) == [
        ("evening", "stopping"),
        ("evening", "stopped"),
        ("morning", "stopping"),
        ("morning", "stopped"),
    ]
    assert re.search(r"group 'day' ended after .* s, exit code 0: SIGTERM\n", output)
    assert re.search(r"^  morning  stopped .*\n  evening  stopped ", output, re.MULTILINE)


def test_many_requests_on_one_connection(program: Running) -> None:
    connection = program.connect()
    for _ in range(3):
        mine = connection.sock.getsockname()
        assert ask(connection, "/morning") == (200, b"good morning\n")
        assert connection.sock.getsockname() == mine
    program.end(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_whole(program: Running, number: signal.Signals) -> None:
    connection = program.connect()
    connection.request("GET", "/morning?seconds=1.2")  # longer than drain_delay

    program.child.send_signal(number)

    assert answer(connection) == (200, b"good morning\n")
    program.rest()


def test_a_client_that_has_connected_and_said_nothing_yet_is_answered(program: Running) -> None:
    connection = program.connect()
    program.child.send_signal(signal.SIGINT)
    for line in stream(program.child):
        if "day: morning: stopping" in line:
            break
    assert ask(connection, "/morning") == (200, b"good morning\n")
    program.rest()


def test_who_waits_to_be_accepted_is_answered(program: Running) -> None:
    kept_alive = program.connect()
    assert ask(kept_alive, "/morning") == (200, b"good morning\n")
    program.child.send_signal(signal.SIGSTOP)  # so that nobody is accepted before the signal
    waiting = [program.connect() for _ in range(50)]
    for connection in (*waiting, kept_alive):
        connection.request("GET", "/morning")

    program.child.send_signal(signal.SIGINT)
    program.child.send_signal(signal.SIGCONT)

    for connection in (*waiting, kept_alive):
        assert answer(connection) == (200, b"good morning\n")
    program.rest()


def test_an_idle_connection_does_not_hold_the_stop_up(program: Running) -> None:
    connection = program.connect()
    assert ask(connection, "/morning") == (200, b"good morning\n")

    output = program.end(signal.SIGINT)

    assert seconds_to_stop(output, "morning") < 1.5  # a silent new client would have two
    assert connection.sock.recv(1) == b""


def test_while_draining_clients_are_asked_to_go(program: Running) -> None:
    connection = program.connect()
    assert ask(connection, "/morning") == (200, b"good morning\n")
    program.child.send_signal(signal.SIGTERM)
    for line in stream(program.child):
        if "day: draining" in line:
            break
    # The event is told before drain() has been called, so this may be one request too early.
    closing = False
    while not closing:
        connection.request("GET", "/morning")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"good morning\n")
        closing = response.headers["Connection"] == "close"
    program.rest()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = str(EXAMPLES / "morning_evening.py")
        with start(path, MORNING_PORT="0", EVENING_PORT=str(port)) as child:
            output = stream(child).read()
            assert child.wait(PATIENCE) == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in output
    assert "in service 'evening', while starting" in output
    assert "day: morning: stopped" in output


def test_a_server_told_to_end_before_it_serves_does_not_serve() -> None:
    code = (
        "from gentle_server import GentleServer\n"
        "server = GentleServer('127.0.0.1', 0, lambda path: (200, path))\n"
        "server.end()\n"
        "server.end()\n"
        "server.open()\n"
        "server.serve()\n"
        "server.end()\n"
    )
    with start("-c", code) as child:
        output = stream(child).read()
        assert child.wait(PATIENCE) == 0, output


def test_the_demo_loses_nothing() -> None:
    with start(str(EXAMPLES / "demo.py")) as child:
        output = stream(child).read()
        assert child.wait(PATIENCE) == 0, output
    assert re.search(r"^ +0 requests lost$", output, re.MULTILINE), output
    assert "stopped: first evening, then morning" in output
