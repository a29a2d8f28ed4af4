"""The command line: `servicegroup`, or `python -m servicegroup`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that `sys.argv` names; docs/cli.md tells of them.

    Raises:
        SystemExit: always, with one of the exit codes of docs/cli.md.
    """
    try:
        from servicegroup.cli._main import commands
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("servicegroup on the command line needs click: pip install 'servicegroup[cli]'")
    commands()
