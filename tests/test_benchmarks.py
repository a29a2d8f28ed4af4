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

from benchmarks.statistic import percentile

ROOT = Path(__file__).resolve().parent.parent
PARTS = {*("scale", "first_stop", "imports", "restarts", "kinds", "http_latency", "async_services")}
KINDS = {"Service", "Periodic", "AsyncService", "AsyncGroup", "InProcess"}
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
    latency = entry["http_latency"]
    comparisons = [
        *(scale[what] for what in ("up", "down", "both", "work", "memory")),
        *(entry["imports"][what] for what in ("inside", "process")),
        *(latency[where][what] for where in ("thread", "process") for what in ("p50", "p99")),
    ]
    tasks = entry["async_services"]
    for one in tasks["measured"]:
        assert one["services"] == 10
        comparisons += [one[what] for what in ("up", "down", "both", "memory")]
    for comparison in comparisons:
        assert comparison.keys() == COMPARISON
        assert comparison["min"] <= comparison["ratio"] <= comparison["max"]
    assert 0 < entry["first_stop"]["min"] <= entry["first_stop"]["max"]
    assert 0 < entry["restarts"]["away"]["min"] <= entry["restarts"]["p99"]
    assert latency["requests"] == 4 * 6
    assert {one["kind"] for one in entry["kinds"]["kinds"]} == KINDS
    assert entry["kinds"]["heartbeat"]["median"] > 0
    assert f"Python {platform.python_version()} on {entry['cpu']}" in printed
    assert "10 services: both together" in printed
    assert "10 in AsyncGroup: both together" in printed
    assert "`InProcess`, 99th percentile" in printed
    assert "a restart without a pause" in printed
    for name in ("aiomisc", "mode-streaming", "facet"):
        assert f"10 in {name}: both together" in printed or f"{name} is left out: " in printed


def test_what_is_not_measured_anew_is_kept_if_it_was_measured_here(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    benchmarks("--only", "restarts", "--quick", "--output", str(output))
    (first,) = json.loads(output.read_text())
    kept = {"imports": {"some": "figures"}}
    for cpu, expected in ((first["cpu"], kept), ("another", {})):
        output.write_text(json.dumps([{**first, **kept, "cpu": cpu, "date": "2000-01-01"}]))
        benchmarks("--only", "first_stop", "--quick", "--rounds", "1", "--output", str(output))
        (entry,) = json.loads(output.read_text())
        assert {name: entry[name] for name in ("imports",) if name in entry} == expected
        assert ("restarts" in entry) is bool(expected)
        assert "first_stop" in entry
        assert entry["date"] != "2000-01-01"


def test_a_library_that_is_missing_is_left_out_and_it_is_said_why() -> None:
    program = """
import importlib.util
from benchmarks import async_rows, results, tables
importlib.util.find_spec = lambda name: None
found = async_rows.measure_all([10], 1)
assert found["measured"] == []
print(tables.text(results.entry({"async_services": found})))
"""
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "aiomisc is left out: it is not installed (the extra bench has it)." in child.stdout


@pytest.mark.parametrize(
    ("page", "heading"), [("performance", "Results"), ("kinds", "What each costs")]
)
def test_the_page_shows_exactly_the_results_that_are_kept(page: str, heading: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    _, _, shown = text.partition(f"## {heading}\n\n")
    assert shown
    assert shown == benchmarks("--markdown", page)


def test_the_kept_results_are_complete_and_name_the_machine() -> None:
    entries: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    for entry in entries:
        assert entry["cpu"]
        assert entry["cores"]
        assert [scale["services"] for scale in entry["scale"]] == [10, 100, 1_000, 10_000]
        assert entry.keys() >= PARTS
        assert {one["kind"] for one in entry["kinds"]["kinds"]} == KINDS


@pytest.mark.parametrize(
    ("share", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0), (0, 1.0)]
)
def test_a_percentile_is_one_of_the_values(share: int, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected
