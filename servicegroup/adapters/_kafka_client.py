"""One member of a consumer group of Kafka, on a thread of its own."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any

import confluent_kafka as kafka
from attrs import define, field, frozen
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from servicegroup.adapters._broker import BrokerAwayError
from servicegroup.adapters._drain import log

if TYPE_CHECKING:
    from servicegroup.adapters._broker import Owner

# A wait of the library cannot be ended from outside: a stop may take that long. While there is
# something to do it is shorter, since what is handled is stored between two polls.
POLL_SECONDS = 0.6
SHORT_SECONDS = 0.002
# How long the brokers may be silent before that is told: short blips the library mends by itself.
AWAY_SECONDS = 2.0
ASK_SECONDS = 0.25  # for one question, between which a stop is noticed
LOST_SECONDS = 1.0  # for handlers whose partition is another's already
# For the handlers of a partition, of max.poll.interval.ms, after which the group expels a consumer.
LEAVE_SHARE = 0.8
# Of a partition, before it is paused, so that others have their turn: then the library forgets what
# it has fetched of it, and fetches that once more.
FULL_MESSAGES = 2_000
FULL_BYTES = 8 * 2**20
BATCH = 500  # messages that are taken from the library in one go
MAX_POLL_INTERVAL = 300_000  # ms; the library's default

WRONG = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_GROUP_ID,
        KafkaError.TOPIC_EXCEPTION,
    }
)


@define(eq=False)
class Lane:
    """A partition, from when it is given to this member until it is taken away.

    Attributes:
        number: of the partition.
        is_open: nothing of it is delivered any more once this is False.
        is_ours: what is handled counts.
        until: from this offset on it does not, since it comes again.
        paused: the library fetches nothing of it.
        waiting: messages that the owner has not taken yet.
        size: of those, in bytes.
        in_hand: how many the owner has.
    """

    number: int
    is_open: bool = True
    is_ours: bool = True
    until: float = math.inf
    paused: bool = False
    waiting: deque[kafka.Message] = field(factory=deque)
    size: int = 0
    in_hand: int = 0

    def fullness(self) -> float:
        """From 1 on it is to be paused."""
        return max(len(self.waiting) / FULL_MESSAGES, self.size / FULL_BYTES)


@frozen(kw_only=True)
class Settings:
    """What a client is to do.

    Attributes:
        config: of librdkafka.
        topic: what is consumed.
        dead_letter: a topic that must be there, too.
        create: called with a topic that is missing; without it, that is an error.
        lane_limit: messages of one partition that may be in hand, so that one whose message cannot
            be handled leaves room for others.
    """

    config: Mapping[str, Any]
    topic: str
    dead_letter: str | None
    create: Callable[[str], None] | None = field(default=None, repr=False)
    lane_limit: int

    @property
    def topics(self) -> list[str]:
        return [self.topic] if self.dead_letter is None else [self.topic, self.dead_letter]


class Client:
    """A member of a consumer group. It outlives outages, and its membership with it.

    The library lets calls of other threads wait while one thread polls; so all calls are made on
    one thread, and what is to be done there is left in attributes. The other methods are for the
    thread of the event loop.

    Attributes:
        owner: who has the messages in hand.
        away: why the brokers cannot be reached; None: they can.
        failed: what will not be mended by trying again.
    """

    # Invariant: of each partition, the offset that is stored is behind all that was handled, and
    # nothing before it is not.

    def __init__(self, settings: Settings) -> None:
        self.owner: Owner | None = None
        self.away: str | None = "not asked yet"
        self.failed: BaseException | None = None
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._full: deque[Lane] = deque()  # those of which something is waiting
        self._news = asyncio.Event()
        # For the thread, under the lock:
        self._changed = threading.Condition()
        self._wanted = False  # messages
        self._to_ask = True
        self._to_store: dict[Lane, int] = {}
        self._to_seek: set[Lane] = set()
        self._polls = False
        self._dozes = False
        self._ending: futures.Future[None] = futures.Future()
        self._ended: futures.Future[None] = futures.Future()
        # The thread's own:
        self._lanes: dict[int, Lane] = {}
        self._subscribed = False
        self._ever_paused: set[int] = set()
        self._patience = SHORT_SECONDS
        self._suspect = False
        self._errors: deque[KafkaError] = deque(maxlen=10)
        threading.Thread(
            target=self._work, name=f"{threading.current_thread().name} (kafka)", daemon=True
        ).start()

    # -- for the event loop -----------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether it is of no use any more."""
        return self._ending.done() or self.failed is not None

    async def ready(self) -> None:
        """Return when the brokers answer, and have the topics.

        Raises:
            BrokerAwayError: they do not answer.
            Exception: something else is wrong.
        """
        if self.away is None:
            return
        with self._changed:
            self._to_ask = True
            self._changed.notify()
        while self._to_ask:
            self._raise_failure()
            self._news.clear()
            await self._news.wait()
        self._raise_failure()

    async def take(
        self, limit: int, interrupted: asyncio.Event
    ) -> list[tuple[Lane, kafka.Message]]:
        """Wait for messages; none if it was interrupted. Raises as `ready`."""
        while True:
            self._news.clear()
            taken = self._take(limit)
            if not taken:
                self._raise_failure()
            with self._changed:
                # A partition of which nothing is waiting may have something.
                wants = len(self._full) < max(1, len(self._lanes))
                self._wanted = wants and not interrupted.is_set()
                # A stop waits for the poll here, since it has more time than closing.
                if taken or (interrupted.is_set() and not self._polls):
                    return taken
                self._changed.notify()
            await self._news.wait()

    def _take(self, limit: int) -> list[tuple[Lane, kafka.Message]]:
        """From one partition after the other, as far as each may have more in hand."""
        taken: list[tuple[Lane, kafka.Message]] = []
        for _ in range(len(self._full)):
            lane = self._full.popleft()
            room = min(self._settings.lane_limit - lane.in_hand, limit - len(taken))
            for _ in range(min(room, len(lane.waiting)) if lane.is_open else 0):
                message = lane.waiting.popleft()
                lane.size -= len(message)
                lane.in_hand += 1
                taken.append((lane, message))
            if lane.waiting and lane.is_open:
                self._full.append(lane)
        return taken

    def wake(self) -> None:
        """Have `take` look again whether it was interrupted."""
        self._news.set()

    def handled(self, tokens: Iterable[tuple[Lane, int]]) -> None:
        """All up to these offsets is handled."""
        with self._changed:
            for lane, offset in tokens:
                lane.in_hand -= 1
                if lane.is_ours and offset < lane.until:
                    self._to_store[lane] = max(offset + 1, self._to_store.get(lane, 0))
            # While it stores from time to time anyway, it is left alone.
            if self._dozes:
                self._changed.notify()
        self._news.set()

    def give_back(self, tokens: Iterable[tuple[Lane, int]]) -> None:
        """These are to come again, and all behind them."""
        with self._changed:
            for lane, offset in tokens:
                lane.is_open = False
                lane.until = min(offset, lane.until)
                self._to_seek.add(lane)
            self._changed.notify()

    def end(self) -> None:
        """Commit and leave the group, as soon as it can."""
        with self._changed:
            if not self._ending.done():
                self._ending.set_result(None)
            self._changed.notify()

    async def ended(self) -> None:
        """Return when it has left the group."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def _raise_failure(self) -> None:
        if self.failed is not None:
            raise self.failed
        if self.away is not None and not self._to_ask:
            raise BrokerAwayError(self.away)

    # -- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            settings = self._settings
            consumer = kafka.Consumer({**settings.config, "error_cb": self._on_error})
            try:
                while not self._ending.done():
                    self._turn(consumer)
            finally:
                if not self._ending.done():
                    self._ending.set_result(None)
                self._store(consumer)
                consumer.close()
        except BaseException as error:
            self.failed = self.failed or error
        finally:
            self._ended.set_result(None)
            self._tell([])

    def _turn(self, consumer: kafka.Consumer) -> None:
        with self._changed:
            idle = False
            if not self._has_work():
                self._dozes = not self._to_store
                idle = not self._changed.wait(POLL_SECONDS if self._dozes else SHORT_SECONDS)
                idle = idle and self._dozes
                self._dozes = False
            wanted = self._polls = self._wanted
        self._seek(consumer)
        self._store(consumer)
        if self._to_ask or self._suspect:
            self._ask(consumer)
        if self._subscribed and (wanted or idle):
            # Without polls the group would expel it, however slow the handlers are.
            self._poll(consumer, wanted)

    def _has_work(self) -> bool:
        asked = self._wanted or self._to_ask or self._suspect or self._to_seek
        return bool(asked) or self._ending.done()

    def _poll(self, consumer: kafka.Consumer, wanted: bool) -> None:
        self._pause(consumer, [lane for lane in self._lanes.values() if lane.fullness() >= 1])
        self._resume(consumer, [lane for lane in self._lanes.values() if lane.fullness() < 0.5])
        # Not all at once: the library would wait until there are so many.
        messages = consumer.consume(1, self._patience if wanted else 0)
        self._patience = SHORT_SECONDS if messages else min(2 * self._patience, POLL_SECONDS)
        if messages and wanted:
            messages += consumer.consume(BATCH, 0)
        with self._changed:
            self._polls = False
            interrupted = wanted and not self._wanted
            self._wanted = self._wanted and not messages
        if messages or interrupted:
            self._take_in(messages)

    def _pause(self, consumer: kafka.Consumer, lanes: list[Lane]) -> None:
        if lanes := [lane for lane in lanes if not lane.paused]:
            consumer.pause([TopicPartition(self._settings.topic, one.number) for one in lanes])
        for lane in lanes:
            lane.paused = True
            self._ever_paused.add(lane.number)

    def _resume(self, consumer: kafka.Consumer, lanes: list[Lane]) -> None:
        if lanes := [lane for lane in lanes if lane.paused]:
            consumer.resume([TopicPartition(self._settings.topic, one.number) for one in lanes])
        for lane in lanes:
            lane.paused = False

    def _take_in(self, messages: Sequence[kafka.Message]) -> None:
        taken = []
        for message in messages:
            error = message.error()
            number = message.partition()
            if error is not None:
                self._on_message_error(error)
            elif number in self._lanes:
                taken.append((self._lanes[number], message))
        self._tell(taken)

    def _tell(self, taken: list[tuple[Lane, kafka.Message]]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._on_news, taken)
        except RuntimeError:  # closed: it came after the deadline
            pass

    def _on_news(self, taken: list[tuple[Lane, kafka.Message]]) -> None:
        for lane, message in taken:
            if not lane.waiting:
                self._full.append(lane)
            lane.waiting.append(message)
            lane.size += len(message)
        self._news.set()

    def _store(self, consumer: kafka.Consumer) -> None:
        with self._changed:
            to_store, self._to_store = self._to_store, {}
        offsets = [
            TopicPartition(self._settings.topic, lane.number, offset)
            for lane, offset in to_store.items()
            if lane.is_ours
        ]
        if not offsets:
            return
        self._patience = SHORT_SECONDS
        try:
            consumer.store_offsets(offsets=offsets)
        except KafkaException as error:  # another has the partition, which is told in a moment
            log.debug("offsets %r are not stored: %s", offsets, error)

    def _seek(self, consumer: kafka.Consumer) -> None:
        with self._changed:
            to_seek, self._to_seek = self._to_seek, set()
        for lane in to_seek:
            if self._lanes.get(lane.number) is lane and not self._ending.done():
                self._lanes[lane.number] = Lane(lane.number, paused=lane.paused)
                try:
                    consumer.seek(
                        TopicPartition(self._settings.topic, lane.number, int(lane.until))
                    )
                except KafkaException as error:  # as above
                    log.debug("offset %d is not sought: %s", lane.until, error)

    # -- whether the brokers answer ---------------------------------------------------------------

    def _on_error(self, error: KafkaError) -> None:
        """Called while polling."""
        self._errors.append(error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self.away is None:
            self._suspect = True
        if error.fatal():
            self._fail(RuntimeError(f"the consumer cannot go on: {error.str()}"))

    def _on_message_error(self, error: KafkaError) -> None:
        code = error.code()
        if code in WRONG:
            self._fail(PermissionError(f"topic {self._settings.topic!r}: {error.str()}"))
        elif code == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self._suspect = True
        elif code != KafkaError._PARTITION_EOF:
            log.warning("topic %r: %s", self._settings.topic, error.str())

    def _fail(self, error: BaseException) -> None:
        self.failed = self.failed or error
        self._tell([])

    def _ask(self, consumer: kafka.Consumer) -> None:
        """Find out whether the brokers answer."""
        self._errors.clear()
        until = time.monotonic() + AWAY_SECONDS
        away: str | None = ""
        while away is not None and not self._ending.done() and self.failed is None:
            try:
                for topic in self._settings.topics:
                    self._look_for(consumer, topic)
                away = None
            except KafkaException as error:
                # Whatever it knows of the reason comes only when it polls.
                if messages := consumer.consume(1, 0):
                    self._take_in(messages)
                away = self._why(error.args[0])
                if time.monotonic() >= until:
                    break
            except Exception as error:
                self._fail(error)
        if away is None and not self._subscribed:
            self._subscribed = True
            consumer.subscribe(
                [self._settings.topic],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
        self.away = away
        self._suspect = self._to_ask = False
        self._tell([])

    def _look_for(self, consumer: kafka.Consumer, topic: str) -> None:
        found = consumer.list_topics(topic, timeout=ASK_SECONDS).topics[topic]
        if found.error is None:
            return
        if found.error.code() in WRONG:
            raise PermissionError(f"topic {topic!r}: {found.error.str()}")
        if found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise KafkaException(found.error)
        if self._settings.create is None:
            raise LookupError(
                f"there is no topic {topic!r}: make it, or say create=True to have it made"
            )
        self._settings.create(topic)

    def _why(self, error: KafkaError) -> str:
        for known in self._errors:
            if known.code() in WRONG:
                self._fail(PermissionError(known.str()))
                return known.str()
        reasons = [one for one in self._errors if one.code() != KafkaError._ALL_BROKERS_DOWN]
        return str((reasons[-1] if reasons else error).str())

    # -- partitions come and go, while polling ----------------------------------------------------

    def _on_assign(self, _: kafka.Consumer, partitions: Sequence[TopicPartition]) -> None:
        for one in partitions:
            # It may still be paused from the last time that it was here.
            paused = one.partition in self._ever_paused
            self._lanes[one.partition] = Lane(one.partition, paused=paused)

    def _on_revoke(self, consumer: kafka.Consumer, partitions: Sequence[TopicPartition]) -> None:
        interval = self._settings.config.get("max.poll.interval.ms", MAX_POLL_INTERVAL)
        lanes = self._shut(partitions)
        self._leave(lanes, LEAVE_SHARE * float(interval) / 1000)
        # The library commits what is stored before another gets the partition.
        self._store(consumer)
        for lane in lanes:
            lane.is_ours = False

    def _on_lost(self, _: kafka.Consumer, partitions: Sequence[TopicPartition]) -> None:
        lanes = self._shut(partitions)
        for lane in lanes:
            lane.is_ours = False
        if lanes:
            log.warning(
                "partitions %s of topic %r were taken away without notice: what is not committed "
                "of them comes again",
                sorted(lane.number for lane in lanes),
                self._settings.topic,
            )
        self._leave(lanes, LOST_SECONDS)

    def _shut(self, partitions: Sequence[TopicPartition]) -> list[Lane]:
        lanes = [
            self._lanes.pop(one.partition) for one in partitions if one.partition in self._lanes
        ]
        for lane in lanes:
            lane.is_open = False
        return lanes

    def _leave(self, lanes: Sequence[Lane], seconds: float) -> None:
        """Have the owner finish what has begun of them; others wait for that."""
        if self.owner is None or not lanes or self._ending.done():
            return
        names: Collection[Hashable] = {(self._settings.topic, lane.number) for lane in lanes}
        leaving = self.owner.leave_lanes(names)
        try:
            left = asyncio.run_coroutine_threadsafe(leaving, self._loop)
        except RuntimeError:  # the loop is closed
            leaving.close()
            return
        futures.wait([left, self._ending], timeout=seconds, return_when=futures.FIRST_COMPLETED)
        left.cancel()
