"""What is particular to Kafka."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as kafka
import pytest

from servicegroup import AsyncGroup, events
from servicegroup.adapters import _kafka_client
from servicegroup.adapters._kafka_client import FULL_MESSAGES
from servicegroup.adapters.kafka import KafkaConsumer
from servicegroup.adapters.queue import Message, RetryPolicy
from tests.adapters.queues import running
from tests.adapters.queues.kafka import CONFIG, GROUP, PARTITIONS, Rig
from tests.adapters.queues.program import SOON, STOP
from tests.adapters.queues.running import PAUSE, patient_group
from tests.adapters.queues.test_queues import (
    Consumer,
    bodies,
    handled,
    meet,
    wait_for,
    wait_until_handled,
)
from tests.child import PATIENCE

pytestmark = pytest.mark.slow  # each with a server

ROOT = Path(__file__).resolve().parents[3]


def nothing(message: Message) -> None:
    """A handler that finds all in order."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        rig.kind = "kafka"
        yield rig


class Running(running.Running):
    consumer: KafkaConsumer

    def __init__(self, rig: Rig, handler: Any = None, **options: Any) -> None:
        self._rig = rig
        super().__init__(handler, **options)

    def _make(self, options: dict[str, Any]) -> KafkaConsumer:
        config = {**CONFIG, **options.pop("config", {})}
        given = {"topic": "orders", "group": GROUP, "config": config, **options}
        self.consumer = KafkaConsumer(self._rig.address, handler=self._handle, **given)
        return self.consumer

    def __exit__(self, *_: object) -> None:
        client: Any = self.consumer._client
        self.stop()
        if client is not None and self._rig.is_up:
            # The library would wait for long for a broker that is gone meanwhile.
            wait_for(client._ended.done, lambda: "it never left the group")


def put(rig: Rig, body: bytes | None, partition: int = 0, **others: Any) -> None:
    """As the library does it, with what is not text."""
    producer = kafka.Producer({"bootstrap.servers": rig.address, "log_level": 0})
    producer.produce("orders", value=body, partition=partition, **others)
    assert producer.flush(PATIENCE) == 0


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"servers": "http://localhost:9092"}, ValueError, "servers must be 'host:port'"),
        ({"servers": "localhost:port"}, ValueError, "servers must be 'host:port'"),
        ({"servers": ""}, ValueError, "servers must be 'host:port'.* not ''"),
        ({"servers": 9092}, TypeError, "servers must be 'host:port', not 9092"),
        ({"topic": ""}, ValueError, "topic must be 1 to 249 letters"),
        ({"topic": "or ders"}, ValueError, "topic must be .* not 'or ders'"),
        ({"topic": b"orders"}, TypeError, "topic must be the name of a topic, not b'orders'"),
        ({"group": ""}, ValueError, "group must be a name, not ''"),
        ({"dead_letter": "orders"}, ValueError, "dead_letter must not be the topic 'orders'"),
        ({"dead_letter": "a/b"}, ValueError, "dead_letter must be 1 to 249"),
        ({"partitions": 0, "create": True}, ValueError, "partitions must be 1 or more, not 0"),
        ({"partitions": 4}, ValueError, "partitions is only for create=True"),
        ({"replication_factor": 3}, ValueError, "replication_factor is only for create=True"),
        ({"config": {"nonsense": 1}}, ValueError, "config: .*nonsense"),
        ({"config": {"session.timeout.ms": "x"}}, ValueError, "config: .*session.timeout.ms"),
        ({"config": {"ssl.ca.location": "/no", "security.protocol": "ssl"}}, ValueError, "ssl.ca"),
        ({"config": {"group.id": "x"}}, ValueError, "'group.id' is not for config: use group"),
        ({"config": {"enable.auto.commit": True}}, ValueError, "'enable.auto.commit' is not for"),
        ({"config": {"error_cb": print}}, ValueError, "'error_cb' is not for config"),
        ({"handler": None}, TypeError, "handler must be callable, not None"),
        ({"concurrency": 0}, ValueError, "concurrency must be 1 or more, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    good: dict[str, Any] = {
        "servers": "localhost",
        "topic": "orders",
        "group": GROUP,
        "handler": nothing,
    }
    with pytest.raises(kind, match=f"^KafkaConsumer: .*{said}"):
        KafkaConsumer(**{**good, **options})


