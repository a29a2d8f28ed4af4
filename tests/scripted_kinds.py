"""Scripted services of the other kinds: coroutines, groups of coroutines, schedules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from servicegroup import AsyncGroup, AsyncService, Periodic
from servicegroup.service import OnFailure
from tests.fake_time import FakeClock
from tests.parked_loop import LoopDesk, ParkedLoop
from tests.scripted import Command, Desk, Plain, Trace


class Acting(AsyncService):
    """Its `run()` does what it is told.

    `how` says how it waits for that: "looks" (at `stopping`), "deaf" (it must be cancelled), "slow"
    (looks, and takes its time then), "blocks" (looks, and then blocks the loop).
    """

    name: str
    desk: LoopDesk
    in_block: Desk
    on_stop: str
    how: str

    async def run(self) -> None:
        desk = self.desk
        desk.open()
        commands: AsyncIterator[Command] = desk if self.how == "deaf" else self.until_stopping(desk)
        asked = False
        while not asked or self.on_stop == "ignore":
            try:
                async for command in commands:
                    if command == "leave":
                        return
                    assert callable(command)
                    command()
            except asyncio.CancelledError:
                if self.on_stop not in ("ignore", "fail"):
                    self.on_asked()
                    raise
            if not asked:
                asked = True
                self.on_asked()
            commands = desk
        if self.how == "slow":
            await asyncio.sleep(1.37)
        if self.how == "blocks":
            loop = asyncio.get_running_loop()
            assert isinstance(loop, ParkedLoop)
            loop.block(self.in_block)
        if self.on_stop == "fail":
            raise ValueError(f"end of {self.name}")

    def on_asked(self) -> None:
        """It has seen that it is to stop."""


class Coroutine(Plain, Acting):
    """With a loop and a thread of its own."""

    def __init__(self, name: str, trace: Trace, on_stop: str, how: str, clock: FakeClock) -> None:
        super().__init__(name, trace, on_stop)
        self.in_start = self.desk = LoopDesk()
        self.in_block = Desk()
        self.how = how
        self.loop_factory = partial(ParkedLoop, clock)

    def work(self) -> None:
        AsyncService.start(self)

    def end(self, command: Command) -> None:
        """It sees `stopping`, or is cancelled."""

    def free(self) -> None:
        super().free()
        self.in_block.tell("leave")


class Member(Acting):
    """In an `AsyncGroup`, which calls neither `start()` nor `stop()`: it notes what it sees."""

    def __init__(self, name: str, trace: Trace, on_stop: str, how: str, failure: OnFailure) -> None:
        self.name = name
        self.trace = trace
        self.on_stop = on_stop
        self.how = how
        self.failure = failure  # what the group is told to do about one
        self.in_start = self.desk = LoopDesk()
        self.in_block = Desk()

    async def run(self) -> None:
        self.trace.append(("start", self.name))
        try:
            await super().run()
        except asyncio.CancelledError:
            pass
        except Exception:
            self.trace.append(("raised", self.name))
            raise
        self.trace.append(("returned", self.name))

    def on_asked(self) -> None:
        self.trace.append(("stop", self.name))
        self.trace.append(("stopped", self.name))

    def free(self) -> None:
        self.on_stop = "obey"
        self.in_start.tell("leave")
        self.in_block.tell("leave")


class Crowd(Plain, AsyncGroup):
    """Many in one loop."""

    def __init__(self, name: str, trace: Trace, on_stop: str, clock: FakeClock) -> None:
        AsyncGroup.__init__(
            self,
            name=name,
            start_timeout=6.1,
            stop_timeout=2.3,
            shutdown_timeout=9.7,
            loop_factory=partial(ParkedLoop, clock),
        )
        Plain.__init__(self, name, trace, on_stop)
        self.in_start = self.desk = LoopDesk()
        self.members: list[Member] = []

    async def run(self) -> None:
        self.desk.open()
        await AsyncGroup.run(self)

    def work(self) -> None:
        AsyncService.start(self)

    def end(self, command: Command) -> None:
        """Its members do."""


class _Bed(Desk):
    """The desk of a schedule, which sleeps between two runs."""

    def __init__(self, service: Periodic, clock: FakeClock) -> None:
        super().__init__()
        self._service = service
        self._clock = clock
        self.until: float | None = None
        self._since = -1
        clock.sleepers.append(self)

    def moved(self) -> None:
        """It is told by the condition of the clock."""

    @property
    def parked(self) -> bool:
        sleeps = self._since == self._clock.moves and not self._service.stopping.is_set()
        return self.listens or sleeps

    def sleep(self, seconds: float) -> None:
        clock = self._clock
        with clock.moved:
            until = self.until = clock.time + seconds
            while clock.time < until and not self._service.stopping.is_set():
                self._since = clock.moves
                clock.moved.wait()
            self._since, self.until = -1, None

    def clear(self) -> None:
        """Forget what came when it was not there to be told."""
        while not self._commands.empty():
            self._commands.get()


class Scheduled(Plain, Periodic):
    """A schedule; with `how="busy"`, each run waits to be told."""

    def __init__(
        self, name: str, trace: Trace, on_stop: str, how: str, clock: FakeClock, **options: Any
    ) -> None:
        self._clock = clock
        self._monotonic = self._wall = lambda: clock.time
        Periodic.__init__(self, self.tick, name=name, **options)
        Plain.__init__(self, name, trace, on_stop)
        self.in_start = self.bed = _Bed(self, clock)
        self.how = how

    def tick(self) -> None:
        self.trace.append(("run", self.name))
        if self.how == "busy":
            self.in_start.work()
        self.trace.append(("ran", self.name))

    def work(self) -> None:
        self.bed.clear()
        Periodic.start(self)

    def stop(self) -> None:
        with self._clock.moved:
            self._clock.moved.notify_all()
        super().stop()

    def _wait(self, seconds: float) -> None:
        self.bed.sleep(seconds)
