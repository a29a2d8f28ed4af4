"""`LoopServer`: what the servers that run in an event loop have in common."""

from __future__ import annotations

import asyncio
import errno
import math
import select
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from servicegroup._aio_service import AsyncService
from servicegroup._aio_tasks import task_stack
from servicegroup._stacks import stacks_of
from servicegroup.adapters._drain import CUT_SECONDS, FIRST_WORD, log, log_cut
from servicegroup.errors import StopTimeoutError
from servicegroup.service import ReadyWhen
from servicegroup.sockets import ROUND_TRIP, Endpoint, close, port_of, refuse_new, url_of

PAUSE_SECONDS = 0.1  # before accepting again when there was no descriptor left
TICK = 0.01  # between two looks at what is still open; while stopping only
# Of the time to stop, until requests in flight are cut; and of what is left then, for the
# application to shut down. Both together end before an AsyncService gives its run() up.
CUT_SHARE = 0.75
LAST_SHARE = 0.35
STACKS = 10  # of so many cut requests it is told where they were
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Factory = Callable[[], asyncio.Protocol]


class LoopServer(AsyncService, ABC):
    """Starts an application, listens, and at the stop loses no request.

    A subclass sets `_endpoint`, and `_tls` before it is up.
    """

    ready_when: ReadyWhen | None = "announced"

    _endpoint: Endpoint
    _tls: ssl.SSLContext | None = None
    _listener: socket.socket | None = None
    _draining: bool = False
    _cutting: bool = False
    _serving: bool = False
    _loop: asyncio.AbstractEventLoop | None = None
    _hung: frozenset[asyncio.Task[object]] = frozenset()  # it is told of them already

    # -- for a subclass to say --------------------------------------------------------------------

    @abstractmethod
    async def _live(self, up: asyncio.Future[Factory], leave: asyncio.Event) -> None:
        """Start the application; say that it is `up`; wait for `leave`, and shut it down."""

    async def _before_drain(self) -> None:
        """The listener is closed; requests are in flight."""

    @abstractmethod
    def _sweep(self, patient: bool) -> bool:
        """Close connections that ask for nothing; whether there are others.

        Args:
            patient: leave those open that never asked for anything.
        """

    def _begin_drain(self) -> None:
        """From now on answers are to say `Connection: close`. In the loop."""

    # Any, here and below: what the library has for a request.
    @abstractmethod
    def _in_flight(self) -> dict[asyncio.Task[Any], Any]:
        """The requests in flight, by the tasks that are at work on them."""

    @abstractmethod
    def _hang_up(self, requests: Iterable[Any]) -> None:
        """Close all connections at once; `requests` are in flight, and their tasks cancelled next.

        A request that ends by that need not be logged.
        """

    @abstractmethod
    def _unsent(self) -> Iterable[str]:
        """The clients that have not read all of an answer which is no request any more."""

    @abstractmethod
    def _text(self, request: Any) -> str:
        """What is said of `request` in the log."""

    def _waiting_for(self, request: Any) -> Iterable[asyncio.Task[Any]]:
        """Other tasks that do not end before `request` has."""
        return ()

    @abstractmethod
    def _count_in_flight(self) -> int:
        """How many these are. Any thread."""

    # -- for its users ----------------------------------------------------------------------------

    @property
    def port(self) -> int | None:
        """The port it listens to; None for a Unix socket, or while it does not listen."""
        listener = self._listener
        return None if listener is None else port_of(listener)

    @property
    def url(self) -> str:
        """Where clients find it.

        Raises:
            RuntimeError: it does not listen.
        """
        listener = self._listener
        if listener is None:
            raise RuntimeError(f"service {self.name!r} does not listen: it has a url once ready")
        return url_of(listener, "http" if self._tls is None else "https")

    @property
    def in_hand(self) -> int:
        """How many requests are in flight. Any thread."""
        return self._count_in_flight() if self._serving else 0

    def drain(self) -> None:
        """Have answers ask their clients to connect anew next time. Any thread."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._drain_once)
            except RuntimeError:  # it is closed
                pass

    def _drain_once(self) -> None:
        if not self._draining and self._listener is not None:
            self._draining = True
            self._begin_drain()

    async def run(self) -> None:
        """Serve until the stop. Called by the group.

        Raises:
            OSError: it cannot listen.
            StopTimeoutError: the application did not shut down in time.
            Exception: what the application raised when it was started, or shut down.
        """
        stopping = self.stopping
        if stopping.is_set():
            return
        self._loop = loop = asyncio.get_running_loop()
        self._draining, self._cutting = False, False
        self._hung = frozenset()
        self._ends_since = loop.time()
        up: asyncio.Future[Factory] = loop.create_future()
        leave = asyncio.Event()
        # In one task from its start to its end: what was entered in one is to be left in the same.
        life = loop.create_task(self._live(up, leave), name=f"{self.name} (application)")
        stop = loop.create_task(stopping.wait(), name=f"{self.name} (stop)")
        ends: set[asyncio.Future[Any]] = {life, stop}
        try:
            await asyncio.wait({up, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                await self._serve(up.result(), ends)
        finally:
            stop.cancel()
            leave.set()
            if not up.done():
                life.cancel()
            await self._end(life, begun=up.done())

    # -- the stages of run() ----------------------------------------------------------------------

    async def _serve(self, factory: Factory, ends: set[asyncio.Future[Any]]) -> None:
        listener = self._endpoint.open()
        door = _Door(self.name, listener, self._endpoint.backlog, factory, self._tls)
        try:
            try:
                self._listener = listener
                door.open()
                self._serving = True
                self.mark_ready()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                self._drain_once()
                self._ends_since = asyncio.get_running_loop().time()
                refuse_new(listener)
                await asyncio.sleep(ROUND_TRIP)
                door.accept()  # or the kernel would reset those who still wait
            finally:
                self._listener = None
                door.close()
            # An application that failed has nobody to serve it for long.
            async with asyncio.timeout(None if self.stopping.is_set() else FIRST_WORD):
                await self._before_drain()
                await self._finish(door)
        except (asyncio.CancelledError, TimeoutError):
            await self._cut(door)
            raise
        finally:
            self._serving = False

    async def _finish(self, door: _Door) -> None:
        """Wait until all requests are answered."""
        loop = asyncio.get_running_loop()
        until = loop.time() + FIRST_WORD
        while True:
            patient = loop.time() < until
            if not patient:
                door.turn_away()
            if not (self._sweep(patient) or door.opening):
                return
            await asyncio.sleep(TICK)

    async def _cut(self, door: _Door) -> None:
        """End what has not ended, and tell of it."""
        self._cutting = True
        door.turn_away()
        requests = self._in_flight()
        tasks = list(requests)
        cut = [*map(self._text, requests.values()), *self._unsent()]
        stacks = [task_stack(task) for task in tasks[:STACKS]]
        if stacks:
            stacks[-1] += stacks_of(_busy_threads(asyncio.get_running_loop()))
        if cut:
            log_cut(self.name, cut, stacks)
        # Now that they were told of; there may be no time left after the next wait.
        self._hung = frozenset(tasks).union(*map(self._waiting_for, requests.values()))
        self._hang_up(requests.values())
        for _ in range(2):  # until the requests have been told that their clients are gone
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=min(CUT_SECONDS, self.remaining() / 8))

    async def _end(self, life: asyncio.Task[None], begun: bool) -> None:
        """Wait for the application's end, and raise what it raised."""
        stack = ""
        this = asyncio.current_task()
        late = this is not None and this.cancelling() > 0
        limit = LAST_SHARE * self.remaining() if late else math.inf
        try:
            async with asyncio.timeout(None if limit == math.inf else limit):
                await asyncio.wait({life})
        except (asyncio.CancelledError, TimeoutError):
            stack = task_stack(life)
            life.cancel()
            self._hung |= {life}
        if stack or (begun and life.cancelled()):
            seconds = asyncio.get_running_loop().time() - self._ends_since
            raise StopTimeoutError(self.name, seconds, stack)
        if not life.cancelled():
            life.result()

    # -- what AsyncService asks -------------------------------------------------------------------

    def _cancel_delay(self, left: float) -> float:
        return CUT_SHARE * left if self.cancel_after is None else self.cancel_after

    def _told_of(self) -> set[asyncio.Task[object]]:
        return set(self._hung)

    def _on_threads_hung(self, where: str) -> str:
        if not self._cutting:
            return where
        # They are at work on requests that were cut, which is no failure of the service.
        log.error("service %r leaves threads behind that hang:\n%s", self.name, where)
        return ""


