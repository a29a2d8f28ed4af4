"""What is particular to RabbitMQ, with real servers."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika
import pytest
import trustme

from servicegroup import AsyncGroup, Restart, ServiceGroup, ServiceGroupError, events
from servicegroup.adapters.queue import BrokerAwayError, Message, Reject, Retry, RetryPolicy
from servicegroup.adapters.rabbitmq import RabbitConsumer
from tests.adapters.queues.program import SOON
from tests.adapters.queues.proxy import Proxy
from tests.adapters.queues.rabbitmq import Rig
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
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        rig.kind = "rabbitmq"
        yield rig


@pytest.fixture
def quorum() -> Iterator[Rig]:
    rig = Rig()
    rig.arguments = QUORUM
    with rig:
        rig.kind = "rabbitmq"
        yield rig


@pytest.fixture
def name(rig: Rig) -> Iterator[str]:
    """Of queues that the test, or what it tests, may make."""
    name = f"made-{uuid.uuid4()}"
    yield name
    for queue in (name, f"{name}.dead"):
        rig.channel.queue_delete(queue)


class Seen:
    """A handler that keeps what it was called with, and waits while it is not `open`."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.open.wait()

    @property
    def bodies(self) -> list[str]:
        return [message.text() for message in self.messages]


@contextmanager
def running(consumer: RabbitConsumer) -> Iterator[list[events.Event]]:
    """It runs inside the block; what was told of it."""
    told: list[events.Event] = []
    group = patient_group()
    group.subscribe(told.append)
    group.add(consumer)
    with group:
        yield told


def times(told: list[events.Event], kind: type[events.Event]) -> int:
    return sum(isinstance(event, kind) for event in told)


def failure(consumer: RabbitConsumer) -> BaseException:
    """What it fails with, by itself."""
    group = ServiceGroup()
    group.add(consumer)
    guard = threading.Timer(PATIENCE, group.stop)
    guard.start()
    try:
        with pytest.raises(ServiceGroupError) as caught:
            group.start()
    finally:
        guard.cancel()
    return caught.value.exceptions[0]


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"url": "redis://there"}, ValueError, "url must begin with amqp:// or amqps://"),
        ({"url": "there:5672"}, ValueError, "url must begin with amqp:// or amqps://"),
        ({"url": "amqp://there:many/"}, ValueError, "url makes no sense: .*many"),
        ({"url": "amqp://there/?hartbeat=1"}, ValueError, "Unknown URL parameter: 'hartbeat'"),
        ({"url": "amqp://there/?heartbeat=soon"}, ValueError, "Invalid heartbeat value 'soon'"),
        ({"url": "amqp://user@there/"}, ValueError, "there is a user without a password"),
        ({"url": None}, TypeError, "url must be text that begins with amqp://"),
        ({"queue": ""}, ValueError, "queue must have 1 to 255 bytes, not ''"),
        ({"queue": "ä" * 128}, ValueError, "queue must have 1 to 255 bytes"),
        ({"queue": 5}, TypeError, "queue must be the name of a queue, not 5"),
        ({"dead_letter": ""}, ValueError, "dead_letter must have 1 to 255 bytes"),
        ({"dead_letter": "orders"}, ValueError, "dead_letter must not be the queue 'orders'"),
        ({"create": False, "arguments": QUORUM}, ValueError, "arguments are for a queue that is"),
        ({"arguments": {"x-queue-type": "stream"}}, ValueError, "a stream is no queue"),
        ({"prefetch": 65_536}, ValueError, "prefetch must be 65535 or less"),
        ({"concurrency": 7_000}, ValueError, "prefetch must be 65535 or less"),
        ({"concurrency": 0}, ValueError, "RabbitConsumer: concurrency must be 1 or more"),
        ({"handler": None}, TypeError, "RabbitConsumer: handler must be callable"),
        ({"retry": 3}, TypeError, "RabbitConsumer: retry must be a RetryPolicy"),
    ],
)
def test_what_makes_no_sense_is_refused(
    wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        RabbitConsumer(**{"url": NOWHERE, "queue": "orders", "handler": Seen(), **wrong})


def test_it_is_named_for_its_queue() -> None:
    assert RabbitConsumer(NOWHERE, "orders", Seen()).name == "orders"
    assert RabbitConsumer(NOWHERE, "orders", Seen(), name="worker").name == "worker"


def test_without_pika_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pika", None)
    monkeypatch.delitem(sys.modules, "servicegroup.adapters.rabbitmq")
    with pytest.raises(ImportError, match=r"pip install 'servicegroup\[rabbitmq\]'"):
        importlib.import_module("servicegroup.adapters.rabbitmq")


def test_parameters_of_pika_are_taken_and_left_as_they_are(rig: Rig) -> None:
    parameters = pika.ConnectionParameters("localhost", rig.port)
    seen = Seen()
    with running(RabbitConsumer(parameters, rig.queue, seen)):
        rig.publish("one")
        wait_for(lambda: seen.bodies == ["one"], lambda: seen.bodies)
    assert parameters.heartbeat is None


# -- what is wrong with them only the broker knows ------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp://guest:wrong@{}/", "amqp://guest@{}/: ACCESS_REFUSED - Login was refused"),
        ("amqp://guest:guest@{}/nowhere", "amqp://guest@{}/nowhere: NOT_ALLOWED - vhost nowhere"),
    ],
)
def test_what_the_broker_refuses_fails_the_service(rig: Rig, url: str, says: str) -> None:
    where = f"127.0.0.1:{rig.port}"
    error = failure(RabbitConsumer(url.format(where), "orders", Seen()))
    assert isinstance(error, PermissionError)
    assert str(error).startswith(says.format(where))


