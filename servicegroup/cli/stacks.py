"""`servicegroup stacks`: where every thread of a running program is."""

from __future__ import annotations

import click

from servicegroup.cli import _admin


@click.command()
@_admin.argument
def command(admin: _admin.Admin) -> None:
    """Print the stack of every thread of a program, those of services first.

    URL is that of its admin server, by default http://127.0.0.1:9090; HOST:PORT, or PORT alone,
    will do. Exit code 3: no admin server answers there.
    """
    click.echo(admin.text("/stacks"), nl=False)
