"""What is particular to a queue in a file."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sqlite3
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from servicegroup import AsyncGroup, events
from servicegroup.adapters import sqlite
from servicegroup.adapters._bell import ring
from servicegroup.adapters.queue import BrokerAwayError, Message, Reject, Retry, RetryPolicy
from servicegroup.adapters.sqlite import SqliteConsumer, SqliteQueue
from tests.adapters.queues.program import SOON
from tests.adapters.queues.running import Seen, failure, running
from tests.adapters.queues.sqlite import Rig
from tests.adapters.queues.test_queues import (
    Consumer,
    bodies,
    is_idle,
    wait_for,
    wait_until_handled,
)
from tests.child import PATIENCE, Child


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def queue(path: Path) -> Iterator[SqliteQueue]:
    with SqliteQueue(path, "orders") as queue:
        yield queue


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        rig.kind = "sqlite"
        yield rig


def delete(path: Path) -> None:
    """Delete the file, behind those that belong to it: afterwards there may be new ones."""
    for file in sorted(path.parent.glob("queue.db*"), reverse=True):
        if file.is_file():
            file.unlink()


def wait_until_empty(queue: SqliteQueue) -> None:
    wait_for(lambda: len(queue) == 0, lambda: len(queue))


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"path": ":memory:"}, ValueError, "path must be a file"),
        ({"path": ""}, ValueError, "path must be a file"),
        ({"name": ""}, ValueError, "name must be a string with something in it"),
        ({"name": 1}, ValueError, "name must be a string with something in it, not 1"),
        ({"durable": "off"}, ValueError, "durable must be 'normal' or 'full', not 'off'"),
    ],
)
def test_a_queue_that_makes_no_sense_is_refused(
    given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        SqliteQueue(**{"path": "x.db", **given})


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"queue": "x.db"}, TypeError, "queue must be a SqliteQueue, not 'x.db'"),
        ({"dead_letter": "orders"}, ValueError, "must not be the queue 'orders' itself"),
        ({"lease": 0}, ValueError, "lease must be more than 0 seconds, not 0"),
        ({"handler": None}, TypeError, "handler must be callable, not None"),
    ],
)
def test_a_consumer_that_makes_no_sense_is_refused(
    queue: SqliteQueue, given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        SqliteConsumer(**{"queue": queue, "handler": print, **given})


@pytest.mark.parametrize(
    ("body", "headers", "delay", "kind", "said"),
    [
        (1, None, 0, TypeError, "a body must be bytes or str, not 1"),
        ("x", {"a": 1}, 0, TypeError, "headers must be strings, not 'a': 1"),
        ("x", None, -1, ValueError, "delay must be 0 or more seconds, not -1"),
        ("x", None, float("nan"), ValueError, "delay must be .*, not nan"),
    ],
)
def test_what_cannot_be_put_is_refused_and_the_queue_is_as_before(
    queue: SqliteQueue, body: Any, headers: Any, delay: float, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        queue.put_many(["one", body], headers, delay=delay)
    assert len(queue) == 0
    queue.put("two")
    assert len(queue) == 1


# -- a file that is not what it should be ---------------------------------------------------------


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    queue = SqliteQueue(tmp_path / "none" / "queue.db")
    with pytest.raises(FileNotFoundError, match=f"there is no directory {tmp_path / 'none'}"):
        queue.put("one")
    assert isinstance(failure(SqliteConsumer(queue, print)), FileNotFoundError)


def test_a_directory_as_the_file_is_named(tmp_path: Path) -> None:
    assert isinstance(failure(SqliteConsumer(SqliteQueue(tmp_path), print)), IsADirectoryError)


def test_a_file_that_is_no_database_fails_and_is_named(path: Path) -> None:
    path.write_text("no database" * 1000)
    error = failure(SqliteConsumer(SqliteQueue(path), print))
    assert isinstance(error, sqlite3.DatabaseError)
    assert str(path) in repr(error.__notes__)
    assert path.read_text().startswith("no database")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_fails(queue: SqliteQueue, path: Path) -> None:
    queue.put("one")
    queue.close()
    path.chmod(0o400)
    assert "readonly" in str(failure(SqliteConsumer(queue, print)))


def test_a_file_that_is_deleted_is_made_anew(
    queue: SqliteQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "DEAF_SECONDS", 0.05)
    seen = Seen()
    queue.put("one")
    with running(SqliteConsumer(queue, seen)) as told:
        wait_until_empty(queue)
        delete(path)
        queue.put("two")
        wait_until_empty(queue)
        wait_for(lambda: events.ServiceNotReady in told, lambda: told)
    assert seen.bodies == [b"one", b"two"]


def test_what_was_taken_from_a_deleted_file_settles_nothing_in_the_next(
    queue: SqliteQueue, path: Path
) -> None:
    queue.put("old")
    consumer = SqliteConsumer(queue, print)

    async def settle_late() -> None:
        broker, next_broker = consumer._new_broker(), consumer._new_broker()
        try:
            await broker.open()
            old = await broker.fetch(1)
            delete(path)
            queue.put("new")
            await next_broker.open()
            new = await next_broker.fetch(1)
            assert new[0].token == old[0].token
            with pytest.raises(BrokerAwayError, match="was deleted, or is another file now"):
                await broker.ack(old)
            assert broker.volatile  # so that the engine does not tell the next one
        finally:
            await broker.close()
            await next_broker.close()

    asyncio.run(settle_late())
    assert len(queue) == 1


def test_another_process_that_locks_it_for_long_is_waited_for(
    queue: SqliteQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    queue.put("one")  # by a connection that waits for others, as long as it takes
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with running(SqliteConsumer(queue, seen)) as told:
        wait_until_empty(queue)
        with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ring(path)
            wait_for(lambda: events.ServiceNotReady in told, lambda: told)
            other.execute("ROLLBACK")
        queue.put("two")
        wait_until_empty(queue)
        wait_for(lambda: told.count(events.ServiceReady) >= 2, lambda: told)
    assert seen.bodies == [b"one", b"two"]


def test_a_stop_while_another_process_has_it_locked_is_answered_at_once(
    queue: SqliteQueue, path: Path
) -> None:
    queue.put("one")
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as other:
        with running(SqliteConsumer(queue, Seen()), stop_timeout=20.0):
            wait_until_empty(queue)
            other.execute("BEGIN IMMEDIATE")
            ring(path)
            at = time.monotonic()
        assert time.monotonic() - at < SOON < sqlite.BUSY_SECONDS / 2
        other.execute("ROLLBACK")


FULL = """
import resource, sqlite3
from servicegroup.adapters.sqlite import SqliteQueue

