"""Measure, print a table, keep the results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import first_stop, imports, page, results, scale, tables

SIZES = (10, 100, 1_000, 10_000)
# Enough for a steady median; a round of the greatest size takes seconds.
ROUNDS = {10: 21, 100: 21, 1_000: 25, 10_000: 9}
OTHER_ROUNDS = 5
SHORT_ROUNDS = 61  # of signals and imports
QUICK_ROUNDS = 3


def main() -> None:
    options = _parser().parse_args()
    if options.markdown:
        print(tables.markdown(results.load(options.output or results.DEFAULT)))
        return
    entry = _measure(options.sizes, options.rounds or (QUICK_ROUNDS if options.quick else None))
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
        help="keep the results there, not in benchmarks/results.json and docs/performance.md",
    )
    parser.add_argument("--markdown", action="store_true", help="only print what is kept")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more")
        return int(text)

    return number


def _measure(sizes: list[int], rounds: int | None) -> results.Entry:
    scales = []
    for size in sizes:
        print(f"{size:,} services ...", file=sys.stderr)
        scales.append(scale.measure(size, rounds or ROUNDS.get(size, OTHER_ROUNDS)))
    print("signals and imports ...", file=sys.stderr)
    short = rounds or SHORT_ROUNDS
    return results.entry(scales, first_stop.measure(short), imports.measure(short))


if __name__ == "__main__":
    main()
