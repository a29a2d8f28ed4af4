"""A worker that handles the orders of a RabbitMQ queue.

    python examples/rabbitmq_worker.py

AMQP_URL in the environment names the broker. Start it as often as you like: the broker shares the
orders out. Ctrl-C or SIGTERM ends it: what it has begun is finished, the rest goes to the others.
"""

import os

from servicegroup import ServiceGroup
from servicegroup.adapters.queue import Message, Reject
from servicegroup.adapters.rabbitmq import RabbitConsumer


def pack(message: Message) -> None:
    order = message.json()
    if "number" not in order:
        raise Reject("it has no number")
    print(f"order {order['number']} is packed", flush=True)


url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")
group = ServiceGroup(name="shop")
group.add(RabbitConsumer(url, "orders", pack, concurrency=4, dead_letter="orders.dead"))
group.run()
