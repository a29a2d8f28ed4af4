"""A run as a drawing: a bar for each start and one for each stop, on a scale of their own each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from heapq import nlargest
from html import escape

from attrs import frozen

from servicegroup.observe._chain import start_chain, stop_chain
from servicegroup.observe._rows import Row, RunRows, Span

ROWS = 500  # at most: beyond it the slowest, in a drawing that a browser still scrolls
ROW_HEIGHT = 20
HEAD = 84  # above the first row
PANEL = 360  # the width of all starts, and of all stops
GAP = 24
BEHIND = 96  # a panel: room for the seconds of a bar that reaches its end
INDENT = 14
NAME_CHARACTERS = 40
CHARACTER = 7.3  # the width of one, about
TICKS = 4

# What XML 1.0 has no place for, escaped or not.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_STYLE = """
svg { --paper: #ffffff; --ink: #1f2328; --faint: #6e7781; --line: #d0d7de; --start: #54aeff;
  --stop: #c297ff; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #e6edf3; --faint: #8d96a0;
  --line: #30363d; --start: #1f6feb; --stop: #8957e5; --bad: #ff7b72; } }
text { font: 12px ui-monospace, monospace; fill: var(--ink); white-space: pre; }
.title { font-weight: bold; }
.faint { fill: var(--faint); }
.bad { fill: var(--bad); font-weight: bold; }
.paper { fill: var(--paper); }
.line { stroke: var(--line); }
.start { fill: var(--start); }
.stop { fill: var(--stop); }
.critical { stroke: var(--ink); stroke-width: 2; }
"""


@frozen
class _Panel:
    """Where one moment is drawn."""

    left: float
    span: Span

    def x(self, moment: float) -> float:
        return self.left + PANEL * (moment - self.span.begin) / max(self.span.seconds, 1e-9)

    @classmethod
    def of(cls, left: float, spans: Iterable[Span]) -> _Panel:
        known = list(spans)
        begin = min((span.begin for span in known), default=0.0)
        return cls(left, Span(begin, max((span.end for span in known), default=begin)))


def timeline_svg(run: RunRows) -> str:
    """The whole document."""
    rows, left_out = _chosen(list(run.all))
    widest = max(
        (row.depth * INDENT + len(_label(row)) * CHARACTER for row in rows), default=CHARACTER
    )
    left = GAP + widest + GAP
    starts = _Panel.of(left, (row.start for row in rows if row.start and not row.late))
    stops = _Panel.of(left + PANEL + BEHIND, (row.stop for row in rows if row.stop))
    states = stops.left + PANEL + BEHIND
    width = states + 12 * CHARACTER + GAP
    height = HEAD + len(rows) * ROW_HEIGHT + GAP + (ROW_HEIGHT if left_out else 0)
    critical = _critical(run.rows)
    head = f"group {run.name!r}: {run.seconds:.3f} s, exit code {run.exit_code}, {run.reason}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" '
        f'height="{height}" viewBox="0 0 {width:.0f} {height}">',
        f"<title>{_xml(head)}</title>",
        f"<style>{_STYLE}</style>",
        '<rect class="paper" width="100%" height="100%"/>',
        _text(GAP, 24, _short(head, 120), "title"),
        _text(GAP, 42, "outlined: the critical chain, whose end the group waited for", "faint"),
    ]
    for title, panel in (("start", starts), ("stop", stops)):
        parts.append(_text(panel.left, 62, title, "title"))
        parts += _grid(panel, height)
    for number, row in enumerate(rows):
        parts += _row(row, HEAD + number * ROW_HEIGHT, starts, stops, states, critical)
    if left_out:
        note = f"{left_out} services that were quicker are left out"
        parts.append(_text(GAP, height - GAP, note, "faint"))
    return "\n".join([*parts, "</svg>", ""])


def _chosen(rows: list[Row]) -> tuple[list[Row], int]:
    """The rows to draw: all, or the slowest and those that ended badly; and how many are not."""
    if len(rows) <= ROWS:
        return rows, 0

    def weight(row: Row) -> tuple[bool, float]:
        spans = [span.seconds for span in (row.start, row.stop) if span is not None]
        return _is_bad(row), max(spans, default=0.0)

    kept = {id(row) for row in nlargest(ROWS, rows, key=weight)}
    return [row for row in rows if id(row) in kept], len(rows) - len(kept)


def _critical(rows: Iterable[Row]) -> set[tuple[int, str]]:
    """Whose start, and whose stop, is in a chain that reaches through all nested groups."""
    found: set[tuple[int, str]] = set()
    for kind, chain_of in (("start", start_chain), ("stop", stop_chain)):
        levels = [tuple(rows)]
        while levels:
            for link in chain_of(levels.pop()):
                found.add((id(link.row), kind))
                if link.row.parts:
                    levels.append(link.row.parts)
    return found


def _row(
    row: Row,
    y: float,
    starts: _Panel,
    stops: _Panel,
    states: float,
    critical: set[tuple[int, str]],
) -> Iterator[str]:
    yield "<g>"
    yield f"<title>{_xml(_told(row))}</title>"
    base = y + ROW_HEIGHT * 0.7
    yield _text(GAP + row.depth * INDENT, base, _label(row))
    if row.start is not None and row.late:
        again = "again " if row.restarts else ""
        yield _text(starts.left, base, f"started {again}at {row.start.begin:.3f} s", "faint")
    elif row.start is not None:
        yield from _bar(starts, row.start, y, "start", (id(row), "start") in critical)
    if row.stop is not None:
        yield from _bar(stops, row.stop, y, "stop", (id(row), "stop") in critical)
    yield _text(states, base, row.state, "bad" if _is_bad(row) else "faint")
    yield "</g>"


def _bar(panel: _Panel, span: Span, y: float, kind: str, critical: bool) -> Iterator[str]:
    x = panel.x(span.begin)
    width = max(panel.x(span.end) - x, 1.5)
    yield (
        f'<rect class="{kind}{" critical" if critical else ""}" x="{x:.1f}" y="{y + 3:.1f}" '
        f'width="{width:.1f}" height="{ROW_HEIGHT - 6}" rx="2"/>'
    )
    yield _text(x + width + 6, y + ROW_HEIGHT * 0.7, f"{span.seconds:.3f} s")


def _grid(panel: _Panel, height: float) -> Iterator[str]:
    for tick in range(TICKS + 1):
        moment = panel.span.begin + panel.span.seconds * tick / TICKS
        x = panel.left + PANEL * tick / TICKS
        yield f'<path class="line" d="M{x:.1f} {HEAD - 4}V{height - GAP}"/>'
        yield _text(x, HEAD - 8, f"{moment:.3f}", "faint", "middle")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{anchor}>{_xml(text)}</text>'


def _told(row: Row) -> str:
    """All that is known of it, for those who point at it."""
    lines = [f"{row.path}: {row.state}"]
    if row.start is not None:
        ready = "ready" if row.ready else "not ready"
        lines.append(f"started @{row.start.begin:.3f} s, {ready} +{row.start.seconds:.3f} s")
    if row.restarts:
        lines.append(f"restarts: {row.restarts}")
    if row.stop is not None:
        lines.append(f"stopped @{row.stop.begin:.3f} s +{row.stop.seconds:.3f} s")
    return "\n".join([*lines, *filter(None, [row.error, row.stack])])


def _label(row: Row) -> str:
    return _short(row.name, NAME_CHARACTERS)


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _is_bad(row: Row) -> bool:
    return row.state in ("failed", "abandoned")


def _xml(text: str) -> str:
    return escape(_NO_XML.sub("\ufffd", text))
