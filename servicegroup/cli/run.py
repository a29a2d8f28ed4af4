"""`servicegroup run`."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

import click

from servicegroup import events
from servicegroup.cli import _logs
from servicegroup.cli._address import Address
from servicegroup.cli._target import end, load
from servicegroup.cli._terminal import Terminal, on_terminal
from servicegroup.errors import ServiceGroupError
from servicegroup.group import ServiceGroup, _print_outcome
from servicegroup.report import Report

Tell = Callable[[Report, ServiceGroupError | None], object]

_ARGUMENTS = "servicegroup.arguments"
_ORPHANS = (
    "this is process 1, to which orphans fall, and it reaps none: if your services start processes "
    "that start others, let an init be process 1 (docker run --init, init: true in compose, "
    "shareProcessNamespace: true in Kubernetes)"
)


class _Run(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = [one for one in args if one != "--reload"]
        return super().parse_args(ctx, args)


@click.command(cls=_Run)
@click.argument("target", metavar="MODULE:NAME")
@click.option("--admin", type=Address(), help="Add an admin server: probes, a live page, metrics.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="Log everything from INFO on to stderr, in lines of text or of JSON.",
)
@click.option(
    "--shutdown-timeout", type=float, metavar="SECONDS", help="For the whole stop, drain included."
)
@click.option(
    "--drain-delay",
    type=float,
    metavar="SECONDS",
    help="To go on serving, no longer ready, before the stop.",
)
@click.option(
    "--report",
    type=click.File("w", encoding="utf-8", lazy=False),
    help="Where to write at the end how it went, as JSON.",
)
@click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    help="NAME=value lines; a variable that is set already keeps its value.",
)
@click.option("--reload", is_flag=True, help="Stop and start afresh when a Python file changes.")
@click.option("--reload-link", type=int, hidden=True)  # from reload() to those that it starts
@click.pass_context
def command(
    context: click.Context,
    *,
    target: str,
    admin: tuple[str, int] | None,
    log_format: str | None,
    shutdown_timeout: float | None,
    drain_delay: float | None,
    report: TextIO | None,
    env_file: str | None,
    reload: bool,
    reload_link: int | None,
) -> None:
    """Run the group that MODULE:NAME names, or that the function of that name returns.

    It is imported from the current directory, or from wherever Python looks. SIGINT, SIGTERM and
    SIGHUP stop it, the last service first; one of them a second time ends the process at once.
    What is given here goes before what the program says.
    """
    if reload:
        from servicegroup.cli.reload import reload as run_again_and_again

        sys.exit(run_again_and_again(context.meta[_ARGUMENTS]))
    _open_what_is_closed()
    if env_file is not None:
        from servicegroup.cli._env import load_env

        load_env(env_file)
    if log_format is not None:
        _logs.configure(log_format)
    gc.freeze()  # what is loaded so far stays: an exit that looks through it takes longer
    group = load(target)
    try:
        group._set_limits(shutdown_timeout=shutdown_timeout, drain_delay=drain_delay)
    except ValueError as error:
        click.UsageError(str(error), context).show()
        end(2)
    if hasattr(signal, "SIGHUP"):
        group._stop_on(signal.SIGHUP)
    tell = _show(group, log_format)
    if admin is not None:
        _add_admin(group, *admin)
    if reload_link is not None:
        from servicegroup.cli._link import obey

        obey(reload_link, group)
    if os.getpid() == 1:
        logging.getLogger("servicegroup").info(_ORPHANS)
    group._run_and_exit(partial(_end, tell, report))


def _open_what_is_closed() -> None:
    # The next descriptor would take the number of stdin, stdout or stderr, and what is written
    # there would go into a socket.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # print() takes None for stdout.
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _show(group: ServiceGroup, log_format: str | None) -> Tell:
    """Have shown what becomes of the group; returns what shows how it went."""
    if log_format == "json":
        from servicegroup.cli._json_log import print_as_json

        return print_as_json
    if log_format is None and on_terminal():
        terminal = Terminal(group)
        group.subscribe(terminal.note)
        return terminal.end
    if log_format is None:
        _logs.tell_of_group()
    return _print_outcome


def _add_admin(group: ServiceGroup, host: str, port: int) -> None:
    from servicegroup.observe.admin import AdminServer

    server = group.add(AdminServer(group, host, port))
    group._table.last_to_front()
    name = next(iter(group.services))

    def tell(event: events.Event) -> None:
        if isinstance(event, events.ServiceReady) and event.service == name:
            line = f"{group.name}: {name} is at {server.url}"
            if logging.getLogger("servicegroup").isEnabledFor(logging.INFO):
                logging.getLogger("servicegroup").info(line)
            else:
                print(line, file=sys.stderr)

    group.subscribe(tell)


def _end(tell: Tell, file: TextIO | None, report: Report, error: ServiceGroupError | None) -> None:
    failure = ""
    # The file first: a stderr that nobody reads would hold up what comes after it until the end.
    if file is not None:
        try:
            print(report.to_json(indent=2), file=file, flush=True)
        except OSError as why:
            failure = f"the report is not in {file.name}: {why}"
    try:
        tell(report, error)
        if failure:
            print(failure, file=sys.stderr)
    except OSError:
        pass  # nobody is there to read it: the terminal has gone, or the reader of the pipe
    if failure:
        raise SystemExit(report.exit_code or 1)
