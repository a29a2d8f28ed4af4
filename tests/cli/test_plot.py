"""`plot`: a report that was written, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from servicegroup import Service, ServiceGroup
from servicegroup.cli.plot import command
from servicegroup.observe import timeline


class Waits(Service):
    def start(self) -> None:
        self.stopping.wait()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    group = ServiceGroup(name="shop")
    group.add(Waits(), name="api")
    with group:
        pass
    file = tmp_path / "report.json"
    file.write_text(group.wait().to_json())
    return file


def plot(*arguments: object, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)), input=given)


def test_without_an_output_it_is_told_as_text(report: Path) -> None:
    result = plot(report)
    assert result.exit_code == 0
    assert result.output == timeline.text(json.loads(report.read_text()))
    assert plot("-", given=report.read_text()).output == result.output


@pytest.mark.parametrize(("suffix", "form"), [(".svg", timeline.svg), (".txt", timeline.text)])
def test_the_suffix_says_what_is_written(report: Path, suffix: str, form: object) -> None:
    output = report.with_suffix(suffix)
    result = plot(report, "-o", output)
    assert (result.exit_code, result.output) == (0, "")
    assert callable(form)
    assert output.read_text() == form(json.loads(report.read_text()))


def test_a_name_that_no_encoding_has_is_drawn(report: Path) -> None:
    found = json.loads(report.read_text())
    found["services"][0]["name"] = "\udcff"
    report.write_text(json.dumps(found))
    assert plot(report, "-o", report.with_suffix(".svg")).exit_code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b"[1]", "it is no dictionary"),
        (b"{}", "the report has no number 'started_at'"),
        (b'{"started_at": 1, "seconds": 1e999}', "the report has no number 'seconds'"),
        (b'{"started_at": 1%s}' % (b"0" * 400), "too large"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    result = plot(file)
    assert result.exit_code == 1
    assert f"Error: {file} holds no report: " in result.output
    assert said in result.output


def test_a_wrong_name_is_refused(report: Path, tmp_path: Path) -> None:
    missing = plot(tmp_path / "nowhere.json")
    assert (missing.exit_code, "No such file" in missing.output) == (2, True)
    suffix = plot(report, "-o", tmp_path / "out.png")
    assert suffix.exit_code == 2
    assert "out.png' must end in .svg or .txt" in suffix.output
    nowhere = plot(report, "-o", tmp_path / "nowhere" / "out.svg")
    assert nowhere.exit_code == 1
    assert "out.svg cannot be written: No such file or directory" in nowhere.output
