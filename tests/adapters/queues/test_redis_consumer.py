"""What is particular to streams of Redis."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from servicegroup import events
from servicegroup.adapters.queue import Message, Reject, Retry, RetryPolicy
from servicegroup.adapters.redis import LOOK_SECONDS, RETURNED, RedisStreamConsumer
from servicegroup.aio import AsyncGroup
from tests.adapters.queues import running
from tests.adapters.queues.program import SOON, STOP
from tests.adapters.queues.proxy import Proxy
from tests.adapters.queues.redis import CLAIM_IDLE, Rig
from tests.adapters.queues.running import PAUSE, patient_group
from tests.adapters.queues.test_queues import (
    Consumer,
    bodies,
    handled,
    is_idle,
    wait_for,
    wait_until_handled,
)
from tests.child import PATIENCE

pytestmark = pytest.mark.slow  # each with a server

ROOT = Path(__file__).resolve().parents[3]
NAMES: Any = {"stream": "orders", "group": "billing"}


def nothing(message: Message) -> None:
    """A handler that finds all in order."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        rig.kind = "redis"
        yield rig


class Running(running.Running):
    consumer: RedisStreamConsumer

    def __init__(self, rig: Rig, handler: Any = None, **options: Any) -> None:
        super().__init__(handler, **{"url": rig.url, **options})

    def _make(self, options: dict[str, Any]) -> RedisStreamConsumer:
        given = {"claim_idle": CLAIM_IDLE, **NAMES, **options}
        self.consumer = RedisStreamConsumer(handler=self._handle, **given)
        return self.consumer


