"""The mailbox: everything that can happen to a group is a message in one queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX, Event, Thread

# What is to be done about what happened, by the deciding thread, and with what.
Message = tuple[Callable[..., None], tuple[object, ...]]


class Mailbox:
    """Messages for one thread from many, with a clock. `put` is safe in a signal handler."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: SimpleQueue[Message] = SimpleQueue()

    @staticmethod
    def now() -> float:
        """Seconds of the clock that `get` goes by."""
        return time.monotonic()

    def put(self, handler: Callable[..., None], *args: object) -> None:
        """Add a message: `handler(*args)` is to be called by the deciding thread."""
        self._queue.put((handler, args))

    def poll(self) -> Message | None:
        """The next message, or None when there is none right now."""
        # There is one taker, so what is there stays there.
        return None if self._queue.empty() else self._queue.get()

    def get(self, until: float | None) -> Message | None:
        """The next message; None when there is none by `until` (None: wait without end)."""
        if until is None:
            return self._queue.get()
        timeout = until - self.now()
        if timeout <= 0:
            return self.poll()
        try:
            return self._queue.get(timeout=min(timeout, TIMEOUT_MAX))
        except Empty:
            return None

    def join(self, thread: Thread, until: float | None, event: Event | None) -> Message | None:
        """Set `event`, wait until `thread` is gone or it is `until`, then `poll`.

        For a thread whose last word is a message: that would wake the taker just to make it wait
        for the interpreter's lock until the thread is gone. And with anything between set and join,
        the thread would have to wait for that lock first.
        """
        timeout = None if until is None else min(max(until - self.now(), 0.0), TIMEOUT_MAX)
        if event is not None:
            event.set()
        thread.join(timeout)
        return self.poll()
