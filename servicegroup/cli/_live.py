"""What a terminal shows: a table that moves while a group starts and stops, and how it went."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from servicegroup import events
from servicegroup.errors import ServiceGroupError
from servicegroup.group import ServiceGroup
from servicegroup.report import Report, ServiceStatus, State, _flat, one_line

_PER_SECOND = 8
_MARGIN = 4  # lines of the terminal that the table leaves to what is printed beside it
_STYLES = {
    State.NEW: "dim",
    State.STARTING: "yellow",
    State.RUNNING: "green",
    State.BACKING_OFF: "yellow",
    State.STOPPING: "yellow",
    State.FAILED: "bold red",
    State.ABANDONED: "bold red",
}
_UNDER_WAY = (State.STARTING, State.BACKING_OFF, State.STOPPING, State.FAILED, State.ABANDONED)


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Leave it: a process that is ended at once could not bring it back."""
        return False


class Screen:
    """`note` is for the group's subscribers' thread, `end` for the main thread, after it."""

    def __init__(self, group: ServiceGroup) -> None:
        self._group = group
        self._console = _Console(stderr=True)
        self._live: Live | None = None
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def note(self, event: events.Event) -> None:
        """Begin or end the table."""
        if isinstance(event, (events.GroupStarting, events.GroupDraining)):
            self._begin()
        elif isinstance(event, events.GroupReady) and self._live is not None:
            self._end(keep=True)
            head = Text(f"{event.group}: ready after {event.seconds:.3f} s", "green")
            self._console.print(head, Text("(Ctrl-C stops)", "dim"))
        elif isinstance(event, events.GroupStopped):
            self._end(keep=False)

    def end(self, report: Report, error: ServiceGroupError | None) -> None:
        """Print how it went."""
        self._end(keep=False)
        if error is not None:
            traceback.print_exception(error)
        good = "green" if report.exit_code == 0 else "bold red"
        states = [one.state for one in _flat(report.services)]
        styles = [good, "bold", *(_STYLES.get(state, "") for state in states)]
        for line, style in zip(str(report).split("\n"), styles, strict=False):
            self._console.print(Text(line, style), soft_wrap=True)

    def _begin(self) -> None:
        if self._live is not None:
            return
        self._live = Live(
            console=self._console,
            get_renderable=self._table,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        before = (sys.stdout, sys.stderr)
        self._live.start()
        # Handlers made earlier hold the streams that are behind the table now.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in before:
                self._handlers.append((handler, handler.stream))
                handler.setStream(sys.stdout if handler.stream is before[0] else sys.stderr)

    def _end(self, *, keep: bool) -> None:
        live, self._live = self._live, None
        if live is not None:
            for handler, stream in self._handlers:
                handler.setStream(stream)
            self._handlers.clear()
            live.transient = not keep
            live.stop()

    def _table(self) -> Table:
        rows = list(_flat(self._group.status()))
        room = max(1, self._console.size.height - _MARGIN)
        hidden = len(rows) - room
        if hidden > 0:  # what is under way is what one waits for
            rows.sort(key=lambda row: row.state not in _UNDER_WAY)
            del rows[room:]
        table = Table(box=None, pad_edge=False, show_header=False, caption_justify="left")
        if hidden > 0:
            table.caption = f"and {hidden} more"
        now = time.time()
        for row in rows:
            state = Text(row.state.value, _STYLES.get(row.state, ""))
            table.add_row(Text(row.name), state, _seconds(row, now), Text(_note(row)))
        return table


def _seconds(row: ServiceStatus, now: float) -> str:
    """Of the start or the stop, so far or in all."""
    since, taken = row.stopping_at, row.seconds_to_stop
    if since is None:
        since, taken = row.started_at, row.seconds_to_ready
    if since is None or row.state is State.NEW:
        return ""
    return f"{now - since if taken is None else taken:.1f} s"


def _note(row: ServiceStatus) -> str:
    parts = [f"restart {row.restarts}" if row.restarts else ""]
    parts.append("" if row.error is None else one_line(row.error))
    return ", ".join(filter(None, parts))
