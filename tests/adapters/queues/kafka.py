"""Kafka, as far as librdkafka's own cluster is one; see kafka_server.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import confluent_kafka as kafka
from confluent_kafka import KafkaError, TopicPartition

from servicegroup.adapters.kafka import KafkaConsumer
from servicegroup.adapters.queue import Handler, QueueConsumer
from tests.adapters.queues import rig
from tests.child import PATIENCE

PARTITIONS = 4
GROUP = "billing"
CONFIG = {
    # When members come or go, this cluster waits for the others for a second less than this, not
    # for max.poll.interval.ms: busy machines need that time.
    "session.timeout.ms": 4000,
    "heartbeat.interval.ms": 200,
    # Of what is handled, no more than a few may be handled once more after a kill -9.
    "auto.commit.interval.ms": 1,
    # This cluster answers no earlier, whatever comes.
    "fetch.wait.max.ms": 20,
}


class Rig(rig.Rig):
    """`stop` and `kill` are the same: connections end at once, and the data stays."""

    is_up = False

    _server: subprocess.Popen[str] | None = None
    _producer: kafka.Producer | None = None

    def start(self) -> None:
        self.is_up = True
        if self._server is not None:
            self.tell("up")
            return
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kafka_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._of(self._server.stdout).readline().strip()

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.is_up = False
        self.tell("down")

    def close(self) -> None:
        self._producer = None
        self.is_up = False
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None

    def tell(self, what: str) -> None:
        """Have the server do something."""
        answer = self.ask(what)
        assert answer == "0", (what, answer)

    def ask(self, what: str) -> str:
        assert self._server is not None
        stdin = self._of(self._server.stdin)
        stdin.write(f"{what}\n")
        stdin.flush()
        return self._of(self._server.stdout).readline().strip()

    def _of(self, stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def set_up(self) -> None:
        self.tell(f"topic orders {PARTITIONS}")
        self.tell("topic dead 1")

    def options(self, port: int | None = None) -> dict[str, Any]:
        # The cluster tells its own address: a proxy would only see the first word.
        return {"servers": f"127.0.0.1:{port or self.port}"}

    @staticmethod
    def consumer(options: dict[str, Any], handler: Handler, **others: Any) -> QueueConsumer:
        config = {**CONFIG, **others.pop("config", {})}
        return KafkaConsumer(
            options["servers"],
            "orders",
            GROUP,
            handler,
            **{"dead_letter": "dead", "config": config, **others},
        )

    def publish(self, *bodies: str) -> None:
        self._publish(
            (self._partition(number, body, bodies), body) for number, body in enumerate(bodies)
        )

    def publish_to(self, partition: int, *bodies: str) -> None:
        self._publish((partition, body) for body in bodies)

    def _publish(self, messages: Iterable[tuple[int, str]]) -> None:
        if self._producer is None:
            self._producer = kafka.Producer(
                {"bootstrap.servers": self.address, "acks": "all", "log_level": 0, "linger.ms": 1}
            )
        errors: list[KafkaError | None] = []
        for partition, body in messages:
            self._producer.produce(
                "orders",
                value=body,
                partition=partition,
                on_delivery=lambda error, _: errors.append(error),
            )
            self._producer.poll(0)
        assert self._producer.flush(PATIENCE) == 0
        assert not any(errors), errors

    def _partition(self, number: int, body: str, bodies: Sequence[str]) -> int:
        if "hang" not in bodies:
            return number % PARTITIONS
        # What never ends holds up what comes behind it.
        return 0 if body == "hang" else 1 + number % (PARTITIONS - 1)

    def left(self) -> int:
        asker = self._asker(GROUP)
        try:
            partitions = [TopicPartition("orders", number) for number in range(PARTITIONS)]
            left = 0
            for one in asker.committed(partitions, timeout=PATIENCE):
                low, high = asker.get_watermark_offsets(one, timeout=PATIENCE)
                left += high - max(low, one.offset)
            return left
        finally:
            asker.close()

    def dead(self) -> list[tuple[str, str]]:
        return [
            (text(one.value()), text(dict(one.headers() or {}).get("reason")))
            for one in self.dead_messages()
        ]

    def dead_messages(self) -> list[kafka.Message]:
        """The dead letters, as the library has them."""
        asker = self._asker("asker")
        try:
            high = asker.get_watermark_offsets(TopicPartition("dead", 0), timeout=PATIENCE)[1]
            asker.assign([TopicPartition("dead", 0, 0)])
            found: list[kafka.Message] = []
            while len(found) < high:
                found += asker.consume(high - len(found), 1.0)
            return found
        finally:
            asker.close()

    def _asker(self, group: str) -> kafka.Consumer:
        return kafka.Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": group,
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )


def text(value: object) -> str:
    assert isinstance(value, bytes), value
    return value.decode()
