"""The invariant, against random services and random events: one start, one stop, in LIFO order."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from servicegroup import (
    GroupState,
    GroupStoppingError,
    ServiceGroupError,
    State,
    StopTimeoutError,
)
from servicegroup.restart import Restart
from servicegroup.service import OnFailure, ReadyWhen
from tests.fake_time import FakeClock, fake_time_group, pass_time, wait_until
from tests.scripted import ByEvent, Full, Plain, Trace, fail_with, is_quiet, run_in_thread

KIND = st.sampled_from(
    ["plain", "full", "announced", "late", "event", "raises", "returns", "unready"]
)
ON_STOP = st.sampled_from(["obey", "obey", "ignore", "hang", "raise", "fail"])
RESTART = Restart(max_restarts=2, within=60.0, delay=1.0, jitter=0.0)
ON_FAILURE: st.SearchStrategy[OnFailure] = st.sampled_from(["stop", "continue", RESTART])


def runs_of(seen: list[str]) -> list[list[str]]:
    """What was noted of a service, run by run."""
    runs: list[list[str]] = []
    for what in seen:
        if what == "start":
            runs.append([])
        runs[-1].append(what)
    return runs


class Lifecycle(RuleBasedStateMachine):
    """Drives one run of one group; `teardown` ends it and checks what the services noted."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.trace: Trace = []
        self.services: list[Plain | ByEvent] = []
        self.on_failure: dict[str, OnFailure] = {}
        self.never_stopped: set[tuple[str, int]] = set()  # who and which run: it raised
        self.stop_asked = False

    @initialize(
        concurrently=st.booleans(),
        at_once=st.booleans(),
        delay=st.sampled_from([0.0, 3.0]),
        added=st.lists(st.tuples(KIND, ON_STOP, ON_FAILURE), max_size=5),
    )
    def begin(
        self,
        concurrently: bool,
        at_once: bool,
        delay: float,
        added: list[tuple[str, str, OnFailure]],
    ) -> None:
        self.at_once = at_once
        self.group = fake_time_group(
            self.clock,
            start_concurrently=concurrently,
            stop_concurrently=at_once,
            drain_delay=delay,
            start_timeout=5.0,
            stop_timeout=4.0,
            shutdown_timeout=20.0,
        )
        for kind, on_stop, on_failure in added:
            self.add(kind, on_stop, on_failure)
        # One that stays, so that the group does not end before the rules have had their turn.
        self.add("event", "obey", "stop")
        self.thread, self.raised = run_in_thread(self.group)
        self.settle()

    def settle(self) -> None:
        """Wait until nothing moves."""
        wait_until(lambda: self.group._run.over.is_set() or is_quiet(self.group), "quiet")
        trace = tuple(self.trace)
        for service in self.services:
            seen = [what for what, who in trace if who == service.name]
            for number, run in enumerate(runs_of(seen), 1):
                if "raised" in run and "stop" not in run:
                    self.never_stopped.add((service.name, number))

    def is_over(self) -> bool:
        return self.group._run.over.is_set()

    @rule(kind=KIND, on_stop=ON_STOP, on_failure=ON_FAILURE)
    def add(self, kind: str, on_stop: str, on_failure: OnFailure) -> None:
        name = f"s{len(self.services)}"
        service: Plain | ByEvent
        ready_when: ReadyWhen | None = None
        if kind == "event":
            service = ByEvent(name, self.trace)
        elif kind == "plain":
            service = Plain(name, self.trace, on_stop)
        else:
            service = Full(name, self.trace, on_stop)
            if kind in ("announced", "late", "unready"):
                ready_when = "announced"
            if kind in ("announced", "unready"):
                service.in_start.tell(service.mark_ready)
            if kind == "unready":
                service.in_start.tell(service.mark_not_ready)
            if kind == "raises":
                service.in_start.tell(fail_with(ValueError(name)))
            if kind == "returns":
                service.in_start.tell("leave")
        try:
            self.group.add(service, ready_when=ready_when, on_failure=on_failure)
        except GroupStoppingError:
            assert self.group.state in (GroupState.DRAINING, GroupState.STOPPING)
            return
        self.services.append(service)
        self.on_failure[name] = on_failure
        if hasattr(self, "thread") and not self.is_over():
            self.settle()

    @rule(data=st.data(), what=st.sampled_from(["ready", "not_ready", "leave", "raise"]))
    def tell(self, data: st.DataObject, what: str) -> None:
        """One of the services that waits in its start() does something by itself."""
        waiting = [s for s in self.services if isinstance(s, Plain) and s.in_start.parked]
        if not waiting or self.is_over():
            return
        service = data.draw(st.sampled_from(waiting))
        if what == "leave":
            service.in_start.tell("leave")
        elif what == "raise":
            service.in_start.tell(fail_with(ValueError(service.name)))
        elif isinstance(service, Full):
            service.in_start.tell(service.mark_ready if what == "ready" else service.mark_not_ready)
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 3.0, 4.5, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()

    @precondition(lambda self: not self.stop_asked)
    @rule(hurry=st.booleans())
    def stop(self, hurry: bool) -> None:
        self.stop_asked = True
        if hurry:  # as a SIGINT
            self.group._run.post(self.group._run.on_stop, "SIGINT", True)
        else:
            self.group.stop()
        self.settle()

    @rule()
    def stop_again(self) -> None:
        if self.stop_asked:
            self.group.stop("once more")
            self.settle()

    def teardown(self) -> None:
        if not hasattr(self, "thread"):
            return
        try:
            self.group.stop()
            pass_time(self.group, self.clock, lambda: is_quiet(self.group))
            self.thread.join(20)
            assert not self.thread.is_alive()
            self.check()
        finally:
            for service in self.services:
                service.free()

    def check(self) -> None:
        states = {status.name: status for status in self.group.status()}
        order = [service.name for service in self.services]
        abandoned = {name for name in order if states[name].state is State.ABANDONED}
        for name in abandoned:  # asked so late that the group did not wait for the stop to begin
            wait_until(partial(self.trace.__contains__, ("stop", name)), f"stop of {name}")
        noted = {name: [what for what, who in self.trace if who == name] for name in order}
        for name in order:
            if not noted[name]:
                assert states[name].state is State.NEW
                continue
            runs = runs_of(noted[name])
            restarted = self.on_failure[name] is RESTART
            assert len(runs) == 1 + states[name].restarts
            assert len(runs) == 1 or restarted
            for number, seen in enumerate(runs, 1):
                if (name, number) in self.never_stopped:
                    assert "stop" not in seen, f"{name} raised and was stopped all the same"
                elif "raised" in seen:
                    assert seen.count("stop") <= 1  # it may have been handed over before
                else:
                    assert seen.count("stop") == 1, f"{name}: {seen}"
        # LIFO, and each only when the ones after it had ended, unless order was given up.
        given_up = self.at_once or bool(abandoned)
        if not given_up:
            # Those that are stopped to be restarted are so at any time.
            firm = [name for name in order if self.on_failure[name] is not RESTART]
            stops = [who for what, who in self.trace if what == "stop" and who in firm]
            assert stops == sorted(stops, key=order.index, reverse=True)
            for at, (what, who) in enumerate(self.trace):
                if what == "stop" and who in firm:
                    for later in order[order.index(who) + 1 :]:
                        before = [w for w, name in self.trace[:at] if name == later]
                        last = runs_of(before)[-1] if before else []
                        ended = "returned" in last or "raised" in last
                        assert not before or ended, f"{who} was asked while {later} still ran"
        self.check_outcome(noted, abandoned)

    def check_outcome(self, noted: dict[str, list[str]], abandoned: set[str]) -> None:
        error = self.raised[0] if self.raised else None
        assert error is None or isinstance(error, ServiceGroupError), repr(error)
        failures = error.exceptions if error is not None else ()
        statuses = {status.name: status for status in self.group.status()}
        named = {note.split("'")[1] for failure in failures for note in failure.__notes__}
        for service in self.services:
            name, seen = service.name, noted[service.name]
            if name in abandoned:
                assert name in named
            elif self.on_failure[name] is RESTART:
                continue  # restarted, or a RestartLimitError; tests/test_restart.py tells which
            elif "raised" in seen or ("stop" in seen and "stopped" not in seen):
                assert statuses[name].error is not None
                kept = self.on_failure[name] == "continue" and "stop" not in seen
                assert kept or name in named, f"what {name} raised was swallowed"
        for failure in failures:
            if isinstance(failure, StopTimeoutError):
                assert failure.service in abandoned
        report = self.group._run.report
        assert report is not None
        assert report.exit_code == (1 if failures else 0)


COMMON = settings(
    deadline=None,
    stateful_step_count=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_one_start_one_stop_in_lifo_order_and_nothing_swallowed() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Lifecycle, settings=settings(COMMON, max_examples=100))


@pytest.mark.slow
def test_the_same_with_two_thousand_examples() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Lifecycle, settings=settings(COMMON, max_examples=2000))
