"""An event loop whose time stands still until the test moves it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from servicegroup import AsyncGroup, AsyncService, ServiceGroup
from tests.fake_time import FakeClock, wait_until

PATIENCE = 30.0

Trace = list[tuple[str, str]]  # what happened, and to whom


class FakeLoop(asyncio.SelectorEventLoop):
    """A loop that goes by a `FakeClock`."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    @property
    def begun(self) -> bool:
        return self.is_running() or self.is_closed()

    def time(self) -> float:
        return self.clock.time

    def busy(self) -> bool:
        """Whether there is something to be done now. In the loop."""
        ready: list[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        return bool(ready) or any(when <= self.time() for when in self.alarms())

    def alarms(self) -> list[float]:
        """What the loop would wake up for."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return sorted(timer.when() for timer in timers if not timer.cancelled())


class Times:
    """The clock, and the loops that go by it: `AsyncGroup(loop_factory=times.loop_factory)`."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.loops: list[FakeLoop] = []

    def loop_factory(self) -> FakeLoop:
        self.loops.append(FakeLoop(self.clock))
        return self.loops[-1]

    @property
    def loop(self) -> FakeLoop:
        """The one that runs, or ran last."""
        wait_until(lambda: self.loops and self.loops[-1].begun, "a loop that runs")
        return self.loops[-1]

    def settle(self) -> None:
        """Wait until nothing moves any more, or until the loop has ended."""
        loop, quiet = self.loop, threading.Event()

        def look() -> None:
            if loop.busy():
                loop.call_soon(look)
            else:
                quiet.set()

        try:
            loop.call_soon_threadsafe(look)
        except RuntimeError:
            return
        wait_until(lambda: quiet.is_set() or loop.is_closed(), "quiet")

    def advance(self, seconds: float) -> None:
        """Let time pass, and what is due happen."""
        self.clock.advance(seconds)
        self.settle()

    def alarms(self) -> list[float]:
        """What the loop would wake up for, once nothing moves any more."""
        self.settle()
        return self.loops[-1].alarms()


class Told(AsyncService):
    """Does as it is told by the test; `on_stop` says how it takes a stop."""

    def __init__(self, name: str, trace: Trace, on_stop: str = "obey") -> None:
        self.name = name
        self.trace = trace
        self.on_stop = on_stop
        self.commands: asyncio.Queue[object] | None = None

    async def run(self) -> None:
        self.trace.append(("start", self.name))
        self.loop = asyncio.get_running_loop()
        self.commands = asyncio.Queue()
        stop = self.loop.create_task(self._wait_for_stop(), name="stop")
        try:
            while (command := await self.commands.get()) != "leave":
                if isinstance(command, BaseException):
                    raise command
                assert callable(command)
                command()
        finally:
            stop.cancel()
            self.trace.append(("end", self.name))

    async def _wait_for_stop(self) -> None:
        await self.stopping.wait()
        self.trace.append(("stop", self.name))
        assert self.commands is not None
        if self.on_stop == "fail":
            self.commands.put_nowait(OSError(f"end of {self.name}"))
        if self.on_stop == "obey":
            self.commands.put_nowait("leave")

    def tell(self, command: BaseException | str | Callable[[], object]) -> None:
        """Any thread."""
        wait_until(lambda: self.commands is not None, f"{self.name} runs")
        assert self.commands is not None
        self.loop.call_soon_threadsafe(self.commands.put_nowait, command)


class Stubborn(AsyncService):
    """It goes on after a stop, and after a cancellation too."""

    def __init__(self, name: str, trace: Trace) -> None:
        self.name = name
        self.trace = trace

    async def run(self) -> None:
        self.trace.append(("start", self.name))
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.trace.append(("ignored", self.name))


def noted(trace: Trace, name: str) -> list[str]:
    """What happened to `name`."""
    return [what for what, who in trace if who == name]


def run_in_thread(
    service: ServiceGroup | AsyncGroup,
) -> tuple[threading.Thread, list[BaseException]]:
    """`start()` on a thread; what it raised is in the list."""
    raised: list[BaseException] = []

    def main() -> None:
        try:
            service.start()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread, raised


def finish(thread: threading.Thread) -> None:
    """It is to end without any time passing."""
    thread.join(PATIENCE)
    assert not thread.is_alive()
