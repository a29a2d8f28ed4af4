"""How a process ends: its exit code, what it prints last, and that it does end."""

from __future__ import annotations

import signal
import time

import pytest

from tests.child import PATIENCE, Child

SHUTDOWN_TIMEOUT = 3.0  # where something is to be done in it, also on a busy machine
SHORT = 0.3  # where nothing is
# Sooner than by the timeouts that a group has by default, later than on a busy machine.
IN_TIME = 20.0

METHODS = pytest.mark.parametrize("method", ["start", "run"])

_RAISES = """
    def raises(error, name):
        def start():
            group.wait_ready()
            raise error

        service = with_start(start)
        service.name = name
        return service

    class BadStop(Worker):
        def stop(self):
            super().stop()
            raise OSError("disk full")
"""

# One that the deciding thread can stop by itself, so that no timeout is too short for its stop.
_IDLE = """
    class Idle(Service):
        ready_when = "returned"

        def start(self):
            pass
"""

# What ends the process does so by a real time. Here it waits for what it is to end.
_UNHURRIED = """
    from servicegroup import _exit

    _exit.PRINT_SECONDS = 10.0  # for last words, and until it would be faulthandler's turn
    told = threading.Event()
    keeping = threading.Event()

    def guard(*args, guard=_exit.LastResort._guard):
        told.wait()
        keeping.wait()
        guard(*args)

    _exit.LastResort._guard = guard
"""

# Time that passes as soon as `move` has seen what is to come before.
_CLOCK = """
    from tests.fake_time import FakeClock, fake_time_group

    clock = FakeClock()

    def group_of(*names, **options):
        group = fake_time_group(clock, **options)
        group.subscribe(tell)
        for name in names:
            group.add(Worker(name))
        return group

    def asked(*names):
        return all(group.services[name].released.is_set() for name in names)

    def move(*steps):
        def run():
            for condition, seconds in steps:
                wait_for(condition, "the next step")
                clock.advance(seconds)

        threading.Thread(target=run, daemon=True).start()
"""


# -- exit codes -----------------------------------------------------------------------------------


@METHODS
def test_failed_service_ends_the_process_with_1_and_a_traceback_that_names_it(method: str) -> None:
    with Child(
        _RAISES,
        f"""
        group = group_of("a", "b")
        group.add(raises(ConnectionError("no broker"), "api"))
        group.{method}()
    """,
    ) as child:
        assert child.end() == 1
        assert child.said("stop") == ["stop b", "stop a"]
        assert "Traceback" in child.stderr
        assert "ConnectionError: no broker" in child.stderr
        assert "in service 'api', while running" in child.stderr
        assert ", in start" in child.stderr


def test_what_is_told_on_a_closed_stderr_is_not_told_on_stdout() -> None:
    with Child(
        _RAISES,
        """
        sys.stderr = None  # as Python has it then
        group = group_of("a")
        group.add(raises(ConnectionError("no broker"), "api"))
        group.run()
    """,
    ) as child:
        assert child.end() == 1
        assert [line for line in child.lines if "group" in line or "broker" in line] == []


@METHODS
def test_services_that_all_return_end_the_process_with_0(method: str) -> None:
    with Child(f"""
        group = ServiceGroup()
        group.add(with_start(lambda: None))
        group.{method}()
    """) as child:
        assert child.end() == 0
        assert "Traceback" not in child.stderr


@METHODS
def test_exit_code_of_a_service_is_that_of_the_process(method: str) -> None:
    with Child(
        _RAISES,
        f"""
        group = group_of("a", "b")
        group.add(raises(SystemExit(125), "api"))
        group.{method}()
    """,
    ) as child:
        assert child.end() == 125
        assert child.said("stop", "end") == ["stop b", "end b", "stop a", "end a"]


@METHODS
def test_text_passed_to_sys_exit_is_printed_and_the_exit_code_is_1(method: str) -> None:
    with Child(
        _RAISES,
        f"""
        group = group_of("a")
        group.add(raises(SystemExit("no configuration"), "api"))
        group.{method}()
    """,
    ) as child:
        assert child.end() == 1
        assert child.said("stop") == ["stop a"]
        assert "no configuration\n" in child.stderr


@METHODS
def test_sys_exit_0_stops_the_group_cleanly(method: str) -> None:
    with Child(
        _RAISES,
        f"""
        group = group_of("a")
        group.add(raises(SystemExit(0), "api"))
        group.{method}()
    """,
    ) as child:
        assert child.end() == 0
        assert child.said("stop") == ["stop a"]


