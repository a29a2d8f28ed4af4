"""What one more service of each kind costs."""

from __future__ import annotations

from typing import TypedDict

from benchmarks.children import Life, live, output_of
from benchmarks.statistic import Spread, spread

# So many that one more can be measured, and so few that descriptors and memory suffice.
COUNTS = {"Service": 100, "Periodic": 100, "AsyncService": 100, "AsyncGroup": 1_000, "InProcess": 9}
HEARTBEATS = 100_000


class Kind(TypedDict):
    """Seconds and bytes: of a whole process with one service, and of each further one.

    Attributes:
        first_up: from before the process is made until all is running.
        first_memory: all of the process.
        up: from before the first service is made until all is running.
        down: from before SIGTERM is sent until the process is gone.
        memory: while all are running; of a child process, what it shares with none.
    """

    kind: str
    services: int
    first_up: Spread
    first_memory: Spread
    up: Spread
    down: Spread
    memory: Spread


class Kinds(TypedDict):
    """All kinds, and the seconds that a call of `heartbeat()` takes."""

    rounds: int
    kinds: list[Kind]
    heartbeat: Spread


def measure(rounds: int, most: int) -> Kinds:
    """All kinds in turn, each with one service and with many, `most` at most."""
    counts = {kind: min(count, most) for kind, count in COUNTS.items()}
    lives: dict[str, list[tuple[Life, Life]]] = {kind: [] for kind in counts}
    beats = []
    for _ in range(rounds):
        for kind, count in counts.items():
            lives[kind].append((live("kinds", kind, count), live("kinds", kind, 1)))
        beats.append(float(output_of("heartbeats", HEARTBEATS)))
    return {
        "rounds": rounds,
        "kinds": [_kind(kind, counts[kind], lives[kind]) for kind in counts],
        "heartbeat": spread(beats),
    }


def _kind(kind: str, count: int, lives: list[tuple[Life, Life]]) -> Kind:
    def each(figure: str) -> Spread:
        figures = [(_figures(many)[figure], _figures(one)[figure]) for many, one in lives]
        return spread([(many - one) / (count - 1) for many, one in figures])

    return {
        "kind": kind,
        "services": count,
        "first_up": spread([_figures(one)["first_up"] for _, one in lives]),
        "first_memory": spread([_figures(one)["memory"] for _, one in lives]),
        "up": each("up"),
        "down": each("down"),
        "memory": each("memory"),
    }


def _figures(life: Life) -> dict[str, float]:
    begun, running = map(float, life.first_line.split())
    return {
        "first_up": running - life.began_at,
        "up": running - begun,
        "down": life.ended_at - life.asked_at,
        "memory": float(life.resident),
    }
