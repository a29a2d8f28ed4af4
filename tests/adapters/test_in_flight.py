"""Every server counts the requests in flight, for metrics."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from aiohttp import web

from servicegroup import ServiceGroup
from servicegroup.adapters.aiohttp import AiohttpServer
from servicegroup.adapters.asgi import AsgiServer
from servicegroup.adapters.grpc import GrpcAioServer, GrpcServer
from servicegroup.adapters.socketserver import SocketServer
from servicegroup.adapters.wsgi import WsgiServer
from tests.adapters.web import PATIENCE

Gate = threading.Event


async def _opened(gate: Gate) -> None:
    while not gate.is_set():
        await asyncio.sleep(0.001)


def socketserver(gate: Gate) -> Any:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            gate.wait()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    return SocketServer(ThreadingHTTPServer, ("127.0.0.1", 0), Handler)


def wsgi(gate: Gate) -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        gate.wait()
        start_response("204 No Content", [])
        return []

    return WsgiServer(app, port=0)


def asgi(gate: Gate) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _opened(gate)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    return AsgiServer(app, port=0, lifespan="off")


def aiohttp(gate: Gate) -> Any:
    async def answer(request: web.Request) -> web.Response:
        await _opened(gate)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/", answer)
    return AiohttpServer(app, port=0)


def _rpc(behavior: Callable[..., Any]) -> Callable[[Any], None]:
    handler: Any = grpc.unary_unary_rpc_method_handler(behavior)
    return lambda server: server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("shop", {"ask": handler}),)
    )


def grpc_threads(gate: Gate) -> Any:
    def ask(_request: bytes, _context: Any) -> bytes:
        gate.wait()
        return b""

    return GrpcServer(_rpc(ask), port=0)


def grpc_aio(gate: Gate) -> Any:
    async def ask(_request: bytes, _context: Any) -> bytes:
        await _opened(gate)
        return b""

    return GrpcAioServer(_rpc(ask), port=0)


@pytest.mark.parametrize("make", [socketserver, wsgi, asgi, aiohttp, grpc_threads, grpc_aio])
def test_requests_in_flight_are_counted(make: Callable[[Gate], Any]) -> None:
    gate = Gate()
    server = make(gate)
    assert server.in_hand == 0
    group = ServiceGroup()
    group.add(server)
    over = Gate()
    with group:
        ask = _call if "Grpc" in type(server).__name__ else _get
        clients = [threading.Thread(target=ask, args=(server, over)) for _ in range(2)]
        for client in clients:
            client.start()
        _until(server, 2)
        gate.set()
        _until(server, 0)  # though the connections are open yet
        over.set()
        for client in clients:
            client.join(PATIENCE)
    assert server.in_hand == 0


def _get(server: Any, over: Gate) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("GET", "/")
    with connection.getresponse():
        over.wait(PATIENCE)
    connection.close()


def _call(server: Any, over: Gate) -> None:
    with grpc.insecure_channel(server.url) as channel:
        ask: Any = channel.unary_unary("/shop/ask")
        ask(b"", timeout=PATIENCE)
        over.wait(PATIENCE)


def _until(server: Any, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while server.in_hand != count:
        assert time.monotonic() < until, server.in_hand
        time.sleep(0.001)
