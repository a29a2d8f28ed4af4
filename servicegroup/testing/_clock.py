"""A clock that stands still until the test moves it."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from attrs import frozen

from servicegroup._mailbox import Mailbox, Message
from servicegroup.errors import GroupRunningError
from servicegroup.group import ServiceGroup
from servicegroup.periodic import Periodic
from servicegroup.service import Service, StartStop

PATIENCE = 10.0  # seconds of real time until somebody sleeps by the clock
BEGIN = 1000.0  # what monotonic() says first


@frozen(eq=False)
class _Sleeper:
    thread: str
    due: float
    done: Callable[[], bool]  # called with the clock's lock held


class FakeClock:
    """Time for services and groups that are told of it; it passes in `advance` only.

    The idea to wait for sleepers before the clock is moved is that of jonboulle/clockwork. All
    methods but `control` may be called by any thread.

    Args:
        start: what the time of day is at first.

    Raises:
        ValueError: `start` has no timezone.
    """

    def __init__(self, start: datetime = datetime(2000, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError(f"FakeClock(): {start!r} has no timezone: add tzinfo=UTC")
        self._now = BEGIN
        self._epoch = start.timestamp() - BEGIN
        # Guards the two lists, and the messages of the mailboxes that go by this clock.
        self._moved = threading.Condition()
        self._sleepers: list[_Sleeper] = []

    def monotonic(self) -> float:
        """In place of `time.monotonic`."""
        return self._now

    def time(self) -> float:
        """In place of `time.time`: seconds since the epoch."""
        return self._now + self._epoch

    def sleep(self, seconds: float) -> None:
        """In place of `time.sleep`."""
        self._sleep_until(self._now + seconds, lambda: False)

    def event(self) -> threading.Event:
        """An event whose `wait(timeout)` goes by this clock; `wait()` is as ever."""
        return _Event(self)

    @property
    def sleepers(self) -> tuple[tuple[str, float], ...]:
        """Who sleeps by this clock: the name of the thread, and for how many seconds yet."""
        with self._moved:
            return tuple((one.thread, one.due - self._now) for one in self._finite())

    def advance(self, seconds: float, *, sleepers: int = 1) -> None:
        """Let time pass, in one jump, and wake those whose time has come.

        It does not wait for what they do then; `wait_until` does.

        Args:
            seconds: how many.
            sleepers: how many threads must sleep by this clock before it is moved: one that came to
                sleep afterwards would sleep too long. It is waited for, for ten seconds of real
                time. A service counts in `sleep()` and between two runs of a `Periodic`, a group
                while a deadline of its is near (a service is being stopped, or waits to be started
                again).

        Raises:
            ValueError: `seconds` is negative or no number.
            AssertionError: fewer threads came to sleep; it says which.
        """
        __tracebackhide__ = True
        if not 0 <= seconds < math.inf:
            raise ValueError(f"advance(): time passes forward, so not by {seconds!r} seconds")
        with self._moved:
            if not self._moved.wait_for(lambda: len(self._finite()) >= sleepers, PATIENCE):
                asleep = ", ".join(one.thread for one in self._finite()) or "none"
                raise AssertionError(
                    f"advance(): {sleepers} threads were to sleep by this clock; asleep: {asleep} "
                    "(is the service under its control? say sleepers=0 if nobody is to sleep)"
                )
            self._now += seconds
            self._stir()

    def control(self, *parts: StartStop) -> None:
        """Have groups and services go by this clock; before they start, once all are added.

        Of a group: its deadlines, drain delay, heartbeats and the pauses of `Restart`, and all of
        this of the services and groups in it. Of a `Service`: `sleep()` and
        `stopping.wait(timeout)`. Of a `Periodic`: its schedule. Everything else keeps to real time:
        `wait()` and `wait_ready()` of a group, coroutines, child processes, other libraries and
        what a service measures for itself.

        Raises:
            GroupRunningError: the group runs already.
            TypeError: it is neither a group nor a `Service`, so that it has nothing to control.
        """
        for part in parts:
            if not self._take(part):
                raise TypeError(
                    f"control(): {part!r} keeps a time of its own: only a ServiceGroup or a "
                    "Service goes by a FakeClock"
                )

    def _take(self, part: StartStop) -> bool:
        if isinstance(part, ServiceGroup):
            run = part._run
            if run.begun and not run.over.is_set():
                raise GroupRunningError(
                    f"group {part.name!r} runs already: control() it before it starts"
                )
            part._mailbox_type = partial(_ClockMailbox, self)
            part._run = part._new_run()
            for entry in part._table.entries:
                self._take(entry.service)
            return True
        if not isinstance(part, Service):
            return False
        # Not by setattr(): it may be a frozen dataclass.
        vars(part)["stopping"] = self.event()
        if isinstance(part, Periodic):
            vars(part).update(_monotonic=self.monotonic, _wall=self.time)
        return True

    def _finite(self) -> list[_Sleeper]:
        return [one for one in self._sleepers if one.due < math.inf]

    def _sleep_until(self, due: float, done: Callable[[], bool]) -> None:
        with self._moved:
            if done() or self._now >= due:
                return
            me = _Sleeper(threading.current_thread().name, due, done)
            self._sleepers.append(me)
            self._moved.notify_all()
            try:
                # Taken off the list by who wakes it, so that nobody takes it for asleep any more.
                self._moved.wait_for(lambda: me not in self._sleepers)
            finally:
                if me in self._sleepers:  # KeyboardInterrupt, say
                    self._sleepers.remove(me)

    def _stir(self) -> None:
        """Wake those who have slept enough. With the lock held."""
        self._sleepers = [one for one in self._sleepers if self._now < one.due and not one.done()]
        self._moved.notify_all()


class _Event(threading.Event):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def set(self) -> None:
        super().set()
        with self._clock._moved:
            self._clock._stir()

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            return super().wait()
        self._clock._sleep_until(self._clock.monotonic() + timeout, self.is_set)
        return self.is_set()


class _ClockMailbox(Mailbox):
    """A mailbox that goes by a `FakeClock`."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._messages: deque[Message] = deque()

    def now(self) -> float:  # type: ignore[override]  # not static: it has a clock of its own
        return self._clock.monotonic()

    def put(self, handler: Callable[..., None], *args: object) -> None:
        with self._clock._moved:
            self._messages.append((handler, args))
            self._clock._stir()

    def poll(self) -> Message | None:
        return self._messages.popleft() if self._messages else None

    def get(self, until: float | None) -> Message | None:
        due = math.inf if until is None else until
        self._clock._sleep_until(due, lambda: bool(self._messages))
        return self.poll()

    def join(
        self, _thread: threading.Thread, until: float | None, event: threading.Event | None
    ) -> Message | None:
        if event is not None:
            event.set()
        return self.get(until)  # the last word of that thread is a message
