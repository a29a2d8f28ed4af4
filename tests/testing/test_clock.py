from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from attrs import frozen

from servicegroup import (
    AsyncService,
    GroupRunningError,
    Periodic,
    Restart,
    Service,
    ServiceGroup,
    ServiceGroupError,
    StartTimeoutError,
    State,
    StopTimeoutError,
    events,
    with_start,
)
from servicegroup.testing import Fails, FakeClock, Hangs, NeverReady, Runs
from servicegroup.testing import _clock as module
from tests.observe.test_health import PATIENCE, wait_for

NIGHT = datetime(2024, 5, 6, 2, 0, tzinfo=UTC)


def state_of(group: ServiceGroup, number: int = 0) -> State:
    return group.status()[number].state


def on_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_time_passes_only_when_it_is_told_to() -> None:
    clock = FakeClock(NIGHT)
    began = clock.monotonic()
    assert clock.time() == NIGHT.timestamp()
    clock.advance(90.0, sleepers=0)
    assert clock.monotonic() - began == 90.0
    assert clock.time() == NIGHT.timestamp() + 90.0


def test_a_sleep_ends_when_its_time_has_come(fake_clock: FakeClock) -> None:
    thread = on_thread(lambda: fake_clock.sleep(5.0))
    fake_clock.advance(4.0)
    wait_for(lambda: [left for _, left in fake_clock.sleepers] == [1.0])
    fake_clock.advance(1.0)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert fake_clock.sleepers == ()


def test_one_that_was_woken_does_not_count_as_asleep(fake_clock: FakeClock) -> None:
    woken: list[float] = []

    def work() -> None:
        for _ in range(200):
            fake_clock.sleep(1.0)
            woken.append(fake_clock.monotonic())

    thread = on_thread(work)
    began = fake_clock.monotonic()
    for _ in range(200):
        fake_clock.advance(1.0)
    thread.join(PATIENCE)
    assert woken == [began + number for number in range(1, 201)]


def test_an_event_wakes_before_its_time(fake_clock: FakeClock) -> None:
    event = fake_clock.event()
    found: list[bool] = []
    thread = on_thread(lambda: found.append(event.wait(5.0)))
    wait_for(lambda: fake_clock.sleepers)
    event.set()
    assert fake_clock.sleepers == ()
    thread.join(PATIENCE)
    assert found == [True]
    assert event.wait()
    event.clear()
    assert not event.wait(0.0)


