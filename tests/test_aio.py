"""A service that is a coroutine, in a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from servicegroup import (
    AsyncService,
    ServiceCrashedError,
    ServiceGroup,
    ServiceGroupError,
    State,
    StopTimeoutError,
    _aio_tasks,
)
from servicegroup._aio_executor import DaemonExecutor
from tests.child import Child
from tests.fake_time import FakeClock, fake_time_group, wait_until
from tests.parked_loop import ParkedLoop

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0


class Base(AsyncService):
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.running = threading.Event()

    def note(self, what: str) -> None:
        self.trace.append(what)


class Waits(Base):
    """Looks at `stopping`."""

    async def run(self) -> None:
        self.note("in")
        self.running.set()
        await self.stopping.wait()
        self.note("out")


class Sleeps(Base):
    """Never looks at `stopping`."""

    async def run(self) -> None:
        self.running.set()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.note("cancelled")
            raise


class Stubborn(Base):
    """Ignores that it is cancelled."""

    async def run(self) -> None:
        self.running.set()
        while True:
            try:
                await self.deeper()
            except asyncio.CancelledError:
                self.note("ignored")

    async def deeper(self) -> None:
        await asyncio.sleep(1000)


def failure(group: ServiceGroup) -> BaseException:
    """The only failure of a group that runs until it fails or is stopped."""
    with pytest.raises(ServiceGroupError) as caught:
        group.wait(PATIENCE)
    (error,) = caught.value.exceptions
    return error


def run_until(
    service: AsyncService, ready: Callable[[], object] | None = None, **options: Any
) -> ServiceGroup:
    """A group of `service` that has been stopped once `ready` and has ended."""
    return run_in(patient_group(), service, ready, **options)


def patient_group() -> ServiceGroup:
    """One that gives each service more time to stop than any test has."""
    return ServiceGroup(stop_timeout=1000.0, shutdown_timeout=1000.0)


def run_in(
    group: ServiceGroup,
    service: AsyncService,
    ready: Callable[[], object] | None = None,
    **options: Any,
) -> ServiceGroup:
    """As `run_until`, of `group`."""
    group.add(service, **options)
    thread = start(group)
    wait_until(ready or getattr(service, "running").is_set)  # noqa: B009
    group.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return group


def start(group: ServiceGroup) -> threading.Thread:
    def main() -> None:
        try:
            group.start()
        except (ServiceGroupError, SystemExit):
            pass  # wait() raises it again

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread


def ask_in_fake_time(
    service: Base, *before: Base
) -> tuple[ServiceGroup, threading.Thread, FakeClock, ParkedLoop]:
    """A group of `before` and `service`, which has just heard that it has 10 seconds to stop."""
    clock = FakeClock()
    group = fake_time_group(clock, stop_timeout=10.0)
    for one in (*before, service):
        group.add(one)
    service.loop_factory = partial(ParkedLoop, clock)
    thread = start(group)
    assert service.running.wait(PATIENCE)
    (loop,) = clock.sleepers
    assert isinstance(loop, ParkedLoop)
    group.stop()
    wait_until(lambda: loop.parked and (loop.until or math.inf) < clock.time + 10.0)
    return group, thread, clock, loop


def pass_time(clock: FakeClock, loop: ParkedLoop, thread: threading.Thread) -> None:
    """Little by little, so that each thing happens in its time, until `thread` has ended."""
    while thread.is_alive():
        wait_until(lambda: loop.parked or not thread.is_alive())
        clock.advance(0.05)


# -- stopping -------------------------------------------------------------------------------------


def test_one_that_looks_at_stopping_is_not_cancelled() -> None:
    service = Waits()
    group = run_until(service)
    assert group.wait().services[0].state is State.STOPPED
    assert service.trace == ["in", "out"]


def test_one_that_never_looked_is_cancelled_at_once() -> None:
    service = Sleeps()
    report = run_until(service).wait()
    assert report.services[0].state is State.STOPPED
    assert service.trace == ["cancelled"]
    assert report.services[0].seconds_to_stop is not None
    assert report.services[0].seconds_to_stop < PATIENCE


def test_one_that_looked_once_has_time_before_it_is_cancelled() -> None:
    class Looked(Sleeps):
        async def run(self) -> None:
            assert not self.stopping.is_set()
            await super().run()

    service = Looked()
    group, thread, clock, loop = ask_in_fake_time(service)
    clock.advance(7.9)
    wait_until(lambda: loop.parked)
    assert service.trace == []
    clock.advance(0.2)
    thread.join(PATIENCE)
    assert group.wait().services[0].state is State.STOPPED
    assert service.trace == ["cancelled"]


@pytest.mark.parametrize("looks", [False, True])
def test_cancel_after_goes_before_the_default(looks: bool) -> None:
    class Chosen(Sleeps):
        cancel_after = 0.2

        async def run(self) -> None:
            if looks:
                await self.sleep(0)
            await super().run()

    service = Chosen()
    report = run_until(service, stop_timeout=100.0).wait()
    assert service.trace == ["cancelled"]
    seconds = report.services[0].seconds_to_stop
    assert seconds is not None
    assert 0.2 <= seconds < PATIENCE


def test_cancel_after_inf_cancels_only_at_the_very_end() -> None:
    class Never(Sleeps):
        cancel_after = math.inf

    service = Never()
    group, thread, clock, loop = ask_in_fake_time(service)
    assert loop.until == clock.time + 8.7
    clock.advance(8.6)
    wait_until(lambda: loop.parked)
    assert service.trace == []
    clock.advance(0.2)
    thread.join(PATIENCE)
    assert group.wait().services[0].state is State.STOPPED
    assert service.trace == ["cancelled"]


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_a_cancel_after_that_makes_no_sense_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="Bad: cancel_after"):
        type("Bad", (Waits,), {"cancel_after": value})
    service = Waits()
    service.cancel_after = value
    with pytest.raises(error, match="'Waits': cancel_after"):
        service.start()


def test_a_stop_before_the_start_is_kept() -> None:
    service = Waits()
    service.stop()
    assert service.stopping.is_set()
    service.start()
    assert service.trace == ["in", "out"]


def test_a_stop_while_the_loop_is_made_is_kept() -> None:
    service = Waits()

    def factory() -> asyncio.AbstractEventLoop:
        service.stop()
        return asyncio.new_event_loop()

    service.loop_factory = factory
    service.start()
    assert service.trace == ["in", "out"]


def test_stopping_again_and_again_does_no_harm() -> None:
    service = Waits()
    thread = threading.Thread(target=service.start, daemon=True)
    thread.start()
    service.running.wait(PATIENCE)
    for _ in range(3):
        service.stop()
    thread.join(PATIENCE)
    service.stop()
    assert not thread.is_alive()
    assert service.trace == ["in", "out"]


def test_it_may_stop_itself() -> None:
    class Own(Base):
        async def run(self) -> None:
            self.stop()
            assert self.stopping.is_set()
            await asyncio.sleep(1000)

    Own().start()


def test_an_overridden_stop_need_not_set_stopping() -> None:
    class Other(Waits):
        def stop(self) -> None:
            self.note("stop")

    service = Other()
    run_until(service).wait()
    assert sorted(service.trace) == ["in", "out", "stop"]


def test_the_same_object_three_times() -> None:
    service = Waits()
    group = ServiceGroup()
    group.add(service)
    for _ in range(3):
        service.running.clear()
        thread = start(group)
        service.running.wait(PATIENCE)
        assert not service.stopping.is_set()
        group.stop()
        thread.join(PATIENCE)
        group.wait()
    assert service.trace == ["in", "out"] * 3


def test_one_that_returned_can_be_started_again_in_another_loop() -> None:
    class Once(Base):
        async def run(self) -> None:
            assert await self.sleep(0.001)
            self.note("slept")

    service = Once()
    service.start()
    service.start()
    assert service.trace == ["slept", "slept"]


def test_to_be_asked_again_does_not_put_the_cancellation_off() -> None:
    class Chosen(Sleeps):
        cancel_after = 3.0

    clock = FakeClock()
    service = Chosen()
    service.loop_factory = partial(ParkedLoop, clock)
    thread = threading.Thread(target=service.start, daemon=True)
    thread.start()
    service.running.wait(PATIENCE)
    (loop,) = clock.sleepers
    assert isinstance(loop, ParkedLoop)
    for _ in range(2):
        service.stop()
        wait_until(lambda: loop.parked)
        assert service.trace == []
        clock.advance(1.5)
    thread.join(PATIENCE)
    assert service.trace == ["cancelled"]


def test_a_signal_handler_may_stop_one_that_waits_in_the_main_thread() -> None:
    with Child(
        """
        import asyncio, selectors
        from servicegroup import AsyncService

        class Selector(selectors.DefaultSelector):
            def select(self, timeout=None):
                # As if it came when the loop has looked around and goes to wait.
                if timeout is None:
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().select(timeout)

        class Waits(AsyncService):
            def loop_factory(self):
                return asyncio.SelectorEventLoop(Selector())

            async def run(self):
                await self.stopping.wait()
                say("out")

        service = Waits()
        signal.signal(signal.SIGTERM, lambda *_: service.stop())
        service.start()
        """
    ) as child:
        child.wait_for("out")
        assert child.end() == 0


CTRL_C = """
import asyncio
from servicegroup import AsyncGroup, AsyncService