@pytest.mark.parametrize("missing", ["queue", "dead_letter"])
def test_a_queue_that_is_missing_is_named_or_created(rig: Rig, name: str, missing: str) -> None:
    names: dict[str, Any] = {
        "queue": rig.queue,
        "dead_letter": f"{rig.queue}-dead",
        missing: name,
    }
    error = failure(RabbitConsumer(rig.url, handler=Seen(), create=False, **names))
    assert isinstance(error, LookupError)
    assert f"no queue '{name}' in vhost '/': create it, or pass create=True" in str(error)
    with running(RabbitConsumer(rig.url, handler=Seen(), create=True, **names)):
        pass
    rig.channel.queue_declare(name, durable=True)  # raises if it has other properties


def test_with_create_false_what_is_there_is_used(quorum: Rig) -> None:
    seen = Seen()
    consumer = RabbitConsumer(
        quorum.url, quorum.queue, seen, create=False, dead_letter=f"{quorum.queue}-dead"
    )
    quorum.publish("one")
    with running(consumer):
        wait_for(lambda: seen.bodies == ["one"], lambda: seen.bodies)


def test_a_queue_with_other_arguments_fails_the_service(quorum: Rig) -> None:
    error = failure(RabbitConsumer(quorum.url, quorum.queue, Seen()))
    assert isinstance(error, ValueError)
    assert "inequivalent arg 'x-queue-type'" in str(error)
    assert "create=False" in str(error)


def test_the_dead_letters_are_of_the_same_kind_as_the_queue(rig: Rig, name: str) -> None:
    consumer = RabbitConsumer(rig.url, name, Seen(), dead_letter=f"{name}.dead", arguments=QUORUM)
    with running(consumer):
        pass
    for queue in (name, f"{name}.dead"):
        rig.channel.queue_declare(queue, durable=True, arguments=QUORUM)  # raises if it is not


# -- what comes in --------------------------------------------------------------------------------


