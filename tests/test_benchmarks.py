"""The benchmarks work and the documentation shows what they found; how fast it was is not asked."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPARISON = {"ours", "other", "ratio", "min", "max", "ratio_of_medians"}


def benchmarks(*arguments: str) -> str:
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return child.stdout


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is read there")
def test_a_quick_run_stores_its_entry_and_keeps_those_of_other_interpreters(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    other, old = {"python": "3.10.9"}, {"python": platform.python_version()}
    output.write_text(json.dumps([old, other]))

    printed = benchmarks("--quick", "--sizes", "10", "--output", str(output))

    entries: list[dict[str, Any]] = json.loads(output.read_text())
    first, entry = entries
    assert first == other
    assert entry["python"] == platform.python_version()
    assert entry["cpu"]
    assert entry["cores"] >= 1
    assert len(entry["date"]) == len("2000-01-01")
    (scale,) = entry["scale"]
    assert (scale["services"], scale["rounds"]) == (10, 3)
    for comparison in (
        *(scale[what] for what in ("up", "down", "both", "work", "memory")),
        *(entry["imports"][what] for what in ("inside", "process")),
    ):
        assert comparison.keys() == COMPARISON
        assert comparison["min"] <= comparison["ratio"] <= comparison["max"]
    assert 0 < entry["first_stop"]["min"] <= entry["first_stop"]["max"]
    assert f"Python {platform.python_version()} on {entry['cpu']}" in printed
    assert "10 services: both together" in printed


def test_the_page_shows_exactly_the_results_that_are_kept() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    _, _, shown = page.partition("## Results\n\n")
    assert shown == benchmarks("--markdown")


def test_the_kept_results_name_the_machine_and_every_size() -> None:
    entries: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    for entry in entries:
        assert entry["cpu"]
        assert entry["cores"]
        assert [scale["services"] for scale in entry["scale"]] == [10, 100, 1_000, 10_000]
