"""How soon an HTTP server answers beside code that computes, and alone."""

from __future__ import annotations

from typing import TypedDict

from benchmarks.children import live, output_of
from benchmarks.processors import share_of_others
from benchmarks.statistic import Comparison, Spread, compare, percentile, spread

BESIDE = ("thread", "process")


class Latency(TypedDict):
    """Seconds from a request to its answer: `ours` beside the other code, `other` alone."""

    p50: Comparison
    p99: Comparison


class HttpLatency(TypedDict):
    """The server and the code that computes as threads of one group, and that in a process.

    Attributes:
        requests: of each program in each round.
        others: the share of all processors that went to other processes meanwhile. The slowest
            answers are slow for lack of a processor, so these figures are worth little on a machine
            that has much else to do.
    """

    rounds: int
    requests: int
    others: Spread
    thread: Latency
    process: Latency


def measure(rounds: int, seconds: float) -> HttpLatency:
    """All three programs in turn; each is asked for so many seconds in each round."""
    found: dict[str, list[list[float]]] = {where: [] for where in ("alone", *BESIDE)}
    others: list[float] = []
    for _ in range(rounds):
        for where, latencies in found.items():
            with share_of_others(others):
                latencies.append(_latencies(where, seconds))

    def compared(where: str, share: int) -> Comparison:
        ours, other = (
            [percentile(one, share) for one in found[which]] for which in (where, "alone")
        )
        return compare(ours, other)

    def both(where: str) -> Latency:
        return {"p50": compared(where, 50), "p99": compared(where, 99)}

    return {
        "rounds": rounds,
        "requests": len(found["alone"][0]),
        "others": spread(others),
        "thread": both("thread"),
        "process": both("process"),
    }


def _latencies(where: str, seconds: float) -> list[float]:
    printed: list[str] = []
    live(
        "http_beside",
        where,
        # A process of its own: its threads must not wait for the lock of this interpreter.
        meanwhile=lambda port: printed.append(output_of("http_clients", port.strip(), seconds)),
    )
    return [float(latency) for latency in printed[0].split()]
