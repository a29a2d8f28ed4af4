"""Typed programs, each accepted or refused as documented by both type checkers.

Those in `typing/accepted_*.py` have no error and run; in `typing/refused_*.py` exactly the lines
that end in `# refused` have one. Both checkers come with the extra `dev`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted((ROOT / "tests" / "typing").glob("*_*.py"))
MARK = "# refused"

# What was found: a message by program and line.
Found = dict[tuple[str, int], str]


def run(*command: str) -> str:
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    # Both say 1 for errors in what they read, more when they could not read it.
    assert child.returncode in (0, 1), child.stdout + child.stderr
    return child.stdout


@cache
def mypy() -> Found:
    # Our own configuration is for our own code: a user begins with --strict alone. The cache is
    # kept, and apart, since other options make another cache worthless.
    output = run(
        *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--output=json"),
        *("--cache-dir", str(ROOT / ".mypy_cache" / "typing"), *map(str, PROGRAMS)),
    )
    return {
        (Path(one["file"]).name, one["line"]): one["message"]
        for one in map(json.loads, output.splitlines())
        if one["severity"] == "error"
    }


@cache
def pyright() -> Found:
    output = run(
        *(sys.executable, "-m", "pyright", "--pythonpath", sys.executable),
        *("--project", str(ROOT / "tests" / "typing"), "--outputjson"),
    )
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["message"]
        for one in json.loads(output)["generalDiagnostics"]
        if one["severity"] == "error"
    }


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_program_is_accepted_or_refused_as_documented(
    checker: Callable[[], Found], program: Path
) -> None:
    if importlib.util.find_spec(checker.__name__) is None:
        pytest.skip(f"{checker.__name__} is not installed: it comes with the extra `dev`")
    lines = program.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith(MARK)}
    assert bool(marked) == program.stem.startswith("refused_")
    found = {line: text for (name, line), text in checker().items() if name == program.name}
    assert found.keys() == marked, found


@pytest.mark.parametrize(
    "program",
    [program for program in PROGRAMS if program.stem.startswith("accepted_")],
    ids=lambda program: program.stem,
)
def test_what_the_types_accept_the_group_accepts(program: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(program)], env=environment, check=True)
