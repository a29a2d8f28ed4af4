"""`RabbitConsumer`: the messages of a RabbitMQ queue, over pika, in the event loop."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from servicegroup.adapters._broker import Broker, BrokerAwayError, Delivery
from servicegroup.adapters._message import Message, RetryPolicy
from servicegroup.adapters.queue import AWAY, Handler, QueueConsumer
from servicegroup.restart import Restart

try:
    from pika import URLParameters
    from pika.adapters.asyncio_connection import AsyncioConnection
    from pika.adapters.utils.connection_workflow import (
        AMQPConnectionWorkflowFailed,
        AMQPConnectorPhaseErrorBase,
    )
    from pika.connection import Parameters
    from pika.exceptions import (
        AMQPConnectionError,
        AMQPError,
        AuthenticationError,
        ChannelClosedByBroker,
        ConnectionClosedByBroker,
        ProtocolVersionMismatch,
    )
    from pika.spec import Basic, BasicProperties
except ImportError as error:
    raise ImportError("RabbitConsumer needs pika: pip install 'servicegroup[rabbitmq]'") from error

# The server's own are 60; nothing here keeps the loop from answering for so long.
HEARTBEAT_SECONDS = 20
PREFETCH_LIMIT = 0xFFFF
NAME_LIMIT = 255  # bytes
# A message's headers must fit into one frame, of 128 KiB mostly.
REASON_LIMIT = 4_000
# Of the message's own headers: to be routed by once more, or counted by another queue.
NOT_FOR_DEAD_LETTERS = {"CC", "BCC", "x-delivery-count"}


class RabbitConsumer(QueueConsumer):
    """Handles the messages of a RabbitMQ queue; several of them may share one, in many processes.

    What is in hand when the connection is lost goes back to the queue, and is delivered again.

    Args:
        url: `amqp://user:password@host:port/vhost?option=value`, or `amqps`; the options are those
            of `pika.URLParameters`. Or any `pika.connection.Parameters`. Of ours is the default
            `heartbeat=20`, in seconds.
        queue: the name of the queue.
        handler: what to do with each message.
        concurrency: how many are handled at a time.
        prefetch: how many may be in hand; by default 10 for each handler.
        retry: how often, and after what pauses, one is handled again whose handler raised.
        dead_letter: the name of the queue for those that cannot be handled; the reason is in their
            headers. Without one, what is rejected goes where the queue's own policy says.
        handler_timeout: seconds after which a handler is told as stalled.
        create: declare the queue, durable, and `dead_letter` if it is missing; False: they must be
            there.
        arguments: to declare the queue with: `{"x-queue-type": "quorum"}`, say.
        name: what the group calls it; by default that of the queue.
        reconnect: the pauses between attempts to connect.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    def __init__(
        self,
        url: str | Parameters,
        queue: str,
        handler: Handler,
        *,
        concurrency: int = 1,
        prefetch: int | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        dead_letter: str | None = None,
        handler_timeout: float = math.inf,
        create: bool = True,
        arguments: Mapping[str, object] | None = None,
        name: str | None = None,
        reconnect: Restart = AWAY,
    ) -> None:
        _check_name("queue", queue)
        if dead_letter is not None:
            _check_name("dead_letter", dead_letter)
        if dead_letter == queue:
            raise ValueError(f"RabbitConsumer: dead_letter must not be the queue {queue!r} itself")
        if arguments and not create:
            raise ValueError(
                "RabbitConsumer: arguments are for a queue that is declared: leave them out, or "
                "pass create=True"
            )
        if (arguments or {}).get("x-queue-type") == "stream":
            raise ValueError(
                "RabbitConsumer: a stream is no queue: nothing can be given back to it"
            )
        super().__init__(
            handler,
            name=queue if name is None else name,
            concurrency=concurrency,
            prefetch=prefetch,
            retry=retry,
            handler_timeout=handler_timeout,
            reconnect=reconnect,
        )
        if self._options.prefetch > PREFETCH_LIMIT:
            raise ValueError(
                f"RabbitConsumer: prefetch must be {PREFETCH_LIMIT} or less, as the protocol has "
                f"it, not {self._options.prefetch}"
            )
        self._parameters = _parameters(url)
        self._queue = queue
        self._dead_letter = dead_letter
        self._create = create
        self._arguments = dict(arguments or {})

    def _new_broker(self) -> Broker:
        return _RabbitBroker(
            self._parameters,
            self._queue,
            self._dead_letter,
            self._create,
            self._arguments,
            self._options.prefetch,
            self._options.retry.attempts,
        )


