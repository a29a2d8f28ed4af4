"""Handles the orders in a stream of NATS; those that cannot be handled go to `dead.orders`.

    python examples/nats_worker.py
    nats pub --header customer:ann orders.new '{"item": "tea"}'

NATS_URL in the environment is another server, which must have JetStream. Start it twice, or on many
machines: each order goes to one of them. End it with Ctrl-C or SIGTERM: what it has begun is
finished, the rest is for the others.
"""

import logging
import os

from servicegroup import ServiceGroup
from servicegroup.adapters.nats import NatsConsumer
from servicegroup.adapters.queue import Message, RetryPolicy


def handle(message: Message) -> None:
    order = message.json()  # what is no JSON goes to the dead letters at once
    logging.info("%s for %s", order["item"], message.headers.get("customer", "nobody"))


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
group = ServiceGroup(name="shop")
group.add(
    NatsConsumer(
        os.environ.get("NATS_URL", "nats://localhost"),
        stream="ORDERS",
        subject="orders.*",
        durable="billing",
        handler=handle,
        concurrency=4,
        retry=RetryPolicy(5, delay=1.0),
        dead_letter="dead.orders",
    )
)
group.run()
