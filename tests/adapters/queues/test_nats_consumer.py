"""What is particular to NATS, with real servers."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo

from servicegroup import AsyncGroup, ServiceGroup, ServiceGroupError, events
from servicegroup.adapters.nats import NatsConsumer
from servicegroup.adapters.queue import Message, RetryPolicy
from servicegroup.testing import wait_until
from tests.adapters.queues.nats import Rig
from tests.adapters.queues.program import SOON
from tests.adapters.queues.running import Seen, failure, patient_group, running
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
NAMES: dict[str, Any] = {"stream": "ORDERS", "durable": "billing", "subject": "orders.*"}


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        rig.kind = "nats"
        yield rig


def consumer_of(rig: Rig, handler: Callable[[Message], object], **others: Any) -> NatsConsumer:
    url = f"nats://127.0.0.1:{rig.port}"
    return NatsConsumer(url, handler=handler, **{**NAMES, "ack_wait": 1.5, **others})


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"servers": "http://localhost"}, ValueError, "must be like nats://host:4222"),
        ({"servers": "localhost:4222"}, ValueError, "must be like nats://host:4222"),
        ({"servers": "nats://u:secret@:1"}, ValueError, r"not 'nats://…@:1'"),
        ({"servers": "nats://localhost:x"}, ValueError, "the URL 'nats://localhost:x'"),
        ({"servers": []}, TypeError, "must be a URL, or several"),
        ({"servers": 4222}, TypeError, "must be a URL, or several"),
        ({"servers": ["nats://a", "ws://b"]}, ValueError, "all by WebSocket, or none"),
        ({"stream": ""}, ValueError, "stream must have no blanks"),
        ({"stream": "a.b"}, ValueError, "stream must have no blanks and none of"),
        ({"durable": 1}, TypeError, "durable must be a string, not 1"),
        ({"subject": "orders..new"}, ValueError, "words with dots between"),
        ({"subject": "orders.>.new"}, ValueError, "> at its end only"),
        ({"dead_letter": "dead.*"}, ValueError, "dead_letter must have no wildcards"),
        ({"dead_letter": "orders.dead"}, ValueError, "one of the subjects 'orders.\\*'"),
        ({"ack_wait": 0}, ValueError, "ack_wait must be 0.001 or more seconds, not 0"),
        ({"ack_wait": float("nan")}, ValueError, "ack_wait must be .*, not nan"),
        ({"ack_wait": "30"}, TypeError, "ack_wait must be a number, not '30'"),
        ({"passwort": "x"}, TypeError, "nats-py's connect.*passwort"),
        ({"allow_reconnect": True}, ValueError, "allow_reconnect is not passed to nats-py"),
        ({"handler": None}, TypeError, "handler must be callable, not None"),
        ({"concurrency": 0}, ValueError, "concurrency must be 1 or more, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    given = {"servers": "nats://localhost", "handler": print, **NAMES, **options}
    with pytest.raises(kind, match=said):
        NatsConsumer(**given)


def test_without_nats_py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    monkeypatch.delitem(sys.modules, "servicegroup.adapters.nats")
    with pytest.raises(ImportError, match=r"pip install 'servicegroup\[nats\]'"):
        importlib.import_module("servicegroup.adapters.nats")


def test_it_is_named_for_its_stream() -> None:
    assert NatsConsumer("nats://localhost", handler=print, **NAMES).name == "ORDERS"


# -- what must be there ---------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"user": "ann", "password": "wrong"}])
def test_a_wrong_password_fails_the_service(rig: Rig, given: dict[str, str]) -> None:
    rig.stop()
    rig.start("--user", "ann", "--pass", "secret")
    said = repr(failure(consumer_of(rig, print, **given)))
    assert f"127.0.0.1:{rig.port}" in said
    assert "Authorization Violation" in said


def test_a_subject_that_is_not_permitted_fails_the_service(rig: Rig) -> None:
    rig.stop()
    config = rig.directory / "server.conf"
    config.write_text(
        "authorization { users = [{user: ann, password: secret, "
        'permissions: {publish: "orders.>"}}] }'
    )
    rig.start("-c", str(config))
    said = repr(failure(consumer_of(rig, print, user="ann", password="secret")))
    assert "permissions violation for publish" in said.lower()


def test_credentials_that_are_missing_fail_the_service(rig: Rig) -> None:
    config = rig.directory / "server.conf"
    config.write_text("authorization { token: secret }")
    rig.stop()
    rig.start("-c", str(config))
    said = repr(failure(consumer_of(rig, print, token="wrong")))
    assert "Authorization Violation" in said
    with running(consumer_of(rig, print, token="secret")):
        pass


def test_what_is_missing_fails_the_service_if_it_is_not_to_be_made(rig: Rig) -> None:
    said = repr(failure(consumer_of(rig, print, create=False)))
    assert "no durable consumer 'billing' of stream 'ORDERS': make it, or give create" in said
    said = repr(failure(consumer_of(rig, print, create=False, stream="OTHER")))
    assert "no stream 'OTHER': make it, or give create=True" in said
    said = repr(failure(consumer_of(rig, print, stream="OTHER", subject=None)))
    assert "without a subject none can be made" in said
    with running(consumer_of(rig, print)):
        pass
    said = repr(failure(consumer_of(rig, print, create=False, dead_letter="other")))
    assert "no stream for the dead letters, of subject 'other'" in said


def test_what_is_missing_is_made(rig: Rig) -> None:
    async def delete(jetstream: JetStreamContext) -> None:
        for stream in ("ORDERS", "DEAD"):
            await jetstream.delete_stream(stream)

    rig.ask(delete)
    seen = Seen()
    with running(consumer_of(rig, seen, dead_letter="dead.orders")):
        rig.publish("reject", "two")
        seen.wait_for(2)
        wait_for(lambda: rig.left() == 0, rig.left)

    async def look(jetstream: JetStreamContext) -> tuple[ConsumerInfo, int]:
        info = await jetstream.consumer_info("ORDERS", "billing")
        return info, (await jetstream.stream_info("dead_orders")).state.messages

    info, dead = rig.ask(look)
    assert info.config.max_deliver == -1
    assert info.config.ack_wait == 1.5
    assert dead == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_deliver": 5}, "has max_deliver 5, after which messages would be stuck"),
        ({"deliver_subject": "push"}, "pushes, and must be one to pull from"),
        ({"filter_subject": "orders.new"}, r"filters \['orders.new'\], and not 'orders.\*'"),
    ],
)
def test_a_durable_consumer_that_does_not_fit_fails_the_service(
    rig: Rig, config: dict[str, Any], said: str
) -> None:
    async def add(jetstream: JetStreamContext) -> None:
        given = {"durable_name": "billing", "ack_policy": AckPolicy.EXPLICIT, **config}
        await jetstream.add_consumer("ORDERS", ConsumerConfig(**given))

    rig.ask(add)
    assert re.search(said, repr(failure(consumer_of(rig, print))))


def test_dead_letters_that_would_be_consumed_again_fail_the_service(rig: Rig) -> None:
    said = repr(failure(consumer_of(rig, print, subject=None, dead_letter="orders.dead")))
    assert "would come to the durable consumer 'billing' again" in said


def test_a_durable_consumer_that_is_deleted_fails_the_service(rig: Rig) -> None:
    async def delete(jetstream: JetStreamContext) -> None:
        await jetstream.delete_consumer("ORDERS", "billing")

    consumer = consumer_of(rig, print)
    consumer.name = "billing"
    group = ServiceGroup(signals=())
    group.subscribe(
        lambda event: rig.ask(delete) if isinstance(event, events.ServiceReady) else None
    )
    group.add(consumer)
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    assert "the durable consumer 'billing' of stream 'ORDERS' was deleted" in repr(
        caught.value.exceptions
    )


# -- messages -------------------------------------------------------------------------------------


def test_a_message_has_what_was_published_with_it(rig: Rig) -> None:
    async def put(jetstream: JetStreamContext) -> None:
        # A header that the server's own messages have, too.
        await jetstream.publish("orders.new", b"\xff", headers={"customer": "ann", "Status": "408"})

    rig.ask(put)
    at = time.time()
    seen = Seen()
    with running(consumer_of(rig, seen, dead_letter="dead")):
        wait_for(lambda: rig.dead_letters(), rig.left)
        wait_for(lambda: rig.left() == 0, rig.left)
    (message,) = seen.messages
    assert message.body == b"\xff"
    assert message.headers == {"customer": "ann", "Status": "408"}
    assert (message.id, message.attempt) == ("ORDERS:1", 1)
    assert abs(message.first_seen - at) < PATIENCE
    assert message.raw.subject == "orders.new"
    ((body, headers),) = rig.dead_letters()
    assert body == b"\xff"
    assert headers["reason"].startswith("the body is no UTF-8")
    assert (headers["customer"], headers["subject"]) == ("ann", "orders.new")


def test_a_dead_letter_obeys_no_orders_of_its_original(rig: Rig) -> None:
    async def put(jetstream: JetStreamContext) -> None:
        await jetstream.publish(
            "orders.new",
            b"reject",
            headers={"Nats-Expected-Stream": "ORDERS", "Nats-Msg-Id": "1"},
        )

    rig.ask(put)
    with running(consumer_of(rig, Seen(), dead_letter="dead")):
        wait_for(rig.dead, rig.left)
        wait_for(lambda: rig.left() == 0, rig.left)
    assert rig.dead() == [("reject", "not wanted")]


def test_a_dead_letter_that_was_stored_and_not_acknowledged_is_stored_once(rig: Rig) -> None:
    rig.publish("reject")
    consumer = consumer_of(rig, Seen(), dead_letter="dead")

    async def bury_twice() -> None:
        first, second = consumer._new_broker(), consumer._new_broker()
        try:
            await first.open()
            (delivery,) = await first.fetch(1)
            first.ack = lambda _: asyncio.sleep(0)  # type: ignore[assignment,method-assign]
            await first.bury(delivery, "the first")
            await first.close()
            await second.open()
            (delivery,) = await second.fetch(1)
            assert delivery.message.attempt == 2
            await second.bury(delivery, "the second")
        finally:
            await first.close()
            await second.close()

    asyncio.run(bury_twice())
    assert rig.dead() == [("reject", "the first")]


def test_a_dead_letter_of_the_largest_size_has_no_room_for_headers_and_stays(rig: Rig) -> None:
    size = 2**20

    async def put(jetstream: JetStreamContext) -> None:
        await jetstream.publish("orders.new", b"reject".ljust(size))
        await jetstream.publish("orders.new", b"reject".ljust(size - 200), headers={"a": "b" * 100})

    rig.ask(put)
    seen = Seen()
    with running(consumer_of(rig, seen, dead_letter="dead")) as told:
        wait_for(lambda: len(rig.dead_letters()) == 1, rig.left)
        seen.wait_for(2)
        wait_for(lambda: rig.left() == 1, rig.left)
        assert events.ServiceNotReady not in told
    ((body, headers),) = rig.dead_letters()
    assert (len(body), headers["reason"]) == (size - 200, "not wanted")


def test_what_is_rejected_without_dead_letters_is_dropped(rig: Rig) -> None:
    rig.publish("reject", "two")
    seen = Seen()
    with running(consumer_of(rig, seen)):
        seen.wait_for(2)
        wait_for(lambda: rig.left() == 0, rig.left)
    assert sorted(seen.bodies) == [b"reject", b"two"]


def test_what_is_in_hand_for_long_is_not_delivered_again(rig: Rig) -> None:
    rig.publish(*bodies(3))
    seen, other = Seen(), Seen()
    seen.open.clear()
    # A third of this may pass between two signs of life, and the rest for nothing.
    consumer = consumer_of(rig, seen, ack_wait=5.0)
    with running(consumer):
        wait_for(lambda: consumer.in_hand == 3, lambda: consumer.in_hand)
        with running(consumer_of(rig, other, ack_wait=5.0)):
            time.sleep(7.0)  # more than it would take
            assert other.bodies == []
            seen.open.set()
            wait_for(lambda: rig.left() == 0, rig.left)
    assert Counter(seen.bodies) == Counter(body.encode() for body in bodies(3))


def test_one_that_finishes_before_it_stops_takes_nothing_more(rig: Rig) -> None:
    """Its pull is taken back: what is published later does not wait for its end."""

    async def look(jetstream: JetStreamContext) -> int:
        return (await jetstream.consumer_info("ORDERS", "billing")).num_waiting or 0

    busy, other = Seen(), Seen()
    busy.open.clear()
    rig.publish("one")
    group = patient_group()
    group.add(consumer_of(rig, busy, ack_wait=60.0))
    thread = threading.Thread(target=group.start)
    thread.start()
    try:
        busy.wait_for(1)
        wait_for(lambda: rig.ask(look) == 1, rig.left)
        group.stop()
        wait_for(lambda: rig.ask(look) == 0, rig.left)
        rig.publish("two")
        with running(consumer_of(rig, other)):
            other.wait_for(1)
        assert (other.bodies, other.messages[0].attempt) == ([b"two"], 1)
        assert thread.is_alive()
    finally:
        busy.open.set()
        thread.join(PATIENCE)
    assert busy.bodies == [b"one"]
    assert rig.left() == 0


def test_what_is_to_come_again_at_once_does(rig: Rig) -> None:
    attempts: dict[str, list[int]] = {}

    async def handle(message: Message) -> None:
        attempts.setdefault(message.text(), []).append(message.attempt)
        if message.attempt == 1:
            raise ValueError("not yet")

    rig.publish(*map(str, range(30)))
    at_once = RetryPolicy(5, delay=0.0, jitter=0.0)
    with running(consumer_of(rig, handle, concurrency=4, retry=at_once, ack_wait=10 * PATIENCE)):
        wait_for(lambda: rig.left() == 0, lambda: attempts)
    assert attempts == {str(number): [1, 2] for number in range(30)}


def test_what_was_given_back_often_is_not_worn_out(rig: Rig) -> None:
    wanted = {f"wait {number} 0.2" for number in range(8)}
    rig.publish(*sorted(wanted))
    # Single messages come after this time only, from servers of version 2.9; some more than once.
    seconds = 10.0
    for number in range(5):
        with Consumer(rig, concurrency=1, attempts=1, ack_wait=seconds) as consumer:
            consumer.wait_for("ready")  # those before may have handled more than one each
            wait_until(lambda n=number: len(handled(rig)) > 2 * n, timeout=PATIENCE + 5 * seconds)  # type: ignore[misc]
            consumer.send(signal.SIGTERM)
            assert consumer.end() == 0, consumer.stderr
    with Consumer(rig, attempts=1, concurrency=8):
        wait_until(lambda: wanted <= set(handled(rig)), timeout=PATIENCE + 5 * seconds)
    assert max(Counter(handled(rig)).values()) == 1
    assert rig.dead() == []


# -- a server that is away ------------------------------------------------------------------------


def test_it_starts_while_the_server_is_away_and_stops_at_once(rig: Rig) -> None:
    rig.stop()
    with Consumer(rig) as consumer:
        wait_for(lambda: "the broker is away" in consumer.stderr, lambda: consumer.stderr)
        assert f"127.0.0.1:{rig.port}" in consumer.stderr
        assert consumer.said("ready") == []
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        assert consumer.seconds_to_stop < SOON
        assert "Traceback" not in consumer.stderr


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_ends_under_load_and_comes_back_loses_nothing(rig: Rig, how: str) -> None:
    wanted = bodies(300)
    rig.publish(*wanted)
    with Consumer(rig, concurrency=2, prefetch=10, seconds=0.005, attempts=99) as consumer:
        wait_for(lambda: len(handled(rig)) > 50, lambda: handled(rig))
        getattr(rig, how)()
        consumer.wait_for("away")
        rig.start()
        consumer.wait_for("ready")
        wait_until_handled(rig, set(wanted))
        wait_for(lambda: rig.left() == 0, rig.left)
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        assert "never retrieved" not in consumer.stderr
    assert rig.dead() == []


def test_a_server_that_hangs_does_not_hold_up_a_stop(rig: Rig) -> None:
    rig.publish("one")
    with Consumer(rig, stop_timeout=15.0) as consumer:
        wait_until_handled(rig, {"one"})
        rig.send(signal.SIGSTOP)
        try:
            consumer.send(signal.SIGTERM)
            assert consumer.end() == 0, consumer.stderr
            assert consumer.seconds_to_stop < 15.0
        finally:
            rig.send(signal.SIGCONT)


# -- how it runs ----------------------------------------------------------------------------------


def test_an_idle_consumer_hardly_wakes(rig: Rig) -> None:
    with Consumer(rig, ack_wait=30.0) as consumer:
        consumer.wait_for("ready")
        rig.publish("one")
        wait_until_handled(rig, {"one"})
        wait_for(lambda: rig.left() == 0, rig.left)
        assert is_idle(consumer, 5.0, 10)


def test_the_same_object_runs_again(rig: Rig) -> None:
    seen = Seen()
    consumer = consumer_of(rig, seen)
    for number in range(3):
        with running(consumer):
            rig.publish(f"order-{number}")
            seen.wait_for(number + 1)
    assert seen.bodies == [body.encode() for body in bodies(3)]
    assert rig.left() == 0


def test_two_share_the_messages_in_an_async_group(rig: Rig) -> None:
    seen: list[bytes] = []

    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        seen.append(message.body)

    rig.publish(*bodies(100))
    group = AsyncGroup()
    for number in range(2):
        group.add(consumer_of(rig, handle), name=f"consumer-{number}")
    thread = threading.Thread(target=group.start)
    thread.start()
    try:
        wait_for(lambda: len(seen) == 100 and rig.left() == 0, lambda: seen)
    finally:
        group.stop()
        thread.join(PATIENCE)
    assert Counter(seen) == Counter(body.encode() for body in bodies(100))


def test_the_example_handles_orders_and_buries_what_is_none(rig: Rig) -> None:
    async def put(jetstream: JetStreamContext) -> None:
        await jetstream.publish("orders.new", b'{"item": "tea"}', headers={"customer": "ann"})
        await jetstream.publish("orders.new", b"no JSON")

    rig.ask(put)
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "nats_worker.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NATS_URL": f"nats://127.0.0.1:{rig.port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    guard = threading.Timer(PATIENCE, child.kill)
    guard.start()
    try:
        assert child.stdout is not None
        while "tea for ann" not in (line := child.stdout.readline()):
            assert line, "it ended"
        wait_for(lambda: rig.left() == 0, rig.left)
        child.send_signal(signal.SIGTERM)
        output = child.stdout.read()
        assert child.wait(PATIENCE) == 0, output
    finally:
        guard.cancel()
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def test_the_page_shows_the_example() -> None:
    program = (ROOT / "examples" / "nats_worker.py").read_text()
    page = (ROOT / "docs" / "nats.md").read_text()
    assert "(../examples/nats_worker.py)" in page
    assert "NatsConsumer(" in program
