"""The plugin, in runs of pytest of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 120

PRELUDE = """
import threading
import pytest
from servicegroup import Service, ServiceGroup, with_start
from servicegroup.testing import Fails, FakeClock, Hangs, Runs, wait_until
from servicegroup.testing import _guard, _services

@pytest.fixture(autouse=True)
def grace(request):
    # What is about to end may be slow to do so; what is left behind never ends.
    leaves = request.node.get_closest_marker("leaves")
    _guard.GRACE = 1.0 if leaves else 30.0

def group_of(*services, **options):
    group = ServiceGroup(name="shop", **options)
    for service in services:
        group.add(service)
    return group

def start_on_thread(group):
    thread = threading.Thread(target=group.start, name="starter")
    thread.start()
    return thread
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others take their time to load


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(PRELUDE + source)
    own = ("-p", "pytest_servicegroup", "-p", "no:cacheprovider", "-o", "markers=leaves: something")
    return pytester.runpytest_subprocess(*own, *options, timeout=TIMEOUT)


# -- what a test leaves behind --------------------------------------------------------------------


def test_threads_of_groups_that_are_left_fail_their_test_by_name(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
class Api(Service):
    def start(self):
        self.serve_forever()

    def serve_forever(self):
        self.stopping.wait()

class Stubborn(Runs):
    def stop(self):
        super().stop()
        self.wait_for_nothing()

    def wait_for_nothing(self):
        threading.Event().wait()

def test_good_before():
    with group_of(Runs()):
        pass

@pytest.mark.leaves
def test_still_runs():
    group_of(Api(), Runs()).__enter__()

def test_good_between():
    with group_of(Runs()):
        pass

@pytest.mark.leaves
def test_abandoned():
    with pytest.raises(ExceptionGroup):
        with group_of(with_start(threading.Event().wait), stop_timeout=0.05):
            pass

@pytest.mark.leaves
def test_stop_hangs():
    with pytest.raises(ExceptionGroup):
        with group_of(Stubborn(), stop_timeout=0.05):
            pass
""",
    )
    result.assert_outcomes(passed=5, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_still_runs*",
            "group 'shop' still runs: use `with group:`*",
            "service 'shop/Api' is running; thread 'shop/Api' is at:",
            "*in serve_forever",
            "service 'shop/Runs' is running; thread 'shop/Runs' is at:",
            "*ERROR at teardown of test_abandoned*",
            "group 'shop' has ended, but a thread of it still lives",
            "service 'shop/Event' is abandoned: it did not stop in time; thread 'shop/Event' is*",
            "*ERROR at teardown of test_stop_hangs*",
            "thread 'shop (stopping)' is at:",
            "*in wait_for_nothing",
        ]
    )
    assert "(deciding)" not in result.stdout.str()


def test_what_ends_in_a_moment_or_hangs_on_purpose_is_no_leak(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_does_not_wait():
    group = group_of(Runs(), Runs()).__enter__()
    group.stop()

@pytest.mark.parametrize("hung", [Hangs(), Hangs(in_stop=True)])
def test_hangs(hung):
    with pytest.raises(ExceptionGroup):
        with group_of(hung, stop_timeout=0.05):
            wait_until(lambda: hung in _services._hung)
""",
    )
    result.assert_outcomes(passed=3)


def test_a_failing_test_still_says_what_it_leaked(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def broken():
    yield
    raise OSError("no teardown")

@pytest.mark.leaves
def test_leaks(broken):
    group_of(Runs()).__enter__()
    assert False
""",
    )
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*no teardown*", "*service 'shop/Runs' is running*"])


# -- fixtures that outlive a test -----------------------------------------------------------------

FIXTURE = """
@pytest.fixture(scope="module")
def group():
    group = group_of(Runs(), Runs())
    group.__enter__()
    yield group
    {end}

def test_one(group):
    group.add(Runs())

{mark}
def test_two(group):
    pass
"""
LEAVES = "@pytest.mark.leaves"


def test_a_group_of_a_fixture_may_outlive_a_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, FIXTURE.format(end="group.__exit__(None, None, None)", mark=""))
    result.assert_outcomes(passed=2)


def test_but_not_the_fixture(pytester: pytest.Pytester) -> None:
    result = run(pytester, FIXTURE.format(end="pass", mark=LEAVES))
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_two*", "group 'shop' still runs*"])


FAILING = """
@pytest.fixture(scope="module")
def fail():
    fail = threading.Event()
    def start(stopping):
        fail.wait()
        raise ConnectionError("no broker")
    group = group_of(Runs(), with_start(start, fail.set))
    {block}
        yield lambda: fail.set() or wait_until(group._run.over.is_set)

def test_one(fail):
    fail()

{mark}
def test_two(fail):
    pass
"""


def test_a_failure_of_a_fixtures_group_is_for_the_fixture_to_raise(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, FAILING.format(block="with group:", mark=""))
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_two*", "*ConnectionError: no broker"])
    assert "got lost" not in result.stdout.str()


def test_a_failure_that_the_fixture_did_not_raise_is_lost(pytester: pytest.Pytester) -> None:
    result = run(pytester, FAILING.format(block="if group.__enter__():", mark=LEAVES))
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_two*", "*got lost: no call raised*"])


def test_what_runs_before_the_first_test_is_nobodys_leak(pytester: pytest.Pytester) -> None:
    result = run(pytester, "group_of(Runs()).__enter__()\ndef test_good(): pass\n")
    result.assert_outcomes(passed=1)


# -- failures that nobody got ---------------------------------------------------------------------


def test_a_failure_that_nobody_got_fails_the_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_a_thread_died_of_it():
    start_on_thread(group_of(Fails(error=ConnectionError("no broker")))).join()

def test_good_after():
    pass

def test_a_thread_died_of_an_exit_code():
    start_on_thread(group_of(Fails(error=SystemExit(3)))).join()

@pytest.mark.leaves
def test_no_call_raised_it():
    group = group_of(Runs(), Fails(after=0.01))
    group.__enter__()
    wait_until(lambda: group.report)
""",
    )
    result.assert_outcomes(passed=4, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_a_thread_died_of_it*",
            "the failure of group 'shop' got lost: thread 'starter' died of it; use `with group:`*",
            "*ConnectionError: no broker",
            "*in service 'Fails', while running",
            "*ERROR at teardown of test_a_thread_died_of_an_exit_code*",
            "the failure of group 'shop' got lost: thread 'starter' died of it*",
            "SystemExit: 3",
            "*ERROR at teardown of test_no_call*",
            "the failure of group 'shop' got lost: no call raised it; use `with group:`*",
            "*RuntimeError: it was told to fail*",
        ]
    )


