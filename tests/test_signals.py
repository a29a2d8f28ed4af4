"""Signals, in processes of their own wherever a signal could end the tests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from servicegroup import ServiceGroup, ServiceGroupError, with_start
from servicegroup._signals import Signals
from tests.child import PATIENCE, Child

REPEAT_SECONDS = 0.25
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
# Long before a timeout of the group could have ended it, long after a busy machine would have.
PROMPT = 20.0

_LAST_WORDS = """
    from servicegroup import _exit

    _exit.PRINT_SECONDS = 10.0  # also a busy machine gets to say them
"""


# -- the first signal -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", ["start", "run"])
def test_first_signal_stops_in_reverse_order_and_the_exit_code_is_0(
    number: signal.Signals, method: str
) -> None:
    with Child(f"""
        group = group_of("a", "b", "c")
        report = group.{method}()
        print(report, file=sys.stderr)
    """) as child:
        child.wait_for("GroupReady")
        child.send(number)
        assert child.end() == 0
        order = ["stop c", "end c", "stop b", "end b", "stop a", "end a"]
        assert child.said("stop", "end") == order
        assert f"exit code 0: {number.name}\n" in child.stderr


@BOTH
def test_signal_during_the_start_skips_the_rest_and_stops_what_was_started(
    number: signal.Signals,
) -> None:
    with Child("""
        class NeverReady(Worker):
            ready_when = "announced"

            def start(self):
                say("in", self.name)
                super().start()

        group = group_of("a")
        group.add(NeverReady("b"))
        group.add(Worker("c"))
        report = group.start()
        say("c is", report.services[2].state.value)
        say("reason", report.reason)
    """) as child:
        child.wait_for("in b")
        child.send(number)
        assert child.end() == 0
        assert child.said("stop", "end") == ["stop b", "end b", "stop a", "end a"]
        assert child.said("c", "reason") == ["c is new", f"reason {number.name}"]
        assert "GroupReady" not in child.lines


_ROUNDS = """
    import logging
    import random

    logging.disable()
    chance = random.Random()


    def after(seconds):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        return time.monotonic()
"""


@pytest.mark.parametrize(
    "rounds", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["300", "10000"]
)
def test_no_signal_is_late_that_comes_just_as_the_main_thread_goes_to_wait(rounds: int) -> None:
    with Child(
        _ROUNDS,
        f"""
        worst = 0.0
        for _ in range({rounds}):
            group = ServiceGroup()
            sent = []

            def start(stopping):
                sent.append(after(chance.uniform(0, 0.0003)))
                stopping.wait()

            group.add(with_start(start))
            report = group.start()
            worst = max(worst, time.monotonic() - sent[0])
            assert report.reason == "SIGTERM", report
        say("worst", worst)
    """,
    ) as child:
        worst = float(child.wait_for("worst", 10 * PATIENCE).split()[1])
        assert child.end() == 0
        assert worst < PROMPT


@pytest.mark.parametrize(
    "rounds", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["300", "10000"]
)
@pytest.mark.parametrize("signals", ["()", "(signal.SIGINT, signal.SIGTERM)"])
def test_no_signal_around_the_start_is_lost_between_two_handlers(rounds: int, signals: str) -> None:
    # The user's handler stops the group as well, so whoever gets the signal, start() must return.
    with Child(
        _ROUNDS,
        f"""
        group = None
        signal.signal(signal.SIGTERM, lambda *_: group.stop("handler"))

        def send(seconds):
            if seconds:
                time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGTERM)

        reasons = {{}}
        for _ in range({rounds}):
            group = ServiceGroup(signals={signals})
            group.add(with_start(threading.Event.wait.__get__(done := threading.Event()), done.set))
            seconds = chance.choice([0, chance.uniform(0, 0.001)])
            sender = threading.Thread(target=send, args=(seconds,))
            sender.start()
            report = group.start()
            sender.join()
            reasons[report.reason] = reasons.get(report.reason, 0) + 1
        say("reasons", sorted(reasons))
    """,
    ) as child:
        reasons = child.wait_for("reasons", 10 * PATIENCE)
        assert child.end() == 0
        taken = "['SIGTERM', 'handler']" if signals != "()" else "['handler']"
        assert reasons == f"reasons {taken}"


@pytest.mark.parametrize(
    "rounds", [20, pytest.param(300, marks=pytest.mark.slow)], ids=["20", "300"]
)
def test_no_signal_from_outside_is_late(rounds: int) -> None:
    with Child(f"""
        import logging

        logging.disable()
        for _ in range({rounds}):
            group = ServiceGroup()
            group.add(with_start(lambda stopping: (say("go"), stopping.wait())))
            group.start()
            say("ended")
    """) as child:
        for i in range(rounds):
            child.wait_for("go")
            until = time.perf_counter() + i % 20 * 20e-6
            while time.perf_counter() < until:
                pass
            at = child.send(signal.SIGTERM)
            child.wait_for("ended")
            assert time.monotonic() - at < PROMPT
        assert child.end() == 0


# -- the second signal ----------------------------------------------------------------------------


def test_second_signal_while_draining_ends_the_process_at_once() -> None:
    with Child(
        _LAST_WORDS,
        """
        class Announcing(Worker):
            ready_when = "announced"

            def start(self):
                self.mark_ready()
                super().start()

        group = group_of(drain_delay=300, shutdown_timeout=400)
        group.add(Announcing("api"))
        group.run()
    """,
    ) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        child.wait_for("GroupDraining")
        time.sleep(REPEAT_SECONDS + 0.05)
        at = child.send(signal.SIGINT)
        assert child.end() == 130
        assert time.monotonic() - at < PROMPT
        assert "SIGINT again, leaving at once; still running: 1" in child.stderr
        assert "service 'api' is running" in child.stderr
        assert "in start" in child.stderr


_HANGS = """
    class Hanging(Worker):
        def start(self):
            threading.Event().wait()

        def stop(self):
            self.hangs_here()

        def hangs_here(self):
            say("stop", self.name)
            threading.Event().wait()

    group = group_of("quick", stop_timeout=300, shutdown_timeout=400)
    group.add(Hanging("hung"))
