"""`import servicegroup` against importing what it cannot do without."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TypedDict

from benchmarks.children import ROOT, environment
from benchmarks.statistic import Comparison, compare

OURS = "import servicegroup"
OTHER = "import attrs, logging, threading, signal"

_PROGRAM = """\
from time import perf_counter
began = perf_counter()
{}
print(perf_counter() - began)
"""


class Imports(TypedDict):
    """Seconds of the import itself, and of a process that does nothing else."""

    rounds: int
    inside: Comparison
    process: Comparison


def measure(rounds: int) -> Imports:
    """Both imports in turn, each in a new interpreter."""
    _import(OURS)  # compiles what is to be imported
    _import(OTHER)
    ours, other = [], []
    for _ in range(rounds):
        ours.append(_import(OURS))
        other.append(_import(OTHER))
    return {
        "rounds": rounds,
        "inside": compare([inside for inside, _ in ours], [inside for inside, _ in other]),
        "process": compare([process for _, process in ours], [process for _, process in other]),
    }


def _import(statement: str) -> tuple[float, float]:
    command = [sys.executable, "-c", _PROGRAM.format(statement)]
    began = time.perf_counter()
    child = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=environment(), cwd=ROOT
    )
    return float(child.stdout), time.perf_counter() - began
