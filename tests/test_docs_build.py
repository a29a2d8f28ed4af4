"""The site of `make docs`: built without a warning, with every public name, and on its own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_public import EVENTS, NAMES, OF_MODULES, documented, is_our_method

DOCS = Path(__file__).resolve().parent.parent / "docs"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it was built, with warnings as errors: of a link that leads nowhere, say."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("sphinx is not installed: it comes with the extra `docs`")
    html, doctrees = tmp_path_factory.mktemp("html"), tmp_path_factory.mktemp("doctrees")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(doctrees)]
    built = subprocess.run(
        [*command, str(DOCS), str(html)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return html


def described(site: Path) -> set[str]:
    """The names that have a place of their own, to which others could link."""
    *_, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


def public_names() -> Iterator[str]:
    yield from (f"servicegroup.{name}" for name in NAMES)
    yield from (f"servicegroup.events.{name}" for name in EVENTS)
    yield from (f"servicegroup.{name}" for name, _ in documented())
    for module, names in OF_MODULES.items():
        for name in set(names) - set(NAMES):  # what `servicegroup` has, too, is described there
            yield f"{module}.{name}"
            thing = getattr(importlib.import_module(module), name)
            for attribute, value in vars(thing).items() if inspect.isclass(thing) else ():
                if is_our_method(attribute, value, thing) and value.__doc__:
                    yield f"{module}.{name}.{attribute}"


def test_the_reference_has_every_public_name(site: Path) -> None:
    assert set(public_names()) - described(site) == set()


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=.(?:https?:)?//[^>]*>")
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))
    assert [found for page in pages for found in loaded.findall(page.read_text())] == []
