"""`RedisStreamConsumer`: a stream of Redis, read by the consumers of a group."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attrs import field, frozen

from servicegroup.adapters._broker import Broker, BrokerAwayError, Delivery
from servicegroup.adapters._message import Message, RetryPolicy
from servicegroup.adapters.queue import AWAY, Handler, QueueConsumer
from servicegroup.restart import Restart

try:
    from redis.asyncio.connection import AbstractConnection, ConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        NoPermissionError,
        ResponseError,
    )
    from redis.exceptions import ConnectionError as LostError
    from redis.exceptions import TimeoutError as LateError
except ImportError as error:
    raise ImportError(
        "RedisStreamConsumer needs redis: pip install 'servicegroup[redis]'"
    ) from error

T = TypeVar("T")

CLAIM_IDLE = 60.0
# Between looks at what others have left. A read blocks for no longer, which shows, too, that the
# server is still there.
LOOK_SECONDS = 3.0
ANSWER_SECONDS = 5.0  # for the server to answer, or to let in
# Who owns what was given back, and since when it seems to be idle: longer than any `claim_idle`,
# and less than the time since 1970, from which on the server would take it for "now".
RETURNED = "servicegroup:returned"
LONG_AGO = 365 * 86_400_000  # ms

# What the server says while it cannot do something for now: codes, which redis-py cuts off where it
# has a class for them; and once the group is gone, which the next `open` sees to.
PASSING_CODES = ("BUSY ", "MISCONF", "NOGROUP", "NOREPLICAS", "OOM", "UNBLOCKED")
PASSING_CLASSES = {"MasterDownError", "OutOfMemoryError", "ReadOnlyError", "TryAgainError"}

LOST_AT_ONCE = 1000  # of such that got lost on their way, so many are given back at a time
UNBLOCK_SECONDS = 0.001

# What redis-py's connections take for one word of a command.
Word = bytes | str | int


class RedisStreamConsumer(QueueConsumer):
    """Handles the entries of a stream of Redis 7 or later, as one consumer of a consumer group.

    Each entry goes to one consumer of the group. The field `body_field` of an entry is the body,
    its other fields are the headers; `Message.raw` is the entry as redis-py has it: its id, and a
    dict of its fields. What was handled is acknowledged, and stays in the stream: to trim that is
    for whoever publishes.

    What a killed process had in hand is taken over by the others after `claim_idle`, as one more
    attempt. What is given back at a stop, they take within 3 seconds.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, as redis-py has it.
        stream: its key.
        group: the consumer group.
        handler: what to do with each message.
        concurrency: how many are handled at a time.
        prefetch: how many may be in hand; by default 10 for each handler.
        retry: how often, and after what pauses, one is handled again whose handler raised.
        dead_letter: the key of the stream for those that cannot be handled; the field `reason` of
            an entry there says why.
        handler_timeout: seconds after which a handler is told as stalled.
        create: make the stream and the group when they are missing; otherwise that is an error.
        start: where a group begins that is made: at the first entry there is, `"0"`, after the
            last, `"$"`, or after the one with this id.
        body_field: the field of the body; an entry without it has an empty one.
        claim_idle: seconds without a sign of life of who has it, until a message is taken over.
        name: what the group calls it; by default that of the stream.
        reconnect: the pauses between attempts to reach the server.
        connection: more options of redis-py's connections, such as `password` or `ssl_ca_certs`;
            `socket_timeout` are the seconds in which the server has to answer, by default 5.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    def __init__(
        self,
        url: str,
        *,
        stream: str,
        group: str,
        handler: Handler,
        concurrency: int = 1,
        prefetch: int | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        dead_letter: str | None = None,
        handler_timeout: float = math.inf,
        create: bool = True,
        start: str = "0",
        body_field: str = "body",
        claim_idle: float = CLAIM_IDLE,
        name: str | None = None,
        reconnect: Restart = AWAY,
        **connection: Any,  # of another type for each option
    ) -> None:
        texts = {"stream": stream, "group": group, "start": start, "body_field": body_field}
        if dead_letter is not None:
            texts["dead_letter"] = dead_letter
        for option, text in texts.items():
            if not isinstance(text, str):
                raise TypeError(f"RedisStreamConsumer: {option} must be a str, not {text!r}")
            if not text:
                raise ValueError(f"RedisStreamConsumer: {option} must not be empty")
        if dead_letter == stream:
            raise ValueError(
                f"RedisStreamConsumer: dead_letter must not be the stream {stream!r} itself"
            )
        if isinstance(claim_idle, bool) or not isinstance(claim_idle, (int, float)):
            raise TypeError(f"RedisStreamConsumer: claim_idle must be a number, not {claim_idle!r}")
        if not 0.1 <= claim_idle <= 86_400:
            raise ValueError(
                "RedisStreamConsumer: claim_idle must be from 0.1 to 86400 seconds, "
                f"not {claim_idle!r}"
            )
        super().__init__(
            handler,
            name=stream if name is None else name,
            concurrency=concurrency,
            prefetch=prefetch,
            retry=retry,
            handler_timeout=handler_timeout,
            reconnect=reconnect,
        )
        self._pool = _pool(url, connection)
        self._source = _Source(
            stream=stream,
            group=group,
            dead_letter=dead_letter,
            create=bool(create),
            start=start,
            body_field=body_field.encode(),
            claim_idle=round(claim_idle * 1000),
        )
        self._seat = _Seat()

    async def run(self) -> None:
        # Of its own for each run, and so in each process, if there was a fork.
        self._seat = _Seat()
        await super().run()

    def _new_broker(self) -> Broker:
        return _RedisBroker(self._pool, self._source, self._seat)


