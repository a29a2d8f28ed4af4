"""What is to be looked at when, with one timer of the loop for all of it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from typing import Protocol

    class Due(Protocol):
        """`due` is when it is to be looked at, by the loop's clock; `math.inf`: not at all."""

        due: float


D = TypeVar("D", bound="Due")


class Agenda(Generic[D]):
    """Calls `look(one, now)` when `one.due` has come. To be used in the loop only.

    Whoever sets `due` to `math.inf` without a word leaves an entry behind, which may wake the loop
    once for nothing, and costs nothing now.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[D, float], None]) -> None:
        self._loop = loop
        self._look = look
        self._heap: list[tuple[float, int, D]] = []
        self._serial = itertools.count()  # so that the heap never compares what is in it
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def put(self, one: D, when: float) -> None:
        """`one` is to be looked at `when`, and not before."""
        one.due = when
        self._tidy()
        if when < math.inf:
            heapq.heappush(self._heap, (when, next(self._serial), one))
        # A timer that rings too early is left alone: in a stop each is later than the one before.
        if when < self._rings_at:
            self._ring_at(when)

    def drop(self, one: D) -> None:
        """`one` is not to be looked at; an idle loop is not to be woken for it."""
        if one.due < math.inf:
            one.due = math.inf
            self._tidy()
            if not self._heap:
                self.close()

    def close(self) -> None:
        """No more is to be looked at."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, math.inf

    def _tidy(self) -> None:
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].due:
            heapq.heappop(heap)

    def _ring_at(self, when: float) -> None:
        self.close()
        self._rings_at = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        # The loop may call a little sooner than its clock shows.
        now = max(self._rings_at, self._loop.time())
        self.close()
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, _, one = heapq.heappop(heap)
            if one.due == when:
                one.due = math.inf
                self._look(one, now)
        self._tidy()
        if heap and heap[0][0] < self._rings_at:
            self._ring_at(heap[0][0])
