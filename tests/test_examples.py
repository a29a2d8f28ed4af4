"""The programs in examples/, run for real."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

import attrs
import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest as Asked
from grpc_health.v1.health_pb2 import HealthCheckResponse as Told

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PATIENCE = 60.0  # far more than anything here takes
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}"}
# The program, with a server that lets a new client be silent for far longer than two seconds: a
# client here may have to wait for a processor.
PATIENT = f"""
import runpy
import gentle_server

gentle_server.Handler.timeout = {PATIENCE}
runpy.run_path({str(EXAMPLES / "morning_evening.py")!r}, run_name="__main__")
"""


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
        cwd=ROOT,
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
    with start("-c", PATIENT, MORNING_PORT="0", EVENING_PORT="0") as child, ExitStack() as opened:
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

    assert seconds_to_stop(output, "morning") < 10  # a silent new client would have a minute
    assert connection.sock.recv(1) == b""


def test_while_draining_clients_are_asked_to_go(program: Running) -> None:
    sock = program.connect().sock
    # Sent ahead, so that one is in flight whenever the drain comes.
    sock.sendall(b"GET /morning?seconds=0.1 HTTP/1.1\r\n\r\n" * 60)
    program.child.send_signal(signal.SIGTERM)
    with sock.makefile("rb") as file:
        *_, headers, body = file.read().split(b"\r\n\r\n")
    assert b"HTTP/1.1 200 OK\r\n" in headers
    assert b"\r\nConnection: close" in headers
    assert body == b"good morning\n"
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


def test_the_demo_loses_nothing_and_writes_a_report(tmp_path: Path) -> None:
    file = tmp_path / "day.json"
    program = tmp_path / "patient.py"
    program.write_text(PATIENT)
    code = f"import sys, demo; demo.PROGRAM = {str(program)!r}; sys.exit(demo.main())"
    with start("-c", code, "--report", str(file)) as child:
        output = stream(child).read()
        assert child.wait(PATIENCE) == 0, output
    assert re.search(r"^ +0 requests lost$", output, re.MULTILINE), output
    assert "stopped: first evening, then morning" in output
    report = json.loads(file.read_text())
    assert (report["name"], report["reason"], report["exit_code"]) == ("day", "SIGTERM", 0)
    assert [one["name"] for one in report["services"]] == ["morning", "evening"]


@pytest.mark.parametrize(
    ("file", "said"),
    [("day.yaml", "'day.yaml' must end in .json"), ("nowhere/day.json", "make it before")],
)
def test_the_demo_refuses_a_report_that_it_could_not_write(file: str, said: str) -> None:
    with start(str(EXAMPLES / "demo.py"), "--report", file) as child:
        output = stream(child).read()
        assert child.wait(PATIENCE) != 0, output
    assert said in output


# -- one server each ------------------------------------------------------------------------------


@contextmanager
def serving(
    example: str,
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """An example that serves, and the ports that it named."""
    path = str(EXAMPLES / f"{example}.py")
    with start(path, PORT="0", ADMIN_PORT="0") as child:
        line = ""
        for line in stream(child):
            if line.startswith("serving at"):
                break
        yield child, [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", line)]


def terminate(child: subprocess.Popen[str]) -> str:
    """What it prints to its end, which is a good one."""
    child.send_signal(signal.SIGTERM)
    output = stream(child).read()
    assert child.wait(PATIENCE) == 0, output
    assert "exit code 0: SIGTERM" in output
    assert " cut " not in output
    return output


def request(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request(method, path)
        return answer(connection)


@pytest.mark.parametrize(
    ("example", "path", "done"),
    [
        ("fastapi_app", "/orders/{}", "order {} is packed"),
        ("flask_app", "/mails/{}", "mail for {} is sent"),
    ],
)
def test_what_was_taken_is_done_before_the_end(example: str, path: str, done: str) -> None:
    with serving(example) as (child, (port,)):
        assert request(port, "/ready")[0] == 200
        for number in range(20):
            assert request(port, path.format(number), "POST")[0] == 202
        output = terminate(child)
    for number in range(20):
        assert done.format(number) in output


def test_an_endless_answer_ends_whole() -> None:
    with serving("starlette_app") as (child, (port,)):
        assert request(port, "/ready") == (200, b"")
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with closing(client):
            client.request("GET", "/ticks")
            response = client.getresponse()
            assert response.readline() == b"data: tick\n"
            terminate(child)
            assert response.read().endswith(b"data: tick\n\n")


def test_two_aiohttp_applications_answer() -> None:
    with serving("aiohttp_app") as (child, (shop, admin)):
        assert request(shop, "/") == (200, b"hello\n")
        assert request(admin, "/ready") == (200, b"")
        assert request(shop, "/ready")[0] == 404
        terminate(child)


def test_a_grpc_server_answers_and_says_when_to_look_away() -> None:
    with (
        serving("grpc_app") as (child, (port,)),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        greet: Callable[..., bytes] = channel.unary_unary("/shop.Greeter/Greet")
        assert greet(b"you", timeout=PATIENCE) == b"hello you"
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type knows no Watch
        health = stub.Watch(Asked(service="shop.Greeter"), timeout=PATIENCE)
        assert next(health).status == Told.SERVING
        child.send_signal(signal.SIGTERM)
        assert next(health).status == Told.NOT_SERVING
        output = stream(child).read()
        assert child.wait(PATIENCE) == 0, output


# A program that does not say which ports it got, made to.
TELLING = """
import runpy
from servicegroup import ServiceGroup

def tell(event):
    if type(event).__name__ == "GroupReady":
        for service in group.services.values():
            print(service.url.rpartition(":")[2], flush=True)

def run(self):
    global group
    group = self
    group.subscribe(tell)
    run_group(group)

run_group, ServiceGroup.run = ServiceGroup.run, run
runpy.run_path({path!r}, run_name="__main__")
"""


def test_two_services_are_ten_lines_and_answer() -> None:
    path = EXAMPLES / "two_services.py"
    _, _, code = path.read_text().rpartition('"""')
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    with start("-c", TELLING.format(path=str(path)), "0", "0") as child:
        ports = [int(stream(child).readline()) for _ in range(2)]
        for port, name in zip(ports, ("docs/servers.md", "examples/demo.py"), strict=True):
            found = request(port, f"/{Path(name).name}")
            assert found == (200, (ROOT / name).read_bytes())
        terminate(child)


def test_an_existing_server_object_is_a_service() -> None:
    with serving("existing_server") as (child, (port,)):
        with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}") as server:
            assert "system.listMethods" in str(server.system.listMethods())
        terminate(child)
