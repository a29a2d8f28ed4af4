"""Waiting for a condition, never for a time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

__tracebackhide__ = True  # by pytest, for all of this file

SHORTEST, LONGEST = 0.0005, 0.02  # seconds between two looks: what is soon true is soon seen


def wait_until(
    condition: Callable[[], T],
    what: str | Callable[[], object] | None = None,
    *,
    timeout: float = 10.0,
) -> T:
    """Wait until `condition()` is true. Any thread may call it.

    Args:
        condition: looked at again and again; what it raises goes on to the caller.
        what: what is waited for, for the message; called, if it can be, when the time is over. By
            default the source of the condition.
        timeout: seconds of real time: far more than it ever takes, on a busy machine too.

    Returns:
        What the condition returned.

    Raises:
        AssertionError: it did not come true in time.
    """
    found = poll(condition, timeout)
    if not found:
        said = what() if callable(what) else what
        raise AssertionError(
            f"not within {timeout:g} s: {said or described(condition)} (it was {found!r})"
        )
    return found


def poll(condition: Callable[[], T], timeout: float) -> T:
    """What the condition returned: something true, or the last it was when the time was over."""
    until = time.monotonic() + timeout
    pause = SHORTEST
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)
    return found


def described(condition: Callable[[], object]) -> str:
    """The source of a lambda, the name of anything else."""
    name = getattr(condition, "__name__", "<lambda>")
    if name != "<lambda>":
        return str(name)
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):  # typed in, or no function at all
        return repr(condition)
