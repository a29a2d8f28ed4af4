"""`QueueConsumer`: what the consumers of all queues have in common."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from servicegroup._aio_service import AsyncService
from servicegroup.adapters._broker import Broker, BrokerAwayError
from servicegroup.adapters._message import Message, Reject, Retry, RetryPolicy
from servicegroup.adapters._queue_run import Options, QueueRun
from servicegroup.restart import Restart
from servicegroup.service import ReadyWhen

__all__ = [
    "AWAY",
    "BrokerAwayError",
    "Handler",
    "Message",
    "QueueConsumer",
    "Reject",
    "Retry",
    "RetryPolicy",
]

Handler = Callable[[Message], object] | Callable[[Message], Awaitable[object]]

# A broker that restarts is back within seconds; thousands of consumers must not come all at once.
AWAY = Restart(
    max_restarts=math.inf, within=10.0, delay=0.1, factor=2.0, max_delay=10.0, jitter=0.5
)
# In hand for each handler by default, so that none waits for the network.
PREFETCH = 10


class QueueConsumer(AsyncService, ABC):
    """Takes messages from a queue and has them handled; at least once each, none is lost.

    `handler` is called with each `Message`. When it returns, the message is acknowledged. When it
    raises, it is called again after a pause, as `retry` says; after the last attempt the message
    goes to the dead letters, or, where there are none, back to the queue, and the log has the
    failure. `Reject` and `Retry` are for the handler to choose.

    An ordinary handler is called on `concurrency` threads; an `async def` in the event loop, as so
    many tasks. What takes longer than `handler_timeout` is told with its stack: a thread is left
    alone, replaced by another, and its message not acknowledged before it returns; a task is
    cancelled, which is a failed attempt.

    It is ready while it is connected. Without its broker it is not, and tries again and again. On
    `stop()` no message is taken any more; those that no handler has begun go back to the broker at
    once; those that one has are finished and acknowledged, as far as the time to stop allows.

    Attributes:
        handled: how many messages were handled in this run.
        failed: how many times a handler raised.
        in_hand: how many messages are here and not settled.
    """

    ready_when: ReadyWhen | None = "announced"

    _run: QueueRun | None = None

    def __init__(
        self,
        handler: Handler,
        *,
        name: str,
        concurrency: int,
        prefetch: int | None,
        retry: RetryPolicy,
        handler_timeout: float,
        reconnect: Restart,
    ) -> None:
        self.name = name
        kind = type(self).__name__
        self._options = Options(
            handler=_checked(kind, handler),
            concurrency=_count(kind, "concurrency", concurrency),
            prefetch=(
                PREFETCH * concurrency if prefetch is None else _count(kind, "prefetch", prefetch)
            ),
            retry=retry,
            handler_timeout=handler_timeout,
            reconnect=reconnect,
        )
        if self._options.prefetch < concurrency:
            raise ValueError(
                f"{kind}: with prefetch={prefetch} some of concurrency={concurrency} handlers "
                "would never have work"
            )
        if not isinstance(retry, RetryPolicy):
            raise TypeError(f"{kind}: retry must be a RetryPolicy, not {retry!r}")
        if not isinstance(reconnect, Restart):
            raise TypeError(f"{kind}: reconnect must be a Restart, not {reconnect!r}")
        if isinstance(handler_timeout, bool) or not isinstance(handler_timeout, (int, float)):
            raise TypeError(f"{kind}: handler_timeout must be a number, not {handler_timeout!r}")
        if not handler_timeout > 0:
            raise ValueError(
                f"{kind}: handler_timeout must be more than 0 seconds, not {handler_timeout!r}"
            )

    @abstractmethod
    def _new_broker(self) -> Broker:
        """The next connection, not yet open."""

    @property
    def handled(self) -> int:
        """How many messages were handled in this run, or the last. Any thread."""
        return 0 if self._run is None else self._run.handled

    @property
    def failed(self) -> int:
        """How many times a handler raised in this run, or the last. Any thread."""
        return 0 if self._run is None else self._run.failed

    @property
    def in_hand(self) -> int:
        """How many messages are here and not settled. Any thread."""
        return 0 if self._run is None else len(self._run.in_hand)

    async def run(self) -> None:
        """Handle messages until the stop. Called by the group.

        Raises:
            Exception: the broker can be reached, but not with these options.
        """
        stopping = self.stopping
        if stopping.is_set():
            return
        self._run = QueueRun(
            self.name, self._options, stopping, self.remaining, self._on_connection
        )
        await self._run.run(self._new_broker)

    def _on_connection(self, there: bool) -> None:
        if there:
            self.mark_ready()
        else:
            self.mark_not_ready()


def _checked(kind: str, handler: object) -> Callable[[Message], object]:
    if not callable(handler):
        raise TypeError(f"{kind}: handler must be callable, not {handler!r}")
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        raise TypeError(
            f"{kind}: handler must take one argument, the message: {handler!r}"
        ) from None
    except ValueError:
        pass  # some built-in functions tell nothing
    return handler


def _count(kind: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{kind}: {name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{kind}: {name} must be 1 or more, not {value}")
    return value
