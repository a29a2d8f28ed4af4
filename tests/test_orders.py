"""HTTP and a consumer in one group: every order that was accepted is handled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from servicegroup.testing import Kills, kill_at_random

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import demo_orders  # noqa: E402 - found now


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_demo_shows_that_nothing_is_lost() -> None:
    command = [sys.executable, str(EXAMPLES / "demo_orders.py")]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "     0 lost\n" in shown.stdout


class Client(demo_orders.Client):
    """One that goes on sending when nobody listens, until it is `over`."""

    over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.over.wait(demo_orders.PAUSE):
            if self._send(order := f"{self.name}-{number}"):
                self.accepted.append(order)
            number += 1
        self._connection.close()


def kill_under_load(
    directory: Path, port: int, times: int, by: signal.Signals
) -> tuple[Kills, list[str]]:
    """What was done, and the orders that were accepted."""
    over = threading.Event()
    clients = [Client(f"127.0.0.1:{port}", f"order-{number}") for number in range(4)]

    def accepted() -> list[str]:
        return [order for client in clients for order in client.accepted]

    def all_handled() -> bool:
        over.set()
        for client in clients:
            client.join(demo_orders.PATIENCE)
        return set(accepted()) <= set(demo_orders.ledger(directory))

    for client in clients:
        client.over = over
        client.start()
    try:
        kills = kill_at_random(
            [sys.executable, str(demo_orders.PROGRAM)],
            up=f"at http://127.0.0.1:{port}",
            until=all_handled,
            times=times,
            within=1.0,
            by=by,
            env={**environment(), "PORT": str(port), "ORDERS": str(directory)},
        )
    finally:
        over.set()
    return kills, accepted()


@pytest.mark.slow
def test_a_sigterm_under_load_loses_no_order_ten_times(tmp_path: Path, free_port: int) -> None:
    kills, accepted = kill_under_load(tmp_path, free_port, 10, signal.SIGTERM)
    assert [life.exit_code for life in kills.lives] == [0] * 11
    handled = Counter(demo_orders.ledger(tmp_path))
    assert len(accepted) > 100
    assert set(accepted) <= set(handled)
    assert max(handled.values()) == 1


@pytest.mark.slow
def test_a_kill_9_under_load_loses_no_order(tmp_path: Path, free_port: int) -> None:
    _, accepted = kill_under_load(tmp_path, free_port, 5, signal.SIGKILL)
    handled = Counter(demo_orders.ledger(tmp_path))
    assert len(accepted) > 100
    assert set(accepted) <= set(handled)
    # Of what was handled and not yet acknowledged: one for each of its handlers, each time.
    assert sum(handled.values()) - len(handled) <= 5 * 4
