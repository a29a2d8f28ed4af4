"""The end of the process, for sure and in time."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from servicegroup._signals import Signals
from servicegroup._stacks import stacks_of

PRINT_SECONDS = 0.5  # for last words, so that a full pipe cannot hold the exit
GRACE_SECONDS = 1.0  # after shutdown_timeout, for outer finally blocks and exit hooks
REPEAT_SECONDS = 0.25  # a signal that comes again sooner is the same one, delivered twice


class _LastWords(threading.Thread):
    """Prints what keeps the process while another thread waits to end it.

    A thread of its own, since the stream may block, or its lock may never be free.
    """

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__(name="servicegroup (last words)", daemon=True)
        self._words = words
        self._leaving = threading.Event()

    def run(self) -> None:
        self._leaving.wait()
        print(self._words(), file=sys.stderr, flush=True)
        sys.stdout.flush()

    def leave(self, code: int) -> NoReturn:
        """Have it print, and end the process with `code`."""
        try:
            self._leaving.set()
            self.join(PRINT_SECONDS)
        finally:
            os._exit(code)


def leave(code: int, words: Callable[[], str]) -> NoReturn:
    """Print last words and end the process at once, with `code`; no exit hook runs."""
    last_words = _LastWords(words)
    try:
        last_words.start()
    finally:
        last_words.leave(code)


class LastResort:
    """What bounds the end of a process whose last line is `run()`.

    Two bounds, one behind the other: a thread that ends the process with the outcome's exit code,
    and faulthandler's, which needs no interpreter lock and can only end it with 1.
    """

    def __init__(self) -> None:
        self._file = _open_stderr()
        self._deadline = math.inf

    def arm(self, seconds: float) -> None:
        """The stop has begun: the process ends in `seconds` and a grace, whatever happens."""
        if seconds < threading.TIMEOUT_MAX / 2:
            self._deadline = time.monotonic() + seconds + GRACE_SECONDS
            # Behind the guard's last words, however long they take: its exit code is the right one.
            later = seconds + GRACE_SECONDS + 2 * PRINT_SECONDS
            faulthandler.dump_traceback_later(later, exit=True, file=self._file)

    def disarm(self) -> None:
        """The process goes on after all."""
        faulthandler.cancel_dump_traceback_later()
        os.close(self._file)

    def watch(self, code: int, signals: Signals | None) -> None:
        """All is decided: let the process end by itself, or end it when one more signal comes.

        From here on a signal cannot change `code`, since nothing is left that could be lost.
        """
        if signals is not None:
            signals.ignore_at_exit()
        # Made now: once the interpreter is ending, no thread can be.
        last_words = _LastWords(_what_keeps_the_process)
        last_words.start()
        guard = threading.Thread(
            target=self._guard,
            args=(code, signals, last_words),
            name="servicegroup (exit guard)",
            daemon=True,
        )
        guard.start()

    def _guard(self, code: int, signals: Signals | None, last_words: _LastWords) -> None:
        ended = time.monotonic()
        while (left := self._deadline - time.monotonic()) > 0:
            left = min(left, threading.TIMEOUT_MAX, 2**20)
            if signals is None:
                time.sleep(left)
            elif signals.wait_until_readable(left):
                again = signals.numbers.intersection(signals.wait())
                if again and time.monotonic() - ended >= REPEAT_SECONDS:
                    break
        last_words.leave(code)


def _what_keeps_the_process() -> str:
    kept = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    return (
        "servicegroup: ending the process, which did not end by itself\n"
        f"{stacks_of([threading.main_thread(), *kept])}"
    )


def _open_stderr() -> int:
    # A description of its own, since one that blocks could hold faulthandler for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open("/dev/stderr", flags)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)
