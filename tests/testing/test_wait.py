from __future__ import annotations

from collections.abc import Callable

import pytest

from servicegroup.testing import wait_until


def counter(last: int) -> Callable[[], int]:
    """Called again and again, it gives 0 until the `last` call."""
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls if calls >= last else 0

    return count


def test_it_looks_until_the_condition_is_true_and_returns_what_it_was() -> None:
    assert wait_until(counter(5)) == 5


def test_a_condition_that_is_true_is_looked_at_even_if_there_is_no_time() -> None:
    assert wait_until(lambda: "found", timeout=0.0) == "found"


def test_the_failure_says_what_was_waited_for_and_what_there_was() -> None:
    found: list[str] = []
    with pytest.raises(AssertionError, match=r"not within 0 s: .*lambda: found.*\(it was \[\]\)"):
        wait_until(lambda: found, timeout=0.0)
    with pytest.raises(AssertionError, match="not within 0 s: an answer"):
        wait_until(lambda: found, "an answer", timeout=0.0)
    with pytest.raises(AssertionError, match="not within 0 s: counter"):
        wait_until(lambda: found, lambda: "counter", timeout=0.0)

    def answered() -> bool:
        return False

    with pytest.raises(AssertionError, match="not within 0 s: answered"):
        wait_until(answered, timeout=0.0)


def test_what_the_condition_raises_goes_on() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0)
