"""One run of an `AsyncGroup`: the decisions, all made in the loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from attrs import frozen

from servicegroup import events
from servicegroup._aio_agenda import Agenda
from servicegroup._aio_member import Member, _set
from servicegroup._aio_service import CANCEL_SHARE, AsyncService
from servicegroup._runner import line_of
from servicegroup._supervision import ALL_FINISHED, Supervision
from servicegroup._table import Entry, Table
from servicegroup.report import GroupState, ServiceStatus, State
from servicegroup.service import Composite

if TYPE_CHECKING:
    from servicegroup.service import Link

# Of the time a stop may take: when those not asked yet are asked all at once, and when the last
# are abandoned, so that a little is left to end the loop and to tell of it.
RESERVE_SHARE = 0.8
ABANDON_SHARE = 0.9
ASKED = "the outer group stops"
STARTS_AT_ONCE = 64  # then others have their turn: a stop must not wait for thousands of starts


@frozen(kw_only=True, eq=False, repr=False)
class Outer:
    """What a crew knows of the group it is for; `link`: of the group that this one is in."""

    name: str
    table: Table
    shutdown_timeout: float
    remaining: Callable[[], float]
    announce: Callable[[bool], None]
    link: Link | None


class Crew(Supervision[Member]):
    """The members of one run.

    Everything is done in the loop, but for `call`, `status` and what tells.

    Invariant: a member is asked to stop at most once, and only after every member started later is
    settled, unless little time is left or one of those was abandoned.
    """

    def __init__(self, outer: Outer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(outer.name)
        self.outer = outer
        self.loop = loop
        # What time() of asyncio's own loops comes to, without a call in Python for each.
        plain = type(loop).time is asyncio.BaseEventLoop.time
        self.now = time.monotonic if plain else loop.time
        self.state = GroupState.STARTING
        self.over: asyncio.Future[None] = loop.create_future()
        self.members: list[Member] = []
        self._started_at = self.now()
        self.wall_offset = time.time() - self._started_at

        self._create_task = loop.create_task
        if loop.get_task_factory() is None:  # likewise
            self._create_task = partial(asyncio.Task, loop=loop)
        self._agenda = Agenda[Member](loop, self._look_at)
        self._awaited: Member | None = None  # the next one starts when this one is ready
        self._left = 0  # members that may be owed a stop: the first so many
        self._stopping = False
        self._stopping_at = 0.0
        self._reserve: asyncio.TimerHandle | None = None
        self._reserve_at = math.inf
        self._abandon_at = math.inf

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

    def begin(self, asked: bool) -> None:
        """Start the first ones, unless the stop was `asked` for, or the drain, before all began."""
        self._tell(events.GroupStarting)
        if asked:
            self.on_stop(ASKED)
        elif self.outer.table.closed:
            self.on_drain()
        self.advance()

    def advance_soon(self) -> None:
        """Something was added. In the loop, but maybe in the midst of a decision."""
        self.loop.call_soon(self.advance)

    def advance(self) -> None:
        """Start what is to be started; see whether all is up, or done."""
        if self.state not in (GroupState.STARTING, GroupState.RUNNING):
            return
        entries, members = self.outer.table.entries, self.members
        self._details = self.wants_details()
        now = self.now()
        for entry in entries[len(members) : len(members) + STARTS_AT_ONCE]:
            # With an eager task factory, to start one may be its failure and the stop.
            if self._awaited is not None or self._stopping:
                return
            self._start(entry, now)
        if self._awaited is not None or self._stopping:
            return
        if len(members) < len(entries):
            self.advance_soon()
            return
        self.state = GroupState.RUNNING
        self._look_around()

    def _start(self, entry: Entry, now: float) -> None:
        service, options = entry.service, entry.options
        assert isinstance(service, AsyncService)
        member = Member(self, service, entry.name, options, now)
        self.members.append(member)
        self._unready += 1
        if not options.daemon:
            self._working += 1
            self._had_work = True
        if options.ready_when == "announced":
            self._awaited = member
        self._launch(member)

    def _launch(self, member: Member) -> None:
        service, options = member.service, member.options
        if service._link is not None:
            service._rearm()
        _set(service, "_link", member)
        if self._details:
            self._tell_of(member, events.ServiceStarting)
        if options.ready_when == "announced":
            self._set_deadline(member, member.started_at + options.start_timeout)
        member.task = self._create_task(member.main(), name=member.name)

    def _start_again(self, member: Member) -> None:
        member.reset()
        member.restarts += 1
        member.started_at = self.now()
        self._launch(member)

    def on_entered(self, member: Member) -> None:
        """Its task runs `run()`, which is all there is to wait for."""
        self._set_ready(member, True)
        if self._unready == 0:
            self._look_around()

    def on_announced(self, member: Member, ready: bool) -> None:
        """It called `mark_ready()` or `mark_not_ready()`."""
        if member.entered and (ready or member.ready_at is not None):
            self._set_ready(member, ready)
            self._look_around()

    def _look_around(self) -> None:
        """All were started: are they up, or are they done?"""
        if self.state is not GroupState.RUNNING:
            return
        self._update_ready()
        if self._working == 0 and (self._had_work or not self.members):
            if self.outer.table.close_after(len(self.members)):
                self.on_stop(ALL_FINISHED)
            else:
                self.advance()

    def _update_ready(self) -> None:
        ready = self._unready == 0
        if ready is not self.is_ready:
            self.is_ready = ready
            if ready:
                self._tell(events.GroupReady)
            self.outer.announce(ready)

    def _await_no_more(self, member: Member) -> None:
        if member.deadline < math.inf:
            member.deadline = math.inf
            self._reconsider(member)
        if self._awaited is member:
            self._awaited = None
            self.advance_soon()

    # -- running ----------------------------------------------------------------------------------

    def on_ended(self, member: Member, error: BaseException | None) -> None:
        """Its `run()` returned, or raised `error`."""
        if member.settled:
            return  # abandoned: what comes late counts no more
        member.ended = True
        if self.state is GroupState.STOPPING:
            member.due = math.inf
        elif member.due < math.inf:
            self._forget(member)
        if self.state is GroupState.RUNNING:
            self._details = self.wants_details()
        if error is not None:
            self._raised(member, error, line_of(error))
        elif not member.asked:
            self._returned(member)
        now = self.now()
        if member.asked and not member.settled:
            self._settle(member, now)
        if self.state is GroupState.STOPPING:
            self._stop_next(now)
        elif self._working == 0 or self._unready == 0:
            self._look_around()

    # -- draining ---------------------------------------------------------------------------------

    def on_drain(self) -> None:
        """The outer group drains, and will say stop."""
        if self.state in (GroupState.STARTING, GroupState.RUNNING):
            self.outer.table.close()
            self._details = self.wants_details()
            self.state = GroupState.DRAINING
            self.is_ready = False
            self._tell(events.GroupDraining)

    def on_drain_failed(self, member: Member, error: BaseException, line: str) -> None:
        """Its `drain()` raised `error`."""
        if self.state is GroupState.DRAINING:
            self._fail(member, error, "while draining", line)
            self._follow_failure(member, error, line)

    # -- stopping ---------------------------------------------------------------------------------

    def on_stop(self, reason: str, hurry: bool = False) -> None:
        """Somebody asks for the stop; once more, maybe, with less time."""
        if self.state is GroupState.STOPPED:
            return
        now = self.now()
        if self.state is not GroupState.STOPPING:
            self._reason = reason
            self._stopping = True
            self._stopping_at = now
            self.outer.table.close()
            self.state = GroupState.STOPPING
            self.is_ready = False
            self._awaited = None
            self._left = len(self.members)
            self._details = self.wants_details()
            self._tell(events.GroupStopping)
            # What led to it is done with first.
            self.loop.call_soon(self._stop_next)
        until = self._stopping_at + self.outer.shutdown_timeout
        total = min(self.outer.remaining(), until - now)
        if total < math.inf:
            self._abandon_at = min(self._abandon_at, now + ABANDON_SHARE * total)
            reserve_at = now + RESERVE_SHARE * total
            if reserve_at < self._reserve_at:
                if self._reserve is not None:
                    self._reserve.cancel()
                self._reserve_at = reserve_at
                self._reserve = self.loop.call_at(reserve_at, self._ask_all)
        for member in list(self._under_way):
            self._limit(member)

    def _ask_all(self) -> None:
        now = self.now()
        for member in reversed(self.members[: self._left]):
            if not (member.asked or member.settled):
                self._ask(member, now)
        self._stop_next(now)

    def _stop_next(self, now: float | None = None) -> None:
        if self.state is not GroupState.STOPPING:
            return
        if now is None:
            now = self.now()
        while self._left:
            member = self.members[self._left - 1]
            if not (member.asked or member.settled):
                self._ask(member, now)
            if not member.settled:
                return
            self._left -= 1
        self.state = GroupState.STOPPED
        self._agenda.close()
        if self._reserve is not None:
            self._reserve.cancel()
        self._tell(events.GroupStopped)
        if not self.over.done():
            self.over.set_result(None)

    def _ask(self, member: Member, now: float | None = None) -> None:
        if self._ask_no_more(member):
            self._forget(member)
            return
        if not member.entered:
            member.settled = True
            member.state = State.NEW
            self._forget(member)
            return
        if now is None:
            now = self.now()
        service = member.service
        if member.state is State.FINISHED:
            member.final = State.FINISHED
        self._under_way.add(member)
        member.asked = True
        member.asked_at = now
        member.state = State.STOPPING
        member.ready = False
        if self._details:
            self._tell_of(member, events.ServiceStopping)
        _set(service, "_asked", True)
        if service._event is not None:
            service._event.set()
        if member.ended:
            self._settle(member, now)
            return
        if isinstance(service, Composite):
            service._on_asked()
        member.beat_due = math.inf
        member.deadline = until = min(now + member.options.stop_timeout, self._abandon_at)
        delay = service._cancel_delay(until - now)
        if delay <= 0:
            self._cancel(member)
        elif now + delay < until:
            member.cancel_at = until = now + delay
        self._agenda.put(member, until)

    def _limit(self, member: Member) -> None:
        """It was asked to stop, and there is less time than there was."""
        assert member.asked_at is not None
        until = min(member.asked_at + member.options.stop_timeout, self._abandon_at)
        if until < member.deadline:
            if member.cancel_at < math.inf and member.service.cancel_after is None:
                member.cancel_at = member.asked_at + CANCEL_SHARE * (until - member.asked_at)
            self._set_deadline(member, until)
            if isinstance(member.service, Composite):
                member.service._on_asked()

    def cancel_in(self, member: Member, delay: float) -> None:
        """Cancel its `run()` in `delay` seconds."""
        if delay <= 0:
            self._cancel(member)
        elif delay < math.inf:
            # To be asked again must not put it off.
            member.cancel_at = min(member.cancel_at, self.now() + delay)
            self._reconsider(member)

    def _cancel(self, member: Member) -> None:
        if not member.cancelled and member.task is not None:
            member.cancelled = True
            member.task.cancel()

    # -- time -------------------------------------------------------------------------------------

    def _set_deadline(self, member: Member, when: float) -> None:
        member.deadline = when
        self._reconsider(member)

    def _watch(self, member: Member, when: float) -> None:
        member.beat_due = when
        self._reconsider(member)

    def _reconsider(self, member: Member) -> None:
        due = min(member.deadline, member.cancel_at, member.beat_due)
        if due == math.inf:
            self._agenda.drop(member)
        elif due != member.due:
            self._agenda.put(member, due)

    def _forget(self, member: Member) -> None:
        member.deadline = member.cancel_at = member.beat_due = math.inf
        self._agenda.drop(member)

    def _look_at(self, member: Member, now: float) -> None:
        """Something is due."""
        if member.cancel_at <= now:
            member.cancel_at = math.inf
            self._cancel(member)
        if member.deadline <= now:
            member.deadline = math.inf
            if member.state is State.BACKING_OFF:
                if self._goes_on():
                    self._start_again(member)
            elif member.asked:
                self._abandon(member)
            else:
                self._start_timed_out(member)
        elif member.beat_due <= now:
            member.beat_due = math.inf
            self._look_at_heartbeat(member, now)
        self._reconsider(member)
        if self.state is GroupState.STOPPING:
            self._stop_next()
        else:
            self._look_around()

    # -- the end ----------------------------------------------------------------------------------

    def outcome(self) -> BaseException | None:
        """What the run is to raise."""
        error = self._failure(self._report()) if self._failures else None  # a row each: not cheap
        if self.exit is not None:
            self.exit.__cause__ = error
            return self.exit
        return error

    def abandoned(self) -> set[asyncio.Task[object]]:
        """The tasks that would not end, as has been told; here and in the groups in this one."""
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

    # -- telling ----------------------------------------------------------------------------------

    def wants_details(self) -> bool:
        """Whether anybody reads of each start and stop. Any thread."""
        return self.outer.link is not None and self.outer.link.wants_details()

    def _emit(self, event: events.Event, below: str = "") -> None:
        if self.outer.link is not None:
            self.outer.link.tell(event, below)


def new_ones(entries: Iterable[Entry]) -> list[ServiceStatus]:
    """Those that were not started."""
    return [ServiceStatus(name=entry.name, state=State.NEW) for entry in entries]