class _RabbitBroker(Broker):
    """A connection with one channel, on which the dead letters are published, too."""

    volatile = True

    def __init__(
        self,
        parameters: Parameters,
        queue: str,
        dead_letter: str | None,
        create: bool,
        arguments: dict[str, object],
        prefetch: int,
        attempts: float,
    ) -> None:
        self.dead_letters = dead_letter is not None
        self._parameters = parameters
        self._queue = queue
        self._dead_letter = dead_letter
        self._create = create
        self._arguments = arguments
        self._prefetch = prefetch
        self._attempts = attempts
        self._where = _where(parameters)
        self._lost = asyncio.Event()
        self._link = _Calls(self._where, self._lost.set)
        self._connection: Any = None  # pika has no types
        self._channel: Any = None
        self._calls = self._link  # of the channel, once there is one
        self._tag = ""  # of the consumer
        self._interrupted = False
        self._to_fetch = asyncio.Event()
        self._arrived: deque[Delivery] = deque()
        self._unsettled: dict[int, None] = {}  # in order of their delivery
        self._burying = asyncio.Lock()
        self._on_confirm: Callable[[Any], None] = _ignore
        self._returned = False

    # -- from the beginning to the end ------------------------------------------------------------

    async def open(self) -> None:
        await self._link.call(self._connect, callback="on_open")
        await self._open_channel()
        if self._dead_letter is not None:
            await self._declare_dead_letters(self._dead_letter)
        await self._declare(self._queue, passive=not self._create, arguments=self._arguments)
        channel, call = self._channel, self._calls.call
        if self._dead_letter is not None:
            channel.add_on_return_callback(self._on_return)
            await call(channel.confirm_delivery, lambda frame: self._on_confirm(frame.method))
        await call(channel.basic_qos, prefetch_count=self._prefetch)
        channel.add_on_cancel_callback(self._on_cancel)
        self._tag = f"servicegroup.{id(self):x}.{time.time_ns():x}"
        await call(channel.basic_consume, self._queue, self._on_message, consumer_tag=self._tag)

    def _connect(self, on_open: Callable[[object], None]) -> None:
        self._connection = AsyncioConnection(
            self._parameters,
            on_open_callback=on_open,
            on_open_error_callback=self._link.on_gone,
            on_close_callback=self._link.on_gone,
            custom_ioloop=asyncio.get_running_loop(),
        )

    async def _open_channel(self) -> None:
        calls = _Calls(self._where, self._to_fetch.set)
        self._channel = await self._link.call(self._connection.channel, callback="on_open_callback")
        self._channel.add_on_close_callback(calls.on_gone)
        self._calls = calls

    async def _declare(
        self, queue: str, *, passive: bool, arguments: dict[str, object] | None = None
    ) -> None:
        await self._calls.call(
            self._channel.queue_declare, queue, passive=passive, durable=True, arguments=arguments
        )

    async def _declare_dead_letters(self, queue: str) -> None:
        """As it is, if it is there: with what arguments it was made is not said here."""
        try:
            await self._declare(queue, passive=True)
        except LookupError:
            if not self._create:
                raise
            await self._open_channel()  # that error has closed it
            kind = {key: self._arguments[key] for key in {"x-queue-type"} & {*self._arguments}}
            await self._declare(queue, passive=False, arguments=kind)

    def _on_cancel(self, _: object) -> None:
        self._calls.on_gone(None, BrokerAwayError("the queue was deleted, or has moved"))

    async def close(self) -> None:
        connection = self._connection
        if connection is None or self._lost.is_set():
            return
        try:
            if not connection.is_closing:
                connection.close()
            await self._lost.wait()
        finally:
            # The network has gone silent, and pika itself would wait for the heartbeat.
            if not self._lost.is_set() and connection._transport is not None:
                connection._transport.abort()

    # -- what comes in ----------------------------------------------------------------------------

    def _on_message(self, _: object, method: Any, properties: Any, body: bytes) -> None:
        headers = properties.headers or {}
        # A message that comes for the first time may still have the count of another queue.
        count = headers.get("x-delivery-count", 1) if method.redelivered else 0
        tag = method.delivery_tag
        message = Message(
            body=body,
            headers={_text(key): _text(value) for key, value in headers.items()},
            id=_text(properties.message_id or f"{self._tag}/{tag}"),
            attempt=self._attempt(count if isinstance(count, int) else 1),
            first_seen=float(properties.timestamp or time.time()),
            raw=(method, properties),
        )
        self._unsettled[tag] = None
        self._arrived.append(Delivery(message=message, token=tag, broker=self))
        self._to_fetch.set()

    def _attempt(self, deliveries: int) -> int:
        # One earlier delivery alone wears nothing out: it may have been given back untouched.
        return 1 + deliveries if deliveries > 1 else int(min(1 + deliveries, self._attempts))

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while not self._interrupted:
            self._calls.check()
            if arrived := self._arrived:
                return [arrived.popleft() for _ in range(min(limit, len(arrived)))]
            self._to_fetch.clear()
            await self._to_fetch.wait()
        return []

    def interrupt(self) -> None:
        self._interrupted = True
        self._to_fetch.set()
        if self._calls.reason is None:
            self._channel.basic_cancel(self._tag)  # pika gives back what comes now
            self._settle(self._arrived, self._channel.basic_nack)
            self._arrived.clear()

    # -- what becomes of it -----------------------------------------------------------------------

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(deliveries, self._channel.basic_ack)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        self._settle(deliveries, self._channel.basic_nack)

    async def drop(self, delivery: Delivery) -> None:
        # The queue's own dead letter exchange, if it has one, gets what is rejected.
        self._calls.check()
        del self._unsettled[delivery.token]
        self._channel.basic_reject(delivery.token, requeue=False)

    def _settle(self, deliveries: Sequence[Delivery], send: Callable[[int, bool], None]) -> None:
        """One frame for all before the first that is left, and one for each of the others."""
        self._calls.check()
        tags = {one.token for one in deliveries}
        covered = 0
        for tag in self._unsettled:
            if tag not in tags:
                break
            covered = tag
        for tag in tags:
            del self._unsettled[tag]
        if covered:
            send(covered, True)
        for tag in sorted(tags):
            if tag > covered:
                send(tag, False)

    async def bury(self, delivery: Delivery, reason: str) -> None:
        async with self._burying:
            self._returned = False
            answer = await self._calls.call(self._publish, delivery, reason)
        if self._returned or isinstance(answer, Basic.Nack):
            raise BrokerAwayError(f"{self._where}: {self._dead_letter!r} takes no dead letters now")
        self._settle([delivery], self._channel.basic_ack)

    def _publish(self, delivery: Delivery, reason: str, callback: Callable[[object], None]) -> None:
        self._on_confirm = callback
        _, properties = delivery.message.raw
        self._channel.basic_publish(
            "", self._dead_letter, delivery.message.body, _buried(properties, reason), True
        )

    def _on_return(self, *_: object) -> None:
        self._returned = True  # nobody has it; the confirmation comes all the same


