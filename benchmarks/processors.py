"""Who has the processors while something is measured."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def share_of_others(shares: list[float]) -> Iterator[None]:
    """Append to `shares` that of all processors which went to other processes meanwhile."""
    begun, busy, ours = time.perf_counter(), _busy(), _of_children()
    yield
    busy, ours = _busy() - busy, _of_children() - ours
    shares.append(max(0.0, busy - ours) / (time.perf_counter() - begun) / (os.cpu_count() or 1))


def two_sides() -> tuple[set[int], set[int]]:
    """A processor for the measured program and another for its clients; all, if there is one."""
    allowed = sorted(os.sched_getaffinity(0))
    return ({allowed[0]}, {allowed[1]}) if len(allowed) > 1 else (set(allowed), set(allowed))


@contextmanager
def only_on(processors: set[int]) -> Iterator[None]:
    """Let this thread, and what is started by it meanwhile, run on these `processors`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def sleeps(pid: int) -> int:
    """How often all threads together have gone to sleep so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def _busy() -> float:
    """Seconds that all processors have worked."""
    first, *_ = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    user, nice, system, _idle, _waiting, *rest = map(int, first.split()[1:8])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
