"""What a queue's adapter has to say of its broker; the rest is the same for all of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define

from servicegroup.adapters._message import Message

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Protocol

    class Owner(Protocol):
        """Who has the messages in hand."""

        async def leave_lanes(self, lanes: Collection[Hashable]) -> None:
            """Forget what has not begun of these lanes; return when what has is settled."""


class BrokerAwayError(ConnectionError):
    """The broker cannot be reached for now; the consumer tries again."""


@define(eq=False, kw_only=True)
class Delivery:
    """A message in hand.

    Attributes:
        message: what the handler is given.
        token: by which the broker knows it.
        lane: messages of one lane are handled one after the other, as they came; None: whenever.
        broker: what delivered it.
        excused: how many of its attempts ended with the handler's wish for another one.
    """

    message: Message
    token: Any  # of another type for each broker
    lane: Hashable = None
    broker: Broker
    excused: int = 0


class Broker(ABC):
    """One connection to a broker, from its making to its loss.

    Everything is called in the event loop, and must not block it. `fetch` is awaited by one task at
    a time; the other methods may be called meanwhile, but for the same message once only.

    All but `close` raise `BrokerAwayError` when the connection is lost. What else they raise fails
    the service.

    Attributes:
        dead_letters: whether `bury` keeps what it is given.
        volatile: what was in hand when the connection was lost is delivered again by the next one,
            and cannot be acknowledged there.
        unbegun: how many of a message's attempts may have been given back before they began, where
            the broker counts those, too.
        keep_seconds: how often `keep` is to be called for what is in hand; None: never.
        owner: who has what is in hand; there before `open` is called.
    """

    owner: Owner

    dead_letters: bool = False
    volatile: bool = False
    unbegun: int = 0
    keep_seconds: float | None = None

    @abstractmethod
    async def open(self) -> None:
        """Connect and subscribe.

        May be cancelled; `close` is called then, too. What it raises besides `BrokerAwayError` says
        what is wrong with the options, and will be wrong the next time too.
        """

    async def watch(self) -> None:
        """Raise `BrokerAwayError` once the connection is lost, also while nobody fetches.

        One that notices a loss only when it says something waits for ever.
        """
        await asyncio.get_running_loop().create_future()

    @abstractmethod
    async def fetch(self, limit: int) -> Sequence[Delivery]:
        """Wait for messages; from 1 to `limit` of them, or fewer once it was interrupted."""

    @abstractmethod
    def interrupt(self) -> None:
        """Have `fetch` return at once, now and from now on. It loses nothing by that."""

    @abstractmethod
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """They are handled. Again for some of them, if it raised `BrokerAwayError`."""

    @abstractmethod
    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Have others get them at once. That they were here is no attempt, if that can be."""

    @abstractmethod
    async def bury(self, delivery: Delivery, reason: str) -> None:
        """Put it to the dead letters with the reason, and take it off the queue."""

    async def drop(self, delivery: Delivery) -> None:
        """Take it off the queue: the handler rejected it, and there are no dead letters."""
        await self.ack([delivery])

    async def put_off(self, delivery: Delivery, seconds: float, excused: bool) -> bool:
        """Have it delivered again in `seconds`, as the next attempt; False: the broker cannot.

        With `excused`, this attempt is to be among `Delivery.excused` then.
        """
        return False

    async def keep(self, deliveries: Sequence[Delivery]) -> None:  # noqa: B027 - few need it
        """They are still in hand: nobody else is to get them."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything; also when it was never open, or is lost. It need not be quick."""
