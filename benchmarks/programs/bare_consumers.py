"""The loop one writes by hand over the library of the kind that the argument says; SIGTERM ends it.

In one thread: as many messages at a time as the library gives, each handled and acknowledged.
Arguments: the kind, how many messages there are at first, and where they are, as JSON.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.programs.tally import Tally

BATCH = 200
LOOK_SECONDS = 0.05  # where nobody tells that there is something

# Any, here and below: what the libraries have for a message, and where the rigs say these are.


def redis(handler: Any, url: str) -> None:
    from redis import Redis

    client: Any = Redis.from_url(url, protocol=2)
    while True:
        for _, entries in client.xreadgroup(
            "billing", "bare", {"orders": ">"}, count=BATCH, block=3000
        ):
            for ident, fields in entries:
                handler(fields)
                client.xack("orders", "billing", ident)


def rabbitmq(handler: Any, url: str, queue: str) -> None:
    import pika

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        handler(body)
        channel.basic_ack(method.delivery_tag)

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=BATCH)
        channel.basic_consume(queue, on_message)
        channel.start_consuming()


def kafka(handler: Any, servers: str, config: dict[str, Any]) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "billing",
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
            **config,
        }
    )
    consumer.subscribe(["orders"])
    try:
        while True:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                handler(message)
                consumer.store_offsets(message)
    finally:
        consumer.close()  # commits


def nats(handler: Any, url: str) -> None:
    import asyncio

    import nats.errors

    async def consume() -> None:
        client = await nats.connect(url)
        pull = await client.jetstream().pull_subscribe("orders.*", "billing", "ORDERS")
        wanted = 1
        while True:
            try:
                messages = await pull.fetch(wanted, timeout=5)
            except nats.errors.TimeoutError:
                continue
            for message in messages:
                handler(message)
                await message.ack()
            # No more than there are: it would wait for the last of them until its time is over.
            wanted = max(1, min(BATCH, messages[-1].metadata.num_pending))

    asyncio.run(consume())


def sqlite(handler: Any, path: str) -> None:
    import sqlite3
    import time

    take = (
        "UPDATE messages SET due = ? WHERE id IN (SELECT id FROM messages "
        "WHERE queue = 'orders' AND due <= ? ORDER BY due, id LIMIT ?) RETURNING id, body"
    )
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = normal")
    while True:
        now = time.time()
        taken = connection.execute(take, (now + 30.0, now, BATCH)).fetchall()
        for ident, body in taken:
            handler(body)
            connection.execute("DELETE FROM messages WHERE id = ?", (ident,))
        if not taken:
            time.sleep(LOOK_SECONDS)


KINDS: dict[str, Callable[..., None]] = {
    "redis": redis,
    "rabbitmq": rabbitmq,
    "kafka": kafka,
    "nats": nats,
    "sqlite": sqlite,
}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    kind, messages, where = sys.argv[1:]
    KINDS[kind](Tally(int(messages)).note, **json.loads(where))


if __name__ == "__main__":
    main()
