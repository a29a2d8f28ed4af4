"""`InProcess`, with real children."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from servicegroup import (
    GroupState,
    InProcess,
    Report,
    Restart,
    Service,
    ServiceGroup,
    ServiceGroupError,
    ServiceStalledError,
    StartTimeoutError,
    State,
    StopTimeoutError,
    _run,
    events,
)
from servicegroup._child import _Beats as Beats
from servicegroup._child_errors import Failure
from servicegroup._child_pipe import Frames, Sender, frame
from servicegroup._child_worker import CHILD_SHARE, KILL_SHARE, TERM_SHARE
from servicegroup.process import (
    ChildDiedError,
    ChildError,
    ChildStopTimeoutError,
    ChildTraceback,
)
from servicegroup.testing import wait_until
from tests import process_services as services
from tests.child import PATIENCE, Child
from tests.fake_time import FakeClock, fake_time_group, mailbox_of
from tests.scripted import run_in_thread

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


wait_for = partial(wait_until, timeout=PATIENCE)


def lives(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def halt(pid: int) -> None:
    """Return when all of its threads are stopped: they may go on for a while after the signal."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_for(
        lambda: all(
            stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in tasks.glob("*/stat")
        )
    )


def zombies() -> list[str]:
    """The children of this process that nobody has reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state == "Z":
            found.append(stat.parent.name)
    return found


def notes_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def outcome(service: InProcess, **options: object) -> Report:
    """Of a group with nothing but `service`."""
    group = ServiceGroup(signals=(), **options)  # type: ignore[arg-type]
    group.add(service, name="child")
    return group.start()


def failures(service: InProcess, **options: object) -> tuple[Exception, ...]:
    with pytest.raises(ServiceGroupError) as caught:
        outcome(service, **options)
    return caught.value.exceptions


def failure(service: InProcess, **options: object) -> Exception:
    [error] = failures(service, **options)
    return error


@contextmanager
def failing(group: ServiceGroup) -> Iterator[list[Exception]]:
    """Run `group` during the block; what its services raised is in the list afterwards."""
    errors: list[Exception] = []
    of_block: BaseException | None = None
    try:
        with group:
            try:
                yield errors
            except BaseException as error:
                of_block = error
                raise
    except ServiceGroupError as error:
        if of_block is not None:
            raise of_block from None
        errors += error.exceptions
    assert errors


# -- from start to end ----------------------------------------------------------------------------


def test_a_child_is_made_is_ready_and_stops(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    service = InProcess(partial(services.Steady, notes))
    group = ServiceGroup(signals=(), stop_timeout=20.0)
    assert group.add(service) is service
    with group:
        [pid] = service.pids
        assert lives(pid)
        assert pid != os.getpid()
        assert group.is_ready
        assert notes_of(notes) == ["start"]
        assert repr(service) == f"<InProcess 'Steady': workers=1, pids=[{pid}]>"
    [status] = group.status()
    assert (status.name, status.state, status.parts) == ("Steady", State.STOPPED, ())
    assert service.pids == ()
    assert not lives(pid)
    start, drain, stop, end = notes_of(notes)
    assert (start, drain, end) == ("start", "drain", "end")
    assert 10.0 < float(stop.removeprefix("stop ")) < 20.0


def test_without_a_limit_the_child_has_none(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    group = ServiceGroup(signals=(), stop_timeout=math.inf, shutdown_timeout=math.inf)
    group.add(InProcess(partial(services.Steady, notes)))
    with group:
        pass
    assert "stop inf" in notes_of(notes)


def test_what_returns_has_finished() -> None:
    report = outcome(InProcess(services.returning))
    assert (report.exit_code, report.services[0].state) == (0, State.FINISHED)
    assert report.services[0].seconds_to_ready is not None


def test_what_does_not_block_runs_until_it_is_stopped() -> None:
    service = InProcess(services.background)
    group = ServiceGroup(signals=())
    group.add(service)
    with group:
        assert group.is_ready
        assert len(service.pids) == 1
    assert group.status()[0].state is State.STOPPED


def test_a_group_may_be_in_a_child(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    group = ServiceGroup(signals=())
    group.add(InProcess(partial(services.group_of_two, notes)))
    with group:
        assert notes_of(notes) == ["start", "start"]
    told = [note.split()[0] for note in notes_of(notes)]
    assert told == ["start", "start", "drain", "drain", "stop", "end", "stop", "end"]


def test_readiness_comes_and_goes(tmp_path: Path) -> None:
    group = ServiceGroup(signals=())
    group.add(InProcess(partial(services.Wavering, tmp_path / "there")))
    thread = threading.Thread(target=group.start)
    thread.start()
    try:
        for _ in range(2):
            (tmp_path / "there").touch()
            wait_for(lambda: group.is_ready)
            (tmp_path / "there").unlink()
            wait_for(lambda: not group.is_ready)
    finally:
        group.stop()
        thread.join()


def test_the_same_object_runs_again_and_again(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    service = InProcess(partial(services.Steady, notes))
    group = ServiceGroup(signals=())
    group.add(service)
    pids = set[int]()
    for _ in range(3):
        with group:
            pids.update(service.pids)
        assert group.status()[0].state is State.STOPPED
    assert len(pids) == 3
    assert [note for note in notes_of(notes) if note == "end"] == ["end"] * 3


def test_it_needs_no_group() -> None:
    service = InProcess(services.Steady)
    thread = threading.Thread(target=service.start)
    thread.start()
    wait_for(lambda: service.pids)
    service.drain()
    service.stop()
    service.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_stopped_before_the_start_nothing_is_made() -> None:
    service = InProcess(services.Steady, workers=2)
    service.stop()
    service.start()
    assert service.pids == ()


def test_stopped_before_the_child_is_up_it_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = util.spawnv_passfds

    def spawn_halted(*args: Any) -> int:
        pid = spawn(*args)
        os.kill(pid, signal.SIGSTOP)  # before it is given what it is to run: it will never be up
        return pid

    resource_tracker.ensure_running()
    monkeypatch.setattr(util, "spawnv_passfds", spawn_halted)
    notes = tmp_path / "notes"
    service = InProcess(partial(services.Steady, notes))
    group = ServiceGroup(signals=())
    group.add(service)
    thread = threading.Thread(target=group.start)
    thread.start()
    wait_for(lambda: service.pids)
    [pid] = service.pids
    group.stop()
    group.stop()
    thread.join(PATIENCE)
    assert group.wait().exit_code == 0
    assert group.status()[0].state is State.STOPPED
    assert not notes.exists()
    assert not lives(pid)


# -- failures -------------------------------------------------------------------------------------


def assert_from_child(error: BaseException, text: str) -> None:
    assert isinstance(error.__cause__, ChildTraceback)
    assert text in str(error.__cause__)
    assert "process_services.py" in str(error.__cause__)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        pytest.param(ConnectionError("no broker"), ConnectionError, id="built in"),
        pytest.param(
            partial(ExceptionGroup, "both", [ValueError("a"), OSError("b")]),
            ExceptionGroup,
            id="group",
        ),
    ],
)
def test_an_exception_arrives_as_it_was(
    raised: BaseException | partial[Exception], kind: type[Exception]
) -> None:
    error = failure(InProcess(partial(services.Raising, raised)))
    assert type(error) is kind
    assert error.__notes__ == ["in service 'child', while running"]
    assert_from_child(error, "in _raise")


def test_an_exception_that_cannot_be_sent_arrives_as_text() -> None:
    error = failure(InProcess(partial(services.Raising, partial(services.Unpicklable, "held"))))
    assert type(error) is ChildError
    assert str(error) == "tests.process_services.Unpicklable: held"
    assert_from_child(error, "Unpicklable: held")


def test_an_exception_that_wants_other_arguments_arrives_as_it_was() -> None:
    error = failure(InProcess(partial(services.Raising, partial(services.Picky, 1, other=2))))
    assert isinstance(error, services.Picky)
    assert (str(error), error.one) == ("1 and 2", 1)
    assert_from_child(error, "Picky: 1 and 2")


def test_an_error_of_the_system_that_wants_other_arguments_arrives_as_it_was() -> None:
    error = failure(InProcess(partial(services.Raising, partial(services.PickyOS, path="here"))))
    assert isinstance(error, services.PickyOS)
    assert (error.errno, error.strerror, error.filename) == (2, "not there", "here")


def test_an_exception_that_is_wrong_about_itself_arrives_as_text() -> None:
    error = failure(InProcess(partial(services.Raising, partial(services.Liar, "lies"))))
    assert type(error) is ChildError
    assert str(error) == "tests.process_services.Liar: lies"


def test_an_exception_with_a_strange_message_and_strange_notes_arrives() -> None:
    error = failure(InProcess(partial(services.Raising, partial(services.Awkward))))
    assert type(error) is ChildError
    assert str(error) == "tests.process_services.Awkward: awkward"
    *notes, _ = error.__notes__
    assert notes == ["(its message cannot be had)", "a note", "3"]
    assert {type(note) for note in notes} == {str}


def test_what_cannot_be_sent_does_not_cost_the_others_of_a_group_their_types() -> None:
    error = failure(InProcess(partial(services.Raising, partial(services.mixed))))
    assert isinstance(error, ExceptionGroup)
    assert error.message == "mixed"
    assert error.__notes__[0] == "a note"
    sent, stand_in = error.exceptions
    assert (type(sent), str(sent)) == (ConnectionError, "lost")
    assert (type(stand_in), str(stand_in)) == (
        ChildError,
        "tests.process_services.Unpicklable: held",
    )


def test_an_exception_of_the_main_module_arrives_as_it_was(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""if True:
        from servicegroup import InProcess, ServiceGroup, with_start
        class Mine(Exception):
            pass
        def fail():
            raise Mine("from the child")
        def factory():
            return with_start(fail)
        if __name__ == "__main__":
            group = ServiceGroup()
            group.add(InProcess(factory))
            try:
                group.start()
            except* Mine as errors:
                print(repr(errors.exceptions[0]), flush=True)
    """)
    with Child(f"os.execv(sys.executable, [sys.executable, {str(script)!r}])") as child:
        assert child.end() == 0, child.stderr
        assert child.lines == ["Mine('from the child')"]


