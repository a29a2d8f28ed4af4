"""`servicegroup plot`: the timeline of a run that is over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import click

from servicegroup.observe import timeline

FORMS = {".svg": timeline.svg, ".txt": timeline.text}


@click.command()
@click.argument("report", metavar="REPORT.json", type=click.File(encoding="utf-8"))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write it there: a drawing into .svg, the text into .txt.",
)
def command(report: TextIO, output: Path | None) -> None:
    """Show what was slow to start and to stop, and who waited for whom.

    REPORT.json is a report that `run --report` or `write_report` has written, `-` one that comes
    on standard input. Without --output, it is told as text.
    """
    form = FORMS.get(".txt" if output is None else output.suffix)
    if form is None:
        raise click.UsageError(f"--output: {str(output)!r} must end in {' or '.join(FORMS)}")
    try:
        found: object = json.load(report)
        if not isinstance(found, dict):
            raise ValueError("it is no dictionary, as Report.to_json() makes it")
        drawn = form(found)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise click.ClickException(f"{report.name} holds no report: {error}") from None
    if output is None:
        click.echo(drawn, nl=False)
        return
    try:
        output.write_text(drawn, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from None
