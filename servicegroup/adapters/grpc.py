"""`GrpcServer` and `GrpcAioServer`: gRPC servers that say when to look away, and drain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import Factory, define

from servicegroup._aio_executor import DaemonExecutor
from servicegroup._aio_service import AsyncService
from servicegroup._aio_tasks import task_stack
from servicegroup._stacks import stack_of, stacks_of
from servicegroup.adapters._drain import CUT_SECONDS, log_cut, seconds_to_drain
from servicegroup.service import ReadyWhen, Service
from servicegroup.sockets import Endpoint, close

try:
    import grpc
    import grpc.aio
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
except ImportError as error:
    raise ImportError(
        "GrpcServer needs grpcio and grpcio-health-checking: pip install 'servicegroup[grpc]'"
    ) from error

if TYPE_CHECKING:
    # Any, here and below: requests and answers, whose types only the handlers know.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Respond = Callable[[health_pb2.HealthCheckResponse | None], None]

HEALTH = f"/{health.SERVICE_NAME}/"
FOREVER = threading.TIMEOUT_MAX
METHODS_KEPT = 1_000  # a server may take any name, and clients any number of them
TELLERS = 4  # threads, while draining, that tell clients of it

ServerT = TypeVar("ServerT")
InterceptorT = TypeVar("InterceptorT")


class _Grpc(Generic[ServerT, InterceptorT]):
    """What both servers have in common: where they listen, and how they are built."""

    name: str
    ready_when: ReadyWhen | None = "announced"

    def __init__(
        self,
        register: Callable[[ServerT], object],
        host: str = "127.0.0.1",
        port: int = 50051,
        *,
        unix_socket: str | Path | None = None,
        reuse_port: bool = False,
        credentials: grpc.ServerCredentials | None = None,
        max_workers: int = 10,
        services: Iterable[str] = (),
        interceptors: Iterable[InterceptorT] = (),
        options: Iterable[tuple[str, Any]] = (),  # whatever the library knows
        maximum_concurrent_rpcs: int | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        if not callable(register):
            raise TypeError(
                f"{type(self).__name__}: register must be a function of the server, not "
                f"{register!r}: lambda server: add_GreeterServicer_to_server(Greeter(), server)"
            )
        if max_workers < 1:
            raise ValueError(
                f"{type(self).__name__}: max_workers must be 1 or more, not {max_workers!r}"
            )
        if isinstance(services, str):
            raise TypeError(f"{type(self).__name__}: services must be several names, not one str")
        self._endpoint = Endpoint(
            host=host, port=port, unix_socket=unix_socket, reuse_port=reuse_port
        )
        self._register = register
        self._credentials = credentials
        self._max_workers = max_workers
        self._services = ("", *services)
        self._interceptors = tuple(interceptors)
        # On by default, which would let another server have half of the calls, and say nothing.
        self._options = (*options, ("grpc.so_reuseport", int(reuse_port)))
        self._limit = maximum_concurrent_rpcs
        self._compression = compression
        self._bound: int | None = None
        self._calls: _Calls | _AioCalls | None = None

    @property
    def port(self) -> int | None:
        """The port it listens to; None for a Unix socket, or while it does not listen."""
        return None if self._endpoint.unix_socket is not None else self._bound

    @property
    def url(self) -> str:
        """The target for a channel of a client on this machine, `127.0.0.1:50051` say.

        Raises:
            RuntimeError: it does not listen.
        """
        if self._bound is None:
            raise RuntimeError(f"service {self.name!r} does not listen: it has a url once ready")
        if self._endpoint.unix_socket is not None:
            return f"unix:{self._endpoint.unix_socket}"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._endpoint.host, self._endpoint.host)
        return _target(host, self._bound)

    @property
    def in_hand(self) -> int:
        """How many calls are in flight. Any thread."""
        return len(self._calls.open) if self._calls is not None else 0

    def _bind(self, server: grpc.Server | grpc.aio.Server) -> int:
        endpoint = self._endpoint
        if endpoint.unix_socket is not None:
            address = f"unix:{endpoint.unix_socket}"
            close(endpoint.open())  # raises if it is another's, whose file gRPC would replace
        else:
            address = _target(endpoint.host, endpoint.port)
        try:
            if self._credentials is not None:
                return server.add_secure_port(address, self._credentials)
            return server.add_insecure_port(address)
        except RuntimeError:
            close(endpoint.open())  # raises the reason, which gRPC does not tell
            raise OSError(f"cannot listen on {address}: gRPC does not say why") from None


class GrpcServer(_Grpc[grpc.Server, grpc.ServerInterceptor], Service):
    """Serves RPCs with `grpc.server`: each in a thread of a pool.

    The server is made anew for each start. The standard health service is there too: it says
    SERVING once the server listens, and NOT_SERVING from `drain()` on, while RPCs are still served.
    Calls on a channel fail as soon as a gRPC server begins to stop, so that clients need
    the group's `drain_delay` to look away.

    On `stop()` nothing new is taken, and RPCs in flight are finished; what is not done shortly
    before the deadline is cut, and the log says what that was. A handler that hangs even then is
    left behind on its daemon thread.

    Args:
        register: is called with each server that is made, to add the servicers:
            `lambda server: add_GreeterServicer_to_server(Greeter(), server)`.
        host, port: where to listen; port 0 chooses a free one.
        unix_socket: the path of a Unix socket to be used instead.
        reuse_port: let other processes listen to the same port.
        credentials: `grpc.ssl_server_credentials(...)`, say; without, there is no TLS.
        max_workers: how many RPCs are worked on at a time; others wait. A streaming one counts for
            as long as it lasts.
        services: names that health is to be told of, besides the empty one, the whole server.
        interceptors, options, maximum_concurrent_rpcs, compression: those of `grpc.server`.

    Attributes:
        port: the port it listens to, once it is ready.
        url: the target for a client's channel, once it is ready.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    _health: _Health | None = None

    def start(self) -> None:
        """Serve until `stop()`. OSError when it cannot listen."""
        if self.stopping.is_set():
            return
        name = threading.current_thread().name
        calls, health_service = _Calls(), _Health(name, self._services)
        self._calls = calls
        workers = DaemonExecutor(f"{name} (RPC)", self._max_workers)
        server = grpc.server(
            workers,
            interceptors=[calls, *self._interceptors],
            options=self._options,
            maximum_concurrent_rpcs=self._limit,
            compression=self._compression,
        )
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        try:
            self._register(server)
            self._bound = self._bind(server)
            self._health = health_service
            server.start()
            self.mark_ready()
            self.stopping.wait()
            self._finish(server, calls, health_service, workers)
        finally:
            self._health = self._bound = None
            server.stop(0)  # it does nothing to one that has stopped
            health_service.close()
            workers.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Have the health service say NOT_SERVING, while calls are still served."""
        health_service = self._health
        if health_service is not None:
            health_service.look_away()

    def _finish(
        self, server: grpc.Server, calls: _Calls, health_service: _Health, workers: DaemonExecutor
    ) -> None:
        limit = seconds_to_drain(self.remaining())
        until = FOREVER if limit is None else time.monotonic() + limit
        health_service.look_away()
        # It must not cut before it has been noted here what is left.
        done = server.stop(FOREVER if limit is None else limit + 1)
        calls.wait(until)
        health_service.end_watches()
        done.wait(max(0.0, until - time.monotonic()) if limit is not None else None)
        if done.is_set() and not calls.open:
            return
        left = list(calls.open)
        texts = [str(call) for call in left]
        unseen = len(workers.busy()) + workers.waiting() - calls.handlers()
        texts += ["a call that has not begun"] * max(unseen, not texts)
        server.stop(0)
        calls.wait(time.monotonic() + min(CUT_SECONDS, self.remaining() / 4))
        log_cut(self.name, texts, [stack_of(call.thread) for call in left])


class GrpcAioServer(_Grpc[grpc.aio.Server, grpc.aio.ServerInterceptor], AsyncService):
    """Serves RPCs with `grpc.aio`: each in a task of the loop.

    As `GrpcServer`, in an event loop of its own or in that of an `AsyncGroup`; several of them in
    one process belong in one `AsyncGroup`. What is not done when `run()` is cancelled is cut.

    Args:
        max_workers: how many threads there may be for handlers that are no coroutines.
        interceptors, options, maximum_concurrent_rpcs, compression: those of `grpc.aio.server`.
        The others: as for `GrpcServer`.

    Attributes:
        port: the port it listens to, once it is ready.
        url: the target for a client's channel, once it is ready.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    _hung: set[asyncio.Task[object]]
    _look_away: Callable[[], object] | None = None

    async def run(self) -> None:
        """Serve until the stop. Called by the group.

        Raises:
            OSError: it cannot listen.
        """
        stopping = self.stopping
        self._hung = set()
        if stopping.is_set():
            return
        calls, health_service = _AioCalls(), _AioHealth(self._services)
        self._calls = calls
        workers = DaemonExecutor(f"{self.name} (RPC)", self._max_workers)
        server = grpc.aio.server(
            workers,
            interceptors=[calls, *self._interceptors],
            options=self._options,
            maximum_concurrent_rpcs=self._limit,
            compression=self._compression,
        )
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        loop = asyncio.get_running_loop()
        ending: set[asyncio.Task[object]] = set()
        try:
            self._register(server)
            self._bound = self._bind(server)
            await server.start()
            self._look_away = partial(loop.call_soon_threadsafe, health_service.look_away)
            self.mark_ready()
            await stopping.wait()
            health_service.look_away()
            ending.add(loop.create_task(server.stop(FOREVER), name=f"{self.name} (stop)"))
            while calls.open:
                await asyncio.wait(calls.open)
            health_service.end_watches()
            await asyncio.wait(ending)
        finally:
            started = self._look_away is not None
            self._look_away = self._bound = None
            if started and not (ending and all(task.done() for task in ending)):
                await self._cut(server, ending, calls, workers)
            workers.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Have the health service say NOT_SERVING, while calls are still served. Any thread."""
        look_away = self._look_away
        if look_away is not None:
            try:
                look_away()
            except RuntimeError:
                pass  # the loop has ended just now

    async def _cut(
        self,
        server: grpc.aio.Server,
        ending: set[asyncio.Task[object]],
        calls: _AioCalls,
        workers: DaemonExecutor,
    ) -> None:
        """End what has not ended, and tell of it."""
        left = dict(calls.open)
        if left:  # at once, since there is little time
            stacks = [*map(task_stack, left), stacks_of(workers.busy())]
            log_cut(self.name, list(left.values()), stacks)
        ending.add(asyncio.create_task(server.stop(None), name=f"{self.name} (cut)"))
        await asyncio.wait({*left, *ending}, timeout=min(CUT_SECONDS, self.remaining() / 8))
        self._hung.update(task for task in (*left, *ending) if not task.done())

    def _told_of(self) -> set[asyncio.Task[object]]:
        return self._hung


@define(eq=False)
class _Call:
    """A call in flight.

    Attributes:
        thread: where its handler runs; None once it has ended.
        pending: how many of two have not ended: the handler, and the call as the client sees it.
    """

    method: str
    context: grpc.ServicerContext
    thread: threading.Thread | None
    pending: int = 2

    def __str__(self) -> str:
        return f"{self.context.peer()} ({self.method})"


class _Calls(grpc.ServerInterceptor):
    """Knows the calls in flight, except for those of the health service."""

    def __init__(self) -> None:
        self.open: set[_Call] = set()
        self._guard = threading.Lock()  # of them; each call takes it, and a condition is slower
        self._none_open = threading.Condition(self._guard)
        self._made: dict[str, tuple[Handler, Handler]] = {}

    def wait(self, until: float) -> None:
        """Wait until there are none, or it is `until` by the monotonic clock."""
        with self._none_open:
            self._none_open.wait_for(lambda: not self.open, max(0.0, until - time.monotonic()))

    def handlers(self) -> int:
        """How many are at work."""
        with self._guard:
            return sum(call.thread is not None for call in self.open)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._made.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        made = handler if method.startswith(HEALTH) else self._watched(method, handler)
        if known is not None or len(self._made) < METHODS_KEPT:
            self._made[method] = handler, made
        return made

    def _watched(self, method: str, handler: Handler) -> Handler:
        stream = "stream" if handler.request_streaming else "unary"
        kind = f"{stream}_stream" if handler.response_streaming else f"{stream}_unary"
        answer = self._stream if handler.response_streaming else self._answer
        made: Handler = getattr(grpc, f"{kind}_rpc_method_handler")(
            partial(answer, method, getattr(handler, kind)),
            handler.request_deserializer,
            handler.response_serializer,
        )
        return made

    def _answer(
        self, method: str, behavior: Callable[..., Any], request: Any, context: grpc.ServicerContext
    ) -> Any:
        call = self._begin(method, context)
        try:
            return behavior(request, context)
        finally:
            call.thread = None
            self._end(call)

    def _stream(
        self, method: str, behavior: Callable[..., Any], request: Any, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        call = self._begin(method, context)
        try:
            yield from behavior(request, context)
        finally:
            call.thread = None
            self._end(call)

    def _begin(self, method: str, context: grpc.ServicerContext) -> _Call:
        call = _Call(method, context, threading.current_thread())
        with self._guard:
            self.open.add(call)
        if not context.add_callback(partial(self._end, call)):
            self._end(call)  # it is over already
        return call

    def _end(self, call: _Call) -> None:
        with self._guard:
            call.pending -= 1
            if not call.pending:
                self.open.discard(call)
                if not self.open:
                    self._none_open.notify_all()


@define(eq=False)
class _Watch:
    """A client that watches the health of `service`."""

    service: str
    send: Respond  # returns when it is sent; None: no more
    lock: threading.Lock = Factory(threading.Lock)  # held while sending
    said: int | None = None
    ended: bool = False

    def tell(self, status: int) -> None:
        with self.lock:
            if not self.ended and status != self.said:
                self.said = status
                self.send(health_pb2.HealthCheckResponse(status=status))

    def end(self) -> None:
        with self.lock:
            if not self.ended:
                self.ended = True
                self.send(None)


class _Health(health_pb2_grpc.HealthServicer):
    """The health service; the library's own has a lock that freezes the whole server.

    It is held while clients are told, and wanted when a client goes: as those do that are told.
    """

    def __init__(self, name: str, services: Iterable[str]) -> None:
        self._status: dict[str, int] = {}
        for service in services:
            self._status[service] = health_pb2.HealthCheckResponse.SERVING
        self._watches: set[_Watch] = set()
        self._ending = False
        # A client that reads nothing must not hold up the others.
        self._tellers = DaemonExecutor(f"{name} (health)", TELLERS)

    def Check(  # noqa: N802  # the name in the protocol, as below
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._status:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status[request.service])

    # Any: with `experimental_non_blocking`, it has another shape than the protocol's.
    def Watch(self, request: Any, context: grpc.ServicerContext, send: Any = None) -> Any:  # noqa: N802
        watch = _Watch(request.service, send)
        self._watches.add(watch)
        if context.add_callback(partial(self._watches.discard, watch)):
            self._tell(watch)
        else:
            self._watches.discard(watch)  # it is over already
        if self._ending:
            watch.end()

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]  # needs no thread

    def look_away(self) -> None:
        """Say NOT_SERVING from now on. Any thread."""
        for service in self._status:
            self._status[service] = health_pb2.HealthCheckResponse.NOT_SERVING
        for watch in list(self._watches):
            self._tellers.submit(self._tell, watch)

    def end_watches(self) -> None:
        """From now on there are none: they would go on for ever."""
        self._ending = True
        for watch in list(self._watches):
            self._tellers.submit(watch.end)

    def close(self) -> None:
        self._tellers.shutdown(wait=False, cancel_futures=True)

    def _tell(self, watch: _Watch) -> None:
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.tell(self._status.get(watch.service, unknown))


class _AioCalls(grpc.aio.ServerInterceptor):
    """Knows the tasks of the calls in flight, except for those of the health service."""

    def __init__(self) -> None:
        self.open: dict[asyncio.Task[Any], str] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        task = asyncio.current_task()
        assert task is not None
        if not handler_call_details.method.startswith(HEALTH):
            self.open[task] = handler_call_details.method
            task.add_done_callback(self.open.pop)
        return await continuation(handler_call_details)


class _AioHealth(health_pb2_grpc.HealthServicer):
    """As `_Health`, in a loop; the library's own lets a client that reads nothing stop it."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._away = asyncio.Event()
        self._ending = asyncio.Event()

    async def Check(  # noqa: N802  # the name in the protocol, as below
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._response(request.service)

    async def Watch(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        away = self._away.is_set()
        await context.write(self._response(request.service))
        if not away:
            await self._away.wait()
            await context.write(self._response(request.service))
        await self._ending.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        status: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if service in self._services:
            status = health_pb2.HealthCheckResponse.SERVING
            if self._away.is_set():
                status = health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    def look_away(self) -> None:
        """Say NOT_SERVING from now on. In the loop."""
        self._away.set()

    def end_watches(self) -> None:
        """From now on there are none: they would go on for ever."""
        self._ending.set()


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
