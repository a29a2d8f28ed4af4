"""What subscribers and the log of the outer group are told of the members of an `AsyncGroup`."""

from __future__ import annotations

import logging
import threading
from functools import partial

import pytest

from servicegroup import (
    AsyncGroup,
    Restart,
    ServiceGroup,
    ServiceGroupError,
    StartTimeoutError,
    events,
)
from servicegroup._aio_crew import Crew
from tests.fake_loop import PATIENCE, Stubborn, Times, Told, Trace, run_in_thread
from tests.fake_loop import finish as end
from tests.fake_time import wait_until

Seen = list[events.Event]


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def trace() -> Trace:
    return []


def both(times: Times) -> tuple[ServiceGroup, AsyncGroup, Seen]:
    outer = ServiceGroup(name="outer")
    loop = outer.add(AsyncGroup(name="loop", loop_factory=times.loop_factory))
    seen: Seen = []
    outer.subscribe(seen.append)
    return outer, loop, seen


def start(outer: ServiceGroup, times: Times) -> tuple[threading.Thread, list[BaseException]]:
    thread, raised = run_in_thread(outer)
    times.settle()
    return thread, raised


def stop(outer: ServiceGroup, thread: threading.Thread, *seen: Seen) -> None:
    outer.stop()
    finish(thread, *seen)


def finish(thread: threading.Thread, *seen: Seen) -> None:
    """It is to end without any time passing; what the subscribers get may come a little later."""
    end(thread)
    for one in seen:
        wait_until(partial(has_all, one))


def has_all(seen: Seen) -> bool:
    """Whether the last that comes is there."""
    return any(isinstance(one, events.GroupStopped) and "/" not in one.group for one in seen)


def of(seen: Seen, service: str) -> list[str]:
    """The kinds of the events of a service."""
    return [
        type(event).__name__
        for event in seen
        if isinstance(event, events.ServiceEvent) and event.service == service
    ]


def test_each_start_and_stop_reaches_the_subscribers_of_the_outer_group(
    times: Times, trace: Trace
) -> None:
    outer, loop, seen = both(times)
    loop.add(Told("a", trace))
    service = loop.add(Told("b", trace), ready_when="announced")
    loop.add(Told("c", trace))
    thread, raised = start(outer, times)
    for command in (service.mark_ready, service.mark_not_ready, service.mark_ready):
        service.tell(command)
    times.settle()
    outer.wait_ready(PATIENCE)
    stop(outer, thread, seen)
    assert raised == []
    told = [
        (type(event).__name__.removeprefix("Service"), event.service)
        for event in seen
        if isinstance(event, events.ServiceEvent)
    ]
    assert [one for one in told if one[1] == "loop/b"] == [
        ("Starting", "loop/b"),
        ("Ready", "loop/b"),
        ("NotReady", "loop/b"),
        ("Ready", "loop/b"),
        ("Stopping", "loop/b"),
        ("Stopped", "loop/b"),
    ]
    assert told[0] == ("Starting", "loop")
    assert [one for one in told if one[0] == "Starting"] == [
        ("Starting", name) for name in ("loop", "loop/a", "loop/b", "loop/c")
    ]
    assert told[-7:] == [
        ("Stopping", "loop/c"),
        ("Stopped", "loop/c"),
        ("Stopping", "loop/b"),
        ("Stopped", "loop/b"),
        ("Stopping", "loop/a"),
        ("Stopped", "loop/a"),
        ("Stopped", "loop"),
    ]
    assert {event.group for event in seen if isinstance(event, events.ServiceEvent)} == {"outer"}
    for event in seen:
        if isinstance(event, (events.ServiceReady, events.ServiceStopped)):
            assert event.seconds is not None
            assert event.seconds >= 0


def test_the_group_tells_of_itself_under_the_name_of_the_outer_one(
    times: Times, trace: Trace
) -> None:
    outer, loop, seen = both(times)
    loop.add(Told("a", trace))
    service = loop.add(Told("b", trace), on_return="stop")
    thread, raised = start(outer, times)
    service.tell("leave")
    finish(thread, seen)
    assert raised == []
    own = [(type(event).__name__, event) for event in seen if event.group == "outer/loop"]
    assert [name for name, _ in own] == [
        *("GroupStarting", "GroupReady", "GroupStopping", "GroupStopped")
    ]
    reasons = [event.reason for _, event in own if isinstance(event, events.GroupEvent)]
    assert reasons == [None, None, *["service 'b' returned"] * 2]


