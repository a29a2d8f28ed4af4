from __future__ import annotations

import pytest

from servicegroup import ServiceGroup, ServiceGroupError, StartTimeoutError, State, StopTimeoutError
from servicegroup.testing import Fails, FakeClock, Hangs, NeverReady, Returns, Runs
from tests.observe.test_health import PATIENCE, wait_for


def failure(group: ServiceGroup) -> Exception:
    """The only one."""
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    (error,) = caught.value.exceptions
    return error


def note(error: Exception) -> str:
    return error.__notes__[0]


def test_runs_and_returns() -> None:
    group = ServiceGroup()
    group.add(Runs())
    group.add(Returns())
    with group:
        wait_for(lambda: group.status()[1].state is State.FINISHED)
        assert group.status()[0].state is State.RUNNING
    assert group.report is not None
    assert group.report.exit_code == 0


def test_what_takes_time_takes_it_on_the_clock(fake_clock: FakeClock) -> None:
    group = ServiceGroup(on_failure="continue")
    group.add(Returns(after=5.0))
    group.add(Fails(after=3.0))
    fake_clock.control(group)
    with group:
        fake_clock.advance(2.5, sleepers=2)
        assert [one.state for one in group.status()] == [State.RUNNING, State.RUNNING]
        fake_clock.advance(0.5, sleepers=2)
        wait_for(lambda: group.status()[1].state is State.FAILED)
        fake_clock.advance(2.0)
        wait_for(lambda: group.status()[0].state is State.FINISHED)


def test_a_stop_that_comes_before_the_failure_prevents_it() -> None:
    group = ServiceGroup()
    group.add(Fails(after=3600.0))
    with group:
        pass
    assert group.report is not None
    assert group.report.exit_code == 0


@pytest.mark.parametrize(
    ("service", "phase"),
    [
        (Fails(after=0.001), "while running"),
        (Fails(at_start=True), "while starting"),
        (Fails(at_start=True, after=0.001), "while starting"),
    ],
)
def test_it_fails_when_it_is_told_to(service: Fails, phase: str) -> None:
    group = ServiceGroup()
    group.add(service)
    error = failure(group)
    assert isinstance(error, RuntimeError)
    assert note(error) == f"in service 'Fails', {phase}"


def test_it_fails_in_the_stop_with_the_error_that_was_given() -> None:
    group = ServiceGroup()
    group.add(Fails(in_stop=True, error=ConnectionError("gone")))
    with pytest.raises(ServiceGroupError) as caught, group:
        pass
    (error,) = caught.value.exceptions
    assert isinstance(error, ConnectionError)
    assert note(error) == "in service 'Fails', while stopping"


@pytest.mark.parametrize("options", [{"at_start": True}, {"after": 1.0}])
def test_what_does_not_go_together_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="in_stop=True goes with neither"):
        Fails(in_stop=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Fails, Returns])
@pytest.mark.parametrize("after", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(kind: type[Fails] | type[Returns], after: float) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}.*: after must be 0 or more"):
        kind(after=after)


@pytest.mark.parametrize("service", [NeverReady(), Hangs(at_start=True)])
def test_one_that_is_never_ready_ends_the_start(service: NeverReady | Hangs) -> None:
    hangs = isinstance(service, Hangs)
    group = ServiceGroup(start_timeout=0.05, stop_timeout=0.05 if hangs else PATIENCE)
    group.add(service)
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    if isinstance(service, Hangs):
        service.let_go()  # the plugin does so for one that has begun to hang by now
    assert [type(error) for error in caught.value.exceptions] == [
        StartTimeoutError,
        *([StopTimeoutError] if hangs else []),
    ]


@pytest.mark.parametrize("in_stop", [False, True])
def test_one_that_hangs_is_abandoned_and_can_be_let_go(
    in_stop: bool, fake_clock: FakeClock
) -> None:
    group = ServiceGroup(stop_timeout=5.0)

    def hangs() -> bool:
        stack = group._run._runners[0].take_stack()
        return stack.count("thread ") == stack.count("_free.wait()") == 1 + in_stop

    def stop() -> None:
        group.stop()
        wait_for(hung.stopping.is_set)
        wait_for(hangs)
        fake_clock.advance(5.0)

    with Hangs(in_stop=in_stop) as hung:
        group.add(hung)
        fake_clock.control(group)
        with pytest.raises(ServiceGroupError) as caught, group:
            stop()
        (error,) = caught.value.exceptions
        assert isinstance(error, StopTimeoutError)
        assert error.stack.count("thread ") == 1 + in_stop
        assert "_services.py" in error.stack
    wait_for(lambda: group._run.abandoned() is None)


def test_one_that_was_let_go_does_not_hang() -> None:
    group = ServiceGroup()
    group.add(Hangs(in_stop=True)).let_go()
    assert group.start().exit_code == 0