def consumers(rig: Rig) -> list[str]:
    """The names in the group, without that of what was given back."""
    found = [one["name"] for one in rig.client.xinfo_consumers("orders", "billing")]
    return [name for name in found if name != RETURNED]


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"url": "http://localhost"}, ValueError, "url makes no sense: .*redis://"),
        ({"url": "redis://localhost:port"}, ValueError, "url makes no sense"),
        ({"url": "redis://localhost/orders"}, ValueError, "'orders' is no number of a database"),
        ({"url": 6379}, TypeError, "url must be a str, not 6379"),
        ({"stream": ""}, ValueError, "stream must not be empty"),
        ({"stream": b"orders"}, TypeError, "stream must be a str, not b'orders'"),
        ({"group": ""}, ValueError, "group must not be empty"),
        ({"body_field": ""}, ValueError, "body_field must not be empty"),
        ({"dead_letter": "orders"}, ValueError, "dead_letter must not be the stream 'orders'"),
        ({"claim_idle": 0}, ValueError, "claim_idle must be from 0.1 to 86400 seconds, not 0"),
        ({"claim_idle": float("nan")}, ValueError, "claim_idle must be .*, not nan"),
        ({"claim_idle": "60"}, TypeError, "claim_idle must be a number, not '60'"),
        ({"passwort": "x"}, TypeError, "redis-py does not take that: .*passwort"),
        ({"handler": None}, TypeError, "handler must be callable, not None"),
        ({"concurrency": 0}, ValueError, "concurrency must be 1 or more, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    given = {"url": "redis://localhost", "handler": nothing, **NAMES, **options}
    with pytest.raises(kind, match=said):
        RedisStreamConsumer(**given)


def test_without_redis_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio.connection", None)
    monkeypatch.delitem(sys.modules, "servicegroup.adapters.redis")
    with pytest.raises(ImportError, match=r"pip install 'servicegroup\[redis\]'"):
        importlib.import_module("servicegroup.adapters.redis")


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_wrong_password_fails_the_service(rig: Rig, password: str | None) -> None:
    rig.client.config_set("requirepass", "secret")
    failure = Running(rig, password=password).failure()
    assert f"Redis at 127.0.0.1:{rig.port}: " in failure
    assert "invalid username-password" in failure or "Authentication required" in failure
    with Running(rig, password="secret") as running:
        running.wait_for()


def test_a_user_who_may_not_unblock_fails_the_service_before_it_takes_anything(rig: Rig) -> None:
    rig.client.acl_setuser(
        "billing",
        enabled=True,
        passwords=["+secret"],
        keys=["*"],
        commands=["+@all", "-client|unblock"],
    )
    rig.publish("one")
    running = Running(rig, username="billing", password="secret")
    assert "client|unblock' command; it needs that to stop" in running.failure()
    assert running.seen == []


def test_a_missing_stream_or_group_is_made(rig: Rig) -> None:
    rig.client.delete("orders")
    with Running(rig) as running:
        running.wait_for()
        rig.publish("one")
        running.wait_until_seen("one")


def test_a_missing_stream_or_group_fails_the_service_if_it_is_not_to_be_made(rig: Rig) -> None:
    said = "the stream 'orders' has no group 'billing': make it with XGROUP CREATE"
    rig.client.xgroup_destroy("orders", "billing")
    assert said in Running(rig, create=False).failure()
    rig.client.delete("orders")
    assert said in Running(rig, create=False).failure()


def test_with_create_false_it_takes_the_group_that_is_there(rig: Rig) -> None:
    rig.publish("one")
    with Running(rig, create=False) as running:
        running.wait_until_seen("one")


def test_a_key_that_is_no_stream_fails_the_service(rig: Rig) -> None:
    rig.client.set("text", "")
    failure = Running(rig, stream="text").failure()
    assert "the stream 'text'" in failure
    assert "WRONGTYPE" in failure
    assert "dead_letter 'text' is no stream there, but a string" in (
        Running(rig, dead_letter="text").failure()
    )


@pytest.mark.parametrize(("start", "seen"), [("0", ["old", "new"]), ("$", ["new"])])
def test_a_group_that_is_made_begins_at_start(rig: Rig, start: str, seen: list[str]) -> None:
    rig.publish("old")
    with Running(rig, group="another", start=start) as running:
        running.wait_for()
        rig.publish("new")
        running.wait_until_seen("new")
    assert running.texts == seen


def test_a_unix_socket_and_a_database_are_named_in_the_url(rig: Rig) -> None:
    rig.stop()
    path = rig.directory / "redis.sock"
    rig.start("--unixsocket", str(path))
    with Running(rig, url=f"unix://{path}?db=3") as running:
        running.wait_for()
        with redis.Redis(unix_socket_path=str(path), db=3) as client:
            client.xadd("orders", {"body": "one"})
        running.wait_until_seen("one")


# -- messages -------------------------------------------------------------------------------------


def test_fields_are_the_body_and_the_headers(rig: Rig) -> None:
    ident = str(rig.client.xadd("orders", {"kind": "new", "body": "one", "by": "ann"}))
    with Running(rig) as running:
        wait_for(lambda: running.seen, lambda: running.events)
    (message,) = running.seen
    assert (message.body, message.headers) == (b"one", {"kind": "new", "by": "ann"})
    assert (message.id, message.attempt) == (ident, 1)
    assert abs(message.first_seen - time.time()) < PATIENCE
    assert message.raw == (ident.encode(), {b"kind": b"new", b"body": b"one", b"by": b"ann"})


def test_an_entry_without_the_field_of_the_body_has_headers_only(rig: Rig) -> None:
    rig.client.xadd("orders", {"kind": "new"})
    rig.client.xadd("orders", {"kind": "new", "text": "one"})
    with Running(rig, body_field="text") as running:
        wait_for(lambda: len(running.seen) == 2, lambda: running.events)
    assert [(one.body, one.headers) for one in running.seen] == [
        (b"", {"kind": "new"}),
        (b"one", {"kind": "new"}),
    ]


def test_what_cannot_be_decoded_is_buried_as_it_was_published(rig: Rig) -> None:
    def handle(message: Message) -> None:
        message.text()

    rig.client.xadd("orders", {"body": b"\xff", "reason": b"none", "by": b"\xfe"})
    with Running(rig, handle, dead_letter="dead"):
        wait_for(lambda: rig.client.exists("dead"), rig.left)
        wait_for(lambda: rig.left() == 0, rig.left)
    with redis.Redis(port=rig.port) as client:
        ((_, entry),) = client.xrange("dead")
    assert entry.pop(b"reason").startswith(b"the body is no UTF-8")
    assert entry == {b"body": b"\xff", b"by": b"\xfe"}


def test_what_is_rejected_without_dead_letters_is_acknowledged(rig: Rig) -> None:
    def reject(message: Message) -> None:
        raise Reject("no")

    rig.publish("one")
    with Running(rig, reject) as running:
        running.wait_until_seen("one")
        wait_for(lambda: rig.left() == 0, rig.left)


def test_a_message_that_kills_its_consumers_goes_to_the_dead_letters(rig: Rig) -> None:
    rig.publish("wait it 60")
    for times in (1, 2):
        with Consumer(rig, attempts=2) as consumer:
            wait_for(lambda times=times: len(handled(rig)) == times, lambda: consumer.stderr)  # type: ignore[misc]
            os.kill(consumer.pid, signal.SIGKILL)
            consumer.end()
    with Consumer(rig, attempts=2):
        wait_for(rig.dead, rig.left)
    assert rig.dead() == [("wait it 60", "delivered 3 times, and not finished once")]
    assert handled(rig) == ["waits wait it 60"] * 2


def test_what_is_in_hand_for_long_is_not_taken_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servicegroup.adapters.redis.LOOK_SECONDS", 0.2)
    # A third of this may pass between two signs of life, and the rest for nothing.
    options = {"claim_idle": 5.0}
    done = threading.Event()

    def wait(message: Message) -> None:
        assert done.wait(PATIENCE)

    rig.publish("one")
    with Running(rig, wait, **options) as first:
        first.wait_until_seen("one")
        with Running(rig, **options) as other:
            other.wait_for()
            # It has looked for what is idle in all that time, again and again.
            time.sleep(7.0)
            done.set()
            wait_for(lambda: rig.left() == 0, rig.left)
    assert (first.texts, other.texts) == (["one"], [])


# -- the stop -------------------------------------------------------------------------------------


def test_an_idle_consumer_stops_at_once_and_takes_its_name_off_the_group(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servicegroup.adapters.redis.LOOK_SECONDS", PATIENCE)  # for a read
    rig.publish("one")
    with Running(rig) as running:
        running.wait_until_seen("one")
        wait_for(lambda: rig.left() == 0, rig.left)
        assert len(consumers(rig)) == 1
        assert running.stop() < SOON
    assert consumers(rig) == []


def test_a_stop_while_it_looks_for_what_others_have_left_reads_nothing_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servicegroup.adapters.redis.LOOK_SECONDS", PATIENCE)  # for a read
    with Proxy(rig.port) as proxy:
        proxy.seconds = 0.02  # each way: so that it is looking when it is ready
        with Running(rig, url=f"redis://127.0.0.1:{proxy.port}") as running:
            running.wait_for()
            # A read would last for as long as its end is waited for: a `STEP`.
            assert running.stop() < SOON


def test_what_is_given_back_is_taken_by_an_idle_consumer_soon_and_is_no_attempt(rig: Rig) -> None:
    begun = threading.Event()
    go_on = threading.Event()

    def wait(message: Message) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    options = {"claim_idle": 3600.0, "retry": RetryPolicy(1), "dead_letter": "dead"}
    rig.publish(*bodies(10))
    with Running(rig, wait, prefetch=10, **options) as first:
        assert begun.wait(PATIENCE)
        wait_for(lambda: first.consumer.in_hand == 10, lambda: first.consumer.in_hand)
        wait_for(lambda: not blocked(rig), lambda: first.texts)
        with Running(rig, **options) as other:
            other.wait_for()
            wait_for(lambda: blocked(rig), lambda: other.events)
            at = time.monotonic()
            stop = threading.Thread(target=first.stop)
            stop.start()
            other.wait_until_seen(*bodies(10)[1:])
            assert time.monotonic() - at < LOOK_SECONDS + SOON
            go_on.set()
            stop.join()
            wait_for(lambda: rig.left() == 0, rig.left)
    assert first.texts == ["order-0"]
    assert Counter(other.texts) == Counter(bodies(10)[1:])
    assert {message.attempt for message in other.seen} == {1}
    assert rig.dead() == []


def test_what_was_tried_before_a_stop_keeps_its_attempts(rig: Rig) -> None:
    def fail(message: Message) -> None:
        if message.attempt < 3:
            raise ValueError("not yet")
        raise Retry(after=60)

    rig.publish("one")
    with Running(rig, fail, retry=RetryPolicy(9, delay=0.0)) as running:
        wait_for(lambda: len(running.seen) == 3, lambda: running.seen)
        wait_for(lambda: running.consumer.failed == 3, lambda: running.seen)
    with Running(rig) as running:
        running.wait_until_seen("one")
    assert running.seen[0].attempt == 3


# -- connections ----------------------------------------------------------------------------------


def test_what_the_server_has_sent_and_nobody_has_got_is_taken_again(rig: Rig) -> None:
    with Running(rig, claim_idle=3600.0, dead_letter="dead", retry=RetryPolicy(1)) as running:
        rig.publish("one")
        running.wait_until_seen("one")
        wait_for(lambda: rig.left() == 0, rig.left)
        (name,) = consumers(rig)
        # In its name, as an answer that a connection has lost.
        with rig.client.pipeline() as pipeline:
            pipeline.xadd("orders", {"body": "two"})
            pipeline.xreadgroup("billing", name, {"orders": ">"})
            pipeline.execute()
        running.wait_until_seen("two")
        wait_for(lambda: rig.left() == 0, rig.left)
    assert [message.attempt for message in running.seen] == [1, 1]
    assert consumers(rig) == []


def test_a_server_that_does_not_answer_is_away_until_it_does(rig: Rig) -> None:
    with Running(rig, socket_timeout=0.5) as running:
        running.wait_for()
        server = rig.server
        os.kill(server, signal.SIGSTOP)
        try:
            running.wait_for(kind=events.ServiceNotReady)
        finally:
            os.kill(server, signal.SIGCONT)
        running.wait_for(2)
        rig.publish("one")
        running.wait_until_seen("one")


def test_a_stop_is_answered_while_the_server_is_away(rig: Rig) -> None:
    with Running(rig, reconnect=PAUSE) as running:
        running.wait_for()
        rig.kill()
        running.wait_for(kind=events.ServiceNotReady)
        assert running.stop() < SOON


def test_it_starts_while_the_server_is_away(rig: Rig) -> None:
    rig.publish("one")
    rig.stop()
    with Running(rig, reconnect=PAUSE) as running:
        running.wait_for(kind=events.ServiceStarting)
        assert running.stop() < SOON
    assert events.ServiceReady not in running.events
    with Running(rig) as running:
        running.wait_for(kind=events.ServiceStarting)
        rig.start()
        running.wait_until_seen("one")
        running.wait_for()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_ends_under_load_and_comes_back_loses_nothing(rig: Rig, how: str) -> None:
    wanted = bodies(1000)
    rig.publish(*wanted)
    with Consumer(rig, concurrency=4, seconds=0.001, attempts=99) as consumer:
        consumer.wait_for("ready")
        for share in (100, 400, 700):
            wait_for(lambda share=share: len(handled(rig)) > share, lambda: consumer.stderr)  # type: ignore[misc]
            getattr(rig, how)()
            consumer.wait_for("away")
            rig.start()
            consumer.wait_for("ready")
        wait_until_handled(rig, set(wanted))
        wait_for(lambda: rig.left() == 0, rig.left)
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
    # What it had in hand stays there, and is acknowledged later.
    assert max(Counter(handled(rig)).values()) == 1


@pytest.mark.parametrize("command", ["FLUSHALL", "XGROUP DESTROY orders billing"])
def test_a_group_that_is_deleted_is_made_again(rig: Rig, command: str) -> None:
    with Running(rig) as running:
        running.wait_for()
        wait_for(lambda: blocked(rig), lambda: running.events)
        tell(rig, command)
        running.wait_for(kind=events.ServiceNotReady)
        running.wait_for(2)
        rig.publish("one")
        running.wait_until_seen("one")


@pytest.mark.parametrize(
    ("refuse", "said", "again"),
    [
        ("CONFIG SET min-replicas-to-write 1", "NOREPLICAS", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "read only replica", "REPLICAOF NO ONE"),
    ],
)
def test_a_server_that_refuses_to_write_for_now_is_away(
    rig: Rig, caplog: pytest.LogCaptureFixture, refuse: str, said: str, again: str
) -> None:
    rig.publish("one")
    with Running(rig, lambda _: tell(rig, refuse)) as running:
        running.wait_for(kind=events.ServiceNotReady)
        wait_for(lambda: said in caplog.text, lambda: caplog.text)
        tell(rig, again)
        wait_for(lambda: rig.left() == 0, rig.left)
    assert running.texts == ["one"]
    assert running.error is None


def tell(rig: Rig, command: str) -> None:
    """Have the server do it."""
    rig.client.execute_command(*command.split())  # type: ignore[no-untyped-call]


def blocked(rig: Rig) -> bool:
    """Whether a consumer waits for messages."""
    return "b" in {client["flags"] for client in rig.client.client_list()}


# -- in its process -------------------------------------------------------------------------------


def test_an_idle_consumer_hardly_wakes(rig: Rig) -> None:
    with Consumer(rig, claim_idle=60.0) as consumer:
        consumer.wait_for("ready")
        rig.publish("one")
        wait_until_handled(rig, {"one"})
        wait_for(lambda: rig.left() == 0, rig.left)
        assert is_idle(consumer, 2 * LOOK_SECONDS, 2 * 2 * LOOK_SECONDS)


def test_the_same_object_runs_again_by_another_name(rig: Rig) -> None:
    running = Running(rig)
    names = set()
    for number in range(3):
        group = patient_group()
        group.add(running.consumer)
        thread = threading.Thread(target=group.start)
        thread.start()
        try:
            rig.publish(f"order-{number}")
            running.wait_until_seen(f"order-{number}")
            names.update(consumers(rig))
        finally:
            group.stop()
            thread.join(PATIENCE)
    assert running.texts == bodies(3)
    assert len(names) == 3  # so that a fork is no other's twin
    assert rig.left() == 0
    assert consumers(rig) == []


def test_it_runs_beside_others_in_an_async_group(rig: Rig) -> None:
    seen: list[bytes] = []

    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        seen.append(message.body)

    rig.publish(*bodies(100))
    group = AsyncGroup(stop_timeout=STOP, shutdown_timeout=STOP)
    for number in range(2):
        group.add(RedisStreamConsumer(rig.url, handler=handle, **NAMES), name=f"c{number}")
    thread = threading.Thread(target=group.start)
    thread.start()
    try:
        wait_for(lambda: len(seen) == 100 and rig.left() == 0, lambda: seen)
        wait_for(lambda: len(consumers(rig)) == 2, lambda: consumers(rig))
    finally:
        group.stop()
        thread.join(PATIENCE)
    assert Counter(seen) == Counter(body.encode() for body in bodies(100))
    assert consumers(rig) == []


@contextmanager
def example(rig: Rig) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "redis_worker.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": rig.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        guard = threading.Timer(PATIENCE, child.kill)
        guard.start()
        try:
            yield child
        finally:
            guard.cancel()
            child.kill()


def test_the_example_handles_orders_and_buries_what_is_none(rig: Rig) -> None:
    rig.client.xadd("orders", {"body": '{"item": "tea"}', "customer": "ann"})
    rig.client.xadd("orders", {"body": "no JSON"})
    with example(rig) as child:
        assert child.stdout is not None
        while "tea for ann" not in (line := child.stdout.readline()):
            assert line, "it ended"
        wait_for(lambda: rig.client.xlen("orders:dead") == 1, rig.left)
        wait_for(lambda: rig.left() == 0, rig.left)
        child.send_signal(signal.SIGTERM)
        output = child.stdout.read()
        assert child.wait(PATIENCE) == 0, output
