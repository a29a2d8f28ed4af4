"""Servers in a group against their libraries alone."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import TypedDict

from attrs import define, field

from benchmarks.children import PROGRAMS, environment
from benchmarks.processors import only_on, share_of_others, sleeps, two_sides
from benchmarks.server_load import CONNECTIONS, ask, missing
from benchmarks.statistic import Comparison, Spread, compare, spread

# What is measured, and the libraries it needs.
KINDS = {
    "SocketServer": (),
    "AsgiServer": ("uvicorn",),
    "WsgiServer": ("waitress",),
    "AiohttpServer": ("aiohttp",),
    "GrpcServer": ("grpc", "grpc_health"),
    "GrpcAioServer": ("grpc", "grpc_health"),
}
MEASURED = (*((kind,) for kind in KINDS), ("WsgiServer",) * 2, ("AsgiServer",) * 2)
MODES = {"ours": "servers", "other": "bare_servers"}  # the programs
SETTLE_SECONDS = 0.3  # until the servers serve, and until the last connections are gone
IDLE_SECONDS = 0.5


class Wakes(TypedDict):
    """How often a second the process wakes up when nobody asks: the means."""

    ours: float
    other: float


class Server(TypedDict):
    """`ours` is in a group, `other` the library alone; of two, in threads of one process.

    Attributes:
        rate: answers a second.
        p99: seconds.
        cost: seconds of the processor for each answer, which is steadier than the two above where
            others want the processor, too.
        down: seconds from SIGTERM without load until the process is gone.
    """

    servers: list[str]
    rate: Comparison
    p99: Comparison
    cost: Comparison
    down: Comparison
    wakes: Wakes


class LeftOut(TypedDict):
    """What could not be measured."""

    servers: list[str]
    why: str


class Servers(TypedDict):
    """All of them.

    Attributes:
        pinned: whether server and clients had a processor each.
        others: the share of all processors that went to other processes meanwhile.
    """

    rounds: int
    seconds: int
    connections: int
    pinned: bool
    others: Spread
    measured: list[Server]
    left_out: list[LeftOut]


@define
class _Figures:
    """Of one program, a value a round."""

    rate: list[float] = field(factory=list)
    p99: list[float] = field(factory=list)
    cost: list[float] = field(factory=list)
    down: list[float] = field(factory=list)
    wakes: list[float] = field(factory=list)


def measure(rounds: int, seconds: int, measured: Sequence[tuple[str, ...]] = MEASURED) -> Servers:
    """Each in turn with its library; it is asked for so many seconds in each round."""
    others: list[float] = []
    server_side, client_side = two_sides()
    found: Servers = {
        "rounds": rounds,
        "seconds": seconds,
        "connections": CONNECTIONS,
        "pinned": server_side != client_side,
        "others": {"median": 0.0, "min": 0.0, "max": 0.0},
        "measured": [],
        "left_out": [],
    }
    for kinds in measured:
        why = missing(kinds[0]) or _not_installed(kinds)
        if why:
            found["left_out"].append({"servers": list(kinds), "why": why})
            continue
        figures = {mode: _Figures() for mode in MODES}
        for number in range(rounds):
            with share_of_others(others):
                _round(kinds, seconds, figures, tuple(MODES)[:: -1 if number % 2 else 1])
        found["measured"].append(_compared(kinds, figures))
    if others:
        found["others"] = spread(others)
    return found


def _not_installed(kinds: Sequence[str]) -> str:
    gone = [name for kind in kinds for name in KINDS[kind] if not importlib.util.find_spec(name)]
    return f"{gone[0]} is not installed (the extra test has it)" if gone else ""


def _round(
    kinds: Sequence[str], seconds: int, figures: dict[str, _Figures], order: Sequence[str]
) -> None:
    server_side, client_side = two_sides()
    with ExitStack() as stack:
        running = {}
        for mode in order:
            with only_on(server_side):
                running[mode] = stack.enter_context(_running(MODES[mode], kinds))
        time.sleep(SETTLE_SECONDS)
        for mode, (child, ports) in running.items():
            worked = _processor_seconds(child.pid)
            with only_on(client_side):
                answers = ask(kinds[0], ports, seconds)
            worked = _processor_seconds(child.pid) - worked
            figures[mode].rate.append(answers.rate)
            figures[mode].p99.append(answers.p99)
            figures[mode].cost.append(worked / (answers.rate * seconds))
        time.sleep(SETTLE_SECONDS)
        before = {mode: sleeps(child.pid) for mode, (child, _) in running.items()}
        time.sleep(IDLE_SECONDS)
        for mode, (child, _) in running.items():
            figures[mode].wakes.append((sleeps(child.pid) - before[mode]) / IDLE_SECONDS)
        for mode, (child, _) in running.items():
            begun = time.monotonic()
            child.send_signal(signal.SIGTERM)
            # Daemon threads under uvloop may crash an interpreter that ends; ours ends without any.
            if child.wait() not in ((0,) if mode == "ours" else (0, -signal.SIGSEGV)):
                raise SystemExit(f"{MODES[mode]} {kinds} ended with {child.returncode}")
            figures[mode].down.append(time.monotonic() - begun)


@contextmanager
def _running(
    program: str, kinds: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    command = [sys.executable, str(PROGRAMS / f"{program}.py"), *kinds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stdout is not None
        try:
            ports = child.stdout.readline().split()
            if not ports:
                raise SystemExit(f"{program} {kinds} ended too early")
            yield child, ports
        finally:
            child.kill()  # it has ended, unless something failed


def _processor_seconds(pid: int) -> float:
    _, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")
    user, system = rest.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _compared(kinds: Sequence[str], figures: dict[str, _Figures]) -> Server:
    ours, other = figures["ours"], figures["other"]
    return {
        "servers": list(kinds),
        "rate": compare(ours.rate, other.rate),
        "p99": compare(ours.p99, other.p99),
        "cost": compare(ours.cost, other.cost),
        "down": compare(ours.down, other.down),
        "wakes": {"ours": fmean(ours.wakes), "other": fmean(other.wakes)},
    }
