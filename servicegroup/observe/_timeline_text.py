"""A run as text: what was slow, and who waited for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest
from textwrap import indent

from servicegroup.observe._chain import Link, start_chain, stop_chain
from servicegroup.observe._rows import Row, RunRows, Span

LINES = 30  # of each list: the slowest, for nobody reads thousands


def timeline_text(run: RunRows) -> str:
    """The text, in the order in which one looks for what was slow."""
    lines = [
        f"group {run.name!r} ended after {run.seconds:.3f} s, exit code {run.exit_code}: "
        f"{run.reason}"
    ]
    # A nested group is as slow as its services are together: those are the ones to blame.
    leaves = [row for row in run.all if not row.parts]
    starts = [Link(row, row.start) for row in leaves if row.start is not None]
    stops = [Link(row, row.stop) for row in leaves if row.stop is not None]
    lines += _section("slowest to start", _blame(starts, _start_note))
    lines += _section("slowest to stop", _blame(stops, _stop_note))
    lines += _section(
        "critical chain of the start, the last first, each after the one below it",
        _chain_lines(run.rows, start_chain, _start_note),
    )
    lines += _section(
        "critical chain of the stop, the last first, each after the one below it",
        _chain_lines(run.rows, stop_chain, _stop_note),
    )
    for row in run.all:
        if row.state == "abandoned":
            lines += _section(f"{row.path} was abandoned", (row.stack or "").splitlines())
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield f"\n{title}:"
        yield from (indent(line, "  ") for line in found)


def _blame(links: list[Link], note: Callable[[Row], str]) -> Iterator[str]:
    for link in nlargest(LINES, links, key=lambda link: link.span.seconds):
        yield f"{link.span.seconds:9.3f} s  {link.row.path}{note(link.row)}"
    yield from _left_out(len(links) - LINES)


def _chain_lines(
    rows: Iterable[Row], chain_of: Callable[[Iterable[Row]], list[Link]], note: Callable[[Row], str]
) -> Iterator[str]:
    chain = chain_of(rows)
    shown = {id(link) for link in nlargest(LINES, chain, key=lambda link: link.span.seconds)}
    for link in reversed(chain):
        if id(link) in shown:
            text = f"{link.row.path}  {_at(link.span)}{note(link.row)}"
            yield "  " * link.row.depth + text
            yield from _chain_lines(link.row.parts, chain_of, note)
    yield from _left_out(len(chain) - LINES)


def _at(span: Span) -> str:
    return f"@{span.begin:.3f} s +{span.seconds:.3f} s"


def _left_out(count: int) -> Iterator[str]:
    if count > 0:
        yield f"({count} that were quicker are left out)"


def _start_note(row: Row) -> str:
    notes = [
        "" if row.ready else "never ready",
        f"restarted {row.restarts} times" if row.restarts else "",
    ]
    return "".join(f", {note}" for note in notes if note)


def _stop_note(row: Row) -> str:
    return ", abandoned" if row.state == "abandoned" else ""