class Sleeps(AsyncService):
    def __init__(self, fails=False):
        self.fails = fails

    async def run(self):
        say("in")
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            say("finally")
            if self.fails:
                raise OSError("the end failed")

def interrupted(service):
    try:
        service.start()
    except KeyboardInterrupt as error:
        say("caught", repr(error.__cause__), repr(signal.getsignal(signal.SIGINT)))
        raise
"""


def test_ctrl_c_ends_one_that_runs_in_the_main_thread_as_asyncio_run_would() -> None:
    with Child(CTRL_C, "interrupted(Sleeps())") as child:
        child.wait_for("in")
        child.send(signal.SIGINT)
        assert child.end() == -signal.SIGINT
        assert child.said("finally", "caught") == [
            "finally",
            "caught None <built-in function default_int_handler>",
        ]
        assert child.stderr.endswith("\nKeyboardInterrupt\n")


def test_ctrl_c_hides_no_failure_of_the_end() -> None:
    with Child(CTRL_C, "interrupted(Sleeps(fails=True))") as child:
        child.wait_for("in")
        child.send(signal.SIGINT)
        child.wait_for("caught OSError('the end failed')")
        assert child.end() == -signal.SIGINT
        assert "never retrieved" not in child.stderr


def test_ctrl_c_stops_the_members_of_a_group_in_the_main_thread_in_reverse() -> None:
    with Child(
        CTRL_C,
        """
        class Member(Sleeps):
            async def run(self):
                try:
                    await super().run()
                finally:
                    say("end", self.name)

        group = AsyncGroup()
        for name in ("one", "two"):
            group.add(Member(), name=name).name = name
        interrupted(group)
        """,
    ) as child:
        child.wait_for("in")
        child.wait_for("in")
        child.send(signal.SIGINT)
        assert child.end() == -signal.SIGINT
        assert child.said("end") == ["end two", "end one"]


def test_many_stops_at_any_moment_lose_none() -> None:
    for delay in range(60):
        service = Waits()
        thread = threading.Thread(target=service.start, daemon=True)
        thread.start()
        time.sleep(delay / 100_000)
        service.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


# -- failures -------------------------------------------------------------------------------------


def test_what_run_raises_is_its_failure() -> None:
    class Raises(Base):
        async def run(self) -> None:
            raise ValueError("broken")

    group = ServiceGroup()
    group.add(Raises())
    start(group)
    error = failure(group)
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["in service 'Raises', while running"]


def test_what_it_raises_while_stopping_is_its_failure() -> None:
    class Raises(Sleeps):
        async def run(self) -> None:
            try:
                await super().run()
            finally:
                raise OSError("clean-up")

    assert isinstance(failure(run_until(Raises())), OSError)


def test_a_cancellation_of_somebody_else_is_a_failure() -> None:
    class Cancelled(Base):
        async def run(self) -> None:
            raise asyncio.CancelledError

    group = ServiceGroup()
    group.add(Cancelled())
    start(group)
    error = failure(group)
    assert isinstance(error, ServiceCrashedError)
    assert isinstance(error.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("beside", [False, True])
def test_sys_exit_ends_the_group_with_its_code(beside: bool) -> None:
    class Exits(Waits):
        async def run(self) -> None:
            async def leave() -> None:
                sys.exit(7)

            if not beside:
                await leave()
            task = asyncio.get_running_loop().create_task(leave())
            task.add_done_callback(asyncio.Task.exception)  # or asyncio logs it, too
            await super().run()
            await task

    group = ServiceGroup()
    group.add(Exits())
    with pytest.raises(SystemExit) as caught:
        group.start()
    assert caught.value.code == 7


@pytest.mark.parametrize("beside", [False, True])
def test_a_keyboard_interrupt_is_a_failure(beside: bool) -> None:
    class Interrupted(Waits):
        async def run(self) -> None:
            async def interrupt() -> None:
                raise KeyboardInterrupt

            if not beside:
                await interrupt()
            task = asyncio.get_running_loop().create_task(interrupt())
            task.add_done_callback(asyncio.Task.exception)  # or asyncio logs it, too
            await super().run()
            await task

    group = ServiceGroup()
    group.add(Interrupted())
    start(group)
    assert isinstance(failure(group).__cause__, KeyboardInterrupt)


def test_one_that_ignores_cancellation_is_given_up_and_its_stack_told() -> None:
    service = Stubborn()
    other = Waits()
    group, thread, clock, loop = ask_in_fake_time(service, other)
    pass_time(clock, loop, thread)
    error = failure(group)
    assert isinstance(error, StopTimeoutError)
    assert "task 'Stubborn' is at:" in error.stack
    assert "in deeper" in error.stack
    assert "_aio_service" not in error.stack
    assert other.trace == ["in", "out"]
    group.stop()


def test_one_that_blocks_the_loop_is_abandoned_and_its_stack_told() -> None:
    free = threading.Event()

    class Blocks(Base):
        async def run(self) -> None:
            self.block()

        def block(self) -> None:
            self.running.set()
            free.wait()

    group = run_until(Blocks(), stop_timeout=0.2)
    error = failure(group)
    free.set()
    assert isinstance(error, StopTimeoutError)
    assert "self.block()" in error.stack


def test_what_makes_no_coroutine_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Nothing does not override async def run"):
        type("Nothing", (AsyncService,), {})()
    with pytest.raises(TypeError, match="AsyncService does not override"):
        AsyncService()

    async def yields(self: object) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"Yields\.run\(\) has a yield"):
        type("Yields", (AsyncService,), {"run": yields})

    class Plain(AsyncService):
        def run(self) -> int:  # type: ignore[override]
            return 3

    with pytest.raises(TypeError, match="'Plain' returned 3: it must be async def"):
        Plain().start()


def test_a_coroutine_as_start_is_refused_with_a_hint() -> None:
    class Wrong:
        async def start(self) -> None: ...

        def stop(self) -> None: ...

    with pytest.raises(TypeError, match="AsyncService"):
        ServiceGroup().add(Wrong())


def test_start_is_refused_where_it_runs_already_and_inside_a_loop() -> None:
    service = Waits()
    thread = threading.Thread(target=service.start, daemon=True)
    thread.start()
    service.running.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="runs already"):
        service.start()
    service.stop()
    thread.join(PATIENCE)

    async def inside() -> None:
        Waits().start()

    with pytest.raises(RuntimeError, match="this thread runs an event loop"):
        asyncio.run(inside())


def test_a_loop_factory_that_raises_is_a_failure() -> None:
    class Without(Waits):
        def loop_factory(self) -> asyncio.AbstractEventLoop:
            raise OSError("no descriptors")

    group = ServiceGroup()
    group.add(Without())
    start(group)
    assert isinstance(failure(group), OSError)


def test_the_loop_factory_makes_the_loop() -> None:
    class Loop(asyncio.SelectorEventLoop):
        pass

    def new_loop() -> asyncio.AbstractEventLoop:
        return Loop()

    class Chosen(Base):
        loop_factory = new_loop  # a function in a class: a method, were it not for our care

        async def run(self) -> None:
            self.note(type(asyncio.get_running_loop()).__name__)

    service = Chosen()
    service.start()
    assert service.trace == ["Loop"]


def test_uvloop_may_be_that_loop() -> None:
    uvloop = pytest.importorskip("uvloop")

    class Fast(Base):
        loop_factory = uvloop.new_event_loop

        async def run(self) -> None:
            self.note(type(asyncio.get_running_loop()).__module__)
            self.note(str(await asyncio.to_thread(pow, 2, 3)))
            self.note(str(await self.sleep(0.001)))
            self.task = asyncio.create_task(self.beside())
            self.running.set()
            async for _ in self.until_stopping(Items()):
                pass
            self.note(str(self.stopping.is_set()))

        async def beside(self) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                self.note("cancelled")

    service = Fast()
    report = run_until(service).wait()
    assert report.services[0].state is State.STOPPED
    assert service.trace == ["uvloop", "8", "True", "True", "cancelled"]
    stubborn = Stubborn()
    stubborn.loop_factory = uvloop.new_event_loop
    # By a clock that stands still: however slow the loop is, the group does not abandon it first.
    error = failure(run_in(fake_time_group(FakeClock()), stubborn, stop_timeout=0.5))
    assert isinstance(error, StopTimeoutError)
    assert "in deeper" in error.stack


def test_ctrl_c_ends_one_on_uvloop_too() -> None:
    pytest.importorskip("uvloop")
    with Child(
        CTRL_C,
        """
        import uvloop
        service = Sleeps()
        service.loop_factory = uvloop.new_event_loop
        interrupted(service)
        """,
    ) as child:
        child.wait_for("in")
        child.send(signal.SIGINT)
        assert child.end() == -signal.SIGINT
        assert child.said("finally") == ["finally"]


# -- what is left behind --------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left behind has more time to end than any test has."""
    monkeypatch.setattr(_aio_tasks, "CLEANUP_SECONDS", 4 * PATIENCE)


