"""A group from its start to its end, with time standing still where time matters."""

from __future__ import annotations

import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from servicegroup import (
    GroupRunningError,
    GroupState,
    GroupStoppingError,
    Service,
    ServiceGroup,
    ServiceGroupError,
    State,
    StopTimeoutError,
    events,
    with_start,
)
from servicegroup._runner import Runner
from tests.fake_time import FakeClock, fake_time_group, mailbox_of, wait_until
from tests.scripted import (
    ByEvent,
    Drained,
    Full,
    Plain,
    Trace,
    end,
    fail_with,
    is_quiet,
    run_in_thread,
    settle,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def trace() -> Trace:
    return []


def stops(trace: Trace) -> list[str]:
    return [who for what, who in trace if what == "stop"]


# -- starting --------------------------------------------------------------------------------------


def test_the_next_one_starts_when_the_one_before_is_ready(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    first = group.add(Full("first", trace), ready_when="announced")
    group.add(Full("second", trace))
    thread, _ = run_in_thread(group)
    settle(group)
    assert trace == [("start", "first")]
    assert group.state is GroupState.STARTING
    first.in_start.tell(first.mark_ready)
    group.wait_ready(30)
    settle(group)
    assert trace == [("start", "first"), ("start", "second")]
    group.stop()
    end(group, clock, thread)


def test_start_concurrently_waits_for_none(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, start_concurrently=True)
    first = group.add(Full("first", trace), ready_when="announced")
    group.add(Full("second", trace))
    thread, _ = run_in_thread(group)
    settle(group)
    assert ("start", "second") in trace
    assert not group.is_ready
    first.in_start.tell(first.mark_ready)
    group.wait_ready(30)
    group.stop()
    end(group, clock, thread)


def test_a_returned_service_is_up_once_its_start_returned(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    pool = group.add(Full("pool", trace), ready_when="returned")
    group.add(Full("api", trace))
    thread, _ = run_in_thread(group)
    pool.in_start.tell(pool.mark_ready)  # too early to count
    settle(group)
    assert ("start", "api") not in trace
    pool.in_start.tell("leave")
    group.wait_ready(30)
    settle(group)
    assert group.status()[0].state is State.RUNNING
    pool.mark_not_ready()  # from any thread
    wait_until(lambda: not group.is_ready)
    pool.mark_ready()
    group.wait_ready(30)
    group.stop()
    end(group, clock, thread)
    assert stops(trace) == ["api", "pool"]
    assert group.status()[0].state is State.STOPPED


def test_a_returned_service_that_must_work_keeps_the_group(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    pool = group.add(Full("pool", trace), ready_when="returned", daemon=False)
    pool.in_start.tell("leave")
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    assert group.state is GroupState.RUNNING
    group.stop()
    end(group, clock, thread)


def test_a_stop_during_the_start_skips_the_rest(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    group.add(Full("a", trace))
    group.add(Full("b", trace), ready_when="announced")
    group.add(Full("c", trace))
    thread, raised = run_in_thread(group)
    settle(group)
    group.stop("enough")
    end(group, clock, thread)
    assert raised == []
    assert stops(trace) == ["b", "a"]
    assert [status.state for status in group.status()] == [State.STOPPED, State.STOPPED, State.NEW]
    assert group.wait().reason == "enough"


def test_a_stop_that_comes_before_start_is_entered_keeps_it_from_being_called(
    monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    group = ServiceGroup()
    service = group.add(Full("a", trace))
    run = group._run
    claim = Runner.claim

    def claim_late(runner: Runner) -> bool:
        if threading.current_thread().name == "group/a":
            wait_until(lambda: runner.settled)
        return claim(runner)

    monkeypatch.setattr(Runner, "claim", claim_late)
    thread, raised = run_in_thread(group)
    wait_until(lambda: run._runners and run._runners[0].thread)
    group.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert (trace, raised) == ([], [])
    assert not service.stopping.is_set()
    assert group.status()[0].state is State.NEW


def test_a_service_for_which_there_is_no_thread_has_failed(
    monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    group = ServiceGroup()
    group.add(ByEvent("first", trace))
    group.add(ByEvent("second", trace))
    launch = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "group/second":
            wait_until(lambda: trace)  # or the first would be stopped before it has begun
            raise RuntimeError("can't start new thread")
        launch(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    (error,) = caught.value.exceptions
    assert str(error) == "can't start new thread"
    assert error.__notes__ == ["in service 'second', while starting"]
    assert stops(trace) == ["first"]


def test_a_group_for_which_there_is_no_thread_starts_nothing_and_can_be_started_later(
    monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    group = ServiceGroup()
    group.add(ByEvent("only", trace))
    launch = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        group.start()
    with pytest.raises(RuntimeError, match="can't start new thread"), group:
        pass
    monkeypatch.setattr(threading.Thread, "start", launch)
    assert trace == []
    with group:
        assert group.is_ready


# -- running ---------------------------------------------------------------------------------------


def test_the_group_ends_when_all_but_daemons_have_finished(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    group.add(Full("admin", trace), daemon=True)
    first = group.add(Full("first", trace))
    second = group.add(Full("second", trace))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    first.in_start.tell("leave")
    settle(group)
    assert group.state is GroupState.RUNNING
    assert group.status()[1].state is State.FINISHED
    second.in_start.tell("leave")
    end(group, clock, thread)
    assert raised == []
    assert stops(trace) == ["second", "first", "admin"]
    assert group.wait().reason == "all services have finished"


def test_a_group_of_daemons_runs_until_it_is_stopped(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    only = group.add(Full("only", trace), daemon=True)
    thread, _ = run_in_thread(group)
    only.in_start.tell("leave")
    wait_until(lambda: group.status()[0].state is State.FINISHED)
    settle(group)
    assert group.state is GroupState.RUNNING
    group.stop()
    end(group, clock, thread)


def test_an_empty_group_starts_and_returns_at_once() -> None:
    report = ServiceGroup().start()
    assert (report.exit_code, report.services) == (0, ())


def test_on_return_stop_stops_the_group(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, on_return="stop")
    group.add(Full("a", trace))
    job = group.add(Full("job", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    job.in_start.tell("leave")
    end(group, clock, thread)
    assert group.wait().reason == "service 'job' returned"
    assert stops(trace) == ["job", "a"]


def test_a_service_added_to_a_running_group_is_started_once(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    group.add(Full("a", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    late = group.add(Full("late", trace), ready_when="announced")
    settle(group)
    assert not group.is_ready
    group.add(Full("later", trace))  # started now, ready or not
    wait_until(lambda: ("start", "later") in trace)
    late.in_start.tell(late.mark_ready)
    group.wait_ready(30)
    group.stop()
    end(group, clock, thread)
    assert [who for what, who in trace if what == "start"] == ["a", "late", "later"]
    assert stops(trace) == ["later", "late", "a"]


def test_a_hundred_services_added_from_ten_threads_during_the_start_run_once_each(
    trace: Trace,
) -> None:
    group = ServiceGroup()
    gate = group.add(Full("gate", trace), ready_when="announced")
    thread, raised = run_in_thread(group)

    def add_ten(number: int) -> None:
        for i in range(10):
            group.add(ByEvent(f"s{number}-{i}", trace))

    adders = [threading.Thread(target=add_ten, args=(n,)) for n in range(10)]
    for adder in adders[:5]:
        adder.start()
    gate.in_start.tell(gate.mark_ready)
    for adder in adders[5:]:
        adder.start()
    for adder in adders:
        adder.join(30)
    wait_until(lambda: len([1 for what, _ in trace if what == "start"]) == 101)
    group.stop()
    thread.join(30)
    assert raised == []
    started = [who for what, who in trace if what == "start"]
    assert len(set(started)) == 101
    assert sorted(stops(trace)) == sorted(started)


def test_add_to_a_stopping_group_is_refused_and_to_an_ended_one_is_not(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock)
    slow = group.add(Full("slow", trace, "hang"))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    wait_until(lambda: slow.in_stop.parked)
    with pytest.raises(GroupStoppingError, match="'late' comes too late"):
        group.add(Full("late", trace))
    slow.in_start.tell("leave")
    slow.in_stop.tell("leave")
    end(group, clock, thread)
    group.add(ByEvent("next", trace))
    slow.on_stop = "obey"
    with group:
        assert len(group.status()) == 2


def test_readiness_is_lost_and_regained(
    clock: FakeClock, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = fake_time_group(clock)
    seen: list[str] = []
    group.subscribe(lambda event: seen.append(type(event).__name__))
    service = group.add(Full("a", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    emit, at_once = group._run._emit, list[tuple[str, bool]]()

    def spy(event: events.Event, below: str = "") -> None:
        at_once.append((type(event).__name__, group.is_ready))
        emit(event, below)

    monkeypatch.setattr(group._run, "_emit", spy)
    service.in_start.tell(service.mark_not_ready)
    wait_until(lambda: not group.is_ready)
    with pytest.raises(TimeoutError, match="not ready within"):
        group.wait_ready(0)
    service.in_start.tell(service.mark_ready)
    group.wait_ready(30)
    settle(group)
    group.stop()
    end(group, clock, thread)
    wait_until(lambda: seen[-1:] == ["GroupStopped"])
    assert at_once[0] == ("ServiceNotReady", False)  # who hears of it may look
    assert seen == [
        "GroupStarting",
        "ServiceStarting",
        "ServiceReady",
        "GroupReady",
        "ServiceNotReady",
        "ServiceReady",
        "GroupReady",
        "GroupDraining",
        "GroupStopping",
        "ServiceStopping",
        "ServiceStopped",
        "GroupStopped",
    ]


def test_a_finished_service_does_not_keep_the_group_from_being_ready(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock)
    job = group.add(Full("job", trace), ready_when="announced")
    group.add(Full("api", trace))
    thread, _ = run_in_thread(group)
    job.in_start.tell("leave")  # unannounced: was ready, then finished
    group.wait_ready(30)
    settle(group)
    assert group.status()[0].seconds_to_ready is not None
    job.mark_not_ready()  # comes late, and says nothing any more
    job.mark_ready()
    settle(group)
    assert group.is_ready
    group.stop()
    end(group, clock, thread)


def test_wait_ready_ends_when_the_group_stops_first(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    group.add(Full("a", trace), ready_when="announced")
    thread, _ = run_in_thread(group)
    settle(group)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            group.wait_ready()
        except BaseException as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    group.stop()
    end(group, clock, thread)
    waiter.join(30)
    assert isinstance(errors[0], GroupStoppingError)


def test_a_service_may_wait_until_the_group_is_ready(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    early = group.add(Full("early", trace))
    late = group.add(Full("late", trace), ready_when="announced")
    thread, raised = run_in_thread(group)
    done: list[bool] = []

    def wait() -> None:
        group.wait_ready(30)
        done.append(True)

    early.in_start.tell(wait)
    late.in_start.tell(late.mark_ready)
    wait_until(lambda: done)
    group.stop()
    end(group, clock, thread)
    assert raised == []


# -- start, stop and wait, in the wrong order and twice --------------------------------------------


def test_a_second_start_is_refused_while_it_runs() -> None:
    group = ServiceGroup(name="app")
    group.add(ByEvent("a", []))
    with group:
        with pytest.raises(GroupRunningError, match="'app' runs already"):
            group.start()
        with pytest.raises(GroupRunningError), group:
            pass
        assert group.is_ready


def test_stop_before_start_keeps_it_from_starting_anything(trace: Trace) -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", trace))
    group.stop("changed my mind")
    report = group.start()
    assert trace == []
    assert report.reason == "changed my mind"
    assert report.services[0].state is State.NEW
    with group:  # the request was for that start only
        assert group.is_ready


def test_stop_after_the_end_does_nothing(trace: Trace) -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", trace))
    for _ in range(2):
        with group:
            pass
        group.stop()
    assert [what for what, _ in trace].count("start") == 2


def test_the_first_reason_is_kept(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, drain_delay=1.0)
    group.add(ByEvent("a", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    for reason in ("first", "second"):
        group.stop(reason)
    end(group, clock, thread)
    assert group.wait().reason == "first"


def test_stop_may_come_from_a_thousand_threads_at_once(trace: Trace) -> None:
    group = ServiceGroup()
    group.add(Plain("a", trace))
    with group:
        threads = [threading.Thread(target=group.stop) for _ in range(1000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert stops(trace) == ["a"]


def test_wait_waits_for_the_end_whoever_started_it(trace: Trace) -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", trace))
    with pytest.raises(TimeoutError, match="has not ended within 0 s"):
        group.wait(0)
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    assert group.wait(30) is group.wait()
    thread.join(30)


def test_wait_raises_what_start_raises_but_never_system_exit(trace: Trace) -> None:
    group = ServiceGroup()
    service = group.add(Full("a", trace))
    thread, raised = run_in_thread(group)
    service.in_start.tell(fail_with(SystemExit(3)))
    thread.join(30)
    assert isinstance(raised[0], SystemExit)
    assert group.wait().exit_code == 3
    service.in_start.tell(fail_with(ValueError("boom")))
    thread, raised = run_in_thread(group)
    thread.join(30)
    with pytest.raises(ServiceGroupError) as caught:
        group.wait()
    assert caught.value is raised[0]


@pytest.mark.parametrize(
    ("code", "exit_code", "expected"), [(0, 0, None), (None, 0, None), ("text", 1, "text")]
)
def test_a_service_that_calls_sys_exit_stops_the_group(
    code: int | str | None, exit_code: int, expected: str | None, trace: Trace
) -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", trace))
    service = group.add(Full("b", trace))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    service.in_start.tell(fail_with(SystemExit(code)))
    thread.join(30)
    report = group.wait()
    assert report.exit_code == exit_code
    assert report.reason == f"service 'b' called sys.exit({code!r})"
    assert [error.code for error in raised if isinstance(error, SystemExit)] == (
        [] if expected is None else [expected]
    )
    assert stops(trace) == ["a"]


def test_the_first_exit_code_that_is_not_zero_goes_on_from_the_failures(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock)
    group.add(Full("a", trace, "fail"))
    group.add(Full("b", trace))
    services = [group.add(Full(name, trace, "ignore")) for name in ("c", "d", "e")]
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    for service, code in zip(services, (0, 4, 5), strict=True):
        settle(group)
        service.in_start.tell(fail_with(SystemExit(code)))
    end(group, clock, thread)
    assert isinstance(raised[0], SystemExit)
    assert raised[0].code == 4
    assert isinstance(raised[0].__cause__, ServiceGroupError)
    assert group._run.report is not None
    assert group._run.report.exit_code == 4


def test_a_service_whose_thread_gets_going_late_is_ready_all_the_same(
    clock: FakeClock, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    claim = Runner.claim

    def late(runner: Runner) -> bool:
        if threading.current_thread().name == "group/a":
            gate.wait(30)
        return claim(runner)

    monkeypatch.setattr(Runner, "claim", late)
    group = fake_time_group(clock)
    service = group.add(Full("a", trace))
    thread, raised = run_in_thread(group)
    wait_until(lambda: group.state is GroupState.RUNNING)
    assert group.status()[0].state is State.STARTING
    assert not group.is_ready
    gate.set()
    group.wait_ready(30)
    assert group.status()[0].state is State.RUNNING
    wait_until(lambda: service.in_start.parked)
    group.stop()
    end(group, clock, thread)
    assert raised == []
    assert trace[0] == ("start", "a")


def test_a_start_that_failed_before_there_was_a_thread_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = ServiceGroup()
    group.add(with_start(lambda: None))
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "servicegroup._exit", None)
        with pytest.raises(ImportError):
            group.start()
    assert group.state is GroupState.STOPPED
    assert group.start().exit_code == 0


def test_a_group_with_an_abandoned_thread_cannot_start_again_until_it_ends(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock)
    stuck = group.add(Full("stuck", trace, "ignore"))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    end(group, clock, thread)
    assert isinstance(raised[0], ServiceGroupError)
    with pytest.raises(GroupRunningError, match=r"(?s)'stuck'.*in work"):
        group.start()
    stuck.free()
    wait_until(lambda: group._run.abandoned() is None)
    stuck.in_start.tell("leave")
    assert group.start().exit_code == 0


# -- with ------------------------------------------------------------------------------------------


def test_in_a_with_block_the_group_is_ready_and_after_it_stopped(trace: Trace) -> None:
    group = ServiceGroup()
    service = Full("a", trace)
    service.in_start.tell(service.mark_ready)
    group.add(service, ready_when="announced")
    with group as same:
        assert same is group
        assert group.is_ready
    assert group.state is GroupState.STOPPED
    assert stops(trace) == ["a"]
    assert group.wait().reason == "the with block has ended"


def test_a_start_that_fails_is_raised_before_the_block(trace: Trace) -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", trace))
    service = group.add(Full("b", trace), ready_when="announced")
    service.in_start.tell(lambda: wait_until(lambda: ("start", "a") in trace))
    service.in_start.tell(fail_with(ValueError("boom")))
    with pytest.raises(ServiceGroupError), group:
        pytest.fail("the block was entered")
    assert stops(trace) == ["a"]


def test_a_failure_does_not_interrupt_the_block_and_is_raised_after_it(trace: Trace) -> None:
    group = ServiceGroup()
    service = group.add(Full("a", trace))
    body: list[str] = []

    def use() -> None:
        with group:
            service.in_start.tell(fail_with(ValueError("boom")))
            wait_until(lambda: group.state is GroupState.STOPPED)
            body.append("went on")

    with pytest.raises(ServiceGroupError):
        use()
    assert body == ["went on"]


def test_an_exception_of_the_block_goes_on_and_is_the_context_of_a_failure(trace: Trace) -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", trace))
    with pytest.raises(KeyError), group:
        raise KeyError("body")
    service = group.add(Full("b", trace, "fail"))
    with pytest.raises(ServiceGroupError) as caught, group:
        raise KeyError("body")
    assert isinstance(caught.value.__context__, KeyError)
    assert "raised" in [what for what, who in trace if who == service.name]


def test_a_block_around_a_group_whose_services_are_done_already_is_entered(trace: Trace) -> None:
    group = ServiceGroup()
    service = Full("a", trace)
    service.in_start.tell("leave")
    group.add(service)
    with group:
        group.wait(30)
    assert group.wait().exit_code == 0


def test_the_end_of_a_block_skips_the_drain_delay(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, drain_delay=5.0)
    group.add(ByEvent("a", trace))
    with group:
        settle(group)
    assert clock.time == 1000.0


class Interrupting(threading.Event):
    """Its wait is interrupted as by a Ctrl-C, once."""

    times = 1

    def is_set(self) -> bool:
        return not self.times and super().is_set()  # it is waited for, however late

    def wait(self, timeout: float | None = None) -> bool:
        if self.times:
            self.times -= 1
            raise KeyboardInterrupt
        return super().wait(timeout)


@pytest.mark.parametrize("event", ["over", "ready_or_never"])
def test_an_interrupted_block_is_stopped_all_the_same(event: str, trace: Trace) -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", trace))
    setattr(group._run, event, Interrupting())
    with pytest.raises(KeyboardInterrupt), group:
        wait_until(lambda: trace)
    assert group.state is GroupState.STOPPED


# -- draining and stopping -------------------------------------------------------------------------


def test_services_serve_on_for_the_drain_delay(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, drain_delay=3.0)
    group.add(Drained("a", trace))
    group.add(Drained("b", trace))
    done = group.add(Drained("done", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    done.in_start.tell("leave")
    wait_until(lambda: group.status()[2].state is State.FINISHED)
    group.stop()
    wait_until(lambda: ("drain", "a") in trace)
    settle(group)
    assert group.state is GroupState.DRAINING
    assert not group.is_ready
    assert stops(trace) == []
    clock.advance(2.9)
    settle(group)
    assert stops(trace) == []
    clock.advance(0.2)
    end(group, clock, thread)
    # It had ended: nothing left to drain.
    assert [who for what, who in trace if what == "drain"] == ["b", "a"]
    assert stops(trace) == ["done", "b", "a"]


def drain_is_cut_by(
    clock: FakeClock, trace: Trace, cut: Callable[[ServiceGroup, Full], None]
) -> ServiceGroup:
    group = fake_time_group(clock, drain_delay=5.0)
    service = group.add(Full("a", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    cut(group, service)
    end(group, clock, thread)
    return group


def test_sigint_skips_the_drain_delay(clock: FakeClock, trace: Trace) -> None:
    def cut(group: ServiceGroup, service: Full) -> None:
        group._run.post(group._run.on_stop, "SIGINT", True)

    drain_is_cut_by(clock, trace, cut)
    assert clock.time == 1000.0


def test_a_failure_skips_the_drain_delay_also_while_it_runs(clock: FakeClock, trace: Trace) -> None:
    def cut(group: ServiceGroup, service: Full) -> None:
        group.stop()
        settle(group)
        clock.advance(1.0)
        settle(group)
        service.in_start.tell(fail_with(ValueError("boom")))

    group = drain_is_cut_by(clock, trace, cut)
    assert clock.time == 1001.0
    error = group._run.error
    assert error is not None
    assert error.exceptions[0].__notes__ == ["in service 'a', while draining"]


def test_a_group_that_was_never_ready_does_not_wait_to_be_looked_away_from(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock, drain_delay=5.0)
    group.add(Full("a", trace), ready_when="announced")
    thread, _ = run_in_thread(group)
    settle(group)
    group.stop()
    end(group, clock, thread)
    assert clock.time == 1000.0


class BadDrain(Drained):
    def drain(self) -> None:
        super().drain()
        raise ValueError("no drain")


class HungDrain(Drained):
    def drain(self) -> None:
        super().drain()
        self.in_stop.work()


def test_a_drain_that_raises_is_a_failure_and_the_stop_goes_on(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock)
    group.add(Drained("a", trace))
    group.add(BadDrain("bad", trace))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    group.stop()
    end(group, clock, thread)
    assert isinstance(raised[0], ServiceGroupError)
    assert raised[0].exceptions[0].__notes__ == ["in service 'bad', while draining"]
    assert [who for what, who in trace if what == "drain"] == ["bad", "a"]
    assert stops(trace) == ["bad", "a"]


def test_a_drain_that_hangs_costs_its_stop_timeout_and_no_other_its_drain(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock, stop_timeout=4.0)
    group.add(Drained("a", trace))
    hung = group.add(HungDrain("hung", trace))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    group.stop()
    wait_until(lambda: hung.in_stop.parked)
    clock.advance(4.0)
    thread.join(30)
    assert clock.time == 1004.0
    assert isinstance(raised[0], ServiceGroupError)
    (failure,) = raised[0].exceptions
    assert isinstance(failure, StopTimeoutError)
    assert "in drain" in failure.stack
    assert [who for what, who in trace if what == "drain"] == ["hung", "a"]
    assert stops(trace) == ["hung", "a"]
    hung.free()


def test_a_hung_service_is_abandoned_with_its_stack_and_the_next_is_stopped(
    clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock, stop_timeout=4.0)
    group.add(Full("a", trace))
    hung = group.add(Full("hung", trace, "hang"))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    wait_until(lambda: hung.in_stop.parked)
    assert stops(trace) == ["hung"]
    clock.advance(4.0)
    thread.join(30)
    assert stops(trace) == ["hung", "a"]
    assert isinstance(raised[0], ServiceGroupError)
    (failure,) = raised[0].exceptions
    assert isinstance(failure, StopTimeoutError)
    assert (failure.service, failure.seconds) == ("hung", 4.0)
    # Both of its threads are in there: the one of start() and the one of stop().
    assert "'group/hung' is at" in failure.stack
    assert "(stopping)' is at" in failure.stack
    assert "in stop" in failure.stack
    status = raised[0].report.services[1]
    assert (status.state, status.stack) == (State.ABANDONED, failure.stack)
    hung.free()


def test_hung_services_do_not_cost_the_others_their_stop(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, stop_timeout=10.0, shutdown_timeout=25.0)
    for name in "abcd":
        group.add(Full(name, trace, "hang" if name in "cd" else "obey"))
    group.add(Full("e", trace, "hang"))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    group.stop()
    end(group, clock, thread)
    assert stops(trace)[:2] == ["e", "d"]
    assert sorted(stops(trace)) == list("abcde")
    # 10 s for each of two, then the reserve; all before 25 s are over.
    assert clock.time == pytest.approx(1000 + 0.98 * 25)
    states = [status.state for status in group.status()]
    assert states == [State.STOPPED] * 2 + [State.ABANDONED] * 3
    assert isinstance(raised[0], ServiceGroupError)
    assert len(raised[0].exceptions) == 3
    for entry in group._table.entries:
        assert isinstance(entry.service, Full)
        entry.service.free()


def test_a_drain_cannot_eat_the_reserve(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, drain_delay=24.0, shutdown_timeout=25.0)
    group.add(Full("a", trace))
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    group.stop()
    end(group, clock, thread)
    assert clock.time == pytest.approx(1022.5)


def test_without_limits_a_stop_takes_as_long_as_it_takes(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, stop_timeout=float("inf"), shutdown_timeout=float("inf"))
    slow = group.add(Full("a", trace, "hang"))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    wait_until(lambda: slow.in_stop.parked)
    settle(group)
    assert mailbox_of(group).until is None
    clock.advance(1e6)
    settle(group)
    assert slow.remaining() == float("inf")
    slow.in_start.tell("leave")
    slow.in_stop.tell("leave")
    thread.join(30)
    assert raised == []


def test_stop_concurrently_asks_all_though_one_stop_blocks(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, stop_concurrently=True)
    services = [group.add(Full(name, trace, "hang")) for name in "abc"]
    group.add(ByEvent("d", trace))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    group.stop()
    wait_until(lambda: all(service.in_stop.parked for service in services))
    wait_until(lambda: sorted(stops(trace)) == ["a", "b", "c", "d"])
    for service in services:
        service.in_start.tell("leave")
        service.in_stop.tell("leave")
    thread.join(30)
    assert raised == []


def test_without_threads_for_all_stops_they_are_called_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    group = ServiceGroup(stop_concurrently=True)
    for name in "abc":
        group.add(Plain(name, trace))
    launch = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if "(stopping) " in thread.name:
            raise RuntimeError("can't start new thread")
        launch(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with group:
        pass
    assert stops(trace) == ["c", "b", "a"]


@pytest.mark.servicegroup_unwatched
def test_when_no_thread_is_left_for_the_stops_the_group_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock, trace: Trace
) -> None:
    group = fake_time_group(clock)
    group.add(Full("a", trace))
    hung = group.add(Full("hung", trace, "hang"))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    wait_until(lambda: hung.in_stop.parked)
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    while not group._run.over.is_set():
        wait_until(lambda: group._run.over.is_set() or mailbox_of(group).waiting)
        clock.advance(1.0)
    monkeypatch.setattr(threading.Thread, "start", real)
    thread.join(30)
    assert isinstance(raised[0], ServiceGroupError)
    kinds = [type(error).__name__ for error in raised[0].exceptions]
    assert kinds[:2] == ["StopTimeoutError", "RuntimeError"]
    hung.free()


def test_what_an_abandoned_thread_does_later_counts_no_more(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, stop_timeout=4.0)
    first = group.add(Full("first", trace, "hang"))
    hung = group.add(Full("hung", trace, "hang"))
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    wait_until(lambda: hung.in_stop.parked)
    clock.advance(4.0)
    wait_until(lambda: first.in_stop.parked)
    hung.in_start.tell(fail_with(ValueError("late")))
    hung.in_stop.tell(fail_with(ValueError("late")))
    wait_until(lambda: ("raised", "hung") in trace and is_quiet(group))
    first.in_start.tell("leave")
    first.in_stop.tell("leave")
    thread.join(30)
    assert isinstance(raised[0], ServiceGroupError)
    assert [type(error).__name__ for error in raised[0].exceptions] == ["StopTimeoutError"]


def test_defer_calls_back_at_its_place_with_its_arguments(trace: Trace) -> None:
    group = ServiceGroup()
    group.add(Plain("a", trace))
    group.defer(lambda *args, **kwargs: trace.append(("stop", f"{args} {kwargs}")), 1, two=2)
    group.add(Plain("b", trace))
    with group:
        pass
    assert stops(trace) == ["b", "(1,) {'two': 2}", "a"]


def test_a_deferred_call_does_not_keep_the_group() -> None:
    group = ServiceGroup()
    called: list[int] = []
    group.defer(called.append, 1)
    group.add(with_start(lambda: None))
    group.start()
    assert called == [1]


# -- threads and contexts --------------------------------------------------------------------------

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


def test_services_run_in_a_copy_of_the_context_of_start() -> None:
    seen: list[tuple[str, str]] = []

    class Curious(Service):
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> None:
            seen.append((self.name, request_id.get()))
            request_id.set(self.name)
            self.stopping.wait()

        def stop(self) -> None:
            seen.append((f"stop {self.name}", request_id.get()))

    group = ServiceGroup()
    group.add(Curious("a"))
    group.add(Curious("b"))
    token = request_id.set("main")
    with group:
        pass
    request_id.reset(token)
    assert sorted(seen) == [("a", "main"), ("b", "main"), ("stop a", "main"), ("stop b", "main")]


def test_threads_are_named_after_group_and_service_and_gone_at_the_end(trace: Trace) -> None:
    before = set(threading.enumerate())
    group = ServiceGroup(name="app")
    group.add(Plain("api", trace))
    with group:
        wait_until(lambda: ("start", "api") in trace)
        names = {thread.name for thread in set(threading.enumerate()) - before}
        assert names == {"app (deciding)", "app (stopping)", "app (subscribers)", "app/api"}
        assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_an_idle_group_waits_without_a_deadline(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock)
    service = group.add(Full("a", trace), ready_when="announced")
    thread, _ = run_in_thread(group)
    settle(group)
    assert mailbox_of(group).until == 1060.0
    service.in_start.tell(service.mark_ready)
    group.wait_ready(30)
    settle(group)
    assert mailbox_of(group).until is None  # a start_timeout that was met wakes nobody
    group.stop()
    end(group, clock, thread)


@pytest.mark.servicegroup_unwatched
def test_an_error_of_ours_ends_the_wait_and_is_raised() -> None:
    group = ServiceGroup()
    group.add(ByEvent("a", []))

    def broken() -> None:
        raise LookupError("a bug")

    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    group._run.post(broken)
    with pytest.raises(LookupError, match="a bug"):
        group.wait(30)
    thread.join(30)
    assert isinstance(raised[0], LookupError)


def test_the_event_types_are_all_events() -> None:
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type)]
    assert all(issubclass(kind, events.Event) for kind in kinds)


@pytest.mark.servicegroup_unwatched
def test_run_raises_what_kept_it_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ServiceGroup()
    launch = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for end_of_name in ("(deciding)", "(stopping)"):

        def start_some(thread: threading.Thread, end_of_name: str = end_of_name) -> None:
            (start if thread.name.endswith(end_of_name) else launch)(thread)

        monkeypatch.setattr(threading.Thread, "start", start_some)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            group.run()
        assert signal.getsignal(signal.SIGTERM) == before


def test_a_start_without_a_descriptor_for_the_signals_fails_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = ServiceGroup()

    def pipe() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("servicegroup._signals.os.pipe", pipe)
        with pytest.raises(OSError, match="Too many open files"):
            group.start()
    assert group.start().exit_code == 0


def test_a_late_end_of_a_hung_drain_counts_no_more(clock: FakeClock, trace: Trace) -> None:
    group = fake_time_group(clock, stop_timeout=4.0)
    service = group.add(HungDrain("a", trace))
    service.on_stop = "ignore"
    thread, raised = run_in_thread(group)
    group.wait_ready(30)
    settle(group)
    group.stop()
    wait_until(lambda: service.in_stop.parked)
    clock.advance(4.0)
    wait_until(lambda: ("stop", "a") in trace)
    service.in_stop.tell(fail_with(ValueError("late")))
    wait_until(lambda: group._run._runners[0].stop_thread is None)
    settle(group)
    service.in_start.tell("leave")
    thread.join(30)
    assert isinstance(raised[0], ServiceGroupError)
    assert [type(error).__name__ for error in raised[0].exceptions] == ["StopTimeoutError"]


def test_the_signals_may_be_none_at_all() -> None:
    assert ServiceGroup(signals=(), dump_signal=None).start().exit_code == 0


def test_where_signals_cannot_be_taken_the_group_works_without(
    monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> int:
        raise ValueError("set_wakeup_fd only works in main thread of the main interpreter")

    monkeypatch.setattr(signal, "set_wakeup_fd", refuse)
    group = ServiceGroup()
    service = Full("a", trace)
    service.in_start.tell("leave")
    group.add(service)
    assert group.start().exit_code == 0


def test_a_signal_without_a_name_is_told_by_its_number(trace: Trace) -> None:
    number = signal.SIGRTMIN + 1
    group = ServiceGroup(signals=[number])
    group.add(ByEvent("a", trace))
    sender = threading.Thread(
        target=lambda: (group.wait_ready(30), os.kill(os.getpid(), number)),  # type: ignore[func-returns-value]
    )
    sender.start()
    report = group.start()
    sender.join(30)
    assert report.reason == f"signal {number}"


def test_an_interruption_before_there_is_a_thread_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = ServiceGroup()

    def start(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("servicegroup.group.LAUNCH_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            group.start()
    assert group.start().exit_code == 0