def test_groups_in_groups_have_names_as_long(times: Times, trace: Trace) -> None:
    outer, loop, seen = both(times)
    top = ServiceGroup(name="top")
    top.add(outer)
    seen_above: Seen = []
    top.subscribe(seen_above.append)
    inner = loop.add(AsyncGroup(name="inner"))
    inner.add(Told("a", trace))
    thread, raised = start(top, times)
    top.wait_ready(PATIENCE)
    stop(top, thread, seen, seen_above)
    assert raised == []
    whole = ["ServiceStarting", "ServiceReady", "ServiceStopping", "ServiceStopped"]
    assert of(seen, "loop/inner/a") == whole
    assert of(seen_above, "outer/loop/inner/a") == whole
    assert of(seen_above, "outer/loop/inner") == whole
    groups = [event.group for event in seen_above if isinstance(event, events.GroupStopped)]
    assert groups == ["top/outer/loop/inner", "top/outer/loop", "top/outer", "top"]


def test_one_that_returns_or_raises_is_told(times: Times, trace: Trace) -> None:
    outer, loop, seen = both(times)
    returns = loop.add(Told("returns", trace))
    fails = loop.add(Told("fails", trace), on_failure="continue")
    leaves = loop.add(Told("leaves", trace))
    loop.add(Told("bad end", trace, "fail"), expected_on_stop=(OSError,))
    thread, raised = start(outer, times)
    returns.tell("leave")
    error = ValueError("boom")
    fails.tell(error)
    leaves.tell(SystemExit(0))
    finish(thread, seen)
    assert raised == []
    assert of(seen, "loop/returns")[2:] == [
        *("ServiceFinished", "ServiceStopping", "ServiceStopped")
    ]
    assert of(seen, "loop/fails")[2:] == ["ServiceFailed"]
    assert of(seen, "loop/leaves")[2:] == ["ServiceFinished"]
    assert of(seen, "loop/bad end")[2:] == ["ServiceStopping", "ServiceStopped"]
    (failed,) = [event for event in seen if isinstance(event, events.ServiceFailed)]
    assert (failed.error, failed.phase, failed.service) == (error, "while running", "loop/fails")


def test_one_that_is_not_ready_in_time_is_told(times: Times, trace: Trace) -> None:
    outer, loop, seen = both(times)
    loop.add(Told("a", trace), ready_when="announced", start_timeout=5.0)
    thread, raised = start(outer, times)
    times.advance(5.0)
    finish(thread, seen)
    assert isinstance(raised[0], ServiceGroupError)
    failed = [event for event in seen if isinstance(event, events.ServiceFailed)]
    assert [(event.service, event.phase) for event in failed] == [
        ("loop/a", "while starting"),
        ("loop", "while starting"),
    ]
    assert isinstance(failed[0].error, StartTimeoutError)


def test_one_that_is_abandoned_is_told_with_its_stack(times: Times, trace: Trace) -> None:
    outer, loop, seen = both(times)
    loop.add(Stubborn("a", trace), stop_timeout=3.0)
    thread, _ = start(outer, times)
    outer.stop()
    wait_until(lambda: of(seen, "loop/a")[-1:] == ["ServiceStopping"])
    times.advance(3.0)
    finish(thread, seen)
    assert of(seen, "loop/a")[2:] == ["ServiceStopping", "ServiceAbandoned"]
    (abandoned,) = [event for event in seen if isinstance(event, events.ServiceAbandoned)]
    assert abandoned.seconds == 3.0
    assert "create_future()" in abandoned.stack


def test_restarts_stalls_and_recoveries_are_told(times: Times, trace: Trace) -> None:
    outer, loop, seen = both(times)
    policy = Restart(delay=1.0, jitter=0.0)
    service = loop.add(Told("a", trace), on_failure=policy, heartbeat_timeout=3.0)
    thread, raised = start(outer, times)
    error = ValueError("boom")
    service.tell(error)
    times.settle()
    times.advance(1.0)
    times.advance(3.0)
    service.tell(service.heartbeat)
    times.settle()
    stop(outer, thread, seen)
    assert raised == []
    assert of(seen, "loop/a") == [
        *("ServiceStarting", "ServiceReady", "ServiceRestarting"),
        *("ServiceStarting", "ServiceReady", "ServiceStalled", "ServiceRecovered"),
        *("ServiceStopping", "ServiceStopped"),
    ]
    (again,) = [event for event in seen if isinstance(event, events.ServiceRestarting)]
    assert (again.restarts, again.seconds, again.error) == (1, 1.0, error)
    (stalled,) = [event for event in seen if isinstance(event, events.ServiceStalled)]
    assert stalled.seconds == 3.0
    assert "commands.get()" in stalled.stack


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_they_are_in_the_log(times: Times, trace: Trace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "servicegroup")
    outer = ServiceGroup(name="outer")
    loop = outer.add(AsyncGroup(name="loop", loop_factory=times.loop_factory))
    loop.add(Told("a", trace))
    thread, _ = start(outer, times)
    outer.wait_ready(PATIENCE)
    stop(outer, thread)
    wait_until(lambda: "outer: loop/a: stopping" in lines_of(caplog))
    assert any(line.startswith("outer/loop: ready after") for line in lines_of(caplog))


