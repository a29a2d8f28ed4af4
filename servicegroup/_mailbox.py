"""The mailbox: everything that can happen to a group is a message in one queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX, Thread

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

    def get(self, until: float | None) -> Message | None:
        """The next message; None when there is none by `until` (None: wait without end)."""
        if until is None:
            return self._queue.get()
        timeout = until - self.now()
        if timeout <= 0 and self._queue.empty():
            return None
        try:
            return self._queue.get(timeout=min(max(timeout, 0.0), TIMEOUT_MAX))
        except Empty:
            return None

    def get_after(self, thread: Thread, until: float | None) -> Message | None:
        """Wait until `thread` is gone or it is `until`, then as `get` for what came meanwhile.

        For a thread whose last word is a message: it would wake the taker just to make it wait for
        the interpreter's lock until the thread is gone.
        """
        thread.join(None if until is None else min(max(until - self.now(), 0.0), TIMEOUT_MAX))
        return self.get(0.0)
