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
PARTS = {
    *("scale", "first_stop", "imports", "restarts", "kinds", "http_latency", "async_services"),
    *("servers", "queues", "observers", "command_line"),
}
KINDS = {"Service", "Periodic", "AsyncService", "AsyncGroup", "InProcess"}
SERVERS = {f"{name}Server" for name in ("Socket", "Asgi", "Wsgi", "Aiohttp", "Grpc", "GrpcAio")}
CONSUMERS = {f"{name}Consumer" for name in ("Sqlite", "Kafka", "Nats", "RedisStream")} | {
    "RabbitConsumer"
}
TASKS = {
    (consumer, library)
    for consumer in ("RedisStreamConsumer", "RabbitConsumer")
    for library in ("Celery", "dramatiq")
}
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


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 12), reason="it takes long: once is enough")
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
        *(entry["command_line"][what] for what in ("up", "down", "help")),
        *(latency[where][what] for where in ("thread", "process") for what in ("p50", "p99")),
    ]
    tasks = entry["async_services"]
    for one in tasks["measured"]:
        assert one["services"] == 10
        comparisons += [one[what] for what in ("up", "down", "both", "memory")]
    servers = entry["servers"]
    for one in servers["measured"]:
        comparisons += [one[what] for what in ("rate", "p99", "cost", "down")]
        assert min(one["wakes"].values()) >= 0
    for one in entry["queues"]["measured"]:
        comparisons += [one[what] for what in ("rate", "latency", "p99")]
        assert min(one["wakes"].values()) >= 0
    comparisons += [one["rate"] for one in entry["queues"]["tasks"]]
    observers = entry["observers"]
    assert (observers["services"], observers["rounds"]) == (10, 3)
    comparisons += [observers[what] for what in ("up", "down", "both", "work")]
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
    assert "`servicegroup run`: SIGTERM to exit" in printed
    for name in SERVERS:
        shown = f"`{name}`"
        assert f"{shown}: SIGTERM to exit" in printed or f"{shown} is left out: " in printed
    for name in CONSUMERS:
        shown = f"`{name}`"
        assert f"{shown}: put to handled" in printed or f"{shown} is left out: " in printed
    assert "10 services: GET /metrics" in printed or "GET /metrics is left out: " in printed
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


def test_a_server_that_cannot_be_asked_is_left_out_and_it_is_said_why() -> None:
    program = """
import importlib.util, shutil
from benchmarks import results, servers, tables
shutil.which = lambda name: None
importlib.util.find_spec = lambda name: None
found = servers.measure(1, 1)
assert found["measured"] == []
print(tables.text(results.entry({"servers": found})))
"""
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    why = "wrk is missing (the Debian package of that name has it)"
    assert f"two `WsgiServer` is left out: {why}." in child.stdout
    assert (
        "`GrpcServer` is left out: grpc is not installed (the extra test has it)." in child.stdout
    )


def test_a_queue_that_cannot_be_had_is_left_out_and_it_is_said_why() -> None:
    program = """
import importlib.util, shutil
from benchmarks import queue_tasks, queues, results, tables
shutil.which = lambda name, path=None: None
found = queues.measure(1, kinds=["rabbitmq"])
assert found["measured"] == []
importlib.util.find_spec = lambda name: None
found["left_out"] += queues.measure(1, kinds=["kafka"])["left_out"]
print(tables.text(results.entry({"queues": found})))
print(queue_tasks.missing("Celery"))
"""
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "`RabbitConsumer` is left out: rabbitmq-server is missing (a Debian" in child.stdout
    assert "`KafkaConsumer` is left out: pytest is not installed (the extra test" in child.stdout
    assert "it is not installed (the extra bench has it)" in child.stdout


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("performance", "Results"),
        ("kinds", "What each costs"),
        ("servers", "What they cost"),
    ],
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
        assert {one["servers"][0] for one in entry["servers"]["measured"]} == SERVERS
        assert entry["servers"]["pinned"]
        queues = entry["queues"]
        assert {one["consumer"] for one in queues["measured"]} == CONSUMERS
        assert {(one["consumer"], one["library"]) for one in queues["tasks"]} == TASKS
        assert queues["pinned"]
        assert "metrics" in entry["observers"]


@pytest.mark.parametrize(
    ("share", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0), (0, 1.0)]
)
def test_a_percentile_is_one_of_the_values(share: int, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected
