"""`AsgiServer`: FastAPI, Starlette or any other ASGI application, over uvicorn."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from email.utils import formatdate
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from servicegroup.adapters._drain import log
from servicegroup.adapters._loop_server import Factory, LoopServer, more_waits, peer
from servicegroup.sockets import BACKLOG, Endpoint

try:
    import uvicorn
    from uvicorn.server import ServerState
except ImportError as error:
    raise ImportError(
        "servicegroup.adapters.asgi needs uvicorn: pip install 'servicegroup[asgi]'"
    ) from error

_SILENT = logging.Logger("", logging.CRITICAL + 1)
HEADER_BYTES = 65_536  # of one request, where the parser has no limit of its own

# Any: ASGI's messages are dictionaries, and each framework has types of its own for them.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Any, Any, Any], Awaitable[None]]


class UvicornOptions(TypedDict, total=False):
    """Those of uvicorn's options that make sense here; the meaning and the defaults are its own."""

    http: type[asyncio.Protocol] | Literal["auto", "h11", "httptools"]
    ws: type[asyncio.Protocol] | Literal["auto", "none", "websockets-sansio", "wsproto"]
    ws_max_size: int
    ws_max_queue: int
    ws_ping_interval: float | None
    ws_ping_timeout: float | None
    ws_per_message_deflate: bool
    lifespan: Literal["auto", "on", "off"]
    log_level: str | int | None
    access_log: bool
    interface: Literal["auto", "asgi3", "asgi2"]
    proxy_headers: bool
    forwarded_allow_ips: list[str] | str | None
    server_header: bool
    date_header: bool
    root_path: str
    limit_concurrency: int | None
    timeout_keep_alive: int
    ssl_certfile: str | os.PathLike[str] | None
    ssl_keyfile: str | os.PathLike[str] | None
    ssl_keyfile_password: str | None
    ssl_version: int
    ssl_cert_reqs: int
    ssl_ca_certs: str | os.PathLike[str] | None
    ssl_ciphers: str
    headers: list[tuple[str, str]] | None
    h11_max_incomplete_event_size: int | None


# What to do instead of other options of uvicorn.
_INSTEAD = {
    "fd": "give sock=",
    "uds": "give unix_socket=",
    "factory": "call it yourself, and give what it returns",
    "loop": "set the attribute loop_factory",
    "log_config": "logging is for the program to set up",
    "reload": "a service cannot reload its program",
    "workers": "start several processes with reuse_port=True",
    "timeout_graceful_shutdown": "stop_timeout of the service counts",
    "limit_max_requests": "call stop() of the group when it is enough",
}


