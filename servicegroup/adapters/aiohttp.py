"""`AiohttpServer`: an application of aiohttp."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from servicegroup.adapters._loop_server import Factory, LoopServer, more_waits, peer
from servicegroup.sockets import BACKLOG, Endpoint

try:
    from aiohttp import WSCloseCode, web
except ImportError as error:
    raise ImportError(
        "servicegroup.adapters.aiohttp needs aiohttp: pip install 'servicegroup[aiohttp]'"
    ) from error

# For aiohttp's own shutdown, which comes when all is done; 0 would be for ever.
SHUTDOWN_SECONDS = 0.01


class AiohttpOptions(TypedDict, total=False):
    """Those of aiohttp's options that make sense here; the meaning and the defaults are its own."""

    # Any: a logger, and a class of aiohttp's that writes to it.
    access_log: Any
    access_log_class: Any
    access_log_format: str
    keepalive_timeout: float
    tcp_keepalive: bool
    max_line_size: int
    max_field_size: int
    lingering_time: float
    read_bufsize: int
    auto_decompress: bool
    handler_cancellation: bool


_INSTEAD = {
    "shutdown_timeout": "stop_timeout of the service counts",
    "handle_signals": "signals are for the group",
}


class AiohttpServer(LoopServer):
    """Serves an `aiohttp.web.Application`.

    In a `ServiceGroup` it has an event loop of its own; in an `AsyncGroup`, it shares the group's.
    It is ready when the application has started and it listens. What `on_startup`, `cleanup_ctx`
    and the like raise is the failure of the service.

    On `drain()`, answers say `Connection: close`. At the stop the connections that wait to be
    accepted are served, the listener is closed, `on_shutdown` is sent, connections that ask for
    nothing are ended, WebSockets whose handler waits for a message are closed with 1001, and
    requests in flight are finished; after `cancel_after` seconds (by default, three quarters of the
    time to stop) what is left is cut, and the log says what that was. Then the application is
    cleaned up.

    Args:
        app: the application. It is for this server only.
        host: a name or an address to listen to.
        port: 0 chooses one that is free.
        sock: a bound socket to be used instead of one for `host` and `port`.
        unix_socket: the path of a Unix socket to be used instead.
        reuse_port: let other processes listen to the same port.
        backlog: how many connections may wait to be accepted.
        ssl_certfile: the path of the certificate, and of what certifies it.
        ssl_keyfile: the path of its key, if that is not in the same file.
        ssl_context: instead of the two.
        options: aiohttp's, those of `AiohttpOptions`.

    Attributes:
        port: the port it listens to, once it is ready.
        url: where clients find it, once it is ready.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
        OSError, ssl.SSLError: the certificate cannot be read.
    """

    def __init__(
        self,
        app: web.Application,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        sock: socket.socket | None = None,
        unix_socket: str | Path | None = None,
        reuse_port: bool = False,
        backlog: int = BACKLOG,
        ssl_certfile: str | Path | None = None,
        ssl_keyfile: str | Path | None = None,
        ssl_context: ssl.SSLContext | None = None,
        **options: Unpack[AiohttpOptions],
    ) -> None:
        if not isinstance(app, web.Application):
            raise TypeError(f"AiohttpServer: app must be an aiohttp.web.Application, not {app!r}")
        for name in options:
            if name not in AiohttpOptions.__annotations__:
                hint = _INSTEAD.get(name, "aiohttp has none of that name that makes sense here")
                raise TypeError(f"AiohttpServer takes no option {name!r}: {hint}")
        if app.on_response_prepare.frozen:
            raise ValueError("AiohttpServer: app is in use already; it is for one server only")
        self._endpoint = Endpoint(
            host=host,
            port=port,
            sock=sock,
            unix_socket=unix_socket,
            reuse_port=reuse_port,
            backlog=backlog,
        )
        self._tls = ssl_context
        if ssl_certfile is not None:
            if ssl_context is not None:
                raise ValueError("ssl_certfile and ssl_context exclude each other: give one")
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(ssl_certfile, ssl_keyfile)
        self._app = app
        self._options = options

    # -- the application --------------------------------------------------------------------------

    async def _live(self, up: asyncio.Future[Factory], leave: asyncio.Event) -> None:
        _renew(self._app)
        self._sockets: set[web.WebSocketResponse] = set()
        self._shutdown_error: Exception | None = None
        self._closing: set[asyncio.Task[bool]] = set()
        runner = _Runner(self._app, shutdown_timeout=SHUTDOWN_SECONDS, **self._options)
        try:
            await runner.setup()
            assert runner.server is not None
            self._server = runner.server
            kind = type("Request", (_Request,), {"_on_response": self._on_response})
            self._server.request_factory = partial(self._app._make_request, _cls=kind)
            up.set_result(self._server)
            await leave.wait()
            if self._shutdown_error is not None:
                raise self._shutdown_error
        finally:
            await runner.cleanup()

    async def _before_drain(self) -> None:
        try:
            await self._app.shutdown()
        except Exception as error:  # which must not cost those in flight their answers
            self._shutdown_error = error

    def _on_response(self, request: web.Request, response: web.StreamResponse) -> None:
        if isinstance(response, web.WebSocketResponse):
            self._sockets.add(response)
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lambda _: self._sockets.discard(response))
        elif self._draining and not _more_waits(request):
            response.force_close()
            response.headers["Connection"] = "close"

    # -- its connections --------------------------------------------------------------------------

    def _sweep(self, patient: bool) -> bool:
        for connection in self._server.connections:
            transport = connection.transport
            if transport is None or connection._waiter is None or connection._messages:
                continue  # it has gone, or is at work
            if not (patient if connection._request_count == 0 else more_waits(transport)):
                connection.force_close()
        for one in self._sockets:
            if one._waiting and not one.closed:
                self._close_soon(one)
        return bool(self._server.connections)

    def _close_soon(self, one: web.WebSocketResponse) -> None:
        task = asyncio.get_running_loop().create_task(one.close(code=WSCloseCode.GOING_AWAY))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _in_flight(self) -> dict[asyncio.Task[Any], Any]:
        # Nothing of ours is called for a request, so its task is to be recognized.
        found = {}
        for task in asyncio.all_tasks(self._loop):
            coroutine: Any = task.get_coro()
            if coroutine.__name__ == "_handle_request":
                local = inspect.getcoroutinelocals(coroutine)
                if local["request_handler"] == self._server.request_handler:
                    found[task] = local["request"]
        return found

    def _count_in_flight(self) -> int:
        connections = list(self._server.connections)
        return sum(one._current_request is not None for one in connections)

    def _hang_up(self, requests: Iterable[Any]) -> None:
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _unsent(self) -> Iterable[str]:
        return ()  # an answer is a request until it is sent

    def _text(self, request: Any) -> str:
        transport = request.transport
        client = "a client that is gone" if transport is None else peer(transport)
        return f"{client} ({request.method} {request.path})"

    def _waiting_for(self, request: Any) -> Iterable[asyncio.Task[Any]]:
        return [request.task]  # of the connection


class _Request(web.Request):
    """aiohttp's, which tells of its response before that is sent.

    The signal `on_response_prepare` would tell, too, but costs a tenth of a small request.
    """

    _on_response: Callable[[web.Request, web.StreamResponse], None]

    def _prepare_hook(self, response: web.StreamResponse) -> Coroutine[Any, Any, None]:
        self._on_response(self, response)
        return super()._prepare_hook(response)


class _Runner(web.AppRunner):
    """aiohttp's, but `on_shutdown` was sent before."""

    async def shutdown(self) -> None:
        pass


def _more_waits(request: web.Request) -> bool:
    transport = request.transport
    return bool(request.protocol._messages) or (transport is not None and more_waits(transport))


def _renew(app: web.Application) -> None:
    """Let `app` start once more: aiohttp ties it to the first loop that it runs in."""
    app._loop = None
    app._frozen = False
    app.cleanup_ctx._exits.clear()
    for part in app._subapps:
        _renew(part)
