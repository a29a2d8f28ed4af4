"""The file of results: one entry an interpreter, so that each can be measured on its own."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import TypedDict, cast

from benchmarks.async_rows import AsyncServices
from benchmarks.command_line import CommandLine
from benchmarks.http_latency import HttpLatency
from benchmarks.imports import Imports
from benchmarks.kinds import Kinds
from benchmarks.observers import Observers
from benchmarks.queues import Queues
from benchmarks.restarts import Restarts
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.statistic import Spread

DEFAULT = Path(__file__).resolve().parent / "results.json"


class Parts(TypedDict, total=False):
    """What was measured: all of it, or some."""

    scale: list[Scale]
    first_stop: Spread
    imports: Imports
    command_line: CommandLine
    restarts: Restarts
    kinds: Kinds
    http_latency: HttpLatency
    async_services: AsyncServices
    servers: Servers
    queues: Queues
    observers: Observers


class Entry(Parts):
    """What was measured with one interpreter, where, and when the last of it."""

    python: str
    cpu: str
    cores: int
    date: str


def entry(parts: Parts) -> Entry:
    """The measurements, with this interpreter, this machine and today."""
    return {
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **parts,
    }


def load(path: Path) -> list[Entry]:
    """The entries in `path`, the oldest interpreter first; none where there is no such file."""
    if not path.exists():
        return []
    entries: list[Entry] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def store(path: Path, new: Entry) -> list[Entry]:
    """Put `new` in the place of the entry of the same interpreter; all entries.

    What that has beyond `new` is kept if it was measured with the same release and processor.
    """
    kept = []
    for old in load(path):
        # Of the same minor version: a bug-fix release replaces the one before.
        if _minor(old) != _minor(new):
            kept.append(old)
        elif _where(old) == _where(new):
            new = cast(Entry, {**old, **new})
    entries = sorted([*kept, new], key=_minor)
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return entries


def _minor(one: Entry) -> tuple[int, ...]:
    return tuple(map(int, one["python"].split(".")[:2]))


def _where(one: Entry) -> tuple[object, ...]:
    return one["python"], one.get("cpu"), one.get("cores")


def _cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    match = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    return match[1].strip() if match else platform.processor() or platform.machine()
