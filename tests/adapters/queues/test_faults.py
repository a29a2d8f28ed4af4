"""Brokers that go away and networks that do what networks do: nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.adapters.queues.program import SOON
from tests.adapters.queues.proxy import Proxy
from tests.adapters.queues.rig import KINDS, Rig, rig_of
from tests.adapters.queues.test_queues import (
    Consumer,
    bodies,
    handled,
    wait_for,
    wait_until_handled,
)

pytestmark = pytest.mark.slow  # each with a server

# SQLite has no server, and Kafka's clients go to where its brokers say they are.
REMOTE = [kind for kind in KINDS if kind not in ("sqlite", "kafka")]


@pytest.fixture(params=REMOTE)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig_of(request.param)() as rig:
        rig.kind = request.param
        yield rig


@pytest.fixture
def proxy(rig: Rig) -> Iterator[Proxy]:
    with Proxy(rig.port) as proxy:
        yield proxy


def settle_all(rig: Rig, consumer: Consumer, wanted: list[str]) -> None:
    """All are handled and acknowledged, and the consumer stops in time."""
    wait_until_handled(rig, set(wanted))
    wait_for(lambda: rig.left() == 0, rig.left)
    consumer.send(signal.SIGTERM)
    assert consumer.end() == 0, consumer.stderr
    assert consumer.seconds_to_stop < SOON
    assert rig.dead() == []


def test_connections_that_are_reset_lose_nothing(rig: Rig, proxy: Proxy) -> None:
    wanted = bodies(300)
    rig.publish(*wanted)
    with Consumer(rig, proxy.port, concurrency=4, seconds=0.005, attempts=99) as consumer:
        for part in (50, 120, 190):
            wait_for(lambda part=part: len(handled(rig)) > part, lambda: consumer.stderr)  # type: ignore[misc]
            assert proxy.reset() > 0
            consumer.wait_for("away")
            consumer.wait_for("ready")
        settle_all(rig, consumer, wanted)


def test_bytes_that_come_one_by_one_are_understood(rig: Rig, proxy: Proxy) -> None:
    proxy.size = 1
    wanted = bodies(10)
    rig.publish(*wanted)
    with Consumer(rig, proxy.port) as consumer:
        settle_all(rig, consumer, wanted)


@pytest.mark.slow
def test_a_slow_network_slows_down_and_loses_nothing(rig: Rig, proxy: Proxy) -> None:
    wanted = bodies(60)
    rig.publish(*wanted)
    proxy.seconds = 0.2
    with Consumer(rig, proxy.port, concurrency=4, attempts=99) as consumer:
        settle_all(rig, consumer, wanted)


@pytest.mark.slow
def test_a_network_that_swallows_everything_for_a_while_loses_nothing(
    rig: Rig, proxy: Proxy
) -> None:
    wanted = bodies(300)
    rig.publish(*wanted)
    with Consumer(rig, proxy.port, concurrency=4, seconds=0.005, attempts=99) as consumer:
        wait_for(lambda: len(handled(rig)) > 50, lambda: consumer.stderr)
        proxy.open.clear()
        time.sleep(10.0)  # the fault itself
        proxy.open.set()
        settle_all(rig, consumer, wanted)


@pytest.mark.slow
def test_a_stop_while_the_network_swallows_everything_meets_its_deadline(
    rig: Rig, proxy: Proxy
) -> None:
    rig.publish(*bodies(50))
    with Consumer(rig, proxy.port, seconds=0.005, attempts=99, stop_timeout=15.0) as consumer:
        wait_for(lambda: len(handled(rig)) > 5, lambda: consumer.stderr)
        proxy.open.clear()
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        assert consumer.seconds_to_stop < 15.0
    with Consumer(rig, attempts=99) as consumer:
        settle_all(rig, consumer, bodies(50))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_is_gone_for_a_while_loses_nothing(rig: Rig, how: str) -> None:
    wanted = bodies(300)
    rig.publish(*wanted)
    with Consumer(rig, concurrency=4, seconds=0.005, attempts=99) as consumer:
        consumer.wait_for("ready")
        wait_for(lambda: len(handled(rig)) > 50, lambda: consumer.stderr)
        getattr(rig, how)()
        consumer.wait_for("away")
        rig.start()
        consumer.wait_for("ready")
        settle_all(rig, consumer, wanted)


def test_it_starts_before_its_broker_and_a_stop_then_is_answered_at_once(rig: Rig) -> None:
    rig.publish("one")
    rig.stop()
    with Consumer(rig) as consumer:
        wait_for(lambda: "the broker is away" in consumer.stderr, lambda: consumer.stderr)
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        assert consumer.seconds_to_stop < SOON
        assert consumer.said("ready") == []
    with Consumer(rig) as consumer:
        wait_for(lambda: "the broker is away" in consumer.stderr, lambda: consumer.stderr)
        rig.start()
        consumer.wait_for("ready")
        settle_all(rig, consumer, ["one"])
