"""Startup, liveness and readiness of a group."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from servicegroup import AsyncGroup, AsyncService, Service, ServiceGroup, with_start
from servicegroup.observe.health import Health, Verdict
from servicegroup.testing import wait_until

PATIENCE = 30.0


wait_for = partial(wait_until, timeout=PATIENCE)


@contextmanager
def started(group: ServiceGroup) -> Iterator[threading.Thread]:
    """It was started, and is ready or not; stopped at the end."""

    def start() -> None:
        try:
            group.start()
        except BaseExceptionGroup:
            pass

    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield thread
    finally:
        group.stop()
        thread.join(PATIENCE)


def reasons(verdict: Verdict) -> dict[str, str]:
    return {one.service: one.reason for one in verdict.findings if one.reason}


class Announces(Service):
    ready_when = "announced"

    def __init__(self, name: str = "api") -> None:
        self.name = name
        self.go = threading.Event()

    def start(self) -> None:
        self.go.wait()
        self.mark_ready()
        self.stopping.wait()

    def stop(self) -> None:
        self.go.set()
        self.stopping.set()


class Checked(Service):
    def __init__(self) -> None:
        self.checks = 0
        self.error: BaseException | None = None
        self.hangs: threading.Event | None = None

    def start(self) -> None:
        self.stopping.wait()

    def check(self) -> None:
        self.checks += 1
        if self.hangs is not None:
            self.hangs.wait()
        if self.error is not None:
            raise self.error


def test_before_the_start_it_is_alive_and_neither_started_nor_ready() -> None:
    group = ServiceGroup()
    group.add(Announces())
    health = Health(group)
    assert health.liveness().ok
    assert not health.startup().ok
    assert not health.readiness().ok
    assert reasons(health.startup()) == {"": "it is new", "api": "it is new"}


def test_it_is_started_and_ready_once_all_are_ready() -> None:
    group = ServiceGroup()
    api = group.add(Announces())
    health = Health(group)
    with started(group):
        wait_for(lambda: group.status()[0].state.value == "starting")
        assert not health.startup().ok
        assert reasons(health.readiness()) == {
            "": "it is starting",
            "api": "it is starting, and not ready",
        }
        assert health.liveness().ok
        api.go.set()
        group.wait_ready(PATIENCE)
        assert health.startup().ok
        assert health.readiness().ok
        assert reasons(health.readiness()) == {}
        api.mark_not_ready()
        wait_for(lambda: not group.is_ready)
        assert health.startup().ok
        assert reasons(health.readiness()) == {"api": "it is running, and not ready"}
        assert health.liveness().ok


def test_from_the_first_moment_of_the_drain_it_is_not_ready_and_alive_to_the_end() -> None:
    group = ServiceGroup(drain_delay=3600.0, shutdown_timeout=7200.0)
    group.add(with_start(lambda stopping: stopping.wait()), name="api")
    health = Health(group)
    with started(group):
        group.wait_ready(PATIENCE)
        group.stop()
        wait_for(lambda: group.state.value == "draining")
        assert reasons(health.readiness()) == {"": "it is draining"}
        assert health.liveness().ok
        assert health.startup().ok
        group._run.post(group._run.on_stop, "now", True)  # as Ctrl-C: no delay


def test_one_that_is_stalled_or_abandoned_is_not_alive() -> None:
    release = threading.Event()

    class Silent(Service):
        heartbeat_timeout = 0.01

        def start(self) -> None:
            release.wait()

    group = ServiceGroup(stop_timeout=0.1)
    group.add(Silent())
    inner = ServiceGroup(name="inner")
    inner.add(with_start(lambda stopping: stopping.wait()), name="api")
    group.add(inner)
    health = Health(group)
    with started(group) as thread:
        group.wait_ready(PATIENCE)
        wait_for(lambda: not health.liveness().ok)
        assert reasons(health.liveness()) == {"Silent": "it is stalled: no heartbeat for too long"}
        group.stop()
        thread.join(PATIENCE)
        assert reasons(health.liveness())["Silent"] == "it did not stop, and was left behind"
        assert not health.liveness().ok
    release.set()


def test_a_check_that_raises_or_hangs_makes_it_unready_and_not_dead() -> None:
    group = ServiceGroup()
    service = group.add(Checked())
    health = Health(group, check_timeout=PATIENCE, cache=0.0)
    hasty = Health(group, check_timeout=0.05, cache=0.0)
    with group:
        assert health.readiness().ok
        service.error = ConnectionError("no database")
        assert reasons(health.readiness()) == {
            "Checked": "its check failed: ConnectionError: no database"
        }
        assert health.liveness().ok
        service.error, service.hangs = None, threading.Event()
        calls = service.checks
        said: list[str] = []

        def hangs() -> bool:
            said.append(reasons(hasty.readiness())["Checked"])
            return "waiter.acquire()" in said[-1] or "hangs.wait()" in said[-1]

        wait_for(hangs)
        assert all(re.match(r"its check has not ended after \d+\.\d s: ", one) for one in said)
        assert not hasty.readiness().ok
        assert service.checks == calls + 1  # not one more beside the one that hangs
        service.hangs.set()
        wait_for(lambda: hasty.readiness().ok)


def test_checks_are_cached_whoever_asks() -> None:
    group = ServiceGroup()
    service = group.add(Checked())
    health = Health(group, check_timeout=PATIENCE, cache=3600.0)
    with group:
        for _ in range(100):
            assert health.readiness().ok
    assert service.checks == 1


def test_services_of_nested_groups_are_checked_too() -> None:
    class Deep(AsyncService):
        async def run(self) -> None:
            await self.stopping.wait()

        def check(self) -> None:
            raise ValueError("deep down")

    group = ServiceGroup()
    inner = group.add(ServiceGroup(name="inner"))
    inner.add(Checked()).error = ValueError("no")
    loop = group.add(AsyncGroup(name="loop"))
    loop.add(Deep())
    assert list(group.services) == ["inner", "inner/Checked", "loop", "loop/Deep"]
    with group:
        assert reasons(Health(group, check_timeout=PATIENCE).readiness()) == {
            "inner/Checked": "its check failed: ValueError: no",
            "loop/Deep": "its check failed: ValueError: deep down",
        }


def test_one_that_failed_and_was_gone_on_without_is_told_and_does_not_count() -> None:
    def fail() -> None:
        raise ValueError("gone")

    group = ServiceGroup(on_failure="continue")
    group.add(with_start(fail), name="extra")
    group.add(with_start(lambda stopping: stopping.wait()), name="api")
    health = Health(group)
    with started(group):
        wait_for(lambda: group.status()[0].state.value == "failed")
        group.wait_ready(PATIENCE)
        assert reasons(health.readiness())["extra"] == "it failed: ValueError: gone"
        assert health.readiness().ok


def test_a_verdict_reads_as_text_and_as_json() -> None:
    group = ServiceGroup()
    group.add(with_start(lambda stopping: stopping.wait()), name="api")
    health = Health(group)
    assert str(health.readiness()) == (
        "[-] group: it is new\n[-] api: it is new, and not ready\nreadiness: failed"
    )
    assert health.liveness().to_dict() == {
        "probe": "liveness",
        "ok": True,
        "findings": [{"service": "", "reason": ""}, {"service": "api", "reason": ""}],
    }


@pytest.mark.parametrize("option", ["check_timeout", "cache"])
@pytest.mark.parametrize("value", [-1.0, math.nan, "1"])
def test_what_is_no_number_of_seconds_is_refused(option: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=option):
        Health(ServiceGroup(), **{option: value})
