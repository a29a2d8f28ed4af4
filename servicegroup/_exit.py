"""The end of the process, for sure and in time."""

from __future__ import annotations

import atexit
import faulthandler
import math
import os
import signal
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


def leave(code: int, last_words: Callable[[], str]) -> NoReturn:
    """Print and end the process at once, with `code`; no exit hook runs."""

    def tell() -> None:
        print(last_words(), file=sys.stderr, flush=True)
        sys.stdout.flush()

    try:
        # On a thread of its own: the stream may block, or its lock may never be free.
        teller = threading.Thread(target=tell, name="servicegroup (last words)", daemon=True)
        teller.start()
        teller.join(PRINT_SECONDS)
    finally:
        os._exit(code)


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
            later = seconds + GRACE_SECONDS + PRINT_SECONDS
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
            atexit.register(_ignore, signals.numbers)
        guard = threading.Thread(
            target=self._guard, args=(code, signals), name="servicegroup (exit guard)", daemon=True
        )
        guard.start()

    def _guard(self, code: int, signals: Signals | None) -> None:
        ended = time.monotonic()
        while (left := self._deadline - time.monotonic()) > 0:
            left = min(left, threading.TIMEOUT_MAX, 2**20)
            if signals is None:
                time.sleep(left)
            elif signals.wait_until_readable(left):
                again = signals.numbers.intersection(signals.wait())
                if again and time.monotonic() - ended >= REPEAT_SECONDS:
                    break
        leave(code, _what_keeps_the_process)


def _ignore(numbers: frozenset[int]) -> None:
    # The interpreter sets its handlers back to the default early in its end, and a signal that
    # comes then would still turn 0 into 143; what is ignored stays ignored.
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


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
