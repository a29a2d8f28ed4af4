"""How a group stands, out of what its admin server tells, as lines or as a table of rich."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import frozen

from servicegroup.report import State

if TYPE_CHECKING:
    from rich.console import Group

BAD = {State.FAILED.value, State.ABANDONED.value}
GOOD = {State.RUNNING.value, State.FINISHED.value, State.STOPPED.value}
COLUMNS = ("service", "state", "up for", "restarts", "to ready", "last failure")


@frozen(kw_only=True)
class Standing:
    """How all stands.

    Attributes:
        ready: whether the readiness probe says so, checks included.
        over: whether the stop has begun.
        title: of the group.
        reasons: why it is not ready.
        rows: the cells of each service, and its style.
    """

    group: str
    ready: bool
    over: bool
    title: str
    reasons: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], str], ...]

    def lines(self) -> Iterator[str]:
        """The same for a pipe."""
        yield self.title
        table = [COLUMNS, *(cells for cells, _ in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            columns = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            yield ("  " + "  ".join(columns)).rstrip()
        yield from self.reasons

    def renderable(self) -> Group:
        """The same for a terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(*COLUMNS, box=None, padding=(0, 2, 0, 0), header_style="bold")
        for cells, style in self.rows:
            table.add_row(*(Text(cell, style if i == 1 else "") for i, cell in enumerate(cells)))
        title = Text(self.title, "bold green" if self.ready else "bold yellow")
        return Group(title, table, *(Text(reason, "yellow") for reason in self.reasons))


# Any: it is JSON; a shape that is another one is seen by what fails.
def standing(status: dict[str, Any], probe: dict[str, Any]) -> Standing:
    """Out of `/status.json` and `/readyz`.

    Raises:
        KeyError, TypeError, AttributeError: they are not what an `AdminServer` answers.
    """
    ready = bool(probe["ok"])
    state = str(status["state"])
    reasons = [(one["service"] or "group", one["reason"]) for one in probe["findings"]]
    return Standing(
        group=status["group"],
        ready=ready,
        over=state in ("draining", "stopping", "stopped"),
        title=f"group {status['group']!r} is {state}, {'' if ready else 'not '}ready; "
        f"pid {status['pid']}",
        reasons=tuple(_shown(f"not ready: {name}: {why}") for name, why in reasons if why),
        rows=tuple(_rows(status["services"], status["now"], 0)),
    )


def begins_the_end(event: dict[str, Any], group: str) -> bool:
    """Whether `group` stops from here on."""
    return event.get("group") == group and event.get("event") in ("GroupDraining", "GroupStopping")


def event_line(event: dict[str, Any]) -> str:
    """What happened, as one line: when, what, of whom, and what is known."""
    at = event["time"]
    clock = time.strftime("%H:%M:%S", time.localtime(at)) + f"{at % 1:.3f}"[1:]
    rest = [event.get("service", event["group"]), event.get("reason"), event.get("error")]
    words = [clock, event["event"], *filter(None, [*rest, seconds(event.get("seconds"))])]
    return _shown("  ".join(words))


def seconds(value: float | None) -> str:
    """As one reads it: 0.012 s, 12.0 s, 3 min 4 s, 2 h 3 min, 1 d 2 h."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.{3 if value < 1 else 1}f} s"
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def _rows(
    services: list[dict[str, Any]], now: float, depth: int
) -> Iterator[tuple[tuple[str, ...], str]]:
    for one in services:
        state, ready, stalled = one["state"], one["ready"], one["stalled"]
        runs = state == State.RUNNING.value
        words = [state.replace("_", " ")]
        words += ["not ready"] if runs and not ready else []
        words += ["stalled"] if stalled else []
        up = now - one["started_at"] - (one["seconds_to_ready"] or 0.0) if runs else None
        cells = (
            "  " * depth + one["name"],
            ", ".join(words),
            seconds(up),
            str(one["restarts"] or ""),
            seconds(one["seconds_to_ready"]),
            one["error"] or "",
        )
        style = "green" if state in GOOD and (ready or not runs) else "yellow"
        yield tuple(map(_shown, cells)), "red" if state in BAD or stalled else style
        yield from _rows(one["parts"], now, depth + 1)


def _shown(text: str) -> str:
    """Without what a terminal would obey: names and errors may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
