"""Members of an `AsyncGroup` that come back, and those that fall silent."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

from servicegroup import (
    AsyncGroup,
    AsyncService,
    Restart,
    RestartLimitError,
    ServiceGroupError,
    ServiceStalledError,
    StartTimeoutError,
    State,
    StopTimeoutError,
)
from servicegroup._aio_member import Member
from tests.fake_loop import Stubborn, Times, Told, Trace, finish, noted, run_in_thread
from tests.fake_time import wait_until

POLICY = Restart(delay=1.0, jitter=0.0, max_restarts=2, within=60.0)


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def trace() -> Trace:
    return []


def group_of(times: Times, **options: Any) -> AsyncGroup:
    return AsyncGroup(
        name="loop", start_timeout=5.0, stop_timeout=4.0, loop_factory=times.loop_factory, **options
    )


def started(
    times: Times, service: Told | Stubborn, **options: Any
) -> tuple[AsyncGroup, threading.Thread, list[BaseException]]:
    """A group of `service` and of one before it, both of them running."""
    group = group_of(times)
    group.add(Told("first", service.trace))
    group.add(service, **options)
    thread, raised = run_in_thread(group)
    times.settle()
    return group, thread, raised


def failures(raised: list[BaseException]) -> list[Exception]:
    (error,) = raised
    assert isinstance(error, ServiceGroupError)
    return list(error.exceptions)


def states(group: AsyncGroup) -> list[State]:
    return [status.state for status in group.status()]


def test_one_that_raises_is_started_again_after_the_pause(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, on_failure=POLICY)
    error = ConnectionError("gone")
    service.tell(error)
    times.settle()
    status = group.status()[1]
    assert (status.state, status.ready, status.error) == (State.BACKING_OFF, False, error)
    times.advance(0.9)
    assert noted(trace, "a") == ["start", "end"]
    times.advance(0.2)
    status = group.status()[1]
    assert (status.state, status.ready, status.restarts) == (State.RUNNING, True, 1)
    group.stop()
    finish(thread)
    assert raised == []
    assert noted(trace, "a") == ["start", "end", "start", "stop", "end"]
    assert noted(trace, "first").count("stop") == 1
    assert group.status()[1].restarts == 1


def test_the_policy_may_be_that_of_the_whole_group(times: Times, trace: Trace) -> None:
    group = group_of(times, on_failure=POLICY)
    service = group.add(Told("a", trace))
    thread, raised = run_in_thread(group)
    service.tell(ValueError())
    times.settle()
    times.advance(1.0)
    assert noted(trace, "a") == ["start", "end", "start"]
    group.stop()
    finish(thread)
    assert raised == []


def test_one_that_was_cancelled_by_somebody_else_is_started_again(
    times: Times, trace: Trace
) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, on_failure=POLICY)

    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    service.tell(cancel)
    times.settle()
    assert isinstance(group.status()[1].error, asyncio.CancelledError)
    times.advance(1.0)
    assert states(group) == [State.RUNNING] * 2
    group.stop()
    finish(thread)
    assert raised == []


def test_once_too_often_is_a_failure_with_the_last_one_as_its_cause(
    times: Times, trace: Trace
) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, on_failure=POLICY)
    for number in range(3):
        service.tell(ValueError(f"no {number}"))
        times.settle()
        times.advance(2.0)
    finish(thread)
    (failure,) = failures(raised)
    assert isinstance(failure, RestartLimitError)
    assert str(failure.__cause__) == "no 2"
    assert failure.__notes__ == ["in service 'a', while running"]
    assert noted(trace, "a") == ["start", "end"] * 3
    assert noted(trace, "first") == ["start", "stop", "end"]
    assert states(group) == [State.STOPPED, State.FAILED]


def test_one_that_fails_before_it_is_ready_is_started_again_and_waited_for(
    times: Times, trace: Trace
) -> None:
    group = group_of(times)
    service = group.add(Told("a", trace), ready_when="announced", on_failure=POLICY)
    group.add(Told("next", trace))
    thread, raised = run_in_thread(group)
    service.tell(ValueError("not yet"))
    times.settle()
    assert times.alarms() == [1001.0]  # not that of the start which is over
    times.advance(1.0)
    assert noted(trace, "next") == []
    service.tell(service.mark_ready)
    times.settle()
    assert noted(trace, "next") == ["start"]
    group.stop()
    finish(thread)
    assert raised == []


def test_one_that_is_not_ready_in_time_is_stopped_and_started_again(
    times: Times, trace: Trace
) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, on_failure=POLICY, ready_when="announced")
    times.advance(5.0)
    assert noted(trace, "a") == ["start", "stop", "end"]
    status = group.status()[1]
    assert status.state is State.BACKING_OFF
    assert isinstance(status.error, StartTimeoutError)
    assert "commands.get()" in status.error.stack
    times.advance(1.0)
    service.tell(service.mark_ready)
    times.settle()
    assert states(group) == [State.RUNNING] * 2
    group.stop()
    finish(thread)
    assert raised == []
    assert noted(trace, "a") == ["start", "stop", "end"] * 2


def test_one_that_waits_for_something_else_is_cancelled_to_be_started_again(times: Times) -> None:
    runs: list[int] = []

    class Waits(AsyncService):
        async def run(self) -> None:
            runs.append(len(runs))
            if len(runs) <= 2:
                await asyncio.sleep(1000)
            self.mark_ready()
            await self.stopping.wait()

    group = group_of(times)
    group.add(Waits(), ready_when="announced", on_failure=POLICY)
    thread, raised = run_in_thread(group)
    times.settle()
    for seconds in (5.0, 1.0, 5.0, 2.0):
        times.advance(seconds)
    assert states(group) == [State.RUNNING]
    group.stop()
    finish(thread)
    assert (runs, raised) == ([0, 1, 2], [])


def test_one_that_returns_gets_its_stop_before_each_new_start(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, on_return=POLICY)
    service.tell("leave")
    times.settle()
    status = group.status()[1]
    assert (status.state, status.error) == (State.BACKING_OFF, None)
    assert status.stopping_at is not None
    times.advance(1.0)
    assert noted(trace, "a") == ["start", "end", "start"]
    assert not service.stopping.is_set()
    group.stop()
    finish(thread)
    assert raised == []
    assert noted(trace, "a") == ["start", "end", "start", "stop", "end"]


def test_a_group_does_not_end_while_its_last_one_waits_to_be_started_again(
    times: Times, trace: Trace
) -> None:
    group = group_of(times)
    service = group.add(Told("a", trace), on_return=POLICY)
    group.add(Told("daemon", trace), daemon=True)
    thread, raised = run_in_thread(group)
    service.tell("leave")
    times.settle()
    assert thread.is_alive()
    times.advance(1.0)
    assert noted(trace, "a") == ["start", "end", "start"]
    group.stop()
    finish(thread)
    assert raised == []


def test_too_many_returns_have_no_cause(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    _, thread, raised = started(times, service, on_return=Restart(max_restarts=0))
    service.tell("leave")
    finish(thread)
    (failure,) = failures(raised)
    assert isinstance(failure, RestartLimitError)
    assert failure.__cause__ is None


@pytest.mark.parametrize("how", ["raised", "returned"])
def test_a_stop_during_the_pause_ends_it_at_once(how: str, times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, on_failure=POLICY, on_return=POLICY)
    service.tell(ValueError("boom") if how == "raised" else "leave")
    times.settle()
    group.stop()
    finish(thread)
    assert times.clock.time == 1000.0
    assert raised == []
    status = group.status()[1]
    if how == "raised":
        assert (status.state, str(status.error)) == (State.FAILED, "boom")
    else:
        assert (status.state, status.error) == (State.FINISHED, None)
    assert noted(trace, "a") == ["start", "end"]


def test_the_end_of_a_pause_that_a_stop_has_ended_is_nothing(times: Times, trace: Trace) -> None:
    group = group_of(times)
    slow = group.add(Told("slow", trace, "ignore"))
    service = group.add(Told("a", trace), on_failure=POLICY)
    thread, raised = run_in_thread(group)
    service.tell(ValueError("boom"))
    times.settle()
    group.stop()
    times.settle()
    times.advance(1.0)
    assert noted(trace, "a") == ["start", "end"]
    slow.tell("leave")
    finish(thread)
    assert raised == []


def test_a_pause_that_ends_while_the_group_drains_starts_nothing(
    times: Times, trace: Trace
) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, on_failure=POLICY)
    service.tell(ValueError("boom"))
    times.settle()
    group.drain()
    times.settle()
    times.advance(5.0)
    assert group.status()[1].state is State.BACKING_OFF
    group.stop()
    finish(thread)
    assert raised == []
    assert noted(trace, "a") == ["start", "end"]


def test_a_failure_during_the_stop_is_a_failure(times: Times, trace: Trace) -> None:
    service = Told("a", trace, "fail")
    group, thread, raised = started(times, service, on_failure=POLICY)
    group.stop()
    finish(thread)
    assert [str(error) for error in failures(raised)] == ["end of a"]
    assert noted(trace, "a").count("start") == 1


def test_an_abandoned_one_is_never_run_again(times: Times, trace: Trace) -> None:
    service = Stubborn("a", trace)
    group, thread, raised = started(times, service, on_failure=POLICY, ready_when="announced")
    times.advance(5.0)  # not ready in time
    assert noted(trace, "a") == ["start", "ignored"]
    times.advance(4.0)  # nor stopped in time
    finish(thread)
    assert [type(error) for error in failures(raised)] == [StopTimeoutError]
    assert states(group) == [State.STOPPED, State.ABANDONED]
    assert noted(trace, "a").count("start") == 1


@pytest.mark.parametrize("stop_first", [False, True])
def test_what_it_raises_when_stopped_for_a_restart_is_one_more_reason_for_it(
    stop_first: bool, times: Times, trace: Trace
) -> None:
    service = Told("a", trace, "ignore")
    group, thread, raised = started(times, service, on_failure=POLICY, ready_when="announced")
    times.advance(5.0)
    if stop_first:  # now it is a failure like any other
        group.stop()
        times.settle()
    service.tell(OSError("on the way"))
    if stop_first:
        finish(thread)
        assert [str(error) for error in failures(raised)] == ["on the way"]
        return
    times.settle()
    assert str(group.status()[1].error) == "on the way"
    service.on_stop = "obey"
    times.advance(1.0)
    assert noted(trace, "a").count("start") == 2
    group.stop()
    finish(thread)
    assert raised == []


def test_a_group_that_stops_while_one_is_stopped_for_a_restart_waits_for_it(
    times: Times, trace: Trace
) -> None:
    service = Told("a", trace, "ignore")
    group, thread, raised = started(times, service, on_failure=POLICY, ready_when="announced")
    times.advance(5.0)
    group.stop()
    times.settle()
    assert noted(trace, "first") == ["start"]
    service.tell("leave")
    finish(thread)
    assert noted(trace, "a") == ["start", "stop", "end"]
    assert noted(trace, "first") == ["start", "stop", "end"]
    assert raised == []
    assert group.status()[1].state is State.FAILED  # not ready in time, as it had been


def test_one_that_is_stopped_for_a_restart_has_no_more_time_than_the_group(
    times: Times, trace: Trace
) -> None:
    group = AsyncGroup(shutdown_timeout=10.0, loop_factory=times.loop_factory)
    service = Stubborn("a", trace)
    group.add(
        service,
        ready_when="announced",
        start_timeout=5.0,
        stop_timeout=math.inf,
        on_failure=POLICY,
    )
    thread, raised = run_in_thread(group)
    times.settle()
    times.advance(5.0)
    group.stop()
    times.settle()
    times.advance(10.0)
    finish(thread)
    assert [type(error) for error in failures(raised)] == [StopTimeoutError]


def test_sys_exit_is_no_reason_for_a_restart(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    _, thread, raised = started(times, service, on_failure=POLICY, on_return=POLICY)
    service.tell(SystemExit(3))
    finish(thread)
    (error,) = raised
    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert noted(trace, "a") == ["start", "end"]


def test_one_for_all_is_a_group_in_the_group_that_is_restarted(times: Times, trace: Trace) -> None:
    group = group_of(times)
    inner = AsyncGroup(name="inner")
    group.add(inner, on_failure=POLICY)
    service = inner.add(Told("a", trace))
    inner.add(Told("b", trace))
    thread, raised = run_in_thread(group)
    times.settle()
    service.tell(ValueError("boom"))
    times.settle()
    assert noted(trace, "b") == ["start", "stop", "end"]
    times.advance(1.0)
    assert [part.state for part in inner.status()] == [State.RUNNING] * 2
    inner.add(Told("c", trace))
    times.settle()
    group.stop()
    finish(thread)
    assert raised == []
    assert [who for what, who in trace if what == "start"] == ["a", "b", "a", "b", "c"]


def test_there_is_no_wake_up_but_that_for_the_restart(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, _ = started(times, service, on_failure=POLICY)
    assert times.alarms() == []
    service.tell(ValueError("boom"))
    assert times.alarms() == [1001.0]
    group.stop()
    finish(thread)


def test_one_that_was_ready_in_time_wakes_nobody(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, _ = started(times, service, ready_when="announced")
    assert times.alarms() == [1005.0]
    service.tell(service.mark_ready)
    assert times.alarms() == []
    group.stop()
    finish(thread)


# -- heartbeats ------------------------------------------------------------------------------------


def test_one_that_gives_no_heartbeat_is_stalled_until_it_does(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, heartbeat_timeout=3.0)
    for _ in range(3):
        times.advance(2.0)
        service.tell(service.heartbeat)
        times.settle()
        assert not group.status()[1].stalled
        assert group.status()[1].seconds_since_heartbeat == 0.0
    times.advance(3.0)
    assert [one.seconds_since_heartbeat for one in group.status()] == [None, 3.0]
    assert group.status()[1].stalled
    assert group.status()[1].state is State.RUNNING
    assert times.alarms() == []  # nothing more to look for
    service.heartbeat()  # from another thread
    wait_until(lambda: not group.status()[1].stalled)
    assert times.alarms() == [times.clock.time + 3.0]
    group.stop()
    finish(thread)
    assert raised == []


def test_one_timer_serves_all_heartbeats(times: Times, trace: Trace) -> None:
    group = group_of(times)
    services = [group.add(Told(str(n), trace), heartbeat_timeout=3.0 + n) for n in range(5)]
    thread, _ = run_in_thread(group)
    times.settle()
    assert times.alarms() == [1003.0]
    times.advance(2.0)
    for service in services:
        service.heartbeat()
    times.advance(1.0)
    assert times.alarms() == [1004.0]  # when the second one's first was due
    times.advance(4.5)
    assert [status.stalled for status in group.status()] == [True, True, True, False, False]
    group.stop()
    finish(thread)


def test_two_heartbeats_after_a_stall_are_one_recovery(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, _ = started(times, service, heartbeat_timeout=3.0)
    times.advance(3.0)
    service.heartbeat()
    service.heartbeat()
    assert times.alarms() == [times.clock.time + 3.0]
    assert not group.status()[1].stalled
    group.stop()
    finish(thread)


def test_a_heartbeat_that_comes_just_then_is_not_missed(
    times: Times, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, heartbeat_timeout=3.0, on_stall="fail")
    take_stack = Member.take_stack

    def beat_before(member: Member) -> str:
        service.heartbeat()  # too early to see that it should tell of it
        return take_stack(member)

    monkeypatch.setattr(Member, "take_stack", beat_before)
    times.advance(3.0)
    assert not group.status()[1].stalled
    assert times.alarms() == [times.clock.time + 3.0]
    group.stop()
    finish(thread)
    assert raised == []


def test_a_restart_in_between_starts_the_watch_anew(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, heartbeat_timeout=3.0, on_failure=POLICY)
    service.tell(ValueError("boom"))
    times.settle()
    times.advance(1.0)
    times.advance(2.5)  # longer than 3 s since the first start, not since the second
    assert not group.status()[1].stalled
    group.stop()
    finish(thread)
    assert raised == []


def test_one_that_has_ended_is_watched_no_more(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(times, service, heartbeat_timeout=3.0)
    service.tell("leave")
    assert times.alarms() == []
    group.stop()
    finish(thread)
    assert raised == []


def test_one_that_is_being_stopped_is_watched_no_more(times: Times, trace: Trace) -> None:
    service = Told("a", trace, "ignore")
    group, thread, raised = started(times, service, heartbeat_timeout=3.0, on_stall="fail")
    group.stop()
    times.settle()
    times.advance(3.5)  # it is cancelled by then
    finish(thread)
    assert raised == []


def test_a_stall_may_be_a_failure(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    _, thread, raised = started(times, service, heartbeat_timeout=3.0, on_stall="fail")
    times.advance(3.0)
    finish(thread)
    (failure,) = failures(raised)
    assert isinstance(failure, ServiceStalledError)
    assert "commands.get()" in failure.stack
    assert noted(trace, "a") == ["start", "stop", "end"]


def test_a_stall_may_be_a_reason_for_a_restart(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(
        times, service, heartbeat_timeout=3.0, on_stall="fail", on_failure=POLICY
    )
    times.advance(3.0)
    assert group.status()[1].state is State.BACKING_OFF
    times.advance(1.0)
    assert not group.status()[1].stalled
    assert times.alarms() == [times.clock.time + 3.0]
    group.stop()
    finish(thread)
    assert raised == []
    assert noted(trace, "a") == ["start", "stop", "end"] * 2


def test_with_continue_a_stall_is_kept_and_the_others_go_on(times: Times, trace: Trace) -> None:
    service = Told("a", trace)
    group, thread, raised = started(
        times, service, heartbeat_timeout=3.0, on_stall="fail", on_failure="continue"
    )
    times.advance(3.0)
    assert isinstance(group.status()[1].error, ServiceStalledError)
    assert states(group) == [State.RUNNING] * 2
    group.stop()
    finish(thread)
    assert raised == []