@frozen(kw_only=True)
class _Source:
    """What is consumed, and how; `claim_idle` in ms."""

    stream: str
    group: str
    dead_letter: str | None
    create: bool
    start: str
    body_field: bytes
    claim_idle: int


def _consumer_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@frozen
class _Seat:
    """What the connections of one run have in common.

    Attributes:
        consumer: the name in the group.
        held: the ids that have arrived here, and are not settled. What else is pending for this
            name got lost on its way.
    """

    consumer: str = field(factory=_consumer_name)
    held: set[bytes] = field(factory=set)


class _Line:
    """One connection, that is never made anew: what it had for us would be lost unnoticed."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._seconds = self._connection.socket_timeout or math.inf
        self._connection.socket_timeout = None  # see `_exchange`
        self._turn = asyncio.Lock()
        self.where = "Redis at " + ":".join(
            str(value)
            for key, value in self._connection.repr_pieces()
            if key in ("host", "port", "path")
        )
        self.usable = False

    async def open(self) -> None:
        try:
            await self._in_time(self._connection.connect(), 0.0)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            raise _refusal(self.where, error) from None
        self.usable = True

    async def ask(self, *command: Word, patience: float = 0.0) -> Any:  # what the server says
        """One command, which may block for `patience` seconds."""
        (answer,) = await self.ask_all([command], patience)
        return answer

    async def ask_all(self, commands: Sequence[Sequence[Word]], patience: float = 0.0) -> list[Any]:
        """Their answers. None of them is sent behind one that another task has sent later.

        Raises:
            BrokerAwayError: the connection is lost, or the server cannot do it for now.
            PermissionError, RuntimeError: the server refuses one of them; the others were done.
        """
        async with self._turn:
            if not self.usable:
                raise BrokerAwayError(f"{self.where}: the connection is lost")
            self.usable = False  # unless it is known how it ended
            answers = await self._in_time(self._exchange(commands), patience)
            self.usable = True
        _check_answers(self.where, answers)
        return answers

    async def _exchange(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        connection = self._connection
        packed = connection.pack_commands(commands)
        await connection.send_packed_command(packed, check_health=False)
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                answers.append(error)
        return answers

    async def _in_time(self, work: Awaitable[T], patience: float) -> T:
        seconds = self._seconds + patience
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                return await work
        except (AuthenticationError, AuthorizationError) as error:
            raise PermissionError(f"{self.where}: {error}") from None
        except TimeoutError:
            raise BrokerAwayError(f"{self.where}: no answer for {self._seconds:g} s") from None
        except (LostError, LateError, OSError) as error:
            raise BrokerAwayError(f"{self.where}: {error}") from error

    async def close(self) -> None:
        self.usable = False
        await self._connection.disconnect()


def _check_answers(where: str, answers: Iterable[object]) -> None:
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise _refusal(where, answer)


def _refusal(where: str, error: ResponseError) -> Exception:
    """What is raised in its place: redis-py's own do not tell, in their repr(), what they say."""
    if type(error).__name__ in PASSING_CLASSES or str(error).startswith(PASSING_CODES):
        return BrokerAwayError(f"{where}: {error}")
    kind = PermissionError if isinstance(error, NoPermissionError) else RuntimeError
    return kind(f"{where}: {error}")


