"""A consumer in this process, in a group on a thread."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest

from servicegroup import ServiceGroup, ServiceGroupError, events
from servicegroup.adapters.queue import Message, QueueConsumer, Reject
from servicegroup.restart import Restart
from tests.adapters.queues.program import STOP
from tests.adapters.queues.test_queues import wait_for
from tests.child import PATIENCE

# A stop in such a pause is answered at once, or never.
PAUSE = Restart(max_restarts=float("inf"), delay=20 * PATIENCE, max_delay=20 * PATIENCE)


class Seen:
    """A handler that keeps what it was called with, and waits while it is not `open`."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.open.wait()
        if message.body.startswith(b"reject"):
            raise Reject("not wanted")
        message.text()

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    def wait_for(self, count: int) -> None:
        wait_for(lambda: len(self.messages) >= count, lambda: self.bodies)


def patient_group(**options: Any) -> ServiceGroup:
    """One that abandons nothing and nobody, however busy the machine is."""
    return ServiceGroup(
        **{"signals": (), "stop_timeout": STOP, "shutdown_timeout": STOP, **options}
    )


@contextmanager
def running(*consumers: QueueConsumer, **options: Any) -> Iterator[list[type[events.Event]]]:
    """They run inside the block, in a group with these options; what kinds of events were told."""
    told: list[type[events.Event]] = []
    group = patient_group(**options)
    group.subscribe(lambda event: told.append(type(event)))
    for number, consumer in enumerate(consumers):
        group.add(consumer, name=f"consumer-{number}")
    with group:
        yield told


def failure(consumer: QueueConsumer) -> BaseException:
    """What it fails with, by itself."""
    group = ServiceGroup(signals=())
    group.add(consumer)
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    return caught.value.exceptions[0]


class Running(ABC):
    """A consumer inside a block, ready or not; `seen` has what it was given, as it came."""

    def __init__(self, handler: Any = None, **options: Any) -> None:
        self.seen: list[Message] = []
        self.events: list[type[events.Event]] = []
        self._handler = handler
        self.group = patient_group()
        self.group.add(self._make(options))
        self.group.subscribe(lambda event: self.events.append(type(event)))
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @abstractmethod
    def _make(self, options: dict[str, Any]) -> QueueConsumer:
        """The consumer, whose handler is `_handle`."""

    def _handle(self, message: Message) -> None:
        self.seen.append(message)
        if self._handler is not None:
            self._handler(message)

    def _run(self) -> None:
        try:
            self.group.start()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def texts(self) -> list[str]:
        return [message.body.decode(errors="replace") for message in self.seen]

    def wait_for(self, count: int = 1, kind: type[events.Event] = events.ServiceReady) -> None:
        wait_for(lambda: self.events.count(kind) >= count, lambda: (self.events, self.error))

    def wait_until_seen(self, *wanted: str) -> None:
        wait_for(lambda: set(wanted) <= set(self.texts), lambda: self.texts)

    def stop(self) -> float:
        """Seconds it took."""
        at = time.monotonic()
        self.group.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return time.monotonic() - at

    def failure(self) -> str:
        """What it fails with by itself."""
        with self:
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive(), "it did not fail"
        return repr(getattr(self.error, "exceptions", self.error))
