"""A report as rows on one scale of time: what a drawing and a text of it are made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from attrs import field, frozen

from servicegroup.report import Report

SETTLED_SECONDS = 1.0  # a start that begins so long after all before it was ready came later


@frozen
class Span:
    """From one moment to another, in seconds since the group was started."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@frozen(kw_only=True, eq=False)
class Row:
    """One service.

    Attributes:
        name: its name below the group that it is directly in.
        path: its name in the report.
        depth: how many nested groups it is in.
        start: until it was ready or, where it never was, until the stop of its group; of the last
            start of one that was restarted.
        ready: whether it ever was.
        late: whether it was started, or started again, when the group had been.
        stop: until it had ended or was abandoned.
        parts: the services of a nested group.
    """

    name: str
    path: str
    depth: int
    state: str
    start: Span | None
    ready: bool
    late: bool
    stop: Span | None
    restarts: int
    error: str | None
    stack: str | None
    parts: tuple[Row, ...] = field(repr=False)


@frozen(kw_only=True, eq=False)
class RunRows:
    """One run of a group."""

    name: str
    reason: str
    seconds: float
    exit_code: int
    rows: tuple[Row, ...]

    @property
    def all(self) -> Iterator[Row]:
        """The rows with their parts behind each."""
        return flat(self.rows)


def flat(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with their parts behind each."""
    for row in rows:
        yield row
        yield from flat(row.parts)


def run_rows(report: Report | Mapping[str, object]) -> RunRows:
    """The rows of a `Report`, or of what its `to_dict` returned.

    Raises:
        TypeError: it is neither.
        ValueError: something is missing in it; the message says what and where.
    """
    if isinstance(report, Report):
        report = report.to_dict()
    elif not isinstance(report, Mapping):
        raise TypeError(
            f"a timeline is drawn of a Report or of its to_dict(), not of {type(report).__name__}: "
            "json.loads() makes one of JSON text"
        )
    top = _Fields(report, "the report")
    began, seconds = top.number("started_at"), top.number("seconds")
    rows = _rows(top.items("services"), began, seconds, 0, "", seconds)
    return RunRows(
        name=top.text("name"),
        reason=top.text("reason"),
        seconds=seconds,
        exit_code=int(top.number("exit_code")),
        rows=rows,
    )


class _Fields:
    """What a dictionary holds, with a word for what it does not hold."""

    def __init__(self, fields: object, where: str) -> None:
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where} is no dictionary, as Report.to_dict() makes it")
        self._fields = fields
        self._where = where

    def _wrong(self, name: str, kind: str) -> ValueError:
        return ValueError(f"{self._where} has no {kind} {name!r}: it is not of Report.to_dict()")

    def text(self, name: str) -> str:
        found = self._fields.get(name)
        if not isinstance(found, str):
            raise self._wrong(name, "text")
        return found

    def optional_text(self, name: str) -> str | None:
        return None if self._fields.get(name) is None else self.text(name)

    def number(self, name: str) -> float:
        found = self._fields.get(name)
        if not isinstance(found, (int, float)) or not math.isfinite(found):
            raise self._wrong(name, "number")
        return found

    def optional_number(self, name: str) -> float | None:
        return None if self._fields.get(name) is None else self.number(name)

    def items(self, name: str) -> list[_Fields]:
        found = self._fields.get(name)
        if not isinstance(found, (list, tuple)):
            raise self._wrong(name, "list")
        return [
            _Fields(one, f"{name}[{number}] of {self._where}") for number, one in enumerate(found)
        ]


def _rows(
    found: list[_Fields], began: float, seconds: float, depth: int, group: str, end: float
) -> tuple[Row, ...]:
    """The rows of one group, whose services are stopped by `end`."""
    stops = [(one.optional_number("stopping_at"), one) for one in found]
    first_stop = min((at - began for at, _ in stops if at is not None), default=end)
    late = _late_ones(found)
    rows = []
    for number, one in enumerate(found):
        path = one.text("name")
        started, ready = one.optional_number("started_at"), one.optional_number("seconds_to_ready")
        stopping, stopped = (
            one.optional_number("stopping_at"),
            one.optional_number("seconds_to_stop"),
        )
        stop = None
        if stopping is not None:
            at = stopping - began
            stop = Span(at, at + stopped if stopped is not None else seconds)
        start = None
        if started is not None:
            at = started - began
            until = first_stop if stop is None else min(first_stop, stop.begin)
            start = Span(at, at + ready if ready is not None else max(at, until))
        rows.append(
            Row(
                name=path.removeprefix(group),
                path=path,
                depth=depth,
                state=one.text("state"),
                start=start,
                ready=ready is not None,
                late=number in late,
                stop=stop,
                restarts=int(one.number("restarts")),
                error=one.optional_text("error"),
                stack=one.optional_text("stack"),
                parts=_rows(
                    one.items("parts"),
                    began,
                    seconds,
                    depth + 1,
                    f"{path}/",
                    first_stop if stop is None else stop.begin,
                ),
            )
        )
    return tuple(rows)


def _late_ones(found: list[_Fields]) -> set[int]:
    """The numbers of those that were started when all before had been ready for a while."""
    starts = []
    for number, one in enumerate(found):
        started = one.optional_number("started_at")
        if started is not None:
            starts.append((started, one.optional_number("seconds_to_ready"), number))
    late: set[int] = set()
    until: float | None = None
    for started, ready, number in sorted(starts, key=lambda one: one[0]):
        if until is not None and started - until > SETTLED_SECONDS:
            late.add(number)
        elif ready is None:
            until = math.inf  # one that never was ready may hold up all after it
        else:
            until = started + ready if until is None else max(until, started + ready)
    return late
