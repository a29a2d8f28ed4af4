"""How things stand and how they went: frozen records with a text and a JSON form."""

from __future__ import annotations

import enum
import traceback
from collections.abc import Iterable, Iterator

import attrs
from attrs import frozen

BAR_WIDTH = 24


class State(enum.Enum):
    """Where a service is; docs/lifecycle.md draws the ways between."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    FINISHED = "finished"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    ABANDONED = "abandoned"


class GroupState(enum.Enum):
    """Where a group is."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


@frozen(kw_only=True, eq=False)
class ServiceStatus:
    """How one service stands.

    Attributes:
        name: its name; `group/name` for a part of a nested group.
        state: where it is.
        ready: whether it counts as up.
        stalled: whether it gave no heartbeat for too long.
        started_at: when its thread was started, in seconds since the epoch.
        seconds_to_ready: from there until it was first ready.
        stopping_at: when it was asked to stop, in seconds since the epoch.
        seconds_to_stop: from there until it had ended or was abandoned.
        restarts: how often it was started again.
        seconds_since_heartbeat: since it gave the last one, or was ready; None unless it runs and
            has a `heartbeat_timeout`.
        error: the first thing it raised, or the timeout it missed; under `Restart`, the last.
        stack: where its threads were when it was abandoned.
        parts: the services of a nested group.
    """

    name: str
    state: State
    ready: bool = False
    stalled: bool = False
    started_at: float | None = None
    seconds_to_ready: float | None = None
    stopping_at: float | None = None
    seconds_to_stop: float | None = None
    restarts: int = 0
    seconds_since_heartbeat: float | None = None
    error: BaseException | None = None
    stack: str | None = None
    parts: tuple[ServiceStatus, ...] = ()

    def under(self, group: str) -> ServiceStatus:
        """The same, named as a part of `group`."""
        parts = tuple(part.under(group) for part in self.parts)
        return attrs.evolve(self, name=f"{group}/{self.name}", parts=parts)

    def to_dict(self) -> dict[str, object]:
        """The same out of what JSON knows; the error as text, with its traceback."""
        error = self.error
        return {
            "name": self.name,
            "state": self.state.value,
            "ready": self.ready,
            "stalled": self.stalled,
            "started_at": self.started_at,
            "seconds_to_ready": self.seconds_to_ready,
            "stopping_at": self.stopping_at,
            "seconds_to_stop": self.seconds_to_stop,
            "restarts": self.restarts,
            "seconds_since_heartbeat": self.seconds_since_heartbeat,
            "error": None if error is None else one_line(error),
            "traceback": None if error is None else "".join(traceback.format_exception(error)),
            "stack": self.stack,
            "parts": [part.to_dict() for part in self.parts],
        }


@frozen(kw_only=True, eq=False)
class Report:
    """How a run went. `str()` prints it as a table with bars.

    Attributes:
        name: the group's name.
        reason: why it stopped.
        started_at: when, in seconds since the epoch.
        seconds: from then to the end.
        exit_code: what the process should end with: 0, 1 after a failure, or what a service
            passed to `sys.exit()`.
        services: one status a service, in the order in which they were added.
    """

    name: str
    reason: str
    started_at: float
    seconds: float
    exit_code: int
    services: tuple[ServiceStatus, ...]

    def to_dict(self) -> dict[str, object]:
        """The same out of what JSON knows."""
        return {
            "name": self.name,
            "reason": self.reason,
            "started_at": self.started_at,
            "seconds": self.seconds,
            "exit_code": self.exit_code,
            "services": [service.to_dict() for service in self.services],
        }

    def to_json(self, indent: int | None = None) -> str:
        """The same as JSON text; `indent` as in `json.dumps`."""
        import json  # here, since few programs need it and every program would wait for it

        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        head = (
            f"group {self.name!r} ended after {self.seconds:.3f} s, "
            f"exit code {self.exit_code}: {self.reason}"
        )
        return "\n".join([head, *table(self.services)])


def one_line(error: BaseException) -> str:
    """The type of `error` and the first line of its message."""
    try:
        message, *_ = str(error).split("\n")
    except Exception:  # its own __str__ fails, which must not hide that there was an error
        message = "its text cannot be had"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def table(services: Iterable[ServiceStatus]) -> Iterator[str]:
    """The lines of a table: a row a service, with a bar for its start and one for its stop."""
    rows = list(_flat(services))
    if not rows:
        return
    starts = [_span(row.started_at, row.seconds_to_ready) for row in rows]
    stops = [_span(row.stopping_at, row.seconds_to_stop) for row in rows]
    cells = [
        (row.name, row.state.value, start, stop)
        for row, start, stop in zip(rows, _bars(starts), _bars(stops), strict=True)
    ]
    cells.insert(0, ("service", "state", "start", "stop"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    errors = ["", *(one_line(row.error) if row.error else "" for row in rows)]
    for cell, error in zip(cells, errors, strict=True):
        columns = [text.ljust(width) for text, width in zip(cell, widths, strict=True)]
        yield ("  " + "  ".join([*columns, error])).rstrip()


def _flat(services: Iterable[ServiceStatus]) -> Iterator[ServiceStatus]:
    for service in services:
        yield service
        yield from _flat(service.parts)


def _span(at: float | None, seconds: float | None) -> tuple[float, float] | None:
    return None if at is None or seconds is None else (at, at + seconds)


def _bars(spans: list[tuple[float, float] | None]) -> list[str]:
    known = [span for span in spans if span is not None]
    first = min((begin for begin, _ in known), default=0.0)
    scale = BAR_WIDTH / max(max((end for _, end in known), default=0.0) - first, 1e-9)
    bars = []
    for span in spans:
        if span is None:
            bars.append("-")
            continue
        left = min(int((span[0] - first) * scale), BAR_WIDTH - 1)
        right = max(left + 1, min(round((span[1] - first) * scale), BAR_WIDTH))
        bar = (" " * left + "#" * (right - left)).ljust(BAR_WIDTH)
        bars.append(f"{span[1] - span[0]:8.3f} s |{bar}|")
    return bars