def test_an_exception_that_the_parent_cannot_read_arrives_as_text() -> None:
    told = attrs.evolve(Failure.of(services.Mute()), pickled=pickle.dumps(services.Mute)[:-4])
    error = told.error()
    assert type(error) is ChildError
    assert str(error) == "tests.process_services.Mute: (its message cannot be had)"


def test_an_exit_does_not_hide_a_failure() -> None:
    group = ServiceGroup(signals=())
    group.add(InProcess(services.ExitingBadly))

    def run() -> None:
        with group:
            pass

    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 4
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_factory_raises() -> None:
    error = failure(InProcess(services.failing_factory))
    assert (type(error), str(error)) == (LookupError, "no such service")
    assert error.__notes__ == ["in service 'child', while starting"]
    assert_from_child(error, "failing_factory")


def test_the_factory_makes_no_service() -> None:
    error = failure(InProcess(services.no_service))
    assert isinstance(error, TypeError)
    assert "has no start()" in str(error)


def test_a_stop_that_raises_and_a_start_that_raises_are_both_told() -> None:
    service = InProcess(partial(services.Raising, ValueError("twice"), "stop end"))
    group = ServiceGroup(signals=())
    group.add(service)
    with failing(group) as errors:
        pass
    [both] = errors
    assert isinstance(both, ExceptionGroup)
    assert [str(error) for error in both.exceptions] == ["twice", "twice"]
    for error in both.exceptions:
        assert_from_child(error, "ValueError: twice")


def test_what_is_no_exception_is_wrapped() -> None:
    error = failure(InProcess(partial(services.Raising, KeyboardInterrupt("mine"))))
    assert type(error).__name__ == "ServiceCrashedError"
    assert "KeyboardInterrupt: mine" in str(error)


@pytest.mark.parametrize("code", [3, "a word"])
def test_exit_codes_come_through(code: object) -> None:
    with pytest.raises(SystemExit) as caught:
        outcome(InProcess(partial(services.exiting, code)))
    assert caught.value.code == code
    assert_from_child(caught.value, "SystemExit")


