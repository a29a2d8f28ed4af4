"""`servicegroup check`."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator

import click

from servicegroup._aio_group import AsyncGroup
from servicegroup._options import Options
from servicegroup._run import ABANDON_SHARE, RESERVE_SHARE, Settings
from servicegroup._table import Entry
from servicegroup.cli._target import end, load
from servicegroup.cli._worst_case import worst_case
from servicegroup.group import ServiceGroup
from servicegroup.restart import Restart

_HEAD = (
    *("start", "service", "kind", "ready when", "ready within", "on failure", "on return"),
    *("heartbeat", "daemon", "stop within"),
)
_MADE_BY = {"_Pair": "with_start()", "_Context": "with_context()", "_Deferred": "defer()"}


@click.command()
@click.argument("target", metavar="MODULE:NAME")
def command(target: str) -> None:
    """Import a group and print its services in order, their policies and the longest stop.

    Nothing is started. The exit code is 1, and the reason is printed, when there is no such group,
    or no service in it.
    """
    before = set(threading.enumerate())
    group = load(target)
    if not group._table.entries:
        click.secho(f"Error: {target} has no services, and would end at once", err=True, fg="red")
        end(1)
    click.echo(f"group {group.name!r}: nothing was started")
    head, *rows = _aligned([_HEAD, *_rows(group._table.entries)])
    click.secho(head, bold=True)
    for row in rows:
        click.echo(row)
    settings = group._settings
    names = [entry.name for entry in reversed(group._table.entries)]
    if settings.start_concurrently:
        click.echo("start: all at once")
    click.echo(f"stop: {'all at once' if settings.stop_concurrently else ', '.join(names)}")
    seconds = settings.drain_delay + worst_case(group)
    too_long = seconds > settings.shutdown_timeout
    click.secho(_longest_stop(settings, seconds), fg="yellow" if too_long else None)
    if started := [thread.name for thread in threading.enumerate() if thread not in before]:
        click.echo(f"the import itself has started threads: {', '.join(started)}")
    end(0)


def _rows(
    entries: Iterable[Entry], number: str = "", prefix: str = ""
) -> Iterator[tuple[str, ...]]:
    for place, entry in enumerate(list(entries), start=1):
        kind = type(entry.service).__name__
        at, name = f"{number}{place}", f"{prefix}{entry.name}"
        yield at, name, _MADE_BY.get(kind, kind), *_cells(entry.options)
        if isinstance(entry.service, (ServiceGroup, AsyncGroup)):
            yield from _rows(entry.service._table.entries, f"{at}.", f"{name}/")


def _cells(options: Options) -> tuple[str, ...]:
    """What is not in force, or nothing but usual, is left empty."""
    beats = options.heartbeat_timeout != math.inf
    return (
        options.ready_when,
        "" if options.ready_when == "entered" else _seconds(options.start_timeout),
        _policy(options.on_failure),
        "" if options.ready_when == "returned" else _policy(options.on_return),
        f"{_seconds(options.heartbeat_timeout)}, {options.on_stall}" if beats else "",
        "daemon" if options.daemon else "",
        _seconds(options.stop_timeout),
    )


def _policy(policy: object) -> str:
    if isinstance(policy, Restart):
        return f"restart, {policy.max_restarts:g} in {_seconds(policy.within)}"
    return str(policy)


def _longest_stop(settings: Settings, seconds: float) -> str:
    whole, delay = settings.shutdown_timeout, settings.drain_delay
    drained = f", of which {_seconds(delay)} are drain_delay" if delay else ""
    found = f"longest stop: {_seconds(seconds)}{drained}"
    if seconds <= whole:
        return f"{found}, within the shutdown_timeout of {_seconds(whole)}"
    return (
        f"{found}, more than the shutdown_timeout of {_seconds(whole)}: "
        f"after {_seconds(RESERVE_SHARE * whole)} all that is left is asked at once, "
        f"after {_seconds(ABANDON_SHARE * whole)} it is abandoned"
    )


def _seconds(seconds: float) -> str:
    return "no limit" if seconds == math.inf else f"{seconds:.4g} s"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """As a table, without the columns that are empty but for their head."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()
