"""`KafkaConsumer`: a topic of Kafka, over confluent-kafka."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from servicegroup._aio_executor import DaemonExecutor
from servicegroup.adapters._broker import Broker, BrokerAwayError, Delivery
from servicegroup.adapters._message import Message, RetryPolicy
from servicegroup.adapters.queue import AWAY, Handler, QueueConsumer
from servicegroup.restart import Restart

try:
    import confluent_kafka as kafka
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic  # whose other name is not typed

    from servicegroup.adapters._kafka_client import Client, Lane, Settings
except ImportError as error:
    raise ImportError(
        "KafkaConsumer needs confluent-kafka: pip install 'servicegroup[kafka]'"
    ) from error

ADDRESS = re.compile(
    r"((PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)://)?(\[[0-9a-fA-F:]+\]|[^\s:/,\[\]]+)(:\d{1,5})?"
)
TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
LIBRARY_LOG = logging.getLogger("servicegroup.adapters.kafka")
# Of each attempt to connect; that the brokers are away is told once, and each time it is looked.
LIBRARY_LOG.addFilter(lambda record: not record.getMessage().startswith("FAIL "))
CREATE_SECONDS = 10.0
REPORT_SECONDS = 0.5  # between looks whether a dead letter is still wanted

# What is handled is known here; the library is told, and commits.
OURS = {
    "bootstrap.servers": "servers",
    "metadata.broker.list": "servers",
    "group.id": "group",
    "enable.auto.commit": "nothing, since it commits what is handled",
    "enable.auto.offset.store": "nothing, since it stores what is handled",
}
DEFAULTS = {
    # A queue's consumer that comes late is to get what was put before.
    "auto.offset.reset": "earliest",
    "auto.commit.interval.ms": 1000,
    # While all brokers are away it tries again that often, for as long as that lasts.
    "reconnect.backoff.ms": 500,
    # What it has of a partition that is paused it fetches again; by default that can be 64 MiB.
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 8192,
    "fetch.queue.backoff.ms": 50,  # with less at hand, a second is too long
}


class KafkaConsumer(QueueConsumer):
    """Handles the messages of a topic; those of one group share its partitions.

    Those of a partition are handled one after the other, in order; `concurrency` is over
    partitions. What is handled is committed about once a second, and before a partition goes to
    another. A message whose handler raises holds its partition up until it is handled, or in the
    dead letters.

    Args:
        servers: where to find the brokers: `"host:port,host:port"`.
        topic: what to consume.
        group: of the consumers that share it.
        handler: what to do with each message.
        concurrency: how many partitions are worked on at a time.
        prefetch: how many messages may be in hand; by default 10 for each handler.
        retry: how often, and after what pauses, one is handled again whose handler raised.
        dead_letter: the topic for those that cannot be handled; the reason is in their headers.
        handler_timeout: seconds after which a handler is told as stalled.
        create: make a topic that is missing; otherwise that is an error.
        partitions, replication_factor: of a topic that is made; by default as the brokers say.
        config: of librdkafka, for everything else.
        name: what the group calls it; by default that of the topic.
        reconnect: the pauses between questions whether the brokers are back.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        group: str,
        handler: Handler,
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        dead_letter: str | None = None,
        handler_timeout: float = math.inf,
        create: bool = False,
        partitions: int | None = None,
        replication_factor: int | None = None,
        config: Mapping[str, Any] | None = None,  # strings, numbers, functions
        name: str | None = None,
        reconnect: Restart = AWAY,
    ) -> None:
        _check_servers(servers)
        _check_topic("topic", topic)
        if not _is_name(group):
            raise ValueError(f"KafkaConsumer: group must be a name, not {group!r}")
        if dead_letter is not None:
            _check_topic("dead_letter", dead_letter)
            if dead_letter == topic:
                raise ValueError(
                    f"KafkaConsumer: dead_letter must not be the topic {topic!r} itself"
                )
        _check_count("partitions", partitions, create)
        _check_count("replication_factor", replication_factor, create)
        super().__init__(
            handler,
            name=topic if name is None else name,
            concurrency=concurrency,
            prefetch=prefetch,
            retry=retry,
            handler_timeout=handler_timeout,
            reconnect=reconnect,
        )
        self._connection = {**(config or {}), "bootstrap.servers": servers}
        # As the brokers say, for brokers since 2.4.
        self._new_topic = (partitions or -1, replication_factor or -1) if create else None
        self._settings = Settings(
            config=_consumer_config(self._connection, config or {}, group),
            topic=topic,
            dead_letter=dead_letter,
            create=self._create if create else None,
            lane_limit=max(2, self._options.prefetch // (2 * concurrency)),
        )
        self._client: Client | None = None
        self._dead_letters: _DeadLetters | None = None

    async def run(self) -> None:
        self._dead_letters = None
        if self._settings.dead_letter is not None:
            self._dead_letters = _DeadLetters(self._connection, self._settings.dead_letter)
        try:
            await super().run()
        finally:
            if self._client is not None:
                self._client.end()
                self._client = None
            if self._dead_letters is not None:
                self._dead_letters.end()

    def _new_broker(self) -> Broker:
        if self._client is None or self._client.has_ended:
            self._client = Client(self._settings)
        return _KafkaBroker(self._client, self._dead_letters)

    def _create(self, topic: str) -> None:
        """Called on the client's thread."""
        assert self._new_topic is not None
        partitions, replication_factor = self._new_topic
        # One that makes topics takes no options of consumers, but warns of them only.
        admin = AdminClient({**self._connection, "log_level": 0})
        made = admin.create_topics(
            [NewTopic(topic, partitions, replication_factor)],
            operation_timeout=CREATE_SECONDS,
            request_timeout=CREATE_SECONDS,
        )[topic]
        try:
            made.result(CREATE_SECONDS)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return
            if error.args[0].retriable() or error.args[0].code() in _AWAY:
                raise
            raise ValueError(
                f"topic {topic!r} is missing and cannot be made: {error.args[0].str()}"
            ) from error


class _KafkaBroker(Broker):
    """The time from when the brokers are there until they are away, of a client that remains."""

    def __init__(self, client: Client, dead_letters: _DeadLetters | None) -> None:
        self.dead_letters = dead_letters is not None
        self._client = client
        self._dead_letters = dead_letters
        self._interrupted = asyncio.Event()

    async def open(self) -> None:
        self._client.owner = self.owner
        await self._client.ready()

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        taken = await self._client.take(limit, self._interrupted)
        return [self._delivery(lane, message) for lane, message in taken]

    def interrupt(self) -> None:
        self._interrupted.set()
        self._client.wake()

    def _delivery(self, lane: Lane, raw: kafka.Message) -> Delivery:
        topic, number, offset = raw.topic(), raw.partition(), raw.offset()
        assert offset is not None
        kind, published = raw.timestamp()
        message = Message(
            body=_bytes(raw.value()),
            headers={key: _bytes(value).decode(errors="replace") for key, value in _headers(raw)},
            id=f"{topic}/{number}/{offset}",
            first_seen=published / 1000 if kind != kafka.TIMESTAMP_NOT_AVAILABLE else time.time(),
            raw=raw,
        )
        return Delivery(message=message, token=(lane, offset), lane=(topic, number), broker=self)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._client.handled([one.token for one in deliveries])

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        # For a stop it is enough that they were not acknowledged.
        self._client.give_back([one.token for one in deliveries])

    async def bury(self, delivery: Delivery, reason: str) -> None:
        assert self._dead_letters is not None
        await self._dead_letters.bury(delivery.message.raw, reason)
        self._client.handled([delivery.token])

    async def close(self) -> None:
        # The library finds the brokers by itself, and is still a member when they are back.
        if self._client.away is None or self._client.failed is not None:
            self._client.end()
            await self._client.ended()


class _DeadLetters:
    """Puts messages to a topic, and waits until they are there."""

    def __init__(self, connection: Mapping[str, object], topic: str) -> None:
        self._config = _producer_config(connection)
        self._topic = topic
        self._thread = DaemonExecutor(f"{threading.current_thread().name} (kafka dead letters)", 1)
        self._producer: kafka.Producer | None = None
        self._burying: dict[str, asyncio.Future[None]] = {}
        self._ended = False

    async def bury(self, message: kafka.Message, reason: str) -> None:
        """Return when the brokers have it. Cancelled and called again, it is still put once."""
        key = f"{message.partition()}/{message.offset()}"
        burying = self._burying.get(key)
        if burying is None or burying.done():
            loop = asyncio.get_running_loop()
            burying = loop.run_in_executor(self._thread, self._put, message, reason)
            burying.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._burying[key] = burying
        await asyncio.shield(burying)
        del self._burying[key]

    def _put(self, message: kafka.Message, reason: str) -> None:
        if self._producer is None:
            self._producer = kafka.Producer(self._config)
        reports: list[KafkaError | None] = []
        headers = [pair for pair in _headers(message) if pair[0] != "reason"]
        headers.append(("reason", reason.encode()))
        self._producer.produce(
            self._topic,
            value=message.value(),
            key=message.key(),
            headers=headers,
            on_delivery=lambda error, _: reports.append(error),
        )
        while not reports and not self._ended:
            self._producer.poll(REPORT_SECONDS)
        if not reports:
            raise BrokerAwayError("stopped before a dead letter was put")
        if (error := reports[0]) is None:
            return
        if error.code() in _AWAY or error.retriable():
            raise BrokerAwayError(error.str())
        raise RuntimeError(f"the dead letters' topic {self._topic!r}: {error.str()}")

    def end(self) -> None:
        """Wait for nothing any more."""
        self._ended = True
        self._thread.shutdown(wait=False)


_AWAY = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._TRANSPORT,
}


