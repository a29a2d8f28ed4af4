"""A consumer of the kind that the argument says, in a group; SIGTERM ends it.

Arguments: the kind, how many messages there are at first, and where they are, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.programs.tally import Tally
from servicegroup import ServiceGroup

CONCURRENCY = 4
PREFETCH = 200

# Any, here and below: where the messages are is told by each rig in its own words.


def redis(handler: Any, url: str, **given: Any) -> Any:
    from servicegroup.adapters.redis import RedisStreamConsumer

    return RedisStreamConsumer(url, stream="orders", group="billing", handler=handler, **given)


def rabbitmq(handler: Any, url: str, queue: str, **given: Any) -> Any:
    from servicegroup.adapters.rabbitmq import RabbitConsumer

    return RabbitConsumer(url, queue, handler, **given)


def kafka(handler: Any, servers: str, config: dict[str, Any], **given: Any) -> Any:
    from servicegroup.adapters.kafka import KafkaConsumer

    return KafkaConsumer(servers, "orders", "billing", handler, config=config, **given)


def nats(handler: Any, url: str, **given: Any) -> Any:
    from servicegroup.adapters.nats import NatsConsumer

    return NatsConsumer(
        url, stream="ORDERS", subject="orders.*", durable="billing", handler=handler, **given
    )


def sqlite(handler: Any, path: str, **given: Any) -> Any:
    from servicegroup.adapters.sqlite import SqliteConsumer, SqliteQueue

    return SqliteConsumer(SqliteQueue(path, "orders"), handler, **given)


KINDS: dict[str, Callable[..., Any]] = {
    "redis": redis,
    "rabbitmq": rabbitmq,
    "kafka": kafka,
    "nats": nats,
    "sqlite": sqlite,
}


def main() -> None:
    kind, messages, where = sys.argv[1:]
    tally = Tally(int(messages))
    group = ServiceGroup()
    group.add(
        KINDS[kind](tally.note, **json.loads(where), concurrency=CONCURRENCY, prefetch=PREFETCH)
    )
    group.start()


if __name__ == "__main__":
    main()
