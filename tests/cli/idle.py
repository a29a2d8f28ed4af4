"""Whether a process wakes up when nothing happens."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.child import PATIENCE

QUIET_SECONDS = 1.0


def wait_until_idle(switches: Callable[[], object]) -> None:
    """Until what it returns, how often threads have waited, stays the same for a while."""
    until = time.monotonic() + PATIENCE
    since, before = time.monotonic(), switches()
    while time.monotonic() - since < QUIET_SECONDS:
        assert time.monotonic() < until, "it goes on waking up"
        time.sleep(0.05)
        now = switches()
        if now != before:
            since, before = time.monotonic(), now
