"""A server of Redis, with all it is given in a file."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import redis

from servicegroup.adapters.queue import Handler, QueueConsumer
from servicegroup.adapters.redis import RedisStreamConsumer
from servicegroup.testing import find_free_port
from tests.adapters.queues import rig
from tests.child import PATIENCE
from tests.debian import require

CLAIM_IDLE = 2.0


class Rig(rig.Rig):
    lease = "claim_idle"

    def __init__(self) -> None:
        super().__init__()
        self._server: subprocess.Popen[bytes] | None = None
        self._port = find_free_port()
        self.client = redis.Redis(port=self._port, decode_responses=True)

    @property
    def port(self) -> int:
        return self._port

    @property
    def server(self) -> int:
        """The process id of the server."""
        assert self._server is not None
        return self._server.pid

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    def start(self, *options: str) -> None:
        self._server = subprocess.Popen(
            [
                *(require("redis-server"), "--port", str(self._port), "--bind", "127.0.0.1"),
                *("--dir", str(self.directory), "--save", "", "--appendonly", "yes"),
                # While it syncs, by default once a second, it answers before it has written.
                *("--appendfsync", "no", *options),
            ],
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                assert self._server.poll() is None, "redis-server did not start"
                assert time.monotonic() < until, "redis-server does not answer"
                time.sleep(0.01)

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(PATIENCE)
        self.client.close()

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait(PATIENCE)
        self.client.close()

    def close(self) -> None:
        self.kill()

    def set_up(self) -> None:
        self.client.xgroup_create("orders", "billing", id="0", mkstream=True)

    def options(self, port: int | None = None) -> dict[str, Any]:
        return {"url": f"redis://127.0.0.1:{port or self._port}"}

    @staticmethod
    def consumer(options: dict[str, Any], handler: Handler, **others: Any) -> QueueConsumer:
        given = {"dead_letter": "dead", "claim_idle": CLAIM_IDLE, **others}
        return RedisStreamConsumer(
            options["url"], stream="orders", group="billing", handler=handler, **given
        )

    def publish(self, *bodies: str) -> None:
        with self.client.pipeline(transaction=False) as pipeline:
            for body in bodies:
                pipeline.xadd("orders", {"body": body})
            pipeline.execute()

    def left(self) -> int:
        (group,) = self.client.xinfo_groups("orders")
        return int(group["pending"]) + int(group["lag"])

    def dead(self) -> list[tuple[str, str]]:
        entries: Any = self.client.xrange("dead")
        return [(entry["body"], entry["reason"]) for _, entry in entries]