@pytest.mark.usefixtures("patient")
def test_tasks_left_behind_are_cancelled_and_waited_for() -> None:
    class Leaves(Base):
        async def run(self) -> None:
            self.task = asyncio.create_task(self.beside())
            await asyncio.sleep(0)

        async def beside(self) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0.01)
                self.note("cleaned")

    service = Leaves()
    service.start()
    assert service.trace == ["cleaned"]


@pytest.mark.usefixtures("patient")
def test_failures_of_tasks_left_behind_are_told() -> None:
    class Leaves(Base):
        def __init__(self, error: Exception | None) -> None:
            super().__init__()
            self.error = error

        async def run(self) -> None:
            self.task = asyncio.create_task(self.beside())
            await asyncio.sleep(0)
            if self.error is not None:
                raise self.error

        async def beside(self) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                raise OSError("beside")

    with pytest.raises(OSError, match="beside"):
        Leaves(None).start()
    with pytest.raises(ExceptionGroup) as caught:
        Leaves(ValueError("run")).start()
    assert [type(error) for error in caught.value.exceptions] == [ValueError, OSError]


def test_a_task_left_behind_that_will_not_end_is_told() -> None:
    service = Stubborn()

    class Leaves(Base):
        async def run(self) -> None:
            self.task = asyncio.create_task(service.run(), name="stubborn")
            self.running.set()
            await self.stopping.wait()

    group, thread, clock, loop = ask_in_fake_time(Leaves())
    pass_time(clock, loop, thread)
    error = failure(group)
    assert isinstance(error, StopTimeoutError)
    assert "task 'stubborn' is at:" in error.stack


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_hides_no_failure_of_what_is_left_behind(code: int) -> None:
    class Exits(Base):
        async def run(self) -> None:
            self.task = asyncio.create_task(self.beside())
            await asyncio.sleep(0)
            sys.exit(code)

        async def beside(self) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                raise OSError("beside")

    with pytest.raises(SystemExit if code else OSError) as caught:
        Exits().start()
    failure = caught.value.__cause__ if code else caught.value
    assert isinstance(failure, OSError)


