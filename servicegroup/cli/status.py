"""`servicegroup status`: how a running program stands, once or for as long as it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from servicegroup.cli import _admin
from servicegroup.cli._standing import Standing, begins_the_end, event_line, standing

NOT_READY = 1
INTERRUPTED = 130


@click.command()
@_admin.argument
@click.option("--watch", is_flag=True, help="Follow what happens, until Ctrl-C or its end.")
@click.pass_context
def command(context: click.Context, admin: _admin.Admin, watch: bool) -> None:
    """Show how a program's services stand.

    URL is that of its admin server, by default http://127.0.0.1:9090; HOST:PORT, or PORT alone,
    will do. In a pipe --watch prints a line for whatever happens.

    Exit codes: 0 the group is ready, with --watch it has ended; 1 it is not ready; 3 no admin
    server answers there; 130 Ctrl-C.
    """
    live = watch and _on_terminal()
    try:
        with _screen(live) as show:
            if watch:
                _watch(admin, show, live)
                return
            now = _look(admin)
            show(now)
    except KeyboardInterrupt:
        context.exit(INTERRUPTED)
    context.exit(0 if now.ready else NOT_READY)


def _look(admin: _admin.Admin) -> Standing:
    status, probe = admin.json("/status.json"), admin.json("/readyz", also=503)
    try:
        return standing(status, probe)
    except (KeyError, TypeError, AttributeError):
        raise admin.stranger("what it tells is not the status of a group") from None


def _watch(admin: _admin.Admin, show: Callable[[Standing], None], live: bool) -> None:
    over = False
    while not over:  # a stream that this was too slow for ends, too, and is begun anew
        now: Standing | None = None
        heard = False
        for events in admin.events():
            heard = heard or bool(events)
            if now is not None:
                over = over or any(begins_the_end(event, now.group) for event in events)
                if not live:
                    for event in events:
                        click.echo(event_line(event))
                    continue
            try:
                now = _look(admin)
            except _admin.NoAdminError:
                if over:
                    break  # it was the last to stop
                raise
            over = over or now.over
            show(now)
        if not (over or heard):
            raise _admin.NoAdminError(f"{admin.url} has gone, and nothing told that it would")
    if now is not None:
        click.echo(f"group {now.group!r}: its admin server has ended")


@contextmanager
def _screen(live: bool) -> Iterator[Callable[[Standing], None]]:
    """What shows a standing: on a terminal a table in colours, one that changes if `live`."""
    if not _on_terminal():
        yield lambda now: click.echo("\n".join(now.lines()))
        return
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise click.ClickException(
            "tables on a terminal need rich: pip install 'servicegroup[cli]'"
        ) from None
    console = Console(highlight=False)
    if not live:
        yield lambda now: console.print(now.renderable())
        return
    # No refresh of its own, which would wake up four times a second for nothing.
    with Live(console=console, auto_refresh=False) as screen:
        yield lambda now: screen.update(now.renderable(), refresh=True)


def _on_terminal() -> bool:
    """Whether stdout is a terminal that can show more than lines."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