@pytest.mark.parametrize("servers", ["a", "a:1,b:2", "[::1]:9092", "SASL_SSL://a.example:9093, b"])
def test_servers_are_named_in_many_ways(servers: str) -> None:
    assert KafkaConsumer(servers, "orders", GROUP, nothing).name == "orders"


def test_without_confluent_kafka_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "servicegroup.adapters.kafka")
    with pytest.raises(ImportError, match=r"pip install 'servicegroup\[kafka\]'"):
        importlib.import_module("servicegroup.adapters.kafka")


@pytest.mark.parametrize("options", [{"topic": "nowhere"}, {"dead_letter": "nowhere"}])
def test_a_topic_that_is_missing_is_named(rig: Rig, options: dict[str, Any]) -> None:
    failure = Running(rig, **options).failure()
    assert "there is no topic 'nowhere': make it, or say create=True" in failure


def test_a_password_that_cannot_be_told_fails_it(rig: Rig) -> None:
    config = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "ann",
        "sasl.password": "wrong",
    }
    assert "SASL" in Running(rig, config=config).failure()


@pytest.mark.parametrize("code", [29, 30])  # TOPIC_, GROUP_AUTHORIZATION_FAILED
def test_who_may_not_consume_fails(rig: Rig, code: int) -> None:
    rig.tell(f"fail 11 {' '.join([str(code)] * 10)}")  # of JoinGroup
    assert "authoriz" in Running(rig).failure().lower()


# -- messages -------------------------------------------------------------------------------------


def test_a_message_has_what_was_published(rig: Rig) -> None:
    at = time.time()
    put(rig, b'{"item": "tea"}', 2, key="ann", headers={"to": "Zo\u00eb", "none": None})
    with Running(rig) as running:
        running.wait_until_seen('{"item": "tea"}')
    (message,) = running.seen
    assert message.json() == {"item": "tea"}
    assert message.headers == {"to": "Zo\u00eb", "none": ""}
    assert message.id == "orders/2/0"
    assert message.attempt == 1
    assert abs(message.first_seen - at) < PATIENCE
    assert message.raw.key() == b"ann"


def test_what_has_no_body_or_cannot_be_decoded_does_no_harm(rig: Rig) -> None:
    put(rig, None)
    put(rig, b"\xff\xfe", key="ann", headers=[("a", b"1"), ("reason", b"old"), ("a", b"\xff")])
    put(rig, b"good")
    with Running(rig, lambda message: message.text(), dead_letter="dead") as running:
        running.wait_until_seen("", "good")
        wait_for(lambda: rig.left() == 0, rig.left)
    (dead,) = rig.dead_messages()
    assert (dead.value(), dead.key()) == (b"\xff\xfe", b"ann")
    headers: Any = dead.headers()
    assert headers[:2] == [("a", b"1"), ("a", b"\xff")]
    assert headers[2][0] == "reason"
    assert headers[2][1].startswith(b"the body is no UTF-8")
    assert len(headers) == 3


def test_poison_without_dead_letters_holds_up_its_partition_and_no_other(rig: Rig) -> None:
    for number in range(50):
        put(rig, b"raise" if not number else b"behind")
        put(rig, b"other %d" % number, 1)

    def handle(message: Message) -> None:
        if message.text() == "raise":
            raise ValueError("no good")

    with Running(rig, handle, retry=RetryPolicy(2, delay=0.01), concurrency=2) as running:
        running.wait_until_seen(*(f"other {number}" for number in range(50)))
        wait_for(lambda: running.texts.count("raise") > 3, lambda: running.texts)
        assert "behind" not in running.texts
        assert [one.attempt for one in running.seen if one.text() == "raise"][:4] == [1, 2, 3, 4]
    assert rig.left() == 50


