"""One service during one run: its thread, what it reports, and what is known of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from servicegroup._options import Options
from servicegroup._stacks import stacks_of
from servicegroup.report import ServiceStatus, State, one_line
from servicegroup.service import Composite, Managed, Service, StartStop

if TYPE_CHECKING:
    from servicegroup.events import Event
    from servicegroup.restart import Restart, RestartHistory

    class Beating(Protocol):
        """A service during one run, as far as its heartbeats go."""

        options: Options
        state: State
        beat_at: float

    class Host(Protocol):
        """The run a service belongs to, as its runner sees it: where it posts to."""

        @property
        def wall_offset(self) -> float: ...

        @property
        def root(self) -> object: ...

        def now(self) -> float: ...

        def post(self, handler: Callable[..., None], /, *args: object) -> None: ...

        def wants_details(self) -> bool: ...

        def emit_part(self, part: str, event: Event, below: str) -> None: ...

        def on_entered(self, runner: Runner) -> None: ...

        def on_announced(self, runner: Runner, ready: bool) -> None: ...

        def on_recovered(self, runner: Runner) -> None: ...

        def on_ended(
            self, runner: Runner, error: BaseException | None, line: str = ...
        ) -> None: ...


def line_of(error: BaseException) -> str:
    """What a reason says of `error`; for the thread that caught it, since it runs user code."""
    if not isinstance(error, SystemExit):
        return one_line(error)
    try:
        return repr(error.code)
    except Exception:
        return "..."


def silence(part: Beating, now: Callable[[], float]) -> float | None:
    """Seconds since its last heartbeat, if it runs and owes any. Any thread."""
    if part.options.heartbeat_timeout == float("inf") or part.state is not State.RUNNING:
        return None
    beat_at = part.beat_at  # before `now`, since another may come meanwhile
    return now() - beat_at


class GroupThread(threading.Thread):
    """A thread of a group: `root` is the outermost run it belongs to."""

    def __init__(
        self, target: Callable[[], object], name: str, root: object, runner: Runner | None = None
    ) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self.root = root
        self.runner = runner


@define(eq=False, repr=False)
class Runner:
    """All fields but `stop_thread` and `beat_at` are written by the deciding thread only."""

    service: StartStop
    name: str
    options: Options
    host: Host
    context: Context | None
    thread: GroupThread | None = None
    stop_thread: threading.Thread | None = None

    state: State = State.NEW
    ready: bool = False
    entered: bool = False
    ended: bool = False  # start() returned or raised
    owed: bool = True  # a stop(), if start() was entered; not once it raised
    asked: bool = False  # it was handed over to be stopped
    stop_returned: bool = False
    settled: bool = False  # nothing more is to come, or it was abandoned
    final: State = State.STOPPED  # what it will be when it has stopped
    deadline: float | None = None  # to be ready by; once asked, to have ended by
    started_at: float = 0.0
    ready_at: float | None = None
    unready_at: float = 0.0
    beat_at: float = 0.0  # written by the service's threads
    stalled: bool = False
    again: bool = False  # once it has stopped it is to be started again
    restarts: int = 0
    histories: dict[Restart, RestartHistory] | None = None
    asked_at: float | None = None
    settled_at: float | None = None
    error: BaseException | None = None
    stack: str | None = None

    # Held by whoever came first: the service's thread, which then enters start() and is owed a
    # stop(), or the stop, and start() is never called.
    _claim: threading.Lock = field(factory=threading.Lock)
    # Held by whoever came first of the two who know that the thread runs: it and its starter.
    _met: threading.Lock = field(factory=threading.Lock)

    def launch(self, thread_name: str) -> bool:
        """Start the thread. RuntimeError when the machine has none left.

        Returns:
            Whether it has entered `start()` already; if not, it will post `on_entered`.
        """
        service = self.service
        if isinstance(service, Managed):
            if service._link is not None:
                service._rearm()
            object.__setattr__(service, "_link", self)
        thread = GroupThread(self._main, thread_name, self.host.root, self)
        thread.start()
        self.thread = thread
        return not self._met.acquire(blocking=False)

    def reset(self) -> None:
        """As new, for one more start."""
        self._claim = threading.Lock()
        self._met = threading.Lock()
        self.entered = self.ended = self.asked = self.stop_returned = self.settled = False
        self.again = self.stalled = False
        self.owed = True
        self.final = State.STOPPED
        self.ready_at = self.asked_at = self.settled_at = None

    def claim(self) -> bool:
        """Whether the caller came first."""
        return self._claim.acquire(blocking=False)

    def _main(self) -> None:
        if not self.claim():
            return
        host = self.host
        if not self._met.acquire(blocking=False):
            host.post(host.on_entered, self)
        try:
            # A thread begins with an empty context; to enter another costs 4 KiB of its stack.
            if self.context is None:
                self.service.start()
            else:
                self.context.run(self.service.start)
        except BaseException as error:
            host.post(host.on_ended, self, error, line_of(error))
        else:
            host.post(host.on_ended, self, None)

    @property
    def drain(self) -> Callable[[], None] | None:
        """The service's `drain`, if it has one of its own."""
        service: object = self.service
        if isinstance(service, Managed):
            return None if type(service).drain is Managed.drain else service.drain
        return service._drain if isinstance(service, Composite) else None

    @property
    def stop_event(self) -> threading.Event | None:
        """The `stopping` event, if its `stop()` is known to do nothing but set that."""
        service = self.service
        if not isinstance(service, Service) or type(service).stop is not Service.stop:
            return None
        known = vars(service)
        event = known.get("stopping")
        return event if type(event) is threading.Event and "stop" not in known else None

    @property
    def has_thread(self) -> bool:
        """Whether its `start()` or `stop()` runs. Any thread."""
        thread = self.thread
        runs = thread is not None and not self.ended and thread.is_alive()
        return runs or self.stop_thread is not None

    def announce(self, ready: bool) -> None:
        """What `mark_ready` and `mark_not_ready` come to. Any thread."""
        self.host.post(self.host.on_announced, self, ready)

    def beat(self) -> None:
        """What `heartbeat` comes to. Any thread; only the first after a stall is a message."""
        self.beat_at = self.host.now()
        if self.stalled:
            self.host.post(self.host.on_recovered, self)

    def wants_details(self) -> bool:
        """Whether anybody reads of each start and stop inside of it. Any thread."""
        return self.host.wants_details()

    def tell(self, event: Event, below: str = "") -> None:
        """Something happened inside of it; `below` as in `Supervision.emit_part`. Any thread."""
        self.host.emit_part(self.name, event, below)

    def remaining(self) -> float:
        """Seconds until the service is abandoned. Any thread."""
        deadline = self.deadline
        if self.asked and self.settled:
            return 0.0
        if deadline is None or not self.asked:
            return float("inf")
        return max(0.0, deadline - self.host.now())

    def take_stack(self) -> str:
        """Where the service's threads are: that of its start() and that of its stop()."""
        return stacks_of([None if self.ended else self.thread, self.stop_thread])

    def status(self) -> ServiceStatus:
        """How it stands. Any thread."""
        wall = self.host.wall_offset
        ready_at, asked_at, settled_at = self.ready_at, self.asked_at, self.settled_at
        seconds_to_stop = None
        if asked_at is not None and settled_at is not None:
            seconds_to_stop = settled_at - asked_at
        service: object = self.service
        parts: tuple[ServiceStatus, ...] = ()
        if isinstance(service, Composite):
            parts = tuple(part.under(self.name) for part in service._parts())
        return ServiceStatus(
            name=self.name,
            state=self.state,
            ready=self.ready,
            stalled=self.stalled,
            started_at=None if self.state is State.NEW else self.started_at + wall,
            seconds_to_ready=None if ready_at is None else ready_at - self.started_at,
            stopping_at=None if asked_at is None else asked_at + wall,
            seconds_to_stop=seconds_to_stop,
            restarts=self.restarts,
            seconds_since_heartbeat=silence(self, self.host.now),
            error=self.error,
            stack=self.stack,
            parts=parts,
        )