"""


@BOTH
@pytest.mark.parametrize("method", ["start", "run"])
def test_second_signal_during_a_hung_stop_ends_the_process_and_prints_what_hangs(
    number: signal.Signals, method: str
) -> None:
    with Child(_LAST_WORDS, _HANGS, f"group.{method}()") as child:
        child.wait_for("GroupReady")
        child.send(number)
        child.wait_for("stop hung")
        time.sleep(REPEAT_SECONDS + 0.05)
        at = child.send(number)
        assert child.end() == 128 + number
        assert time.monotonic() - at < PROMPT
        assert f"{number.name} again, leaving at once; still running: 2" in child.stderr
        assert "service 'hung' is stopping" in child.stderr
        assert "in hangs_here" in child.stderr


def test_second_signal_ends_the_process_though_nobody_reads_its_stderr() -> None:
    with Child(_HANGS, "fill_stderr()", "group.run()", unread=True) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        child.wait_for("stop hung")
        time.sleep(REPEAT_SECONDS + 0.05)
        at = child.send(signal.SIGTERM)
        assert child.end() == 143
        assert time.monotonic() - at < PROMPT


def test_second_signal_ends_the_process_though_a_hung_thread_holds_the_lock_of_stderr() -> None:
    with Child("""
        import io

        class Stuck(io.TextIOBase):
            def write(self, text):
                threading.Event().wait()

        class Printing(Worker):
            def stop(self):
                say("stop", self.name)
                print("held", file=sys.stderr)

        sys.stderr = Stuck()
        group = group_of(stop_timeout=300, shutdown_timeout=400)
        group.add(Printing("hung"))
        group.run()
    """) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        child.wait_for("stop hung")
        time.sleep(REPEAT_SECONDS + 0.05)
        at = child.send(signal.SIGINT)
        assert child.end() == 130
        assert time.monotonic() - at < PROMPT


# What counts is when the main thread hears of them, which on a busy machine may be late.
_CLOCK = """
    from types import SimpleNamespace

    import servicegroup.group

    class Clock:
        time = 1000.0
        looks = []

        def monotonic(self):
            self.looks.append(self.time)
            return self.time

    clock = Clock()
    servicegroup.group.time = SimpleNamespace(monotonic=clock.monotonic)

    def wait_for_both():
        wait_for(lambda: len(clock.looks) == 2, clock.looks)