def test_a_partition_that_hangs_leaves_room_for_others_and_memory(rig: Rig) -> None:
    release = threading.Event()
    rig.publish_to(0, "hang", *["behind"] * (3 * FULL_MESSAGES))
    with Running(
        rig, lambda message: message.text() == "hang" and release.wait(), concurrency=2
    ) as running:
        running.wait_until_seen("hang")
        rig.publish_to(1, "one", "two")
        running.wait_until_seen("one", "two")
        rig.publish_to(2, *bodies(500))
        running.wait_until_seen(*bodies(500))
        client: Any = running.consumer._client
        wait_for(lambda: client._lanes[0].paused, lambda: client._lanes)
        assert len(client._lanes[0].waiting) < 2 * FULL_MESSAGES
        release.set()
        # What was paused goes on where it was: nothing is missing, nothing comes twice.
        wait_for(lambda: running.texts.count("behind") >= 3 * FULL_MESSAGES, lambda: client._lanes)
        wait_for(lambda: rig.left() == 0, rig.left)
    assert Counter(running.texts)["behind"] == 3 * FULL_MESSAGES
    offsets = [message.raw.offset() for message in running.seen if message.raw.partition() == 0]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.slow
def test_each_partition_is_in_order_also_when_one_of_many_is_killed(rig: Rig, number: int) -> None:
    wanted = bodies(800)
    options: Any = {"concurrency": 4, "prefetch": 40, "seconds": 0.005, "attempts": 99}
    consumers = [Consumer(rig, **options) for _ in range(number)]
    try:
        meet(rig, consumers)
        met = len(handled(rig))
        rig.publish(*wanted)
        wait_for(lambda: len(handled(rig)) > met + 100, lambda: handled(rig))
        os.kill(consumers[0].pid, signal.SIGKILL)
        wait_until_handled(rig, set(wanted))
    finally:
        for consumer in consumers:
            consumer.__exit__(None, None, None)
    partitions = defaultdict[int, list[int]](list)
    for body in filter(wanted.__contains__, handled(rig)):
        order = int(body.removeprefix("order-"))
        partitions[order % PARTITIONS].append(order)
    assert len(partitions) == PARTITIONS
    for orders in partitions.values():
        # For the first time, each comes after those before it; some of the killed one come twice.
        firsts = list(dict.fromkeys(orders))
        assert firsts == sorted(firsts)
        assert sum(1 for one, two in itertools.pairwise(orders) if two < one) <= 1


# -- the group ------------------------------------------------------------------------------------


# This cluster waits for members no longer than for a session, instead of max.poll.interval.ms.
PATIENT = {"session.timeout.ms": 9_000}
# The leader, who was here before, is to hear of each new group after the other. They ask to join in
# this order: the other, the leader, the leader once it has given partitions away, the other.
FOLLOWERS_FIRST = "late 11 0 1500 1500 0"


@pytest.mark.slow
def test_who_joins_gets_partitions_whose_messages_are_finished_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "servicegroup.adapters.kafka")
    for _ in range(10):
        caplog.clear()
        with Rig() as rig:
            first, second = hand_over(rig)
        # Where its leader was the first to ask for its partitions, this cluster has the others join
        # once more, and until they have it takes no offsets. A real one does neither.
        if not any("SyncGroup error" in one for one in caplog.messages):
            break
    assert Counter(first + second) == Counter(bodies(8))
    assert second


def hand_over(rig: Rig) -> tuple[list[str], list[str]]:
    """What each of two has handled, of which the second came when the first was at work."""
    release = threading.Event()
    rig.publish(*bodies(8))

    def hold(message: Message) -> None:
        release.wait()

    config = {**PATIENT, "debug": "cgrp"}
    with Running(rig, hold, concurrency=PARTITIONS, config=config) as first:
        first.wait_until_seen(*bodies(PARTITIONS))
        wait_for(lambda: first.consumer.in_hand == 8, lambda: first.consumer.in_hand)
        rig.tell(FOLLOWERS_FIRST)
        with Running(rig, config=config) as second:
            second.wait_for()
            # It lets go what it has not begun of two partitions.
            wait_for(lambda: first.consumer.in_hand == 6, lambda: first.consumer.in_hand)
            assert second.seen == []
            release.set()
            wait_for(lambda: len(first.seen) + len(second.seen) >= 8, lambda: first.texts)
            wait_for(lambda: rig.left() == 0, rig.left)
    return first.texts, second.texts


