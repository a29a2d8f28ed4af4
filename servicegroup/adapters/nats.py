"""`NatsConsumer`: the messages of a JetStream stream, by a durable pull consumer of NATS."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
import ssl
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attrs import frozen

from servicegroup.adapters._broker import Broker, BrokerAwayError, Delivery
from servicegroup.adapters._drain import log
from servicegroup.adapters._message import Message, RetryPolicy
from servicegroup.adapters.queue import AWAY, Handler, QueueConsumer
from servicegroup.restart import Restart

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.errors import Error as NatsError
    from nats.errors import MaxPayloadError, StaleConnectionError
    from nats.js import JetStreamContext
    from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, RetentionPolicy
    from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError
except ImportError as error:
    raise ImportError("NatsConsumer needs nats-py: pip install 'servicegroup[nats]'") from error

T = TypeVar("T")

ACK_WAIT = 30.0
ANSWER_SECONDS = 5.0  # for the server to answer a request
PING_SECONDS = 20  # nats-py's two minutes would let a dead connection pass for a live one
# A pull waits at the server for so long, which says every so often that it is there.
PULL_SECONDS = 120.0
HEARTBEAT_SECONDS = 15.0
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
# So many of a message's deliveries may have been given back before any handler began.
UNBEGUN = 50
REASON_LENGTH = 1000
TOO_LARGE_SECONDS = 60.0

_OURS = {
    *("servers", "allow_reconnect", "max_reconnect_attempts", "reconnect_time_wait"),
    *("error_cb", "closed_cb", "disconnected_cb", "reconnected_cb", "reconnect_to_server_handler"),
}
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_ENABLED = {10039, 10076}  # JetStream, for the account or the server
_ACK, _NAK, _IN_PROGRESS, _TERM = b"+ACK", b"-NAK", b"+WPI", b"+TERM"


class NatsConsumer(QueueConsumer):
    """Handles the messages of a JetStream stream; several may share one durable consumer.

    What is in hand is kept from others by telling the server that it is in progress. What a killed
    process had comes back after `ack_wait`.

    Args:
        servers: the URL, or several of one cluster; `nats://`, `tls://`, `ws://` or `wss://`.
        stream: its name.
        durable: the name of the durable consumer; those of one name share the messages.
        handler: what to do with each message.
        subject: which messages of the stream; None: all, or those the durable consumer filters.
        concurrency: how many are handled at a time.
        prefetch: how many may be in hand; by default 10 for each handler.
        retry: how often, and after what pauses, one is handled again whose handler raised.
        dead_letter: the subject for those that cannot be handled, which a stream must store; the
            reason is in their headers.
        handler_timeout: seconds after which a handler is told as stalled.
        ack_wait: seconds; see above. A durable consumer that exists keeps its own.
        create: make what is missing: the stream, as a work queue of `subject`, the durable
            consumer, and a stream for the dead letters.
        name: what the group calls it; by default that of the stream.
        reconnect: the pauses between attempts to connect.
        connection: options of nats-py's `connect`: `user`, `password`, `token`, `tls`,
            `user_credentials` say.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        stream: str,
        durable: str,
        handler: Handler,
        subject: str | None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        dead_letter: str | None = None,
        handler_timeout: float = math.inf,
        ack_wait: float = ACK_WAIT,
        create: bool = True,
        name: str | None = None,
        reconnect: Restart = AWAY,
        **connection: Any,  # whatever the nats-py that is installed takes
    ) -> None:
        super().__init__(
            handler,
            name=stream if name is None else name,
            concurrency=concurrency,
            prefetch=prefetch,
            retry=retry,
            handler_timeout=handler_timeout,
            reconnect=reconnect,
        )
        _check_name("stream", stream)
        _check_name("durable", durable)
        if subject is not None:
            _check_subject("subject", subject, wildcards=True)
        if dead_letter is not None:
            _check_subject("dead_letter", dead_letter, wildcards=False)
            if subject is not None and _matches(subject, dead_letter):
                raise ValueError(
                    f"NatsConsumer: dead_letter {dead_letter!r} is one of the subjects "
                    f"{subject!r} that are consumed"
                )
        if isinstance(ack_wait, bool) or not isinstance(ack_wait, (int, float)):
            raise TypeError(f"NatsConsumer: ack_wait must be a number, not {ack_wait!r}")
        if not 0.001 <= ack_wait < math.inf:
            raise ValueError(
                f"NatsConsumer: ack_wait must be 0.001 or more seconds, not {ack_wait!r}"
            )
        for option in sorted(_OURS & set(connection)):
            raise ValueError(
                f"NatsConsumer: {option} is not passed to nats-py, since each connection is made "
                "here: give servers and reconnect"
            )
        try:
            inspect.signature(Client.connect).bind(None, **connection)
        except TypeError as error:
            raise TypeError(f"NatsConsumer: nats-py's connect(): {error}") from None
        self._target = _Target(
            servers=_checked_urls(servers),
            stream=stream,
            durable=durable,
            subject=subject,
            dead_letter=dead_letter,
            ack_wait=ack_wait,
            create=create,
            connection=connection,
        )

    def _new_broker(self) -> Broker:
        return _NatsBroker(self._target)