class _Calls:
    """What tells its result to a callback, to be awaited; until what is called is gone.

    Attributes:
        reason: why it is gone, as pika says it.
    """

    def __init__(self, where: str, tell_gone: Callable[[], None]) -> None:
        self._where = where
        self._tell_gone = tell_gone
        self._waits: set[asyncio.Future[Any]] = set()
        self.reason: Exception | None = None

    async def call(
        self,
        function: Callable[..., object],
        *values: object,
        callback: str = "callback",
        **named: object,
    ) -> Any:  # whatever pika gives its callback
        self.check()
        future = asyncio.get_running_loop().create_future()
        self._waits.add(future)

        def tell(result: object) -> None:
            if not future.done():
                future.set_result(result)

        try:
            function(*values, **named, **{callback: tell})
            return await future
        except AMQPError as error:  # it is gone, and nobody was told yet
            raise _meaning(self._where, error) from None
        finally:
            self._waits.discard(future)

    def check(self) -> None:
        """Raise what it means that it is gone, if it is."""
        if self.reason is not None:
            raise _meaning(self._where, self.reason)

    def on_gone(self, _: object, reason: Exception) -> None:
        self.reason = reason
        for future in self._waits:
            if not future.done():
                future.set_exception(_meaning(self._where, reason))
        self._tell_gone()


# -- what went wrong ------------------------------------------------------------------------------