def test_a_message_has_what_was_published_with_it(rig: Rig) -> None:
    headers = {
        "text": "ä",
        "bytes": b"\xff",
        "number": 5,
        "yes": True,
        "none": None,
        "when": datetime(2020, 1, 2, tzinfo=UTC),
        "table": {"list": [1, b"\xff"]},
    }
    rig.send("one", headers=headers, message_id="m-1", timestamp=1_700_000_000)
    rig.send("two")
    rig.send("three")
    seen = Seen()
    before = time.time()
    with running(RabbitConsumer(rig.url, rig.queue, seen)):
        wait_for(lambda: len(seen.messages) == 3, lambda: seen.bodies)
    one, two, three = seen.messages
    assert one.headers == {
        "text": "ä",
        "bytes": "\\xff",
        "number": "5",
        "yes": "true",
        "none": "null",
        "when": "2020-01-02 00:00:00+00:00",
        "table": json.dumps({"list": [1, str(b"\xff")]}),
    }
    assert (one.id, one.first_seen, one.attempt) == ("m-1", 1_700_000_000.0, 1)
    assert two.id != three.id
    assert before <= two.first_seen <= time.time()
    method, properties = one.raw
    assert (method.routing_key, properties.headers["number"]) == (rig.queue, 5)


def test_a_body_that_is_no_text_goes_to_the_dead_letters_as_it_is(rig: Rig) -> None:
    consumer = Rig.consumer(rig.options(), lambda message: message.text())
    rig.send(b"\xff\x00")
    assert isinstance(consumer, RabbitConsumer)
    with running(consumer):
        wait_for(rig.dead_letters, list)
    ((body, properties),) = rig.dead_letters()
    assert body == b"\xff\x00"
    assert properties.headers["reason"].startswith("the body is no UTF-8")


def test_a_classic_queue_tells_of_a_second_attempt_and_no_more(rig: Rig) -> None:
    rig.publish("hang")
    for _ in range(3):
        before = len(handled(rig))
        with Consumer(rig) as consumer:
            wait_for(lambda before=before: len(handled(rig)) > before, lambda: handled(rig))  # type: ignore[misc]
            os.kill(consumer.pid, signal.SIGKILL)
    seen = Seen()
    with running(RabbitConsumer(rig.url, rig.queue, seen)):
        wait_for(lambda: seen.messages, lambda: seen.bodies)
    assert seen.messages[0].attempt == 2


def test_a_quorum_queue_counts_and_what_kills_consumers_is_worn_out(quorum: Rig) -> None:
    quorum.publish("hang")
    for _ in range(3):
        before = len(handled(quorum))
        with Consumer(quorum, attempts=3) as consumer:
            wait_for(lambda before=before: len(handled(quorum)) > before, lambda: handled(quorum))  # type: ignore[misc]
            os.kill(consumer.pid, signal.SIGKILL)
    with Consumer(quorum, attempts=3):
        wait_for(quorum.dead, list)
    assert quorum.dead() == [("hang", "delivered 4 times, and not finished once")]
    assert len(handled(quorum)) == 3


def test_what_a_quorum_queue_was_given_back_once_is_not_worn_out(quorum: Rig) -> None:
    quorum.publish("wait 0.3", *bodies(5))
    with Consumer(quorum, prefetch=6, attempts=1) as consumer:
        wait_until_handled(quorum, {"waits wait 0.3"})
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
    with Consumer(quorum, attempts=1):
        wait_until_handled(quorum, {"wait 0.3", *bodies(5)})
    assert quorum.dead() == []
    assert len(handled(quorum)) == 7  # with the line of the one that waits


def test_the_count_of_another_queue_wears_nothing_out(rig: Rig) -> None:
    rig.send("one", headers={"x-delivery-count": 9})
    seen = Seen()
    consumer = RabbitConsumer(rig.url, rig.queue, seen, dead_letter=f"{rig.queue}-dead")
    with running(consumer):
        wait_for(lambda: seen.messages, rig.dead)
    assert seen.messages[0].attempt == 1


# -- what becomes of it ---------------------------------------------------------------------------


