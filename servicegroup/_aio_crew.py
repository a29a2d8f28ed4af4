"""One run of an `AsyncGroup`: its members, and the decisions, all made in the loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable

from attrs import define, field, frozen

from servicegroup._aio_service import CANCEL_SHARE, AsyncService, as_awaitable
from servicegroup._aio_tasks import task_stack
from servicegroup._table import Entry, Table
from servicegroup.errors import (
    ServiceCrashedError,
    ServiceGroupError,
    StartTimeoutError,
    StopTimeoutError,
)
from servicegroup.report import GroupState, Report, ServiceStatus, State, one_line
from servicegroup.service import Composite

# Of the time a stop may take: when those not asked yet are asked all at once, and when the last
# are abandoned, so that a little is left to end the loop and to tell of it.
RESERVE_SHARE = 0.8
ABANDON_SHARE = 0.9
STARTS_AT_ONCE = 64  # then others have their turn: a stop must not wait for thousands of starts

ALL_FINISHED = "all services have finished"


@frozen(kw_only=True, eq=False, repr=False)
class Outer:
    """What a crew knows of the group it is for."""

    name: str
    table: Table
    shutdown_timeout: float
    remaining: Callable[[], float]
    announce: Callable[[bool], None]


@define(eq=False, repr=False)
class Member:
    """One service during one run. Written in the loop only."""

    crew: Crew
    entry: Entry
    service: AsyncService
    started_at: float
    task: asyncio.Task[None] | None = None
    state: State = State.STARTING
    ready: bool = False
    entered: bool = False
    ended: bool = False
    owed: bool = True  # a stop; not once run() raised
    settled: bool = False  # nothing more is to come, or it was abandoned
    cancelled: bool = False  # by us
    deadline: float = math.inf  # to be ready by; once asked, to have ended by
    cancel_at: float = math.inf
    ready_at: float | None = None
    asked_at: float | None = None
    settled_at: float | None = None
    error: BaseException | None = None
    stack: str | None = None

    # -- what an AsyncService sees of it ----------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.crew.loop

    def announce(self, ready: bool) -> None:
        self.crew.call(self.crew.on_announced, self, ready)

    def remaining(self) -> float:
        if self.asked_at is None or self.deadline == math.inf:
            return math.inf
        return max(0.0, self.deadline - self.loop.time())

    def beat(self) -> None:
        """Nobody listens: heartbeats are for the group as a whole."""

    def on_stop(self) -> None:
        """Somebody called its `stop()`; not the group, which needs no call."""
        if not self.ended:
            self.service._on_asked()
            if self.asked_at is None:
                self.crew.cancel_in(self, self.service._cancel_delay(math.inf))

    # -- its task ---------------------------------------------------------------------------------

    async def main(self) -> None:
        if self.settled:
            return  # the stop came first
        crew, service = self.crew, self.service
        self.entered = True
        if service._attach(self):
            crew.loop.call_soon(self.on_stop)
        if self.entry.options.ready_when == "entered":
            crew.set_ready(self, True)
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

    def status(self, wall: float) -> ServiceStatus:
        """How it stands. Any thread."""
        service: object = self.entry.service
        name = self.entry.name
        parts = service._parts() if isinstance(service, Composite) else ()
        asked_at, settled_at, ready_at = self.asked_at, self.settled_at, self.ready_at
        return ServiceStatus(
            name=name,
            state=self.state,
            ready=self.ready,
            started_at=None if self.state is State.NEW else self.started_at + wall,
            seconds_to_ready=None if ready_at is None else ready_at - self.started_at,
            stopping_at=None if asked_at is None else asked_at + wall,
            seconds_to_stop=None
            if asked_at is None or settled_at is None
            else settled_at - asked_at,
            error=self.error,
            stack=self.stack,
            parts=tuple(part.under(name) for part in parts),
        )


@define(eq=False, repr=False)
class Crew:
    """The members of one run.

    Everything is done in the loop, but for `call` and `status`.

    Invariant: a member is asked to stop at most once, and only after every member started later is
    settled, unless `_at_once` is set or one of those was abandoned.
    """

    outer: Outer
    loop: asyncio.AbstractEventLoop
    state: GroupState = GroupState.STARTING
    over: asyncio.Future[None] = field(init=False)
    members: list[Member] = field(factory=list)
    failures: list[Exception] = field(factory=list)
    exit: SystemExit | None = None
    reason: str = ""
    ready: bool = False
    started_at: float = 0.0
    wall_offset: float = 0.0
    _awaited: Member | None = None  # the next one starts when this one is ready
    _unready: int = 0
    _working: int = 0
    _had_work: bool = False
    _left: int = 0  # members that may be owed a stop: the first so many
    _at_once: bool = False
    _stopping_at: float = 0.0
    _reserve_at: float = math.inf
    _abandon_at: float = math.inf
    # Members that have something to be done at a time; looked through when the timer goes off.
    _timed: set[Member] = field(factory=set)
    _timer: asyncio.TimerHandle | None = None
    _timer_at: float = math.inf

    def __attrs_post_init__(self) -> None:
        self.over = self.loop.create_future()
        self.started_at = self.loop.time()
        self.wall_offset = time.time() - self.started_at

    def call(self, fn: Callable[..., None], *args: object) -> None:
        """`fn(*args)` in the loop: now if this is its thread. Any thread."""
        if asyncio._get_running_loop() is self.loop:
            fn(*args)
            return
        try:
            self.loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:  # it is closed: all has ended
            pass

    # -- starting ---------------------------------------------------------------------------------

    def advance_soon(self) -> None:
        """Something was added. In the loop, but maybe in the midst of a decision."""
        self.loop.call_soon(self.advance)

    def advance(self) -> None:
        """Start what is to be started; see whether all is up, or done."""
        if self.state not in (GroupState.STARTING, GroupState.RUNNING):
            return
        entries, members = self.outer.table.entries, self.members
        for _ in range(STARTS_AT_ONCE):
            if self._awaited is not None or len(members) == len(entries):
                break
            self._launch(entries[len(members)])
        else:
            self.advance_soon()
            return
        if self._awaited is None:
            self.state = GroupState.RUNNING
            self._look_around()

    def _launch(self, entry: Entry) -> None:
        now = self.loop.time()
        service, options = entry.service, entry.options
        assert isinstance(service, AsyncService)
        member = Member(self, entry, service, now)
        if service._link is not None:
            service._rearm()
        object.__setattr__(service, "_link", member)
        self.members.append(member)
        self._unready += 1
        if not options.daemon:
            self._working += 1
            self._had_work = True
        if options.ready_when == "announced":
            self._awaited = member
            self._set_deadline(member, now + options.start_timeout)
        member.task = self.loop.create_task(member.main(), name=entry.name)

    def _look_around(self) -> None:
        """All were started: are they up, or are they done?"""
        if self.state is not GroupState.RUNNING:
            return
        ready = self._unready == 0
        if ready is not self.ready:
            self.ready = ready
            self.outer.announce(ready)
        if self._working == 0 and (self._had_work or not self.members):
            if self.outer.table.close_after(len(self.members)):
                self.stop(ALL_FINISHED)
            else:
                self.advance()

    def on_announced(self, member: Member, ready: bool) -> None:
        """It called `mark_ready()` or `mark_not_ready()`."""
        if member.entered and (ready or member.ready_at is not None):
            self.set_ready(member, ready)

    def set_ready(self, member: Member, ready: bool) -> None:
        """It is up, or is not for now."""
        if member.ready is ready or member.state not in (State.STARTING, State.RUNNING):
            return
        member.ready = ready
        self._unready += -1 if ready else 1
        if ready and member.ready_at is None:
            member.ready_at = self.loop.time()
            member.state = State.RUNNING
            self._await_no_more(member)
        if not ready or self._unready == 0:
            self._look_around()

    def _await_no_more(self, member: Member) -> None:
        member.deadline = math.inf
        if self._awaited is member:
            self._awaited = None
            self.advance_soon()

    # -- running ----------------------------------------------------------------------------------

    def on_ended(self, member: Member, error: BaseException | None) -> None:
        """Its `run()` returned, or raised `error`."""
        if member.settled:
            return  # abandoned: what comes late counts no more
        member.ended = True
        member.cancel_at = math.inf
        asked = member.asked_at is not None
        if error is not None:
            self._raised(member, error)
        elif not asked:
            self._returned(member)
        if asked:
            self._settle(member, State.STOPPED if error is None else member.state)
        if self.state is GroupState.STOPPING:
            self._stop_next()
        elif self._working == 0 or self._unready == 0:
            self._look_around()

    def _returned(self, member: Member) -> None:
        if member.ready_at is None:
            self.set_ready(member, True)
        self._retire(member)
        member.state = State.FINISHED
        if member.entry.options.on_return == "stop":
            self.stop(f"service {member.entry.name!r} returned")

    def _raised(self, member: Member, error: BaseException) -> None:
        options = member.entry.options
        asked = member.asked_at is not None
        if asked and isinstance(error, options.expected_on_stop):
            member.state = State.STOPPED
            return
        phase = "while stopping" if asked else "while running"
        if not asked:
            if member.ready_at is None:
                phase = "while starting"
            self._retire(member)
        member.owed = False
        clean_exit = isinstance(error, SystemExit) and not error.code
        member.state = State.FINISHED if clean_exit else State.FAILED
        self._fail(member, error, phase)
        self._follow(member, error)

    def _retire(self, member: Member) -> None:
        """It ended by itself: it counts neither as up nor as working."""
        self._await_no_more(member)
        if member.ready:
            member.ready = False
        else:
            self._unready -= 1
        if not member.entry.options.daemon:
            self._working -= 1

    def _fail(self, member: Member, error: BaseException, phase: str) -> None:
        if isinstance(error, SystemExit):
            if not error.code:
                return
            self.exit = self.exit or error
        elif not isinstance(error, Exception):
            crash = ServiceCrashedError(one_line(error))
            crash.__cause__ = error
            error = crash
        error.add_note(f"in service {member.entry.name!r}, {phase}")
        if member.error is None:
            member.error = error
        fatal = phase == "while stopping" or member.entry.options.on_failure == "stop"
        if fatal and isinstance(error, Exception):
            self.failures.append(error)

    def _follow(self, member: Member, error: BaseException) -> None:
        name = member.entry.name
        if isinstance(error, SystemExit):
            self.stop(f"service {name!r} called sys.exit({error.code!r})")
        elif member.entry.options.on_failure == "stop":
            self.stop(f"service {name!r} failed: {one_line(error)}")

    # -- stopping ---------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Somebody asks for the stop; once more, maybe, with less time."""
        if self.state is GroupState.STOPPED:
            return
        now = self.loop.time()
        first = self.state is not GroupState.STOPPING
        if first:
            self.reason = reason
            self._stopping_at = now
            self.outer.table.close()
            self.state = GroupState.STOPPING
            self.ready = False
            self._awaited = None
            self._left = len(self.members)
        until = self._stopping_at + self.outer.shutdown_timeout
        total = min(self.outer.remaining(), until - now)
        if total < math.inf:
            self._reserve_at = min(self._reserve_at, now + RESERVE_SHARE * total)
            self._abandon_at = min(self._abandon_at, now + ABANDON_SHARE * total)
            self._wake_at(self._reserve_at)
        if first:
            self._stop_next()
        else:
            for member in [m for m in self._timed if m.asked_at is not None]:
                self._limit(member)

    def _stop_next(self) -> None:
        members = self.members
        if self._at_once:
            for member in reversed(members[: self._left]):
                self._ask(member)
        while self._left:
            member = members[self._left - 1]
            self._ask(member)
            if not member.settled:
                return
            self._left -= 1
        self.state = GroupState.STOPPED
        if self._timer is not None:
            self._timer.cancel()
        if not self.over.done():
            self.over.set_result(None)

    def _ask(self, member: Member) -> None:
        if member.settled or member.asked_at is not None:
            return
        if not member.owed:
            member.settled = True
            return
        if not member.entered:
            member.settled = True
            member.state = State.NEW
            return
        member.asked_at = self.loop.time()
        service = member.service
        object.__setattr__(service, "_asked", True)
        if service._event is not None:
            service._event.set()
        if member.ended:
            self._settle(member, member.state)
            return
        member.ready = False
        member.state = State.STOPPING
        member.deadline = math.inf
        self._limit(member)
        if isinstance(service, Composite):
            service._on_asked()
        self.cancel_in(member, service._cancel_delay(member.remaining()))

    def _limit(self, member: Member) -> None:
        assert member.asked_at is not None
        until = min(member.asked_at + member.entry.options.stop_timeout, self._abandon_at)
        if until < member.deadline:
            if member.cancel_at < math.inf and member.service.cancel_after is None:
                self._cancel_at(member, member.asked_at + CANCEL_SHARE * (until - member.asked_at))
            self._set_deadline(member, until)

    def cancel_in(self, member: Member, delay: float) -> None:
        """Cancel its `run()` in `delay` seconds."""
        if delay <= 0:
            self._cancel(member)
        elif delay < math.inf:
            self._cancel_at(member, self.loop.time() + delay)

    def _cancel(self, member: Member) -> None:
        member.cancel_at = math.inf
        if not member.cancelled and member.task is not None:
            member.cancelled = True
            member.task.cancel()

    def _settle(self, member: Member, state: State) -> None:
        member.settled = True
        member.settled_at = self.loop.time()
        member.deadline = math.inf
        member.state = state
        self._timed.discard(member)

    def _abandon(self, member: Member) -> None:
        assert member.task is not None
        assert member.asked_at is not None
        member.stack = task_stack(member.task)
        seconds = self.loop.time() - member.asked_at
        self._settle(member, State.ABANDONED)
        error = StopTimeoutError(member.entry.name, seconds, member.stack)
        self._fail(member, error, "while stopping")

    # -- time -------------------------------------------------------------------------------------

    def _set_deadline(self, member: Member, when: float) -> None:
        member.deadline = when
        self._watch(member, when)

    def _cancel_at(self, member: Member, when: float) -> None:
        member.cancel_at = when
        self._watch(member, when)

    def _watch(self, member: Member, when: float) -> None:
        if when < math.inf:
            self._timed.add(member)
            self._wake_at(when)

    def _wake_at(self, when: float) -> None:
        # One timer for all, which may go off too early: most of what it is set for never happens,
        # and a timer each would cost more than all the rest of a small service's stop.
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self.loop.call_at(when, self._expire)

    def _expire(self) -> None:
        now = self._timer_at  # the loop may call a little sooner than its clock shows
        self._timer, self._timer_at = None, math.inf
        if now >= self._reserve_at:
            self._reserve_at = math.inf
            self._at_once = True
        following = self._reserve_at
        for member in list(self._timed):
            if member.cancel_at <= now:
                self._cancel(member)
            if member.deadline <= now:
                member.deadline = math.inf
                if member.asked_at is None:
                    self._start_timed_out(member)
                elif not member.settled:
                    self._abandon(member)
            due = min(member.cancel_at, member.deadline)
            following = min(following, due)
            if due == math.inf:
                self._timed.discard(member)
        if self.state is GroupState.STOPPING:
            self._stop_next()
        if following < math.inf and self.state is not GroupState.STOPPED:
            self._wake_at(following)

    def _start_timed_out(self, member: Member) -> None:
        self._await_no_more(member)
        assert member.task is not None
        seconds = member.entry.options.start_timeout
        error = StartTimeoutError(member.entry.name, seconds, task_stack(member.task))
        self._fail(member, error, "while starting")
        self._follow(member, error)

    # -- the end ----------------------------------------------------------------------------------

    def outcome(self) -> BaseException | None:
        """What the run is to raise."""
        error: ServiceGroupError | None = None
        if self.failures:
            report = Report(
                name=self.outer.name,
                reason=self.reason,
                started_at=self.started_at + self.wall_offset,
                seconds=self.loop.time() - self.started_at,
                exit_code=self._exit_code(),
                services=self.status(),
            )
            message = f"group {self.outer.name!r}: {self.reason}"
            error = ServiceGroupError(message, self.failures, report)
        if self.exit is not None:
            self.exit.__cause__ = error
            return self.exit
        return error

    def _exit_code(self) -> int:
        if self.exit is None:
            return 1
        return self.exit.code if isinstance(self.exit.code, int) else 1

    def abandoned(self) -> set[asyncio.Task[object]]:
        """The tasks that would not end, as has been told."""
        tasks: set[asyncio.Task[object]] = set()
        for member in self.members:
            tasks |= member.service._told_of()
            if member.state is State.ABANDONED and member.task is not None:
                tasks.add(member.task)
        return tasks

    def status(self) -> tuple[ServiceStatus, ...]:
        """How the services stand. Any thread."""
        members = self.members[:]
        statuses = [member.status(self.wall_offset) for member in members]
        statuses += new_ones(self.outer.table.entries[len(members) :])
        return tuple(statuses)


def new_ones(entries: Iterable[Entry]) -> list[ServiceStatus]:
    """Those that were not started."""
    return [ServiceStatus(name=entry.name, state=State.NEW) for entry in entries]
