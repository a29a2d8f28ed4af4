"""The invariant of tests/test_lifecycle_stateful.py, for all kinds of services in one group."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from servicegroup import GroupStoppingError, ServiceStatus, StopTimeoutError
from servicegroup.service import OnFailure, OnReturn, ReadyWhen
from tests.fake_time import pass_time
from tests.scripted import ByEvent, Plain, is_quiet
from tests.scripted_kinds import Coroutine, Crowd, Member, Scheduled
from tests.scripted_process import Remote
from tests.test_lifecycle_stateful import COMMON, ON_STOP, PICK, Lifecycle, Scripted, runs_of

HOW = st.sampled_from(["looks", "deaf", "slow", "blocks"])
SCRIPT = st.sampled_from(["", "announced", "late", "raises", "returns", "unready"])


class Mixed(Lifecycle):
    """With coroutines, groups of them and schedules."""

    kinds: ClassVar = [
        *Lifecycle.kinds,
        *(f"{how} {script}" for how in ("looks", "deaf") for script in ("", "late", "unready")),
        "looks raises",
        "looks returns",
        "slow",
        "blocks",
        *(f"crowd {script}" for script in ("", "late", "raises", "returns", "unready")),
        "quick",
        "busy",
    ]

    def __init__(self) -> None:
        super().__init__()
        self.crowds: list[Crowd] = []

    def let_pass(self, seconds: float) -> None:
        # Step by step: what comes at the same moment in several loops has no order.
        end = self.clock.time + seconds
        pass_time(self.group, self.clock, lambda: is_quiet(self.group), end)

    def make(self, what: str, name: str, on_stop: str) -> Plain | ByEvent:
        if what in ("looks", "deaf", "slow", "blocks"):
            return Coroutine(name, self.trace, on_stop, what, self.clock)
        if what in ("quick", "busy"):
            every = 11.03 + 0.0017 * len(self.services)  # no two ticks at the same moment
            return Scheduled(name, self.trace, on_stop, what, self.clock, every=every)
        if what == "crowd":
            return Crowd(name, self.trace, on_stop, self.clock)
        return super().make(what, name, on_stop)

    def prepare(self, service: Scripted, script: str) -> ReadyWhen | None:
        if not isinstance(service, Crowd):
            return super().prepare(service, script)
        # One that stays, since without it the crowd would end at once.
        self.join(service, "obey", "looks", "", "stop", "continue")
        self.join(service, service.on_stop, "deaf", script, "continue", "continue")
        return None

    def join(
        self,
        crowd: Crowd,
        on_stop: str,
        how: str,
        script: str,
        on_failure: OnFailure,
        on_return: OnReturn,
    ) -> Member:
        name = f"m{len(crowd.members)}"
        member = Member(f"{crowd.name}/{name}", self.trace, on_stop, how, on_failure)
        crowd.add(
            member,
            name=name,
            ready_when=super().prepare(member, script),
            on_failure=on_failure,
            on_return=on_return,
        )
        crowd.members.append(member)
        return member

    def enlist(self, service: Scripted, place: tuple[int, ...], on_failure: OnFailure) -> None:
        if isinstance(service, Crowd):
            self.crowds.append(service)
            for number, member in enumerate(service.members):
                super().enlist(member, (*place, number), member.failure)
        super().enlist(service, place, on_failure)

    @rule(
        pick=PICK,
        how=HOW,
        script=SCRIPT,
        on_stop=ON_STOP,
        on_failure=st.sampled_from(["stop", "continue"]),
        on_return=st.sampled_from(["continue", "continue", "stop"]),
    )
    def add_member(
        self,
        pick: int,
        how: str,
        script: str,
        on_stop: str,
        on_failure: OnFailure,
        on_return: OnReturn,
    ) -> None:
        if not self.crowds:
            return
        crowd = self.crowds[pick % len(self.crowds)]
        try:
            member = self.join(crowd, on_stop, how, script, on_failure, on_return)
        except GroupStoppingError:
            return
        place = (*self.places[crowd.name], len(crowd.members))
        self.enlist(member, place, on_failure)

    def teardown(self) -> None:
        super().teardown()
        # The threads of those that were abandoned, which go by the clock, too.
        while self.group._run.abandoned() is not None:
            self.clock.advance(50.0)
            time.sleep(0.0005)

    def check_runs(self, name: str, seen: list[str], status: ServiceStatus) -> None:
        super().check_runs(name, [what for what in seen if what not in ("run", "ran")], status)
        for run in runs_of(seen):
            ticks = [what for what in run if what in ("run", "ran", "stop")]
            if "stop" in ticks:
                assert "run" not in ticks[ticks.index("stop") :], f"{name}: {run}"
                ticks.remove("stop")
            assert ticks[::2] == ["run"] * len(ticks[::2])
            assert ticks[1::2] == ["ran"] * len(ticks[1::2])

    def check_timeout(self, error: StopTimeoutError, abandoned: set[str]) -> None:
        """A coroutine that will not end is given up by its own thread."""
        coroutines = {one.name for one in self.services if isinstance(one, Coroutine)}
        assert error.service in abandoned | coroutines


class WithProcesses(Mixed):
    """With child processes, for which time passes as for everybody."""

    kinds: ClassVar = [
        *(f"process{script}" for script in ("", "", "", "-late", "-raises", "-returns")),
        "full late",
        "full announced",
        "looks",
        "crowd ",
        "busy",
    ]

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())

    def make(self, what: str, name: str, on_stop: str) -> Plain | ByEvent:
        kind, _, script = what.partition("-")
        if kind == "process":
            return Remote(name, self.trace, on_stop, script, self.place)
        return super().make(what, name, on_stop)

    @property
    def remotes(self) -> list[Remote]:
        return [one for one in self.services if isinstance(one, Remote)]

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        there = [one for one in self.remotes if one.in_start.listens]
        if there and not self.is_over():
            there[pick % len(there)].kill()
            self.settle()

    def teardown(self) -> None:
        super().teardown()
        assert not any(one.pids for one in self.remotes)
        shutil.rmtree(self.place)

    def check_outcome(
        self, noted: dict[str, list[str]], abandoned: set[str], statuses: dict[str, ServiceStatus]
    ) -> None:
        super().check_outcome(noted, abandoned, statuses)
        for service in self.remotes:
            if service.name not in abandoned:
                self.check_children(service, noted[service.name])

    def check_children(self, service: Remote, seen: list[str]) -> None:
        """One stop for each start, over there too."""
        of_each: dict[str, list[str]] = {}
        for pid, what in service.notes():
            of_each.setdefault(pid, []).append(what)
        assert len(of_each) <= seen.count("start")
        for run in of_each.values():
            assert run.count("start") == 1
            if "returned" in run:
                assert run.count("stop") == 1, f"{service.name}: {run}"
            else:  # it raised, or was killed
                assert run[1:] in ([], ["stop"], ["raised"], ["stop", "raised"])
                assert "raised" in seen

    def check_timeout(self, error: StopTimeoutError, abandoned: set[str]) -> None:
        super().check_timeout(error, abandoned | {one.name for one in self.remotes})


FEW = settings(COMMON, stateful_step_count=6)


def test_coroutines_schedules_and_threads_in_one_group() -> None:
    run_state_machine_as_test(Mixed, settings=settings(COMMON, max_examples=50))


@pytest.mark.slow
def test_the_same_with_a_thousand_examples() -> None:
    run_state_machine_as_test(Mixed, settings=settings(COMMON, max_examples=1000))


def test_child_processes_beside_them() -> None:
    run_state_machine_as_test(WithProcesses, settings=settings(FEW, max_examples=4))


@pytest.mark.slow
def test_the_same_with_a_hundred_examples() -> None:
    run_state_machine_as_test(WithProcesses, settings=settings(FEW, max_examples=100))
