"""An `AsyncGroup` that drains with the group it is in."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from servicegroup import (
    AsyncGroup,
    GroupStoppingError,
    ServiceGroup,
    ServiceGroupError,
    State,
    events,
    with_start,
)
from tests.fake_loop import PATIENCE, FakeLoop, Times, Told, Trace, finish, noted, run_in_thread
from tests.fake_time import wait_until


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def trace() -> Trace:
    return []


class Drained(Told):
    """One that has a `drain()`."""

    error: BaseException | None = None

    def drain(self) -> None:
        self.trace.append(("drain", self.name))
        if self.error is not None:
            raise self.error


class Held:
    """An outer group that stays in its drain until the test lets it go on."""

    def __init__(self, times: Times, **options: Any) -> None:
        self.drains, self.free = threading.Event(), threading.Event()
        held = self

        class Last(Told):
            def drain(self) -> None:
                held.drains.set()
                held.free.wait(PATIENCE)

        self.times = times
        self.outer = ServiceGroup(name="outer")
        gate = self.outer.add(AsyncGroup(name="gate"))
        gate.add(Last("last", []))
        self.loop = self.outer.add(
            AsyncGroup(name="loop", loop_factory=times.loop_factory, **options)
        )
        self.seen: list[events.Event] = []
        self.outer.subscribe(self.seen.append)

    def start(self, *, ready: bool = True) -> None:
        self.thread, self.raised = run_in_thread(self.outer)
        if ready:
            wait_until(lambda: self.outer.is_ready)  # of this run; there may have been another
        self.times.settle()

    def drain(self) -> None:
        """Until the drain has passed the group under test."""
        self.outer.stop()
        assert self.drains.wait(PATIENCE)
        self.times.settle()

    def end(self) -> None:
        self.free.set()
        finish(self.thread)
        wait_until(lambda: self._last() == ["outer"])  # what is told may come a little later

    def _last(self) -> list[str]:
        return [one.group for one in self.seen[-1:] if isinstance(one, events.GroupStopped)]


def test_it_takes_no_more_services_and_goes_on(times: Times, trace: Trace) -> None:
    held = Held(times)
    held.loop.add(Drained("a", trace))
    held.loop.add(Told("b", trace))
    held.loop.add(Drained("c", trace))
    held.start()
    held.drain()
    assert [entry for entry in trace if entry[0] != "start"] == [("drain", "c"), ("drain", "a")]
    with pytest.raises(GroupStoppingError, match="'late' comes too late"):
        held.loop.add(Told("late", trace))
    held.end()
    assert held.raised == []
    assert [who for what, who in trace if what == "end"] == ["c", "b", "a"]
    own = [type(event).__name__ for event in held.seen if event.group == "outer/loop"]
    assert own[2:] == ["GroupDraining", "GroupStopping", "GroupStopped"]
    held.loop.add(Told("for the next run", trace))


def test_only_those_that_run_are_drained(times: Times, trace: Trace) -> None:
    held = Held(times)
    held.loop.add(Drained("runs", trace))
    ended = held.loop.add(Drained("ended", trace))
    held.loop.add(Drained("not ready", trace), ready_when="announced")
    held.loop.add(Drained("not started", trace))
    held.start(ready=False)
    ended.tell("leave")
    held.times.settle()
    held.drain()
    assert [who for what, who in trace if what == "drain"] == ["not ready", "runs"]
    held.end()
    assert held.raised == []


def test_no_more_are_started_once_it_drains(times: Times, trace: Trace) -> None:
    held = Held(times)
    first = held.loop.add(Told("a", trace), ready_when="announced")
    held.loop.add(Told("b", trace))
    held.start(ready=False)
    held.drain()
    first.tell(first.mark_ready)
    times.settle()
    assert noted(trace, "b") == []
    held.end()
    assert held.raised == []
    assert held.loop.status()[1].state is State.NEW


def test_one_that_returns_or_fails_during_the_drain_ends_nothing_by_itself(
    times: Times, trace: Trace
) -> None:
    held = Held(times)
    first = held.loop.add(Told("a", trace))
    second = held.loop.add(Told("b", trace), on_failure="continue")
    held.start()
    held.drain()
    first.tell("leave")
    second.tell(ValueError("boom"))
    times.settle()
    assert held.loop.status()[0].state is State.FINISHED
    assert times.loop.is_running()
    held.end()
    assert held.raised == []
    (failed,) = [event for event in held.seen if isinstance(event, events.ServiceFailed)]
    assert failed.phase == "while draining"


def test_a_drain_that_raises_is_a_failure_and_the_others_are_drained(
    times: Times, trace: Trace
) -> None:
    held = Held(times)
    held.loop.add(Drained("a", trace))
    held.loop.add(Drained("b", trace)).error = OSError("no drain")
    held.start()
    held.drain()
    held.end()
    (error,) = held.raised
    assert isinstance(error, ServiceGroupError)
    (inner,) = error.exceptions
    assert isinstance(inner, ServiceGroupError)
    assert [str(one) for one in inner.exceptions] == ["no drain"]
    assert inner.exceptions[0].__notes__ == ["in service 'b', while draining"]
    assert [who for what, who in trace if what == "drain"] == ["b", "a"]
    assert [who for what, who in trace if what == "end"] == ["b", "a"]


def test_a_second_drain_does_nothing(times: Times, trace: Trace) -> None:
    held = Held(times)
    inner = held.loop.add(AsyncGroup(name="inner"))
    inner.add(Drained("a", trace))
    held.start()
    held.drain()
    held.loop.drain()
    inner.drain()
    times.settle()
    held.end()
    assert held.raised == []
    assert noted(trace, "a").count("drain") == 1


class SlowFactory:
    """Makes a loop when the test lets it."""

    def __init__(self, times: Times) -> None:
        self.times = times
        self.called, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def __call__(self) -> FakeLoop:
        self.called.set()
        self.go_on.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.times.loop_factory()


def test_a_drain_before_run_has_begun_keeps_all_from_being_started(
    times: Times, trace: Trace
) -> None:
    held = Held(times)
    held.loop.loop_factory = factory = SlowFactory(times)
    held.loop.add(Told("a", trace))
    held.thread, held.raised = run_in_thread(held.outer)
    assert factory.called.wait(PATIENCE)
    held.outer.stop()
    assert held.drains.wait(PATIENCE)
    factory.go_on.set()
    times.settle()
    assert trace == []
    assert [status.state for status in held.loop.status()] == [State.NEW]
    held.end()
    assert held.raised == []
    assert trace == []
    held.loop.add(Told("for the next run", trace))


def test_a_drain_before_a_run_that_never_begins_does_no_harm_to_the_next(
    times: Times, trace: Trace
) -> None:
    held = Held(times)
    held.loop.loop_factory = factory = SlowFactory(times)
    factory.error = OSError("no loop")
    held.loop.add(Told("a", trace))
    held.thread, held.raised = run_in_thread(held.outer)
    assert factory.called.wait(PATIENCE)
    held.outer.stop()
    assert held.drains.wait(PATIENCE)
    factory.go_on.set()
    held.end()
    assert isinstance(held.raised[0], ServiceGroupError)
    factory.error = None
    held.drains.clear()
    held.start()
    assert noted(trace, "a") == ["start"]
    held.drain()
    held.end()
    assert held.raised == []


def test_one_that_has_drained_can_be_started_again(times: Times, trace: Trace) -> None:
    outer = ServiceGroup(name="outer")
    outer.add(with_start(lambda stopping: stopping.wait()), name="other")
    loop = outer.add(AsyncGroup(name="loop"))
    loop.add(Drained("a", trace))
    for _ in range(2):
        with outer:
            wait_until(lambda: trace[-1:] == [("start", "a")])  # it is ready just before
    assert [what for what, _ in trace] == ["start", "drain", "stop", "end"] * 2
