"""What the measured servers answer with: five bytes, whatever the library."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any

BODY = b"hello"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "5")]
GRPC_SERVICE = "bench.Shop"
GRPC_METHOD = "hello"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in HEADERS:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


# Any, here and below: what the protocols say.
async def asgi_app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(name.encode(), value.encode()) for name, value in HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", HEADERS)
    return [BODY]


def aiohttp_app() -> Any:
    from aiohttp import web

    async def hello(request: web.Request) -> web.Response:
        return web.Response(body=BODY, content_type="text/plain")

    app = web.Application()
    app.router.add_get("/", hello)
    return app


def add_shop(server: Any) -> None:
    """To a server of gRPC with threads."""

    def hello(request: bytes, context: Any) -> bytes:
        return BODY

    _add(server, hello)


def add_aio_shop(server: Any) -> None:
    """To one of `grpc.aio`."""

    async def hello(request: bytes, context: Any) -> bytes:
        return BODY

    _add(server, hello)


def _add(server: Any, hello: Callable[[bytes, Any], Any]) -> None:
    import grpc

    handlers: Any = {GRPC_METHOD: grpc.unary_unary_rpc_method_handler(hello)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(GRPC_SERVICE, handlers),))
