"""What follows when a service is up, fails, returns or falls silent: in every kind of group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from servicegroup import events
from servicegroup.errors import (
    RestartLimitError,
    ServiceCrashedError,
    ServiceGroupError,
    ServiceStalledError,
    StartTimeoutError,
    StopTimeoutError,
)
from servicegroup.report import GroupState, Report, ServiceStatus, State, one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from servicegroup._options import Options
    from servicegroup.restart import Restart, RestartHistory

    class Part(Protocol):
        """One service during one run, as far as the rules go."""

        name: str
        options: Options
        state: State
        ready: bool
        owed: bool
        asked: bool
        settled: bool
        final: State
        started_at: float
        ready_at: float | None
        unready_at: float
        beat_at: float
        stalled: bool
        again: bool
        restarts: int
        histories: dict[Restart, RestartHistory] | None
        asked_at: float | None
        settled_at: float | None
        error: BaseException | None
        stack: str | None

        def take_stack(self) -> str: ...


P = TypeVar("P", bound="Part")

ALL_FINISHED = "all services have finished"
INFINITY = float("inf")


class Supervision(Generic[P]):
    """The rules that a group's services live by, whatever it is they run on.

    Everything here is done by the one thread that decides.
    """

    if TYPE_CHECKING:
        now: Callable[[], float]

        def on_stop(self, reason: str, hurry: bool = False) -> None: ...

        def status(self) -> tuple[ServiceStatus, ...]: ...

        def _ask(self, part: P) -> None: ...

        def _await_no_more(self, part: P) -> None: ...

        def _update_ready(self) -> None: ...

        def _set_deadline(self, part: P, when: float) -> None: ...

        def _watch(self, part: P, when: float) -> None: ...

        def _emit(self, event: events.Event, below: str = "") -> None: ...

    def __init__(self, name: str) -> None:
        self.state = GroupState.NEW
        self.is_ready = False
        self.exit: SystemExit | None = None
        self.clean_exit: SystemExit | None = None  # with code 0: no failure, but the end
        self.wall_offset = 0.0
        self._name = name
        self._started_at = 0.0
        self._reason = ""
        self._failures: list[Exception] = []
        self._under_way: set[P] = set()  # asked to stop, and neither ended nor abandoned
        self._unready = 0  # services that are meant to be up and are not
        self._working = 0  # services other than daemons that have not ended
        self._had_work = False
        # Somebody reads of each start and stop; not asked for every one. Thousands of records that
        # nobody reads would cost more than the services' threads.
        self._details = False

    # -- starting ---------------------------------------------------------------------------------

    def _set_ready(self, part: P, ready: bool) -> None:
        if part.ready is ready or part.state not in (State.STARTING, State.RUNNING):
            return
        now = self.now()
        part.ready = ready
        if not ready:
            part.unready_at = now
            self._unready += 1
            self._update_ready()  # before the event: who hears of it may look
            self._tell_of(part, events.ServiceNotReady)
            return
        since = part.started_at if part.ready_at is None else part.unready_at
        if part.ready_at is None:
            part.ready_at = now
            part.beat_at = max(part.beat_at, now)  # before the state: of what runs it is shown
            part.state = State.RUNNING
            self._await_no_more(part)
            timeout = part.options.heartbeat_timeout
            if timeout != INFINITY:
                self._watch(part, part.beat_at + timeout)
        self._unready -= 1
        if self._details:
            self._tell_of(part, events.ServiceReady, seconds=now - since)

    def _start_timed_out(self, part: P) -> None:
        error = StartTimeoutError(part.name, part.options.start_timeout, part.take_stack())
        if self._may_restart(part.options.on_failure):
            self._stop_to_restart(part, error)
            return
        self._await_no_more(part)
        self._fail(part, error, "while starting")
        self._follow_failure(part, error, one_line(error))

    # -- running ----------------------------------------------------------------------------------

    def _returned(self, part: P) -> None:
        if part.ready_at is None:
            self._set_ready(part, True)
        if part.options.ready_when == "returned":
            return
        if self._may_restart(part.options.on_return):
            self._stop_to_restart(part, None)
            return
        self._retire(part)
        part.state = State.FINISHED
        if self._details:
            self._tell_of(part, events.ServiceFinished, seconds=self.now() - part.started_at)
        if part.options.on_return == "stop":
            self.on_stop(f"service {part.name!r} returned")

    def _raised(self, part: P, error: BaseException, line: str) -> None:
        """It raised `error`, of which a reason says `line`."""
        if part.asked and isinstance(error, part.options.expected_on_stop):
            return
        phase = "while running"
        if part.asked:
            phase = "while stopping"
        elif part.ready_at is None:
            phase = "while starting"
        elif self.state is GroupState.DRAINING:
            phase = "while draining"
        part.owed = False
        if self._may_restart(part.options.on_failure) and not isinstance(error, SystemExit):
            if part.asked:  # to be restarted: what comes on the way is one more reason
                part.error = error
            else:
                self._lose_readiness(part)
                self._back_off(part, error)
            return
        if not part.asked:
            self._retire(part)
        if isinstance(error, SystemExit) and not error.code:
            part.state = part.final = State.FINISHED
            if self._details:
                self._tell_of(part, events.ServiceFinished, seconds=self.now() - part.started_at)
        else:
            part.state = part.final = State.FAILED
        self._fail(part, error, phase, line)
        self._follow_failure(part, error, line)

    def _retire(self, part: P) -> None:
        """It ended by itself: it counts neither as up nor as working."""
        self._await_no_more(part)
        if part.ready:
            part.ready = False
        else:
            self._unready -= 1
        if not part.options.daemon:
            self._working -= 1

    def _fail(self, part: P, error: BaseException, phase: str, line: str = "") -> None:
        """Take down a failure; what follows from it is for the caller."""
        if isinstance(error, SystemExit):
            if not error.code:
                self.clean_exit = self.clean_exit or error
                return
            self.exit = self.exit or error
        elif not isinstance(error, Exception):
            crash = ServiceCrashedError(line)
            crash.__cause__ = error
            error = crash
        error.add_note(f"in service {part.name!r}, {phase}")
        if part.error is None:
            part.error = error
        fatal = phase == "while stopping" or part.options.on_failure != "continue"
        if fatal and isinstance(error, Exception):
            self._failures.append(error)
        if part.state is not State.ABANDONED:
            self._tell_of(part, events.ServiceFailed, error=error, phase=phase)

    def _follow_failure(self, part: P, error: BaseException, line: str) -> None:
        if isinstance(error, SystemExit):
            self.on_stop(f"service {part.name!r} called sys.exit({line})", hurry=bool(error.code))
        elif part.options.on_failure != "continue":
            self.on_stop(f"service {part.name!r} failed: {line}", hurry=True)

    # -- restarting -------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        return self.state in (GroupState.STARTING, GroupState.RUNNING)

    def _may_restart(self, policy: object) -> bool:
        return self._goes_on() and not isinstance(policy, str)

    def _lose_readiness(self, part: P) -> None:
        if part.ready:
            part.ready = False
            self._unready += 1

    def _stop_to_restart(self, part: P, error: BaseException | None) -> None:
        """It is to be started again, but is owed a stop() first."""
        self._lose_readiness(part)
        part.again = True
        part.error = error
        self._ask(part)

    def _back_off(self, part: P, error: BaseException | None) -> None:
        """It has ended: start it again after a pause, unless that was once too often."""
        import random  # here, and the next: for those who restart

        from servicegroup.restart import Restart, RestartHistory

        policy = part.options.on_failure
        if error is None or isinstance(policy, str):  # it had returned; its stop() may have raised
            policy = part.options.on_return
        assert isinstance(policy, Restart)
        part.asked = part.settled = False
        part.histories = histories = part.histories or {}
        history = histories.setdefault(policy, RestartHistory(policy, random.random))
        now = self.now()
        pause = history.next(now)
        if pause is None:
            self._give_up(part, error)
            return
        part.error = error
        part.state = State.BACKING_OFF
        self._tell_of(
            part,
            events.ServiceRestarting,
            seconds=pause,
            restarts=part.restarts + 1,
            error=error,
        )
        self._set_deadline(part, now + pause)

    def _give_up(self, part: P, cause: BaseException | None) -> None:
        self._retire(part)
        part.owed = False
        part.state = State.FAILED
        error = RestartLimitError(
            f"service {part.name!r} ended once more after {part.restarts} restarts"
        )
        error.__cause__ = cause
        part.error = None
        self._fail(part, error, "while running")
        self.on_stop(f"service {part.name!r} failed: {one_line(error)}", hurry=True)

    # -- heartbeats -------------------------------------------------------------------------------

    def _look_at_heartbeat(self, part: P, now: float) -> None:
        """The next heartbeat of one that runs was due: did it come?"""
        silent = now - part.beat_at
        timeout = part.options.heartbeat_timeout
        if silent < timeout:
            self._watch(part, part.beat_at + timeout)
            return
        stack = part.take_stack()
        part.stalled = True
        self._tell_of(part, events.ServiceStalled, seconds=silent, stack=stack)
        if part.beat_at > now - timeout:
            self.on_recovered(part)  # it beat just before it could see that it should tell
        elif part.options.on_stall == "fail":
            self._stall_fails(part, ServiceStalledError(part.name, silent, stack))

    def _stall_fails(self, part: P, error: ServiceStalledError) -> None:
        if self._may_restart(part.options.on_failure):
            self._stop_to_restart(part, error)
        else:
            self._fail(part, error, "while running")
            self._follow_failure(part, error, one_line(error))

    def on_recovered(self, part: P) -> None:
        """It was stalled, and there was a heartbeat."""
        if part.stalled and part.state is State.RUNNING:
            part.stalled = False
            self._tell_of(part, events.ServiceRecovered)
            self._watch(part, part.beat_at + part.options.heartbeat_timeout)

    # -- stopping ---------------------------------------------------------------------------------

    def _ask_no_more(self, part: P) -> bool:
        """Whether the stop has nothing to ask of it: it raised, or waits to be started again."""
        if part.state is State.BACKING_OFF:
            part.state = State.FINISHED if part.error is None else State.FAILED
        elif part.owed:
            return False
        part.settled = True
        return True

    def _settle(self, part: P, now: float) -> None:
        """It was asked to stop, and all of it has ended."""
        part.settled = True
        part.settled_at = now
        self._under_way.discard(part)
        if part.again:
            part.again = False
            if self._goes_on():
                self._back_off(part, part.error)
                return
            part.final = State.FINISHED if part.error is None else State.FAILED
        part.state = part.final
        if self._details:
            seconds = now - (part.asked_at or 0.0)
            self._tell_of(part, events.ServiceStopped, seconds=seconds)

    def _abandon(self, part: P) -> None:
        part.settled = True
        self._under_way.discard(part)
        part.settled_at = self.now()
        seconds = part.settled_at - (part.asked_at or 0.0)
        part.stack = part.take_stack()
        part.state = State.ABANDONED
        error = StopTimeoutError(part.name, seconds, part.stack)
        self._fail(part, error, "while stopping")
        self._tell_of(part, events.ServiceAbandoned, seconds=seconds, stack=part.stack)
        if part.again:
            part.again = False  # never to be run again: it still is in there
            self._retire(part)
            self.on_stop(f"service {part.name!r} failed: {one_line(error)}", hurry=True)

    # -- the end ----------------------------------------------------------------------------------

    def _report(self) -> Report:
        return Report(
            name=self._name,
            reason=self._reason,
            started_at=self._started_at + self.wall_offset,
            seconds=self.now() - self._started_at,
            exit_code=self._exit_code(),
            services=self.status(),
        )

    def _failure(self, report: Report) -> ServiceGroupError | None:
        """All that failed, if anything did."""
        if not self._failures:
            return None
        return ServiceGroupError(f"group {self._name!r}: {self._reason}", self._failures, report)

    def _exit_code(self) -> int:
        if self.exit is not None:
            return self.exit.code if isinstance(self.exit.code, int) else 1
        return 1 if self._failures else 0

    # -- telling ----------------------------------------------------------------------------------

    def _tell(self, kind: type[events.GroupEvent], brief: bool = False) -> None:
        now = self.now()
        self._emit(
            kind(
                group=self._name,
                time=now + self.wall_offset,
                monotonic=now,
                reason=self._reason or None,
                seconds=now - self._started_at,
                brief=brief,
            )
        )

    def _tell_of(self, part: P, kind: type[events.ServiceEvent], **known: object) -> None:
        now = self.now()
        self._emit(
            kind(
                group=self._name,
                time=now + self.wall_offset,
                monotonic=now,
                service=part.name,
                **known,  # type: ignore[arg-type]
            )
        )

    def emit_part(self, part: str, event: events.Event, below: str) -> None:
        """Something happened inside the service `part`. Any thread.

        `below` is the path from there to the group that a group's event is of.
        """
        if isinstance(event, events.ServiceEvent):
            event = attrs.evolve(event, group=self._name, service=f"{part}/{event.service}")
            self._emit(event)
            return
        below = f"/{part}{below}"
        self._emit(attrs.evolve(event, group=f"{self._name}{below}"), below)
