"""The sdist and the wheel: what is in them, what they need, and that they are the same library."""

from __future__ import annotations

import importlib.util
import re
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from attrs import frozen

from tests import dist, extras

TAKEN = ("benchmarks", "docs", "examples", "servicegroup", "tests")
BESIDE = {
    *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("pyproject.toml", "pytest_servicegroup.py", "setup.cfg"),
}


@frozen
class Built:
    """What came of one build."""

    source: Path
    said: str
    sdist: Path
    wheel: Path  # of the sdist

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as wheel:
            return set(wheel.namelist())

    def metadata(self) -> Message:
        with zipfile.ZipFile(self.wheel) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("built")
    source = dist.copy_tree(directory / "source")
    said = dist.build(source, directory / "dist")
    (sdist,) = (directory / "dist").glob("*.tar.gz")
    (wheel,) = (directory / "dist").glob("*.whl")
    return Built(source, said, sdist, wheel)


def test_the_build_has_nothing_to_warn_of(built: Built) -> None:
    assert [line for line in built.said.splitlines() if "warning" in line.lower()] == []


def test_the_sdist_has_what_a_distributor_needs(built: Built) -> None:
    below = [built.source / name for name in TAKEN]
    files = {path for one in below for path in one.rglob("*") if path.is_file()}
    expected = {path.relative_to(built.source).as_posix() for path in files} | BESIDE
    with tarfile.open(built.sdist) as sdist:
        found = {one.name.partition("/")[2] for one in sdist.getmembers() if one.isfile()}
    made = {name for name in found if name.startswith("servicegroup.egg-info/")} | {"PKG-INFO"}
    assert found - made == expected


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    package = built.source / "servicegroup"
    files = [*package.rglob("*.py"), package / "py.typed", package / "observe" / "page.html"]
    files.append(built.source / "pytest_servicegroup.py")  # pytest loads it: so it is apart
    expected = {path.relative_to(built.source).as_posix() for path in files}
    found = {name for name in built.names() if ".dist-info/" not in name}
    assert found == expected
    about = {name.partition(".dist-info/")[2] for name in built.names() - found}
    assert {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"} <= about


def test_the_tree_makes_the_same_wheel_as_the_sdist(built: Built, tmp_path: Path) -> None:
    dist.build(built.source, tmp_path, "--wheel")
    (other,) = tmp_path.glob("*.whl")
    assert other.name == built.wheel.name
    with zipfile.ZipFile(built.wheel) as one, zipfile.ZipFile(other) as two:
        assert {name: one.read(name) for name in one.namelist()} == {
            name: two.read(name) for name in two.namelist()
        }


def test_it_says_what_it_is_and_needs(built: Built) -> None:
    metadata = built.metadata()
    required = metadata.get_all("Requires-Dist", [])
    assert [one for one in required if "extra ==" not in one] == ["attrs>=23.1"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Author"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(
        extras.declared()["options.extras_require"]
    )


def test_an_index_would_take_it(built: Built) -> None:
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed: it comes with the extra `dev`")
    dist.run(sys.executable, "-m", "twine", "check", "--strict", built.sdist, built.wheel)


def test_it_works_from_where_it_is_installed(built: Built, tmp_path: Path) -> None:
    python = dist.environment(tmp_path / "venv")
    dist.install(python, built.wheel)
    program = """
import importlib.metadata, servicegroup
from servicegroup.observe.admin import AdminServer, _page
assert _page()[0].startswith(b"<!")
group = servicegroup.ServiceGroup()
with group:
    pass
print(servicegroup.__file__, importlib.metadata.version("servicegroup"))
"""
    file, version = dist.run(python, "-c", program, cwd=tmp_path, PYTHONPATH="").split()
    assert Path(file).is_relative_to(tmp_path / "venv")
    assert built.wheel.name.split("-")[1] == version


def test_every_extra_is_tried_by_make_test_extras() -> None:
    assert set(extras.PROGRAMS) == set(extras.of_users())


def test_an_adapter_whose_library_is_missing_names_an_extra_that_there_is() -> None:
    named = set()
    for file in (dist.ROOT / "servicegroup").rglob("*.py"):
        named |= set(re.findall(r"servicegroup\[(\w+)\]", file.read_text(encoding="utf-8")))
    assert named == set(extras.of_users())