def test_an_exit_code_that_cannot_be_sent_comes_as_text() -> None:
    with pytest.raises(SystemExit) as caught:
        outcome(InProcess(services.exiting_with_a_lock))
    assert "lock" in str(caught.value.code)


def test_the_factory_exits() -> None:
    with pytest.raises(SystemExit) as caught:
        outcome(InProcess(services.exiting_factory))
    assert caught.value.code == 5


@pytest.mark.parametrize("code", [0, None])
def test_an_exit_without_an_error_stops_the_group(code: object) -> None:
    group = ServiceGroup(signals=())
    group.add(InProcess(services.Steady), name="steady")
    group.add(InProcess(partial(services.exiting, code)), name="child")
    report = group.start()
    assert report.exit_code == 0
    assert report.reason == f"service 'child' called sys.exit({code!r})"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_killed_from_outside_is_a_failure_that_names_the_signal(number: signal.Signals) -> None:
    service = InProcess(services.Steady)
    group = ServiceGroup(signals=())
    group.add(service)
    with failing(group) as errors:
        [pid] = service.pids
        os.kill(pid, number)
        wait_for(lambda: group.state is GroupState.STOPPED)
    [error] = errors
    assert isinstance(error, ChildDiedError)
    assert str(error) == f"process {pid} of service 'Steady' was killed by {number.name}"
    assert (error.pid, error.exit_code, error.signal) == (pid, -number, number)


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    service = InProcess(services.Steady)
    group = ServiceGroup(signals=())
    group.add(service)
    with failing(group) as errors:
        os.kill(service.pids[0], signal.SIGRTMIN + 1)
        wait_for(lambda: group.state is GroupState.STOPPED)
    [error] = errors
    assert f"was killed by signal {signal.SIGRTMIN + 1}" in str(error)


def test_where_processes_have_no_descriptors_their_end_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.pidfd_open", raising=False)
    service = InProcess(services.Steady)
    group = ServiceGroup(signals=())
    group.add(service)
    before = descriptors()
    with failing(group) as errors:
        os.kill(service.pids[0], signal.SIGKILL)
        wait_for(lambda: group.state is GroupState.STOPPED)
    assert isinstance(errors[0], ChildDiedError)
    with group:
        pass
    assert descriptors() == before


def test_a_child_that_leaves_without_a_word_is_a_failure() -> None:
    error = failure(InProcess(partial(services.leaving, 0)))
    assert isinstance(error, ChildDiedError)
    assert "ended with exit code 0 and without a word" in str(error)
    assert (error.exit_code, error.signal) == (0, None)


def test_a_child_that_cannot_import_the_main_module_says_where_to_look() -> None:
    with Child("""
        import tempfile
        import subprocess

        with tempfile.TemporaryDirectory() as directory:
            script = os.path.join(directory, "script.py")
            with open(script, "w") as file:
                file.write(
                    "from servicegroup import InProcess, ServiceGroup, with_start\\n"
                    "def factory():\\n"
                    "    return with_start(lambda: None)\\n"
                    "group = ServiceGroup()\\n"
                    "group.add(InProcess(factory))\\n"
                    "group.run()\\n"
                )
            done = subprocess.run([sys.executable, script], stderr=subprocess.PIPE, text=True)
            say("code", done.returncode)
            say("hint", "must stand under: if __name__ == '__main__'" in done.stderr)
    """) as child:
        assert child.end() == 0
        assert child.lines == ["code 1", "hint True"]


# -- what hangs -----------------------------------------------------------------------------------


