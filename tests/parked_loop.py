"""An event loop that goes by a `FakeClock`, and tells when nothing happens in it."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from tests.fake_time import FakeClock
from tests.scripted import Command, Desk


class _Selector(selectors.DefaultSelector):
    """One whose timeouts pass on the clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.until: float | None = None
        self.since = -1  # the last move of the clock that was seen before it began to wait

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        self.until = None if timeout is None else self.clock.time + timeout
        self.since = self.clock.moves
        try:
            return super().select(None)
        finally:
            self.since, self.until = -1, None


class ParkedLoop(asyncio.SelectorEventLoop):
    """A loop for a service that a whole group is waited for with."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self._waits = _Selector(clock)
        self._blocking: Desk | None = None
        super().__init__(self._waits)
        clock.sleepers.append(self)

    def time(self) -> float:
        return self.clock.time

    @property
    def until(self) -> float | None:
        return self._waits.until

    def moved(self) -> None:
        self.call(int)

    @property
    def parked(self) -> bool:
        blocking = self._blocking
        if blocking is not None:
            return blocking.parked
        ready: Any = self._ready  # type: ignore[attr-defined]
        return self._waits.since == self.clock.moves and not ready

    def block(self, desk: Desk) -> None:
        """Hold everything up until `desk` is told to leave."""
        self._blocking = desk
        desk.work()
        self._blocking = None

    def call(self, callback: Any) -> None:
        """Have `callback` called in the loop, if it is still there. Any thread."""
        try:
            self.call_soon_threadsafe(callback)
        except RuntimeError:  # it is closed
            pass

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing: it has no threads, and the one that would look for them is not seen here."""

    def close(self) -> None:
        if self in self.clock.sleepers:
            self.clock.sleepers.remove(self)
        super().close()


class LoopDesk(Desk):
    """Where a coroutine waits for what it is told to do. Iterate over the commands."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: ParkedLoop | None = None

    def open(self) -> None:
        """A run begins, in the loop."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ParkedLoop)
        self._told = asyncio.Event()
        self._loop = loop

    @property
    def parked(self) -> bool:
        return self._loop is not None and self._loop.parked

    def tell(self, command: Command) -> None:
        super().tell(command)
        if self._loop is not None:
            self._loop.call(self._told.set)

    def __aiter__(self) -> LoopDesk:
        return self

    async def __anext__(self) -> Command:
        while self._commands.empty():
            self._told.clear()
            self.waits = True
            try:
                await self._told.wait()
            finally:
                self.waits = False
        return self._commands.get()