def test_an_acknowledgement_covers_nothing_that_is_not_handled(rig: Rig) -> None:
    rig.publish("one", "hang", *bodies(50))
    # The last of them come only when the broker has the acknowledgements of all but three.
    with Consumer(rig, concurrency=2, prefetch=4) as consumer:
        wait_until_handled(rig, {"one", "hangs hang", *bodies(50)})
        os.kill(consumer.pid, signal.SIGKILL)
    wait_for(lambda: rig.left() >= 1, rig.left)
    seen = Seen()
    with running(RabbitConsumer(rig.url, rig.queue, seen)):
        wait_for(lambda: "hang" in seen.bodies, lambda: seen.bodies)
    assert set(seen.bodies) <= {"hang", *bodies(50)[-3:]}


def test_no_more_than_the_prefetch_is_taken(rig: Rig) -> None:
    rig.publish(*bodies(10))
    seen = Seen()
    seen.open.clear()
    with running(RabbitConsumer(rig.url, rig.queue, seen, prefetch=3)):
        wait_for(lambda: rig.left() == 7, rig.left)
        rig.publish("one more")  # by then it would have taken more
        assert rig.left() == 8
        seen.open.set()


def test_after_a_new_connection_the_old_delivery_is_not_acknowledged(rig: Rig) -> None:
    rig.publish("one")
    seen = Seen()
    seen.open.clear()
    with Proxy(rig.port) as proxy:
        consumer = RabbitConsumer(rig.options(proxy.port)["url"], rig.queue, seen, concurrency=2)
        with running(consumer) as told:
            wait_for(lambda: seen.bodies == ["one"], lambda: seen.bodies)
            first, seen.open = seen.open, threading.Event()
            assert proxy.reset() == 1
            wait_for(lambda: seen.bodies == ["one", "one"], lambda: seen.bodies)
            first.set()
            wait_for(lambda: consumer.handled == 1, lambda: consumer.handled)
            assert consumer.in_hand == 1
            rig.publish("two")  # to see that the channel still works
            wait_for(lambda: len(seen.bodies) == 3, lambda: seen.bodies)
            assert consumer.in_hand == 2
            seen.open.set()
            wait_for(lambda: consumer.in_hand == 0, lambda: consumer.in_hand)
            wait_for(lambda: times(told, events.ServiceNotReady) == 1, lambda: told)
    assert rig.left() == 0


def test_without_dead_letters_the_policy_of_the_queue_has_what_is_rejected(
    rig: Rig, name: str
) -> None:
    rig.channel.queue_declare(f"{name}.dead", durable=True)
    policy = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}.dead"}

    def reject(message: Message) -> None:
        raise Reject("not wanted")

    with running(RabbitConsumer(rig.url, name, reject, arguments=policy)):
        rig.send("one", name)
        wait_for(lambda: rig.channel.basic_get(f"{name}.dead", auto_ack=True)[2] == b"one", str)


def test_a_dead_letter_has_the_headers_and_goes_nowhere_else(rig: Rig, name: str) -> None:
    rig.channel.queue_declare(name)
    headers = {"tenant": "ann", "CC": [name], "number": 5}
    reason = "\udcff" + "long " * 50_000

    def reject(message: Message) -> None:
        raise Reject(reason)

    rig.send("one", headers=headers, message_id="m-1", expiration="600000", delivery_mode=1)
    assert rig.channel.basic_get(name, auto_ack=True)[2] == b"one"
    consumer = RabbitConsumer(rig.url, rig.queue, reject, dead_letter=f"{rig.queue}-dead")
    with running(consumer):
        wait_for(lambda: rig.dead(), list)
        wait_for(lambda: consumer.in_hand == 0, str)
    ((_, properties),) = rig.dead_letters()
    assert properties.headers.pop("reason").startswith("\\udcfflong long")
    assert properties.headers == {"tenant": "ann", "number": 5}
    assert (properties.message_id, properties.expiration) == ("m-1", None)
    assert properties.delivery_mode == 2  # it survives a restart of the broker
    assert rig.channel.basic_get(name)[0] is None


