"""What is particular to `AiohttpServer`; test_loop_servers.py and the table have the rest."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from servicegroup import ServiceGroup, ServiceGroupError
from servicegroup.adapters.aiohttp import AiohttpServer
from tests.adapters.loop_servers import PATIENCE, connect, get, served, wait_for_requests
from tests.fake_time import wait_until

NAME = web.AppKey("name", str)


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


def serve_one(client: threading.Thread, server: AiohttpServer) -> None:
    client.start()
    wait_for_requests(server, 1)


def application() -> web.Application:
    app = web.Application()
    app.router.add_get("/hello", hello)
    return app


@pytest.mark.parametrize("app", ["shop:app", 7, web.Application])
def test_what_is_no_application_is_refused_at_once(app: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an aiohttp\.web\.Application, not "):
        AiohttpServer(app)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shutdown_timeout": 2}, "takes no option 'shutdown_timeout': stop_timeout of the"),
        ({"handle_signals": True}, "takes no option 'handle_signals': signals are for the group"),
        ({"colour": 1}, "takes no option 'colour': aiohttp has none"),
    ],
)
def test_options_that_make_no_sense_here_are_refused_at_once(options: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        AiohttpServer(application(), **options)


def test_a_certificate_is_given_in_one_way(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ssl_certfile and ssl_context exclude each other"):
        AiohttpServer(
            application(), ssl_certfile="web.pem", ssl_context=ssl.create_default_context()
        )
    with pytest.raises(FileNotFoundError):
        AiohttpServer(application(), ssl_certfile=tmp_path / "none.pem")


def test_an_application_is_for_one_server() -> None:
    app = application()
    with served(AiohttpServer(app, port=0)), pytest.raises(ValueError, match="in use already"):
        AiohttpServer(app)


def test_options_of_aiohttp_are_passed_on() -> None:
    server = AiohttpServer(application(), port=0, max_field_size=100)
    with served(server):
        connection = connect(server)
        connection.request("GET", "/hello", headers={"X-Long": "x" * 200})
        assert connection.getresponse().status == 400
        connection.close()


def test_an_application_with_parts_and_contexts_starts_three_times() -> None:
    trace = []

    async def context(app: web.Application) -> AsyncIterator[None]:
        app[NAME] = "shop"  # which aiohttp allows before the application has started only
        task = asyncio.current_task()
        trace.append("entered")
        yield
        assert asyncio.current_task() is task
        trace.append("left")

    app, part = application(), application()
    app.cleanup_ctx.append(context)
    part.cleanup_ctx.append(context)
    app.add_subapp("/part", part)
    server = AiohttpServer(app, port=0)
    group = ServiceGroup()
    group.add(server)
    for _ in range(3):
        with group:
            assert get(server, "/part/hello") == (200, b"hello")
    assert trace == ["entered", "entered", "left", "left"] * 3


def test_on_shutdown_comes_once_and_while_requests_are_in_flight() -> None:
    trace = []
    shut = asyncio.Event()

    async def order(_request: web.Request) -> web.Response:
        trace.append("asked")
        await shut.wait()
        trace.append("answered")
        return web.Response(text="slow")

    async def on_shutdown(_app: web.Application) -> None:
        trace.append("shutdown")
        shut.set()

    async def on_cleanup(_app: web.Application) -> None:
        trace.append("cleanup")

    app = application()
    app.router.add_get("/", order)
    app.on_shutdown.append(on_shutdown)
    app.on_cleanup.append(on_cleanup)
    server = AiohttpServer(app, port=0)
    with served(server):
        connection = connect(server)
        connection.request("GET", "/")
        wait_until(lambda: trace, timeout=PATIENCE)
    response = connection.getresponse()
    assert response.read() == b"slow"
    assert response.headers["Connection"] == "close"
    connection.close()
    assert trace == ["asked", "shutdown", "answered", "cleanup"]


def test_an_on_shutdown_that_raises_is_a_failure_and_costs_no_answer() -> None:
    shut = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await shut.wait()
        return web.Response(text="slow")

    async def on_shutdown(_app: web.Application) -> None:
        shut.set()
        raise LookupError("nothing to shut down")

    app = application()
    app.router.add_get("/slow", slow)
    app.on_shutdown.append(on_shutdown)
    server = AiohttpServer(app, port=0)
    answers = []

    def ask() -> None:
        answers.append(get(server, "/slow"))

    client = threading.Thread(target=ask)
    group = ServiceGroup()
    group.add(server)
    with pytest.raises(ServiceGroupError) as caught, group:
        serve_one(client, server)
    client.join(PATIENCE)
    assert answers == [(200, b"slow")]
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


def test_a_client_that_has_gone_is_named_as_such(caplog: pytest.LogCaptureFixture) -> None:
    requests = []

    async def stuck(request: web.Request) -> web.Response:
        requests.append(request)
        await asyncio.Event().wait()
        raise AssertionError

    app = application()
    app.router.add_get("/stuck", stuck)
    server = AiohttpServer(app, port=0)
    server.cancel_after = 0.5  # the rest is for a busy machine to tell of it
    with served(server, stop_timeout=8.0):
        connection = connect(server)
        connection.request("GET", "/stuck")
        wait_until(lambda: requests, timeout=PATIENCE)
        connection.close()
        wait_until(lambda: requests[0].transport is None, timeout=PATIENCE)
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "those of a client that is gone (GET /stuck); 1 hang:\n" in record.message


def test_the_shutdown_takes_not_twice_sixty_seconds(caplog: pytest.LogCaptureFixture) -> None:
    asked = threading.Event()

    async def deaf(_request: web.Request) -> web.Response:
        asked.set()
        while True:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                if time.monotonic() - at > PATIENCE:
                    raise

    app = application()
    app.router.add_get("/deaf", deaf)
    server = AiohttpServer(app, port=0)
    server.cancel_after = 0.5
    with served(server, stop_timeout=8.0):
        connection = connect(server)
        connection.request("GET", "/deaf")
        assert asked.wait(PATIENCE)
        at = time.monotonic()
    assert time.monotonic() - at < PATIENCE
    connection.close()
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "in deaf" in errors[0]
