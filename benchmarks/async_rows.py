"""`AsyncGroup`, and the libraries that do the like, against bare tasks: what is kept of it."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from typing import TypedDict

from benchmarks.async_services import CONTENDERS, measure
from benchmarks.statistic import Comparison, compare


class Measured(TypedDict):
    """Seconds and bytes of so many services of one contender, and of as many tasks.

    Attributes:
        up: from nothing to all running.
        down: from there to all ended.
    """

    contender: str
    services: int
    rounds: int
    up: Comparison
    down: Comparison
    both: Comparison
    memory: Comparison


class LeftOut(TypedDict):
    """What could not be measured."""

    contender: str
    why: str


class AsyncServices(TypedDict):
    """All contenders."""

    measured: list[Measured]
    left_out: list[LeftOut]


def measure_all(sizes: Sequence[int], rounds: int) -> AsyncServices:
    """Every contender in turn with bare tasks."""
    found: AsyncServices = {"measured": [], "left_out": []}
    for name, (_, module) in CONTENDERS.items():
        if importlib.util.find_spec(module) is None:
            why = "it is not installed (the extra bench has it)"
            found["left_out"].append({"contender": name, "why": why})
            continue
        for size in sizes:
            try:
                found["measured"].append(_measure(name, size, rounds))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                why = f"with {size:,} services it failed: {str(error).strip().splitlines()[-1]}"
                found["left_out"].append({"contender": name, "why": why})
    return found


def _measure(name: str, size: int, rounds: int) -> Measured:
    lives = [(measure(name, size), measure("bare", size)) for _ in range(rounds)]
    ours, other = zip(*lives, strict=True)
    return {
        "contender": name,
        "services": size,
        "rounds": rounds,
        "up": compare([up for up, _, _ in ours], [up for up, _, _ in other]),
        "down": compare([down for _, down, _ in ours], [down for _, down, _ in other]),
        "both": compare([up + down for up, down, _ in ours], [up + down for up, down, _ in other]),
        "memory": compare([size for *_, size in ours], [size for *_, size in other]),
    }
