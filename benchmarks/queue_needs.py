"""What the queues need to be measured at all."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence

from attrs import frozen


@frozen
class Need:
    """Of one kind of queue.

    Attributes:
        consumer: the class in servicegroup.
        messages: so many take about as long with each kind.
        modules: the libraries.
        programs: of the server.
    """

    consumer: str
    messages: int
    modules: Sequence[str] = ()
    programs: Sequence[str] = ()


# RabbitMQ comes last: its server runs on until the end of the process.
KINDS = {
    "sqlite": Need("SqliteConsumer", 40_000),
    "kafka": Need("KafkaConsumer", 30_000, ["confluent_kafka"]),
    "nats": Need("NatsConsumer", 20_000, ["nats"], ["nats-server"]),
    "redis": Need("RedisStreamConsumer", 10_000, ["redis"], ["redis-server"]),
    "rabbitmq": Need("RabbitConsumer", 6_000, ["pika"], ["rabbitmq-server", "erl", "setpriv"]),
}


def missing(kind: str) -> str:
    """Why that kind cannot be measured; empty if it can."""
    # The servers are started as in the tests, which need pytest.
    for module in ("pytest", *KINDS[kind].modules):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed (the extra test has it)"
    for program in KINDS[kind].programs:
        if not (shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")):
            return f"{program} is missing (a Debian package has it)"
    return ""