def test_who_was_to_sleep_and_does_not_is_told(
    fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    with pytest.raises(AssertionError, match="1 threads were to sleep by this clock; asleep: none"):
        fake_clock.advance(1.0)
    event = fake_clock.event()
    thread = on_thread(lambda: event.wait(5.0))
    wait_for(lambda: fake_clock.sleepers)
    with pytest.raises(AssertionError, match=f"asleep: {thread.name.replace('(', '.')[:8]}"):
        fake_clock.advance(1.0, sleepers=2)
    event.set()
    thread.join(PATIENCE)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_time_passes_forward(fake_clock: FakeClock, seconds: float) -> None:
    with pytest.raises(ValueError, match="time passes forward"):
        fake_clock.advance(seconds)


def test_a_time_of_day_without_a_timezone_is_refused() -> None:
    with pytest.raises(ValueError, match="no timezone: add tzinfo=UTC"):
        FakeClock(datetime(2000, 1, 1))


# -- what goes by it ------------------------------------------------------------------------------


def test_a_periodic_keeps_to_it(fake_clock: FakeClock) -> None:
    runs: list[float] = []
    began = fake_clock.monotonic()
    group = ServiceGroup()
    group.add(Periodic(lambda: runs.append(fake_clock.monotonic()), every=3600.0, first="after"))
    fake_clock.control(group)
    with group:
        for number in range(1, 4):
            fake_clock.advance(3600.0)
            wait_for(lambda number=number: len(runs) == number)  # type: ignore[misc]
    assert runs == [began + 3600.0 * number for number in range(1, 4)]


def test_a_periodic_with_a_cron_expression_keeps_to_its_time_of_day() -> None:
    clock = FakeClock(NIGHT)
    runs: list[float] = []
    group = ServiceGroup()
    group.add(Periodic(lambda: runs.append(clock.time()), cron="0 3 * * *"))
    clock.control(group)
    with group:
        clock.advance(1800.0)
        clock.advance(1799.0)
        clock.advance(1.0)
        wait_for(lambda: runs)
    assert runs == [NIGHT.timestamp() + 3600.0]


class Poller(Service):
    def __init__(self) -> None:
        self.polls = 0

    def start(self) -> None:
        while self.sleep(5.0):
            self.polls += 1


@frozen
class Frozen(Service):
    polls: list[int]

    def start(self) -> None:
        while self.sleep(5.0):
            self.polls.append(1)


def test_the_sleep_of_services_goes_by_it(fake_clock: FakeClock) -> None:
    polls: list[int] = []
    group = ServiceGroup()
    poller = group.add(Poller())
    inner = ServiceGroup(name="inner")
    inner.add(Frozen(polls))
    inner.add(with_start(lambda stopping: stopping.wait(5.0)), name="function")
    group.add(inner)
    fake_clock.control(group)
    with group:
        fake_clock.advance(5.0, sleepers=3)
        fake_clock.advance(5.0, sleepers=2)
        wait_for(lambda: (poller.polls, len(polls)) == (2, 2))
        wait_for(lambda: group.status()[1].parts[1].state is State.FINISHED)


def test_one_service_can_be_run_without_a_group(fake_clock: FakeClock) -> None:
    poller = Poller()
    fake_clock.control(poller)
    thread = on_thread(poller.start)
    fake_clock.advance(5.0)
    wait_for(lambda: poller.polls == 1)
    poller.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_deadlines_of_a_group_go_by_it(fake_clock: FakeClock) -> None:
    group = ServiceGroup(stop_timeout=100.0, shutdown_timeout=1000.0)
    group.add(Runs())
    group.add(Hangs(in_stop=True))
    fake_clock.control(group)

    def stop() -> None:
        group.stop()
        fake_clock.advance(99.0)
        assert state_of(group, 1) is State.STOPPING
        fake_clock.advance(1.0)

    with pytest.raises(ServiceGroupError) as caught, group:
        stop()
    (error,) = caught.value.exceptions
    assert isinstance(error, StopTimeoutError)
    assert error.seconds == 100.0
    assert state_of(group) is State.STOPPED


def test_the_time_to_start_goes_by_it(fake_clock: FakeClock) -> None:
    group = ServiceGroup(start_timeout=100.0)
    group.add(NeverReady())
    fake_clock.control(group)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            group.start()
        except ServiceGroupError as error:
            failures.extend(error.exceptions)

    thread = on_thread(start)
    fake_clock.advance(100.0)
    thread.join(PATIENCE)
    assert [type(error) for error in failures] == [StartTimeoutError]


def test_the_drain_delay_goes_by_it(fake_clock: FakeClock) -> None:
    group = ServiceGroup(drain_delay=20.0)
    group.add(Runs())
    fake_clock.control(group)
    with group:
        group.stop()
        fake_clock.advance(19.0)
        assert state_of(group) is State.RUNNING
        fake_clock.advance(1.0)
        group.wait(PATIENCE)


def test_the_pauses_of_a_restart_and_each_later_run_go_by_it(fake_clock: FakeClock) -> None:
    policy = Restart(delay=10.0, factor=2.0, jitter=0.0, max_restarts=2, within=1000.0)
    group = ServiceGroup(on_failure=policy)
    group.add(Fails(after=1.0))
    pauses: list[float] = []

    def note(event: events.Event) -> None:
        if isinstance(event, events.ServiceRestarting):
            pauses.append(event.seconds)

    group.subscribe(note)
    fake_clock.control(group)

    def wait() -> None:
        for seconds in (1.0, 10.0, 1.0, 20.0, 1.0):
            fake_clock.advance(seconds)
        group.wait(PATIENCE)

    for runs in (1, 2):
        with pytest.raises(ServiceGroupError), group:
            wait()
        wait_for(lambda runs=runs: len(pauses) >= 2 * runs)  # type: ignore[misc]
    assert pauses == [10.0, 20.0] * 2


class Silent(Service):
    heartbeat_timeout = 30.0

    def start(self) -> None:
        self.stopping.wait()


def test_heartbeats_go_by_it(fake_clock: FakeClock) -> None:
    group = ServiceGroup()
    group.add(Silent())
    fake_clock.control(group)
    with group:
        fake_clock.advance(29.0)
        assert not group.status()[0].stalled
        fake_clock.advance(1.0)
        wait_for(lambda: group.status()[0].stalled)


# -- what does not --------------------------------------------------------------------------------


class Coroutine(AsyncService):
    async def run(self) -> None:
        await self.stopping.wait()


def test_what_has_a_time_of_its_own_is_refused(fake_clock: FakeClock) -> None:
    with pytest.raises(TypeError, match=r"Coroutine .* keeps a time of its own"):
        fake_clock.control(Coroutine())
    group = ServiceGroup()
    group.add(Coroutine())
    fake_clock.control(group)
    with group:
        pass


def test_a_group_that_runs_is_refused(fake_clock: FakeClock) -> None:
    group = ServiceGroup()
    group.add(Runs())
    with group, pytest.raises(GroupRunningError, match=r"control\(\) it before it starts"):
        fake_clock.control(group)
