"""Measure, print a table, keep the results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from benchmarks import (
    async_rows,
    command_line,
    first_stop,
    http_latency,
    imports,
    kinds,
    observers,
    page,
    queues,
    restarts,
    results,
    scale,
    servers,
    tables,
)

SIZES = (10, 100, 1_000, 10_000)
# Enough for a steady median; a round of the greatest size takes seconds.
ROUNDS = {10: 21, 100: 21, 1_000: 25, 10_000: 9}
OTHER_ROUNDS = 5
SHORT_ROUNDS = 61  # of signals, imports and commands
ASYNC_SIZES = (1_000, 10_000)
ASYNC_ROUNDS = 7
KINDS_ROUNDS = 9
HTTP_ROUNDS = 9
HTTP_SECONDS = 5.0  # for each program in each round: 250 answers
SERVERS_ROUNDS = 9
SERVERS_SECONDS = 1  # for each program in each round: wrk counts in whole ones
QUEUES_ROUNDS = 5
QUEUES_LATENCIES = 100  # of each program in each round
OBSERVERS_SERVICES = 1_000
OBSERVERS_ROUNDS = 15
RESTARTS = 2_000
QUICK_ROUNDS = 3
QUICK_HTTP_SECONDS = 0.5
QUICK_LATENCIES = 10
QUICK_QUEUES_SHARE = 0.05
QUICK_RESTARTS = 100
PARTS = tuple(results.Parts.__annotations__)


def main() -> None:
    options = _parser().parse_args()
    if options.markdown is not None:
        print(page.show(options.markdown, results.load(options.output or results.DEFAULT)))
        return
    entry = results.entry(_measure(options))
    if options.output is not None:
        results.store(options.output, entry)
    elif tuple(options.sizes) == SIZES:
        page.write(results.store(results.DEFAULT, entry))
    print(tables.text(entry))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--rounds", type=_at_least(1), help="so many rounds of everything")
    parser.add_argument(
        "--sizes",
        type=_at_least(2),
        nargs="+",
        default=SIZES,
        metavar="N",
        help="numbers of services; with others than the usual ones, nothing is kept",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="keep the results there, not in benchmarks/results.json and in docs/",
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        nargs="+",
        default=PARTS,
        metavar="PART",
        help=f"measure these only, and keep the others as they are: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--markdown",
        choices=page.SHOWN,
        nargs="?",
        const="performance",
        help="only print what that page shows of what is kept",
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more")
        return int(text)

    return number


def _measure(options: argparse.Namespace) -> results.Parts:
    def often(usually: int, quickly: int = QUICK_ROUNDS) -> int:
        rounds: int = options.rounds or (quickly if options.quick else usually)
        return rounds

    parts: dict[str, Callable[[], object]] = {
        "scale": lambda: [
            scale.measure(size, often(ROUNDS.get(size, OTHER_ROUNDS))) for size in options.sizes
        ],
        "first_stop": lambda: first_stop.measure(often(SHORT_ROUNDS)),
        "imports": lambda: imports.measure(often(SHORT_ROUNDS)),
        "command_line": lambda: command_line.measure(often(SHORT_ROUNDS)),
        "restarts": lambda: restarts.measure(QUICK_RESTARTS if options.quick else RESTARTS),
        "kinds": lambda: kinds.measure(often(KINDS_ROUNDS, 1), max(options.sizes)),
        "http_latency": lambda: http_latency.measure(
            often(HTTP_ROUNDS, 1), QUICK_HTTP_SECONDS if options.quick else HTTP_SECONDS
        ),
        "async_services": lambda: async_rows.measure_all(
            ASYNC_SIZES if tuple(options.sizes) == SIZES else options.sizes, often(ASYNC_ROUNDS)
        ),
        "servers": lambda: servers.measure(often(SERVERS_ROUNDS, 1), SERVERS_SECONDS),
        "queues": lambda: queues.measure(
            often(QUEUES_ROUNDS, 1),
            latencies=QUICK_LATENCIES if options.quick else QUEUES_LATENCIES,
            share=QUICK_QUEUES_SHARE if options.quick else 1.0,
        ),
        "observers": lambda: observers.measure(
            OBSERVERS_SERVICES if tuple(options.sizes) == SIZES else max(options.sizes),
            often(OBSERVERS_ROUNDS),
        ),
    }
    found: dict[str, object] = {}
    for part, measure in parts.items():
        if part in options.only:
            print(f"{part} ...", file=sys.stderr)
            found[part] = measure()
    return cast(results.Parts, found)


if __name__ == "__main__":
    main()
