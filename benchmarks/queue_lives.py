"""One life of a consumer: it handles what is there, each message that comes, and then nothing."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from statistics import median
from typing import Any

from attrs import frozen

from benchmarks.processors import only_on, sleeps
from benchmarks.queue_producers import Producer, producer
from benchmarks.queue_programs import Running, running
from benchmarks.statistic import percentile

SETTLE_SECONDS = 0.2  # until the last acknowledgements are gone
IDLE_SECONDS = 2.0
# Before each message whose latency is measured: the consumer is to wait for it, and not always at
# the same point of what it does at intervals.
PAUSE_SECONDS = (0.001, 0.005)
# The cluster of librdkafka that is the broker here answers no earlier, whatever comes.
KAFKA = {"fetch.wait.max.ms": 20}


@frozen(kw_only=True)
class Life:
    """What a consumer did.

    Attributes:
        rate: messages a second, of those that were there.
        latency, p99: seconds from before a message was put until its handler was entered: the
            median and the 99th percentile.
        wakes: how often a second it woke up without a message; None: not measured.
    """

    rate: float
    latency: float
    p99: float
    wakes: float | None


@frozen
class Scene:
    """What is to be done by a consumer, and where.

    Attributes:
        on: the processors for it.
        others: those for the broker, which is to leave it alone, and for who publishes.
    """

    kind: str
    messages: int
    latencies: int
    on: set[int]
    others: set[int]

    @contextmanager
    def broker(self) -> Iterator[Any]:  # a rig of that kind, each of which has more than all have
        """A new one each time: what a consumer leaves there must not change another's figures."""
        with only_on(self.others), import_module(f"tests.adapters.queues.{self.kind}").Rig() as rig:
            yield rig

    def live(self, program: str, *, idle: bool) -> Life:
        """The life of that program."""
        with self.broker() as rig, producer(self.kind, rig) as put:
            put.many(self.messages)
            where = json.dumps(_where(self.kind, rig))
            with running(program, self.kind, self.messages, where, on=self.on) as child:
                rate = (self.messages - 1) / child.number()
                time.sleep(SETTLE_SECONDS)
                latencies = [_latency(child, put) for _ in range(self.latencies)]
                time.sleep(SETTLE_SECONDS)
                wakes = _wakes(child) if idle else None
                child.end()
            if left := rig.left():
                raise RuntimeError(f"{program} {self.kind} left {left} messages")
        p99 = percentile(latencies, 99)
        return Life(rate=rate, latency=median(latencies), p99=p99, wakes=wakes)


def _where(kind: str, rig: Any) -> dict[str, Any]:
    if kind == "rabbitmq":
        return {"url": rig.url, "queue": rig.queue}  # with the usual heartbeats
    found: dict[str, Any] = rig.options()
    return {**found, "config": KAFKA} if kind == "kafka" else found


def _latency(child: Running, put: Producer) -> float:
    time.sleep(random.uniform(*PAUSE_SECONDS))
    at = time.monotonic()
    put.one()
    return child.number() - at


def _wakes(child: Running) -> float:
    before = sleeps(child.child.pid)
    time.sleep(IDLE_SECONDS)
    return (sleeps(child.child.pid) - before) / IDLE_SECONDS
