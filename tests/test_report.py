"""What a report says, as text and as JSON, and what an error carries of it."""

from __future__ import annotations

import json
import pickle
import re
import threading

import attrs
import pytest

from servicegroup import (
    Report,
    Service,
    ServiceGroup,
    ServiceGroupError,
    ServiceStatus,
    StartTimeoutError,
    State,
    StopTimeoutError,
    with_start,
)
from tests.scripted import ByEvent, Full, Trace, fail_with


def status(name: str, start: float, ready: float, stop: float, stopped: float) -> ServiceStatus:
    return ServiceStatus(
        name=name,
        state=State.STOPPED,
        started_at=start,
        seconds_to_ready=ready,
        stopping_at=stop,
        seconds_to_stop=stopped,
    )


REPORT = Report(
    name="app",
    reason="SIGTERM",
    started_at=100.0,
    seconds=9.0,
    exit_code=0,
    services=(
        status("api", 100.0, 1.0, 108.0, 1.0),
        attrs.evolve(
            status("jobs", 101.0, 3.0, 105.0, 3.0),
            state=State.FAILED,
            error=ValueError("no\nway"),
            parts=(ServiceStatus(name="jobs/x", state=State.NEW),),
        ),
    ),
)


def test_the_table_has_a_row_a_service_with_bars_of_start_and_stop() -> None:
    assert str(REPORT).splitlines() == [
        "group 'app' ended after 9.000 s, exit code 0: SIGTERM",
        "  service  state    start                                  stop",
        "  api      stopped     1.000 s |######                  |"
        "     1.000 s |                  ######|",
        "  jobs     failed      3.000 s |      ##################|"
        "     3.000 s |##################      |  ValueError: no",
        "  jobs/x   new      -                                      -",
    ]


def test_an_instant_still_has_a_bar_and_an_empty_group_no_table() -> None:
    instant = attrs.evolve(REPORT, services=(status("a", 100.0, 0.0, 109.0, 0.0),))
    assert str(instant).count("#") == 2
    assert len(str(attrs.evolve(REPORT, services=())).splitlines()) == 1


def test_json_has_all_of_it() -> None:
    data = json.loads(REPORT.to_json(indent=2))
    assert data["exit_code"] == 0
    api, jobs = data["services"]
    assert api == {
        "name": "api",
        "state": "stopped",
        "ready": False,
        "stalled": False,
        "started_at": 100.0,
        "seconds_to_ready": 1.0,
        "stopping_at": 108.0,
        "seconds_to_stop": 1.0,
        "restarts": 0,
        "seconds_since_heartbeat": None,
        "error": None,
        "traceback": None,
        "stack": None,
        "parts": [],
    }
    assert jobs["error"] == "ValueError: no"
    assert jobs["traceback"] == "ValueError: no\nway\n"
    assert jobs["parts"][0]["name"] == "jobs/x"


def test_an_error_that_cannot_be_printed_is_told_all_the_same() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    group = ServiceGroup()
    error = Unprintable()
    group.add(with_start(lambda: fail_with(error)()))
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    assert caught.value.exceptions == (error,)
    assert "Unprintable: its text cannot be had" in caught.value.report.reason


def test_the_text_of_an_error_is_asked_for_by_the_thread_that_raised_it() -> None:
    asked_by: list[str] = []

    class Told(Exception):
        def __str__(self) -> str:
            asked_by.append(threading.current_thread().name)
            return "told"

    class Code:
        def __repr__(self) -> str:
            asked_by.append(threading.current_thread().name)
            raise ValueError("no text")

    class FailsToStop(Service):
        def start(self) -> None:
            self.stopping.wait()

        def stop(self) -> None:
            super().stop()
            raise Told

    group = ServiceGroup(name="app")  # in the main thread, so a thread of its own decides
    group.add(FailsToStop())
    group.add(with_start(lambda: fail_with(Told())()), name="fails", on_failure="continue")

    def leave() -> None:
        group.wait_ready()
        raise SystemExit(Code())

    group.add(with_start(leave), name="leaves")
    with pytest.raises(SystemExit):
        group.start()
    assert {"app/leaves", "app/fails", "app (stopping)"} <= set(asked_by)
    assert "app (deciding)" not in asked_by
    assert group._run.report is not None
    assert group._run.report.reason == "service 'leaves' called sys.exit(...)"


def test_records_are_frozen() -> None:
    for record in (REPORT, REPORT.services[0]):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            record.name = "other"  # type: ignore[misc]


def failed_group() -> ServiceGroupError:
    trace: Trace = []
    group = ServiceGroup(name="app")
    group.add(ByEvent("a", trace))
    bad = group.add(Full("bad", trace))
    group.add(Full("worse", trace, "fail"))
    bad.in_start.tell(lambda: group.wait_ready(30))
    bad.in_start.tell(fail_with(ConnectionError("gone")))
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    return caught.value


def test_a_group_error_holds_the_exceptions_with_notes_and_the_report() -> None:
    error = failed_group()
    first, second = error.exceptions
    assert isinstance(first, ConnectionError)
    assert first.__notes__ == ["in service 'bad', while running"]
    assert second.__notes__ == ["in service 'worse', while stopping"]
    assert error.report.exit_code == 1
    assert [one.state.value for one in error.report.services] == ["stopped", "failed", "failed"]
    assert "group 'app': service 'bad' failed: ConnectionError: gone" in str(error)


def test_what_except_star_takes_keeps_the_report() -> None:
    error = failed_group()
    taken: list[BaseException] = []
    try:
        raise error
    except* ConnectionError as some:
        taken.append(some)
    except* ValueError as rest:
        taken.append(rest)
    assert [len(group.exceptions) for group in taken if isinstance(group, ServiceGroupError)] == [
        1,
        1,
    ]
    assert {id(group.report) for group in taken if isinstance(group, ServiceGroupError)} == {
        id(error.report)
    }


def test_errors_survive_pickling() -> None:
    for timeout in (StartTimeoutError("api", 2.0, "stack"), StopTimeoutError("api", 3.0, "")):
        again = pickle.loads(pickle.dumps(timeout))
        assert type(again) is type(timeout)
        assert vars(again) == vars(timeout)
        assert str(again) == str(timeout)
    error = ServiceGroupError("what", [ValueError("x")], REPORT)
    again = pickle.loads(pickle.dumps(error))
    assert again.report.name == "app"
    assert repr(again) == repr(error)


def test_a_timeout_says_who_how_long_and_where() -> None:
    assert str(StopTimeoutError("api", 2.5, "thread x is at: y\n")) == (
        "service 'api' did not stop within 2.5 s\nthread x is at: y"
    )
    assert str(StartTimeoutError("api", 60.0, "")) == "service 'api' was not ready within 60 s"


def test_status_can_be_read_all_the_while() -> None:
    trace: Trace = []
    group = ServiceGroup()
    group.add(Full("a", trace))
    group.add(ByEvent("b", trace))
    assert [one.state for one in group.status()] == [State.NEW, State.NEW]
    with group:
        assert [one.state for one in group.status()] == [State.RUNNING, State.RUNNING]
        assert all(one.ready and one.started_at for one in group.status())
    report = group.wait()
    told = [one.to_dict() for one in report.services]
    assert [one.to_dict() for one in group.status()] == told
    assert re.search(r"a +stopped", str(report))