class _RedisBroker(Broker):
    """Two connections: a read blocks one of them."""

    def __init__(self, pool: ConnectionPool, source: _Source, seat: _Seat) -> None:
        self.dead_letters = source.dead_letter is not None
        self.keep_seconds = source.claim_idle / 3000
        self._source = source
        self._seat = seat
        self._loop = asyncio.get_running_loop()
        self._reader = _Line(pool)
        self._line = _Line(pool)
        self._reader_id = 0
        self._reading = False
        self._interrupted = False
        self._waker: asyncio.Task[None] | None = None
        self._look_at = 0.0  # when to look at what others have left

    async def open(self) -> None:
        await self._line.open()
        await self._reader.open()
        self._reader_id = await self._reader.ask("CLIENT", "ID")
        await self._check()
        await self._return_lost(0)
        self._look_at = self._loop.time()

    async def _check(self) -> None:
        """See that there is all that is needed."""
        source, ask = self._source, self._line.ask
        if source.create:
            await self._create()
        elif source.group.encode() not in await self._groups():
            raise LookupError(
                f"{self._where()} has no group {source.group!r}: make it with XGROUP CREATE, or "
                "let create=True do it"
            )
        if source.dead_letter is not None:
            kind = await ask("TYPE", source.dead_letter)
            if kind not in (b"none", b"stream"):
                raise ValueError(
                    f"{self._line.where}: dead_letter {source.dead_letter!r} is no stream there, "
                    f"but a {kind.decode()}"
                )
        try:
            await ask("CLIENT", "UNBLOCK", self._reader_id)
        except PermissionError as error:
            raise PermissionError(f"{error}; it needs that to stop") from None

    def _where(self) -> str:
        return f"{self._line.where}: the stream {self._source.stream!r}"

    async def _create(self) -> None:
        source = self._source
        create = ("XGROUP", "CREATE", source.stream, source.group, source.start, "MKSTREAM")
        try:
            await self._line.ask(*create)
        except RuntimeError as error:
            if "BUSYGROUP" not in str(error):
                raise RuntimeError(f"{self._where()}: {error}") from None

    async def _groups(self) -> list[bytes]:
        try:
            groups = await self._line.ask("XINFO", "GROUPS", self._source.stream)
        except RuntimeError as error:
            if "no such key" in str(error):
                return []
            raise RuntimeError(f"{self._where()}: {error}") from None
        return [dict(zip(group[::2], group[1::2], strict=True))[b"name"] for group in groups]

    # -- what comes in ----------------------------------------------------------------------------

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        await asyncio.sleep(0)  # what was fetched before begins first
        while not self._interrupted:
            pause = self._look_at - self._loop.time()
            if pause > 0:
                taken = await self._read(limit, pause)
            else:
                taken = await self._take_over(limit)
                if not taken:  # otherwise there may be more
                    self._look_at = self._loop.time() + LOOK_SECONDS
            if taken:
                return taken
        return []

    async def _read(self, limit: int, seconds: float) -> list[Delivery]:
        source = self._source
        self._reading = True
        try:
            streams = await self._reader.ask(
                *("XREADGROUP", "GROUP", source.group, self._seat.consumer),
                *("COUNT", limit, "BLOCK", max(1, round(seconds * 1000))),
                *("STREAMS", source.stream, ">"),
                patience=seconds,
            )
        finally:
            self._reading = False
        if not streams:
            return []
        return [self._delivery(ident, fields, 1) for ident, fields in streams[0][1]]

    async def _take_over(self, limit: int) -> list[Delivery]:
        """What was given back, or is in hand of those who died."""
        source, held = self._source, self._seat.held
        await self._return_lost(round(LOOK_SECONDS * 1000))
        idle = await self._line.ask(
            *("XPENDING", source.stream, source.group, "IDLE", source.claim_idle),
            *("-", "+", limit),
        )
        attempts = {ident: count + 1 for ident, _, _, count in idle if ident not in held}
        if not attempts:
            return []
        # Some of them another may have by now: they are idle no more.
        entries = await self._line.ask(
            *("XCLAIM", source.stream, source.group, self._seat.consumer, source.claim_idle),
            *attempts,
        )
        return [
            self._delivery(entry[0], entry[1], attempts[entry[0]])
            for entry in entries
            if entry is not None
        ]

    async def _return_lost(self, idle: int) -> None:
        """Give back what is pending for us for `idle` ms, and has never arrived here."""
        source, consumer = self._source, self._seat.consumer
        before = self._seat.held.copy()  # what is settled meanwhile is not ours to touch
        pending = await self._line.ask(
            *("XPENDING", source.stream, source.group, "IDLE", idle),
            *("-", "+", len(before) + LOST_AT_ONCE, consumer),
        )
        lost = [(ident, count) for ident, _, _, count in pending if ident not in before]
        await self._line.ask_all(self._returns(lost))

    def _delivery(self, ident: bytes, fields: list[bytes], attempt: int) -> Delivery:
        self._seat.held.add(ident)
        entry = dict(zip(fields[::2], fields[1::2], strict=True))
        text = ident.decode()
        message = Message(
            body=entry.get(self._source.body_field, b""),
            headers={
                key.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
                for key, value in entry.items()
                if key != self._source.body_field
            },
            id=text,
            attempt=attempt,
            first_seen=int(text.partition("-")[0]) / 1000,
            raw=(ident, entry),
        )
        return Delivery(message=message, token=ident, broker=self)

    # -- the stop ---------------------------------------------------------------------------------

    def interrupt(self) -> None:
        self._interrupted = True
        self._waker = self._loop.create_task(self._unblock())

    async def _unblock(self) -> None:
        """End a read that blocks; what the server has sent by then is its result."""
        try:
            while self._reading and not await self._line.ask("CLIENT", "UNBLOCK", self._reader_id):
                await asyncio.sleep(UNBLOCK_SECONDS)  # the read is on its way, or its answer
        except (BrokerAwayError, PermissionError, RuntimeError):
            pass  # then the read ends by itself

    # -- what becomes of it -----------------------------------------------------------------------

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        idents = [one.token for one in deliveries]
        await self._line.ask("XACK", self._source.stream, self._source.group, *idents)
        self._seat.held.difference_update(idents)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        # Before anything is sent, so that no `keep` sent after it gets them again.
        idents = {one.token for one in deliveries}
        self._seat.held.difference_update(idents)
        try:
            await self._line.ask_all(
                self._returns((one.token, one.message.attempt) for one in deliveries)
            )
        except BrokerAwayError:
            self._seat.held.update(idents)
            raise

    def _returns(self, attempts: Iterable[tuple[bytes, int]]) -> list[list[Word]]:
        """The commands that give them back, whose attempts have not been any."""
        idents: dict[int, list[Word]] = {}
        for ident, attempt in attempts:
            idents.setdefault(attempt - 1, []).append(ident)
        source = self._source
        return [
            [
                *("XCLAIM", source.stream, source.group, RETURNED, 0, *some),
                *("IDLE", LONG_AGO, "RETRYCOUNT", count, "JUSTID"),
            ]
            for count, some in idents.items()
        ]

    async def bury(self, delivery: Delivery, reason: str) -> None:
        source = self._source
        assert source.dead_letter is not None
        ident, entry = delivery.message.raw
        words = [word for pair in {**entry, b"reason": reason.encode()}.items() for word in pair]
        *_, done = await self._line.ask_all(
            [
                ["MULTI"],
                ["XADD", source.dead_letter, "*", *words],
                ["XACK", source.stream, source.group, ident],
                ["EXEC"],
            ]
        )
        self._seat.held.discard(ident)
        _check_answers(self._line.where, done)

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        source = self._source
        held = [one.token for one in deliveries if one.token in self._seat.held]
        if held:
            await self._line.ask(
                *("XCLAIM", source.stream, source.group, self._seat.consumer, 0, *held), "JUSTID"
            )

    async def close(self) -> None:
        if self._waker is not None:
            self._waker.cancel()
        try:
            if self._interrupted and self._line.usable and self._reader.usable:
                await self._leave()
        finally:
            try:
                await self._reader.close()
            finally:
                await self._line.close()

    async def _leave(self) -> None:
        """Take our name off the group, unless something is pending for it."""
        source, consumer = self._source, self._seat.consumer
        await self._return_lost(0)
        if not await self._line.ask("XPENDING", source.stream, source.group, "-", "+", 1, consumer):
            # Only a read of ours could add to it, and there is none any more.
            await self._line.ask("XGROUP", "DELCONSUMER", source.stream, source.group, consumer)


def _pool(url: object, options: dict[str, Any]) -> ConnectionPool:
    """What makes connections, once the options were seen to make sense."""
    if not isinstance(url, str):
        raise TypeError(f"RedisStreamConsumer: url must be a str, not {url!r}")
    defaults = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": ANSWER_SECONDS}
    # The consumer has to see each loss of a connection, and reads the answers of RESP2.
    ours = {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
    try:
        parts = urlsplit(url)
        database = parts.path.removeprefix("/")
        if parts.scheme != "unix" and database and not database.isdecimal():
            raise ValueError(f"{database!r} is no number of a database")
        pool: ConnectionPool = ConnectionPool.from_url(url, **{**defaults, **options, **ours})
        pool.connection_kwargs.update(ours)  # those in the URL come first
        pool.make_connection()  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ValueError(f"RedisStreamConsumer: url makes no sense: {error}") from None
    except TypeError as error:
        raise TypeError(f"RedisStreamConsumer: redis-py does not take that: {error}") from None
    return pool
