"""The same application for each of the servers that run in an event loop."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
from aiohttp import web
from attrs import define, field

from servicegroup import ServiceGroup
from servicegroup.adapters.aiohttp import AiohttpServer
from servicegroup.adapters.asgi import AsgiServer
from tests.fake_time import wait_until

Server = AsgiServer | AiohttpServer
PATIENCE = 30.0


async def nothing() -> None:
    pass


@define
class Site:
    """What the application does, and what happened to it.

    Attributes:
        on_start: called when it starts; what it raises is raised there.
        on_end: likewise when it ends.
        hold: what the answers to `/slow`, `/hang` and a message of a WebSocket wait for.
        busy: set once one of them waits, or `/stuck`.
    """

    on_start: Callable[[], Awaitable[object]] = nothing
    on_end: Callable[[], Awaitable[object]] = nothing
    hold: threading.Event = field(factory=threading.Event)
    busy: threading.Event = field(factory=threading.Event)
    trace: list[str] = field(factory=list)
    server: Server | None = None

    async def start(self) -> None:
        self.trace.append("start")
        await self.on_start()

    async def end(self) -> None:
        self.trace.append("end")
        await self.on_end()

    async def answer(self, path: str) -> bytes:
        if path == "/hello":
            return b"hello"
        if path == "/slow":
            await self.held()
            return b"slow"
        if path == "/boom":
            raise LookupError("boom")
        if path == "/hang":  # as a synchronous endpoint of Starlette
            await anyio.to_thread.run_sync(hang, self)
        if path == "/hang-in-executor":
            await asyncio.to_thread(hang, self)
        if path == "/stuck":
            self.busy.set()
            await asyncio.Event().wait()
        return b"?"

    async def held(self) -> None:
        self.busy.set()
        while not self.hold.is_set():
            await asyncio.sleep(0.01)


def hang(site: Site) -> None:
    site.busy.set()
    site.hold.wait()


# Any: ASGI's messages are dictionaries of all kinds.
def asgi(site: Site, **options: Any) -> AsgiServer:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await site.start()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await site.end()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await site.held()
                await send({"type": "websocket.send", "text": message["text"].upper()})
            site.trace.append(f"closed with {message['code']}")
        else:
            headers = [(b"content-type", b"text/event-stream")]
            body = b""
            if scope["path"] not in ("/events", "/events-for-ever"):
                body = await site.answer(scope["path"])
                headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if not body:
                assert site.server is not None
                events = ticks()
                if scope["path"] == "/events":
                    events = site.server.until_stopping(events)
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": body})

    site.server = AsgiServer(app, **{"port": 0, **options})
    return site.server


def aiohttp(site: Site, **options: Any) -> AiohttpServer:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await site.held()
                await socket.send_str(message.data.upper())
            site.trace.append(f"closed with {socket.close_code}")
            return socket
        if request.path not in ("/events", "/events-for-ever"):
            return web.Response(body=await site.answer(request.path))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        assert site.server is not None
        events = ticks()
        if request.path == "/events":
            events = site.server.until_stopping(events)
        async for event in events:
            await response.write(event)
        return response

    async def on_start(_app: web.Application) -> None:
        await site.start()

    async def on_end(_app: web.Application) -> None:
        await site.end()

    app = web.Application()
    app.on_startup.append(on_start)
    app.on_cleanup.append(on_end)
    app.router.add_route("*", "/{path:.*}", handle)
    site.server = AiohttpServer(app, **{"port": 0, **options})
    return site.server


async def ticks() -> Any:
    while True:
        yield b"data: tick\n\n"
        await asyncio.sleep(0.05)


MAKERS: dict[str, Callable[..., Server]] = {"asgi": asgi, "aiohttp": aiohttp}


@contextmanager
def served(server: Server, **options: Any) -> Iterator[ServiceGroup]:
    group = ServiceGroup(**options)
    server.name = "web"
    group.add(server)
    with group:
        yield group


def connect(server: Server) -> http.client.HTTPConnection:
    assert server.port is not None
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)


def get(server: Server, path: str = "/hello") -> tuple[int, bytes]:
    connection = connect(server)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_for_requests(server: Server, count: int) -> None:
    """Until so many are in flight."""

    def counted() -> int:
        try:
            return len(server._in_flight())
        except (RuntimeError, LookupError):  # one came or went meanwhile
            return -1

    wait_until(lambda: counted() == count, timeout=PATIENCE)


@contextmanager
def asking(server: Server, path: str) -> Iterator[None]:
    """A request that is in flight; its client is gone after the block."""
    connection = connect(server)
    connection.request("GET", path)
    wait_for_requests(server, 1)
    yield
    connection.close()