LATE = 24.0  # s: what is to end does so at a share of it, with the rest for a busy machine


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Others than those that would leave next to nothing of a time which tests can wait for."""

    def put(**shares: float) -> None:
        for name, share in shares.items():
            monkeypatch.setattr(f"servicegroup._child_worker.{name}_SHARE", share)

    return put


def test_a_child_ends_in_three_ways_before_the_group_gives_up() -> None:
    assert 0.0 < CHILD_SHARE < TERM_SHARE < KILL_SHARE < 1.0


def stopped_late(service: InProcess, when: Callable[[], object] | None = None) -> Exception:
    """The one failure of a service that is asked to stop once `when`, or once it is ready.

    All is over in time.
    """
    group = ServiceGroup(signals=(), stop_timeout=LATE)
    group.add(service, name="child")
    thread, raised = run_in_thread(group)
    wait_for(when or (lambda: group.is_ready))
    pids = service.pids
    group.stop()
    thread.join(PATIENCE)
    [caught] = raised
    assert isinstance(caught, ServiceGroupError)
    [status] = group.status()
    assert status.state is State.FAILED
    assert status.seconds_to_stop is not None
    assert status.seconds_to_stop < LATE
    assert pids
    assert not any(map(lives, pids))
    [error] = caught.exceptions
    assert error is status.error
    return error


@pytest.mark.parametrize("factory", [services.deaf, services.hanging_stop])
def test_a_service_that_does_not_stop_says_where_it_hangs(
    factory: Callable[[], Service], shares: Callable[..., None]
) -> None:
    shares(CHILD=0.14)
    service = InProcess(factory)
    error = stopped_late(service)
    assert isinstance(error, StopTimeoutError)
    assert error.service == "child"
    assert "in sleep_on" in error.stack
    assert "process_services.py" in error.stack


def test_a_factory_that_hangs_is_ended_by_sigterm(
    tmp_path: Path, shares: Callable[..., None]
) -> None:
    shares(CHILD=0.01, TERM=0.15)
    notes = tmp_path / "notes"
    service = InProcess(partial(services.hanging_factory, notes))
    error = stopped_late(service, notes.exists)
    assert isinstance(error, ChildStopTimeoutError)
    assert error.signal == signal.SIGTERM
    assert f": its process {error.pid} was ended by SIGTERM\n" in str(error)
    assert "in hanging_factory" in error.stack
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("factory", "number"),
    [(services.holding_the_lock, signal.SIGTERM), (services.immune, signal.SIGKILL)],
)
def test_code_that_holds_the_interpreters_lock_is_ended(
    factory: Callable[[Path], Service], number: int, tmp_path: Path, shares: Callable[..., None]
) -> None:
    shares(TERM=0.05, KILL=0.07 if number == signal.SIGKILL else KILL_SHARE)
    notes = tmp_path / "notes"
    service = InProcess(partial(factory, notes))
    error = stopped_late(service, notes.exists)
    assert isinstance(error, ChildStopTimeoutError)
    assert error.signal == number


def test_what_is_not_ready_in_time_is_stopped(tmp_path: Path) -> None:
    service = InProcess(partial(services.Wavering, tmp_path / "never"))
    error = failure(service, start_timeout=0.5)
    assert isinstance(error, StartTimeoutError)
    assert service.pids == ()


def test_a_process_that_does_not_end_with_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servicegroup._child_worker.LINGER_SECONDS", 0.3)
    error = failure(InProcess(services.lingering))
    assert isinstance(error, ChildStopTimeoutError)
    assert error.signal == signal.SIGTERM
    assert "its service had ended" in error.stack


def test_a_process_that_does_not_end_after_its_stop(shares: Callable[..., None]) -> None:
    shares(CHILD=0.1, TERM=0.22)
    service = InProcess(services.deaf_and_lingering)
    error = stopped_late(service)
    assert isinstance(error, StopTimeoutError)
    assert any("was ended by SIGTERM" in note for note in error.__notes__)


# -- several --------------------------------------------------------------------------------------


def test_workers_are_parts(tmp_path: Path) -> None:
    service = InProcess(partial(services.Numbered, tmp_path), workers=2, name="crew")
    group = ServiceGroup(signals=())
    group.add(service)
    with group:
        pids = service.pids
        assert len(set(pids)) == 2
        [status] = group.status()
        assert [part.name for part in status.parts] == ["crew/1", "crew/2"]
        assert [part.state for part in status.parts] == [State.RUNNING] * 2
        assert all(part.ready for part in status.parts)
    assert sorted(notes_of(tmp_path / "stops")) == sorted(map(str, pids))
    [status] = group.status()
    assert [part.state for part in status.parts] == [State.STOPPED] * 2
    assert all(part.seconds_to_stop is not None for part in status.parts)


def test_workers_are_asked_to_stop_all_at_once(tmp_path: Path) -> None:
    group = ServiceGroup(signals=())
    group.add(InProcess(partial(services.Together, tmp_path, 3), workers=3))
    with group:
        pass
    assert [part.state for part in group.status()[0].parts] == [State.STOPPED] * 3


def test_when_one_worker_fails_all_are_stopped(tmp_path: Path) -> None:
    service = InProcess(partial(services.Numbered, tmp_path), workers=3)
    group = ServiceGroup(signals=())
    group.add(service, name="crew")
    with failing(group) as errors:
        first, second, third = service.pids
        (tmp_path / f"fail-{second}").touch()
        wait_for(lambda: group.state is GroupState.STOPPED)
    [error] = errors
    assert (type(error), str(error)) == (ConnectionError, f"{second} was told to fail")
    assert error.__notes__ == [
        "in service 'crew/2', while running",
        "in service 'crew', while running",
    ]
    assert sorted(notes_of(tmp_path / "stops")) == sorted(map(str, [first, third]))
    [status] = group.status()
    states = [part.state for part in status.parts]
    assert states == [State.STOPPED, State.FAILED, State.STOPPED]
    assert status.parts[1].error is error


def test_when_all_workers_fail_all_of_it_is_told() -> None:
    group = ServiceGroup(signals=())
    group.add(InProcess(partial(services.Raising, OSError("each"), "end"), workers=2), name="crew")
    with failing(group) as errors:
        pass
    [both] = errors
    assert isinstance(both, ExceptionGroup)
    assert both.message == "service 'crew': 2 failures"
    assert [str(error) for error in both.exceptions] == ["each", "each"]


def test_a_worker_that_hangs_leaves_the_others_their_stop(
    tmp_path: Path, shares: Callable[..., None]
) -> None:
    shares(TERM=0.15, KILL=0.17)
    service = InProcess(partial(services.Numbered, tmp_path), workers=2)
    group = ServiceGroup(signals=(), stop_timeout=LATE)
    group.add(service)
    with failing(group) as errors:
        first, second = service.pids
        halt(second)
    [error] = errors
    assert isinstance(error, ChildStopTimeoutError)
    assert (error.pid, error.signal) == (second, signal.SIGKILL)
    assert notes_of(tmp_path / "stops") == [str(first)]


def test_a_stop_that_comes_when_one_has_failed_already(
    tmp_path: Path, shares: Callable[..., None]
) -> None:
    shares(TERM=0.15, KILL=0.17)
    # The last does not hear, so that the others still run when the group's stop comes.
    service = InProcess(partial(services.Numbered, tmp_path), workers=3)
    group = ServiceGroup(signals=(), stop_timeout=60.0, shutdown_timeout=LATE)
    group.add(service)
    with failing(group) as errors:
        first, second, third = service.pids
        halt(third)
        (tmp_path / f"fail-{first}").touch()
        wait_for(lambda: group.status()[0].parts[2].stopping_at is not None)
    assert group.status()[0].state is State.FAILED
    both = errors[0]
    assert isinstance(both, ExceptionGroup)
    killed = both.exceptions[1]
    assert isinstance(killed, ChildStopTimeoutError)
    assert killed.pid == third
    assert notes_of(tmp_path / "stops") == [str(second)]
    assert service.pids == ()


# -- the log --------------------------------------------------------------------------------------


@pytest.fixture
def _all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that has ended has told its subscribers, the log, all of it."""
    monkeypatch.setattr("servicegroup._run.FLUSH_SECONDS", PATIENCE)


def group_that_tells_all() -> ServiceGroup:
    """The same in a child."""
    _run.FLUSH_SECONDS = PATIENCE
    return services.group_with_restart()


@pytest.mark.usefixtures("_all_told")
def test_log_records_come_to_the_parent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        outcome(InProcess(services.Logging))
    said, raised = (record for record in caplog.records if record.name == "tests.child")
    assert (said.levelno, said.getMessage()) == (logging.WARNING, "a record of 1")
    fields = SimpleNamespace(**vars(said))
    assert (fields.service, fields.order) == ("child", 7)
    assert fields.pid == said.process != os.getpid()
    assert fields.mine.startswith("<unlocked _thread.lock")
    assert "ValueError: logged" in logging.Formatter().format(raised)
    lines = [r.getMessage() for r in caplog.records if r.name == "servicegroup"]
    assert len([line for line in lines if "child: ready" in line]) == 1
    assert not [line for line in lines if line.startswith("process-")]


