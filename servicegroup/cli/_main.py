"""The commands, each loaded when it is named."""

from __future__ import annotations

import os
from importlib import import_module

import click

from servicegroup._version import __version__

# With what --help says of each: it need not load them all.
COMMANDS = {
    "run": "Run a group until it ends or is stopped.",
    "check": "Show a group without starting anything.",
    "status": "Show how a program's services stand.",
    "stacks": "Print where every thread of a program is.",
    "plot": "Show what was slow to start and to stop.",
}


class _Commands(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"servicegroup.cli.{name}").command
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


# color=None: where it is a terminal.
@click.command(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "color": False if os.environ.get("NO_COLOR") else None,
    },
)
@click.version_option(__version__, prog_name="servicegroup")
def commands() -> None:
    """Run groups of services, look at those that run, and at how they went."""