def _meaning(where: str, reason: Exception) -> Exception:
    """`BrokerAwayError`, unless the next connection would be told the same."""
    cause = _cause(reason)
    code, text = _said(cause)
    if code == 404 and "no queue" in text:
        return LookupError(f"{where}: {text}: create it, or pass create=True")
    if code == 406 and "inequivalent" in text:
        return ValueError(f"{where}: {text}: pass the arguments it was made with, or create=False")
    if code in (403, 405) or (code == 530 and "limit" not in text):
        return PermissionError(f"{where}: {text}")
    if code in (406, 540) and "timed out" not in text:
        return ValueError(f"{where}: {text}")
    if isinstance(
        cause, (ssl.SSLCertVerificationError, AuthenticationError, ProtocolVersionMismatch)
    ):
        return RuntimeError(f"{where}: {cause!r}")
    if code:
        return BrokerAwayError(f"{where}: {code} {text}")
    return BrokerAwayError(f"{where}: {str(cause) or repr(cause)}")


def _cause(error: BaseException) -> BaseException:
    """What it was that pika has wrapped up, once for each layer."""
    while True:
        if isinstance(error, AMQPConnectionWorkflowFailed):
            error = error.exceptions[-1]
        elif isinstance(error, AMQPConnectorPhaseErrorBase):
            error = error.exception
        elif isinstance(error, AMQPConnectionError) and isinstance(
            next(iter(error.args), None), BaseException
        ):
            error = error.args[0]
        else:
            return error


def _said(cause: BaseException) -> tuple[int, str]:
    """The broker's code and text; 0 without any."""
    if isinstance(cause, (ChannelClosedByBroker, ConnectionClosedByBroker)):
        return cause.reply_code, cause.reply_text
    # While a connection is being opened, pika has them as text.
    found = re.search(r"ConnectionClosedByBroker: \((\d+)\) (.*)", str(cause))
    return (int(found[1]), found[2].strip("'\"")) if found else (0, "")


# -- what is said to pika, and by it --------------------------------------------------------------


def _buried(properties: Any, reason: str) -> Any:
    """The properties of a dead letter."""
    headers = properties.headers or {}
    kept = {key: value for key, value in headers.items() if key not in NOT_FOR_DEAD_LETTERS}
    text = reason[:REASON_LIMIT].encode(errors="backslashreplace").decode()
    buried: BasicProperties = copy.copy(properties)
    buried.headers = {**kept, "reason": text}
    buried.delivery_mode = 2  # persistent
    buried.expiration = None
    buried.user_id = None  # the broker refuses any but ours
    return buried


def _text(value: object) -> str:
    match value:
        case str():
            return value
        case bytes():
            return value.decode(errors="backslashreplace")
        case dict() | list() | bool() | None:
            return json.dumps(value, default=str, skipkeys=True)
    return str(value)


def _parameters(url: object) -> Any:
    if isinstance(url, Parameters):
        parameters = copy.copy(url)
    elif isinstance(url, str):
        if not re.match("amqps?://", url):  # which may have a password in it
            raise ValueError("RabbitConsumer: url must begin with amqp:// or amqps://")
        try:
            parts = urlsplit(url)
            if parts.username is not None and parts.password is None:
                raise ValueError("there is a user without a password")
            parameters = URLParameters(url)
        except Exception as error:  # of several kinds
            raise ValueError(f"RabbitConsumer: url makes no sense: {error}") from None
    else:
        raise TypeError(
            "RabbitConsumer: url must be text that begins with amqp://, or pika's Parameters, "
            f"not {url!r}"
        )
    if parameters.heartbeat is None:
        parameters.heartbeat = HEARTBEAT_SECONDS
    return parameters


def _where(parameters: Parameters) -> str:
    """The URL, without the password and the options."""
    user = getattr(parameters.credentials, "username", "")
    host, port, vhost = parameters.host, parameters.port, parameters.virtual_host
    scheme = "amqps" if parameters.ssl_options else "amqp"
    return f"{scheme}://{user}@{host}:{port}/{vhost if vhost != '/' else ''}"


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"RabbitConsumer: {what} must be the name of a queue, not {name!r}")
    if not 0 < len(name.encode()) <= NAME_LIMIT:
        raise ValueError(f"RabbitConsumer: {what} must have 1 to {NAME_LIMIT} bytes, not {name!r}")


def _ignore(_: object) -> None:
    pass