def test_a_record_that_cannot_be_sent_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert outcome(InProcess(services.logging_badly)).exit_code == 0
    assert "--- Logging error ---" in capfd.readouterr().err


def test_the_level_of_the_parent_is_that_of_the_child(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), caplog.at_level(logging.DEBUG, "tests.child"):
        outcome(InProcess(services.Logging))
    lines = [r.getMessage() for r in caplog.records if r.name == "tests.child"]
    assert lines == ["not asked for", "a record of 1", "with a traceback"]


def test_a_record_that_cannot_be_read_is_told(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError("a filter of the user's")

    logger = logging.getLogger("tests.child")
    logger.addFilter(refuse)
    try:
        assert outcome(InProcess(services.Logging)).exit_code == 0
    finally:
        logger.removeFilter(refuse)
    assert "a log record of service 'child' is lost" in capsys.readouterr().err


def test_the_last_records_of_a_dying_child_arrive(caplog: pytest.LogCaptureFixture) -> None:
    error = failure(InProcess(services.Dying))
    assert isinstance(error, ChildDiedError)
    assert error.signal == signal.SIGKILL
    lines = [r.getMessage() for r in caplog.records if r.name == "tests.child"]
    assert lines == [f"record {number}" for number in range(500)]


def test_what_the_parent_cannot_read_does_not_cost_the_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcome(InProcess(services.logging_of_foreign))
    [record] = (record for record in caplog.records if record.name == "tests.child")
    assert record.getMessage() == "with something"
    assert not hasattr(record, "thing")


@pytest.mark.usefixtures("_all_told")
def test_what_a_nested_group_does_in_the_child_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    group = ServiceGroup(name="shop", signals=())
    group.add(InProcess(group_that_tells_all), name="child")
    with caplog.at_level(logging.INFO), group:
        pass
    told = [record for record in caplog.records if vars(record).get("pid")]
    for words in ("child/one: restart 1 in", "child/one: ready", "shop/child: stopped"):
        assert [record for record in told if words in record.getMessage()], words
    assert {vars(record)["service"] for record in told} == {"child", "child/one"}
    # What the outer group knows itself is said once.
    lines = [record.getMessage() for record in caplog.records]
    for words in ("shop: ready", "shop: child: ready", "shop: child: stopped", "shop: stopped"):
        assert len([line for line in lines if line.startswith(words)]) == 1, (words, lines)


# -- heartbeats -----------------------------------------------------------------------------------


def stalls(group: ServiceGroup) -> list[str]:
    """What of stalls is told of `group`, from now on."""
    told: list[str] = []

    def tell(event: events.Event) -> None:
        if isinstance(event, (events.ServiceStalled, events.ServiceRecovered)):
            told.append(type(event).__name__)

    group.subscribe(tell)
    return told


def beat_on(group: ServiceGroup, clock: FakeClock) -> None:
    """Let more time pass than the service may be silent, and never as much between two beats."""
    runner = group._run._runners[0]
    for _ in range(3):
        clock.advance(0.9)
        wait_for(lambda: runner.beat_at == clock.time)


def fall_silent(group: ServiceGroup, clock: FakeClock) -> None:
    def is_stalled() -> bool:
        clock.advance(1.0)
        wait_for(lambda: mailbox_of(group).waiting or group.state is GroupState.STOPPED)
        return group.status()[0].stalled

    wait_for(is_stalled)


def test_heartbeats_in_the_child_count(tmp_path: Path) -> None:
    clock = FakeClock()
    group = fake_time_group(clock, signals=())
    service = group.add(
        InProcess(partial(services.Beating, tmp_path)), name="child", heartbeat_timeout=1.0
    )
    told = stalls(group)
    with group:
        beat_on(group, clock)
        assert told == []
        silence = tmp_path / str(service.pids[0])
        silence.touch()
        fall_silent(group, clock)
        silence.unlink()
        # Perhaps twice: a heartbeat from before the silence may have come late.
        wait_for(lambda: told[-1:] == ["ServiceRecovered"] and not group.status()[0].stalled)
    assert told == ["ServiceStalled", "ServiceRecovered"] * (len(told) // 2)


def test_one_silent_worker_is_a_silent_service(tmp_path: Path) -> None:
    clock = FakeClock()
    group = fake_time_group(clock, signals=())
    service = group.add(
        InProcess(partial(services.Beating, tmp_path), workers=2),
        heartbeat_timeout=1.0,
        on_stall="fail",
    )
    with failing(group) as errors:
        beat_on(group, clock)
        assert not group.status()[0].stalled
        (tmp_path / str(service.pids[1])).touch()
        fall_silent(group, clock)
        wait_for(lambda: group.state is GroupState.STOPPED)
    assert isinstance(errors[0], ServiceStalledError)


def test_a_child_that_is_stopped_gives_no_heartbeat(tmp_path: Path) -> None:
    group = ServiceGroup(signals=())
    service = group.add(InProcess(partial(services.Beating, tmp_path)), heartbeat_timeout=0.3)
    told = stalls(group)
    with group:
        halt(service.pids[0])
        wait_for(lambda: told)
        os.kill(service.pids[0], signal.SIGCONT)
        wait_for(lambda: "ServiceRecovered" in told)


def test_where_a_stalled_service_is_comes_to_the_log(
    caplog: pytest.LogCaptureFixture, shares: Callable[..., None]
) -> None:
    shares(TERM=0.02)
    group = ServiceGroup(signals=(), stop_timeout=LATE)
    group.add(InProcess(services.deaf), name="child", heartbeat_timeout=2.0)

    def where() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "stalled" in line and "in sleep_on" in line]

    with failing(group):
        wait_for(where)


def test_a_service_in_the_child_may_have_itself_watched() -> None:
    error = failure(InProcess(services.Silent))
    assert isinstance(error, ServiceStalledError)


def test_a_service_that_has_no_heartbeat_is_refused_in_the_child(tmp_path: Path) -> None:
    group = ServiceGroup(signals=())
    service = InProcess(partial(services.group_of_two, tmp_path / "notes"))
    group.add(service, heartbeat_timeout=1.0)
    with pytest.raises(ServiceGroupError) as caught, group:
        pass
    assert "heartbeat_timeout needs a heartbeat()" in str(caught.value.exceptions[0])


def test_heartbeats_are_passed_on_at_once_and_then_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("servicegroup._child.time", SimpleNamespace(monotonic=lambda: now))
    sent: list[float] = []
    beats = Beats(lambda message: sent.append(now), 4.0)
    service = services.Steady()
    beats.listen(service)
    assert (beats.pause, sent) == (1.0, [])
    for _ in range(100):
        service.heartbeat()
    assert sent == [100.0]
    now = 101.0
    beats.send()  # the thread that looks at it once in a pause
    beats.send()
    assert sent == [100.0, 101.0]
    now = 101.9
    service.heartbeat()
    assert sent == [100.0, 101.0]
    now = 104.0
    service.heartbeat()
    beats.send()
    assert sent == [100.0, 101.0, 104.0]


# -- the parent's end, and signals ----------------------------------------------------------------

PARENT = """
    from servicegroup import InProcess
    from tests import process_services as services
    from functools import partial
    from pathlib import Path
"""


def assert_within_a_second(measure: Callable[[], float]) -> None:
    """The best of several rounds counts: on a busy machine some take longer."""
    assert any(measure() < 1.0 for _ in range(5))


def seconds_to_end(parent: Child, *pids: int, how: signal.Signals = signal.SIGKILL) -> float:
    """How long its children live on when `parent` is killed."""
    assert all(map(lives, pids))
    at = parent.send(how)
    wait_for(lambda: not any(map(lives, pids)))
    return time.monotonic() - at


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP])
def test_when_the_parent_is_killed_its_child_ends(how: signal.Signals) -> None:
    def measure() -> float:
        with Child(
            PARENT,
            """
            service = InProcess(services.deaf, workers=2)
            group = ServiceGroup()
            group.add(service)
            group.subscribe(tell)
            group.subscribe(lambda event: say("pids", *service.pids))
            group.run()
        """,
        ) as parent:
            parent.wait_for("GroupReady")
            pids = [int(pid) for pid in parent.wait_for("pids").split()[1:]]
            assert len(pids) == 2
            return seconds_to_end(parent, *pids, how=how)

    assert_within_a_second(measure)