@pytest.mark.slow
def test_who_joins_gets_what_fails_meanwhile_without_its_pause(rig: Rig) -> None:
    release = threading.Event()
    rig.publish(*bodies(PARTITIONS))

    def fail(message: Message) -> None:
        release.wait()
        raise ValueError("no good")

    pause = RetryPolicy(99, delay=10 * PATIENCE, max_delay=10 * PATIENCE)
    options: Any = {"concurrency": PARTITIONS, "retry": pause, "config": PATIENT}
    with Running(rig, fail, **options) as first:
        first.wait_until_seen(*bodies(PARTITIONS))
        rig.tell(FOLLOWERS_FIRST)
        with Running(rig, config=PATIENT) as second:
            second.wait_for()
            leaving: Any = first.consumer._client
            wait_for(lambda: len(leaving._lanes) == 2, lambda: leaving._lanes)
            release.set()
            wait_for(lambda: len(second.seen) == 2, lambda: second.texts)
            wait_for(lambda: rig.left() == 2, rig.left)


def test_who_is_expelled_tells_what_may_come_again_and_goes_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with Running(rig) as running:
        rig.publish(*bodies(8))
        running.wait_until_seen(*bodies(8))
        rig.tell("fail 12 25")  # Heartbeat: an unknown member
        wait_for(
            lambda: "partitions [0, 1, 2, 3] of topic 'orders' were taken away" in caplog.text,
            lambda: caplog.text,
        )
        rig.publish("more")
        running.wait_until_seen("more")


def test_a_handler_may_take_longer_than_the_interval_of_polls(rig: Rig) -> None:
    # More than may be in hand, of all partitions: nothing more is wanted.
    others = [f"other-{number}" for number in range(10 * PARTITIONS)]
    rig.publish_to(0, "slow")
    rig.publish(*others)
    config = {"session.timeout.ms": 5000, "max.poll.interval.ms": 5000}
    with Running(
        rig, lambda message: time.sleep(8.0 if message.text() == "slow" else 0.0), config=config
    ) as running:
        running.wait_until_seen("slow", *others)
        wait_for(lambda: rig.left() == 0, rig.left)
    assert Counter(running.texts) == Counter(["slow", *others])


def test_who_stops_leaves_the_group(rig: Rig) -> None:
    rig.publish("one")
    with Running(rig) as running:
        running.wait_until_seen("one")
        assert rig.ask("left") == "0"
    assert rig.ask("left") == "1"
    assert rig.left() == 0


def test_what_a_handler_leaves_by_an_exit_comes_again(rig: Rig) -> None:
    rig.publish_to(0, *bodies(20))

    def leave(message: Message) -> None:
        if message.text() == "order-5":
            raise SystemExit(3)

    before = set(threading.enumerate())
    assert "SystemExit(3)" in Running(rig, leave).failure()
    # Its client commits what was handled, and is gone.
    wait_for(lambda: set(threading.enumerate()) <= before, threading.enumerate)
    with Running(rig) as running:
        running.wait_until_seen(*bodies(20)[5:])
        wait_for(lambda: rig.left() == 0, rig.left)
    assert "order-4" not in running.texts


# -- the broker is away ---------------------------------------------------------------------------


def test_it_starts_before_its_broker_and_a_stop_then_is_answered_at_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.publish("one")
    rig.kill()
    with Running(rig, reconnect=PAUSE) as running:
        wait_for(lambda: "the broker is away" in caplog.text, lambda: caplog.text)
        client: Any = running.consumer._client
        assert "refused" in client.away
        assert running.stop() < SOON
        assert events.ServiceReady not in running.events
    with Consumer(rig) as consumer:
        wait_for(lambda: "the broker is away" in consumer.stderr, lambda: consumer.stderr)
        rig.start()
        consumer.wait_for("ready")
        wait_until_handled(rig, {"one"})
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr


def test_a_broker_that_is_gone_for_a_while_loses_nothing(rig: Rig) -> None:
    wanted = bodies(600)
    rig.publish(*wanted)
    with Consumer(rig, concurrency=4, seconds=0.005, attempts=99) as consumer:
        consumer.wait_for("ready")
        wait_for(lambda: len(handled(rig)) > 50, lambda: consumer.stderr)
        rig.kill()
        consumer.wait_for("away")
        rig.start()
        consumer.wait_for("ready")
        wait_until_handled(rig, set(wanted))
        wait_for(lambda: rig.left() == 0, rig.left)
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        assert consumer.seconds_to_stop < SOON
    assert rig.dead() == []


