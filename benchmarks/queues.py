"""Consumers of queues in a group, against a loop over the same library; and task queues."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TypedDict

from benchmarks import queue_needs, queue_tasks
from benchmarks.processors import share_of_others, two_sides
from benchmarks.queue_lives import Life, Scene
from benchmarks.queue_needs import KINDS
from benchmarks.statistic import Comparison, Spread, compare, spread

MODES = {"ours": "consumers", "other": "bare_consumers"}  # the programs
IDLE_ROUNDS = 1  # what wakes up does so at intervals
TASK_ROUNDS = 3  # of what takes so much longer
TASKS_SHARE = 0.2  # of the messages, for the same reason


class Wakes(TypedDict):
    """How often a second the process wakes up when there is nothing to handle: the means."""

    ours: float
    other: float


class Queue(TypedDict):
    """`ours` is in a group, `other` a loop over the library.

    Attributes:
        messages: so many are there before it starts.
        rate: messages a second, from the first to the last of these.
        latency, p99: seconds from before one is put until its handler is entered.
    """

    consumer: str
    messages: int
    rate: Comparison
    latency: Comparison
    p99: Comparison
    wakes: Wakes


class Tasks(TypedDict):
    """Messages a second of a consumer against tasks a second of a library for these."""

    consumer: str
    library: str
    rate: Comparison


class LeftOut(TypedDict):
    """What could not be measured."""

    what: str
    why: str


class Queues(TypedDict):
    """All of them.

    Attributes:
        pinned: whether the consumers had a processor for themselves.
        others: the share of all processors that went to other processes meanwhile.
    """

    rounds: int
    pinned: bool
    others: Spread
    measured: list[Queue]
    tasks: list[Tasks]
    left_out: list[LeftOut]


def measure(
    rounds: int,
    *,
    latencies: int = 100,
    share: float = 1.0,
    kinds: Sequence[str] = tuple(KINDS),
) -> Queues:
    """Each in turn with its loop, with that share of the usual numbers of messages."""
    others: list[float] = []
    server_side, client_side = two_sides()
    found: Queues = {
        "rounds": rounds,
        "pinned": server_side != client_side,
        "others": {"median": 0.0, "min": 0.0, "max": 0.0},
        "measured": [],
        "tasks": [],
        "left_out": [],
    }
    for kind in kinds:
        if why := queue_needs.missing(kind):
            _leave_out(found, f"`{KINDS[kind].consumer}`", why)
            continue
        messages = max(2, round(KINDS[kind].messages * share))
        scene = Scene(kind, messages, latencies, server_side, client_side)
        ours, other = _lives(scene, rounds, others)
        found["measured"].append(_compared(scene, ours, other))
        if kind in queue_tasks.KINDS:
            _measure_tasks(scene, [life.rate for life in ours][:TASK_ROUNDS], found)
    if others:
        found["others"] = spread(others)
    return found


def _lives(scene: Scene, rounds: int, others: list[float]) -> tuple[list[Life], list[Life]]:
    lives: dict[str, list[Life]] = {mode: [] for mode in MODES}
    for number in range(rounds):
        with share_of_others(others):
            for mode in tuple(MODES)[:: -1 if number % 2 else 1]:
                lives[mode].append(scene.live(MODES[mode], idle=number < IDLE_ROUNDS))
    return lives["ours"], lives["other"]


def _compared(scene: Scene, ours: Sequence[Life], other: Sequence[Life]) -> Queue:
    return {
        "consumer": KINDS[scene.kind].consumer,
        "messages": scene.messages,
        "rate": compare([life.rate for life in ours], [life.rate for life in other]),
        "latency": compare([life.latency for life in ours], [life.latency for life in other]),
        "p99": compare([life.p99 for life in ours], [life.p99 for life in other]),
        "wakes": {"ours": _wakes(ours), "other": _wakes(other)},
    }


def _wakes(lives: Sequence[Life]) -> float:
    return fmean(life.wakes for life in lives if life.wakes is not None)


def _measure_tasks(scene: Scene, ours: Sequence[float], found: Queues) -> None:
    consumer = KINDS[scene.kind].consumer
    tasks = max(2, round(scene.messages * TASKS_SHARE))
    for library in queue_tasks.LIBRARIES:
        why = queue_tasks.missing(library)
        if not why:
            try:
                with scene.broker() as rig:
                    rates = [queue_tasks.rate(library, rig.url, tasks, scene.on) for _ in ours]
                rate = compare(ours, rates)
                found["tasks"].append({"consumer": consumer, "library": library, "rate": rate})
            except RuntimeError as error:
                why = f"it failed: {str(error).strip().splitlines()[-1]}"
        if why:
            _leave_out(found, f"{library}, beside `{consumer}`,", why)


def _leave_out(found: Queues, what: str, why: str) -> None:
    found["left_out"].append({"what": what, "why": why})