def test_a_dead_letter_that_is_refused_is_not_lost(rig: Rig, name: str) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    rig.channel.queue_declare(name, durable=True, arguments=full)
    rig.send("in the way", name)

    def reject(message: Message) -> None:
        raise Reject("not wanted")

    rig.publish("one")
    with running(RabbitConsumer(rig.url, rig.queue, reject, dead_letter=name)) as told:
        wait_for(lambda: times(told, events.ServiceNotReady) >= 2, lambda: told)
        assert rig.channel.basic_get(name, auto_ack=True)[2] == b"in the way"
        wait_for(lambda: rig.channel.basic_get(name)[2] == b"one", str)
    assert rig.left() == 0


def test_dead_letters_whose_queue_is_gone_are_not_lost(rig: Rig) -> None:
    def reject(message: Message) -> None:
        raise Reject("not wanted")

    consumer = RabbitConsumer(rig.url, rig.queue, reject, dead_letter=f"{rig.queue}-dead")
    with running(consumer):
        rig.channel.queue_delete(f"{rig.queue}-dead")
        rig.publish("one")
        wait_for(lambda: consumer.handled + consumer.failed > 1, str)
        wait_for(lambda: rig.dead() == [("one", "not wanted")], rig.dead)


def test_what_has_not_begun_goes_back_while_a_handler_still_runs(rig: Rig) -> None:
    rig.publish("first", *bodies(20)[:10])
    slow, other = Seen(), Seen()
    slow.open.clear()
    consumer = RabbitConsumer(rig.url, rig.queue, slow, prefetch=30)
    thread = threading.Thread(target=consumer.start)
    thread.start()
    try:
        # With more than a quarter of the prefetch waiting, no more are asked for.
        wait_for(lambda: consumer.in_hand >= 9, lambda: consumer.in_hand)
        rig.publish(*bodies(20)[10:])
        wait_for(lambda: rig.left() == 0, rig.left)
        consumer.stop()
        wait_for(lambda: rig.left() == 20, rig.left)
        with running(RabbitConsumer(rig.url, rig.queue, other)):
            wait_for(lambda: other.bodies == bodies(20), lambda: other.bodies)
            assert thread.is_alive()
            slow.open.set()
            thread.join(PATIENCE)
    finally:
        slow.open.set()
        thread.join(PATIENCE)
    assert (slow.bodies, rig.left()) == (["first"], 0)


def test_retry_is_no_failure(rig: Rig) -> None:
    attempts = []

    def handle(message: Message) -> None:
        attempts.append(message.attempt)
        if len(attempts) < 10:
            raise Retry(after=0.01)

    consumer = RabbitConsumer(
        rig.url, rig.queue, handle, retry=RetryPolicy(2), dead_letter=f"{rig.queue}-dead"
    )
    rig.publish("one")
    with running(consumer):
        wait_for(lambda: consumer.handled, lambda: attempts)
    assert (rig.left(), rig.dead()) == (0, [])


# -- the connection -------------------------------------------------------------------------------


def test_a_queue_that_is_deleted_is_created_or_missing(rig: Rig, name: str) -> None:
    seen = Seen()
    with running(RabbitConsumer(rig.url, name, seen)) as told:
        rig.channel.queue_delete(name)
        wait_for(lambda: times(told, events.ServiceReady) == 2, lambda: told)
        rig.send("one", name)
        wait_for(lambda: seen.bodies == ["one"], lambda: seen.bodies)
    consumer = RabbitConsumer(rig.url, name, seen, create=False)
    group = ServiceGroup()
    group.add(consumer)
    group.subscribe(
        lambda event: (
            rig.channel.queue_delete(name) if isinstance(event, events.ServiceReady) else None
        )
    )
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    assert isinstance(caught.value.exceptions[0], LookupError)