@METHODS
def test_sys_exit_0_hides_no_failure_that_follows(method: str) -> None:
    with Child(
        _RAISES,
        f"""
        group = group_of()
        group.add(BadStop("disk"))
        group.add(raises(SystemExit(0), "api"))
        group.{method}()
    """,
    ) as child:
        assert child.end() == 1
        assert "OSError: disk full" in child.stderr
        assert "in service 'disk', while stopping" in child.stderr


@METHODS
def test_sys_exit_0_hides_no_failure_that_came_before(method: str) -> None:
    with Child(
        _RAISES,
        f"""
        class ExitingStop(Worker):
            def stop(self):
                super().stop()
                sys.exit()

        group = group_of()
        group.add(ExitingStop("quits"))
        group.add(raises(OSError("disk full"), "disk"))
        group.{method}()
    """,
    ) as child:
        assert child.end() == 1
        assert "in service 'disk', while running" in child.stderr


@METHODS
def test_sys_exit_with_a_code_shows_the_failures_too(method: str) -> None:
    with Child(
        _RAISES,
        f"""
        group = group_of()
        group.add(BadStop("disk"))
        group.add(raises(SystemExit(125), "api"))
        group.{method}()
        """,
    ) as child:
        assert child.end() == 125
        # start() raises the SystemExit, which the interpreter does not print, nor its cause.
        assert ("in service 'disk', while stopping" in child.stderr) == (method == "run")


# -- run() ----------------------------------------------------------------------------------------


def test_run_prints_failures_then_report_and_lets_outer_finally_blocks_run() -> None:
    with Child(
        _RAISES,
        """
        group = group_of("a", name="shop")
        group.add(raises(ValueError("boom"), "api"))
        try:
            group.run()
        finally:
            say("finally", repr(sys.exc_info()[1]))
    """,
    ) as child:
        assert child.end() == 1
        assert child.said("finally") == ["finally SystemExit(1)"]
        traceback, _, report = child.stderr.partition("group 'shop' ended after")
        assert "ValueError: boom" in traceback
        assert "exit code 1: service 'api' failed: ValueError: boom" in report
        assert [line.split()[:2] for line in report.splitlines()[1:]] == [
            ["service", "state"],
            ["a", "stopped"],
            ["api", "failed"],
        ]


def test_run_in_another_thread_raises_system_exit_there() -> None:
    with Child(
        _RAISES,
        """
        group = group_of("a")
        group.add(raises(SystemExit(7), "api"))

        def body():
            try:
                group.run()
            except SystemExit as error:
                say("code", error.code)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
    """,
    ) as child:
        assert child.end() == 0
        assert child.said("code", "stop") == ["stop a", "code 7"]


# -- services that hang ---------------------------------------------------------------------------

_HANGING = """
    class HungStart(Worker):
        def start(self):
            while True:
                threading.Event().wait()

    class HungStop(Worker):
        def stop(self):
            super().stop()
            threading.Event().wait()
"""


@METHODS
@pytest.mark.parametrize("kind", ["HungStart", "HungStop"])
def test_hung_service_neither_keeps_the_process_nor_costs_another_its_stop(
    method: str, kind: str
) -> None:
    # A stop_timeout longer than the whole stop may take: only the reserve saves the others.
    with Child(
        _HANGING,
        _CLOCK,
        f"""
        group = group_of("a", "b", shutdown_timeout=100, stop_timeout=300)
        group.add({kind}("hung"))
        group.add(Worker("c"))
        move((lambda: asked("hung"), 91), (lambda: asked("a", "b"), 8))
        group.{method}()
    """,
    ) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        assert child.end() == 1
        stops = child.said("stop")
        assert stops[:2] == ["stop c", "stop hung"]
        assert sorted(stops[2:]) == ["stop a", "stop b"]
        assert "StopTimeoutError: service 'hung' did not stop within" in child.stderr
        assert "in service 'hung', while stopping" in child.stderr
        assert "threading.Event().wait()" in child.stderr or ", in st" in child.stderr


