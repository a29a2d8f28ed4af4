"""HTTP and a consumer in one group: every order that was accepted is handled."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import demo_orders  # noqa: E402 - found now


def test_the_demo_shows_that_nothing_is_lost() -> None:
    command = [sys.executable, str(EXAMPLES / "demo_orders.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "     0 lost\n" in shown.stdout


@pytest.mark.slow
def test_a_sigterm_under_load_loses_no_order_ten_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    accepted: list[str] = []
    for number in range(10):
        run, taken = demo_orders.take_orders(tmp_path, f"order-{number}", random.uniform(0.1, 0.4))
        assert run.code == 0
        assert taken
        accepted += taken
    demo_orders.finish(tmp_path, accepted)
    handled = Counter(demo_orders.ledger(tmp_path))
    assert set(accepted) <= set(handled)
    assert max(handled.values()) == 1