def test_a_failure_of_a_task_that_ends_late_is_told() -> None:
    clock = FakeClock()

    class Leaves(Base):
        async def run(self) -> None:
            self.loop = asyncio.get_running_loop()
            self.tasks = [asyncio.create_task(beside()) for beside in (self.fails, self.holds)]
            await asyncio.sleep(0)

        async def fails(self) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                # Longer than it is waited for; but another one takes its time, too.
                await asyncio.sleep(2.0)
                raise OSError("late")

        async def holds(self) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)
            generator = self.numbers()
            await anext(generator)
            self.running.set()
            await asyncio.sleep(1000)

        async def numbers(self) -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0.5)

    service = Leaves()
    service.loop_factory = partial(ParkedLoop, clock)
    raised: list[BaseException] = []

    def main() -> None:
        try:
            service.start()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    assert service.running.wait(PATIENCE)
    assert isinstance(service.loop, ParkedLoop)
    pass_time(clock, service.loop, thread)
    assert [type(error) for error in raised] == [OSError]


@pytest.mark.usefixtures("patient")
def test_generators_are_closed() -> None:
    class Generates(Base):
        async def run(self) -> None:
            self.generator = self.numbers()
            await anext(self.generator)

        async def numbers(self) -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                self.note("closed")

    service = Generates()
    service.start()
    assert service.trace == ["closed"]


