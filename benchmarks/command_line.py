"""`servicegroup run` against a program that runs its group itself, and `servicegroup --help`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TypedDict

from benchmarks.children import PROGRAMS, environment
from benchmarks.statistic import Comparison, compare

_OURS = ("-m", "servicegroup", "run", "one_service:group")
_OTHER = ("one_service.py",)
_HELP = ("-m", "servicegroup", "--help")
_NOTHING = ("-c", "pass")


class CommandLine(TypedDict):
    """Seconds.

    Attributes:
        up: from the start of the process until its service runs.
        down: from SIGTERM to the exit.
        help: of the whole process, against an interpreter that does nothing.
    """

    rounds: int
    up: Comparison
    down: Comparison
    help: Comparison


def measure(rounds: int) -> CommandLine:
    """All of them in turn, each in a process of its own."""
    for arguments in (_OURS, _OTHER):
        _live(arguments)  # compiles what is to be imported
    ours, other, helped, nothing = [], [], [], []
    for _ in range(rounds):
        ours.append(_live(_OURS))
        other.append(_live(_OTHER))
        helped.append(_whole(_HELP))
        nothing.append(_whole(_NOTHING))
    return {
        "rounds": rounds,
        "up": compare([up for up, _ in ours], [up for up, _ in other]),
        "down": compare([down for _, down in ours], [down for _, down in other]),
        "help": compare(helped, nothing),
    }


def _live(arguments: Sequence[str]) -> tuple[float, float]:
    began_at = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=PROGRAMS,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        up = float(child.stdout.readline()) - began_at
        asked_at = time.monotonic()
        child.send_signal(signal.SIGTERM)
        code = child.wait()
        down = time.monotonic() - asked_at
    if code != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}")
    return up, down


def _whole(arguments: Sequence[str]) -> float:
    began_at = time.monotonic()
    subprocess.run(
        [sys.executable, *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - began_at
