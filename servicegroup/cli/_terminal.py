"""The way from a group to the screen of a terminal."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from servicegroup.errors import ServiceGroupError
from servicegroup.events import Event
from servicegroup.group import ServiceGroup
from servicegroup.report import Report

if TYPE_CHECKING:
    from servicegroup.cli._live import Screen


def on_terminal() -> bool:
    """Whether stderr is a terminal that can show more than lines."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Terminal:
    """Loads rich at the first event, beside the services that start: they do not wait for it."""

    def __init__(self, group: ServiceGroup) -> None:
        self._group = group
        self._lock = threading.Lock()  # guards _made
        self._made: Screen | None = None

    def note(self, event: Event) -> None:
        """A subscriber of the group."""
        self._screen().note(event)

    def end(self, report: Report, error: ServiceGroupError | None) -> None:
        """Print how it went. Main thread."""
        self._screen().end(report, error)

    def _screen(self) -> Screen:
        with self._lock:
            if self._made is None:
                from servicegroup.cli._live import Screen

                self._made = Screen(self._group)
            return self._made
