"""Many services against as many bare threads."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TypedDict

from benchmarks.children import Life, live
from benchmarks.statistic import Comparison, compare


class Scale(TypedDict):
    """Seconds and bytes.

    Attributes:
        up: from before the process is made until all is running.
        down: from before SIGTERM is sent until the process is gone.
        both: the sum.
        work: the same without the start of the interpreter and the imports.
        memory: for each service but the first.
    """

    services: int
    rounds: int
    up: Comparison
    down: Comparison
    both: Comparison
    work: Comparison
    memory: Comparison


def measure(services: int, rounds: int) -> Scale:
    """Both programs in turn."""
    # With a single service first: it also compiles what is to be imported, and what it takes in
    # memory is there only once, however many services there are.
    our_base, other_base = (median(one.resident for one in lives) for lives in _lives(1, 3))
    ours, other = _lives(services, rounds)

    def compared(measure: Callable[[Life], float]) -> Comparison:
        return compare([measure(life) for life in ours], [measure(life) for life in other])

    return {
        "services": services,
        "rounds": rounds,
        "up": compared(up),
        "down": compared(down),
        "both": compared(both),
        "work": compared(work),
        "memory": compare(
            [(life.resident - our_base) / (services - 1) for life in ours],
            [(life.resident - other_base) / (services - 1) for life in other],
        ),
    }


def _lives(services: int, rounds: int) -> tuple[list[Life], list[Life]]:
    ours, other = [], []
    for _ in range(rounds):
        ours.append(live("services", services))
        other.append(live("bare_threads", services))
    return ours, other


def up(life: Life) -> float:
    """Seconds from before the process was made until all was running."""
    return _running_at(life) - life.began_at


def down(life: Life) -> float:
    """Seconds from SIGTERM until the process was gone."""
    return life.ended_at - life.asked_at


def both(life: Life) -> float:
    """The sum."""
    return up(life) + down(life)


def work(life: Life) -> float:
    """The same without the start of the interpreter and the imports."""
    return _running_at(life) - _imported_at(life) + down(life)


def _imported_at(life: Life) -> float:
    return float(life.first_line.split()[0])


def _running_at(life: Life) -> float:
    return float(life.first_line.split()[1])
