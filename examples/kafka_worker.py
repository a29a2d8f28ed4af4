"""Handles the orders in a topic of Kafka; those that cannot be handled go to `orders.dead`.

    python examples/kafka_worker.py

KAFKA_SERVERS in the environment are other brokers. Start it twice, or on many machines: they share
the topic's partitions. End it with Ctrl-C or SIGTERM: what it has begun is finished and committed,
the rest is for the others.
"""

import logging
import os

from servicegroup import ServiceGroup
from servicegroup.adapters.kafka import KafkaConsumer
from servicegroup.adapters.queue import Message, RetryPolicy


def handle(message: Message) -> None:
    order = message.json()  # what is no JSON goes to the dead letters at once
    logging.info("%s for %s", order["item"], message.headers.get("customer", "nobody"))


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
group = ServiceGroup(name="shop")
group.add(
    KafkaConsumer(
        os.environ.get("KAFKA_SERVERS", "localhost:9092"),
        topic="orders",
        group="billing",
        handler=handle,
        concurrency=4,
        retry=RetryPolicy(5, delay=1.0),
        dead_letter="orders.dead",
    )
)
group.run()