def test_without_a_broker_a_stop_is_answered_at_once(caplog: pytest.LogCaptureFixture) -> None:
    consumer = RabbitConsumer(NOWHERE, "orders", Seen(), reconnect=PAUSE)
    thread = threading.Thread(target=consumer.start, daemon=True)
    thread.start()
    try:
        wait_for(lambda: "the broker is away (amqp://guest@127.0.0.1:1/:" in caplog.text, str)
    finally:
        consumer.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_stop_while_it_connects_is_answered_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/"
        consumer = RabbitConsumer(url, "orders", Seen())
        thread = threading.Thread(target=consumer.start)
        thread.start()
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(8) == b"AMQP\0\0\x09\x01"
            at = time.monotonic()
            consumer.stop()
            thread.join(PATIENCE)
            assert time.monotonic() - at < SOON
            assert connection.recv(1) == b""


def test_with_no_attempts_left_the_broker_is_named_as_away() -> None:
    reconnect = Restart(max_restarts=1, delay=0.01)
    error = failure(RabbitConsumer(NOWHERE, "orders", Seen(), reconnect=reconnect))
    assert isinstance(error, BrokerAwayError)
    assert "amqp://guest@127.0.0.1:1/: " in str(error)
    assert "Connection refused" in str(error)


def test_heartbeats_are_frequent_unless_it_is_said_otherwise() -> None:
    for url, seconds in (
        (NOWHERE, 20),
        (f"{NOWHERE}?heartbeat=5", 5),
        (f"{NOWHERE}?heartbeat=0", 0),
    ):
        assert RabbitConsumer(url, "orders", Seen())._parameters.heartbeat == seconds


def test_a_stop_while_the_network_swallows_everything_leaves_no_socket(rig: Rig) -> None:
    with Proxy(rig.port) as proxy:
        group = ServiceGroup(stop_timeout=20.0)
        group.add(RabbitConsumer(rig.options(proxy.port)["url"], rig.queue, Seen()))
        with group:
            proxy.open.clear()
    gc.collect()  # one that nobody has closed is warned of, which is an error here


@pytest.mark.slow
def test_a_network_that_swallows_everything_is_noticed_by_heartbeats(rig: Rig) -> None:
    seen = Seen()
    with Proxy(rig.port) as proxy:
        url = rig.options(proxy.port)["url"].replace("heartbeat=4", "heartbeat=1")
        with running(RabbitConsumer(url, rig.queue, seen)) as told:
            # There may have been some already: with these heartbeats nobody may stand still.
            proxy.open.clear()
            before = times(told, events.ServiceNotReady)
            wait_for(lambda: times(told, events.ServiceNotReady) > before, lambda: told)
            before = times(told, events.ServiceReady)
            proxy.open.set()
            wait_for(lambda: times(told, events.ServiceReady) > before, lambda: told)