def _bytes(value: object) -> bytes:
    """What the library has for nothing, a text or bytes."""
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else b""


def _check_servers(servers: object) -> None:
    if not isinstance(servers, str):
        raise TypeError(f"KafkaConsumer: servers must be 'host:port', not {servers!r}")
    for one in servers.split(","):
        if not ADDRESS.fullmatch(one.strip()):
            raise ValueError(
                f"KafkaConsumer: servers must be 'host:port', or some with commas, not {servers!r}"
            )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _check_count(what: str, count: object, create: bool) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"KafkaConsumer: {what} must be 1 or more, not {count!r}")
    if not create:
        raise ValueError(f"KafkaConsumer: {what} is only for create=True")


def _headers(message: kafka.Message) -> list[tuple[str, Any]]:
    """Pairs of names and bytes; a value may be None."""
    headers: Any = message.headers()  # its type allows what is for producers only
    return headers or []


def _check_topic(what: str, topic: object) -> None:
    if not isinstance(topic, str):
        raise TypeError(f"KafkaConsumer: {what} must be the name of a topic, not {topic!r}")
    if not TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError(
            f"KafkaConsumer: {what} must be 1 to 249 letters, digits, '.', '_' or '-', "
            f"not {topic!r}"
        )


def _consumer_config(
    connection: Mapping[str, Any], config: Mapping[str, Any], group: str
) -> dict[str, Any]:
    for key, instead in OURS.items():
        if key in config:
            raise ValueError(f"KafkaConsumer: {key!r} is not for config: use {instead}")
    for key in ("error_cb", "on_commit"):
        if key in config:
            raise ValueError(f"KafkaConsumer: {key!r} is not for config: errors are in the log")
    whole = {
        **DEFAULTS,
        "logger": LIBRARY_LOG,
        **connection,
        "group.id": group,
        "enable.auto.commit": True,
        "enable.auto.offset.store": False,
    }
    if config.get("group.protocol", "classic") == "classic":
        whole.setdefault("partition.assignment.strategy", "cooperative-sticky")
    try:
        # Without an address it connects to nothing.
        alone = {
            key: value for key, value in whole.items() if key not in ("bootstrap.servers", "logger")
        }
        kafka.Consumer({**alone, "log_level": 0}).close()
    except KafkaException as error:
        raise ValueError(f"KafkaConsumer: config: {error.args[0].str()}") from None
    except TypeError as error:
        raise TypeError(f"KafkaConsumer: config: {error}") from None
    return whole


def _producer_config(connection: Mapping[str, Any]) -> dict[str, Any]:
    own = {"acks": "all", "enable.idempotence": True}
    return {"logger": LIBRARY_LOG, "reconnect.backoff.ms": 500, **connection, **own}
