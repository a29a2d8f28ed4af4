"""What is particular to `AsgiServer`; test_loop_servers.py and the table have the rest."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from servicegroup import ServiceGroup, ServiceGroupError
from servicegroup.adapters.asgi import AsgiServer
from tests.adapters.loop_servers import (
    PATIENCE,
    Site,
    asgi,
    asking,
    connect,
    get,
    served,
    wait_for_requests,
)
from tests.adapters.test_http_servers import receive_all

HELLO = {"type": "http.response.start", "status": 200, "headers": []}


# Any, here and below: ASGI's messages are dictionaries of all kinds.
async def hello(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send(HELLO)
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("shop:app", "must be an ASGI application itself, not 'shop:app': import it first"),
        (7, "must be an ASGI application itself, not 7"),
    ],
)
def test_what_is_no_application_is_refused_at_once(app: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        AsgiServer(app)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 2}, "takes no option 'workers': start several processes"),
        ({"fd": 3}, "takes no option 'fd': give sock="),
        ({"colour": 1}, "takes no option 'colour': uvicorn has none"),
    ],
)
def test_options_that_make_no_sense_here_are_refused_at_once(options: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        AsgiServer(hello, **options)


def test_options_of_uvicorn_are_passed_on() -> None:
    server = AsgiServer(
        hello, port=0, headers=[("X-Shop", "yes")], server_header=False, date_header=False
    )
    with served(server):
        connection = connect(server)
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.read() == b"hello"
        assert response.getheader("X-Shop") == "yes"
        assert response.getheader("Server") is None
        assert response.getheader("Date") is None
        connection.close()


@pytest.mark.parametrize("http_parser", ["httptools", "h11"])
def test_what_begins_behind_a_long_body_is_not_taken_for_long_headers(http_parser: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({**HELLO, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    server = AsgiServer(app, port=0, http=http_parser)  # type: ignore[arg-type]  # one of them
    with served(server), socket.create_connection(("127.0.0.1", server.port or 0)) as client:
        client.settimeout(PATIENCE)
        body = b"x" * 100_000
        post = b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(post + body + b"GET / HTTP/1.1\r\nHo")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"st: shop\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 200" in receive_all(client)


def test_logging_and_signal_handlers_stay_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]

    def state() -> object:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return handlers, [(one.handlers[:], one.level, one.propagate) for one in loggers]

    before = state()
    server = AsgiServer(hello, port=0, access_log=False)
    with served(server), caplog.at_level(logging.INFO):
        assert get(server) == (200, b"hello")
        assert state() == before
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_requests_are_logged_where_the_program_logs(caplog: pytest.LogCaptureFixture) -> None:
    server = AsgiServer(hello, port=0)
    with served(server), caplog.at_level(logging.INFO, "uvicorn.access"):
        assert get(server) == (200, b"hello")
    assert '"GET /hello HTTP/1.1" 200' in caplog.text


def test_it_runs_on_uvloop_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loops.append(type(asyncio.get_running_loop()))

    with served(AsgiServer(app, port=0)):
        pass
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with served(AsgiServer(app, port=0)):
        pass
    assert loops[0] is uvloop.Loop
    assert issubclass(loops[1], asyncio.SelectorEventLoop)


# -- the lifespan ---------------------------------------------------------------------------------


def test_an_application_without_a_lifespan_is_served() -> None:
    server = AsgiServer(hello, port=0)
    with served(server):
        assert get(server) == (200, b"hello")


def test_a_lifespan_that_is_off_is_not_called() -> None:
    site = Site()
    server = asgi(site, lifespan="off")
    with served(server):
        assert get(server) == (200, b"hello")
    assert site.trace == []


def test_a_lifespan_that_must_be_there_is_missed() -> None:
    group = ServiceGroup()
    group.add(AsgiServer(hello, port=0, lifespan="on"))
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    assert [type(error) for error in caught.value.exceptions] == [AssertionError]


def test_a_lifespan_that_only_says_that_it_failed_is_a_failure() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(RuntimeError, match=r"the application's startup failed: no database"):
        AsgiServer(app, port=0).start()


def test_a_lifespan_that_asks_for_more_after_its_end_is_over() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})

    with served(AsgiServer(app, port=0)):
        pass


def test_a_lifespan_that_returns_early_has_nothing_to_shut_down() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
        else:
            await hello(scope, receive, send)

    server = AsgiServer(app, port=0)
    with served(server):
        assert get(server) == (200, b"hello")


def test_a_lifespan_that_fails_while_it_serves_is_a_failure_and_costs_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As long does an application that failed go on.
    monkeypatch.setattr("servicegroup.adapters._loop_server.FIRST_WORD", 4.0)
    fail = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async def watch() -> None:
            await fail.wait()
            raise ConnectionError("the broker is gone")

        loops.append(asyncio.get_running_loop())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            yield

    async def slow(_request: Request) -> PlainTextResponse:
        fail.set()
        while server.port is not None:
            await asyncio.sleep(0.01)
        return PlainTextResponse("slow")

    async def stuck(_request: Request) -> PlainTextResponse:
        await asyncio.Event().wait()
        raise AssertionError

    app = Starlette(routes=[Route("/slow", slow), Route("/stuck", stuck)], lifespan=lifespan)
    server = AsgiServer(app, port=0)
    group = ServiceGroup()
    group.add(server)
    with pytest.raises(ServiceGroupError) as caught, group, asking(server, "/stuck"):
        assert get(server, "/slow") == (200, b"slow")
    assert caught.value.subgroup(ConnectionError) is not None


def test_fastapi_starts_and_ends_with_its_own_exceptions() -> None:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"name": "shop"}
        raise ZeroDivisionError

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    def name(request: Request) -> str:
        name: str = request.state.name
        return name

    server = AsgiServer(app, port=0)
    with pytest.raises(ServiceGroupError) as caught, served(server):
        assert get(server, "/") == (200, b'"shop"')
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


# -- the stop -------------------------------------------------------------------------------------


def test_background_tasks_are_finished() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0.3)
        done.append("work")

    async def order(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ordered", background=BackgroundTask(work))

    server = AsgiServer(Starlette(routes=[Route("/", order)]), port=0)
    with served(server):
        assert get(server, "/") == (200, b"ordered")
    assert done == ["work"]


def test_an_answer_that_is_not_read_is_cut_though_it_is_complete(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(HELLO)
        await send({"type": "http.response.body", "body": b"x" * 50_000_000})

    server = AsgiServer(app, port=0, lifespan="off")
    server.cancel_after = 1.0
    with served(server, stop_timeout=8.0):
        connection = connect(server)
        connection.request("GET", "/")
        connection.getresponse().read(10)
        at = time.monotonic()
    assert time.monotonic() - at > 0.9
    connection.close()
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert " cut 1 requests in flight, since its time was up: those of 127.0.0.1:" in record.message


def test_a_websocket_that_was_not_accepted_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.Event().wait()

    server = AsgiServer(app, port=0, lifespan="off")
    server.cancel_after = 0.5
    with served(server, stop_timeout=8.0) as group:
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(
                b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            wait_for_requests(server, 1)
            group.stop()
            assert b" 500 " in receive_all(connection)
    assert "(WebSocket /chat)" in caplog.text


def test_an_old_client_is_served_during_the_drain() -> None:
    server = AsgiServer(hello, port=0)
    with served(server):
        server.drain()
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"hello" in receive_all(connection)


@pytest.mark.parametrize("http_parser", ["httptools", "h11"])
def test_the_date_is_that_of_the_second(http_parser: Any) -> None:
    server = AsgiServer(hello, port=0, http=http_parser)
    dates: set[str | None] = set()
    with served(server):
        connection = connect(server)
        until = time.monotonic() + PATIENCE
        while len(dates) < 2 and time.monotonic() < until:
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            dates.add(response.headers["Date"])
            time.sleep(0.05)
        connection.close()
    assert len(dates) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.slow
def test_nothing_stays_open() -> None:
    server = AsgiServer(hello, port=0)
    group = ServiceGroup()
    group.add(server)
    counts = []
    for _ in range(4):
        with group:
            assert get(server) == (200, b"hello")
            clients = [connect(server) for _ in range(3)]
            for client in clients:
                client.connect()
        for client in clients:
            client.close()
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[3] <= counts[1]


def test_a_request_whose_headers_do_not_end_is_refused() -> None:
    server = AsgiServer(hello, port=0)
    with served(server):
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            try:
                for _ in range(1000):
                    connection.sendall(b"X-More: %s\r\n" % (b"x" * 1000))
                answer = receive_all(connection)
            except ConnectionError:  # it did not wait for the end of them
                answer = b" 400 "
            assert b" 400 " in answer
        assert get(server) == (200, b"hello")
