"""The stopping thread, when it is late."""

from __future__ import annotations

import threading

import pytest

from servicegroup import Service, ServiceGroup, ServiceGroupError, State
from servicegroup._stopper import Stopper
from tests.child import PATIENCE


class Waits(Service):
    def __init__(self, released: threading.Event | None = None) -> None:
        self.released = released
        self.stops = 0

    def start(self) -> None:
        self.stopping.wait()

    def stop(self) -> None:
        self.stops += 1
        self.stopping.set()
        if self.released is not None:
            self.released.wait()


def test_what_is_abandoned_before_its_turn_costs_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, released = Stopper._work, threading.Event()
    threads: list[threading.Thread] = []

    def late(self: Stopper) -> None:
        threads.append(threading.current_thread())
        if len(threads) == 1:
            released.wait()
        work(self)

    monkeypatch.setattr(Stopper, "_work", late)
    group = ServiceGroup(signals=(), shutdown_timeout=2 * PATIENCE)
    other = group.add(Waits(), name="other", stop_timeout=PATIENCE)
    hangs = group.add(Waits(released), name="hangs", stop_timeout=0.1)
    try:
        with pytest.raises(ServiceGroupError), group:
            pass
        states = [status.state for status in group.status()]
        assert states == [State.STOPPED, State.ABANDONED]
        # It is asked all the same: what it does on its own account is not lost.
        assert (other.stops, hangs.stops) == (1, 1)
    finally:
        released.set()
        for thread in threads:
            thread.join(PATIENCE)