def _fastest_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class AsgiServer(LoopServer):
    """Serves an ASGI application with uvicorn.

    In a `ServiceGroup` it has an event loop of its own (uvloop's, if that is installed); in an
    `AsyncGroup`, it shares the group's. It is ready when the application's lifespan has started and
    it listens. What the application raises there is the failure of the service.

    On `drain()`, answers say `Connection: close`. At the stop the connections that wait to be
    accepted are served, the listener is closed, connections that ask for nothing are ended,
    WebSockets whose application waits for a message are closed with 1012, and requests in flight
    are finished; after `cancel_after` seconds (by default, three quarters of the time to stop) what
    is left is cut, and the log says what that was. Then the lifespan is shut down.

    Args:
        app: the application; no import string.
        host: a name or an address to listen to.
        port: 0 chooses one that is free.
        sock: a bound socket to be used instead of one for `host` and `port`.
        unix_socket: the path of a Unix socket to be used instead.
        reuse_port: let other processes listen to the same port.
        backlog: how many connections may wait to be accepted.
        options: uvicorn's, those of `UvicornOptions`.

    Attributes:
        port: the port it listens to, once it is ready.
        url: where clients find it, once it is ready.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = staticmethod(_fastest_loop)

    def __init__(
        self,
        app: App,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        sock: socket.socket | None = None,
        unix_socket: str | Path | None = None,
        reuse_port: bool = False,
        backlog: int = BACKLOG,
        **options: Unpack[UvicornOptions],
    ) -> None:
        if not callable(app):
            raise TypeError(
                f"AsgiServer: app must be an ASGI application itself, not {app!r}"
                + (": import it first" if isinstance(app, str) else "")
            )
        for name in options:
            if name not in UvicornOptions.__annotations__:
                hint = _INSTEAD.get(name, "uvicorn has none of that name that makes sense here")
                raise TypeError(f"AsgiServer takes no option {name!r}: {hint}")
        self._endpoint = Endpoint(
            host=host,
            port=port,
            sock=sock,
            unix_socket=unix_socket,
            reuse_port=reuse_port,
            backlog=backlog,
        )
        self._app = app
        self._options = options

    # -- the application --------------------------------------------------------------------------

    async def _live(self, up: asyncio.Future[Factory], leave: asyncio.Event) -> None:
        # access_log=False turns uvicorn's logger off for the whole process; see `factory`.
        options: dict[str, Any] = {**self._options, "access_log": True}
        config = uvicorn.Config(self._app, log_config=None, **options)
        config.load()
        self._config = config
        self._inner: App = config.loaded_app
        self._tls = config.ssl
        self._state = state = ServerState()
        self._listening: set[object] = set()  # WebSockets whose application waits for a message
        memory: dict[str, Any] = {}
        logged = self._options.get("access_log", True)
        protocol: Any = config.http_protocol_class  # to be called as uvicorn calls its own
        mixin = _Limited if hasattr(protocol, "on_headers_complete") else _Late
        protocol = type(protocol.__name__, (mixin, protocol), {})
        if config.ws_protocol_class is not None:
            config.ws_protocol_class = self._websocket_of(config.ws_protocol_class)

        def factory() -> asyncio.Protocol:
            made: asyncio.Protocol = protocol(config=config, server_state=state, app_state=memory)
            if not logged:
                made.access_log = False  # type: ignore[attr-defined]
            return made

        self._tick(config)
        try:
            if config.lifespan != "off":
                scope = {
                    "type": "lifespan",
                    "asgi": {"version": config.asgi_version, "spec_version": "2.0"},
                    "state": memory,
                }
                await self._lifespan(scope, lambda: up.set_result(factory), leave)
            if not up.done():
                up.set_result(factory)
            await leave.wait()
        finally:
            self._clock.cancel()

    def _tick(self, config: uvicorn.Config) -> None:
        date = [(b"date", formatdate(usegmt=True).encode())] if config.date_header else []
        self._state.default_headers = date + config.encoded_headers
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick, config)

    async def _lifespan(
        self, scope: dict[str, Any], up: Callable[[], None], leave: asyncio.Event
    ) -> None:
        """Run the application's lifespan, or return if it has none."""
        stage = ""
        failure: str | None = None

        async def receive() -> Message:
            nonlocal stage
            if not stage:
                stage = "startup"
            elif stage == "startup":
                await leave.wait()
                stage = "shutdown"
            else:
                raise asyncio.CancelledError  # there is no more to come, and it ought to return
            return {"type": f"lifespan.{stage}"}

        async def send(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.complete":
                up()
            elif message["type"].endswith(".failed"):
                failure = message.get("message", "")

        try:
            await self._inner(scope, receive, send)
        except asyncio.CancelledError:
            if stage != "shutdown":
                raise
        except Exception as error:
            # One that knows no lifespan raises before it has asked for the first message.
            if stage or self._options.get("lifespan") == "on":
                raise
            log.debug("service %r: the application has no lifespan: %r", self.name, error)
        if failure is not None:
            raise RuntimeError(f"the application's {stage} failed: {failure}")

    def _websocket_of(self, kind: Any) -> Any:
        """What makes protocols of the `kind`, whose applications are watched."""

        def websocket(**kwargs: Any) -> Any:
            protocol = kind(**kwargs)
            protocol.app = watched
            return protocol

        async def watched(scope: Any, receive: Receive, send: Any) -> None:
            protocol = send.__self__

            async def receiving() -> Message:
                self._listening.add(protocol)
                try:
                    return await receive()
                finally:
                    self._listening.discard(protocol)

            await self._inner(scope, receiving, send)

        return websocket

    # -- its connections --------------------------------------------------------------------------

    # Nothing of ours is called for a request until the drain begins: it would cost too much.

    def _begin_drain(self) -> None:
        self._config.loaded_app = self._last
        connections: Iterable[Any] = self._state.connections
        for protocol in connections:
            if hasattr(protocol, "cycle"):
                protocol.app = self._last
        for request in self._in_flight().values():
            if hasattr(request, "response_started") and not request.response_started:
                _close_after(request)

    async def _last(self, scope: Any, receive: Receive, send: Any) -> None:
        _close_after(send.__self__)
        await self._inner(scope, receive, send)

    def _in_flight(self) -> dict[asyncio.Task[Any], Any]:
        # Each of the tasks runs a method of its request.
        found = {}
        for task in list(self._state.tasks):
            if not task.done():
                coroutine: Any = task.get_coro()
                found[task] = inspect.getcoroutinelocals(coroutine)["self"]
        return found

    def _count_in_flight(self) -> int:
        return sum(not task.done() for task in list(self._state.tasks))

    def _sweep(self, patient: bool) -> bool:
        state = self._state
        for protocol in list(state.connections):
            transport = protocol.transport
            if transport.is_closing():
                continue
            if not hasattr(protocol, "cycle"):
                if protocol in self._listening and not more_waits(transport):
                    protocol.shutdown()
            elif protocol.cycle is None:
                if not patient:
                    transport.close()
            elif protocol.cycle.response_complete and not more_waits(transport):
                transport.close()
        return bool(state.connections or state.tasks)

    def _hang_up(self, requests: Iterable[Any]) -> None:
        for request in requests:
            request.logger = _SILENT
        for protocol in list(self._state.connections):
            if hasattr(protocol, "cycle") or protocol.transport.is_closing():
                protocol.transport.abort()
            else:
                protocol.shutdown()

    def _unsent(self) -> Iterable[str]:
        for protocol in self._state.connections:
            cycle = getattr(protocol, "cycle", None)
            transport = protocol.transport
            if cycle is not None and cycle.response_complete and transport.get_write_buffer_size():
                yield peer(transport)

    def _text(self, request: Any) -> str:
        scope = request.scope
        host = "{}:{}".format(*scope["client"]) if scope["client"] else "a Unix socket"
        return f"{host} ({scope.get('method', 'WebSocket')} {scope['path']})"


def _close_after(request: Any) -> None:
    """Have the answer say that its connection is closed then, unless the client has sent more."""
    protocol = request.transport.get_protocol()  # of h11 or of httptools
    pipelined = getattr(protocol, "pipeline", None)
    buffered = getattr(getattr(protocol, "conn", None), "trailing_data", (b"",))[0]
    if not (pipelined or buffered or more_waits(request.transport)):
        request.default_headers = [*request.default_headers, (b"connection", b"close")]


class _Late(asyncio.Protocol):
    """What is put before uvicorn's protocols."""

    # Any, here and below: what the protocol has of its own.
    config: Any
    app: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = self.config.loaded_app  # the drain may have begun since it was accepted


class _Limited(_Late):
    """What is put before that of httptools, which takes headers of any size."""

    scope: Any
    cycle: Any
    transport: Any
    send_400_response: Callable[[str], None]
    _counted: object = None  # the scope of a request whose headers are not complete
    _begun = 0  # bytes of it

    def data_received(self, data: bytes) -> None:
        # Each request comes by here, and few are not complete: so this is all for the others.
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            self._count(len(data))

    def _count(self, size: int) -> None:
        if self.scope is None:
            return
        if self._counted is not self.scope:
            # What came with its beginning may have been of the request before.
            self._counted, self._begun = self.scope, 0
            return
        self._begun += size
        if self._begun > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("Request headers too large.")
