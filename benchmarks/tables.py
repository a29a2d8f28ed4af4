"""The results as text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from benchmarks.results import Entry
from benchmarks.statistic import Comparison

Row = tuple[str, str, str, str, str]

HEAD: Row = ("measured", "servicegroup", "bare", "ratio", "min..max")


def text(entry: Entry) -> str:
    """One entry, for a terminal."""
    rows = [HEAD, *_rows(entry)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_title(entry), "", *lines])


def markdown(entries: Iterable[Entry]) -> str:
    """All entries, for the documentation."""
    parts = []
    for entry in entries:
        lines = [f"| {' | '.join(row)} |" for row in (HEAD, *_rows(entry))]
        lines.insert(1, "|---|--:|--:|--:|--:|")
        parts.append("\n".join([f"### {_title(entry)}", "", *lines]))
    return "\n\n".join(parts)


def _title(entry: Entry) -> str:
    return f"Python {entry['python']} on {entry['cpu']}, {entry['cores']} cores, {entry['date']}"


def _rows(entry: Entry) -> Iterator[Row]:
    for scale in entry["scale"]:
        for what, one, show in (
            ("process start to all running", scale["up"], _time),
            ("SIGTERM to exit", scale["down"], _time),
            ("both together", scale["both"], _time),
            ("both, imports left out", scale["work"], _time),
            ("memory for each", scale["memory"], _memory),
        ):
            yield f"{scale['services']:,} services: {what}", *_compared(one, show)
    first = entry["first_stop"]
    between = f"{_time(first['min'])}..{_time(first['max'])}"
    yield "SIGTERM to first `stop()` entered", _time(first["median"]), "", "", between
    imports = entry["imports"]
    for what, one in (
        ("import, against that of attrs, logging, threading and signal", imports["inside"]),
        ("the same, as a whole process", imports["process"]),
    ):
        ours, other, _, between = _compared(one, _time)
        yield what, ours, other, f"{one['ratio_of_medians']:.2f}", between


def _compared(one: Comparison, show: Callable[[float], str]) -> tuple[str, str, str, str]:
    between = f"{one['min']:.2f}..{one['max']:.2f}"
    return show(one["ours"]), show(one["other"]), f"{one['ratio']:.2f}", between


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _memory(size: float) -> str:
    return f"{size / 1024:.1f} KiB"