@frozen(kw_only=True)
class _Target:
    """What there is to connect to; see `NatsConsumer`."""

    servers: list[str]
    stream: str
    durable: str
    subject: str | None
    dead_letter: str | None
    ack_wait: float
    create: bool
    connection: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The servers, without passwords."""
        return ", ".join(urlsplit(server).netloc.rpartition("@")[2] for server in self.servers)


class _NatsBroker(Broker):
    """A connection that is never mended: the next one is another broker.

    A message is settled by its reply subject, which is valid on any connection.
    """

    unbegun = UNBEGUN

    def __init__(self, target: _Target) -> None:
        self.dead_letters = target.dead_letter is not None
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._client = Client()
        self._lost: asyncio.Future[Exception] = self._loop.create_future()
        self._last_error: Exception | None = None
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._pulls = 0
        self._asked = 0  # what the server may still send for the last pull
        self._arrived: deque[Msg] = deque()
        self._in_hand: set[str] = set()  # the sequence numbers
        self._woken = asyncio.Event()
        self._interrupted = False
        self._leaving: asyncio.Task[None] | None = None

    # -- the connection ---------------------------------------------------------------------------

    async def open(self) -> None:
        await self._talk(self._connect())
        self.keep_seconds = await self._talk(self._prepare()) / 3
        self._inbox = self._client.new_inbox()
        # No limits, beyond which nats-py throws messages away: there are no more than were asked.
        self._subscription = await self._talk(
            self._client.subscribe(
                f"{self._inbox}.*",
                cb=self._on_message,
                pending_msgs_limit=0,
                pending_bytes_limit=0,
            )
        )

    async def _connect(self) -> None:
        options = {"ping_interval": PING_SECONDS, **self._target.connection}
        await self._client.connect(
            self._target.servers,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # 0 would be without end
            reconnect_time_wait=0,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            **options,
        )
        # Where nats-py fails to close what is closed already, its task ends with that and it tells
        # nobody.
        for name in ("_reading_task", "_flusher_task", "_ping_interval_task"):
            task = getattr(self._client, name, None)
            if task is not None:
                task.add_done_callback(_forget)
                task.add_done_callback(self._on_end)

    async def _talk(self, words: Coroutine[Any, Any, T]) -> T:
        """What they come to; `BrokerAwayError` as soon as the connection is lost."""
        # nats-py lets who waits for an answer wait on when the connection is lost.
        task = self._loop.create_task(words)
        task.add_done_callback(_forget)
        both: set[asyncio.Future[Any]] = {task, self._lost}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() or (task.exception() and self._lost.done()):
                raise self._lost.result()
            return task.result()
        except (NatsError, OSError, TimeoutError) as error:
            meant = self._meant(error)
            if meant is error:
                raise
            raise meant from error
        finally:
            task.cancel()

    def _meant(self, error: Exception) -> Exception:
        """What an error of nats-py is to the engine."""
        where, text = self._target.where, str(error).lower()
        if isinstance(error, (BrokerAwayError, PermissionError, ssl.SSLCertVerificationError)):
            return error
        if isinstance(error, ServiceUnavailableError):
            if error.err_code in _NOT_ENABLED:
                return RuntimeError(f"{where}: JetStream is not enabled: {error.description}")
            said = error.description or "JetStream does not answer: is it enabled (-js)?"
            return BrokerAwayError(f"{where}: {said}")
        if isinstance(error, APIError):
            if error.code is not None and error.code >= 500:
                return BrokerAwayError(f"{where}: {error.description}")
            return error
        if isinstance(error, OSError) and error.filename is not None:
            return error  # of credentials, or the like
        if "authorization" in text or "authentication" in text:
            return PermissionError(f"{where}: {error}")
        last = self._last_error
        if last is not None and last is not error and str(last):
            return BrokerAwayError(f"{where}: {last}")
        return BrokerAwayError(f"{where}: {str(error) or type(error).__name__}")

    async def _on_error(self, error: Exception) -> None:
        log.debug("nats-py: %r", error)
        self._last_error = error
        if "permissions violation" in str(error).lower():
            # The server ignores what it does not permit: no message would ever be acknowledged.
            self._lose(PermissionError(f"{self._target.where}: {error}"))
        elif isinstance(error, (OSError, StaleConnectionError)) and self._client.is_connected:
            # For when nats-py fails to close what is closed already, and says nothing more.
            self._lose(BrokerAwayError(f"{self._target.where}: {error}"))

    async def _on_closed(self) -> None:
        self._on_end()

    def _on_end(self, *_: object) -> None:
        said = self._client.last_error or "the connection was closed"
        self._lose(self._meant(ConnectionError(str(said))))

    def _lose(self, error: Exception) -> None:
        if not self._lost.done():
            self._lost.set_result(error)
        self._woken.set()

    async def close(self) -> None:
        try:
            if self._leaving is not None:
                await asyncio.wait({self._leaving})
            await self._client.close()
        finally:
            # For a server that reads no more, and nats-py would wait without end.
            writer = getattr(self._client._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()

    # -- what must be there -----------------------------------------------------------------------

    async def _prepare(self) -> float:
        """See that all is there; the seconds after which a message is delivered again."""
        target = self._target
        jetstream = self._client.jetstream(timeout=ANSWER_SECONDS)
        try:
            await jetstream.stream_info(target.stream)
        except NotFoundError:
            if not target.create:
                raise _missing(f"stream {target.stream!r}") from None
            if target.subject is None:
                raise LookupError(
                    f"there is no stream {target.stream!r}, and without a subject none can be made"
                ) from None
            await jetstream.add_stream(
                name=target.stream,
                subjects=[target.subject],
                retention=RetentionPolicy.WORK_QUEUE,
            )
        try:
            info = await jetstream.consumer_info(target.stream, target.durable)
        except NotFoundError:
            if not target.create:
                raise _missing(
                    f"durable consumer {target.durable!r} of stream {target.stream!r}"
                ) from None
            info = await jetstream.add_consumer(target.stream, self._consumer_config())
        if target.dead_letter is not None:
            await self._prepare_dead_letters(jetstream, target.dead_letter, info)
        return self._check(info)

    def _consumer_config(self) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=self._target.durable,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._target.ack_wait,
            filter_subject=self._target.subject,
            max_deliver=-1,
            max_ack_pending=-1,  # or a thousand messages that are put off would hold up all others
        )

    def _check(self, info: ConsumerInfo) -> float:
        """Whether the durable consumer can be used; the seconds as `_prepare`."""
        target, config = self._target, info.config
        problem = None
        if config.deliver_subject:
            problem = "pushes, and must be one to pull from"
        elif config.ack_policy != AckPolicy.EXPLICIT:
            problem = f"has ack_policy {config.ack_policy}, and must have explicit"
        elif config.max_deliver is not None and config.max_deliver > 0:
            problem = (
                f"has max_deliver {config.max_deliver}, after which messages would be stuck: "
                "make it -1, retry says how often"
            )
        elif target.subject is not None and target.subject not in (_filters(config) or [">"]):
            problem = f"filters {_filters(config) or 'nothing'}, and not {target.subject!r}"
        if problem is not None:
            raise ValueError(
                f"the durable consumer {target.durable!r} of stream {target.stream!r} {problem}"
            )
        return min([config.ack_wait or ACK_WAIT, *(config.backoff or [])])

    async def _prepare_dead_letters(
        self, jetstream: JetStreamContext, subject: str, info: ConsumerInfo
    ) -> None:
        target = self._target
        try:
            stream = await jetstream.find_stream_name_by_subject(subject)
        except NotFoundError:
            if not target.create:
                raise _missing(f"stream for the dead letters, of subject {subject!r}") from None
            await jetstream.add_stream(name=subject.replace(".", "_"), subjects=[subject])
            return
        filters = _filters(info.config) or [">"]
        if stream == target.stream and any(_matches(one, subject) for one in filters):
            raise ValueError(
                f"the dead letters of subject {subject!r} would come to the durable consumer "
                f"{target.durable!r} again: give dead_letter another subject"
            )

    # -- what comes in ----------------------------------------------------------------------------

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        while not self._interrupted:
            if self._arrived:
                number = min(limit, len(self._arrived))
                return [self._delivery(self._arrived.popleft()) for _ in range(number)]
            if self._lost.done():
                raise self._lost.result()
            self._woken.clear()
            if not self._asked:
                await self._talk(self._pull(limit))
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                raise BrokerAwayError(
                    f"{self._target.where}: not heard of for {SILENCE_SECONDS:g} s"
                ) from None
        return []

    async def _pull(self, number: int) -> None:
        target = self._target
        self._asked = number
        self._pulls += 1
        request = {
            "batch": number,
            "expires": int(PULL_SECONDS * 1e9),
            "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
        }
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{target.stream}.{target.durable}",
            json.dumps(request).encode(),
            reply=f"{self._inbox}.{self._pulls}",
        )

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._asked = max(0, self._asked - 1)
            # Servers of version 2.9 may send one that was given back twice, as if it were new, too.
            if (sequence := _sequence(message.reply)) not in self._in_hand:
                self._in_hand.add(sequence)
                self._arrived.append(message)
        elif message.subject == f"{self._inbox}.{self._pulls}":
            headers = message.headers or {}
            self._on_status(headers.get("Status", ""), headers.get("Description", ""))
        self._woken.set()

    def _on_status(self, status: str, description: str) -> None:
        """What the server says of the last pull."""
        target = self._target
        where = f"durable consumer {target.durable!r} of stream {target.stream!r}"
        if status in ("404", "408"):  # its time is over
            self._asked = 0
        elif status == "409" and "Consumer Deleted" in description:
            self._lose(RuntimeError(f"the {where} was deleted"))
        elif status == "409" and "MaxRequest" in description:
            self._lose(ValueError(f"the {where} has limits that do not allow this: {description}"))
        elif status != "100":
            self._lose(BrokerAwayError(f"{target.where}: {status} {description}".rstrip()))

    def _delivery(self, raw: Msg) -> Delivery:
        # As in `raw.metadata`, which takes a tenth of all the time there is for a message.
        tokens = raw.reply.split(".")
        delivered, sequence, _, stamp = tokens[4:8] if len(tokens) == 9 else tokens[6:10]
        message = Message(
            body=raw.data,
            headers=raw.headers or {},
            id=f"{self._target.stream}:{sequence}",
            attempt=int(delivered),
            first_seen=int(stamp) / 1e9,
            raw=raw,
        )
        return Delivery(message=message, token=raw.reply, broker=self)

    def interrupt(self) -> None:
        self._interrupted = True
        self._woken.set()
        if self._leaving is None and self._subscription is not None:
            self._leaving = self._loop.create_task(self._leave(self._subscription))

    async def _leave(self, subscription: Subscription) -> None:
        """Take the pull back, and give back what was on its way."""
        try:
            # What comes after that goes to others at once: the server sees that nobody is here.
            await self._talk(self._unsubscribe(subscription))
            late, self._arrived = self._arrived, deque()
            await self._settle([(one.reply, _NAK) for one in late])
        except (BrokerAwayError, NatsError, PermissionError) as error:
            log.debug("while taking a pull back: %r", error)

    async def _unsubscribe(self, subscription: Subscription) -> None:
        """Return when all is here that the server has sent."""
        # Its drain() alone forgets the subscription too early: its PING overtakes the UNSUB, which
        # is written by the time that the first of these comes back.
        await self._client._send_unsubscribe(subscription._id)
        await self._client.flush()
        await self._client.flush()
        await subscription.drain()  # type: ignore[no-untyped-call]

    # -- what becomes of it -----------------------------------------------------------------------

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle([(one.token, _ACK) for one in deliveries])

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle([(one.token, _NAK) for one in deliveries])

    async def drop(self, delivery: Delivery) -> None:
        await self._settle([(delivery.token, _TERM)])

    async def put_off(self, delivery: Delivery, seconds: float, excused: bool) -> bool:
        if excused:
            return False  # it would count the attempt among the others
        delay = json.dumps({"delay": int(seconds * 1e9)}).encode()
        await self._settle([(delivery.token, _NAK + b" " + delay if seconds else _NAK)])
        return True

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        await self._send([(one.token, _IN_PROGRESS) for one in deliveries])

    async def _settle(self, answers: Sequence[tuple[str, bytes]]) -> None:
        back = {_sequence(reply) for reply, word in answers if word.startswith(_NAK)}
        # The server may send these again before it has answered.
        self._in_hand -= back
        await self._send(answers)
        self._in_hand -= {_sequence(reply) for reply, _ in answers} - back

    async def _send(self, answers: Sequence[tuple[str, bytes]]) -> None:
        """Return when the server has acted on them all."""

        async def send() -> None:
            *others, (reply, word) = answers
            for other_reply, other_word in others:
                await self._client.publish(other_reply, other_word)
            # It answers this one, behind the others. A flush would not do: nats-py's PING overtakes
            # what was published before.
            await self._client.request(reply, word, timeout=ANSWER_SECONDS)

        if answers:
            await self._talk(send())

    async def bury(self, delivery: Delivery, reason: str) -> None:
        subject, body = self._target.dead_letter, delivery.message.body
        assert subject is not None
        headers = _dead_headers(delivery, reason)
        if _size(body, headers) > self._client.max_payload:
            headers = {name: headers[name][:200] for name in ("reason", "Nats-Msg-Id")}
        if _size(body, headers) > self._client.max_payload:
            log.error(
                "message %s is too large to be a dead letter: raise the server's max_payload; "
                "until then it is tried again and again",
                delivery.message.id,
            )
            await self.put_off(delivery, TOO_LARGE_SECONDS, excused=False)
            return
        jetstream = self._client.jetstream(timeout=ANSWER_SECONDS)
        try:
            await self._talk(jetstream.publish(subject, body, headers=headers))
        except (APIError, MaxPayloadError) as error:
            raise BrokerAwayError(f"the dead letters of {subject!r} take none: {error}") from error
        await self.ack([delivery])


def _dead_headers(delivery: Delivery, reason: str) -> dict[str, str]:
    message, raw = delivery.message, delivery.message.raw
    headers = {"subject": raw.subject}
    for name, value in message.headers.items():
        # Those of the server's would be orders to it: which stream to expect, say.
        if _HEADER.fullmatch(name) and not name.lower().startswith("nats-"):
            headers[name] = value
    headers["reason"] = reason[:REASON_LENGTH].encode(errors="replace").decode()
    # The server drops a second one, which comes when the acknowledgement of this was lost.
    headers["Nats-Msg-Id"] = f"{message.id}.{raw.metadata.consumer}.{message.first_seen!r}"
    return headers


def _size(body: bytes, headers: Mapping[str, str]) -> int:
    lines = sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items())
    return len(b"NATS/1.0\r\n\r\n") + lines + len(body)


def _sequence(reply: str) -> str:
    """The number in the stream of the message with this reply subject."""
    tokens = reply.split(".")
    return tokens[5] if len(tokens) == 9 else tokens[7]


def _filters(config: ConsumerConfig) -> list[str]:
    if config.filter_subject:
        return [config.filter_subject]
    return list(config.filter_subjects or [])


def _missing(what: str) -> LookupError:
    return LookupError(f"there is no {what}: make it, or give create=True")


def _forget(task: asyncio.Task[Any]) -> None:
    """See its error, so that asyncio does not complain that nobody did."""
    if not task.cancelled():
        task.exception()


def _matches(pattern: str, subject: str) -> bool:
    """Whether `pattern`, which may have wildcards, has `subject`."""
    wanted, given = pattern.split("."), subject.split(".")
    for number, token in enumerate(wanted):
        if token == ">":
            return len(given) > number
        if number >= len(given) or token not in ("*", given[number]):
            return False
    return len(wanted) == len(given)


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"NatsConsumer: {what} must be a string, not {name!r}")
    if not name or any(character in ">*./\\" or character.isspace() for character in name):
        raise ValueError(f"NatsConsumer: {what} must have no blanks and none of .*>/\\: {name!r}")


def _check_subject(what: str, subject: object, *, wildcards: bool) -> None:
    if not isinstance(subject, str):
        raise TypeError(f"NatsConsumer: {what} must be a string, not {subject!r}")
    tokens = subject.split(".")
    if not all(tokens) or any(character.isspace() for character in subject):
        raise ValueError(f"NatsConsumer: {what} must be words with dots between, not {subject!r}")
    if not wildcards and ("*" in tokens or ">" in tokens):
        raise ValueError(f"NatsConsumer: {what} must have no wildcards: {subject!r}")
    if ">" in tokens[:-1]:
        raise ValueError(f"NatsConsumer: {what} must have > at its end only: {subject!r}")


def _checked_urls(servers: object) -> list[str]:
    urls = [servers] if isinstance(servers, str) else servers
    if not isinstance(urls, Sequence) or not urls or not all(isinstance(u, str) for u in urls):
        raise TypeError(f"NatsConsumer: servers must be a URL, or several, not {servers!r}")
    kinds = set()
    for url in urls:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"NatsConsumer: the URL {_hidden(url)!r}: {error}") from None
        if parts.scheme not in ("nats", "tls", "ws", "wss") or not parts.hostname or port == 0:
            raise ValueError(
                "NatsConsumer: servers must be like nats://host:4222, tls://, ws:// or wss://, "
                f"not {_hidden(url)!r}"
            )
        kinds.add(parts.scheme in ("ws", "wss"))
    if len(kinds) > 1:
        raise ValueError("NatsConsumer: servers must be all by WebSocket, or none")
    if True in kinds and find_spec("aiohttp") is None:
        raise ImportError("NatsConsumer needs aiohttp for ws:// and wss://: pip install aiohttp")
    return list(urls)


def _hidden(url: str) -> str:
    """Without the password."""
    return re.sub(r"//[^/@]*@", "//…@", url)
