"""A group as a service of another group."""

from __future__ import annotations

import threading

import pytest

from servicegroup import (
    GroupState,
    GroupStoppingError,
    ServiceGroup,
    ServiceGroupError,
    State,
    StopTimeoutError,
    events,
)
from tests.fake_time import FakeClock, fake_time_group, wait_until
from tests.scripted import (
    ByEvent,
    Drained,
    Full,
    Trace,
    end,
    fail_with,
    run_in_thread,
    settle,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def trace() -> Trace:
    return []


def two_groups(clock: FakeClock, trace: Trace) -> tuple[ServiceGroup, ServiceGroup]:
    """outer(first, inner(a, b), last)."""
    outer = fake_time_group(clock, name="outer")
    inner = fake_time_group(clock, name="inner")
    outer.add(Full("first", trace))
    outer.add(inner)
    outer.add(Full("last", trace))
    inner.add(Full("a", trace))
    inner.add(Full("b", trace))
    return outer, inner


def test_a_group_starts_and_stops_at_its_place(clock: FakeClock, trace: Trace) -> None:
    outer, inner = two_groups(clock, trace)
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    assert inner.is_ready
    settle(outer)
    outer.stop("enough")
    end(outer, clock, thread)
    assert raised == []
    assert [who for what, who in trace if what == "start"] == ["first", "a", "b", "last"]
    assert [who for what, who in trace if what == "stop"] == ["last", "b", "a", "first"]
    assert inner.wait().reason == "group 'outer' stops"


def test_the_next_one_waits_until_the_whole_group_is_ready(clock: FakeClock, trace: Trace) -> None:
    outer, inner = two_groups(clock, trace)
    late = inner.add(Full("late", trace), ready_when="announced")
    thread, _ = run_in_thread(outer)
    settle(outer)
    assert ("start", "last") not in trace
    late.in_start.tell(late.mark_ready)
    outer.wait_ready(30)
    late.in_start.tell(late.mark_not_ready)
    wait_until(lambda: not outer.is_ready)
    outer.stop()
    end(outer, clock, thread)


def test_its_services_are_parts_and_its_events_reach_the_outer_subscribers(
    clock: FakeClock, trace: Trace
) -> None:
    outer, inner = two_groups(clock, trace)
    innermost = fake_time_group(clock, name="x")
    inner.add(innermost, name="core")
    innermost.add(Full("c", trace))
    seen: list[events.Event] = []
    own: list[events.Event] = []
    outer.subscribe(seen.append)
    inner.subscribe(own.append)
    thread, _ = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    (part,) = [status for status in outer.status() if status.parts]
    assert part.name == "inner"
    assert [one.name for one in part.parts] == ["inner/a", "inner/b", "inner/core"]
    assert part.parts[2].parts[0].name == "inner/core/c"
    outer.stop()
    end(outer, clock, thread)
    last = [("GroupStopped", "outer"), ("GroupStopped", "inner")]
    wait_until(lambda: [(type(told[-1]).__name__, told[-1].group) for told in (seen, own)] == last)
    ready = [event for event in seen if isinstance(event, events.ServiceReady)]
    assert [(event.group, event.service) for event in ready] == [
        ("outer", "first"),
        ("outer", "inner/a"),
        ("outer", "inner/b"),
        ("outer", "inner/core/c"),
        ("outer", "inner/core"),
        ("outer", "inner"),
        ("outer", "last"),
    ]
    groups = [event.group for event in seen if isinstance(event, events.GroupStopped)]
    assert groups == ["outer/inner/core", "outer/inner", "outer"]
    names = [e.service for e in own if isinstance(e, events.ServiceReady)]
    assert names == ["a", "b", "core/c", "core"]
    assert {event.group for event in own} == {"inner", "inner/core"}


def test_who_subscribes_to_an_inner_group_late_gets_what_comes_then(
    clock: FakeClock, trace: Trace
) -> None:
    outer, inner = two_groups(clock, trace)
    thread, _ = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    own: list[events.Event] = []
    inner.subscribe(own.append)
    settle(outer)
    outer.stop()
    end(outer, clock, thread)
    wait_until(lambda: len(own) >= 2)
    assert [type(event).__name__ for event in own][:2] == ["GroupDraining", "GroupStopping"]


def test_its_failure_is_one_failure_of_the_outer_group(clock: FakeClock, trace: Trace) -> None:
    outer, inner = two_groups(clock, trace)
    bad = inner.add(Full("bad", trace, "fail"))
    inner.add(Full("worse", trace, "fail"))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    bad.in_start.tell(fail_with(ConnectionError("gone")))
    end(outer, clock, thread)
    assert isinstance(raised[0], ServiceGroupError)
    (failure,) = raised[0].exceptions
    assert isinstance(failure, ServiceGroupError)
    assert failure.__notes__ == ["in service 'inner', while running"]
    kinds = [type(error).__name__ for error in failure.exceptions]
    assert kinds == ["ConnectionError", "ValueError"]
    assert raised[0].subgroup(ConnectionError) is not None
    # The inner one is stopped by itself, then the outer one follows.
    stops = [who for what, who in trace if what == "stop"]
    assert stops == ["worse", "b", "a", "last", "first"]


def test_an_exit_code_goes_through_with_the_failures_that_came_with_it(
    clock: FakeClock, trace: Trace
) -> None:
    outer, inner = two_groups(clock, trace)
    leaver = inner.add(Full("leaver", trace))
    inner.add(Full("bad", trace, "fail"))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    leaver.in_start.tell(fail_with(SystemExit(7)))
    end(outer, clock, thread)
    assert isinstance(raised[0], SystemExit)
    assert raised[0].code == 7
    assert isinstance(raised[0].__cause__, ServiceGroupError)


def test_it_drains_once_with_the_outermost(clock: FakeClock, trace: Trace) -> None:
    outer = fake_time_group(clock, name="outer", drain_delay=3.0)
    inner = fake_time_group(clock, name="inner", drain_delay=7.0)
    outer.add(inner)
    inner.add(Drained("a", trace))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    outer.stop()
    settle(outer)
    assert inner.state is GroupState.DRAINING
    assert not inner.is_ready
    assert ("drain", "a") in trace
    with pytest.raises(GroupStoppingError):
        inner.add(Full("late", trace))
    inner._drain()  # once more: nothing
    end(outer, clock, thread)
    assert raised == []
    assert clock.time == 1003.0
    assert [what for what, who in trace].count("drain") == 1


def test_a_failure_in_an_inner_group_that_drains_ends_the_outer_drain(
    clock: FakeClock, trace: Trace
) -> None:
    outer = fake_time_group(clock, name="outer", drain_delay=3.0)
    inner = fake_time_group(clock, name="inner")
    outer.add(inner)
    bad = inner.add(Full("bad", trace))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    outer.stop()
    settle(outer)
    bad.in_start.tell(fail_with(ValueError("boom")))
    end(outer, clock, thread)
    assert clock.time == 1000.0
    assert isinstance(raised[0], ServiceGroupError)


def test_an_inner_group_that_is_stopped_alone_has_finished(clock: FakeClock, trace: Trace) -> None:
    outer, inner = two_groups(clock, trace)
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    inner.stop("by itself")
    wait_until(lambda: outer.status()[1].state is State.FINISHED)
    assert inner.wait(30).reason == "by itself"
    settle(outer)
    assert outer.state is GroupState.RUNNING
    outer.stop()
    end(outer, clock, thread)
    assert raised == []


def test_a_hung_service_inside_is_told_by_the_inner_group_in_time(
    clock: FakeClock, trace: Trace
) -> None:
    outer = fake_time_group(clock, name="outer", shutdown_timeout=10.0)
    inner = fake_time_group(clock, name="inner", stop_timeout=100.0, shutdown_timeout=100.0)
    outer.add(Full("first", trace))
    outer.add(inner)
    inner.add(Full("a", trace))
    hung = inner.add(Full("hung", trace, "hang"))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    outer.stop()
    end(outer, clock, thread)
    assert clock.time <= 1010.0
    assert isinstance(raised[0], ServiceGroupError)
    (failure,) = raised[0].exceptions
    assert isinstance(failure, ServiceGroupError)  # not that the group itself was abandoned
    assert isinstance(failure.exceptions[0], StopTimeoutError)
    assert [who for what, who in trace if what == "stop"] == ["hung", "a", "first"]
    assert [status.state for status in inner.status()] == [State.STOPPED, State.ABANDONED]
    hung.free()


def test_its_own_shutdown_timeout_is_its_stop_timeout(clock: FakeClock, trace: Trace) -> None:
    outer = fake_time_group(clock, name="outer", stop_timeout=1.0, shutdown_timeout=100.0)
    inner = fake_time_group(clock, name="inner", stop_timeout=50.0, shutdown_timeout=20.0)
    outer.add(inner)
    hung = inner.add(Full("hung", trace, "hang"))
    thread, _ = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    outer.stop()
    end(outer, clock, thread)
    assert clock.time == pytest.approx(1000 + 0.98 * 20)
    assert outer.status()[0].state is State.FAILED
    hung.free()


def test_a_layer_that_stops_as_one(clock: FakeClock, trace: Trace) -> None:
    outer = fake_time_group(clock, name="outer")
    layer = fake_time_group(clock, name="layer", stop_concurrently=True)
    outer.add(ByEvent("database", trace))
    outer.add(layer)
    consumers = [layer.add(Full(name, trace, "hang")) for name in "ab"]
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    outer.stop()
    wait_until(lambda: all(consumer.in_stop.parked for consumer in consumers))
    assert ("stop", "database") not in trace
    for consumer in consumers:
        consumer.free()
    thread.join(30)
    assert raised == []
    assert trace[-1] == ("returned", "database")


def test_wait_is_refused_to_all_threads_of_the_tree(clock: FakeClock, trace: Trace) -> None:
    outer, inner = two_groups(clock, trace)
    innermost = inner.add(Full("c", trace))
    refusals: list[str] = []

    def wait() -> None:
        for group in (outer, inner):
            with pytest.raises(RuntimeError, match="cannot wait for its end"):
                group.wait()
            refusals.append(threading.current_thread().name)

    outer.subscribe(lambda event: wait() if isinstance(event, events.GroupReady) else None)
    first = outer._table.entries[0].service
    assert isinstance(first, Full)
    first.in_start.tell(wait)
    innermost.in_start.tell(wait)
    thread, raised = run_in_thread(outer)
    outer.wait_ready(30)
    wait_until(lambda: len(refusals) >= 8)
    names = set(refusals)
    assert names == {"outer/first", "inner/c", "outer (subscribers)"}
    outer.stop()
    end(outer, clock, thread)
    assert raised == []


def test_a_thread_of_the_users_may_wait_for_an_inner_group(clock: FakeClock, trace: Trace) -> None:
    outer, inner = two_groups(clock, trace)
    thread, _ = run_in_thread(outer)
    outer.wait_ready(30)
    settle(outer)
    outer.stop()
    assert inner.wait(30).name == "inner"
    end(outer, clock, thread)


def test_both_can_be_started_again(clock: FakeClock, trace: Trace) -> None:
    outer, inner = two_groups(clock, trace)
    for _ in range(2):
        thread, raised = run_in_thread(outer)
        wait_until(lambda: outer.is_ready)  # wait_ready() might still look at the run before
        settle(outer)
        outer.stop()
        end(outer, clock, thread)
        assert raised == []
        assert inner.state is GroupState.STOPPED
        wait_until(lambda: outer._run.over.is_set())
    assert [what for what, _ in trace].count("start") == 8


def test_a_subclass_may_wrap_start_and_stop(trace: Trace) -> None:
    class Layer(ServiceGroup):
        def start(self):  # type: ignore[no-untyped-def]
            trace.append(("start", "layer"))
            return super().start()

        def stop(self, reason: str = "layer") -> None:
            trace.append(("stop", "layer"))
            super().stop(reason)

    outer = ServiceGroup()
    layer = outer.add(Layer(name="layer"))
    layer.add(ByEvent("a", trace))
    with outer:
        assert layer.is_ready
    assert [entry for entry in trace if entry[1] == "layer"] == [
        ("start", "layer"),
        ("stop", "layer"),
    ]
