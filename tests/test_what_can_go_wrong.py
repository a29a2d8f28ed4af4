"""Whatever a service may do, whenever it does it: a table of what happens then, and its proof.

Three services: `before`, the one that acts, and `late`, which announces only when it is told to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from servicegroup import GroupState, GroupStoppingError, ServiceGroup, ServiceGroupError, State
from tests.fake_time import FakeClock, fake_time_group, pass_time, wait_until
from tests.scripted import Full, Trace, fail_with, is_quiet, run_in_thread

PHASES = ("starting", "before ready", "running", "draining", "stopping", "after the deadline")

# For each act, a cell for each phase: what the outcome's failures are, and what the actor ends as.
# An int is the code of a SystemExit.
TIMEOUT = "StopTimeoutError"
Cell = tuple[list[str] | int, str]
LATE: Cell = ([TIMEOUT], "abandoned")
CRASH: Cell = (["ServiceCrashedError"], "failed")
VALUE: Cell = (["ValueError"], "failed")
EXIT: Cell = (3, "failed")
FINE: Cell = ([], "stopped")
DONE: Cell = ([], "finished")
TABLE: dict[str, list[Cell]] = {
    "raises": [*[VALUE] * 5, LATE],
    "hangs": [LATE, (["StartTimeoutError", TIMEOUT], "abandoned"), *[LATE] * 4],
    "returns early": [*[DONE] * 4, FINE, LATE],
    "SystemExit": [*[EXIT] * 5, LATE],
    "KeyboardInterrupt": [*[CRASH] * 5, LATE],
    "stops its own group": [*[FINE] * 5, LATE],
    "adds a service": [*[FINE] * 5, LATE],
    "waits for its own group": [*[FINE] * 5, LATE],
}
# What add() and wait() did in each phase.
ADDED = ["started", "started", "started", "refused", "refused", "refused"]
CELLS = [(act, phase) for act in TABLE for phase in PHASES]


class Actor(Full):
    """Acts in its start() when told to; in its stop() if that is its phase."""

    act_in_stop: Callable[[], object] | None = None

    def stop(self) -> None:
        self.trace.append(("stop", self.name))
        if self.act_in_stop is not None:
            try:
                self.act_in_stop()
            finally:
                self.in_start.tell("leave")
        elif self.on_stop == "obey":
            self.in_start.tell("leave")


class Scene:
    def __init__(self, act: str, phase: str) -> None:
        self.act, self.phase = act, phase
        self.clock = FakeClock()
        self.trace: Trace = []
        self.said: list[str] = []  # by add() and wait()
        self.group = fake_time_group(
            self.clock, start_timeout=5.0, stop_timeout=4.0, drain_delay=3.0
        )
        self.before = Full("before", self.trace)
        self.actor = Actor("actor", self.trace)
        self.late = Full("late", self.trace)
        self.extra = Full("extra", self.trace)

    def quiet(self) -> bool:
        return is_quiet(self.group)

    def settle(self) -> None:
        wait_until(lambda: self.group._run.over.is_set() or self.quiet(), "quiet")

    def do(self) -> None:
        """The act itself, on whichever thread of the actor."""
        if self.act == "raises":
            raise ValueError("boom")
        if self.act == "hangs":
            self.actor.on_stop = "ignore"
            if self.phase == "stopping":
                self.actor.in_stop.work()
        if self.act == "SystemExit":
            sys.exit(3)
        if self.act == "KeyboardInterrupt":
            raise KeyboardInterrupt
        if self.act == "returns early" and self.phase != "stopping":
            self.actor.in_start.tell("leave")
        if self.act == "stops its own group":
            self.group.stop("the actor says so")
        if self.act == "adds a service":
            try:
                self.group.add(self.extra)
                self.said.append("started")
            except GroupStoppingError:
                self.said.append("refused")
        if self.act == "waits for its own group":
            with pytest.raises(RuntimeError, match="belongs to group"):
                self.group.wait()
            self.said.append("refused")

    def play(self) -> BaseException | None:
        group, actor = self.group, self.actor
        actor.ready_when = "announced" if self.phase == "before ready" else "entered"
        self.late.ready_when = "announced"
        if self.phase == "stopping":
            actor.act_in_stop = self.do
        if self.phase == "after the deadline":
            self.before.on_stop = "hang"
            actor.on_stop = "ignore"
        for service in (self.before, actor, self.late):
            group.add(service)
        thread, raised = run_in_thread(group)
        self.settle()
        if self.phase not in ("starting", "before ready"):
            self.late.in_start.tell(self.late.mark_ready)
            self.settle()
            assert group.is_ready
        if self.phase in ("draining", "stopping", "after the deadline"):
            group.stop()
            self.settle()
            assert group.state is GroupState.DRAINING
        if self.phase == "after the deadline":
            self.clock.advance(3.0)  # the drain delay
            self.settle()
            self.clock.advance(4.0)  # the actor's stop_timeout
            self.settle()
            assert group.status()[1].state is State.ABANDONED
            assert self.before.in_stop.parked
        if self.phase != "stopping":
            actor.in_start.tell(self.do)
            if self.phase == "after the deadline":
                wait_until(
                    lambda: (
                        actor.in_start.parked
                        or ("raised", "actor") in self.trace
                        or ("returned", "actor") in self.trace
                    )
                )
            self.settle()
        self.finish()
        thread.join(30)
        assert not thread.is_alive()
        return raised[0] if raised else None

    def finish(self) -> None:
        if self.act == "hangs" and self.phase == "before ready":
            self.clock.advance(5.0)  # its start_timeout
            self.settle()
        elif self.phase == "before ready" and self.actor.in_start.parked:
            self.actor.in_start.tell(self.actor.mark_ready)
            self.settle()
        if self.late.in_start.parked and self.group.state is GroupState.STARTING:
            self.late.in_start.tell(self.late.mark_ready)
            self.settle()
        if self.before.in_stop.parked:
            self.before.in_start.tell("leave")
            self.before.in_stop.tell("leave")
        self.group.stop()
        pass_time(self.group, self.clock, self.quiet)

    def free(self) -> None:
        for service in (self.before, self.actor, self.late, self.extra):
            service.free()


@pytest.mark.parametrize(("act", "phase"), CELLS, ids=[" ".join(cell) for cell in CELLS])
def test_a_service_that(act: str, phase: str) -> None:
    expected, state = TABLE[act][PHASES.index(phase)]
    scene = Scene(act, phase)
    try:
        error = scene.play()
    finally:
        scene.free()
    statuses = {status.name: status for status in scene.group.status()}
    assert statuses["actor"].state.value == state
    if isinstance(expected, int):
        assert isinstance(error, SystemExit)
        assert error.code == expected
    elif expected:
        assert isinstance(error, ServiceGroupError)
        assert [type(failure).__name__ for failure in error.exceptions] == expected
        assert all("'actor'" in failure.__notes__[0] for failure in error.exceptions)
    else:
        assert error is None
    # Whatever the actor did, the others were stopped once, and the later one first.
    stops = [who for what, who in scene.trace if what == "stop"]
    started = [who for what, who in scene.trace if what == "start"]
    assert stops.count("before") == 1
    assert stops.count("late") == started.count("late")
    assert [who for who in stops if who != "actor"] == [
        who for who in ("extra", "late", "before") if who in started
    ]
    if act == "adds a service":
        assert scene.said == [ADDED[PHASES.index(phase)]]
        assert ("extra" in started) is (scene.said == ["started"])
    if act == "waits for its own group":
        assert scene.said == ["refused"]
    raised_in_start = phase != "stopping" and act in ("raises", "SystemExit", "KeyboardInterrupt")
    owed = not raised_in_start or phase == "after the deadline"
    assert stops.count("actor") == (1 if owed else 0)


def test_a_failure_says_when_it_came() -> None:
    phases = {
        "starting": "while running",
        "before ready": "while starting",
        "running": "while running",
        "draining": "while draining",
        "stopping": "while stopping",
    }
    for phase, note in phases.items():
        scene = Scene("raises", phase)
        error = scene.play()
        scene.free()
        assert isinstance(error, ServiceGroupError)
        assert error.exceptions[0].__notes__ == [f"in service 'actor', {note}"]


def a_group_with_a_failing_service(clock: FakeClock) -> tuple[ServiceGroup, Full, Full, Trace]:
    trace: Trace = []
    group = fake_time_group(clock, start_timeout=5.0, stop_timeout=4.0)
    bad = group.add(Full("bad", trace), on_failure="continue", ready_when="announced")
    return group, bad, group.add(Full("good", trace)), trace


def test_with_continue_a_failure_before_ready_is_kept_and_the_start_goes_on() -> None:
    clock = FakeClock()
    group, bad, good, _ = a_group_with_a_failing_service(clock)
    thread, raised = run_in_thread(group)
    wait_until(lambda: is_quiet(group))
    bad.in_start.tell(fail_with(ValueError("boom")))
    wait_until(lambda: group.is_ready)
    wait_until(lambda: good.in_start.parked)
    group.stop()
    thread.join(30)
    assert raised == []
    report = group.wait()
    assert report.exit_code == 0
    assert report.services[0].state is State.FAILED
    assert isinstance(report.services[0].error, ValueError)


def test_with_continue_a_late_service_is_owed_its_stop_and_may_still_become_ready() -> None:
    clock = FakeClock()
    group, bad, _, trace = a_group_with_a_failing_service(clock)
    thread, raised = run_in_thread(group)
    wait_until(lambda: is_quiet(group))
    clock.advance(5.0)
    wait_until(lambda: group.state is GroupState.RUNNING)
    assert not group.is_ready
    bad.in_start.tell(bad.mark_ready)
    group.wait_ready(30)
    group.stop()
    thread.join(30)
    assert raised == []
    assert [who for what, who in trace if what == "stop"] == ["good", "bad"]
    assert "was not ready within 5 s" in str(group.wait().services[0].error)


def test_all_expected_exceptions_count_as_a_return_once_asked() -> None:
    clock = FakeClock()
    trace: Trace = []
    group = fake_time_group(clock)
    group.add(Full("a", trace, "fail"), expected_on_stop=(ValueError,))
    group.add(Full("b", trace, "raise"), expected_on_stop=(OSError,))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    thread.join(30)
    assert raised == []
    assert [status.state for status in group.status()] == [State.STOPPED, State.STOPPED]