def test_a_blip_is_not_told_and_breaks_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kafka_client, "AWAY_SECONDS", PATIENCE)
    config = {"session.timeout.ms": 30_000}  # it remains a member
    with Running(rig, config=config) as running:
        running.wait_for()
        for number in range(3):
            rig.publish(f"order-{number}")
            running.wait_until_seen(f"order-{number}")
            rig.kill()
            rig.start()
        rig.publish("last")
        running.wait_until_seen("last")
        wait_for(lambda: rig.left() == 0, rig.left)
    assert events.ServiceNotReady not in running.events
    assert Counter(running.texts) == Counter(["order-0", "order-1", "order-2", "last"])


def test_a_stop_after_the_broker_is_gone_for_good_is_quick(rig: Rig) -> None:
    rig.publish(*bodies(4))
    with Running(rig, reconnect=PAUSE) as running:
        running.wait_until_seen(*bodies(4))
        rig.close()
        running.wait_for(kind=events.ServiceNotReady)
        assert running.stop() < SOON


def test_a_dead_letter_waits_for_the_broker(rig: Rig) -> None:
    hold = threading.Event()

    def handle(message: Message) -> None:
        hold.wait()
        raise ValueError("no good")

    rig.publish("bad")
    config = {"session.timeout.ms": 30_000}  # it remains a member
    options: Any = {"retry": RetryPolicy(1), "dead_letter": "dead", "config": config}
    with Running(rig, handle, **options) as running:
        running.wait_until_seen("bad")
        rig.kill()
        hold.set()
        running.wait_for(kind=events.ServiceNotReady)
        rig.start()
        wait_for(lambda: rig.left() == 0, rig.left)
    assert rig.dead() == [("bad", "ValueError('no good')")]


# -- around it ------------------------------------------------------------------------------------


def test_the_same_object_runs_again_and_again_and_among_others_in_one_loop(rig: Rig) -> None:
    seen: list[str] = []

    async def handle(message: Message) -> None:
        seen.append(message.text())

    consumer = KafkaConsumer(rig.address, "orders", GROUP, handle, config=CONFIG)
    for number in range(3):
        group = patient_group()
        group.add(AsyncGroup(stop_timeout=STOP, shutdown_timeout=STOP)).add(consumer)
        thread = threading.Thread(target=group.start)
        thread.start()
        rig.publish(f"order-{number}")
        wait_for(lambda: len(seen) > number, lambda: seen)  # noqa: B023
        group.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert seen == bodies(3)


def test_it_ends_its_threads(rig: Rig) -> None:
    before = set(threading.enumerate())
    with Running(rig, dead_letter="dead") as running:
        running.wait_for()
    wait_for(lambda: set(threading.enumerate()) <= before, threading.enumerate)


@pytest.mark.slow
def test_nothing_of_ours_wakes_up_when_idle(rig: Rig) -> None:
    with Consumer(rig) as consumer:
        consumer.wait_for("ready")
        rig.publish("one")
        wait_until_handled(rig, {"one"})
        time.sleep(3.0)  # until waits are as long as they get

        def count() -> int:
            total = 0
            for task in Path(f"/proc/{consumer.pid}/task").iterdir():
                # The library's own are `rdk:main` and one for each broker.
                if not (task / "comm").read_text().startswith("rdk:"):
                    status = (task / "status").read_text()
                    total += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
            return total

        def wakes() -> int:
            before = count()
            time.sleep(10.0)
            return count() - before

        # The second time is for what has begun late.
        assert wakes() < 20 or wakes() < 20


def test_the_example_handles_an_order(rig: Rig) -> None:
    put(rig, b'{"item": "tea"}', headers={"customer": "ann"})
    put(rig, b"no JSON")
    rig.tell("topic orders.dead 1")
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "kafka_worker.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "KAFKA_SERVERS": rig.address},
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        guard = threading.Timer(PATIENCE, child.kill)
        guard.start()
        try:
            assert child.stderr is not None
            output = ""
            for line in child.stderr:
                output += line
                if "goes to the dead letters" in line:
                    break
            child.send_signal(signal.SIGTERM)
            output += child.stderr.read()
            assert child.wait(PATIENCE) == 0, output
        finally:
            guard.cancel()
            child.kill()
    assert "tea for ann" in output