def test_when_the_parent_is_killed_code_that_holds_the_lock_ends(tmp_path: Path) -> None:
    def measure() -> float:
        notes = tmp_path / "notes"
        with Child(
            PARENT,
            f"""
            service = InProcess(partial(services.holding_the_lock, Path({str(notes)!r})))
            group = ServiceGroup()
            group.add(service)
            threading.Thread(target=group.start, daemon=True).start()
            wait_for(lambda: service.pids, "no child")
            say("pid", *service.pids)
            signal.pause()
        """,
        ) as parent:
            pid = int(parent.wait_for("pid").split()[1])
            wait_for(notes.exists)
            notes.unlink()
            return seconds_to_end(parent, pid)

    assert_within_a_second(measure)


def test_when_the_parent_is_killed_a_child_that_still_imports_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""if True:
        import os, sys, threading, time
        if __name__ == "__mp_main__":
            os.write(1, f"importing {os.getpid()}\\n".encode())
            time.sleep(600)
        from servicegroup import InProcess, ServiceGroup, with_start
        def factory():
            raise AssertionError
        def tell():
            while not service.pids:
                time.sleep(0.001)
            os.write(1, b"made\\n")
        if __name__ == "__main__":
            service = InProcess(factory)
            threading.Thread(target=tell, daemon=True).start()
            group = ServiceGroup()
            group.add(service)
            group.run()
    """)

    def measure() -> float:
        with Child(f"os.execv(sys.executable, [sys.executable, {str(script)!r}])") as parent:
            wait_for(lambda: len(parent.said("made", "importing")) == 2)
            [line] = parent.said("importing")
            return seconds_to_end(parent, int(line.split()[1]))

    assert_within_a_second(measure)


def test_a_process_forked_from_the_parent_does_not_keep_the_child() -> None:
    def measure() -> float:
        with Child(
            PARENT,
            """
            service = InProcess(services.deaf)
            group = ServiceGroup()
            group.add(service)
            threading.Thread(target=group.start, daemon=True).start()
            group.wait_ready()
            import warnings
            warnings.simplefilter("ignore")
            forked = os.fork()
            if not forked:
                time.sleep(60)
                os._exit(0)
            say("pids", forked, *service.pids)
            signal.pause()
        """,
        ) as parent:
            forked, pid = map(int, parent.wait_for("pids").split()[1:])
            try:
                return seconds_to_end(parent, pid)
            finally:
                os.kill(forked, signal.SIGKILL)

    assert_within_a_second(measure)


def test_ctrl_c_reaches_the_child_through_the_group_only(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with Child(
        """
        os.setpgid(0, 0)
    """,
        PARENT,
        f"""
        service = InProcess(partial(services.Steady, Path({str(notes)!r})))
        group = ServiceGroup()
        group.add(service, name="child")
        group.add(Worker("last"))
        group.subscribe(tell)
        group.run()
    """,
    ) as parent:
        parent.wait_for("GroupReady")
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.end() == 0, parent.stderr
        assert [note.split()[0] for note in notes_of(notes)] == ["start", "drain", "stop", "end"]


def test_ctrl_c_while_the_child_is_made_is_not_its_end(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with Child(
        """
        os.setpgid(0, 0)
    """,
        PARENT,
        f"""
        signal.signal(signal.SIGINT, lambda number, frame: None)
        service = InProcess(partial(services.Steady, Path({str(notes)!r})))
        group = ServiceGroup(signals=())
        group.add(service, name="child")
        group.subscribe(tell)
        threading.Thread(target=group.start, daemon=True).start()
        until = time.monotonic() + 60
        while not group.is_ready and time.monotonic() < until:
            os.killpg(0, signal.SIGINT)
            time.sleep(0.0005)
        say("ready", group.is_ready)
        group.stop()
        group.wait()
    """,
    ) as parent:
        assert parent.wait_for("ready", 2 * PATIENCE) == "ready True"
        assert parent.end() == 0, parent.stderr
        assert "Traceback" not in parent.stderr


def test_the_exit_of_the_program_is_clean() -> None:
    with Child(
        PARENT,
        """
        import warnings
        warnings.simplefilter("error")
        for _ in range(2):
            group = ServiceGroup()
            group.add(InProcess(services.Steady, workers=2))
            with group:
                pass
            say("ended")
        group.add(InProcess(services.Steady))
        group.add(with_start(lambda: group.stop("that was all")))
        group.run()
    """,
    ) as parent:
        for _ in range(2):
            parent.wait_for("ended")
        assert parent.end() == 0, parent.stderr
        assert "resource_tracker" not in parent.stderr
        assert "Warning" not in parent.stderr


def test_a_child_may_have_children(tmp_path: Path) -> None:
    report = outcome(InProcess(services.matryoshka))
    assert report.exit_code == 0


# -- nothing is left ------------------------------------------------------------------------------


def descriptors() -> int:
    resource_tracker.ensure_running()  # multiprocessing's, which stays for good
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_of_twenty_children() -> None:
    service = InProcess(services.Steady, workers=2)
    group = ServiceGroup(signals=())
    group.add(service)
    with group:
        pass
    before = descriptors()
    for turn in range(10):
        with failing(group) if turn % 2 else group:
            if turn % 2:
                os.kill(service.pids[0], signal.SIGKILL)
                wait_for(lambda: group.state is GroupState.STOPPED)
    assert descriptors() == before
    assert zombies() == []


def switches(pids: Iterable[int]) -> int:
    """How often threads of these processes were put on a processor or taken from it.

    -1 while not all of them sleep: on a busy machine one may be waiting for a processor.
    """
    statuses = [status for pid in pids for status in Path(f"/proc/{pid}/task").glob("*/status")]
    try:
        lines = [line for status in statuses for line in status.read_text().splitlines()]
    except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
        return -1
    if any(line.startswith("State:") and line.split()[1] != "S" for line in lines):
        return -1
    return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line)


def test_nothing_wakes_while_nothing_happens() -> None:
    with Child(
        PARENT,
        """
        group = ServiceGroup()
        service = group.add(InProcess(services.Steady, workers=2))
        group.subscribe(tell)
        group.subscribe(lambda event: say("pids", *service.pids))
        group.run()
    """,
    ) as parent:
        parent.wait_for("GroupReady")
        pids = [parent.pid, *map(int, parent.wait_for("pids").split()[1:])]
        before = -1
        until = time.monotonic() + PATIENCE
        while before != (before := switches(pids)) or before < 0:  # they have yet to go to sleep
            assert time.monotonic() < until
            time.sleep(0.2)
        time.sleep(1.0)
        assert switches(pids) == before


def test_when_no_child_can_be_made_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()

    def refuse(*_args: object) -> None:
        raise BlockingIOError("no process left")

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.util.spawnv_passfds", refuse)
    error = failure(InProcess(services.Steady, workers=2))
    monkeypatch.undo()
    assert str(error) == "no process left"
    assert descriptors() == before


INTERRUPTED = """
    def run(service):
        try:
            service.start()
        except KeyboardInterrupt:
            say("interrupted")
        say("left", len(os.listdir("/proc/self/fd")) - before)
        try:
            say("child", os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            say("no child")

    from multiprocessing import resource_tracker
    from multiprocessing.resource_tracker import _resource_tracker
    resource_tracker.ensure_running()
    os.waitpid = lambda pid, flags, waitpid=os.waitpid: (
        waitpid(pid, flags) if pid != -1 else [
            waitpid(int(one), flags) for one in
            open(f"/proc/self/task/{os.getpid()}/children").read().split()
            if int(one) != _resource_tracker._pid
        ]
    )
    before = len(os.listdir("/proc/self/fd"))
"""


def test_ctrl_c_ends_a_start_without_a_group_and_its_child() -> None:
    with Child(
        """
        os.setpgid(0, 0)
    """,
        PARENT,
        INTERRUPTED,
        """
        service = InProcess(services.deaf, workers=2)

        def tell():
            wait_for(lambda: all(part.ready for part in service._parts()) and service.pids, "up")
            say("pids", *service.pids)

        thread = threading.Thread(target=tell)
        thread.start()
        run(service)
    """,
    ) as parent:
        pids = [int(pid) for pid in parent.wait_for("pids").split()[1:]]
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.end() == 0, parent.stderr
        assert parent.said("interrupted", "left", "child") == ["interrupted", "left 0", "child []"]
        assert not any(map(lives, pids))


def test_a_signal_that_another_thread_receives_wakes_a_start_without_a_group() -> None:
    with Child(
        PARENT,
        INTERRUPTED,
        """
        service = InProcess(services.deaf, workers=2)

        def interrupt():
            wait_for(lambda: service.pids and all(part.ready for part in service._parts()), "up")
            wait_for(asleep, "asleep")
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

        def asleep():
            status = open(f"/proc/self/task/{os.getpid()}/status").read()
            return "State:\\tS" in status

        threading.Thread(target=interrupt).start()
        run(service)
    """,
    ) as parent:
        assert parent.end() == 0, parent.stderr
        assert parent.lines == ["interrupted", "left 0", "child []"]


def test_ctrl_c_while_a_child_is_made_leaves_nothing() -> None:
    with Child(
        PARENT,
        INTERRUPTED,
        """
        from multiprocessing import util

        def spawn(*args, spawn=util.spawnv_passfds):
            pid = spawn(*args)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            return pid

        util.spawnv_passfds = spawn
        run(InProcess(services.deaf))
    """,
    ) as parent:
        assert parent.end() == 0, parent.stderr
        assert parent.lines == ["interrupted", "left 0", "child []"]


def test_a_signals_handler_may_stop_a_start_without_a_group() -> None:
    service = InProcess(services.Steady)

    def stop_in_the_midst() -> None:
        with service._lock:  # as a handler that interrupts start() there
            service.stop()
            service.drain()

    thread = threading.Thread(target=stop_in_the_midst, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    service.start()
    assert service.pids == ()


def test_a_process_made_elsewhere_does_not_reap_the_child() -> None:
    service = InProcess(services.Steady)
    group = ServiceGroup(signals=())
    group.add(service)
    with failing(group) as errors:
        [pid] = service.pids
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        # What multiprocessing does whenever a process is made, and at the end of the program.
        while group.state is not GroupState.STOPPED:
            assert multiprocessing.active_children() == []
    [error] = errors
    assert isinstance(error, ChildDiedError)
    assert error.signal == signal.SIGKILL


def test_an_exit_code_that_somebody_else_took() -> None:
    service = InProcess(services.Steady)
    group = ServiceGroup(signals=())
    group.add(service)
    left = descriptors()
    with failing(group) as errors:
        [pid] = service.pids
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes it
        try:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: group.state is GroupState.STOPPED)
        finally:
            signal.signal(signal.SIGCHLD, before)
    assert descriptors() == left
    [error] = errors
    assert isinstance(error, ChildDiedError)
    assert "somebody else has taken its exit code" in str(error)


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_comes_back(times: int, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    policy = Restart(max_restarts=times, within=600.0, delay=0.01, factor=1.0, jitter=0.0)
    group = ServiceGroup(signals=())
    group.add(InProcess(partial(services.Steady, notes)), name="other")
    service = group.add(InProcess(services.Steady), on_failure=policy)
    with group:
        assert notes_of(notes) == ["start"]
        before = descriptors()
        for killed in range(times):
            wait_for(lambda: group.is_ready and service.pids)
            os.kill(service.pids[0], signal.SIGKILL)
            count = killed + 1
            wait_for(lambda count=count: group.status()[1].restarts == count)  # type: ignore[misc]
        wait_for(lambda: group.is_ready and service.pids)
        assert descriptors() == before
        assert zombies() == []
        assert notes_of(notes) == ["start"]
    assert [status.restarts for status in group.status()] == [0, times]


# -- bad input ------------------------------------------------------------------------------------


def _local() -> Callable[[], Service]:
    def factory() -> Service:
        return services.Steady()

    return factory


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda: services.Steady(), r"factory lambda cannot be pickled.*functools\.partial"),
        (_local(), "factory factory cannot be pickled"),
        (partial(_local()), "factory factory cannot be pickled"),
        (services.NotPicklable(), "factory NotPicklable cannot be pickled"),
        (services.coroutine, "factory coroutine is a coroutine function"),
        (None, "factory must be callable, not None"),
        (services.Steady(), "pass what makes the service, not the service"),
        (services.hanging_factory, "needs notes: bind them with functools.partial"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused(factory: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        InProcess(factory)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("workers", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError), ("2", TypeError)],
)
def test_a_wrong_number_of_workers_is_refused(workers: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="workers must be"):
        InProcess(services.Steady, workers=workers)


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (" ", ValueError), (1, TypeError)])
def test_a_wrong_name_is_refused(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="name must"):
        InProcess(services.Steady, name=name)


def test_a_factory_of_a_command_is_refused() -> None:
    with Child("""
        from servicegroup import InProcess

        try:
            InProcess(lambda_free := Worker, name="x")
        except TypeError as error:
            say("refused", error)

        def factory():
            return Worker("a")

        try:
            InProcess(factory)
        except TypeError as error:
            say("refused", error)
    """) as child:
        assert child.end() == 0
        assert len(child.said("refused")) == 2
        assert "-c command" in child.lines[-1]


def test_default_names() -> None:
    assert InProcess(services.Steady).name == "Steady"
    assert InProcess(partial(partial(services.Steady), None)).name == "Steady"
    assert InProcess(services.returning).name == "returning"
    assert InProcess(services.returning, name="mine").name == "mine"


# -- the pipe -------------------------------------------------------------------------------------


def test_messages_are_put_together_from_any_pieces() -> None:
    messages = [("a", 1), ("b", b"x" * 1000), ("c",)]
    data = b"".join(map(frame, messages))
    for size in (1, 7, 500, len(data)):
        frames = Frames()
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        assert [message for piece in pieces for message in frames.feed(piece)] == messages


def test_what_a_forked_process_sends_is_dropped() -> None:
    read, write = os.pipe()
    sender = Sender(write)
    sender._pid += 1
    sender.send(("a",))
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_message_in_the_midst_of_another_waits_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, write = os.pipe()
    sender = Sender(write)
    inner = [("inner",)]
    real = os.write

    def interrupted(fd: int, data: memoryview) -> int:
        if fd == write and inner:
            sender.send(inner.pop())  # as a signal's handler that logs
        return real(fd, data[:3] if fd == write else data)

    monkeypatch.setattr("os.write", interrupted)
    thread = threading.Thread(target=sender.send, args=[("outer",)], daemon=True)
    thread.start()
    thread.join(PATIENCE)
    monkeypatch.undo()
    assert not thread.is_alive()
    assert list(Frames().feed(os.read(read, 65536))) == [("outer",), ("inner",)]
    os.close(read)
    os.close(write)


def test_a_handler_that_raises_tears_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    sender = Sender(write)
    real, calls = os.write, [1, 2]

    def interrupted(fd: int, data: memoryview) -> int:
        if fd == write and calls and calls.pop() == 1:
            raise KeyboardInterrupt
        return real(fd, data[:3])

    monkeypatch.setattr("os.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sender.send(("first",))
    sender.send(("second",))
    monkeypatch.undo()
    assert list(Frames().feed(os.read(read, 65536))) == [("first",), ("second",)]
    os.close(read)
    os.close(write)


def test_a_dead_child_does_not_end_a_program_that_sigpipe_ends() -> None:
    with Child("""
        import socket
        from servicegroup._child_pipe import Line

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        ours, theirs = socket.socketpair()
        theirs.close()
        Line(ours).send(("stop", 1.0))
        say("alive")
    """) as child:
        assert child.end() == 0
        assert child.lines == ["alive"]


def test_large_arguments_come_through() -> None:
    service = InProcess(partial(services.counting, b"x" * 5_000_000, 5_000_000))
    assert outcome(service).exit_code == 0


def test_the_errors_can_be_pickled() -> None:
    error = ChildDiedError("killed", 12, -9)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.pid, again.exit_code, again.signal) == ("killed", 12, -9, 9)