def test_the_executor_is_given_up_while_its_threads_take_from_the_queue() -> None:
    class Emptied(SimpleQueue[Any]):
        def empty(self) -> bool:
            """What was there is gone the next moment: a thread has taken it."""
            return False

    executor = DaemonExecutor("given up")
    executor._jobs = Emptied()
    assert executor.submit(pow, 2, 3).result(PATIENCE) == 8
    thread = threading.Thread(target=executor.give_up, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.usefixtures("patient")
def test_the_executor_works_and_its_threads_are_gone_afterwards() -> None:
    class Threads(Base):
        async def run(self) -> None:
            for _ in range(3):
                results = await asyncio.gather(*(asyncio.to_thread(pow, 2, n) for n in range(40)))
                self.note(str(sum(results) == 2**40 - 1))
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(divmod, 1, 0)

    service = Threads()
    before = set(threading.enumerate())
    service.start()
    assert service.trace == ["True"] * 3
    assert set(threading.enumerate()) <= before


def test_work_of_the_executor_that_needs_the_loop_is_finished() -> None:
    class Threads(Base):
        async def run(self) -> None:
            loop = asyncio.get_running_loop()

            async def answer() -> None:
                self.note("answered")

            def ask() -> None:
                self.running.set()
                self.stopped.wait(PATIENCE)
                asyncio.run_coroutine_threadsafe(answer(), loop).result(PATIENCE)

            self.stopped = threading.Event()
            self.future = loop.run_in_executor(None, ask)
            await self.stopping.wait()
            self.stopped.set()

    service = Threads()
    run_until(service).wait()
    assert service.trace == ["answered"]


HANGING = """
import asyncio, time
from servicegroup import AsyncService, ServiceGroupError, _aio_tasks
from tests.fake_time import FakeClock, fake_time_group

_aio_tasks.CLEANUP_SECONDS = 1000.0  # so it must be the stop that ends the wait

class Hangs(AsyncService):
    stop_timeout = 0.5

    async def run(self):
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, time.sleep, 1000)
        while not loop._default_executor.busy():
            await asyncio.sleep(0.001)
        loop.call_later(0.05, group.stop)

# Its clock stands still: however slow the loop is, the group does not abandon it first.
group = fake_time_group(FakeClock())
group.add(Hangs())
try:
    group.start()
except ServiceGroupError as error:
    print(*error.exceptions)
"""


def test_a_thread_of_the_executor_that_hangs_is_named_and_keeps_no_process() -> None:
    child = subprocess.run(
        [sys.executable, "-c", HANGING],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
    )
    assert child.returncode == 0, child.stderr
    assert "thread 'group/Hangs (executor) 1' runs <built-in function sleep>" in child.stdout


# -- helpers --------------------------------------------------------------------------------------


def test_sleep_tells_whether_it_slept_through() -> None:
    class Sleeper(Base):
        async def run(self) -> None:
            self.note(str(await self.sleep(0.001)))
            self.note(str(await self.sleep(-1)))
            self.running.set()
            self.note(str(await self.sleep(math.inf)))
            self.note(str(await self.sleep(1000)))

    service = Sleeper()
    run_until(service).wait()
    assert service.trace == ["True", "True", "False", "False"]


class Items:
    """An asynchronous iterator that yields what it is given."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.queue: asyncio.Queue[int] = asyncio.Queue()
        self.stubborn = stubborn
        self.trace: list[str] = []

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        task = asyncio.current_task()
        try:
            item = await self.queue.get()
        except asyncio.CancelledError:
            self.trace.append("cancelled")
            if self.stubborn:
                return -1
            raise
        if item == 0:
            raise StopAsyncIteration
        self.trace.append(f"{item} in {task is asyncio.current_task()}")
        return item

    async def aclose(self) -> None:
        self.trace.append("closed")


class Consumer(Base):
    def __init__(self, items: Items) -> None:
        super().__init__()
        self.items = items

    async def run(self) -> None:
        async for item in self.until_stopping(self.items):
            self.note(f"begin {item}")
            if item == 2:
                self.running.set()
                await self.stopping.wait()
                await asyncio.sleep(0.01)
            self.note(f"end {item}")
        self.note("done")


def test_until_stopping_finishes_the_item_in_hand() -> None:
    items = Items()
    for item in (1, 2, 3):
        items.queue.put_nowait(item)
    consumer = Consumer(items)
    run_until(consumer).wait()
    assert consumer.trace == ["begin 1", "end 1", "begin 2", "end 2", "done"]
    assert items.trace == ["1 in True", "2 in True", "closed"]


@pytest.mark.parametrize("stubborn", [False, True])
def test_until_stopping_cancels_the_wait_and_loses_nothing(stubborn: bool) -> None:
    items = Items(stubborn=stubborn)
    items.queue.put_nowait(1)
    consumer = Consumer(items)
    run_until(consumer, lambda: "end 1" in consumer.trace).wait()
    late = ["begin -1", "end -1"] if stubborn else []
    assert consumer.trace == ["begin 1", "end 1", *late, "done"]
    assert items.trace == ["1 in True", "cancelled", "closed"]


def test_until_stopping_ends_with_its_items() -> None:
    items = Items()
    items.queue.put_nowait(1)
    items.queue.put_nowait(0)
    consumer = Consumer(items)
    consumer.start()
    assert consumer.trace == ["begin 1", "end 1", "done"]
    assert items.trace[-1] == "closed"


def test_until_stopping_closes_also_when_left_and_when_cancelled() -> None:
    left, cancelled = Items(), Items()
    left.queue.put_nowait(1)

    class Leaves(Base):
        async def run(self) -> None:
            async for _ in self.until_stopping(left):
                break
            task = asyncio.create_task(self.other())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def other(self) -> None:
            async for _ in self.until_stopping(cancelled):
                pass

    Leaves().start()
    assert left.trace[-1] == "closed"
    assert cancelled.trace == ["cancelled", "closed"]


@pytest.mark.parametrize("error", [ValueError, TimeoutError])
def test_until_stopping_passes_on_what_the_iterator_raises(error: type[Exception]) -> None:
    class Broken(Items):
        async def __anext__(self) -> int:
            raise error("broken")

    items = Broken()
    with pytest.raises(error, match="broken"):
        Consumer(items).start()
    assert items.trace == ["closed"]


def test_until_stopping_takes_generators_and_refuses_the_rest() -> None:
    class Counts(Base):
        async def numbers(self) -> AsyncIterator[int]:
            try:
                for number in range(1000):
                    yield number
                    await asyncio.sleep(0)
            finally:
                self.note("closed")

        async def run(self) -> None:
            wrong: Any = [1]
            with pytest.raises(TypeError, match=r"'Counts'.*asynchronous iterable.*is_set"):
                self.until_stopping(wrong)
            wrong = 3
            with pytest.raises(TypeError, match="asynchronous iterable, not 3"):
                self.until_stopping(wrong)
            async for number in self.until_stopping(self.numbers()):
                self.note(str(number))
                if number == 2:
                    self.stop()

    counts = Counts()
    counts.cancel_after = math.inf
    counts.start()
    assert counts.trace == ["0", "1", "2", "closed"]


def test_mark_ready_and_mark_not_ready_work_inside() -> None:
    class Announces(Waits):
        ready_when = "announced"

        def __init__(self) -> None:
            super().__init__()
            self.go, self.away = threading.Event(), threading.Event()

        async def run(self) -> None:
            self.running.set()
            await asyncio.to_thread(self.go.wait, PATIENCE)
            self.mark_ready()
            await asyncio.to_thread(self.away.wait, PATIENCE)
            self.mark_not_ready()
            await super().run()

    service = Announces()
    group = patient_group()
    group.add(service)
    thread = start(group)
    service.running.wait(PATIENCE)
    assert not group.is_ready
    service.go.set()
    group.wait_ready(PATIENCE)
    service.away.set()
    wait_until(lambda: not group.is_ready)
    group.stop()
    thread.join(PATIENCE)
    group.wait()
