"""From a failure until the service runs again, with no pause."""

from __future__ import annotations

from typing import TypedDict

from benchmarks.children import output_of
from benchmarks.statistic import Spread, percentile, spread


class Restarts(TypedDict):
    """Seconds from what `start()` raised to the first line of the next `start()`."""

    restarts: int
    away: Spread
    p99: float


def measure(restarts: int) -> Restarts:
    """One service that fails so often."""
    times = [float(seconds) for seconds in output_of("restarts", restarts).split()]
    return {"restarts": restarts, "away": spread(times), "p99": percentile(times, 99)}
