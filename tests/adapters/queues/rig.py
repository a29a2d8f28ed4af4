"""What the table of tests needs of each broker: a server of its own, a queue, a consumer."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from servicegroup.adapters.queue import Handler, QueueConsumer

# By name: the module beside this one, whose class `Rig` it is.
KINDS = tuple(
    kind
    for kind in ("sqlite", "redis", "rabbitmq", "kafka", "nats")
    if (Path(__file__).parent / f"{kind}.py").exists()
)


class Rig(ABC):
    """A broker for one test, with one queue and its dead letters.

    Everything it starts is ended by `close`, by its process id.

    Attributes:
        kind: its name among `KINDS`, for child processes.
        directory: of its own, for files of the server.
        has_server: whether there is something to be stopped, killed, and reached by a network.
        lease: the option of a consumer that says for how many seconds what it has is kept from
            others without a sign of life; None: they get it when its connection ends.
    """

    kind: str
    has_server = True
    lease: str | None = None

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)

    def __enter__(self) -> Self:
        self.start()
        self.set_up()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._temporary.cleanup()

    @property
    def port(self) -> int:
        """Where its server listens."""
        raise NotImplementedError

    def start(self) -> None:  # noqa: B027
        """Start the server, on the same port each time; return when it answers."""

    def stop(self) -> None:  # noqa: B027
        """Stop the server in good order."""

    def kill(self) -> None:  # noqa: B027
        """Kill -9 the server."""

    def close(self) -> None:  # noqa: B027
        """End all that was started."""

    @abstractmethod
    def set_up(self) -> None:
        """Make the queue."""

    @abstractmethod
    def options(self, port: int | None = None) -> dict[str, Any]:
        """What `consumer` needs, as JSON; with another port than the server's, for a proxy."""

    @staticmethod
    @abstractmethod
    def consumer(options: dict[str, Any], handler: Handler, **others: Any) -> QueueConsumer:
        """A consumer, with dead letters; in a child process, too."""

    def kept(self, seconds: float) -> dict[str, Any]:
        """Options with which what a consumer has is kept from others for so long."""
        return {} if self.lease is None else {self.lease: seconds}

    @abstractmethod
    def publish(self, *bodies: str) -> None:
        """Put messages, each of which is safe when this returns."""

    @abstractmethod
    def left(self) -> int:
        """How many messages are not settled."""

    @abstractmethod
    def dead(self) -> list[tuple[str, str]]:
        """The dead letters: the body and the reason of each."""


def rig_of(kind: str) -> Callable[[], Rig]:
    """The class of the rig of that name."""
    rig: Callable[[], Rig] = import_module(f"tests.adapters.queues.{kind}").Rig
    return rig


def consumer_of(
    kind: str, options: dict[str, Any], handler: Handler, others: dict[str, Any]
) -> QueueConsumer:
    """A consumer of that kind."""
    made: QueueConsumer = import_module(f"tests.adapters.queues.{kind}").Rig.consumer(
        options, handler, **others
    )
    return made
