"""What fills the queues: beside each rig, since those of the tests are made for few messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import frozen

AT_A_TIME = 500
BODY = "x" * 100


@frozen
class Producer:
    """How to put messages; each is with the broker, or about to be, when it returns."""

    many: Callable[[int], object]
    one: Callable[[], object]


@contextmanager
def producer(kind: str, rig: Any) -> Iterator[Producer]:  # a rig of that kind
    """For the rig's queue."""
    with contextmanager(_KINDS[kind])(rig) as made:
        yield made


def _redis(rig: Any) -> Iterator[Producer]:
    client = rig.client

    def many(number: int) -> None:
        for begun in range(0, number, AT_A_TIME):
            rig.publish(*[BODY] * min(AT_A_TIME, number - begun))

    yield Producer(many, lambda: client.xadd("orders", {"body": BODY}))


def _rabbitmq(rig: Any) -> Iterator[Producer]:
    def many(number: int) -> None:
        for _ in range(number):
            rig.send(BODY)
        rig.left()  # on the same channel: answered when all of them have arrived

    yield Producer(many, lambda: rig.send(BODY))


def _kafka(rig: Any) -> Iterator[Producer]:
    from confluent_kafka import Producer as Library

    from tests.adapters.queues.kafka import PARTITIONS

    library = Library({"bootstrap.servers": rig.address, "linger.ms": 0, "log_level": 0})

    def many(number: int) -> None:
        for one in range(number):
            library.produce("orders", BODY, partition=one % PARTITIONS)
        library.flush()

    yield Producer(many, lambda: many(1))


def _nats(rig: Any) -> Iterator[Producer]:
    import nats

    with asyncio.Runner() as runner:
        client = runner.run(nats.connect(rig.options()["url"]))
        stream = client.jetstream()

        async def put(number: int) -> None:
            for begun in range(0, number, AT_A_TIME):
                some = range(min(AT_A_TIME, number - begun))
                await asyncio.gather(*(stream.publish("orders.new", BODY.encode()) for _ in some))

        yield Producer(lambda number: runner.run(put(number)), lambda: runner.run(put(1)))
        runner.run(client.close())


def _sqlite(rig: Any) -> Iterator[Producer]:
    from servicegroup.adapters.sqlite import SqliteQueue

    with SqliteQueue(rig.options()["path"], "orders") as queue:
        yield Producer(lambda number: queue.put_many([BODY] * number), lambda: queue.put(BODY))


_KINDS: dict[str, Callable[[Any], Iterator[Producer]]] = {
    "redis": _redis,
    "rabbitmq": _rabbitmq,
    "kafka": _kafka,
    "nats": _nats,
    "sqlite": _sqlite,
}