"""


def test_same_signal_twice_within_a_tenth_of_a_second_is_one_request() -> None:
    with Child(
        _CLOCK,
        """
        class Twice(Worker):
            def start(self):
                os.kill(os.getpid(), signal.SIGTERM)
                super().start()

            def stop(self):
                clock.time += 0.1
                os.kill(os.getpid(), signal.SIGTERM)
                wait_for_both()
                super().stop()

        group = group_of()
        group.add(Twice("a"), stop_timeout=300)
        say("reason", group.start().reason)
    """,
    ) as child:
        assert child.end() == 0
        assert child.said("stop", "end", "reason") == ["stop a", "end a", "reason SIGTERM"]


def test_sigint_and_sigterm_at_the_same_moment_are_one_request() -> None:
    with Child(
        _CLOCK,
        """
        class Slow(Worker):
            def stop(self):
                wait_for_both()
                super().stop()

        group = group_of()
        group.add(Slow("a"), stop_timeout=300)
        group.run()
    """,
    ) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        child.send(signal.SIGINT)
        assert child.end() == 0
        assert child.said("stop", "end") == ["stop a", "end a"]


# -- signals that the group does not take ---------------------------------------------------------


def test_stop_from_the_users_own_handler_is_prompt_without_signals() -> None:
    with Child("""
        group = group_of("a", "b", signals=())
        signal.signal(signal.SIGTERM, lambda *_: group.stop("my handler"))
        say("reason", group.start().reason)
    """) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGTERM)
        assert child.end() == 0
        assert time.monotonic() - at < PROMPT
        assert child.said("stop") == ["stop b", "stop a"]
        assert "reason my handler" in child.lines


def test_keyboard_interrupt_is_raised_only_after_a_full_stop_without_signals() -> None:
    with Child("""
        group = group_of("a", "b", signals=(), drain_delay=300, shutdown_timeout=400)
        try:
            group.start()
        except KeyboardInterrupt:
            say("interrupted", group.state.value)
    """) as child:
        child.wait_for("GroupReady")
        at = child.send(signal.SIGINT)
        assert child.end() == 0
        assert time.monotonic() - at < PROMPT
        told = ["stop b", "end b", "stop a", "end a", "interrupted stopped"]
        assert child.said("stop", "end", "interrupted") == told


def test_keyboard_interrupt_at_any_moment_of_the_start_is_raised_only_after_a_full_stop() -> None:
    with Child("""
        import random

        def start(stopping):
            until = time.perf_counter() + random.uniform(0, 0.0003)
            while time.perf_counter() < until:
                pass
            os.kill(os.getpid(), signal.SIGINT)
            stopping.wait()

        outcomes = set()
        for _ in range(1000):
            group = ServiceGroup(signals=())
            group.add(with_start(start))
            try:
                group.start()
            except KeyboardInterrupt:
                outcomes.add(group.state.value)
            group.stop()
            group.wait()
        say("outcomes", *outcomes)
    """) as child:
        assert child.wait_for("outcomes", 10 * PATIENCE) == "outcomes stopped"
        assert child.end() == 0


def test_keyboard_interrupt_during_run_is_printed_and_the_outcome_is_the_groups() -> None:
    with Child('group_of("a", "b", signals=()).run()') as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGINT)
        assert child.end() == 0
        assert child.said("stop") == ["stop b", "stop a"]
        assert "KeyboardInterrupt" in child.stderr
        assert "exit code 0: KeyboardInterrupt()" in child.stderr


def test_group_started_in_another_thread_takes_no_signal() -> None:
    with Child("""
        group = group_of("a")
        mine = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: say("mine", group.state.value))
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        thread = threading.Thread(target=group.start)
        thread.start()
        group.wait_ready()
        now = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        say("untouched", now == before and signal.set_wakeup_fd(-1) == -1)
        thread.join()
    """) as child:
        child.wait_for("untouched True")
        child.send(signal.SIGTERM)
        child.wait_for("mine running")
        child.send(signal.SIGTERM)
        child.wait_for("mine running")
        assert child.said("stop") == []


# -- forks ----------------------------------------------------------------------------------------


def test_sigterm_to_a_multiprocessing_child_ends_that_child_and_not_the_parent() -> None:
    with Child("""
        import multiprocessing

        def body(parent):
            fd = signal.set_wakeup_fd(-1)
            say("forked", os.getpid(), signal.getsignal(signal.SIGTERM).name, fd)
            while os.getppid() == parent:  # not longer than a parent that was killed
                time.sleep(0.05)

        class Forking(Worker):
            def start(self):
                fork = multiprocessing.get_context("fork")
                process = fork.Process(target=body, args=(os.getpid(),))
                process.start()
                process.join()
                say("exitcode", process.exitcode)
                super().start()

        group = group_of("a")
        group.add(Forking("forking"))
        group.run()
    """) as child:
        _, pid, handler, descriptor = child.wait_for("forked").split()
        assert (handler, descriptor) == ("SIG_DFL", "-1")
        os.kill(int(pid), signal.SIGTERM)
        child.wait_for("exitcode -15")
        assert child.said("GroupDraining", "stop") == []
        child.send(signal.SIGTERM)
        assert child.end() == 0
        assert child.said("stop") == ["stop forking", "stop a"]


def test_sigterm_to_a_child_that_was_forked_that_moment_does_not_reach_the_parent() -> None:
    with Child("""
        import warnings

        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads: on purpose

        def fork(stopping):
            group.wait_ready()
            for _ in range(100):
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    while os.getppid() == parent:
                        time.sleep(0.01)
                    os._exit(0)
                os.kill(pid, signal.SIGTERM)
                _, status = os.waitpid(pid, 0)
                if os.waitstatus_to_exitcode(status) != -signal.SIGTERM:
                    say("survived", status)
            say("forked", group.state.value, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            stopping.wait()

        group = group_of("a")
        group.add(with_start(fork))
        group.run()
    """) as child:
        child.wait_for("forked running set()", 10 * PATIENCE)
        assert child.said("survived", "GroupDraining") == []
        child.send(signal.SIGTERM)
        assert child.end() == 0


# -- before and after -----------------------------------------------------------------------------


@pytest.fixture
def _own_signals() -> Iterator[list[int]]:
    """A handler of ours for SIGTERM, whose calls are in the list, and a wake-up descriptor."""
    calls: list[int] = []

    def handler(number: int, _frame: FrameType | None) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    read, write = os.pipe()
    os.set_blocking(write, False)
    wakeup = signal.set_wakeup_fd(write)
    try:
        yield calls
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.set_wakeup_fd(wakeup) == write
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(read)
        os.close(write)


def _handlers() -> list[object]:
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def test_handlers_and_wakeup_descriptor_are_put_back(_own_signals: list[int]) -> None:  # noqa: PT019
    before = _handlers()
    during: list[object] = []
    group = ServiceGroup()
    group.add(with_start(lambda: during.extend(_handlers())))
    group.start()
    assert len(during) == 3
    assert not set(before) & set(during)
    assert _handlers() == before


def test_handlers_are_put_back_after_a_failure(_own_signals: list[int]) -> None:  # noqa: PT019
    before = _handlers()
    group = ServiceGroup()
    group.add(with_start(lambda: 1 / 0))
    with pytest.raises(ServiceGroupError):
        group.start()
    assert _handlers() == before


def test_handlers_are_put_back_when_no_thread_can_be_made(
    _own_signals: list[int],  # noqa: PT019
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = _handlers()
    group = ServiceGroup()
    group.add(with_start(lambda: None))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            group.start()
    assert _handlers() == before


def test_handler_that_a_service_set_meanwhile_is_left_alone() -> None:
    # Only the main thread may set one: here in a handler that runs in it.
    before = _handlers()

    def other(_number: int, _frame: FrameType | None) -> None:
        pass

    def replace(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, other)
        group.stop()

    group = ServiceGroup()
    group.add(with_start(lambda: os.kill(os.getpid(), signal.SIGUSR2)))
    usr2 = signal.signal(signal.SIGUSR2, replace)
    try:
        group.start()
        assert signal.getsignal(signal.SIGTERM) is other
    finally:
        signal.signal(signal.SIGUSR2, usr2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert _handlers() == before


def test_signal_after_the_end_is_passed_on_to_the_handler_before(
    _own_signals: list[int],  # noqa: PT019
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def give_back(self: Signals, *_exc: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(self)

    original = Signals.__exit__
    monkeypatch.setattr(Signals, "__exit__", give_back)
    ServiceGroup().start()
    assert _own_signals == [signal.SIGTERM]


def test_no_signal_after_the_end_is_lost(_own_signals: list[int]) -> None:  # noqa: PT019
    # Whether the group's descriptor or the handler before gets it is a matter of microseconds (and
    # both may, which does no harm).
    for _ in range(300):
        group = ServiceGroup()
        group.add(with_start(lambda: None))

        def late(group: ServiceGroup = group) -> None:
            group.wait()
            os.kill(os.getpid(), signal.SIGTERM)

        before = len(_own_signals)
        thread = threading.Thread(target=late)
        thread.start()
        group.start()
        thread.join()
        assert len(_own_signals) > before


# -- the dump -------------------------------------------------------------------------------------

_LOGGED = """
    import logging

    class Telling(logging.StreamHandler):
        def emit(self, record):
            super().emit(record)
            say("logged", getattr(record, "event", None))

    logging.basicConfig(handlers=[Telling()], level=logging.WARNING)
"""


def test_dump_signal_logs_states_and_stacks_and_changes_nothing() -> None:
    with Child(
        _LOGGED,
        """
        def somewhere(stopping):
            group.wait_ready()
            say("somewhere")
            stopping.wait()

        group = group_of("a")
        group.add(with_start(somewhere))
        group.start()
        say("handler", signal.getsignal(signal.SIGUSR1).name)
    """,
    ) as child:
        child.wait_for("somewhere")
        child.send(signal.SIGUSR1)
        child.wait_for("logged Dump")
        assert child.said("GroupDraining", "stop") == []
        child.send(signal.SIGTERM)
        assert child.end() == 0
        assert "group 'group' is running" in child.stderr
        assert "thread 'group/somewhere' is at:" in child.stderr
        assert "in somewhere" in child.stderr
        assert "thread 'MainThread' is at:" in child.stderr
        assert "handler SIG_DFL" in child.lines


def test_dump_signal_is_left_to_a_handler_of_the_users_own() -> None:
    with Child(
        _LOGGED,
        """
        signal.signal(signal.SIGUSR1, lambda *_: say("mine", group.state.value))
        group = group_of("a")
        group.start()
    """,
    ) as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGUSR1)
        child.wait_for("mine running")
        child.send(signal.SIGTERM)
        assert child.end() == 0
        assert child.said("logged") == []
        assert child.stderr == ""


def test_dump_comes_though_a_subscriber_hangs_and_so_does_the_stop() -> None:
    with Child(
        _LOGGED,
        """
        def stuck(event):
            say("stuck")
            threading.Event().wait()

        group = ServiceGroup()
        group.subscribe(stuck)
        group.add(Worker("a"))
        group.start()
    """,
    ) as child:
        child.wait_for("stuck")
        child.send(signal.SIGUSR1)
        child.wait_for("logged Dump")
        at = child.send(signal.SIGTERM)
        assert child.end() == 0
        assert time.monotonic() - at < PROMPT
        assert "in stuck" in child.stderr


def test_dump_comes_while_a_stop_hangs() -> None:
    with Child(_LOGGED, _HANGS, "group.run()") as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGTERM)
        child.wait_for("stop hung")
        time.sleep(REPEAT_SECONDS + 0.05)  # it must not count as a second request either
        child.send(signal.SIGUSR1)
        child.wait_for("logged Dump")
        assert child.process.poll() is None
        assert "group 'group' is stopping" in child.stderr
        assert "in hangs_here" in child.stderr


# -- many -----------------------------------------------------------------------------------------


def test_20000_signals_of_all_kinds_in_a_row_harm_nothing() -> None:
    with Child("""
        import itertools
        import logging

        class Counting(logging.Handler):
            dumps = 0

            def emit(self, record):
                self.format(record)
                Counting.dumps += getattr(record, "event", None) == "Dump"

        logging.basicConfig(handlers=[Counting()])
        handled = dict.fromkeys(["USR2", "HUP", "INT", "ALRM", "CHLD", "WINCH"], 0)

        def handler_of(name):
            def handler(number, frame):
                handled[name] += 1
            return handler

        for name in handled:
            signal.signal(getattr(signal, "SIG" + name), handler_of(name))
        kinds = [getattr(signal, "SIG" + name) for name in (*handled, "USR1")]

        def send(stopping):
            group.wait_ready()
            for number in itertools.islice(itertools.cycle(kinds), 20_000):
                os.kill(os.getpid(), number)
            wait_for(lambda: Counting.dumps and all(handled.values()), "handlers")
            states = {status.state.value for status in group.status()}
            say("sent", group.state.value, *states)
            stopping.wait()

        group = group_of(*"abcdefghi", signals=[signal.SIGTERM])
        group.add(with_start(send))
        group.start()
    """) as child:
        child.wait_for("sent running running", 10 * PATIENCE)
        assert child.said("GroupDraining", "stop") == []
        child.send(signal.SIGTERM)
        assert child.end() == 0
        assert child.said("stop") == [f"stop {name}" for name in "ihgfedcba"]
        assert "Traceback" not in child.stderr
