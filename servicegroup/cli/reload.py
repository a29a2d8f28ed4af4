"""`run --reload`: a program that is started anew whenever its code changes."""

from __future__ import annotations

import importlib.util
import math
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from servicegroup._exit import REPEAT_SECONDS
from servicegroup._signals import Signals
from servicegroup.cli._link import Child
from servicegroup.cli._watch import Watch, directories

LAST_SECONDS = 2.0  # for the child's end after a second signal
LONG_SECONDS = 2.0**20  # poll() takes no infinity
ENDING = (signal.SIGINT, signal.SIGTERM)


def reload(arguments: list[str]) -> int:
    """Run `servicegroup run` with `arguments`, and anew after each edit, until a signal ends it.

    Main thread only.

    Returns:
        The exit code of the last run.

    Raises:
        click.ClickException: the files cannot be watched.
    """
    with Signals((*ENDING, signal.SIGCHLD), None) as signals:
        watch = Watch(directories(arguments), signals.wake)
        with watch.watching():
            return _Reloader(arguments, signals, watch).run()


class _Reloader:
    def __init__(self, arguments: list[str], signals: Signals, watch: Watch) -> None:
        # A person waits, and no load balancer: unless the arguments ask for a delay, there is none.
        self._arguments = ["--drain-delay", "0", *arguments]
        self._signals = signals
        self._watch = watch
        self._ending = ""  # the signal that came
        self._ending_at = 0.0
        self._hurry = False  # it came again

    def run(self) -> int:
        code = 0
        self._wait(lambda: self._watch.begun or self._is_due())
        while not self._ending:
            if self._watch.error is not None:
                raise click.ClickException(f"--reload cannot watch: {self._watch.error}")
            while self._watch.changed:
                _forget(self._watch.changed.popleft())
            code = self._run_child()
        return code

    def _run_child(self) -> int:
        child = Child(self._arguments)
        try:
            self._wait(lambda: child.has_ended() or self._is_due())
            if child.has_ended() and not self._is_due():
                _say(f"it ended with exit code {child.exit_code}; an edit starts it again")
                self._wait(self._is_due)
            names = _names(self._watch.changed) or "what is watched"
            reason = self._ending or f"{names} changed"
            if not self._ending:
                _say(reason)
            self._stop(child, reason)
            return child.exit_code
        finally:
            child.close()

    def _stop(self, child: Child, reason: str) -> None:
        asked_at = time.monotonic()
        child.ask_to_stop(reason)
        for _ in range(2):  # just then it may have got its group, and with that more time
            self._wait(lambda: child.has_ended() or self._hurry, asked_at + child.patience)
        if self._hurry:
            self._wait(child.has_ended, time.monotonic() + LAST_SECONDS)
        if not child.has_ended():
            _say("it did not end, and is killed")
            child.close()

    def _is_due(self) -> bool:
        return bool(self._watch.changed or self._watch.error or self._ending)

    def _wait(self, condition: Callable[[], bool], until: float = math.inf) -> None:
        """Until `condition` holds; what may change that wakes this."""
        while True:
            while self._signals.wait_until_readable(0.0):
                self._take(self._signals.wait())
            left = until - time.monotonic()
            if condition() or left <= 0.0:
                return
            self._signals.wait_until_readable(min(left, LONG_SECONDS))

    def _take(self, numbers: bytes) -> None:
        for number in ENDING:
            if number in numbers:
                now = time.monotonic()
                if not self._ending:
                    self._ending, self._ending_at = number.name, now
                elif now - self._ending_at >= REPEAT_SECONDS:
                    self._hurry = True


def _forget(path: str) -> None:
    """Remove the bytecode: by its seconds and size, an edit may look like what was before."""
    try:
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)
    except OSError:
        pass  # what may not be removed, no run has written


def _names(paths: Iterable[str]) -> str:
    names = sorted({Path(path).name for path in paths})
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _say(text: str) -> None:
    click.secho(f"servicegroup: {text}", err=True, fg="yellow")
