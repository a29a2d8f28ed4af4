"""What the measured consumers call for each message: it does nothing but count."""

from __future__ import annotations

import itertools
import os
import time


class Tally:
    """Prints the seconds from the first to the last of `messages`, and when each later one came.

    The times of the latter are those of CLOCK_MONOTONIC, which all processes share.
    """

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._numbers = itertools.count(1)
        self._first = 0.0

    def note(self, _message: object = None) -> None:
        now = time.monotonic()
        number = next(self._numbers)  # of one thread only, without a lock
        if number == 1:
            self._first = now
        elif number == self._messages:
            _say(now - self._first)
        elif number > self._messages:
            _say(now)


def _say(number: float) -> None:
    os.write(1, f"{number!r}\n".encode())  # at once, whichever thread it is
