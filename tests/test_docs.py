"""Every program in the README and in docs/ runs and prints what the text says.

A Python block must follow a line that says how it is run and ends, one of

    <!-- run: by itself; exit 1 -->
    <!-- run: with pytest; exit 0 -->
    <!-- run: SIGTERM once it prints "ready"; exit 0 -->

and a text block the line `<!-- printed -->`: its lines are the beginnings of lines that the program
before it prints, in that order; figures and the bars of the report may differ. Blocks of any other
kind have checks of their own, or are refused.
"""

from __future__ import annotations

import configparser
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import yaml

from servicegroup import GroupState, ServiceGroup, State, events
from servicegroup.cli._main import commands
from servicegroup.observe.admin import AdminServer
from servicegroup.observe.systemd import EXIT_SECONDS
from servicegroup.service import Managed
from servicegroup.testing import find_free_port

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"  # is followed from its top to its end by test_tutorial.py
PATIENCE = 60.0  # far more than any of them takes

CHECKED = ("console", "ini", "mermaid", "yaml")  # by tests of their own

FENCE = re.compile(
    r"(?P<mark><!-- [^\n]* -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
MARK = re.compile(
    r'<!-- run: (?:by itself|(with pytest)|(SIG\w+) once it prints "(.+)"); exit (\d+) -->\n'
)
PYTEST = ("-m", "pytest", "-p", "pytest_servicegroup", "-p", "no:cacheprovider")


@attrs.frozen
class Program:
    """A Python block, and what is said of it."""

    page: str
    line: int
    text: str
    tests: bool
    signal: str | None
    once: str | None
    exit_code: int
    printed: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def programs() -> Iterator[Program]:
    for page in PAGES:
        if page == TUTORIAL:
            continue
        program: Program | None = None
        text = page.read_text()
        for fence in FENCE.finditer(text):
            where = f"{page.name}:{text.count(chr(10), 0, fence.start('text')) + 1}"
            mark = fence["mark"] or ""
            if fence["kind"] == "python":
                said = MARK.fullmatch(mark)
                assert said, f"{where}: it is not said how this is run and ends"
                if program is not None:
                    yield program
                line = int(where.rpartition(":")[2])
                tests, number, once, code = said.groups()
                how = bool(tests), number, once, int(code)
                program = Program(page.name, line, fence["text"], *how, "")
            elif mark.startswith("<!-- printed by: servicegroup "):
                continue  # tests/cli/test_docs.py runs it
            elif fence["kind"] == "text":
                assert mark == "<!-- printed -->\n", f"{where}: it is not said what printed this"
                assert program is not None, f"{where}: no program before it"
                assert not program.printed, f"{where}: the program printed something else before"
                program = attrs.evolve(program, printed=fence["text"])
            else:
                assert fence["kind"] in CHECKED, f"{where}: not checked by any test"
        if program is not None:
            yield program


PROGRAMS = list(programs())


def run(
    program: Program, directory: Path, port: int, meanwhile: Callable[[], None] = lambda: None
) -> str:
    """What it prints; `meanwhile` is called before the signal is sent."""
    file = directory / "shop.py"
    file.write_text(program.text.replace("8080", str(port)))
    child = subprocess.Popen(
        [sys.executable, "-u", *(PYTEST if program.tests else ()), str(file)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    guard = threading.Timer(PATIENCE, child.kill)
    guard.start()
    output = ""
    try:
        assert child.stdout is not None
        if program.signal is not None and program.once is not None:
            for line in child.stdout:
                output += line
                if program.once in line:
                    meanwhile()
                    child.send_signal(getattr(signal, program.signal))
                    break
        output += child.stdout.read()
        code = child.wait()
    finally:
        guard.cancel()
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    assert code == program.exit_code, output
    return output


def shape(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"\|[ #]*\|", "||", line)
    return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "0", line)).strip()


def assert_printed(expected: str, output: str) -> None:
    lines = iter(output.splitlines())
    for line in expected.splitlines():
        found = any(shape(printed).startswith(shape(line)) for printed in lines)
        assert found, f"not printed, or not in this place: {line}\n\n{output}"


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_program_does_what_the_text_says(program: Program, tmp_path: Path) -> None:
    assert_printed(program.printed, run(program, tmp_path, find_free_port()))


def test_the_first_program_is_short_and_answers(tmp_path: Path) -> None:
    first = next(program for program in PROGRAMS if program.page == "README.md")
    lines = first.text.splitlines()
    assert len(lines) <= 15
    assert lines[0].startswith(("import ", "from "))
    assert lines[-1] == "group.run()"
    port, answers = find_free_port(), list[bytes]()

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
            answers.append(answer.read())

    run(first, tmp_path, port, ask)
    assert answers == [b"hello\n"]


def test_what_is_to_be_typed_exists() -> None:
    for page in PAGES:
        if page == TUTORIAL:
            continue
        for fence in FENCE.finditer(page.read_text()):
            if fence["kind"] == "console":
                for line in fence["text"].splitlines():
                    assert line.startswith("$ "), f"{page.name}: {line!r} is no command"
                    check_command(line[2:])


def check_command(command: str) -> None:
    match command.split():
        case ["make", target]:
            made = subprocess.run(
                ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert made.returncode == 0, made.stderr
        case ["pip", "install", "."]:
            assert (ROOT / "pyproject.toml").exists()
        case ["servicegroup", name, *arguments]:
            found = commands.get_command(click.Context(commands), name)
            assert found is not None, command
            # The program, the file or the address is not there; what is typed is well-formed.
            found.make_parser(click.Context(found)).parse_args(arguments)
        case ["python", script, *_]:
            assert (ROOT / script).exists()
        case _:
            pytest.fail(f"no test knows what {command!r} does")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not re.match(r"https?:", target):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]
                assert anchor in anchors, f"{page.name}: {target}"


LIFECYCLE = (ROOT / "docs" / "lifecycle.md").read_text()


def rows(section: str) -> list[list[str]]:
    """The cells of all tables in a section of the lifecycle page."""
    _, found, rest = LIFECYCLE.partition(f"\n## {section}\n")
    assert found, section
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_options_is_complete_and_right() -> None:
    group = inspect.signature(ServiceGroup).parameters
    service = set(Managed.__annotations__) - {"name", "_link"}
    of_group, of_service = rows("Options")[: len(group)], rows("Options")[len(group) :]
    assert [row[0] for row in of_group] == [f"`{name}`" for name in group]
    for name, default, *_ in of_group:
        assert eval(default.strip("`"), vars(signal)) == group[name.strip("`")].default, name
    assert {row[0] for row in of_service} == {f"`{name}`" for name in service}


def test_the_table_of_events_is_complete() -> None:
    told = {name for row in rows("Events and the log") for name in re.findall(r"`(\w+)`", row[0])}
    kinds = {*events.ServiceEvent.__subclasses__(), *events.GroupEvent.__subclasses__()}
    assert told == {kind.__name__ for kind in kinds}


@pytest.mark.parametrize(
    ("title", "states"), [("States of a service", State), ("States of a group", GroupState)]
)
def test_the_diagrams_have_every_state(title: str, states: type[State] | type[GroupState]) -> None:
    section = LIFECYCLE.partition(f"\n## {title}\n")[2]
    diagram = section.partition("```mermaid\n")[2].partition("```")[0]
    drawn = {state for pair in re.findall(r"(\w+) --> (\w+)", diagram) for state in pair}
    assert drawn == {state.value for state in states}


def blocks(kind: str) -> Iterator[Any]:
    """Every block of that kind, with the page it is of."""
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text()):
            if fence["kind"] == kind:
                yield pytest.param(fence["text"], id=page.name)


@pytest.mark.parametrize("text", list(blocks("yaml")))
def test_manifests_are_valid_and_leave_time_for_the_stop(text: str) -> None:
    manifest = yaml.safe_load(text)
    spec = manifest["spec"]["template"]["spec"]
    limit = inspect.signature(ServiceGroup).parameters["shutdown_timeout"].default
    assert spec["terminationGracePeriodSeconds"] > limit
    (container,) = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["admin"] == inspect.signature(AdminServer).parameters["port"].default
    probes = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"admin"}


@pytest.mark.parametrize("text", list(blocks("ini")))
def test_units_are_valid_and_leave_time_for_the_stop(text: str) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(text)
    service = unit["Service"]
    assert service["Type"] == "notify"
    limit = inspect.signature(ServiceGroup).parameters["shutdown_timeout"].default
    assert int(service["TimeoutStopSec"]) > limit + EXIT_SECONDS