queue = SqliteQueue({path!r}, "orders")
queue.put("one")
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
for number in range(3):
    try:
        queue.put_many(["x" * 1000] * 1000)
    except sqlite3.OperationalError as error:
        say(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
queue.put("two")
say("there", len(queue))
"""


def test_a_full_disk_fails_what_is_put_and_nothing_else(path: Path) -> None:
    with Child(FULL.format(path=str(path))) as child:
        assert child.end() == 0, child.stderr
    assert child.lines == ["disk I/O error"] * 3 + ["there 2"]


# -- threads and processes ------------------------------------------------------------------------


def test_many_threads_may_put_and_leave_no_connection_open(queue: SqliteQueue) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [
            threading.Thread(target=lambda: [queue.put("x") for _ in range(20)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        del threads, thread
        gc.collect()
        assert len(queue) == 160
        open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
        assert open_files.count(str(queue.path)) == 1  # of this thread
    assert [str(one.message) for one in caught] == []


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def test_a_queue_that_is_forgotten_or_closed_leaves_nothing_open(path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SqliteQueue(path).put("one")
        gc.collect()
        queue = SqliteQueue(path)
        queue.put("two")
        queue.close()
        assert str(path) not in [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
        assert len(queue) == 2  # once more, by a new connection
        queue.close()
    assert [str(one.message) for one in caught] == []


def test_all_that_make_the_file_at_once_succeed(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def put(queue: SqliteQueue, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            queue.put("x")
        except BaseException as error:
            errors.append(error)

    for number in range(30):
        queue, barrier = SqliteQueue(tmp_path / f"{number}.db"), threading.Barrier(8)
        threads = [threading.Thread(target=put, args=(queue, barrier)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(queue) == 8
        queue.close()


def test_a_child_made_by_fork_has_a_connection_of_its_own(queue: SqliteQueue) -> None:
    queue.put("parent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there may be threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            before = queue._local.held.connection
            queue.put("child")
            code = int(queue._local.held.connection is before)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    queue.put("parent again")
    assert len(queue) == 3


KILLED = """
from servicegroup.adapters.sqlite import SqliteQueue

queue = SqliteQueue({path!r}, "orders")
for number in range(10**9):
    say(queue.put(str(number)))
"""


def test_what_was_put_survives_a_kill_9_at_any_moment(path: Path) -> None:
    said: set[str] = set()
    for _ in range(5):
        with Child(KILLED.format(path=str(path))) as child:
            child.wait_for("")
            time.sleep(random.uniform(0.0, 0.05))
            os.kill(child.pid, signal.SIGKILL)
            child.end()
            said |= set(child.lines)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ids = {str(ident) for (ident,) in connection.execute("SELECT id FROM messages")}
    assert said <= ids
    assert len(ids - said) <= 5  # one each that was put and not told


# -- messages -------------------------------------------------------------------------------------


def test_a_message_has_what_was_put_with_it(queue: SqliteQueue) -> None:
    ident = queue.put(b"\xff", {"customer": "ann"})
    at = time.time()
    seen = Seen()
    with running(SqliteConsumer(queue, seen, dead_letter="dead")):
        wait_until_empty(queue)
    (message,) = seen.messages
    assert (message.body, message.headers) == (b"\xff", {"customer": "ann"})
    assert (message.id, message.attempt) == (ident, 1)
    assert abs(message.first_seen - at) < PATIENCE


def test_the_dead_letters_are_a_queue_that_can_be_consumed(queue: SqliteQueue, path: Path) -> None:
    queue.put("reject", {"customer": "ann"})
    dead = SqliteQueue(path, "dead")
    with running(SqliteConsumer(queue, Seen(), dead_letter="dead")):
        wait_until_empty(queue)
    assert len(dead) == 1
    messages: list[Message] = []
    with running(SqliteConsumer(dead, messages.append)):
        wait_until_empty(dead)
    dead.close()
    (message,) = messages
    assert message.body == b"reject"
    assert message.headers == {"customer": "ann", "reason": "not wanted"}
    assert message.attempt == 1


def test_a_reason_that_is_no_unicode_is_kept_as_far_as_it_is(queue: SqliteQueue) -> None:
    def handle(message: Message) -> None:
        raise Reject("bad: \udcff")

    queue.put("one")
    with running(SqliteConsumer(queue, handle, dead_letter="dead")) as told:
        wait_until_empty(queue)
        assert events.ServiceNotReady not in told


def test_what_is_put_with_a_delay_is_handled_when_it_is_due(
    queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "DEAF_SECONDS", 10 * PATIENCE)
    seen = Seen()
    with running(SqliteConsumer(queue, seen)):
        queue.put("later", delay=10 * PATIENCE)
        at = time.monotonic()
        queue.put("late", delay=0.5)
        seen.wait_for(1)
        assert time.monotonic() - at > 0.45
        queue.put("now")
        seen.wait_for(2)
    assert seen.bodies == [b"late", b"now"]


def test_what_is_put_off_is_not_in_hand_and_comes_when_it_is_due(
    queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "DEAF_SECONDS", 10 * PATIENCE)
    times: list[float] = []

    def handle(message: Message) -> None:
        times.append(time.monotonic())
        if message.attempt == 1:
            raise Retry(after=0.5)

    queue.put("one")
    consumer = SqliteConsumer(queue, handle)
    with running(consumer):
        wait_for(lambda: times and consumer.in_hand == 0, lambda: times)
        wait_until_empty(queue)
    assert len(times) == 2
    assert times[1] - times[0] >= 0.45


def test_one_that_stood_still_for_longer_than_its_lease_takes_nothing_of_its_own(
    queue: SqliteQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put_many(["one", "two"])
    consumer = SqliteConsumer(queue, print, lease=0.2)

    async def wake_late() -> None:
        broker = consumer._new_broker()
        try:
            await broker.open()
            before = await broker.fetch(2)
            await broker.ack(before[:1])
            time.sleep(0.3)
            queue.put("three")
            after = await broker.fetch(10)
            assert [one.message.text() for one in [*before, *after]] == ["one", "two", "three"]
            await broker.ack([*before[1:], *after])
        finally:
            await broker.close()

    asyncio.run(wake_late())
    assert len(queue) == 0
    assert caplog.text == ""


def test_a_lease_that_was_lost_is_told_and_nothing_is_done(
    queue: SqliteQueue, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    seen.open.clear()
    ident = queue.put("one")
    consumer = SqliteConsumer(queue, seen)
    with running(consumer):
        seen.wait_for(1)
        with closing(queue.connect()) as other:  # as somebody does who takes it when its lease ends
            other.execute("UPDATE messages SET lease = lease + 1")
        seen.open.set()
        wait_for(lambda: "the lease of message" in caplog.text, lambda: caplog.text)
        assert f"the lease of message {ident} had ended" in caplog.text
        assert len(queue) == 1


def test_what_was_given_back_is_not_kept_from_others(queue: SqliteQueue) -> None:
    queue.put("one")
    consumer = SqliteConsumer(queue, print)

    async def keep_late() -> int:
        broker = consumer._new_broker()
        try:
            await broker.open()
            deliveries = await broker.fetch(1)
            await broker.give_back(deliveries)
            await broker.keep(deliveries)  # it had been on its way
            again = await broker.fetch(1)
            return again[0].message.attempt
        finally:
            await broker.close()

    assert asyncio.run(asyncio.wait_for(keep_late(), PATIENCE)) == 1


def test_a_clock_that_is_set_back_holds_nothing_up(
    queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    now = time.time
    monkeypatch.setattr("servicegroup.adapters.sqlite.time.time", lambda: now() + 3600.0)
    queue.put("before the start")
    monkeypatch.undo()
    with running(SqliteConsumer(queue, seen)):
        seen.wait_for(1)
        monkeypatch.setattr("servicegroup.adapters.sqlite.time.time", lambda: now() + 3600.0)
        queue.put("by the wrong clock")
        seen.wait_for(2)
        monkeypatch.setattr("servicegroup.adapters.sqlite.time.time", lambda: now() + 7200.0)
        seen.open.clear()
        queue.put("holds the handler")
        seen.wait_for(3)
        queue.put_many(bodies(30))  # more than are in hand
        monkeypatch.undo()
        seen.open.set()
        seen.wait_for(33)
        wait_until_empty(queue)


# -- how it runs ----------------------------------------------------------------------------------


def test_a_put_of_another_process_wakes_an_idle_consumer(rig: Rig) -> None:
    with Consumer(rig, looks=10 * PATIENCE) as consumer:
        consumer.wait_for("ready")
        for number in range(20):
            rig.publish(f"order-{number}")
            wait_until_handled(rig, {f"order-{number}"})


def test_what_nobody_rang_for_is_found_all_the_same(
    queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "DEAF_SECONDS", 0.1)
    seen = Seen()
    with running(SqliteConsumer(queue, seen)):
        monkeypatch.setattr(sqlite, "ring", lambda path: None)  # killed before it could
        queue.put("one")
        seen.wait_for(1)


def test_a_bell_that_was_left_behind_is_taken_away(rig: Rig) -> None:
    rig.publish("one")
    with Consumer(rig) as consumer:
        wait_until_handled(rig, {"one"})
        os.kill(consumer.pid, signal.SIGKILL)
        consumer.end()
    bells = rig.directory / "queue.db-bells"
    assert len(list(bells.iterdir())) == 1
    rig.publish("two")
    assert list(bells.iterdir()) == []


def test_a_bell_that_cannot_be_rung_fails_no_put(queue: SqliteQueue, path: Path) -> None:
    Path(f"{path}-bells").write_text("no directory")
    queue.put("one")
    seen = Seen()
    with running(SqliteConsumer(queue, seen)):
        seen.wait_for(1)
        queue.put("two")
        seen.wait_for(2)


def test_an_idle_consumer_hardly_wakes(rig: Rig) -> None:
    with Consumer(rig, lease=30.0) as consumer:
        consumer.wait_for("ready")
        rig.publish("one")
        wait_until_handled(rig, {"one"})
        wait_for(lambda: rig.left() == 0, rig.left)
        assert is_idle(consumer, 3.0, 6)


def test_the_same_object_runs_again(queue: SqliteQueue) -> None:
    seen = Seen()
    consumer = SqliteConsumer(queue, seen)
    for number in range(3):
        with running(consumer):
            queue.put(f"order-{number}")
            seen.wait_for(number + 1)
    assert seen.bodies == [body.encode() for body in bodies(3)]
    assert len(queue) == 0


def test_two_share_the_messages_in_an_async_group(queue: SqliteQueue) -> None:
    seen: list[bytes] = []

    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        seen.append(message.body)

    queue.put_many(bodies(100))
    group = AsyncGroup()
    for number in range(2):
        group.add(SqliteConsumer(queue, handle), name=f"consumer-{number}")
    thread = threading.Thread(target=group.start)
    thread.start()
    try:
        wait_for(lambda: len(seen) == 100 and len(queue) == 0, lambda: seen)
    finally:
        group.stop()
        thread.join(PATIENCE)
    assert Counter(seen) == Counter(body.encode() for body in bodies(100))


@pytest.mark.parametrize("durable", ["normal", "full"])
def test_durable_is_what_sqlite_is_told(path: Path, durable: str) -> None:
    with closing(SqliteQueue(path, durable=durable).connect()) as connection:
        wanted = {"normal": 1, "full": 2}[durable]
        assert connection.execute("PRAGMA synchronous").fetchone() == (wanted,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_handler_that_always_fails_leaves_the_message_without_dead_letters(
    queue: SqliteQueue,
) -> None:
    seen: list[int] = []

    def handle(message: Message) -> None:
        seen.append(message.attempt)
        raise ValueError("no good")

    queue.put("one")
    policy = RetryPolicy(2, delay=0.01)
    with running(SqliteConsumer(queue, handle, retry=policy)):
        wait_for(lambda: len(seen) >= 4, lambda: seen)
    assert len(queue) == 1
