"""The invariant, against random services and random events: one start, one stop, in LIFO order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from servicegroup import (
    GroupState,
    GroupStoppingError,
    ServiceGroupError,
    ServiceStatus,
    State,
    StopTimeoutError,
)
from servicegroup.restart import Restart
from servicegroup.service import Managed, OnFailure, OnReturn, ReadyWhen
from tests.fake_time import FakeClock, fake_time_group, pass_time, wait_until
from tests.scripted import ByEvent, Full, Plain, Trace, fail_with, is_quiet, run_in_thread
from tests.scripted_kinds import Member

Scripted = Plain | ByEvent | Member

# What it is, and what it does first.
KIND: st.SearchStrategy[str] = st.runner().flatmap(lambda machine: st.sampled_from(machine.kinds))
ON_STOP = st.sampled_from(["obey", "obey", "ignore", "hang", "raise", "fail"])
RESTART = Restart(max_restarts=2, within=60.0, delay=1.0, jitter=0.0)
ON_FAILURE: st.SearchStrategy[OnFailure] = st.sampled_from(["stop", "continue", RESTART])
ON_RETURN: st.SearchStrategy[OnReturn] = st.sampled_from(["continue", "continue", "stop", RESTART])
PICK = st.integers(0, 9)  # which one of those that there are; the choice must not depend on that


def runs_of(seen: list[str]) -> list[list[str]]:
    """What was noted of a service, run by run."""
    runs: list[list[str]] = []
    for what in seen:
        if what == "start":
            runs.append([])
        runs[-1].append(what)
    return runs


def with_parts(statuses: Iterable[ServiceStatus]) -> Iterator[ServiceStatus]:
    for status in statuses:
        yield status
        yield from with_parts(status.parts)


def named_in(errors: Iterable[BaseException], group: str = "") -> Iterator[str]:
    """The services that the notes of the errors name."""
    for error in errors:
        for note in getattr(error, "__notes__", ()):
            if note.startswith("in service '"):
                name = group + note.split("'")[1]
                yield name
                if isinstance(error, ServiceGroupError):
                    yield from named_in(error.exceptions, f"{name}/")


class Lifecycle(RuleBasedStateMachine):
    """Drives one run of one group; `teardown` ends it and checks what the services noted."""

    kinds: ClassVar = [
        "plain",
        "event",
        "full",
        "full announced",
        "full late",
        "full raises",
        "full returns",
        "full unready",
    ]

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.trace: Trace = []
        self.services: list[Scripted] = []
        # Its place in the order; that of a part begins with that of the whole.
        self.places: dict[str, tuple[int, ...]] = {}
        self.on_failure: dict[str, OnFailure] = {}
        self.restarted: set[str] = set()  # those that may be
        self.never_stopped: set[tuple[str, int]] = set()  # who and which run: it raised
        self.stop_asked = False

    @initialize(
        concurrently=st.booleans(),
        at_once=st.booleans(),
        delay=st.sampled_from([0.0, 3.0]),
        added=st.lists(st.tuples(KIND, ON_STOP, ON_FAILURE, ON_RETURN), max_size=5),
    )
    def begin(
        self,
        concurrently: bool,
        at_once: bool,
        delay: float,
        added: list[tuple[str, str, OnFailure, OnReturn]],
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
        for kind, on_stop, on_failure, on_return in added:
            self.add(kind, on_stop, on_failure, on_return)
        # One that stays, so that the group does not end before the rules have had their turn.
        self.add("event", "obey", "stop", "continue")
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

    def make(self, what: str, name: str, on_stop: str) -> Plain | ByEvent:
        if what == "event":
            return ByEvent(name, self.trace)
        return (Plain if what == "plain" else Full)(name, self.trace, on_stop)

    def prepare(self, service: Scripted, script: str) -> ReadyWhen | None:
        """Tell it what it is to do first; when it is ready."""
        tell = service.in_start.tell
        if script == "raises":
            tell(fail_with(ValueError(service.name)))
        if script == "returns":
            tell("leave")
        if script not in ("announced", "late", "unready"):
            return None
        assert isinstance(service, Managed)
        if script != "late":
            tell(service.mark_ready)
        if script == "unready":
            tell(service.mark_not_ready)
        return "announced"

    def enlist(self, service: Scripted, place: tuple[int, ...], on_failure: OnFailure) -> None:
        """It was added."""
        self.services.append(service)
        self.places[service.name] = place
        self.on_failure[service.name] = on_failure
        if hasattr(self, "thread") and not self.is_over():
            self.settle()

    @rule(kind=KIND, on_stop=ON_STOP, on_failure=ON_FAILURE, on_return=ON_RETURN)
    def add(self, kind: str, on_stop: str, on_failure: OnFailure, on_return: OnReturn) -> None:
        what, _, script = kind.partition(" ")
        service = self.make(what, f"s{len(self.services)}", on_stop)
        ready_when = self.prepare(service, script)
        try:
            self.group.add(
                service, ready_when=ready_when, on_failure=on_failure, on_return=on_return
            )
        except GroupStoppingError:
            assert self.group.state in (GroupState.DRAINING, GroupState.STOPPING)
            return
        if RESTART in (on_failure, on_return):
            self.restarted.add(service.name)
        self.enlist(service, (len(self.services),), on_failure)

    @rule(pick=PICK, what=st.sampled_from(["ready", "not_ready", "leave", "raise"]))
    def tell(self, pick: int, what: str) -> None:
        """One of the services that waits in its start() does something by itself."""
        waiting = [
            one for one in self.services if one.in_start.listens and not isinstance(one, ByEvent)
        ]
        if not waiting or self.is_over():
            return
        service = waiting[pick % len(waiting)]
        if what == "leave":
            service.in_start.tell("leave")
        elif what == "raise":
            service.in_start.tell(fail_with(ValueError(service.name)))
        elif isinstance(service, Managed):
            service.in_start.tell(service.mark_ready if what == "ready" else service.mark_not_ready)
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 3.0, 4.5, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.let_pass(seconds)
        self.settle()

    def let_pass(self, seconds: float) -> None:
        """All at once: as where the machine was suspended."""
        self.clock.advance(seconds)

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
            self.thread.join(30)
            assert not self.thread.is_alive()
            self.check()
        finally:
            for service in self.services:
                service.free()

    def check(self) -> None:
        statuses = {status.name: status for status in with_parts(self.group.status())}
        abandoned = {name for name, status in statuses.items() if status.state is State.ABANDONED}
        for name in abandoned:  # asked so late that the group did not wait for the stop to begin
            wait_until(partial(self.trace.__contains__, ("stop", name)), f"stop of {name}")
        trace = tuple(self.trace)
        noted = {name: [what for what, who in trace if who == name] for name in self.places}
        for name, seen in noted.items():
            if len(self.places[name]) == 1:
                self.check_runs(name, seen, statuses[name])
            elif not self.whole(name) & abandoned:
                self.check_part(name, seen, noted)
        # LIFO, unless order was given up.
        if not (self.at_once or self.group._run._at_once or abandoned):
            firm = [
                name
                for name, place in self.places.items()
                if len(place) == 1 and name not in self.restarted
            ]
            stops = [who for what, who in trace if what == "stop" and who in firm]
            assert stops == sorted(stops, key=lambda name: self.places[name], reverse=True)
            for at, (what, who) in enumerate(trace):
                # Those that are stopped to be restarted are so at any time.
                if what == "stop" and not ({who} | self.whole(who)) & self.restarted:
                    self.check_later_ones(who, trace[:at])
        self.check_outcome(noted, abandoned, statuses)

    def whole(self, name: str) -> set[str]:
        """What it is a part of."""
        return {one.name for one in self.services if name.startswith(f"{one.name}/")}

    def check_runs(self, name: str, seen: list[str], status: ServiceStatus) -> None:
        """One stop for each start."""
        if not seen:
            assert status.state is State.NEW
            return
        runs = runs_of(seen)
        assert len(runs) == 1 + status.restarts
        assert len(runs) == 1 or name in self.restarted
        for number, run in enumerate(runs, 1):
            if (name, number) in self.never_stopped:
                assert "stop" not in run, f"{name} raised and was stopped all the same"
            elif "raised" in run:
                assert run.count("stop") <= 1  # it may have been handed over before
            else:
                assert run.count("stop") == 1, f"{name}: {run}"

    def check_part(self, name: str, seen: list[str], noted: dict[str, list[str]]) -> None:
        """It sees at most one stop, and one unless it ended by itself."""
        (whole,) = self.whole(name)
        runs = runs_of(seen)
        assert len(runs) <= noted[whole].count("start")
        for run in runs:
            assert run[-1] in ("returned", "raised", "stopped"), f"{name}: {run}"
            assert run.count("stop") <= 1, f"{name}: {run}"

    def check_later_ones(self, who: str, before: Sequence[tuple[str, str]]) -> None:
        """Each is asked only when all that come after it have ended."""
        place, whole = self.places[who], self.whole(who)
        by_itself = any(("stop", name) not in before for name in whole)
        for later, where in self.places.items():
            apart = place[: len(where)] != where and where[: len(place)] != place
            if by_itself:  # it is no matter of those outside
                apart = apart and self.whole(later) == whole
            seen = [what for what, name in before if name == later]
            if where > place and apart and seen:
                ended = {"returned", "raised"} & set(runs_of(seen)[-1])
                assert ended, f"{who} was asked while {later} still ran"

    def check_outcome(
        self,
        noted: dict[str, list[str]],
        abandoned: set[str],
        statuses: dict[str, ServiceStatus],
    ) -> None:
        error = self.raised[0] if self.raised else None
        assert error is None or isinstance(error, ServiceGroupError), repr(error)
        failures = error.exceptions if error is not None else ()
        named = set(named_in(failures))
        # What is kept of one that the group goes on without.
        kept = {
            name
            for status in self.group.status()
            if status.error
            for name in named_in([status.error])
        }
        for service in self.services:
            name, seen = service.name, noted[service.name]
            whole = self.whole(name)
            if whole & (abandoned | self.restarted):
                continue
            if name in abandoned:
                assert name in named | (kept if whole else set())
            elif name in self.restarted:
                continue  # restarted, or a RestartLimitError; tests/test_restart.py tells which
            elif "raised" in seen or ("stop" in seen and "stopped" not in seen):
                assert statuses[name].error is not None
                goes_on = self.on_failure[name] == "continue" and "stop" not in seen
                if whole:
                    assert goes_on or name in named | kept, f"what {name} raised was swallowed"
                else:
                    assert goes_on or name in named, f"what {name} raised was swallowed"
        for failure in failures:
            if isinstance(failure, StopTimeoutError):
                self.check_timeout(failure, abandoned)
        report = self.group._run.report
        assert report is not None
        assert report.exit_code == (1 if failures else 0)

    def check_timeout(self, error: StopTimeoutError, abandoned: set[str]) -> None:
        assert error.service in abandoned


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
