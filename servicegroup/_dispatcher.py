"""The subscribers' thread."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

from servicegroup import _log
from servicegroup._runner import GroupThread
from servicegroup.events import Event

Subscriber = Callable[[Event], object]


class Dispatcher:
    """Hands events to subscribers, in order, so that a slow one delays none of the services."""

    def __init__(
        self, name: str, root: object, first: tuple[Subscriber, ...], subscribers: list[Subscriber]
    ) -> None:
        self._first = first
        self._subscribers = subscribers  # the group's own list: it may grow while this runs
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = GroupThread(self._work, f"{name} (subscribers)", root)
        self.put = self._events.put

    def start(self) -> None:
        """Make the thread. RuntimeError when the machine has none left."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Wait until all events were taken, for at most `timeout` seconds."""
        self._events.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            for subscriber in (*self._first, *self._subscribers):
                try:
                    subscriber(event)
                except BaseException:
                    _log_raised(subscriber, event)


def _log_raised(subscriber: Subscriber, event: Event) -> None:
    try:
        _log.logger().exception("subscriber %r raised at %s", subscriber, type(event).__name__)
    except BaseException:
        pass  # the log raises, too: nowhere is left to tell, and the next event is to come
