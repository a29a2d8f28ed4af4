"""Typed programs, each accepted or refused as documented by both type checkers.

Those in `typing/accepted_*.py` have no error and run; in `typing/refused_*.py` exactly the lines
that end in `# refused` have one. They are checked as a user's project: in a directory elsewhere,
with the library installed from its wheel. Both checkers come with the extra `dev`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests import dist

ROOT = dist.ROOT
PROGRAMS = sorted((ROOT / "tests" / "typing").glob("*_*.py"))
MARK = "# refused"

# What was found: a message by program and line.
Found = dict[tuple[str, int], str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's: the programs, and an environment with the wheel."""
    directory = tmp_path_factory.mktemp("user")
    dist.build(dist.copy_tree(directory / "tree"), directory, "--wheel")
    (wheel,) = directory.glob("*.whl")
    project = shutil.copytree(ROOT / "tests" / "typing", directory / "project")
    dist.install(dist.environment(project / ".venv"), wheel)
    return project


def run(project: Path, *command: str) -> str:
    child = subprocess.run(command, capture_output=True, text=True, cwd=project, check=False)
    # Both say 1 for errors in what they read, more when they could not read it.
    assert child.returncode in (0, 1), child.stdout + child.stderr
    return child.stdout


@cache
def mypy(project: Path) -> Found:
    # Our own configuration is for our own code: a user begins with --strict alone. The cache is
    # kept, and apart, since other options make another cache worthless.
    output = run(
        project,
        *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--output=json"),
        *("--python-executable", str(project / ".venv" / "bin" / "python")),
        *("--cache-dir", str(ROOT / ".mypy_cache" / "typing"), "."),
    )
    return {
        (Path(one["file"]).name, one["line"]): one["message"]
        for one in map(json.loads, output.splitlines())
        if one["severity"] == "error"
    }


@cache
def pyright(project: Path) -> Found:
    output = run(
        project,
        *(sys.executable, "-m", "pyright", "--outputjson"),
        *("--pythonpath", str(project / ".venv" / "bin" / "python")),
    )
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["message"]
        for one in json.loads(output)["generalDiagnostics"]
        if one["severity"] == "error"
    }


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_program_is_accepted_or_refused_as_documented(
    checker: Callable[[Path], Found], program: Path, request: pytest.FixtureRequest
) -> None:
    if importlib.util.find_spec(checker.__name__) is None:
        pytest.skip(f"{checker.__name__} is not installed: it comes with the extra `dev`")
    lines = program.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith(MARK)}
    assert bool(marked) == program.stem.startswith("refused_")
    all_found = checker(request.getfixturevalue("project"))  # which takes time: not for a skip
    found = {line: text for (name, line), text in all_found.items() if name == program.name}
    assert found.keys() == marked, found


@pytest.mark.parametrize(
    "program",
    [program for program in PROGRAMS if program.stem.startswith("accepted_")],
    ids=lambda program: program.stem,
)
def test_what_the_types_accept_the_group_accepts(program: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(program)], env=environment, check=True)
