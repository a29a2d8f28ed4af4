"""One run of a queue's consumer: what is in hand, and what becomes of it."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable

from attrs import evolve, frozen

from servicegroup.adapters._broker import Broker, BrokerAwayError, Delivery
from servicegroup.adapters._drain import log
from servicegroup.adapters._handlers import Handler, TaskHandlers, ThreadHandlers, is_async
from servicegroup.adapters._message import Reject, Retry, RetryPolicy
from servicegroup.restart import Restart, RestartHistory

# Of the time to stop, until handlers that have begun are given up; and for each of the steps around
# that, which need the broker. Together they end before an AsyncService cancels its run().
HANDLERS_SHARE = 0.6
STEP_SHARE = 0.05
CLOSE_SECONDS = 2.0  # for the broker to say goodbye: all that matters has been said by then
TOLD = 10  # of so many messages that were left it is told which, and where their handlers are


@frozen(kw_only=True)
class Options:
    """What a consumer was told."""

    handler: Handler
    concurrency: int
    prefetch: int
    retry: RetryPolicy
    handler_timeout: float
    reconnect: Restart


class _WornOut(Exception):
    """It was delivered more often than it may be tried, and nobody ever said why it failed."""


class _PutBack(Exception):
    """It has waited for its turn to be given back."""


class QueueRun:
    """Takes messages, has them handled, and tells the broker. For the thread of the event loop.

    Args:
        name: of the service.
        options: what it was told.
        stopping: set when it is to stop.
        remaining: seconds until the service is abandoned.
        on_ready: told whether there is a connection.

    Attributes:
        handled: how many messages were handled.
        failed: how many times a handler raised.
        in_hand: the messages that are not settled.
    """

    # Invariant: what is in hand is in one place: behind another of its lane, with the handlers, in
    # `_timers` or in `_finished`, where it stays until the broker has it.

    def __init__(
        self,
        name: str,
        options: Options,
        stopping: asyncio.Event,
        remaining: Callable[[], float],
        on_ready: Callable[[bool], None],
    ) -> None:
        self.handled = self.failed = 0
        self.in_hand: set[Delivery] = set()
        self._name = name
        self._options = options
        self._stopping = stopping
        self._remaining = remaining
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        make = TaskHandlers if is_async(options.handler) else ThreadHandlers
        self._handlers = make(
            options.handler, options.concurrency, options.handler_timeout, name, self._on_done
        )
        self._heads: dict[Hashable, Delivery] = {}  # of the lanes: those whose turn it is
        self._behind: dict[Hashable, deque[Delivery]] = {}
        self._timers: dict[Delivery, asyncio.TimerHandle] = {}
        self._finished: dict[Delivery, Exception | None] = {}
        self._end = asyncio.Event()  # the stop, or a handler that raised what is no Exception
        self._error: BaseException | None = None  # that
        self._leaving = False
        self._lanes_to_leave: set[Hashable] = set()
        self._to_settle = asyncio.Event()
        self._to_fetch = asyncio.Event()
        self._on_settled = asyncio.Event()

    async def run(self, new_broker: Callable[[], Broker]) -> None:
        """Handle messages until the stop.

        Raises:
            BaseException: what `Broker.open` raised of the options; a `SystemExit` of a handler.
        """
        history = RestartHistory(self._options.reconnect, random.random)
        stop = self._loop.create_task(self._stopping.wait(), name=f"{self._name} (stop)")
        stop.add_done_callback(lambda _: self._end.set())
        end = self._loop.create_task(self._end.wait(), name=f"{self._name} (end)")
        try:
            while not end.done():
                broker = new_broker()
                broker.owner = self
                try:
                    if await self._or_end(end, broker.open()):
                        self._on_ready(True)
                        await self._consume(broker, end)
                except BrokerAwayError as error:
                    self._on_ready(False)
                    self._forget_what_comes_again(broker)
                    pause = history.next(self._loop.time())
                    if pause is None:
                        raise
                    if not end.done():
                        self._warn("the broker is away (%s); once more in %.1f s", error, pause)
                        await asyncio.wait({end}, timeout=pause)
                finally:
                    await self._close(broker)
            if self._handlers.count or self._finished:  # and no broker
                self._let_go(self._take_back())
                await self._until(lambda: not self._handlers.count)
                self._tell_left("the broker is away")
        finally:
            stop.cancel()
            end.cancel()
            self._take_back()
            self._handlers.close()
        if self._error is not None:
            raise self._error

    async def _or_end(self, end: asyncio.Task[bool], work: Coroutine[None, None, None]) -> bool:
        """Whether `work` came to its end before the run's, which cancels it."""
        task = self._loop.create_task(work)
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=self._step())
        if task.done() and not task.cancelled():
            task.result()
            return True
        return False

    def _step(self) -> float:
        """Seconds for a word with the broker."""
        return min(CLOSE_SECONDS, STEP_SHARE * self._remaining())

    async def _close(self, broker: Broker) -> None:
        try:
            async with asyncio.timeout(self._step()):
                await broker.close()
        except Exception as error:  # it is gone all the same
            log.debug("service %r: while closing the connection: %r", self._name, error)

    def _warn(self, what: str, *values: object) -> None:
        log.warning(f"service %r: {what}", self._name, *values)

    # -- while there is a connection --------------------------------------------------------------

    async def _consume(self, broker: Broker, end: asyncio.Task[bool]) -> None:
        self._to_settle.set()  # what the last connection could not be told
        fetch = self._loop.create_task(self._fetch(broker), name=f"{self._name} (fetch)")
        settle = self._loop.create_task(self._settle(broker), name=f"{self._name} (settle)")
        keep = self._loop.create_task(self._keep(broker), name=f"{self._name} (keep)")
        watch = self._loop.create_task(broker.watch(), name=f"{self._name} (watch)")
        tasks = {fetch, settle, keep, watch}
        try:
            await asyncio.wait({end, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            _raise_of(tasks)
            self._leaving = True
            self._to_fetch.set()
            broker.interrupt()
            # What it has taken from the broker by then is to go back, too.
            await asyncio.wait({fetch}, timeout=self._step())
            await self._give_back(broker, self._take_back())
            done = self._loop.create_task(self._until(lambda: not self.in_hand))
            await asyncio.wait({done, *tasks - {fetch}}, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            _raise_of(tasks)
            if self.in_hand:
                self._tell_left("the time to stop is over")
                self._handlers.close()
                await self._give_back(broker, list(self.in_hand))
        finally:
            self._leaving = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds, or the time for handlers is over."""
        seconds = HANDLERS_SHARE * self._remaining()
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                while not condition():
                    self._on_settled.clear()
                    await self._on_settled.wait()
        except TimeoutError:
            pass

    async def _give_back(self, broker: Broker, deliveries: list[Delivery]) -> None:
        self._let_go(deliveries)
        if deliveries:
            try:
                async with asyncio.timeout(self._step()):
                    await broker.give_back(deliveries)
            except TimeoutError:  # it will notice by itself that nobody is here
                pass

    def _tell_left(self, why: str) -> None:
        left = list(self.in_hand)
        if left:
            log.error(
                "service %r: %d messages are not settled, since %s; they will come again: %s%s",
                self._name,
                len(left),
                why,
                ", ".join(delivery.message.id for delivery in left[:TOLD]),
                "".join(f"\n{stack}" for stack in self._handlers.stacks()[:TOLD]),
            )

    def _take_back(self, lanes: Collection[Hashable] | None = None) -> list[Delivery]:
        """Those in hand that no handler has begun; of these lanes only, if any are given."""
        taken = []
        for delivery in self._handlers.take_back():
            if lanes is None or delivery.lane in lanes:
                taken.append(delivery)
            else:
                self._handlers.handle(delivery)
        for delivery in list(self._timers):
            if lanes is None or delivery.lane in lanes:
                self._timers.pop(delivery).cancel()
                taken.append(delivery)
        for lane, behind in self._behind.items():
            if lanes is None or lane in lanes:
                taken += behind
                behind.clear()
        return taken

    def _forget_what_comes_again(self, broker: Broker) -> None:
        """The connection is lost, and with it, maybe, what it has delivered."""
        if broker.volatile:
            self._take_back()
            self._let_go(list(self.in_hand))

    async def _keep(self, broker: Broker) -> None:
        seconds = broker.keep_seconds
        while seconds is not None:
            await asyncio.sleep(seconds)
            if self.in_hand:
                await broker.keep(list(self.in_hand))
        await asyncio.Event().wait()

    # -- what comes in ----------------------------------------------------------------------------

    async def _fetch(self, broker: Broker) -> None:
        prefetch, attempts = self._options.prefetch, self._options.retry.attempts
        while not self._leaving:
            room = prefetch - len(self.in_hand)
            # With a quarter in reserve, so that each fetch is worth its while.
            if room <= 0 or self._waiting() > prefetch // 4:
                self._to_fetch.clear()
                await self._to_fetch.wait()
                continue
            for delivery in await broker.fetch(room):
                self.in_hand.add(delivery)
                tried = delivery.message.attempt - delivery.excused
                worn_out = tried > attempts + broker.unbegun
                if worn_out and broker.dead_letters:
                    self._finish(delivery, _WornOut())
                else:
                    self._queue(delivery)

    def _waiting(self) -> int:
        # Those behind others of their lane cannot be handled, however many handlers are free.
        return self._handlers.waiting

    def _queue(self, delivery: Delivery) -> None:
        lane = delivery.lane
        if lane is not None and self._heads.setdefault(lane, delivery) is not delivery:
            self._behind.setdefault(lane, deque()).append(delivery)
        else:
            self._handlers.handle(delivery)

    def _advance(self, delivery: Delivery) -> None:
        """It is the next one's turn in its lane."""
        lane = delivery.lane
        if lane is None or self._heads.get(lane) is not delivery:
            return
        behind = self._behind.get(lane)
        if behind:
            self._heads[lane] = behind[0]
            self._handlers.handle(behind.popleft())
        else:
            del self._heads[lane]
            self._behind.pop(lane, None)

    async def leave_lanes(self, lanes: Collection[Hashable]) -> None:
        """Forget what has not begun of these lanes; return when what has is settled, or in time."""
        self._lanes_to_leave.update(lanes)
        try:
            self._let_go(self._take_back(lanes))
            await self._until(lambda: not any(one.lane in lanes for one in self.in_hand))
            self._let_go([one for one in self.in_hand if one.lane in lanes])
        finally:
            self._lanes_to_leave.difference_update(lanes)

    # -- what becomes of it -----------------------------------------------------------------------

    def _on_done(self, delivery: Delivery, error: BaseException | None) -> None:
        if error is None:
            self.handled += 1
        else:
            self.failed += 1
        if delivery not in self.in_hand:
            self._warn("message %s was finished too late, and comes again", delivery.message.id)
        elif isinstance(error, Exception) or error is None:
            self._finish(delivery, error)
        else:
            self._error = error
            self._finish(delivery, _PutBack())
            self._end.set()
        self._on_settled.set()

    def _finish(self, delivery: Delivery, outcome: Exception | None) -> None:
        self._finished[delivery] = outcome
        if outcome is None:
            self._advance(delivery)
        self._to_settle.set()
        self._to_fetch.set()

    def _let_go(self, deliveries: Iterable[Delivery]) -> None:
        """They are settled."""
        for delivery in deliveries:
            self.in_hand.discard(delivery)
            self._finished.pop(delivery, None)
            self._advance(delivery)
        self._to_fetch.set()
        self._on_settled.set()

    async def _settle(self, broker: Broker) -> None:
        while True:
            await self._to_settle.wait()
            self._to_settle.clear()
            if handled := [one for one, outcome in self._finished.items() if outcome is None]:
                await broker.ack(handled)
                self._let_go(handled)
            for delivery, outcome in list(self._finished.items()):
                if outcome is not None and not await self._comes_again(broker, delivery, outcome):
                    self._let_go([delivery])

    async def _comes_again(self, broker: Broker, delivery: Delivery, error: Exception) -> bool:
        """Settle one that failed, or put it off; whether it stays in hand."""
        message, policy = delivery.message, self._options.retry
        where = f"service {self._name!r}: message {message.id}"
        if isinstance(error, _PutBack):
            await broker.give_back([delivery])
            return False
        if isinstance(error, Retry):
            log.info("%s, attempt %d: %s", where, message.attempt, error)
            return await self._put_off(broker, delivery, error.after, self._excuse)
        rejected = isinstance(error, (Reject, _WornOut))
        if not rejected and message.attempt - delivery.excused < policy.attempts:
            pause = policy.pause(message.attempt, random.random())
            log.warning("%s failed in attempt %d: %r", where, message.attempt, error)
            return await self._put_off(broker, delivery, pause, self._again)
        reason = str(error) if rejected else repr(error)
        if isinstance(error, _WornOut):
            reason = f"delivered {message.attempt} times, and not finished once"
        if broker.dead_letters:
            log.error("%s goes to the dead letters: %s", where, reason, exc_info=_trace(error))
            await broker.bury(delivery, reason)
            return False
        if rejected:
            log.error("%s is dropped: %s", where, reason)
            await broker.drop(delivery)
            return False
        log.error("%s failed in attempt %d", where, message.attempt, exc_info=error)
        pause = policy.pause(message.attempt, random.random())
        # Somebody else may have more luck with it; but a lane must stay in order.
        then = self._again if delivery.lane is not None else self._back
        return await self._put_off(broker, delivery, pause, then)

    async def _put_off(
        self,
        broker: Broker,
        delivery: Delivery,
        seconds: float,
        then: Callable[[Delivery], None],
    ) -> bool:
        """Have it tried again in `seconds`; whether it stays in hand until `then`."""
        if await broker.put_off(delivery, seconds, then == self._excuse):
            return False
        if self._leaving or delivery.lane in self._lanes_to_leave:
            await broker.give_back([delivery])
            return False
        del self._finished[delivery]
        self._timers[delivery] = self._loop.call_later(seconds, then, delivery)
        return True

    def _again(self, delivery: Delivery) -> None:
        del self._timers[delivery]
        delivery.message = evolve(delivery.message, attempt=delivery.message.attempt + 1)
        self._handlers.handle(delivery)

    def _excuse(self, delivery: Delivery) -> None:
        delivery.excused += 1
        self._again(delivery)

    def _back(self, delivery: Delivery) -> None:
        del self._timers[delivery]
        self._finish(delivery, _PutBack())


def _trace(error: Exception) -> Exception | None:
    return None if isinstance(error, (Reject, _WornOut)) else error


def _raise_of(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
