"""Subscribers and the log."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from servicegroup import ServiceGroup, ServiceGroupError, events, with_start
from tests.fake_time import FakeClock, fake_time_group, pass_time, wait_until
from tests.scripted import ByEvent, Full, Trace, fail_with, is_quiet, run_in_thread

ROOT = Path(__file__).resolve().parent.parent


def test_events_carry_both_times_the_group_and_what_is_known() -> None:
    clock = FakeClock()
    group = fake_time_group(clock, name="app", stop_timeout=4.0)
    seen: list[events.Event] = []
    group.subscribe(seen.append)
    service = group.add(Full("a", []), ready_when="announced")
    hung = group.add(Full("hung", [], "ignore"))
    thread, _ = run_in_thread(group)
    wait_until(lambda: is_quiet(group))
    clock.advance(2.0)
    service.in_start.tell(service.mark_ready)
    group.wait_ready(30)
    wait_until(lambda: is_quiet(group))
    service.in_start.tell(fail_with(ValueError("boom")))
    pass_time(group, clock, lambda: is_quiet(group))
    thread.join(30)
    hung.free()
    wait_until(lambda: isinstance(seen[-1], events.GroupStopped))
    assert {event.group for event in seen} == {"app"}
    assert all(event.time - event.monotonic == seen[0].time - 1000.0 for event in seen)
    ready = next(event for event in seen if isinstance(event, events.ServiceReady))
    assert (ready.service, ready.seconds, ready.monotonic) == ("a", 2.0, 1002.0)
    failed = next(event for event in seen if isinstance(event, events.ServiceFailed))
    assert (failed.service, str(failed.error), failed.phase) == ("a", "boom", "while running")
    abandoned = next(event for event in seen if isinstance(event, events.ServiceAbandoned))
    assert (abandoned.service, abandoned.seconds) == ("hung", 4.0)
    assert "in work" in abandoned.stack
    last = seen[-1]
    assert isinstance(last, events.GroupStopped)
    assert last.seconds == 6.0
    assert last.reason == "service 'a' failed: ValueError: boom"


def test_one_that_raises_or_is_slow_disturbs_neither_services_nor_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = ServiceGroup()
    gate = threading.Event()
    seen: list[str] = []

    def slow(event: events.Event) -> None:
        gate.wait(30)

    def broken(event: events.Event) -> None:
        raise SystemExit("not from here")

    for subscriber in (slow, broken):
        group.subscribe(subscriber)
    group.subscribe(lambda event: seen.append(type(event).__name__))
    group.add(ByEvent("a", []))
    with group:
        assert group.is_ready
        assert seen == []
        gate.set()
    wait_until(lambda: seen[-1:] == ["GroupStopped"])
    assert seen[0] == "GroupStarting"
    assert any("broken" in record.getMessage() for record in caplog.records)


def test_one_that_hangs_holds_the_end_for_a_second_at_most() -> None:
    group = ServiceGroup()
    gate = threading.Event()
    waits: list[bool] = []
    group.subscribe(lambda event: waits.append(gate.wait(30)))
    group.add(ByEvent("a", []))
    with group:
        pass
    assert waits == []  # it hangs still
    gate.set()


def test_who_subscribes_late_gets_what_comes_then_and_may_stop_the_group() -> None:
    group = ServiceGroup()
    seen: list[str] = []
    service = group.add(Full("a", []))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)

    def stop_when_not_ready(event: events.Event) -> None:
        seen.append(type(event).__name__)
        if isinstance(event, events.ServiceNotReady):
            group.stop("the subscriber says so")

    group.subscribe(stop_when_not_ready)
    service.in_start.tell(service.mark_not_ready)
    thread.join(30)
    assert raised == []
    assert group.wait().reason == "the subscriber says so"
    assert "ServiceNotReady" in seen


def test_a_log_that_raises_keeps_no_event_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError("no space left on device")

    log = logging.getLogger("servicegroup")
    monkeypatch.setattr(log, "handlers", [Broken()])
    monkeypatch.setattr(log, "propagate", False)
    seen: list[str] = []
    group = ServiceGroup()
    group.subscribe(lambda event: seen.append(type(event).__name__))
    bad = group.add(ByEvent("bad", []))
    bad.start = fail_with(ValueError("boom"))  # type: ignore[method-assign]
    with pytest.raises(ServiceGroupError):
        group.start()
    wait_until(lambda: seen[-1:] == ["GroupStopped"])
    assert "ServiceFailed" in seen


def test_routine_events_are_not_even_made_when_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[type[events.Event]] = []
    group = ServiceGroup()
    emit = group._run._emit

    def note(event: events.Event) -> None:
        made.append(type(event))
        emit(event)

    monkeypatch.setattr(group._run, "_emit", note)
    monkeypatch.setattr(logging.getLogger("servicegroup"), "level", logging.WARNING)
    group.add(ByEvent("a", []))
    with group:
        pass
    assert made
    assert all(issubclass(kind, events.GroupEvent) for kind in made)


def test_the_log_tells_each_event_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="servicegroup")
    group = ServiceGroup(name="app")
    service = group.add(Full("api", []))
    service.in_start.tell(lambda: group.wait_ready(30))
    service.in_start.tell(fail_with(ValueError("boom")))
    with pytest.raises(ServiceGroupError):
        group.start()
    wait_until(lambda: caplog.records[-1].__dict__["event"] == "GroupStopped")
    lines = {record.__dict__["event"]: record for record in caplog.records}
    assert lines["ServiceStarting"].levelno == logging.DEBUG
    assert lines["ServiceReady"].levelno == logging.INFO
    ready = r"app: api: ready after \d+\.\d{3} s"
    assert re.fullmatch(ready, lines["ServiceReady"].getMessage())
    failed = lines["ServiceFailed"]
    assert failed.levelno == logging.ERROR
    assert failed.getMessage() == "app: api: failed while running: ValueError('boom')"
    assert failed.exc_info is not None
    assert failed.exc_info[1] is failed.__dict__["error"]
    fields = failed.__dict__
    assert (fields["group"], fields["service"], fields["phase"]) == ("app", "api", "while running")
    assert "stack" not in fields  # what is not known of an event is not there
    assert lines["GroupStopped"].__dict__["reason"].startswith("service 'api' failed")


def test_an_event_the_log_does_not_know_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    from servicegroup import _log

    caplog.set_level(logging.DEBUG, logger="servicegroup")
    _log.write(events.Event(group="app", time=1.0, monotonic=1.0))
    assert caplog.messages == ["app: Event"]


def test_a_group_whose_services_all_return_at_once_is_told_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = fake_time_group(FakeClock(), name="app")
    group.add(with_start(lambda: None))
    group.start()
    wait_until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert 'ready_when="returned"' in record.getMessage()


def test_a_group_that_took_longer_is_not(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    trace: Trace = []
    group = fake_time_group(clock)
    service = group.add(Full("a", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    wait_until(lambda: is_quiet(group))
    clock.advance(2.0)
    service.in_start.tell("leave")
    thread.join(30)
    assert caplog.records == []
    ServiceGroup().start()  # nor an empty one
    assert caplog.records == []


WITHOUT_LOGGING = """
import sys

from servicegroup import ServiceGroup, ServiceGroupError, _run, with_start

_run.FLUSH_SECONDS = 30.0  # the log is written on a thread of its own
group = ServiceGroup(name="app")
group.add(with_start(lambda stopping: stopping.wait()), name="waits")
with group:
    pass
print("logging" in sys.modules)
group.add(with_start(lambda: 1 / 0), name="fails")
try:
    group.start()
except ServiceGroupError:
    print("logging" in sys.modules)
"""


def test_a_program_that_does_not_use_logging_is_told_of_failures_and_spared_the_rest() -> None:
    command = [sys.executable, "-c", WITHOUT_LOGGING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\nTrue\n"
    assert done.stderr.startswith("app: fails: failed while running: ZeroDivisionError(")
