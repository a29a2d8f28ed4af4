"""Many coroutine services in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicegroup import (
    AsyncGroup,
    AsyncService,
    GroupStoppingError,
    ServiceCrashedError,
    ServiceGroup,
    ServiceGroupError,
    ServiceStatus,
    StartTimeoutError,
    State,
    StopTimeoutError,
)
from tests.fake_loop import Times
from tests.fake_time import FakeClock, fake_time_group, wait_until

PATIENCE = 30.0

Trace = list[tuple[str, str]]


class Worker(AsyncService):
    """Does as it is told, and notes it."""

    def __init__(self, name: str, trace: Trace, how: str = "obey") -> None:
        self.name = name
        self.trace = trace
        self.how = how

    async def run(self) -> None:
        self.trace.append(("start", self.name))
        try:
            await self.work()
        finally:
            self.trace.append(("end", self.name))

    async def work(self) -> None:
        if self.how == "raise":
            raise ValueError(self.name)
        if self.how == "return":
            return
        if self.how == "exit":
            raise SystemExit(7)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "needs cancel":
            await asyncio.sleep(1000)
        while self.how == "ignore":
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.trace.append(("ignored", self.name))
        if self.how in ("announce", "late"):
            if self.how == "late":
                await self.stopping.wait()
            self.mark_ready()
        await self.stopping.wait()
        self.trace.append(("stop", self.name))
        if self.how == "fail":
            raise OSError(self.name)
        if self.how == "slow":
            for _ in range(5):
                await asyncio.sleep(0)


def run_in_thread(service: ServiceGroup | AsyncGroup) -> tuple[threading.Thread, list[Any]]:
    raised: list[Any] = []

    def main() -> None:
        try:
            service.start()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread, raised


def both() -> tuple[ServiceGroup, AsyncGroup, Trace]:
    outer = ServiceGroup(name="outer")
    return outer, outer.add(AsyncGroup(name="loop")), []


def run(outer: ServiceGroup, until: Callable[[], object] | None = None) -> Any:
    """What `outer.start()` raised, having been stopped once all is up."""
    thread, raised = run_in_thread(outer)
    wait_until(until or (lambda: outer.is_ready))  # wait_ready() may still see the run before
    outer.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return raised[0] if raised else None


def parts(outer: ServiceGroup) -> dict[str, ServiceStatus]:
    return {part.name: part for part in outer.status()[0].parts}


def test_they_start_in_order_and_stop_in_reverse() -> None:
    outer, loop, trace = both()
    for name, how in (("a", "obey"), ("b", "slow"), ("c", "needs cancel"), ("d", "announce")):
        loop.add(Worker(name, trace, how), ready_when="announced" if how == "announce" else None)
    assert run(outer) is None
    assert [who for what, who in trace if what == "start"] == ["a", "b", "c", "d"]
    assert [who for what, who in trace if what == "end"] == ["d", "c", "b", "a"]
    assert trace[-4:] == [("stop", "b"), ("end", "b"), ("stop", "a"), ("end", "a")]


def test_each_has_its_row() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace), name="other")
    assert [part.name for part in loop.status()] == ["a", "other"]
    thread, _ = run_in_thread(outer)
    outer.wait_ready(PATIENCE)
    assert [(part.name, part.state, part.ready) for part in outer.status()[0].parts] == [
        ("loop/a", State.RUNNING, True),
        ("loop/other", State.RUNNING, True),
    ]
    outer.stop()
    thread.join(PATIENCE)
    report = outer.wait()
    assert [part.state for part in report.services[0].parts] == [State.STOPPED] * 2
    assert "loop/other" in str(report)
    for part in report.services[0].parts:
        assert part.seconds_to_ready is not None
        assert part.seconds_to_stop is not None


def test_the_next_one_waits_until_the_one_before_is_ready() -> None:
    outer, loop, trace = both()
    first = loop.add(Worker("a", trace), ready_when="announced")
    loop.add(Worker("b", trace))
    thread, raised = run_in_thread(outer)
    wait_until(lambda: ("start", "a") in trace)
    assert not outer.is_ready
    assert ("start", "b") not in trace
    first.mark_ready()  # from another thread
    outer.wait_ready(PATIENCE)
    wait_until(lambda: ("start", "b") in trace)  # it is ready just before its first line
    first.mark_not_ready()
    wait_until(lambda: not outer.is_ready)
    first.mark_ready()
    wait_until(lambda: outer.is_ready)
    outer.stop()
    thread.join(PATIENCE)
    assert raised == []


def test_one_that_is_not_ready_in_time_ends_the_start() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace, "late"), ready_when="announced", start_timeout=0.05)
    loop.add(Worker("c", trace))
    with pytest.raises(ServiceGroupError) as caught:
        outer.start()
    (inner,) = caught.value.exceptions
    assert isinstance(inner, ServiceGroupError)
    (error,) = inner.exceptions
    assert isinstance(error, StartTimeoutError)
    assert "in work" in error.stack
    assert error.__notes__ == ["in service 'b', while starting"]
    assert [who for what, who in trace if what == "end"] == ["b", "a"]
    assert parts(outer)["loop/c"].state is State.NEW


@pytest.mark.parametrize(
    ("how", "kind"), [("raise", ValueError), ("interrupt", ServiceCrashedError)]
)
def test_a_failure_stops_all_and_is_one_failure_of_the_outer(
    how: str, kind: type[Exception]
) -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace, how))
    loop.add(Worker("c", trace, "fail"))
    with pytest.raises(ServiceGroupError) as caught:
        outer.start()
    (inner,) = caught.value.exceptions
    assert isinstance(inner, ServiceGroupError)
    assert inner.__notes__ == ["in service 'loop', while starting"]
    assert type(inner.exceptions[0]) is kind
    assert inner.exceptions[0].__notes__ == ["in service 'b', while running"]
    assert [service.name for service in inner.report.services] == ["a", "b", "c"]
    assert trace[-1] == ("end", "a")
    assert [who for what, who in trace if what == "stop"].count("a") == 1


def test_a_failure_that_may_be_is_kept_in_the_report_only() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace, "raise"), on_failure="continue")
    loop.add(Worker("b", trace))
    assert run(outer) is None
    assert isinstance(parts(outer)["loop/a"].error, ValueError)
    assert parts(outer)["loop/a"].state is State.FAILED


def test_failures_while_stopping_are_all_told() -> None:
    outer, loop, trace = both()
    for name in "ab":
        loop.add(Worker(name, trace, "fail"))
    loop.add(Worker("c", trace, "fail"), expected_on_stop=(OSError,))
    error = run(outer)
    (inner,) = error.exceptions
    assert [str(one) for one in inner.exceptions] == ["b", "a"]
    assert inner.exceptions[0].__notes__ == ["in service 'b', while stopping"]
    assert parts(outer)["loop/c"].state is State.STOPPED


def test_sys_exit_comes_out_at_the_end() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace, "exit"))
    with pytest.raises(SystemExit) as caught:
        outer.start()
    assert caught.value.code == 7
    assert trace[-1] == ("end", "a")


def test_it_ends_when_all_but_daemons_have_finished() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace), daemon=True)
    loop.add(Worker("b", trace, "return"))
    outer.start()
    assert trace[-2:] == [("stop", "a"), ("end", "a")]
    assert parts(outer)["loop/b"].state is State.FINISHED


def test_on_return_stop() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace, "return"), on_return="stop")
    outer.start()
    assert trace[-1] == ("end", "a")


def test_an_empty_one_returns_at_once() -> None:
    AsyncGroup().start()


def test_one_that_ignores_cancellation_is_abandoned_and_the_next_one_stopped() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace, "ignore"), stop_timeout=0.1)
    loop.add(Worker("c", trace))
    error = run(outer)
    (inner,) = error.exceptions
    (timeout,) = inner.exceptions
    assert isinstance(timeout, StopTimeoutError)
    assert timeout.service == "b"
    assert "task 'b' is at:" in timeout.stack
    assert "in work" in timeout.stack
    assert [who for what, who in trace if what == "stop"] == ["c", "a"]
    assert parts(outer)["loop/b"].state is State.ABANDONED
    assert parts(outer)["loop/a"].state is State.STOPPED


def test_in_the_reserve_all_are_asked_at_once() -> None:
    times, trace = Times(), Trace()
    loop = AsyncGroup(shutdown_timeout=10.0, loop_factory=times.loop_factory)
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace, "ignore"), stop_timeout=100.0)
    thread, raised = run_in_thread(loop)
    times.settle()
    loop.stop()
    times.settle()
    times.advance(7.9)
    assert ("stop", "a") not in trace
    times.advance(0.2)
    assert ("stop", "a") in trace
    times.advance(1.0)
    thread.join(PATIENCE)
    (error,) = raised
    assert isinstance(error, ServiceGroupError)
    assert [part.state for part in loop.status()] == [State.STOPPED, State.ABANDONED]


def test_one_that_blocks_the_loop_is_seen_in_the_stack() -> None:
    blocked, free = threading.Event(), threading.Event()

    class Blocks(AsyncService):
        async def run(self) -> None:
            await self.stopping.wait()
            self.block()

        def block(self) -> None:
            blocked.set()
            free.wait()

    clock = FakeClock()
    outer = fake_time_group(clock, name="outer")
    loop = outer.add(AsyncGroup(name="loop"), stop_timeout=10.0)
    loop.add(Blocks())
    thread, raised = run_in_thread(outer)
    outer.wait_ready(PATIENCE)
    outer.stop()
    assert blocked.wait(PATIENCE)
    clock.advance(10.0)
    thread.join(PATIENCE)
    free.set()
    (timeout,) = raised[0].exceptions
    assert isinstance(timeout, StopTimeoutError)
    assert "self.block()" in timeout.stack


def test_a_stop_during_the_start_skips_the_rest() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add(Worker("b", trace), ready_when="announced")
    loop.add(Worker("c", trace))
    assert run(outer, lambda: ("start", "b") in trace) is None
    assert [who for what, who in trace if what == "end"] == ["b", "a"]
    assert ("start", "c") not in trace


def test_a_stop_before_the_start_starts_nothing() -> None:
    trace: Trace = []
    loop = AsyncGroup()
    loop.add(Worker("a", trace))
    loop.stop()
    loop.start()
    assert trace == []
    assert loop.status()[0].state is State.NEW


def test_the_same_three_times() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    loop.add_context(contextlib.nullcontext(3))
    for _ in range(3):
        assert run(outer) is None
    assert trace == [("start", "a"), ("stop", "a"), ("end", "a")] * 3


def test_its_own_stop_ends_one_only() -> None:
    outer, loop, trace = both()
    loop.add(Worker("a", trace))
    service = loop.add(Worker("b", trace))
    sleeper = loop.add(Worker("c", trace, "needs cancel"))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(PATIENCE)
    service.stop()
    sleeper.stop()
    wait_until(lambda: [part.state for part in loop.status()].count(State.FINISHED) == 2)
    assert outer.is_ready
    outer.stop()
    thread.join(PATIENCE)
    assert raised == []


def test_more_may_be_added_while_it_runs_from_any_thread() -> None:
    outer, loop, trace = both()

    class Adds(Worker):
        async def work(self) -> None:
            loop.add(Worker("from inside", trace))
            await super().work()

    loop.add(Adds("a", trace))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(PATIENCE)
    threads = [
        threading.Thread(target=loop.add, args=(Worker(f"late {n}", trace),)) for n in range(8)
    ]
    for one in threads:
        one.start()
    wait_until(lambda: len([what for what, _ in trace if what == "start"]) == 10)
    outer.stop()
    thread.join(PATIENCE)
    assert raised == []
    started = [who for what, who in trace if what == "start"]
    assert [who for what, who in trace if what == "end"] == started[::-1]


def test_none_can_be_added_while_it_stops() -> None:
    outer, loop, trace = both()
    refused: list[BaseException] = []

    class Late(Worker):
        async def work(self) -> None:
            await super().work()
            try:
                loop.add(Worker("late", trace))
            except GroupStoppingError as error:
                refused.append(error)

    loop.add(Late("a", trace))
    assert run(outer) is None
    assert "'late' comes too late" in str(refused[0])
    loop.add(Worker("for the next run", trace))


def test_contexts_are_entered_held_and_left() -> None:
    outer, loop, trace = both()

    @contextlib.asynccontextmanager
    async def pool() -> AsyncIterator[int]:
        task = asyncio.current_task()
        trace.append(("enter", "pool"))
        yield 5
        trace.append(("exit", f"pool {task is asyncio.current_task()}"))

    @contextlib.contextmanager
    def file() -> Iterator[str]:
        yield "file"
        trace.append(("exit", "file"))

    held = loop.add_context(pool())
    named = loop.add_context(file(), name="log")
    loop.add(Worker("a", trace))
    with pytest.raises(RuntimeError, match="'pool' is not entered"):
        _ = held.value
    thread, raised = run_in_thread(outer)
    outer.wait_ready(PATIENCE)
    assert (held.value, named.value) == (5, "file")
    assert [part.name for part in loop.status()] == ["pool", "log", "a"]
    outer.stop()
    thread.join(PATIENCE)
    assert raised == []
    assert trace[-3:] == [("end", "a"), ("exit", "file"), ("exit", "pool True")]
    with pytest.raises(RuntimeError, match="'pool' is not entered"):
        _ = held.value
    not_one: Any = 3
    with pytest.raises(TypeError, match="takes a context manager, not 3"):
        loop.add_context(not_one)


def test_sleep_and_until_stopping_and_remaining_work_in_it() -> None:
    outer, loop, _ = both()
    seen: list[object] = []

    class Sleeps(AsyncService):
        async def run(self) -> None:
            seen.append(await self.sleep(1000))
            seen.append(0 < self.remaining() <= 10)

    class Reads(AsyncService):
        async def run(self) -> None:
            async for item in self.until_stopping(self.items()):
                seen.append(item)

        async def items(self) -> AsyncIterator[str]:
            yield "item"
            await asyncio.sleep(1000)

    loop.add(Sleeps())
    loop.add(Reads())
    assert run(outer, lambda: "item" in seen) is None
    assert seen == ["item", False, True]


def test_groups_in_groups() -> None:
    outer, loop, trace = both()
    inner = AsyncGroup(name="inner")
    loop.add(Worker("a", trace))
    loop.add(inner)
    loop.add(Worker("z", trace))
    inner.add(Worker("b", trace))
    inner.add(Worker("c", trace))
    with pytest.raises(ValueError, match="'loop' cannot be put inside itself"):
        inner.add(loop)
    assert run(outer) is None
    assert [who for what, who in trace if what == "start"] == ["a", "b", "c", "z"]
    assert [who for what, who in trace if what == "end"] == ["z", "c", "b", "a"]
    (status,) = outer.status()
    assert status.parts[1].parts[0].name == "loop/inner/b"


def test_drain_is_passed_on() -> None:
    outer, loop, trace = both()

    class Drained(Worker):
        def drain(self) -> None:
            self.trace.append(("drain", self.name))

    loop.add(Drained("a", trace))
    loop.add(Drained("b", trace))
    loop.add(Worker("c", trace))
    assert run(outer) is None
    assert [who for what, who in trace if what == "drain"] == ["b", "a"]


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="since Python 3.12")
@pytest.mark.parametrize("how", ["raise", "stops itself", "obey"])
def test_a_loop_that_begins_tasks_at_once(how: str) -> None:
    trace: Trace = []

    class StopsItself(Worker):
        async def work(self) -> None:
            self.stop()
            await asyncio.sleep(1000)

    def eager() -> asyncio.AbstractEventLoop:
        made = asyncio.new_event_loop()
        made.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        return made

    outer = ServiceGroup(name="outer")
    loop = outer.add(AsyncGroup(name="loop", loop_factory=eager))
    loop.add(Worker("a", trace))
    loop.add((StopsItself if how == "stops itself" else Worker)("b", trace, how))
    loop.add(Worker("c", trace, "announce"), ready_when="announced")
    if how == "raise":
        with pytest.raises(ServiceGroupError):
            outer.start()
        assert [who for what, who in trace if what == "start"] == ["a", "b"]
        assert trace[-1] == ("end", "a")
        return
    assert run(outer) is None
    assert trace[-3:] == [("end", "b"), ("stop", "a"), ("end", "a")] or how == "stops itself"
    assert [who for what, who in trace if what == "end"][-1] == "a"


def test_the_task_factory_of_the_loop_makes_the_tasks() -> None:
    made: list[asyncio.Task[Any]] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(asyncio.Task(coro, loop=loop, **options))
        return made[-1]

    def loop_factory() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(factory)
        return loop

    group = AsyncGroup(loop_factory=loop_factory)
    group.add(Worker("a", [], "return"))
    group.start()
    assert "a" in [task.get_name() for task in made]


def test_to_be_asked_twice_does_not_put_off_the_cancellation() -> None:
    times, trace = Times(), Trace()
    group = AsyncGroup(loop_factory=times.loop_factory)
    worker = Worker("a", trace, "needs cancel")
    worker.cancel_after = 5.0
    group.add(worker)
    thread, raised = run_in_thread(group)
    times.settle()
    worker.stop()
    times.settle()
    times.advance(3.0)
    worker.stop()
    times.settle()
    times.advance(2.0)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert raised == []


def test_a_group_in_a_group_has_no_more_time_than_that_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times, trace = Times(), Trace()
    group = AsyncGroup(shutdown_timeout=50.0, loop_factory=times.loop_factory)
    inner = group.add(AsyncGroup(shutdown_timeout=100.0), stop_timeout=100.0)
    inner.add(Worker("a", trace, "ignore"), stop_timeout=100.0)
    thread, raised = run_in_thread(group)
    times.settle()
    group.stop()
    times.settle()
    crew = group._crew
    assert crew is not None
    monkeypatch.setattr(crew, "outer", attrs.evolve(crew.outer, remaining=lambda: 5.0))
    group.stop()
    times.settle()
    times.advance(4.0)
    assert inner.status()[0].state is State.ABANDONED
    times.advance(1.0)
    thread.join(PATIENCE)
    assert isinstance(raised[0], ServiceGroupError)


def test_a_group_in_a_group_leaves_no_timer_behind() -> None:
    times, trace = Times(), Trace()
    group = AsyncGroup(loop_factory=times.loop_factory)
    group.add(Worker("a", trace))
    inner = group.add(AsyncGroup(name="inner"))
    inner.add(Worker("b", trace))
    thread, raised = run_in_thread(group)
    times.settle()
    inner.stop()
    wait_until(lambda: group.status()[1].state is State.FINISHED)
    assert times.alarms() == []
    group.stop()
    thread.join(PATIENCE)
    assert raised == []


class Overrides(Worker):
    def stop(self) -> None: ...


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (object(), {}, TypeError, "takes AsyncServices, not <object.*make it an AsyncService"),
    (Worker, {}, TypeError, "Worker is a class"),
    (contextlib.nullcontext(), {}, TypeError, r"add_context\(\)"),
    (Overrides("a", []), {}, TypeError, r"'a' \(Overrides\) overrides stop\(\)"),
    (Worker("a", []), {"name": " "}, ValueError, "name must not be empty"),
    (Worker("a", []), {"name": 3}, TypeError, "name must be a string"),
    (Worker("a", []), {"name": "taken"}, ValueError, "'taken' is taken"),
    (Worker("a", []), {"ready_when": "returned"}, ValueError, "'a'.*mark_ready"),
    (Worker("a", []), {"ready_when": "soon"}, ValueError, "'a': ready_when"),
    (Worker("a", []), {"stop_timeout": -1}, ValueError, "'a': stop_timeout"),
    (Worker("a", []), {"on_failure": "again"}, ValueError, "'a': on_failure"),
    (Worker("a", []), {"on_return": "again"}, ValueError, "'a': on_return"),
    (Worker("a", []), {"heartbeat_timeout": 0}, ValueError, "'a': heartbeat_timeout"),
    (Worker("a", []), {"on_stall": "restart"}, ValueError, "'a': on_stall"),
    (Worker("a", []), {"daemon": 1}, TypeError, "'a': daemon"),
]


@pytest.mark.parametrize(("service", "options", "error", "text"), BAD)
def test_what_makes_no_sense_is_refused(
    service: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    loop = AsyncGroup()
    loop.add(Worker("taken", []))
    with pytest.raises(error, match=text):
        loop.add(service, **options)
    assert len(loop.status()) == 1


def test_the_same_twice_and_a_bad_cancel_after_are_refused() -> None:
    loop = AsyncGroup()
    worker = loop.add(Worker("a", []))
    with pytest.raises(ValueError, match="'a' is in the group already"):
        loop.add(worker)
    bad = Worker("b", [])
    bad.cancel_after = -1
    with pytest.raises(ValueError, match="'b': cancel_after"):
        loop.add(bad)
    assert loop.add(Worker("a", [])).name == "a"
    assert [part.name for part in loop.status()] == ["a", "a-2"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": ""}, ValueError),
        ({"start_timeout": -1}, ValueError),
        ({"shutdown_timeout": "1"}, TypeError),
        ({"on_failure": "x"}, ValueError),
        ({"loop_factory": 3}, TypeError),
    ],
)
def test_the_group_itself_refuses_what_makes_no_sense(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        AsyncGroup(**options)


HOW = st.sampled_from(
    ["obey", "slow", "return", "needs cancel", "announce", "fail", "raise", "ignore"]
)


@settings(max_examples=60, deadline=None)
@given(
    hows=st.lists(HOW, max_size=8),
    stop_after=st.integers(0, 8),
    on_failure=st.sampled_from(["stop", "continue"]),
)
def test_one_start_one_stop_in_reverse(hows: list[str], stop_after: int, on_failure: Any) -> None:
    """Whatever they do, and whenever the stop comes."""
    trace: Trace = []
    loop = AsyncGroup(on_failure=on_failure)

    class Watched(Worker):
        async def work(self) -> None:
            if int(self.name) == stop_after:
                loop.stop()
            await super().work()

    for index, how in enumerate(hows):
        ready_when: Any = "announced" if how == "announce" else None
        stop_timeout = 0.02 if how == "ignore" else None
        watched = Watched(str(index), trace, how)
        loop.add(watched, ready_when=ready_when, stop_timeout=stop_timeout)
    thread, raised = run_in_thread(loop)
    if stop_after >= len(hows):
        wait_until(
            lambda: (
                not thread.is_alive()
                or len({who for what, who in trace if what == "start"}) == len(hows)
            )
        )
        loop.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    started = [int(who) for what, who in trace if what == "start"]
    assert started == list(range(len(started)))
    stops = [int(who) for what, who in trace if what == "stop"]
    assert len(stops) == len(set(stops))
    assert stops == sorted(stops, reverse=True)
    statuses = loop.status()
    failed = set()
    for index, (how, status) in enumerate(zip(hows, statuses, strict=True)):
        if index not in started:
            assert status.state is State.NEW
        elif how == "ignore":
            assert status.state is State.ABANDONED
            failed.add(str(index))
        elif how == "raise":
            assert status.state is State.FAILED
            notes = status.error.__notes__ if status.error is not None else []
            if on_failure == "stop" or "while stopping" in notes[0]:
                failed.add(str(index))
        elif how == "fail":
            assert status.state is State.FAILED
            failed.add(str(index))
        elif how == "return":
            assert status.state in (State.FINISHED, State.STOPPED)  # asked before it returned
        else:
            assert status.state is State.STOPPED
    told = set()
    for error in raised:
        assert isinstance(error, ServiceGroupError)
        told = {str(getattr(one, "service", one)) for one in error.exceptions}
    assert told == failed
