"""Measured programs as child processes.

CLOCK_MONOTONIC is one clock for the whole system, so a child's times and ours can be subtracted.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"


@frozen(kw_only=True)
class Life:
    """One life of a program, from its start to its end by SIGTERM.

    Attributes:
        began_at: when the process was about to be made.
        first_line: what the program printed when all was running.
        resident: bytes of memory in use just then; of child processes, what is theirs alone.
        asked_at: when the signal was about to be sent.
        ended_at: when the process was gone.
        last_line: what the program printed last.
    """

    began_at: float
    first_line: str
    resident: int
    asked_at: float
    ended_at: float
    last_line: str


def environment() -> dict[str, str]:
    """That of a user who runs the checkout: installed or not, with compiled files kept."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT)}


def output_of(program: str, *arguments: object) -> str:
    """What `program`, which ends by itself, prints."""
    child = subprocess.run(
        _command(program, arguments),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        check=False,
    )
    if child.returncode != 0:
        raise SystemExit(f"{program} {' '.join(map(str, arguments))} ended with {child.returncode}")
    return child.stdout


def _nothing(_line: str) -> None:
    pass


def live(program: str, *arguments: object, meanwhile: Callable[[str], object] = _nothing) -> Life:
    """Run `program` until all is running, send SIGTERM and wait for its end.

    Before the signal, `meanwhile` is called with the first line.
    """
    command = _command(program, arguments)
    began_at = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stdout is not None
        first_line = child.stdout.readline()
        if not first_line:
            raise SystemExit(f"{program} {' '.join(map(str, arguments))} ended too early")
        resident = _resident(child.pid)
        try:
            meanwhile(first_line)
        except BaseException:
            child.kill()
            raise
        asked_at = time.monotonic()
        child.send_signal(signal.SIGTERM)
        code = child.wait()
        ended_at = time.monotonic()
        last_line = (first_line + child.stdout.read()).splitlines()[-1]
    if code != 0:
        raise SystemExit(f"{program} {' '.join(map(str, arguments))} ended with {code}")
    return Life(
        began_at=began_at,
        first_line=first_line,
        resident=resident,
        asked_at=asked_at,
        ended_at=ended_at,
        last_line=last_line,
    )


def _command(program: str, arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, str(PROGRAMS / f"{program}.py"), *map(str, arguments)]


def _resident(pid: int) -> int:
    # Added up by the kernel; statm is quicker, but off by some pages a processor.
    own = _kilobytes(pid, "Rss")
    # What a child shares with its parent would count twice.
    children = Path(f"/proc/{pid}").glob("task/*/children")
    of_children = sum(
        _kilobytes(int(one), "Private_Clean") + _kilobytes(int(one), "Private_Dirty")
        for path in children
        for one in path.read_text().split()
    )
    return (own + of_children) * 1024


def _kilobytes(pid: int, what: str) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(rf"^{what}:\s+(\d+) kB", rollup, re.M)
    assert match is not None
    return int(match[1])
