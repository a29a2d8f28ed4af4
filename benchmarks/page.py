"""The page of the documentation that shows the results."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.children import ROOT
from benchmarks.results import Entry
from benchmarks.tables import markdown

PAGE = ROOT / "docs" / "performance.md"
HEADING = "## Results\n"


def write(entries: Iterable[Entry]) -> None:
    """Replace what stands under the heading, to the end of the page."""
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(HEADING)
    PAGE.write_text(f"{before}{HEADING}\n{markdown(entries)}\n", encoding="utf-8")
