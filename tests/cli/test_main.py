"""The command line itself: what it lists, what it loads, what it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from servicegroup.cli._main import COMMANDS, commands
from tests.cli.command import SERVICEGROUP, Command, environment


def output_of(directory: Path, *arguments: str) -> str:
    with Command(directory, *arguments) as child:
        assert child.end() == 0, child.stderr
        return "\n".join(child.lines)


def test_help_names_every_command_and_each_tells_of_itself(tmp_path: Path) -> None:
    text = output_of(tmp_path, "--help")
    context = click.Context(commands)
    assert commands.list_commands(context) == list(COMMANDS)
    for name, what in COMMANDS.items():
        assert f"  {name} " in text
        assert what in text
        command = commands.get_command(context, name)
        assert command is not None
        assert command.help


def test_the_version_is_printed(tmp_path: Path) -> None:
    import servicegroup._version

    version = servicegroup._version.__version__
    assert output_of(tmp_path, "--version") == f"servicegroup, version {version}"


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "a:b", "--admin", "x"]])
def test_a_wrong_command_line_ends_with_2(tmp_path: Path, arguments: list[str]) -> None:
    with Command(tmp_path, *arguments) as child:
        assert child.end() == 2
        assert "Usage:" in child.stderr


WATCHED = """
import sys
from servicegroup.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "nothing:here"]])
def test_what_is_not_needed_is_not_loaded(tmp_path: Path, arguments: list[str]) -> None:
    child = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    loaded = child.stderr.split()
    assert "click" in loaded
    assert {"rich", "dotenv", "watchfiles", "asyncio", "http", "json"}.isdisjoint(loaded)


WITHOUT = """
import sys
sys.modules[{missing!r}] = None
sys.argv[0] = "servicegroup"
from servicegroup.cli import main
main()
"""


@pytest.mark.parametrize(
    ("missing", "arguments"), [("click", ["--help"]), ("dotenv", ["run", "x:y", "--env-file", "e"])]
)
def test_without_the_extra_it_says_which_to_install(
    tmp_path: Path, missing: str, arguments: list[str]
) -> None:
    (tmp_path / "e").write_text("A=1\n")
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert child.returncode == 1
    assert "pip install 'servicegroup[cli]'" in child.stderr
    assert "Traceback" not in child.stderr


def test_the_entry_point_leads_here() -> None:
    import configparser

    from servicegroup.cli import main

    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parent.parent.parent / "setup.cfg")
    (script,) = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    assert script == f"servicegroup = {main.__module__}:{main.__name__}"
    assert SERVICEGROUP[1:] == ("-m", main.__module__.partition(".")[0])
