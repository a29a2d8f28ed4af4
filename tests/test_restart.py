"""When a service is started again: the arithmetic, and what a group does with it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicegroup import (
    GroupState,
    RestartLimitError,
    ServiceGroup,
    ServiceGroupError,
    State,
    StopTimeoutError,
    events,
)
from servicegroup._runner import Runner
from servicegroup.restart import Restart, RestartHistory
from servicegroup.testing import wait_until
from tests.child import PATIENCE
from tests.fake_time import FakeClock, fake_time_group, mailbox_of
from tests.scripted import ByEvent, Full, Trace, end, fail_with, run_in_thread, settle

wait_for = partial(wait_until, timeout=PATIENCE)
# However long a busy machine takes for an example.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def trace() -> Trace:
    return []


# -- the arithmetic --------------------------------------------------------------------------------


def pauses(policy: Restart, times: list[float], chance: float = 0.5) -> list[float | None]:
    history = RestartHistory(policy, lambda: chance)
    return [history.next(time) for time in times]


def test_each_pause_is_longer_than_the_one_before_up_to_a_limit() -> None:
    policy = Restart(delay=1.0, factor=3.0, max_delay=10.0, max_restarts=math.inf)
    assert pauses(policy, [0.0, 1.0, 2.0, 3.0, 4.0]) == [1.0, 3.0, 9.0, 10.0, 10.0]


def test_one_restart_too_many_in_a_window_is_refused_and_the_window_slides() -> None:
    policy = Restart(max_restarts=2, within=10.0, delay=0.0)
    assert pauses(policy, [0.0, 4.0, 9.9]) == [0.0, 0.0, None]
    assert pauses(policy, [0.0, 4.0, 10.0, 13.9]) == [0.0, 0.0, 0.0, None]
    assert pauses(policy, [0.0, 4.0, 10.0, 14.0]) == [0.0] * 4


def test_after_a_quiet_window_the_pause_is_the_first_one_again() -> None:
    policy = Restart(within=10.0, delay=1.0, max_restarts=9)
    # The second run began at 5 + 2, so that a whole window is over at 17.
    assert pauses(policy, [0.0, 5.0, 16.9]) == [1.0, 2.0, 4.0]
    assert pauses(policy, [0.0, 5.0, 17.0, 18.0]) == [1.0, 2.0, 1.0, 2.0]


def test_none_at_all_is_a_limit_too() -> None:
    assert pauses(Restart(max_restarts=0), [0.0]) == [None]


@UNHURRIED
@given(st.floats(0, 1), st.floats(0, 1))
def test_jitter_keeps_to_its_share(chance: float, jitter: float) -> None:
    policy = Restart(delay=2.0, jitter=jitter)
    (pause,) = pauses(policy, [0.0], chance)
    assert pause is not None
    assert 2.0 * (1 - jitter) - 1e-9 <= pause <= 2.0 * (1 + jitter) + 1e-9


@UNHURRIED
@given(
    st.lists(st.floats(0, 50), max_size=40),
    st.integers(0, 5),
    st.floats(0.1, 20),
)
def test_no_window_ever_holds_more_than_allowed(
    gaps: list[float], most: int, within: float
) -> None:
    history = RestartHistory(Restart(max_restarts=most, within=within), lambda: 0.5)
    now, granted = 0.0, []
    for gap in gaps:
        now += gap
        if history.next(now) is not None:
            granted.append(now)
    for last in granted:
        assert len([time for time in granted if time <= last and last - time < within]) <= most


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_restarts": -1}, ValueError, "max_restarts must be 0 or more"),
    ({"within": math.nan}, ValueError, "within"),
    ({"delay": -0.1}, ValueError, "delay"),
    ({"factor": 0.5}, ValueError, "factor must be 1 or more"),
    ({"max_delay": "30"}, TypeError, "max_delay must be a number"),
    ({"jitter": 1.5}, ValueError, "jitter must be from 0 to 1"),
    ({"jitter": True}, TypeError, "jitter"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD)
def test_a_policy_that_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Restart(**options)


# -- in a group ------------------------------------------------------------------------------------

POLICY = Restart(delay=1.0, jitter=0.0, max_restarts=2, within=60.0)


def started(clock: FakeClock, service: Full, **options: Any) -> tuple[ServiceGroup, Any, Any]:
    group = fake_time_group(clock, start_timeout=5.0, stop_timeout=4.0)
    group.add(Full("first", service.trace))
    group.add(service, **options)
    thread, raised = run_in_thread(group)
    settle(group)
    return group, thread, raised


def wait_for_the_last(seen: list[events.Event]) -> None:
    """Wait until a subscriber was told all: the end of a group does not wait long for one."""
    wait_for(lambda: any(isinstance(event, events.GroupStopped) for event in seen))


def noted(trace: Trace, name: str) -> list[str]:
    return [what for what, who in trace if who == name]


def test_one_that_raises_is_started_again_after_the_pause(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, on_failure=POLICY)
    seen: list[events.Event] = []
    group.subscribe(seen.append)
    settle(group)
    error = ConnectionError("gone")
    service.in_start.tell(fail_with(error))
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    settle(group)
    assert not group.is_ready
    assert group.status()[1].error is error
    clock.advance(0.9)
    settle(group)
    assert noted(trace, "a") == ["start", "raised"]
    clock.advance(0.2)
    group.wait_ready(PATIENCE)
    settle(group)
    status = group.status()[1]
    assert (status.state, status.restarts) == (State.RUNNING, 1)
    group.stop()
    end(group, clock, thread)
    assert raised == []
    assert noted(trace, "a")[:4] == ["start", "raised", "start", "stop"]
    wait_for_the_last(seen)
    restarting = [event for event in seen if isinstance(event, events.ServiceRestarting)]
    assert [(e.restarts, e.seconds, e.error) for e in restarting] == [(1, 1.0, error)]
    assert group.wait().services[1].restarts == 1


def test_once_too_often_is_a_failure_with_the_last_one_as_its_cause(
    clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, on_failure=POLICY)
    for number in range(3):
        service.in_start.tell(fail_with(ValueError(f"no {number}")))
        settle(group)
        clock.advance(2.0)
        settle(group)
    end(group, clock, thread)
    assert isinstance(raised[0], ServiceGroupError)
    (failure,) = raised[0].exceptions
    assert isinstance(failure, RestartLimitError)
    assert str(failure.__cause__) == "no 2"
    assert failure.__notes__ == ["in service 'a', while running"]
    assert noted(trace, "a") == ["start", "raised"] * 3
    assert noted(trace, "first").count("stop") == 1


def test_one_that_fails_before_it_is_ready_is_started_again_and_waited_for(
    clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace)
    group = fake_time_group(clock)
    group.add(service, ready_when="announced", on_failure=POLICY)
    group.add(ByEvent("next", trace))
    thread, raised = run_in_thread(group)
    service.in_start.tell(fail_with(ValueError("not yet")))
    settle(group)
    assert group.state is GroupState.STARTING
    service.in_start.tell(service.mark_ready)
    clock.advance(1.0)
    group.wait_ready(PATIENCE)
    settle(group)
    assert noted(trace, "next") == ["start"]
    group.stop()
    end(group, clock, thread)
    assert raised == []


def test_one_that_is_not_ready_in_time_is_stopped_and_started_again(
    clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, on_failure=POLICY, ready_when="announced")
    clock.advance(5.0)
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    settle(group)
    assert sorted(noted(trace, "a")) == ["returned", "start", "stop", "stopped"]
    service.in_start.tell(service.mark_ready)
    clock.advance(1.0)
    group.wait_ready(PATIENCE)
    group.stop()
    end(group, clock, thread)
    assert raised == []
    assert noted(trace, "a").count("stop") == 2


def test_one_that_returns_gets_its_stop_before_each_new_start(
    clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, on_return=POLICY)
    service.in_start.tell("leave")
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    assert noted(trace, "a") == ["start", "returned", "stop", "stopped"]
    service.in_start._commands.get()  # what its stop() told a start() that was gone
    clock.advance(1.0)
    group.wait_ready(PATIENCE)
    settle(group)
    assert noted(trace, "a").count("start") == 2
    group.stop()
    end(group, clock, thread)
    assert raised == []
    assert noted(trace, "a").count("stop") == 2


def test_too_many_returns_have_no_cause(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    never = Restart(max_restarts=0)
    group, thread, raised = started(clock, service, on_return=never)
    service.in_start.tell("leave")
    end(group, clock, thread)
    (failure,) = raised[0].exceptions
    assert isinstance(failure, RestartLimitError)
    assert failure.__cause__ is None


def test_a_stop_during_the_pause_ends_it_at_once(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, on_failure=POLICY)
    service.in_start.tell(fail_with(ValueError("boom")))
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    group.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert clock.time == 1000.0
    assert raised == []
    status = group.wait().services[1]
    assert (status.state, str(status.error)) == (State.FAILED, "boom")
    assert noted(trace, "a") == ["start", "raised"]


def test_a_pause_that_ends_while_the_group_drains_starts_nothing(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock, drain_delay=5.0)
    service = group.add(Full("a", trace), on_failure=POLICY)
    thread, raised = run_in_thread(group)
    group.wait_ready(PATIENCE)
    service.in_start.tell(fail_with(ValueError("boom")))
    wait_for(lambda: group.status()[0].state is State.BACKING_OFF)
    group.stop()
    end(group, clock, thread)
    assert clock.time == 1005.0
    assert raised == []
    assert noted(trace, "a") == ["start", "raised"]


def test_a_failure_during_the_stop_is_a_failure(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace, "fail")
    group, thread, raised = started(clock, service, on_failure=POLICY)
    group.stop()
    end(group, clock, thread)
    assert [str(error) for error in raised[0].exceptions] == ["end of a"]
    assert noted(trace, "a").count("start") == 1


def test_an_abandoned_one_is_never_run_again(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace, "ignore")
    group, thread, raised = started(clock, service, on_failure=POLICY, ready_when="announced")
    clock.advance(5.0)  # not ready in time
    wait_for(lambda: ("stop", "a") in trace)
    settle(group)
    clock.advance(4.0)  # nor stopped in time
    end(group, clock, thread)
    assert [type(error) for error in raised[0].exceptions] == [StopTimeoutError]
    assert noted(trace, "a").count("start") == 1
    assert group.status()[1].state is State.ABANDONED
    service.free()


@pytest.mark.parametrize("on_stop", ["raise", "fail"])
def test_what_it_raises_when_stopped_for_a_restart_is_one_more_reason_for_it(
    on_stop: str, clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace, on_stop)
    group, thread, raised = started(clock, service, on_failure=POLICY, ready_when="announced")
    clock.advance(5.0)
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    service.on_stop = "obey"
    service.in_start.tell(service.mark_ready)
    clock.advance(1.0)
    group.wait_ready(PATIENCE)
    group.stop()
    end(group, clock, thread)
    assert raised == []


def test_a_stop_that_raises_between_two_runs_is_a_failure_where_failures_stop(
    clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace, "raise")
    group, thread, raised = started(clock, service, on_return=POLICY)
    service.in_start.tell("leave")
    end(group, clock, thread)
    assert [str(error) for error in raised[0].exceptions] == ["stop of a"]
    assert noted(trace, "a").count("start") == 1


def test_a_group_that_stops_while_one_is_stopped_for_a_restart_waits_for_it(
    clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace, "hang")
    group, thread, raised = started(clock, service, on_failure=POLICY, ready_when="announced")
    clock.advance(5.0)
    wait_for(lambda: service.in_stop.parked)
    group.stop()
    settle(group)
    assert ("stop", "first") not in trace
    service.in_start.tell("leave")
    service.in_stop.tell("leave")
    end(group, clock, thread)
    assert noted(trace, "a").count("start") == 1
    assert noted(trace, "a").count("stop") == 1
    assert raised == []
    assert group.wait().services[1].state is State.FAILED


def test_sys_exit_is_no_reason_for_a_restart(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, on_failure=POLICY)
    service.in_start.tell(fail_with(SystemExit(3)))
    end(group, clock, thread)
    assert isinstance(raised[0], SystemExit)
    assert noted(trace, "a") == ["start", "raised"]


def test_one_for_all_is_a_nested_group_that_is_restarted(clock: FakeClock, trace: Trace) -> None:
    outer = fake_time_group(clock, name="outer")
    inner = fake_time_group(clock, name="inner")
    outer.add(inner, on_failure=POLICY)
    a, b = inner.add(Full("a", trace)), inner.add(Full("b", trace))
    thread, raised = run_in_thread(outer)
    outer.wait_ready(PATIENCE)
    settle(outer)
    a.in_start.tell(fail_with(ValueError("boom")))
    wait_for(lambda: outer.status()[0].state is State.BACKING_OFF)
    settle(outer)
    assert noted(trace, "b").count("stop") == 1
    clock.advance(1.0)
    outer.wait_ready(PATIENCE)
    settle(outer)
    assert inner.is_ready
    assert b.in_start.parked
    outer.stop()
    end(outer, clock, thread)
    assert raised == []
    assert [who for what, who in trace if what == "start"] == ["a", "b", "a", "b"]


def test_there_is_no_wake_up_but_that_for_the_restart(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, _ = started(clock, service, on_failure=POLICY)
    assert mailbox_of(group).until is None
    service.in_start.tell(fail_with(ValueError("boom")))
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    settle(group)
    assert mailbox_of(group).until == 1001.0
    group.stop()
    end(group, clock, thread)


# -- heartbeats ------------------------------------------------------------------------------------


def test_one_that_gives_no_heartbeat_is_stalled_until_it_does(
    clock: FakeClock, trace: Trace
) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, heartbeat_timeout=3.0)
    seen: list[events.Event] = []
    group.subscribe(seen.append)
    settle(group)
    for _ in range(3):
        clock.advance(2.0)
        service.heartbeat()
        settle(group)
        assert not group.status()[1].stalled
    assert mailbox_of(group).until is not None
    clock.advance(3.0)
    wait_for(lambda: group.status()[1].stalled)
    settle(group)
    assert mailbox_of(group).until is None  # nothing more to look for
    assert group.status()[1].state is State.RUNNING
    service.heartbeat()
    wait_for(lambda: not group.status()[1].stalled)
    service.heartbeat()
    settle(group)
    assert mailbox_of(group).until == clock.time + 3.0
    group.stop()
    end(group, clock, thread)
    assert raised == []
    wait_for_the_last(seen)
    stalled = next(event for event in seen if isinstance(event, events.ServiceStalled))
    assert (stalled.service, stalled.seconds) == ("a", 3.0)
    assert "in work" in stalled.stack
    assert any(isinstance(event, events.ServiceRecovered) for event in seen)


def test_the_status_tells_how_long_one_that_runs_is_silent(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, _ = started(clock, service, heartbeat_timeout=3.0, ready_when="announced")
    assert group.status()[1].seconds_since_heartbeat is None
    service.mark_ready()
    group.wait_ready(PATIENCE)
    settle(group)
    clock.advance(1.5)
    assert [one.seconds_since_heartbeat for one in group.status()] == [None, 1.5]
    service.heartbeat()
    assert group.status()[1].seconds_since_heartbeat == 0.0
    clock.advance(4.0)
    assert group.status()[1].to_dict()["seconds_since_heartbeat"] == 4.0
    group.stop()
    end(group, clock, thread)
    assert group.status()[1].seconds_since_heartbeat is None


def test_a_heartbeat_that_comes_just_then_is_not_missed(
    clock: FakeClock, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, heartbeat_timeout=3.0, on_stall="fail")
    take_stack = Runner.take_stack

    def beat_before(runner: Runner) -> str:
        service.heartbeat()  # too early to see that it should tell of it
        return take_stack(runner)

    monkeypatch.setattr(Runner, "take_stack", beat_before)
    clock.advance(3.0)
    settle(group)
    assert not group.status()[1].stalled
    assert mailbox_of(group).until == clock.time + 3.0
    group.stop()
    end(group, clock, thread)
    assert raised == []


def test_a_restart_in_between_starts_the_watch_anew(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, heartbeat_timeout=3.0, on_failure=POLICY)
    service.in_start.tell(fail_with(ValueError("boom")))
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    settle(group)
    clock.advance(1.0)
    group.wait_ready(PATIENCE)
    settle(group)
    clock.advance(2.5)  # longer than 3 s since the first start, not since the second
    settle(group)
    assert not group.status()[1].stalled
    group.stop()
    end(group, clock, thread)
    assert raised == []


def test_what_was_watched_of_an_earlier_run_wakes_nobody(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    quick = group.add(Full("quick", trace), heartbeat_timeout=2.0)
    service = group.add(Full("a", trace), heartbeat_timeout=3.0, on_failure=POLICY)
    thread, raised = run_in_thread(group)
    group.wait_ready(PATIENCE)
    settle(group)
    service.in_start.tell(fail_with(ValueError("boom")))
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    clock.advance(1.0)
    group.wait_ready(PATIENCE)
    settle(group)
    quick.heartbeat()
    clock.advance(1.5)
    settle(group)
    clock.advance(0.6)
    quick.heartbeat()
    settle(group)
    assert mailbox_of(group).until == 1004.0
    group.stop()
    end(group, clock, thread)
    assert raised == []


def test_two_heartbeats_after_a_stall_are_one_recovery(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, _ = started(clock, service, heartbeat_timeout=3.0)
    seen: list[events.Event] = []
    group.subscribe(seen.append)
    clock.advance(3.0)
    wait_for(lambda: group.status()[1].stalled)
    with clock.moved:  # the deciding thread can take neither before both are there
        service.heartbeat()
        service.heartbeat()
    settle(group)
    group.stop()
    end(group, clock, thread)
    wait_for_the_last(seen)
    assert len([event for event in seen if isinstance(event, events.ServiceRecovered)]) == 1


def test_a_heartbeat_outside_a_group_does_nothing() -> None:
    Full("a", []).heartbeat()


def test_a_stall_may_be_a_failure(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, raised = started(clock, service, heartbeat_timeout=3.0, on_stall="fail")
    clock.advance(3.0)
    end(group, clock, thread)
    assert isinstance(raised[0], ServiceGroupError)
    assert "gave no heartbeat for 3 s" in str(raised[0].exceptions[0])
    assert noted(trace, "a").count("stop") == 1


def test_a_stall_may_be_a_reason_for_a_restart(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, raised = started(
        clock, service, heartbeat_timeout=3.0, on_stall="fail", on_failure=POLICY
    )
    clock.advance(3.0)
    wait_for(lambda: group.status()[1].state is State.BACKING_OFF)
    settle(group)
    clock.advance(1.0)
    group.wait_ready(PATIENCE)
    settle(group)
    assert not group.status()[1].stalled
    assert mailbox_of(group).until == clock.time + 3.0
    group.stop()
    end(group, clock, thread)
    assert raised == []
    assert noted(trace, "a").count("start") == 2


def test_with_continue_a_stall_is_kept_and_the_others_go_on(clock: FakeClock, trace: Trace) -> None:
    service = Full("a", trace)
    group, thread, raised = started(
        clock, service, heartbeat_timeout=3.0, on_stall="fail", on_failure="continue"
    )
    clock.advance(3.0)
    wait_for(lambda: group.status()[1].error)
    settle(group)
    assert group.state is GroupState.RUNNING
    group.stop()
    end(group, clock, thread)
    assert raised == []


def test_heartbeats_need_somebody_who_can_give_them() -> None:
    class Plain:
        def start(self) -> None: ...

        def stop(self) -> None: ...

    with pytest.raises(ValueError, match=r"'Plain'.*heartbeat_timeout needs a heartbeat"):
        ServiceGroup().add(Plain(), heartbeat_timeout=3.0)
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="heartbeat_timeout"):
            ServiceGroup().add(Full("a", []), heartbeat_timeout=wrong)
    with pytest.raises(ValueError, match="on_stall must be one of 'report', 'fail'"):
        ServiceGroup().add(Full("a", []), on_stall="die")  # type: ignore[arg-type]