@METHODS
def test_many_hung_services_keep_the_process_no_longer_than_one(method: str) -> None:
    with Child(
        _HANGING,
        f"""
        from servicegroup import _run

        _run.RESERVE_SHARE = 0.25  # of seconds, so that all are asked also on a busy machine
        group = group_of("a", shutdown_timeout={SHUTDOWN_TIMEOUT}, stop_timeout=300)
        for i in range(20):
            group.add((HungStart, HungStop)[i % 2](f"hung-{{i}}"))
        group.add(Worker("b"))
        group.{method}()
    """,
    ) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGTERM)
        assert child.end() == 1
        assert time.monotonic() - at < IN_TIME
        assert len(child.said("stop")) == len(set(child.said("stop"))) == 22


def test_hung_service_leaves_the_others_time_to_stop() -> None:
    with Child(
        _HANGING,
        _CLOCK,
        """
        class Unhurried(Worker):
            def stop(self):
                time.sleep(0.05)
                super().stop()

        def others_have_stopped():
            return [status.state.value for status in group.status()[:3]] == ["stopped"] * 3

        def hung_has_returned():
            return all(thread.name != "group/hung" for thread in threading.enumerate())

        group = group_of(shutdown_timeout=100, stop_timeout=300)
        for name in "abc":
            group.add(Unhurried(name))
        group.add(HungStop("hung"))
        move(
            (lambda: asked("hung"), 91),
            (lambda: others_have_stopped() and hung_has_returned(), 8),
        )
        group.run()
    """,
    ) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        assert child.end() == 1
        assert sorted(child.said("end")) == ["end a", "end b", "end c", "end hung"]
        assert child.stderr.count("StopTimeoutError: service ") == 1 + 1  # and in the report


def test_service_abandoned_by_its_own_timeout_is_followed_in_order() -> None:
    with Child(
        _HANGING,
        _CLOCK,
        """
        group = group_of("a", "b", shutdown_timeout=300)
        group.add(HungStop("hung"), stop_timeout=0.2)
        move((lambda: asked("hung"), 0.3))
        group.run()
    """,
    ) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        assert child.end() == 1
        assert child.said("stop") == ["stop hung", "stop b", "stop a"]


# -- what else could keep the process -------------------------------------------------------------

_KEEPERS = {
    "non-daemon thread": """
        def keeps_the_process():
            keeping.set()
            threading.Event().wait()

        threading.Thread(target=keeps_the_process, name="keeper").start()
    """,
    "executor thread": """
        from concurrent.futures import ThreadPoolExecutor

        def keeps_the_process():
            keeping.set()
            threading.Event().wait()

        ThreadPoolExecutor(thread_name_prefix="keeper").submit(keeps_the_process)
    """,
    "exit hook": """
        import atexit

        def keeps_the_process():
            keeping.set()
            threading.Event().wait()

        atexit.register(keeps_the_process)
    """,
}
_KEEPER = pytest.mark.parametrize("keeper", _KEEPERS.values(), ids=_KEEPERS)


@pytest.mark.parametrize(
    ("keeper", "raised", "code"),
    [
        *((keeper, None, 0) for keeper in _KEEPERS.values()),
        (_KEEPERS["non-daemon thread"], "ValueError()", 1),
        (_KEEPERS["executor thread"], "SystemExit(125)", 125),
    ],
    ids=[*_KEEPERS, "failure", "exit code"],
)
def test_run_ends_the_process_with_the_outcome_whatever_wants_to_keep_it(
    keeper: str, raised: str | None, code: int
) -> None:
    with Child(
        _UNHURRIED,
        keeper,
        _IDLE,
        f"""
        asked = threading.Event()
        signal.signal(signal.SIGUSR2, lambda *_: asked.set())

        def raising():
            asked.wait()
            raise {raised or "AssertionError"}

        group = group_of(shutdown_timeout={SHORT})
        group.add(Idle())
        if {raised is not None}:
            group.add(with_start(raising))
        try:
            group.run()
        finally:
            told.set()
    """,
    ) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGTERM if raised is None else signal.SIGUSR2)
        assert child.end() == code
        assert SHORT <= time.monotonic() - at < IN_TIME
        assert f", exit code {code}: " in child.stderr
        assert "ending the process, which did not end by itself" in child.stderr
        assert "in keeps_the_process" in child.stderr


def test_run_ends_the_process_though_an_outer_finally_block_hangs() -> None:
    with Child(
        _UNHURRIED,
        _IDLE,
        f"""
        group = group_of(shutdown_timeout={SHORT})
        group.add(Idle())
        try:
            group.run()
        finally:
            say("finally")
            told.set()
            keeping.set()
            threading.Event().wait()
    """,
    ) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGTERM)
        child.wait_for("finally")
        assert child.end() == 0
        assert time.monotonic() - at < IN_TIME


