"""Handles the orders in a stream of Redis; those that cannot be handled go to `orders:dead`.

    python examples/redis_worker.py
    redis-cli XADD orders MAXLEN '~' 100000 '*' body '{"item": "tea"}' customer ann

REDIS_URL in the environment is another server. Start it twice, or on many machines: each order goes
to one of them. End it with Ctrl-C or SIGTERM: what it has begun is finished, the rest is for the
others.
"""

import logging
import os

from servicegroup import ServiceGroup
from servicegroup.adapters.queue import Message, RetryPolicy
from servicegroup.adapters.redis import RedisStreamConsumer


def handle(message: Message) -> None:
    order = message.json()  # what is no JSON goes to the dead letters at once
    logging.info("%s for %s", order["item"], message.headers.get("customer", "nobody"))


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
group = ServiceGroup(name="shop")
group.add(
    RedisStreamConsumer(
        os.environ.get("REDIS_URL", "redis://localhost"),
        stream="orders",
        group="billing",
        handler=handle,
        concurrency=4,
        retry=RetryPolicy(5, delay=1.0),
        dead_letter="orders:dead",
    )
)
group.run()
