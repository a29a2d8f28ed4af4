"""The file of results: one entry an interpreter, so that each can be measured on its own."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import TypedDict

from benchmarks.imports import Imports
from benchmarks.scale import Scale
from benchmarks.statistic import Spread

DEFAULT = Path(__file__).resolve().parent / "results.json"


class Entry(TypedDict):
    """What was measured with one interpreter, when and where."""

    python: str
    cpu: str
    cores: int
    date: str
    scale: list[Scale]
    first_stop: Spread
    imports: Imports


def entry(scale: list[Scale], first_stop: Spread, imports: Imports) -> Entry:
    """The measurements, with this interpreter, this machine and today."""
    return {
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "scale": scale,
        "first_stop": first_stop,
        "imports": imports,
    }


def load(path: Path) -> list[Entry]:
    """The entries in `path`, the oldest interpreter first; none where there is no such file."""
    if not path.exists():
        return []
    entries: list[Entry] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def store(path: Path, new: Entry) -> list[Entry]:
    """Put `new` in the place of the entry of the same interpreter; all entries."""
    # Of the same minor version: a bug-fix release replaces the one before.
    kept = [old for old in load(path) if _minor(old) != _minor(new)]
    entries = sorted([*kept, new], key=_minor)
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return entries


def _minor(one: Entry) -> tuple[int, ...]:
    return tuple(map(int, one["python"].split(".")[:2]))


def _cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    match = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    return match[1].strip() if match else platform.processor() or platform.machine()
