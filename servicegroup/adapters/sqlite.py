"""`SqliteQueue` and `SqliteConsumer`: a durable queue in one file, without a server."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar
from weakref import WeakSet

from servicegroup._aio_executor import DaemonExecutor
from servicegroup.adapters._bell import Bell, ring
from servicegroup.adapters._broker import Broker, BrokerAwayError, Delivery
from servicegroup.adapters._drain import log
from servicegroup.adapters._message import Message, RetryPolicy
from servicegroup.adapters.queue import AWAY, Handler, QueueConsumer
from servicegroup.restart import Restart

T = TypeVar("T")

LEASE_SECONDS = 30.0
BUSY_SECONDS = 5.0  # to wait for another process' transaction, each of which takes milliseconds
LOOK_SECONDS = 1.0  # between looks at the file, where no bell can be had
# And where there is one: who put something may have been killed before ringing it.
DEAF_SECONDS = 10.0
CLOCK_SECONDS = 1.0  # by how much the clock must have been set back to matter
OLDEST = (3, 38)  # of SQLite
# What passes, or is for the administrator to end; see https://www.sqlite.org/rescode.html.
PASSING = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL),
}

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    body BLOB NOT NULL,
    headers TEXT NOT NULL,
    published REAL NOT NULL,
    due REAL NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    excused INTEGER NOT NULL DEFAULT 0,
    lease INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS messages_due ON messages (queue, due, id);
"""
# `due`: when it may be taken; while it is in hand, when its lease ends. `lease` changes whenever it
# is taken or let go: whoever took it before has lost it, and cannot settle or keep it any more.
TAKE = """
UPDATE messages SET due = :until, attempt = attempt + 1, lease = lease + 1
WHERE id IN (SELECT id FROM messages WHERE queue = :queue AND due <= :now ORDER BY due, id LIMIT :n)
RETURNING id, body, headers, published, attempt, excused, lease
"""
PUT = "INSERT INTO messages (queue, body, headers, published, due) VALUES (?, ?, ?, ?, ?)"
NEXT = "SELECT min(due) FROM messages WHERE queue = ?"
DELETE = "DELETE FROM messages WHERE id = ? AND lease = ?"
GIVE_BACK = """
UPDATE messages SET due = 0, attempt = attempt - 1, lease = lease + 1 WHERE id = ? AND lease = ?
"""
PUT_OFF = """
UPDATE messages SET due = ?, excused = excused + ?, lease = lease + 1 WHERE id = ? AND lease = ?
"""
KEEP = "UPDATE messages SET due = ? WHERE id = ? AND lease = ?"
# What was published by a clock that has been set back since.
SET_BACK = """
UPDATE messages SET due = due - (published - :now), published = :now
WHERE queue = :queue AND due > :now AND published > :now
"""
BURY = """
UPDATE messages SET queue = ?, due = 0, attempt = 0, excused = 0, lease = lease + 1,
    headers = json_set(headers, '$.reason', ?) WHERE id = ? AND lease = ?
"""


