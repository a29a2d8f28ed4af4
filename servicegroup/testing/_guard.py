"""What a test is to answer for: threads of groups that it left behind, failures that got lost.

For the plugin of pytest, which loads it once something has loaded the groups.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from traceback import format_exception

from attrs import frozen

from servicegroup import _run
from servicegroup._run import Run
from servicegroup._runner import GroupThread
from servicegroup._stacks import stack_of
from servicegroup.report import State
from servicegroup.testing._services import let_all_go
from servicegroup.testing._wait import poll

# Seconds for threads that are about to end anyway, in a test that did not wait: what is left behind
# for good costs as much, and a busy machine may take that long.
GRACE = 5.0
LOOK = 0.1
DYING = 0.1  # and for the caller of a start() that raised, until it has died of that


@frozen(kw_only=True, eq=False)
class _Failure:
    """A run that failed. It keeps nothing alive that the test has let go."""

    group: str
    root: Callable[[], object]
    reason: str
    error: Callable[[], BaseException | None]
    raised_in: list[threading.Thread]


class Guard:
    """All methods are for the thread that runs the tests."""

    def __init__(self) -> None:
        self._before: weakref.WeakSet[Run] = weakref.WeakSet()  # they ran before the test
        self._held: dict[object, set[Run]] = {}  # by fixtures that outlive the test
        self._failures: list[_Failure] = []
        _run.on_failed_run.append(self._on_failed_run)

    def begin(self) -> None:
        """A test begins: it has no part in what runs already."""
        self._before = weakref.WeakSet(self.running())
        held = self._known()
        self._failures = [one for one in self._failures if one.root() in held]

    def running(self) -> set[Run]:
        """The outermost runs whose threads live."""
        return {_root(thread) for thread in _threads()}

    def hold(self, fixture: object, runs: set[Run]) -> None:
        """`fixture`, which outlives the test, has started `runs`."""
        if runs:
            self._held[fixture] = runs

    def release(self, fixture: object) -> None:
        """`fixture` has ended: from here on the test is to answer for what it started."""
        self._before -= self._held.pop(fixture, set())

    def let_go(self) -> None:
        """Let what hangs on purpose end."""
        let_all_go()

    def complaints(self, deaths: Sequence[BaseException]) -> list[str]:
        """A test has ended: what is wrong. `deaths`, of threads, may grow meanwhile."""
        until = time.monotonic() + GRACE
        for thread in self._left():
            while thread.is_alive() and time.monotonic() < until:
                let_all_go()  # once more, for one that has begun only now
                thread.join(LOOK)
        left = self._left()
        said = [_of_run(run, left) for run in dict.fromkeys(map(_root, left))]
        known = self._known()
        for failure in self._failures:
            complaint = None if failure.root() in known else _of_failure(failure, deaths)
            if complaint is not None:
                said.append(complaint)
        return said

    def _known(self) -> set[Run]:
        return set(self._before).union(*self._held.values())

    def _left(self) -> list[GroupThread]:
        known = self._known()
        return [thread for thread in _threads() if _root(thread) not in known]

    def _on_failed_run(self, run: Run) -> None:
        error = run.exit or run.error
        if error is None:  # a crash of the run itself is raised in any case
            return
        failure = _Failure(
            group=run.settings.name,
            root=weakref.ref(run.root),
            reason=run._reason,
            error=_weak(error),
            raised_in=run.raised_in,
        )
        self._failures.append(failure)


def _weak(error: BaseException) -> Callable[[], BaseException | None]:
    try:
        return weakref.ref(error)
    except TypeError:  # SystemExit is written in C
        return lambda: error


def _threads() -> list[GroupThread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, GroupThread)]


def _root(thread: GroupThread) -> Run:
    assert isinstance(thread.root, Run)
    return thread.root


def _of_run(run: Run, left: list[GroupThread]) -> str:
    name = run.settings.name
    threads = [thread for thread in left if thread.root is run]
    lines = []
    if run.over.is_set():
        lines.append(f"group {name!r} has ended, but a thread of it still lives")
    else:
        lines.append(
            f"group {name!r} still runs: use `with group:`, or call stop() and wait() in the test"
        )
    services = [thread for thread in threads if thread.runner is not None]
    for thread in services or threads:
        runner = thread.runner
        what = "" if runner is None else f"service {thread.name!r} is {_state(runner.state)}; "
        lines.append(f"{what}{stack_of(thread)}")
    return "\n".join(lines).rstrip()


def _state(state: State) -> str:
    return "abandoned: it did not stop in time" if state is State.ABANDONED else state.value


def _of_failure(failure: _Failure, deaths: Sequence[BaseException]) -> str | None:
    # Whoever ran it may be just about to get it.
    poll(lambda: failure.raised_in, GRACE)
    error = failure.error()
    if not failure.raised_in:
        how = "no call raised it"
    elif error is None:
        return None  # it was caught, and forgotten
    else:
        for thread in failure.raised_in:
            if thread is not threading.current_thread():
                thread.join(DYING)
        fatal = [death for death in deaths if _holds(death, error)]
        if len(fatal) < len(failure.raised_in):
            return None
        names = ", ".join(repr(thread.name) for thread in failure.raised_in)
        how = f"thread {names} died of it"
    shown = failure.reason if error is None else "".join(format_exception(error)).rstrip()
    return (
        f"the failure of group {failure.group!r} got lost: {how}; use `with group:`, or call "
        f"wait() in the test, which raise it\n{shown}"
    )


def _holds(error: BaseException | None, wanted: BaseException) -> bool:
    while error is not None:
        if error is wanted:
            return True
        error = error.__cause__ or error.__context__
    return False
