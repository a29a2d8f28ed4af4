"""A server of the kind the first argument says, in a group ("ours") or by its library ("bare").

Prints its port once it serves.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from servicegroup import ServiceGroup

BODY = b"hello"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "5")]


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


def ours(kind: str) -> None:
    server: Any
    if kind == "socketserver":
        from servicegroup.adapters.socketserver import SocketServer

        server = SocketServer(ThreadingHTTPServer, ("127.0.0.1", 0), Handler)
    elif kind == "asgi":
        from servicegroup.adapters.asgi import AsgiServer

        server = AsgiServer(asgi_app, port=0, access_log=False)
    elif kind == "wsgi":
        from servicegroup.adapters.wsgi import WsgiServer

        server = WsgiServer(wsgi_app, port=0)
    else:
        from servicegroup.adapters.aiohttp import AiohttpServer

        server = AiohttpServer(aiohttp_app(), port=0, access_log=None)
    group = ServiceGroup()
    group.add(server)
    group.subscribe(lambda event: print(server.port, flush=True) if group.is_ready else None)
    group.start()


def bare(kind: str) -> None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    print(listener.getsockname()[1], flush=True)
    if kind == "socketserver":
        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        made.socket.close()
        made.socket = listener
        made.serve_forever()
    elif kind == "asgi":
        import uvicorn

        config = uvicorn.Config(asgi_app, log_config=None, access_log=False)
        uvicorn.Server(config).run([listener])
    elif kind == "wsgi":
        import waitress

        waitress.serve(wsgi_app, sockets=[listener])
    else:
        from aiohttp import web

        web.run_app(aiohttp_app(), sock=listener, access_log=None, print=None)


if __name__ == "__main__":
    {"ours": ours, "bare": bare}[sys.argv[2]](sys.argv[1])
