"""A group with all observers on against one without any, and what an answer to Prometheus takes."""

from __future__ import annotations

import http.client
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import NotRequired, TypedDict

from benchmarks.children import Life, live
from benchmarks.notified import systemd
from benchmarks.scale import both, down, up, work
from benchmarks.statistic import Comparison, Spread, compare, spread

SCRAPES = 20


class Observers(TypedDict):
    """Seconds; `ours` is with observers, `other` without.

    Attributes:
        up, down, both, work: as of `Scale`.
        metrics: for one GET /metrics while all services run.
        left_out: why there is none.
    """

    services: int
    rounds: int
    up: Comparison
    down: Comparison
    both: Comparison
    work: Comparison
    metrics: NotRequired[Spread]
    left_out: NotRequired[str]


def measure(services: int, rounds: int) -> Observers:
    """Both programs in turn, and once more to ask for metrics."""
    with tempfile.TemporaryDirectory() as temporary, systemd(Path(temporary)):
        report = Path(temporary) / "report.json"
        live("observed_services", 1, report)  # it compiles what is to be imported
        seconds: list[float] = []
        asked = importlib.util.find_spec("prometheus_client") is not None
        if asked:
            live("observed_services", services, report, meanwhile=lambda line: _ask(line, seconds))
        lives: list[tuple[Life, Life]] = []
        for number in range(rounds):
            if number % 2:
                other = live("services", services)
                lives.append((live("observed_services", services, report), other))
            else:
                ours = live("observed_services", services, report)
                lives.append((ours, live("services", services)))
    found = {
        name: compare([measured(ours) for ours, _ in lives], [measured(one) for _, one in lives])
        for name, measured in (("up", up), ("down", down), ("both", both), ("work", work))
    }
    entry: Observers = {
        "services": services,
        "rounds": rounds,
        "up": found["up"],
        "down": found["down"],
        "both": found["both"],
        "work": found["work"],
    }
    if asked:
        entry["metrics"] = spread(seconds)
    else:
        entry["left_out"] = "prometheus_client is not installed (the extra metrics has it)"
    return entry


def _ask(first_line: str, seconds: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(first_line.split()[2]))
    for _ in range(SCRAPES):
        begun = time.monotonic()
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        if answer.status != 200 or b"servicegroup" not in answer.read():
            raise RuntimeError(f"GET /metrics: {answer.status}")
        seconds.append(time.monotonic() - begun)
    connection.close()
