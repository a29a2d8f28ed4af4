"""Many no-op services in one loop, against bare tasks: `python -m benchmarks.async_services`.

Each measurement is a process of its own. Up is from nothing to all running, down from there to all
ended; memory is what all of it adds to the process.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.statistic import compare

ROUNDS = int(os.environ.get("ROUNDS", "7"))
SIZES = (1_000, 10_000)
ROOT = Path(__file__).resolve().parent.parent


def resident() -> int:
    """Bytes of memory in use."""
    found = re.search(r"^Rss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


class Clock:
    """Takes down when things happen."""

    def __init__(self) -> None:
        self.memory = resident()
        self.begun = time.perf_counter()

    def running(self) -> None:
        self.up = time.perf_counter() - self.begun
        self.memory = resident() - self.memory
        self.asked = time.perf_counter()

    def ended(self) -> None:
        print(self.up, time.perf_counter() - self.asked, self.memory)


async def _bare(count: int) -> None:
    clock = Clock()
    events = []
    left = count
    running = asyncio.Event()

    async def noop(event: asyncio.Event) -> None:
        nonlocal left
        left -= 1
        if not left:
            running.set()
        await event.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            event = asyncio.Event()
            events.append(event)
            group.create_task(noop(event))
        await running.wait()
        clock.running()
        for event in reversed(events):
            event.set()
    clock.ended()


def bare(count: int) -> None:
    """Tasks of one asyncio.TaskGroup, each with an event of its own."""
    asyncio.run(_bare(count))


def ours(count: int) -> None:
    """Services of one AsyncGroup."""
    from servicegroup.aio import AsyncGroup, AsyncService

    class Noop(AsyncService):
        async def run(self) -> None:
            await self.stopping.wait()

    class Loop(AsyncGroup):
        def mark_ready(self) -> None:
            clock.running()
            self.stop()

    warm = AsyncGroup()
    warm.add(Noop())
    warm.stop()
    warm.start()
    clock = Clock()
    group = Loop(stop_timeout=600, shutdown_timeout=600)
    for _ in range(count):
        group.add(Noop())
    group.start()
    clock.ended()


def aiomisc(count: int) -> None:
    """Services of aiomisc.entrypoint."""
    from aiomisc import Service, entrypoint  # type: ignore[import-not-found,unused-ignore]

    class Noop(Service):  # type: ignore[misc,unused-ignore]
        async def start(self) -> None:
            self.start_event.set()
            await asyncio.Event().wait()

    clock = Clock()
    with entrypoint(*(Noop() for _ in range(count)), log_config=False):
        clock.running()
    clock.ended()


def mode(count: int) -> None:
    """Child services of one mode.Service."""
    from mode import Service  # type: ignore[import-not-found,unused-ignore]

    class Noop(Service):  # type: ignore[misc,unused-ignore]
        pass

    async def main() -> None:
        clock = Clock()
        root = Noop()
        for _ in range(count):
            root.add_dependency(Noop())
        await root.start()
        clock.running()
        await root.stop()
        clock.ended()

    asyncio.run(main())


def facet(count: int) -> None:
    """Dependencies of one facet service."""
    from facet import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        ServiceMixin,
    )

    class Noop(ServiceMixin):  # type: ignore[misc,unused-ignore]
        async def start(self) -> None:
            self.add_task(asyncio.Event().wait())

    class Root(ServiceMixin):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self.all = [Noop() for _ in range(count)]

        @property
        def dependencies(self) -> list[Noop]:
            return self.all

    async def main() -> None:
        clock = Clock()
        root = Root()
        async with root:
            clock.running()
        clock.ended()

    asyncio.run(main())


CONTENDERS: dict[str, tuple[Callable[[int], None], str]] = {
    "AsyncGroup": (ours, "servicegroup"),
    "aiomisc": (aiomisc, "aiomisc"),
    "mode-streaming": (mode, "mode"),
    "facet": (facet, "facet"),
}


def measure(name: str, count: int) -> tuple[float, float, float]:
    """Seconds up and down, and bytes, of one process."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.async_services", name, str(count)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=300,
    )
    if child.returncode:
        raise RuntimeError(child.stderr[-2000:])
    up, down, memory = map(float, child.stdout.split())
    return up, down, memory


def main() -> None:
    print(f"Python {sys.version.split()[0]}, {ROUNDS} rounds, medians of the ratios to bare tasks")
    print(f"{'':16}{'services':>9}{'up':>16}{'down':>16}{'both':>16}{'memory':>16}")
    for count in SIZES:
        for name, (_, module) in CONTENDERS.items():
            if importlib.util.find_spec(module) is None:
                print(f"{name:16}{count:9}  not installed")
                continue
            try:
                rounds = [(measure(name, count), measure("bare", count)) for _ in range(ROUNDS)]
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{name:16}{count:9}  failed: {str(error).splitlines()[-1]}")
                continue
            cells = []
            for figure in range(4):
                a, b = (
                    [
                        one[side][0] + one[side][1] if figure == 2 else one[side][min(figure, 2)]
                        for one in rounds
                    ]
                    for side in (0, 1)
                )
                found = compare(a, b)
                unit = found["ours"] / 1e6 if figure == 3 else found["ours"] * 1e3
                cells.append(f"{unit:7.1f} {'MB' if figure == 3 else 'ms'} {found['ratio']:4.2f}x")
            print(f"{name:16}{count:9}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run = bare if sys.argv[1] == "bare" else CONTENDERS[sys.argv[1]][0]
        run(int(sys.argv[2]))
    else:
        main()
