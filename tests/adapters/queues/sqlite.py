"""A file as the broker."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from servicegroup.adapters.queue import Handler, QueueConsumer
from servicegroup.adapters.sqlite import SqliteConsumer, SqliteQueue
from tests.adapters.queues import rig


class Rig(rig.Rig):
    has_server = False
    lease = "lease"

    def set_up(self) -> None:
        path = self.directory / "queue.db"
        self._queue = SqliteQueue(path, "orders")
        self._dead = SqliteQueue(path, "dead")

    def close(self) -> None:
        self._queue.close()
        self._dead.close()

    def options(self, port: int | None = None) -> dict[str, Any]:
        return {"path": str(self._queue.path)}

    @staticmethod
    def consumer(options: dict[str, Any], handler: Handler, **others: Any) -> QueueConsumer:
        queue = SqliteQueue(options["path"], "orders")
        return SqliteConsumer(queue, handler, **{"dead_letter": "dead", "lease": 1.5, **others})

    def publish(self, *bodies: str) -> None:
        self._queue.put_many(bodies)

    def left(self) -> int:
        return len(self._queue)

    def dead(self) -> list[tuple[str, str]]:
        query = "SELECT body, headers ->> '$.reason' FROM messages WHERE queue = 'dead' ORDER BY id"
        with closing(self._dead.connect()) as connection:
            return [(body.decode(), reason) for body, reason in connection.execute(query)]