def test_of_thousands_that_start_and_stop_nobody_makes_an_event_that_nobody_reads(
    times: Times, trace: Trace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "servicegroup")
    made: list[events.Event] = []
    emit = Crew._emit

    def note(crew: Crew, event: events.Event, below: str = "") -> None:
        made.append(event)
        emit(crew, event, below)

    monkeypatch.setattr(Crew, "_emit", note)
    outer = ServiceGroup(name="outer")
    loop = outer.add(AsyncGroup(name="loop", loop_factory=times.loop_factory))
    service = loop.add(Told("a", trace), on_failure="continue")
    loop.add(Told("b", trace))
    thread, _ = start(outer, times)
    service.tell(ValueError("this one is read in any case"))
    times.settle()
    stop(outer, thread)
    kinds = [type(event) for event in made if isinstance(event, events.ServiceEvent)]
    assert kinds == [events.ServiceFailed]


def test_who_subscribes_late_gets_what_comes_then(times: Times, trace: Trace) -> None:
    outer = ServiceGroup(name="outer")
    loop = outer.add(AsyncGroup(name="loop", loop_factory=times.loop_factory))
    loop.add(Told("a", trace))
    service = loop.add(Told("b", trace))
    thread, _ = start(outer, times)
    outer.wait_ready(PATIENCE)
    seen: Seen = []
    outer.subscribe(seen.append)
    service.tell("leave")
    loop.add(Told("late", trace))
    times.settle()
    stop(outer, thread, seen)
    assert of(seen, "loop/b")[0] == "ServiceFinished"
    assert of(seen, "loop/late") == [
        *("ServiceStarting", "ServiceReady", "ServiceStopping", "ServiceStopped")
    ]
    assert of(seen, "loop/a") == ["ServiceStopping", "ServiceStopped"]


def test_who_subscribes_when_all_is_quiet_gets_the_stop(times: Times, trace: Trace) -> None:
    outer = ServiceGroup(name="outer")
    loop = outer.add(AsyncGroup(name="loop", loop_factory=times.loop_factory))
    loop.add(Told("a", trace))
    thread, _ = start(outer, times)
    outer.wait_ready(PATIENCE)
    seen: Seen = []
    outer.subscribe(seen.append)
    loop.stop()  # by itself: nothing else has happened to it
    finish(thread, seen)
    assert of(seen, "loop/a") == ["ServiceStopping", "ServiceStopped"]


def test_a_subscriber_that_blocks_holds_up_no_member(times: Times, trace: Trace) -> None:
    outer, loop, _ = both(times)
    free = threading.Event()
    outer.subscribe(lambda _event: free.wait(PATIENCE))
    loop.add(Told("a", trace))
    thread, _ = start(outer, times)
    outer.wait_ready(PATIENCE)
    outer.stop()
    wait_until(lambda: ("end", "a") in trace)
    free.set()
    finish(thread)


def test_on_its_own_it_tells_nobody(times: Times, trace: Trace) -> None:
    loop = AsyncGroup(name="loop", loop_factory=times.loop_factory)
    loop.add(Told("a", trace), on_failure="continue")
    failing = loop.add(Told("b", trace), on_failure="continue")
    thread, raised = run_in_thread(loop)
    failing.tell(ValueError("boom"))
    times.settle()
    loop.stop()
    finish(thread)
    assert raised == []


def test_a_heartbeat_or_a_word_that_comes_after_the_end_does_nothing(
    times: Times, trace: Trace
) -> None:
    outer, loop, seen = both(times)
    service = loop.add(Told("a", trace), heartbeat_timeout=3.0)
    thread, _ = start(outer, times)
    times.advance(3.0)
    stop(outer, thread, seen)
    count = len(seen)
    service.heartbeat()
    service.mark_ready()
    loop.stop()
    loop.drain()
    assert len(seen) == count
