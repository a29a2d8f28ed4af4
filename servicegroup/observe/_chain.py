"""The critical chain: what the end of a start or a stop was waiting for, back to its beginning."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from attrs import frozen

from servicegroup.observe._rows import Row, Span

# Times of a report are differences of seconds since the epoch, which floats know to a fraction of
# a microsecond; between one service and the next there is more.
ROUNDING = 5e-6


@frozen
class Link:
    """A service of a chain, and how long that took."""

    row: Row
    span: Span


def start_chain(rows: Iterable[Row]) -> list[Link]:
    """Of services of one group, those that made its start as long as it was; the first first."""
    return _chain(Link(row, row.start) for row in rows if row.start is not None and not row.late)


def stop_chain(rows: Iterable[Row]) -> list[Link]:
    """The same of its stop."""
    return _chain(Link(row, row.stop) for row in rows if row.stop is not None)


def _chain(links: Iterable[Link]) -> list[Link]:
    """From the last to end, each time to the one that had ended last when that began.

    It goes by times alone, as `systemd-analyze critical-chain` does: what did not wait, because all
    were asked at once, overlaps and so is in no chain with the others.
    """
    by_end = sorted(links, key=lambda link: link.span.end)
    ends = [link.span.end for link in by_end]
    chain = []
    at = len(by_end) - 1
    while at >= 0:
        chain.append(by_end[at])
        # Never one that comes behind in this order: of two that took no time, neither waited.
        at = min(at, bisect_right(ends, by_end[at].span.begin + ROUNDING)) - 1
    return chain[::-1]