class SqliteQueue:
    """A durable queue in one file, for threads and processes of one machine.

    Any thread may put; each has a connection of its own, which is closed when the thread ends, or
    by `close()`. A child made by fork makes new ones; so does a thread when the file is another.

    Args:
        path: the file; it is made when it is missing, its directory is not.
        name: of the queue; a file can have many.
        durable: `"normal"` survives the end of any process, by kill -9 too; `"full"` a power cut
            as well, for a sync of the disk each time.

    Raises:
        ValueError: `durable` or `name` makes no sense, or `path` is no file: one in memory cannot
            be shared.
    """

    def __init__(self, path: str | Path, name: str = "default", *, durable: str = "normal") -> None:
        given: object = name
        if str(path) in ("", ":memory:"):
            raise ValueError("SqliteQueue: path must be a file, since a queue is to last")
        if durable not in ("normal", "full"):
            raise ValueError(f"SqliteQueue: durable must be 'normal' or 'full', not {durable!r}")
        if not isinstance(given, str) or not given:
            raise ValueError(
                f"SqliteQueue: name must be a string with something in it, not {name!r}"
            )
        self.path = Path(path).absolute()
        self.name = name
        self.durable = durable
        self._local = threading.local()
        self._held: WeakSet[_Held] = WeakSet()
        self._guard = threading.Lock()
        if sqlite3.sqlite_version_info < OLDEST:
            raise RuntimeError(
                f"SqliteQueue needs SQLite 3.38 or later, not {sqlite3.sqlite_version}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads, none of which may be using it just then.

        Whoever uses it again has a new one.
        """
        with self._guard:
            held, self._held = list(self._held), WeakSet()
        self._local = threading.local()
        for one in held:
            one.close()

    def __repr__(self) -> str:
        return f"SqliteQueue({str(self.path)!r}, {self.name!r})"

    def put(
        self, body: bytes | str, headers: Mapping[str, str] | None = None, *, delay: float = 0.0
    ) -> str:
        """Add one message; it is safe when this returns. Its id.

        Args:
            body: text is stored as UTF-8.
            headers: of strings.
            delay: seconds until it may be taken.

        Raises:
            TypeError: `body` is neither bytes nor text, or a header is no text.
            ValueError: `delay` is negative, infinite or NaN.
            OSError: the directory is missing.
            sqlite3.Error: the file cannot be written, or is no database.
        """
        return self.put_many([body], headers, delay=delay)[0]

    def put_many(
        self,
        bodies: Iterable[bytes | str],
        headers: Mapping[str, str] | None = None,
        *,
        delay: float = 0.0,
    ) -> list[str]:
        """Add all or none of them, in one transaction; as `put`."""
        if not 0 <= delay < math.inf:
            raise ValueError(f"SqliteQueue: delay must be 0 or more seconds, not {delay!r}")
        texts = json.dumps(_texts(headers or {}))
        now = time.time()
        rows = [(self.name, _bytes(body), texts, now, now + delay) for body in bodies]
        connection = self._connection()
        if len(rows) == 1:  # a transaction by itself
            ids = [str(connection.execute(PUT, rows[0]).lastrowid)]
        else:
            with Transaction(connection):
                ids = [str(connection.execute(PUT, row).lastrowid) for row in rows]
        ring(self.path)
        return ids

    def __len__(self) -> int:
        """How many messages there are, those in hand and those put off included."""
        query = "SELECT count(*) FROM messages WHERE queue = ?"
        return int(self._connection().execute(query, [self.name]).fetchone()[0])

    def _connection(self) -> sqlite3.Connection:
        held: _Held | None = getattr(self._local, "held", None)
        if held is not None and held.is_of(self.path):
            return held.connection
        held = self._local.held = _Held(self.connect(), self.path)
        with self._guard:
            self._held.add(held)
        return held.connection

    def connect(self) -> sqlite3.Connection:
        """A new connection, for any one thread at a time.

        Raises:
            OSError: the directory is missing.
            sqlite3.Error: the file cannot be opened, or is something else.
        """
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"SqliteQueue: there is no directory {self.path.parent}")
        if self.path.is_dir():
            raise IsADirectoryError(f"SqliteQueue: {self.path} is a directory")
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _set_journal(connection)
            connection.execute(f"PRAGMA synchronous = {self.durable}")
            if not connection.execute("PRAGMA table_info (messages)").fetchall():
                with Transaction(connection):
                    for statement in filter(str.strip, SCHEMA.split(";")):
                        connection.execute(statement)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                error.add_note(f"SqliteQueue: the file is {self.path}")
            raise
        return connection


class _Held:
    """A thread's connection, closed with it."""

    _inherited: list[sqlite3.Connection] = []  # noqa: RUF012 - by forks, in which none may be closed

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self._process = os.getpid()
        self._file = _identity(path)

    def is_of(self, path: Path) -> bool:
        """Whether it was made in this process, for the file that is there now."""
        return self._process == os.getpid() and self._file == _identity(path)

    def close(self) -> None:
        """Close the connection, unless that is the parent process' to do."""
        if self._process == os.getpid():
            self.connection.close()
        else:
            self._inherited.append(self.connection)

    __del__ = close


class Transaction:
    """One that takes the lock for writing at its begin, so that it cannot fail in the middle."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # SQLite has ended it by itself after some errors
                self._connection.execute("ROLLBACK")


class SqliteConsumer(QueueConsumer):
    """Handles the messages of a `SqliteQueue`; several of them may share one, in many processes.

    A message in hand is leased, and the lease renewed for as long as it is in hand. What a killed
    process had comes back when its lease ends.

    Args:
        queue: the queue.
        handler: what to do with each message.
        concurrency: how many are handled at a time.
        prefetch: how many may be in hand; by default 10 for each handler.
        retry: how often, and after what pauses, one is handled again whose handler raised.
        dead_letter: the name of the queue, in the same file, for those that cannot be handled;
            the reason is in their headers.
        handler_timeout: seconds after which a handler is told as stalled.
        lease: seconds; see above.
        name: what the group calls it; by default that of the queue.
        reconnect: the pauses between attempts to open the file.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    def __init__(
        self,
        queue: SqliteQueue,
        handler: Handler,
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        dead_letter: str | None = None,
        handler_timeout: float = math.inf,
        lease: float = LEASE_SECONDS,
        name: str | None = None,
        reconnect: Restart = AWAY,
    ) -> None:
        if not isinstance(queue, SqliteQueue):
            raise TypeError(f"SqliteConsumer: queue must be a SqliteQueue, not {queue!r}")
        if dead_letter == queue.name:
            raise ValueError(
                f"SqliteConsumer: dead_letter must not be the queue {queue.name!r} itself"
            )
        if not 0 < lease < math.inf:
            raise ValueError(f"SqliteConsumer: lease must be more than 0 seconds, not {lease!r}")
        super().__init__(
            handler,
            name=queue.name if name is None else name,
            concurrency=concurrency,
            prefetch=prefetch,
            retry=retry,
            handler_timeout=handler_timeout,
            reconnect=reconnect,
        )
        self._queue = queue
        self._dead_letter = dead_letter
        self._lease = lease

    def _new_broker(self) -> Broker:
        return _SqliteBroker(self._queue, self._lease, self._dead_letter)


class _SqliteBroker(Broker):
    """A connection, on a thread of its own, since a transaction may wait for others'."""

    def __init__(self, queue: SqliteQueue, lease: float, dead_letter: str | None) -> None:
        self.dead_letters = dead_letter is not None
        self.keep_seconds = lease / 3
        self._queue = queue
        self._lease = lease
        self._dead_letter = dead_letter
        self._loop = asyncio.get_running_loop()
        self._thread = DaemonExecutor(f"{threading.current_thread().name} (sqlite)", 1)
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._clock = math.inf  # by how much it is ahead of the one that is never set
        # For the thread of the connection: what is in hand, and until when all of it is kept.
        self._held: set[tuple[object, object]] = set()
        self._until = 0.0
        self._bell: Bell | None = None
        self._rung = asyncio.Event()
        self._interrupted = False

    async def open(self) -> None:
        await self._call(self._connect)
        try:
            self._bell = Bell(self._queue.path)
        except OSError as error:
            log.debug("no bell for %s: %r", self._queue.path, error)
            return  # then it looks from time to time
        self._loop.add_reader(self._bell.socket, self._on_ring, self._bell)

    def _connect(self) -> None:
        self._connection = self._queue.connect()
        self._file = _identity(self._queue.path)

    def _on_ring(self, bell: Bell) -> None:
        bell.hush()
        self._rung.set()

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while not self._interrupted:
            self._rung.clear()
            rows, seconds = await self._call(self._take, limit)
            if rows:
                return [self._delivery(row) for row in rows]
            seconds = min(seconds, LOOK_SECONDS if self._bell is None else DEAF_SECONDS)
            try:
                async with asyncio.timeout(seconds):
                    await self._rung.wait()
            except TimeoutError:
                pass
        return []

    def interrupt(self) -> None:
        self._interrupted = True
        self._rung.set()

    def _take(self, limit: int) -> tuple[list[tuple[object, ...]], float]:
        """Rows; without any, the seconds until there may be some."""
        connection = self._opened
        with Transaction(connection):
            if self._interrupted:
                return [], 0.0
            now = self._now(connection)
            until = now + self._lease
            if now >= self._until:
                # It has stood still for longer than a lease, and would take its own once more.
                connection.executemany(KEEP, [(until, *token) for token in self._held])
                self._until = until
            values = {"until": until, "queue": self._queue.name, "now": now, "n": limit}
            rows = sorted(connection.execute(TAKE, values).fetchall())
        self._held.update((row[0], row[-1]) for row in rows)
        if rows:
            return rows, 0.0
        due = connection.execute(NEXT, [self._queue.name]).fetchone()[0]
        return [], math.inf if due is None else max(0.0, due - time.time())

    def _now(self, connection: sqlite3.Connection) -> float:
        """The time; if the clock was set back, what it would hold up until then is made due."""
        now = time.time()
        clock = now - time.monotonic()
        if clock < self._clock - CLOCK_SECONDS:
            connection.execute(SET_BACK, {"now": now, "queue": self._queue.name})
        self._clock = clock
        return now

    def _delivery(self, row: tuple[object, ...]) -> Delivery:
        ident, body, headers, published, attempt, excused, lease = row
        assert isinstance(body, bytes)
        assert isinstance(headers, str)
        assert isinstance(published, float)
        assert isinstance(attempt, int)
        assert isinstance(excused, int)
        message = Message(
            body=body,
            headers=json.loads(headers),
            id=str(ident),
            attempt=attempt,
            first_seen=published,
            raw=row,
        )
        return Delivery(message=message, token=(ident, lease), broker=self, excused=excused)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._write(DELETE, deliveries)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._write(GIVE_BACK, deliveries, tell=True)

    async def put_off(self, delivery: Delivery, seconds: float, excused: bool) -> bool:
        await self._write(PUT_OFF, [delivery], lambda: (time.time() + seconds, int(excused)))
        self._rung.set()  # it may be due before what is waited for
        return True

    async def bury(self, delivery: Delivery, reason: str) -> None:
        words = (self._dead_letter, reason.encode(errors="replace").decode())
        await self._write(BURY, [delivery], lambda: words, tell=True)

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        def values() -> tuple[object, ...]:
            self._until = time.time() + self._lease
            return (self._until,)

        await self._write(KEEP, deliveries, values, warn=False)

    async def _write(
        self,
        statement: str,
        deliveries: Sequence[Delivery],
        values: Callable[[], tuple[object, ...]] = tuple,
        *,
        tell: bool = False,
        warn: bool = True,
    ) -> None:
        """Have `statement` done for each, with `values()` as of then; `tell` others of it."""

        def write() -> list[str]:
            connection, lost = self._opened, []
            with Transaction(connection):
                first = values()  # now, since it may have taken long to begin
                for one in deliveries:
                    if not connection.execute(statement, (*first, *one.token)).rowcount:
                        lost.append(one.message.id)
            if statement != KEEP:
                self._held.difference_update(one.token for one in deliveries)
            if tell:
                ring(self._queue.path)
            return lost

        lost = await self._call(write)
        if lost and warn:
            log.warning(
                "%r: the lease of message %s had ended, and others may have it: nothing was done",
                self._queue,
                ", ".join(lost),
            )

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._connection is not None
        if self._file != _identity(self._queue.path):
            self.volatile = True  # the ids of what is in hand are those of other messages there
            raise BrokerAwayError(f"{self._queue.path} was deleted, or is another file now")
        return self._connection

    async def _call(self, function: Callable[..., T], *values: object) -> T:
        try:
            return await self._loop.run_in_executor(self._thread, function, *values)
        except sqlite3.Error as error:
            # Some have no code, those of Python's module itself.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if code & 0xFF in PASSING:
                raise BrokerAwayError(f"{self._queue.path}: {error}") from error
            raise

    async def close(self) -> None:
        if self._bell is not None:
            self._loop.remove_reader(self._bell.socket)
            self._bell.close()
        # Behind what it does just now, since closing would wait for that, and stop the loop.
        closed = self._thread.submit(self._disconnect)
        self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closed))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _set_journal(connection: sqlite3.Connection) -> None:
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # When several make the file at once, SQLite does not wait here for its turn.
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _texts(headers: Mapping[Any, Any]) -> dict[str, str]:  # checked here
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"SqliteQueue: headers must be strings, not {name!r}: {value!r}")
    return dict(headers)


def _bytes(body: object) -> bytes:
    if isinstance(body, str):
        return body.encode()
    if not isinstance(body, bytes):
        raise TypeError(f"SqliteQueue: a body must be bytes or str, not {body!r}")
    return body