def test_a_failure_that_somebody_got_is_none_of_its_business(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from concurrent.futures import ThreadPoolExecutor

def test_raised():
    with pytest.raises(ExceptionGroup):
        group_of(Fails()).start()

def test_raised_at_the_end_of_the_block():
    with pytest.raises(ExceptionGroup):
        with group_of(Fails(after=0.01)) as group:
            wait_until(lambda: group.report)

def test_raised_by_wait_too():
    group = group_of(Runs(), Fails(after=0.01))
    with pytest.warns(pytest.PytestUnhandledThreadExceptionWarning):
        start_on_thread(group).join()
        with pytest.raises(ExceptionGroup):
            group.wait()
        raise_warnings()

def raise_warnings():
    import warnings
    warnings.warn(pytest.PytestUnhandledThreadExceptionWarning("as pytest does at the end"))

def test_caught_on_a_thread():
    caught = []
    def start():
        try:
            group_of(Fails()).start()
        except ExceptionGroup as error:
            caught.append(error)
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert caught

def test_of_a_future():
    with ThreadPoolExecutor() as pool:
        assert pool.submit(group_of(Fails()).start).exception()

def test_of_a_group_in_a_group():
    with pytest.raises(ExceptionGroup):
        group_of(group_of(Fails())).start()

def test_kept_in_a_report():
    group = group_of(Runs(), Fails(), on_failure="continue")
    with group:
        wait_until(lambda: group.status()[1].error)
""",
        "-W",
        "default",
    )
    result.assert_outcomes(passed=7, warnings=1)


# -- no watch -------------------------------------------------------------------------------------


def test_a_marked_test_may_leak(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.servicegroup_unwatched
def test_leaks():
    group_of(Runs()).__enter__()

def test_good_after():
    pass
""",
        "--strict-markers",
    )
    result.assert_outcomes(passed=2)


def test_the_watch_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nservicegroup_watch = false")
    result = run(
        pytester,
        """
thread = None

def test_leaks():
    group_of(Runs()).__enter__()

def test_hangs():
    global thread
    hung = Hangs()
    thread = threading.Thread(target=hung.start)
    thread.start()
    wait_until(lambda: hung in _services._hung)

def test_it_was_let_go():
    thread.join(30)
    assert not thread.is_alive()
""",
        "--strict-config",
    )
    result.assert_outcomes(passed=3)


# -- what it costs, and the fixtures --------------------------------------------------------------


def test_tests_without_groups_do_not_load_the_package(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        import pytest

        @pytest.fixture(scope="session")
        def fixture():
            pass

        def test_nothing(fixture):
            pass

        def test_nothing_was_loaded():
            assert not [name for name in sys.modules if name.split(".")[0] == "servicegroup"]
    """)
    result = pytester.runpytest_subprocess("-p", "pytest_servicegroup", timeout=TIMEOUT)
    result.assert_outcomes(passed=2)


def test_a_group_first_loaded_in_a_test_is_watched(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_leaks():
            from servicegroup import ServiceGroup, with_start

            group = ServiceGroup(name="late")
            group.add(with_start(lambda stopping: stopping.wait()))
            group.__enter__()
    """)
    result = pytester.runpytest_subprocess("-p", "pytest_servicegroup", timeout=TIMEOUT)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["group 'late' still runs*"])


def test_each_test_has_fixtures_of_its_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
clocks, ports = [], []

@pytest.mark.parametrize("number", [1, 2])
def test_fixtures(free_port: int, fake_clock: FakeClock, number):
    clocks.append(fake_clock)
    ports.append(free_port)
    assert len(set(clocks)) == len(set(ports)) == number
""",
    )
    result.assert_outcomes(passed=2)
