"""What docs/cli.md says of the commands, beside what tests/test_docs.py asks of every page."""

from __future__ import annotations

import re
from pathlib import Path

import click

from servicegroup.cli._main import COMMANDS, commands
from tests.cli.command import Command
from tests.test_docs import FENCE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()


def test_the_output_shown_is_that_of_the_program_shown(tmp_path: Path) -> None:
    program = ""
    shown = 0
    for fence in FENCE.finditer(PAGE):
        if fence["kind"] == "python":
            program = fence["text"]
        said = re.fullmatch(r"<!-- printed by: servicegroup (.*) -->\n", fence["mark"] or "")
        if said is not None:
            shown += 1
            (tmp_path / "shop.py").write_text(program)
            with Command(tmp_path, *said[1].split()) as child:
                assert child.end() == 0
                assert child.lines == fence["text"].splitlines()
    assert shown


def test_every_option_of_run_is_told() -> None:
    run = commands.get_command(click.Context(commands), "run")
    assert run is not None
    section = PAGE.partition("\n## run\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(--[\w-]+)", section, re.MULTILINE)
    options = [one for one in run.params if isinstance(one, click.Option) and not one.hidden]
    assert told == [option.opts[0] for option in options]


def test_every_command_has_its_place() -> None:
    titles = re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)
    assert [title for title in titles if title in COMMANDS] == list(COMMANDS)
