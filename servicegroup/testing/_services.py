"""Services that behave, and that misbehave in the ways that services do."""

from __future__ import annotations

import threading
from typing import NoReturn

from servicegroup.service import Service

_lock = threading.Lock()  # guards the next
_hung: set[Hangs] = set()


class Runs(Service):
    """Runs until it is stopped: company for the service under test."""

    def start(self) -> None:
        self.stopping.wait()


class Returns(Service):
    """Returns by itself: at once, or after some time.

    Args:
        after: seconds from its start.
    """

    def __init__(self, *, after: float = 0.0) -> None:
        self._after = _seconds("Returns", after)

    def start(self) -> None:
        self.sleep(self._after)


class Fails(Service):
    """Raises: what becomes of the others, and of the process?

    Args:
        after: seconds from its start; a stop that comes before ends it without failure.
        at_start: raise before it was ever ready, so that the group's start fails.
        in_stop: run until the stop, and raise in `stop()`.
        error: what to raise; by default a RuntimeError.

    Raises:
        ValueError: they do not go together, or `after` is negative.
    """

    def __init__(
        self,
        *,
        after: float = 0.0,
        at_start: bool = False,
        in_stop: bool = False,
        error: BaseException | None = None,
    ) -> None:
        if in_stop and (after or at_start):
            raise ValueError("Fails(): in_stop=True goes with neither after= nor at_start=")
        self._after = _seconds("Fails", after)
        self._in_stop = in_stop
        self._error = error
        if at_start:
            self.ready_when = "announced"

    def start(self) -> None:
        if self._in_stop:
            self.stopping.wait()
        elif self.sleep(self._after):
            self._fail()

    def stop(self) -> None:
        self.stopping.set()
        if self._in_stop:
            self._fail()

    def _fail(self) -> NoReturn:
        raise self._error or RuntimeError("it was told to fail")


class NeverReady(Service):
    """Is never ready, and stops when it is asked to: does the start give up in time?"""

    ready_when = "announced"

    def start(self) -> None:
        self.stopping.wait()


class Hangs(Service):
    """Does not end when it is stopped, until `let_go()`: is it left behind in time, and named?

    Its `stop()` returns and its `start()` goes on. Under pytest it is let go at the end of the test
    that it was started in; elsewhere a `with` block does so.

    Args:
        in_stop: hang in `stop()`, too.
        at_start: never be ready.
    """

    def __init__(self, *, in_stop: bool = False, at_start: bool = False) -> None:
        self._in_stop = in_stop
        self._free = threading.Event()
        if at_start:
            self.ready_when = "announced"

    def start(self) -> None:
        with _lock:
            _hung.add(self)
        self._free.wait()

    def stop(self) -> None:
        self.stopping.set()
        if self._in_stop:
            self._free.wait()

    def let_go(self) -> None:
        """Let its `start()` and `stop()` return, now and from now on. Any thread."""
        self._free.set()
        with _lock:
            _hung.discard(self)

    def __enter__(self) -> Hangs:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()


def let_all_go() -> None:
    """`let_go()` for every one that was started."""
    with _lock:
        hung = list(_hung)
    for service in hung:
        service.let_go()


def _seconds(whose: str, after: float) -> float:
    if not after >= 0:
        raise ValueError(f"{whose}(): after must be 0 or more seconds, not {after!r}")
    return after
