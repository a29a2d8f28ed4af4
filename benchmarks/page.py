"""The pages of the documentation that show the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.children import ROOT
from benchmarks.results import Entry
from benchmarks.tables import costs, markdown, server_costs

# By the name of the page: the heading under which, to the end of the page, stands what is shown.
SHOWN: dict[str, tuple[str, Callable[[Sequence[Entry]], str]]] = {
    "performance": ("## Results\n", markdown),
    "kinds": ("## What each costs\n", costs),
    "servers": ("## What they cost\n", server_costs),
}


def show(name: str, entries: Sequence[Entry]) -> str:
    """What the page `name` is to show."""
    return SHOWN[name][1](entries)


def write(entries: Sequence[Entry]) -> None:
    """Replace what stands under the headings."""
    for name, (heading, _) in SHOWN.items():
        page = ROOT / "docs" / f"{name}.md"
        before, _, _ = page.read_text(encoding="utf-8").partition(heading)
        page.write_text(f"{before}{heading}\n{show(name, entries)}\n", encoding="utf-8")
