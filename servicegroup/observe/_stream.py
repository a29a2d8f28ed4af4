"""Server-sent events: what is told once is heard by all who listen."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator

LISTENERS = 64  # each holds a thread
BEHIND = 1_000  # events that a slow listener may be behind, before it has to begin anew
KEEP_ALIVE_SECONDS = 15.0  # proxies cut connections on which nothing comes


class Listener:
    """One who listens; made by `Stream`."""

    def __init__(self, stream: Stream) -> None:
        self.waiting: deque[bytes] = deque()
        self._stream = stream

    def chunks(self) -> Iterator[bytes]:
        """What to send, until the stream ends or the listener is too far behind."""
        yield b"retry: 1000\n\n"
        changed = self._stream.changed
        while True:
            with changed:
                if not self.waiting and not self._stream.over:
                    changed.wait(KEEP_ALIVE_SECONDS)
                if len(self.waiting) > BEHIND or (self._stream.over and not self.waiting):
                    return
                chunk = self.waiting.popleft() if self.waiting else b": nothing yet\n\n"
            yield chunk


class Stream:
    """Any thread may call what is here.

    Attributes:
        over: nothing more will be told.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.over = False
        self._listeners: list[Listener] = []
        self._count = 0

    def tell(self, what: Callable[[], object]) -> None:
        """Have all who listen hear what `what` returns, which JSON knows."""
        if not self._listeners:
            return
        with self.changed:
            self._count += 1
            chunk = f"id: {self._count}\ndata: {json.dumps(what())}\n\n".encode()
            for listener in self._listeners:
                if len(listener.waiting) <= BEHIND:
                    listener.waiting.append(chunk)
            self.changed.notify_all()

    def listen(self) -> Listener | None:
        """One more who listens; None: there are too many."""
        with self.changed:
            if len(self._listeners) >= LISTENERS:
                return None
            listener = Listener(self)
            self._listeners.append(listener)
            return listener

    def leave(self, listener: Listener) -> None:
        """It listens no more."""
        with self.changed:
            self._listeners.remove(listener)

    def end(self) -> None:
        """Send everybody home."""
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def begin(self) -> None:
        """It goes on after an end."""
        with self.changed:
            self.over = False