class TlsProxy:
    """Speaks TLS with one client, and passes on what it says to `target` on this machine."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._target = target
        self._context = context
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> TlsProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)

    def _serve(self) -> None:
        try:
            while True:
                plain, _ = self._listener.accept()
                with socket.create_connection(("127.0.0.1", self._target)) as server, plain:
                    try:
                        client = self._context.wrap_socket(plain, server_side=True)
                    except (ssl.SSLError, OSError):
                        continue
                    with client:
                        self._relay(client, server)
        except OSError:
            pass  # closed

    @staticmethod
    def _relay(client: ssl.SSLSocket, server: socket.socket) -> None:
        while True:
            ready = [client] if client.pending() else select.select([client, server], [], [])[0]
            for one in ready:
                try:
                    data = one.recv(65536)
                except OSError:
                    return
                if not data:
                    return
                (server if one is client else client).sendall(data)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(rig: Rig, authority: trustme.CA) -> Iterator[TlsProxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with TlsProxy(rig.port, context) as proxy:
        yield proxy


def test_tls_is_spoken_with_whom_is_trusted(rig: Rig, tls: TlsProxy, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(str(rig.directory / "authority.pem"))
    options = {"cafile": str(rig.directory / "authority.pem"), "server_hostname": "localhost"}
    url = f"amqps://guest:guest@localhost:{tls.port}/?ssl_options={options!r}"
    seen = Seen()
    wanted = bodies(300)
    rig.publish(*wanted)
    with running(RabbitConsumer(url, rig.queue, seen, prefetch=100)):
        wait_for(lambda: seen.bodies == wanted, lambda: seen.bodies)
    assert rig.left() == 0


def test_a_certificate_of_nobody_fails_the_service(tls: TlsProxy) -> None:
    url = f"amqps://guest:guest@localhost:{tls.port}/"
    error = failure(RabbitConsumer(url, "orders", Seen()))
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)


# -- in its group ---------------------------------------------------------------------------------


def test_one_object_runs_three_times(rig: Rig) -> None:
    seen = Seen()
    consumer = RabbitConsumer(rig.url, rig.queue, seen)
    for number in range(3):
        with running(consumer):
            rig.publish(f"order {number}")
            wait_for(lambda number=number: len(seen.messages) == number + 1, lambda: seen.bodies)  # type: ignore[misc]
        assert consumer.handled == 1
    assert rig.left() == 0


def test_in_an_async_group_two_share_a_loop(rig: Rig, name: str) -> None:
    seen: list[str] = []

    async def handle(message: Message) -> None:
        seen.append(message.text())

    group = ServiceGroup()
    members = group.add(AsyncGroup())
    members.add(RabbitConsumer(rig.url, rig.queue, handle, name="one"))
    members.add(RabbitConsumer(rig.url, name, handle, name="two"))
    with group:
        rig.publish("for one")
        rig.send("for two", name)
        wait_for(lambda: sorted(seen) == ["for one", "for two"], lambda: seen)
    assert rig.left() == 0


def test_an_idle_consumer_sleeps(rig: Rig) -> None:
    with Consumer(rig) as consumer:
        consumer.wait_for("ready")
        time.sleep(0.5)  # what comes after the start
        assert is_idle(consumer, 3.0, 7)


# -- the example, and the server of these tests ---------------------------------------------------


def test_the_worker_of_the_example_handles_orders(rig: Rig) -> None:
    worker = ROOT / "examples" / "rabbitmq_worker.py"
    for queue in ("orders", "orders.dead"):
        rig.channel.queue_delete(queue)
    with subprocess.Popen(
        [sys.executable, str(worker)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AMQP_URL": rig.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        guard = threading.Timer(PATIENCE, child.kill)
        guard.start()
        try:
            rig.channel.queue_declare("orders", durable=True)
            rig.send(json.dumps({"number": 5}), "orders")
            assert child.stdout is not None
            assert child.stdout.readline() == "order 5 is packed\n"
            child.send_signal(signal.SIGTERM)
            assert "exit code 0: SIGTERM" in child.stdout.read()
        finally:
            guard.cancel()
            child.kill()
    for queue in ("orders", "orders.dead"):
        rig.channel.queue_delete(queue)


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "rabbitmq.md").read_text()
    _, _, code = (ROOT / "examples" / "rabbitmq_worker.py").read_text().partition('"""\n\n')
    assert re.sub(r"^ +$", "", textwrap.indent(code, "    "), flags=re.MULTILINE) in page


@pytest.mark.slow
def test_the_server_of_these_tests_ends_with_them() -> None:
    code = """
        import time
        from tests.adapters.queues.rabbitmq import Server
        server = Server()
        server.start()
        print(server.pid, server.directory, flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        pid, directory = child.stdout.readline().split()
        child.kill()
    wait_for(lambda: processes_of(directory) == [], lambda: processes_of(directory))
    assert int(pid) > 0
    subprocess.run(["rm", "-rf", directory], check=True)


def processes_of(directory: str) -> list[str]:
    """The processes that have `directory` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if directory.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has ended, or is another user's
    return found
