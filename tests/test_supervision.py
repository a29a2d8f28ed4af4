"""Rules that hold in every kind of group, where the tests of one kind would not show them."""

from __future__ import annotations

import math

from servicegroup import Restart, ServiceGroupError, State, StopTimeoutError
from tests.fake_time import FakeClock, fake_time_group, wait_until
from tests.scripted import Full, Trace, end, run_in_thread, settle


def test_one_that_is_stopped_for_a_restart_has_no_more_time_than_the_group() -> None:
    clock, trace = FakeClock(), Trace()
    group = fake_time_group(clock, shutdown_timeout=10.0)
    service = group.add(
        Full("a", trace, "hang"),
        ready_when="announced",
        start_timeout=5.0,
        stop_timeout=math.inf,
        on_failure=Restart(),
    )
    thread, raised = run_in_thread(group)
    settle(group)
    clock.advance(5.0)
    wait_until(lambda: service.in_stop.parked)
    settle(group)
    group.stop()
    end(group, clock, thread)
    assert isinstance(raised[0], ServiceGroupError)
    assert [type(error) for error in raised[0].exceptions] == [StopTimeoutError]
    assert group.status()[0].state is State.ABANDONED
    assert clock.time <= 1015.0
    service.free()


def test_a_stop_that_raises_after_a_return_keeps_none_from_being_started_again() -> None:
    clock, trace = FakeClock(), Trace()
    group = fake_time_group(clock)
    policy = Restart(delay=1.0, jitter=0.0)
    service = group.add(Full("a", trace, "raise"), on_failure="continue", on_return=policy)
    thread, raised = run_in_thread(group)
    settle(group)
    service.in_start.tell("leave")
    wait_until(lambda: group.status()[0].state is State.BACKING_OFF)
    settle(group)
    service.in_start._commands.get()  # what its stop() told a start() that was gone
    service.on_stop = "obey"
    clock.advance(1.0)
    group.wait_ready(30)
    settle(group)
    group.stop()
    end(group, clock, thread)
    assert [what for what, _ in trace].count("start") == 2
    assert isinstance(raised[0], ServiceGroupError)
    assert [str(error) for error in raised[0].exceptions] == ["stop of a"]