def test_run_ends_the_process_with_the_outcome_though_nobody_reads_its_stderr() -> None:
    source = f"""
        import faulthandler

        later = faulthandler.dump_traceback_later  # its turn comes when a busy machine had ours
        faulthandler.dump_traceback_later = lambda seconds, **more: later(seconds + 30, **more)
        group = group_of(shutdown_timeout={SHORT})
        group.add(Idle())
        fill_stderr()
        group.run()
    """
    with Child(_IDLE, source, unread=True) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGTERM)
        assert child.end() == 0
        assert time.monotonic() - at < IN_TIME


# Of the two, ctypes can be missing; the other one takes practically for ever to match, in C.
_LOCK_HOLDERS = {
    "foreign code": """
        import ctypes

        def hold_the_interpreter_lock():
            ctypes.PyDLL(None).pause()
    """,
    "regular expression": """
        import re

        def hold_the_interpreter_lock():
            re.match(r"(a+)+$", "a" * 60 + "b")
    """,
}
_HOLDER = pytest.mark.parametrize("holder", _LOCK_HOLDERS.values(), ids=_LOCK_HOLDERS)


@_HOLDER
def test_run_ends_the_process_though_a_stop_holds_the_interpreter_lock_for_ever(
    holder: str,
) -> None:
    with Child(
        holder,
        f"""

        class Holding(Worker):
            def stop(self):
                say("stop", self.name)
                hold_the_interpreter_lock()

        group = group_of("a", shutdown_timeout={SHUTDOWN_TIMEOUT})
        group.add(Holding("holding"))
        group.run()
    """,
    ) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGTERM)
        child.wait_for("stop holding")
        assert child.end() == 1
        assert time.monotonic() - at < IN_TIME
        assert "in hold_the_interpreter_lock" in child.stderr


def test_run_ends_the_process_though_an_exit_hook_holds_the_interpreter_lock() -> None:
    with Child(
        _LOCK_HOLDERS["foreign code"],
        f"""
        import atexit

        atexit.register(hold_the_interpreter_lock)
        group = group_of("a", shutdown_timeout={SHUTDOWN_TIMEOUT})
        group.run()
    """,
    ) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGTERM)
        assert child.end() == 1
        assert time.monotonic() - at < IN_TIME
        assert "in hold_the_interpreter_lock" in child.stderr


def test_run_that_could_not_begin_leaves_the_process_to_go_on() -> None:
    with Child("""
        group = group_of("a", shutdown_timeout=0.1)
        start = threading.Thread.start

        def no_thread(self):
            raise RuntimeError("can't start new thread")

        threading.Thread.start = no_thread
        descriptors = len(os.listdir("/dev/fd"))
        try:
            group.run()
        except RuntimeError as error:
            say("raised", error)
        say("left open", len(os.listdir("/dev/fd")) - descriptors)
        threading.Thread.start = start
    """) as child:
        assert child.end() == 0
        assert child.said("raised", "left") == ["raised can't start new thread", "left open 0"]


# -- signals that come while the process ends -----------------------------------------------------


@_KEEPER
def test_one_more_signal_ends_a_process_that_does_not_end_with_the_same_code(keeper: str) -> None:
    with Child(
        _UNHURRIED,
        keeper,
        """
        group = group_of("a", shutdown_timeout=300)
        try:
            group.run()
        finally:
            say("finally")
            told.set()
    """,
    ) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        child.wait_for("finally")
        at = time.monotonic()
        # Again and again: one that comes too soon after the end counts as the first one's echo.
        while child.process.poll() is None and time.monotonic() - at < PATIENCE:
            child.send(signal.SIGTERM)
            time.sleep(0.05)
        assert child.end() == 0
        assert "in keeps_the_process" in child.stderr


@pytest.mark.parametrize("rounds", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_late_signals_cannot_turn_0_into_143(rounds: int) -> None:
    for _ in range(rounds):
        with Child("""
            group = group_of("a")
            try:
                group.run()
            finally:
                say("finally")
        """) as child:
            child.wait_for("GroupReady")
            child.send(signal.SIGTERM)
            child.wait_for("finally")
            while child.process.poll() is None:
                child.send(signal.SIGTERM)
            assert child.end() == 0
