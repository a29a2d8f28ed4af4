"""A group whose deadlines go by a clock that the test moves."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from servicegroup import ServiceGroup
from servicegroup._mailbox import Mailbox, Message
from servicegroup.testing import wait_until as wait_until_in
from tests.child import PATIENCE

wait_until = partial(wait_until_in, timeout=PATIENCE)


class Sleeper(Protocol):
    """What goes by a `FakeClock`, besides the mailboxes.

    Attributes:
        until: when it wakes by itself; None: never, or it does not sleep.
    """

    @property
    def until(self) -> float | None: ...

    def moved(self) -> None:
        """The clock has moved."""


class FakeClock:
    """Time stands still until `advance`."""

    def __init__(self) -> None:
        self.sleepers: list[Sleeper] = []
        self.time = 1000.0
        self.moves = 0
        self.moved = threading.Condition()

    def advance(self, seconds: float) -> None:
        with self.moved:
            self.time += seconds
            self.moves += 1
            self.moved.notify_all()
        for sleeper in tuple(self.sleepers):
            sleeper.moved()


class FakeMailbox(Mailbox):
    """A mailbox that goes by a `FakeClock`, and tells whether its taker waits."""

    clock: FakeClock

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self._waits_since = -1
        self.takes = 0
        self.until: float | None = None
        self.now = self._now  # type: ignore[method-assign]

    @property
    def waiting(self) -> bool:
        """Whether the taker waits, and has seen the last move of the clock."""
        return self._waits_since == self.clock.moves

    def _now(self) -> float:
        return self.clock.time

    def put(self, handler: Callable[..., None], *args: object) -> None:
        with self.clock.moved:
            self.messages.append((handler, args))
            self._waits_since = -1
            self.clock.moved.notify_all()

    def poll(self) -> Message | None:
        return self.messages.popleft() if self.messages else None

    def get(self, until: float | None) -> Message | None:
        with self.clock.moved:
            self.until = until
            self.takes += 1
            while not self.messages:
                if until is not None and self.clock.time >= until:
                    self._waits_since = -1
                    return None
                self._waits_since = self.clock.moves
                self.clock.moved.wait()
            self._waits_since = -1
            return self.messages.popleft()

    def join(
        self, thread: threading.Thread, until: float | None, event: threading.Event | None
    ) -> Message | None:
        if event is not None:
            event.set()
        return self.get(until)


def fake_time_group(clock: FakeClock, **options: object) -> ServiceGroup:
    """A `ServiceGroup` that goes by `clock`."""
    mailbox = type("Mailbox", (FakeMailbox,), {"clock": clock})
    kind = type("Group", (ServiceGroup,), {"_mailbox_type": mailbox})
    group = kind(**options)
    assert isinstance(group, ServiceGroup)
    return group


def mailbox_of(group: ServiceGroup) -> FakeMailbox:
    mailbox = group._run._mailbox
    assert isinstance(mailbox, FakeMailbox)
    return mailbox


def running(group: ServiceGroup) -> Iterator[ServiceGroup]:
    """The group and those in it that have begun and not ended."""
    if group._run.begun and not group._run.over.is_set():
        yield group
        for entry in group._table.entries:
            if isinstance(entry.service, ServiceGroup):
                yield from running(entry.service)


def pass_time(
    group: ServiceGroup, clock: FakeClock, quiet: Callable[[], bool], end: float = math.inf
) -> None:
    """From deadline to deadline until the group has ended; between them, wait for `quiet`.

    No further than `end`.
    """
    while True:
        wait_until(lambda: group._run.over.is_set() or quiet(), "quiet")
        if group._run.over.is_set() or clock.time >= end:
            return
        groups = list(running(group))
        if not groups:
            continue  # it has ended just now
        deadlines = [mailbox_of(one).until for one in groups]
        deadlines += [sleeper.until for sleeper in tuple(clock.sleepers)]
        until = min([end, *(when for when in deadlines if when is not None)])
        assert until != math.inf, f"{group} waits for ever: {group.status()}"
        clock.advance(max(until - clock.time, 0.0))