class _Door:
    """Accepts connections.

    The loop's own server is not used, since it tells nobody of those that are being opened.
    """

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        backlog: int,
        factory: Factory,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.opening: set[asyncio.Task[None]] = set()
        self._name = name
        self._listener = listener
        self._backlog = backlog
        self._factory = factory
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self.accept)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())
        close(self._listener)

    def accept(self) -> None:
        """Accept whoever waits."""
        for _ in range(self._backlog + 1):
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF:
                    log.error("service %r cannot accept: %s", self._name, error)
                    self._loop.remove_reader(self._listener.fileno())
                    self._pause = self._loop.call_later(PAUSE_SECONDS, self.open)
                    return
                continue  # this one has gone already
            task = self._loop.create_task(self._let_in(connection))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)

    async def _let_in(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._tls)
        except OSError as error:  # of TLS, or the client has gone already
            log.debug("service %r: a connection failed: %r", self._name, error)

    def turn_away(self) -> None:
        """Wait no more for connections that are being opened."""
        for task in self.opening:
            task.cancel()


def more_waits(transport: asyncio.BaseTransport) -> bool:
    """Whether the client has sent more than was read, which must not be closed away."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def peer(transport: asyncio.BaseTransport) -> str:
    """The client's address, as text."""
    address = transport.get_extra_info("peername")
    return "{}:{}".format(*address[:2]) if isinstance(address, tuple) else "a Unix socket"


def _busy_threads(loop: asyncio.AbstractEventLoop) -> list[threading.Thread]:
    """The threads of anyio that work for `loop`: there the endpoints of Starlette run."""
    return [
        thread
        for thread in threading.enumerate()
        if getattr(thread, "loop", None) is loop
        and thread not in getattr(thread, "idle_workers", ())
    ]
