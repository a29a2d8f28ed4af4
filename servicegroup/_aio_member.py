"""One service of an `AsyncGroup` during one run: its task, and what is known of it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from attrs import define

from servicegroup._aio_service import AsyncService, as_awaitable
from servicegroup._aio_tasks import task_stack
from servicegroup._options import Options
from servicegroup._runner import silence
from servicegroup.report import ServiceStatus, State
from servicegroup.service import Composite

if TYPE_CHECKING:
    from servicegroup._aio_crew import Crew
    from servicegroup.events import Event
    from servicegroup.restart import Restart, RestartHistory


_set = object.__setattr__  # a service may be a frozen dataclass


@define(eq=False, repr=False)
class Member:
    """All fields but `beat_at` are written in the loop only."""

    crew: Crew
    service: AsyncService
    name: str
    options: Options
    started_at: float
    task: asyncio.Task[None] | None = None
    state: State = State.STARTING
    ready: bool = False
    entered: bool = False
    ended: bool = False
    owed: bool = True  # a stop; not once run() raised
    asked: bool = False  # to stop
    settled: bool = False  # nothing more is to come, or it was abandoned
    final: State = State.STOPPED  # what it will be when it has stopped
    cancelled: bool = False  # by us
    # When something is to be done about it: the earliest of the three that follow.
    due: float = math.inf
    deadline: float = math.inf  # to be ready by, or started again at; once asked, to have ended by
    cancel_at: float = math.inf
    beat_due: float = math.inf
    ready_at: float | None = None
    unready_at: float = 0.0
    beat_at: float = 0.0  # written by any thread
    stalled: bool = False
    again: bool = False  # once it has stopped it is to be started again
    restarts: int = 0
    histories: dict[Restart, RestartHistory] | None = None
    asked_at: float | None = None
    settled_at: float | None = None
    error: BaseException | None = None
    stack: str | None = None

    def reset(self) -> None:
        """As new, for one more start."""
        self.entered = self.ended = self.asked = self.settled = self.cancelled = False
        self.again = self.stalled = False
        self.owed = True
        self.state, self.final = State.STARTING, State.STOPPED
        self.ready_at = self.asked_at = self.settled_at = None

    # -- what an AsyncService sees of it ----------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.crew.loop

    def announce(self, ready: bool) -> None:
        self.crew.call(self.crew.on_announced, self, ready)

    def remaining(self) -> float:
        if self.asked and self.settled:
            return 0.0
        if not self.asked or self.deadline == math.inf:
            return math.inf
        return max(0.0, self.deadline - self.crew.now())

    def beat(self) -> None:
        """What `heartbeat` comes to. Any thread; only the first after a stall is a message."""
        self.beat_at = self.crew.now()
        if self.stalled:
            self.crew.call(self.crew.on_recovered, self)

    def wants_details(self) -> bool:
        return self.crew.wants_details()

    def tell(self, event: Event, below: str = "") -> None:
        self.crew.emit_part(self.name, event, below)

    def on_stop(self) -> None:
        """Somebody called its `stop()`; not the group, which needs no call."""
        if not self.ended:
            self.service._on_asked()
            if not self.asked:
                self.crew.cancel_in(self, self.service._cancel_delay(math.inf))

    # -- its task ---------------------------------------------------------------------------------

    async def main(self) -> None:
        """What its task runs."""
        if self.settled:
            return  # the stop came first
        crew, service = self.crew, self.service
        self.entered = True
        # Without the lock: a stop() from another thread, which writes `_asked` and then looks for
        # the control, sees this one, or is seen here, or both; to be asked twice does no harm.
        _set(service, "_control", self)
        if service._asked:
            crew.loop.call_soon(self.on_stop)
        if self.options.ready_when == "entered":
            crew.on_entered(self)
        error: BaseException | None = None
        try:
            await as_awaitable(service)
        except asyncio.CancelledError as cancelled:
            error = None if self.cancelled else cancelled
        except BaseException as raised:
            error = raised
        service._attach(None)
        crew.on_ended(self, error)
        self.task = None  # thousands that have ended would be looked through at the end
        del error

    def take_stack(self) -> str:
        """Where its task is."""
        return "" if self.task is None else task_stack(self.task)

    def status(self, wall: float) -> ServiceStatus:
        """How it stands; `wall` is what the loop's clock lacks to the epoch's. Any thread."""
        service: object = self.service
        name = self.name
        parts = service._parts() if isinstance(service, Composite) else ()
        asked_at, settled_at, ready_at = self.asked_at, self.settled_at, self.ready_at
        return ServiceStatus(
            name=name,
            state=self.state,
            ready=self.ready,
            stalled=self.stalled,
            started_at=None if self.state is State.NEW else self.started_at + wall,
            seconds_to_ready=None if ready_at is None else ready_at - self.started_at,
            stopping_at=None if asked_at is None else asked_at + wall,
            seconds_to_stop=None
            if asked_at is None or settled_at is None
            else settled_at - asked_at,
            restarts=self.restarts,
            seconds_since_heartbeat=silence(self, self.crew.now),
            error=self.error,
            stack=self.stack,
            parts=tuple(part.under(name) for part in parts),
        )
