"""What is kept of many measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TypedDict


class Spread(TypedDict):
    """One thing measured many times."""

    median: float
    min: float
    max: float


class Comparison(TypedDict):
    """Two things measured in turn, many times.

    Attributes:
        ours, other: the medians.
        ratio: the median of the ratios of each round, the first number to look at.
        min, max: the least and the greatest of those.
        ratio_of_medians: steadier where one measurement is short.
    """

    ours: float
    other: float
    ratio: float
    min: float
    max: float
    ratio_of_medians: float


def spread(values: Sequence[float]) -> Spread:
    """What `values` come to."""
    return {
        "median": _short(median(values)),
        "min": _short(min(values)),
        "max": _short(max(values)),
    }


def percentile(values: Sequence[float], share: int) -> float:
    """The least of `values` that is not exceeded by `share` percent of them."""
    return _short(sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)])


def compare(ours: Sequence[float], other: Sequence[float]) -> Comparison:
    """What the measurements come to; those of the same index were made one after the other."""
    # A divisor of 0 is a size below what can be measured (memory comes in pages).
    ratios = [a / b for a, b in zip(ours, other, strict=True) if b > 0] or [1.0]
    return {
        "ours": _short(median(ours)),
        "other": _short(median(other)),
        "ratio": _short(median(ratios)),
        "min": _short(min(ratios)),
        "max": _short(max(ratios)),
        "ratio_of_medians": _short(median(ours) / median(other)) if median(other) > 0 else 1.0,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
