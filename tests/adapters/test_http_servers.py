"""What every HTTP server keeps to, as a service in a process of its own, over real sockets."""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from servicegroup.adapters._drain import seconds_to_drain
from tests.adapters.web import (
    CUT_EARLY,
    LONG_DRAIN,
    LONG_STOP,
    PATIENCE,
    UNHURRIED,
    Client,
    Tally,
    Web,
    is_free,
    load,
    total,
)
from tests.fake_time import wait_until

SERVERS = ["socketserver", "asgi", "asgi_h11", "aiohttp", "wsgi"]

# All of them on every interpreter; two in the short run.
SHORT = ("socketserver", "asgi")
EACH = [one if one in SHORT else pytest.param(one, marks=pytest.mark.slow) for one in SERVERS]


@pytest.fixture(params=EACH)
def program(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def lose_nothing(program: str, times: int) -> None:
    for _ in range(times):
        with Web(program, first=UNHURRIED, **LONG_DRAIN) as web:
            clients = load(web)
            wait_for_each(clients, lambda tally: tally.answered > 2)
            time.sleep(random.uniform(0, 0.3))  # some moment
            web.terminate()
            web.wait_for("GroupDraining")
            wait_until_told(clients)
            time.sleep(random.uniform(0, 0.3))
            web.end_drain()
            whole = total(clients)
            assert web.end() == 0
            assert whole.lost == []
            assert whole.repeated == 0
            assert whole.answered > 20
            assert whole.refused == len(clients)


def wait_for_each(clients: list[Client], reached: Callable[[Tally], bool]) -> None:
    """Until each has `reached` it, or lost a request."""
    tallies = [client.tally for client in clients]
    wait_until(lambda: all(one.lost or reached(one) for one in tallies), timeout=PATIENCE)


def wait_until_told(clients: list[Client]) -> None:
    """Until each has connected anew, which it does from now on for each request."""
    before = {id(client.tally): client.tally.closing for client in clients}
    wait_for_each(clients, lambda tally: tally.closing > before[id(tally)])


def test_nothing_is_lost_under_load(program: str) -> None:
    lose_nothing(program, 2)


@pytest.mark.slow
def test_nothing_is_lost_under_load_at_any_moment(program: str) -> None:
    lose_nothing(program, 5)  # with the two above, on each of three interpreters


def test_new_connections_are_served_during_the_drain_and_refused_after_it(program: str) -> None:
    with Web(program, first=UNHURRIED, **LONG_DRAIN) as web:
        with closing(web.http()) as kept:
            kept.request("GET", "/hello")
            response = kept.getresponse()
            assert response.read() == b"hello"
            assert response.headers["Connection"] in (None, "keep-alive")
            web.terminate()
            web.wait_for("GroupDraining")
            assert web.get("/ready")[0] == 503
            # The event is told before drain() has been called, so a request may be too early.
            closed = None
            while closed != "close":
                kept.request("GET", "/hello")
                response = kept.getresponse()
                assert (response.status, response.read()) == (200, b"hello")
                closed = response.headers["Connection"]
            assert web.get("/ready")[0] == 503  # so that was not the stop
        web.end_drain()
        assert web.end() == 0
        with pytest.raises(ConnectionRefusedError):
            web.connect()
        assert is_free(web.address[1])


@pytest.mark.parametrize("path", ["/slow?seconds=1", "/stream?parts=10&pause=0.1"])
def test_a_request_in_flight_is_finished(program: str, path: str) -> None:
    with Web(program, first=UNHURRIED) as web:
        connection = web.http()
        connection.request("GET", path)
        if "stream" in path:
            response = connection.getresponse()
        else:
            time.sleep(0.2)  # until it has surely arrived
        web.terminate()
        if "stream" not in path:
            response = connection.getresponse()
        body = response.read()
        connection.close()
        assert response.status == 200
        assert body in (b"slow", b"".join(b"part %d\n" % n for n in range(10)))
        assert web.end() == 0


def test_an_upload_half_sent_is_finished(program: str) -> None:
    with Web(program, first=UNHURRIED) as web:
        with web.connect() as connection:
            connection.sendall(
                b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n"
            )
            connection.sendall(b"x" * 100_000)
            time.sleep(0.2)  # until it has surely arrived
            web.terminate()
            web.wait_for("GroupStopping")
            time.sleep(0.2)
            connection.sendall(b"x" * 100_000)
            answer = receive_all(connection)
        assert b" 200 " in answer.splitlines()[0]
        assert b"200000" in answer
        assert web.end() == 0


def test_pipelined_requests_are_answered(program: str) -> None:
    with Web(program, first=UNHURRIED, drain_delay=0.5) as web:
        with web.connect() as connection:
            request = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
            connection.sendall(request % b"/slow?seconds=0.7" + request % b"/hello" * 3)
            time.sleep(0.2)
            web.terminate()
            answer = receive_all(connection)
        assert answer.count(b"HTTP/1.1 200") == 4
        assert answer.count(b"slow") == 1
        assert answer.count(b"hello") == 3
        assert web.end() == 0


def test_idle_and_silent_clients_hold_nobody_up(program: str) -> None:
    with Web(program, **LONG_STOP) as web:
        silent = [web.connect() for _ in range(5)]
        idle = [web.http() for _ in range(5)]
        for connection in idle:
            connection.request("GET", "/hello")
            assert connection.getresponse().read() == b"hello"
        web.terminate()
        assert web.end() == 0
        for one in silent:
            one.close()
        for connection in idle:
            connection.close()
        assert "cut" not in web.stderr


def test_the_time_to_drain_leaves_some_for_what_follows() -> None:
    assert seconds_to_drain(10.0) == 9.0
    assert seconds_to_drain(1.0) == 0.5
    assert seconds_to_drain(math.inf) is None


def test_a_client_that_reads_nothing_is_cut_in_time(program: str) -> None:
    with Web(program, first=CUT_EARLY, stop_timeout=8.0) as web:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(web.address)
            connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(10)
            web.terminate()
            assert web.end() == 0
        assert "web" in web.stderr
        assert " cut 1 " in web.stderr


def test_a_hung_handler_is_cut_and_named_with_its_stack(program: str) -> None:
    with Web(program, first=CUT_EARLY, stop_timeout=8.0) as web:
        connection = web.http()
        connection.request("GET", "/hang")
        web.wait_for("hanging")
        web.terminate()
        assert web.end() == 0
        connection.close()
        assert " cut 1 " in web.stderr
        assert "in hang" in web.stderr


def test_nonsense_and_slow_clients_keep_nobody_from_being_served(program: str) -> None:
    with Web(program, first=CUT_EARLY, stop_timeout=12.0) as web:
        slow = [web.connect() for _ in range(50)]
        for connection in slow:
            connection.sendall(b"GET /hello HTTP/1.1\r\nHost: ")
        for nonsense in (b"\x16\x03\x01\x00\xff", b"GET\r\n\r\n", b"\r\n" * 10, b"A" * 70_000):
            with web.connect() as connection:
                try:
                    connection.sendall(nonsense + b"\r\n\r\n")
                    connection.shutdown(socket.SHUT_WR)
                    answer = receive_all(connection)
                except ConnectionError:
                    answer = b""
                assert b" 200 " not in answer
        with web.connect() as connection:
            try:
                connection.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n")
                for number in range(300):
                    connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 1000))
                connection.sendall(b"\r\n")
                answer = receive_all(connection)
            except ConnectionError:
                answer = b""
            assert b" 200 " not in answer
        assert web.get("/hello") == (200, b"hello")
        web.terminate()
        assert web.end() == 0
        for connection in slow:
            connection.close()


def test_a_second_server_on_the_port_is_refused_with_address_and_service(program: str) -> None:
    with Web(program) as web:
        port = web.address[1]
        with pytest.raises(AssertionError) as caught:
            Web(program, server={"port": port})
        said = str(caught.value)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
        assert "in service 'web', while starting" in said
        assert web.get("/hello") == (200, b"hello")


def receive_all(connection: socket.socket) -> bytes:
    """What comes until the end of the connection."""
    connection.settimeout(PATIENCE)
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)
