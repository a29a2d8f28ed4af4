"""A NATS server with JetStream, whose files outlast it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from servicegroup.adapters.nats import NatsConsumer
from servicegroup.adapters.queue import Handler, QueueConsumer
from servicegroup.testing import find_free_port
from tests.adapters.queues import rig
from tests.child import PATIENCE
from tests.debian import require

T = TypeVar("T")


class Rig(rig.Rig):
    lease = "ack_wait"

    _server: subprocess.Popen[bytes] | None = None
    _port = 0

    @property
    def port(self) -> int:
        if not self._port:
            self._port = find_free_port()
        return self._port

    def start(self, *arguments: str) -> None:
        log = self.directory / "server.log"
        self._server = subprocess.Popen(
            [
                *(require("nats-server"), "-a", "127.0.0.1", "-p", str(self.port), "-js"),
                *("-sd", str(self.directory / "data"), "-l", str(log), *arguments),
            ]
        )
        until = time.monotonic() + PATIENCE
        while True:
            assert self._server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.005)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def close(self) -> None:
        self._end(signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send the server a signal."""
        assert self._server is not None
        self._server.send_signal(number)

    def _end(self, number: int) -> None:
        if self._server is not None:
            self._server.send_signal(number)
            self._server.wait(PATIENCE)
            self._server = None

    def set_up(self) -> None:
        async def add(jetstream: JetStreamContext) -> None:
            await jetstream.add_stream(name="ORDERS", subjects=["orders.*"], retention="workqueue")
            await jetstream.add_stream(name="DEAD", subjects=["dead"])

        self.ask(add)

    def options(self, port: int | None = None) -> dict[str, Any]:
        return {"url": f"nats://127.0.0.1:{port or self.port}"}

    @staticmethod
    def consumer(options: dict[str, Any], handler: Handler, **others: Any) -> QueueConsumer:
        given = {"dead_letter": "dead", "ack_wait": 1.5, "create": True, **others}
        return NatsConsumer(
            options["url"],
            stream="ORDERS",
            subject="orders.*",
            durable="billing",
            handler=handler,
            **given,
        )

    def publish(self, *bodies: str) -> None:
        async def put(jetstream: JetStreamContext) -> None:
            for body in bodies:
                await jetstream.publish("orders.new", body.encode())

        self.ask(put)

    def left(self) -> int:
        async def count(jetstream: JetStreamContext) -> int:
            # Not those of the stream: a server that was killed may have kept acknowledged ones.
            try:
                info = await jetstream.consumer_info("ORDERS", "billing")
            except NotFoundError:
                return (await jetstream.stream_info("ORDERS")).state.messages
            return (info.num_pending or 0) + (info.num_ack_pending or 0)

        return self.ask(count)

    def dead(self) -> list[tuple[str, str]]:
        return [(body.decode(), headers["reason"]) for body, headers in self.dead_letters()]

    def dead_letters(self) -> list[tuple[bytes, dict[str, str]]]:
        """Bodies and headers."""

        async def read(jetstream: JetStreamContext) -> list[tuple[bytes, dict[str, str]]]:
            found = []
            state = (await jetstream.stream_info("DEAD")).state
            for number in range(max(1, state.first_seq), state.last_seq + 1):
                try:
                    one = await jetstream.get_msg("DEAD", number)
                except NotFoundError:
                    continue
                found.append((one.data or b"", one.headers or {}))
            return found

        return self.ask(read)

    def ask(self, question: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """What the server answers."""

        async def ask() -> T:
            client: Client = await nats.connect(self.options()["url"], connect_timeout=PATIENCE)
            try:
                return await question(client.jetstream(timeout=PATIENCE))
            finally:
                await client.close()

        return asyncio.run(ask())
