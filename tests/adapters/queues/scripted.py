"""A broker in memory that does what a test says: for the rules that are the same for all."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from servicegroup.adapters._broker import Broker, Delivery
from servicegroup.adapters._message import Message
from servicegroup.adapters.queue import AWAY, BrokerAwayError, Handler, QueueConsumer, RetryPolicy
from servicegroup.restart import Restart

SOON = Restart(max_restarts=math.inf, delay=0.001, factor=1.0, jitter=0.0)


class Store:
    """What outlives connections, and what the test says of them.

    Attributes:
        queue: what waits: body, attempt and lane of each.
        told: what the broker was told, in order.
        on_open: awaited by `open`.
        before: awaited by the methods of that name.
    """

    def __init__(self, *bodies: str, dead_letters: bool = True, volatile: bool = False) -> None:
        self.queue: deque[tuple[str, int, Hashable]] = deque((body, 1, None) for body in bodies)
        self.told: list[tuple[str, list[str]]] = []
        self.dead_letters = dead_letters
        self.volatile = volatile
        self.keep_seconds: float | None = None
        self.native_put_off = False
        self.before: dict[str, Callable[[Scripted], object]] = {}
        self.connections: list[Scripted] = []
        self.most = 0  # in hand at a time

    def said(self, what: str) -> list[str]:
        return [body for told, bodies in self.told if told == what for body in bodies]


class Scripted(Broker):
    def __init__(self, store: Store) -> None:
        self.dead_letters = store.dead_letters
        self.volatile = store.volatile
        self.keep_seconds = store.keep_seconds
        self.store = store
        self.loop = asyncio.get_running_loop()
        self.lost = asyncio.Event()
        self.more = asyncio.Event()
        self.interrupted = False
        self.closed = False
        self.hand: set[Delivery] = set()
        store.connections.append(self)

    async def _before(self, what: str, deliveries: Sequence[Delivery] = ()) -> None:
        hook = self.store.before.get(what)
        result = None if hook is None else hook(self)
        if asyncio.iscoroutine(result):
            await result
        if self.lost.is_set():
            raise BrokerAwayError("it was lost")
        self.store.told.append((what, [one.message.body.decode() for one in deliveries]))
        self.hand -= set(deliveries)

    def wake(self) -> None:
        """Have it look at the queue again. Any thread."""
        self.loop.call_soon_threadsafe(self.more.set)

    def lose(self) -> None:
        """Lose the connection. Any thread."""
        self.loop.call_soon_threadsafe(self._lose)

    def _lose(self) -> None:
        self.lost.set()
        self.more.set()
        if self.volatile:
            self.store.queue.extend((one.message.body.decode(), 2, one.lane) for one in self.hand)

    async def open(self) -> None:
        await self._before("open")

    async def watch(self) -> None:
        await self.lost.wait()
        raise BrokerAwayError("it was lost")

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while True:
            if self.lost.is_set():
                raise BrokerAwayError("it was lost")
            if self.interrupted:
                return []
            if self.store.queue:
                break
            self.more.clear()
            await self.more.wait()
        taken: list[Delivery] = []
        while self.store.queue and len(taken) < limit:
            body, attempt, lane = self.store.queue.popleft()
            message = Message(body=body.encode(), id=body, attempt=attempt)
            taken.append(Delivery(message=message, token=body, lane=lane, broker=self))
        self.hand.update(taken)
        self.store.most = max(self.store.most, len(self.hand))
        return taken

    def interrupt(self) -> None:
        self.interrupted = True
        self.more.set()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._before("ack", deliveries)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._before("give_back", deliveries)

    async def bury(self, delivery: Delivery, reason: str) -> None:
        await self._before("bury", [delivery])
        self.store.told.append(("reason", [reason]))

    async def put_off(self, delivery: Delivery, seconds: float, excused: bool) -> bool:
        if self.store.native_put_off:
            await self._before("put_off", [delivery])
        return self.store.native_put_off

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        await self._before("keep")

    async def close(self) -> None:
        self.closed = True


class Consumer(QueueConsumer):
    """Options are those of `QueueConsumer`, with defaults for tests."""

    def __init__(self, store: Store, handler: Handler, **others: Any) -> None:
        options: dict[str, Any] = {
            "name": "orders",
            "concurrency": 1,
            "prefetch": None,
            "retry": RetryPolicy(3, delay=0.0),
            "handler_timeout": math.inf,
            "reconnect": SOON,
        }
        super().__init__(handler, **{**options, **others})
        self.store = store

    def _new_broker(self) -> Broker:
        return Scripted(self.store)


__all__ = ["AWAY", "SOON", "Consumer", "Scripted", "Store"]
