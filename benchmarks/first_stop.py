"""How soon a SIGTERM reaches the first service."""

from __future__ import annotations

from benchmarks.children import live
from benchmarks.statistic import Spread, spread


def measure(rounds: int) -> Spread:
    """Seconds from before the signal was sent until the first stop() was entered."""
    lives = [live("first_stop") for _ in range(rounds)]
    return spread([float(life.last_line) - life.asked_at for life in lives])
