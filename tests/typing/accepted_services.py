"""Options are plain class attributes; a service may be a dataclass or of attrs, frozen too."""

import threading
from dataclasses import dataclass, field
from typing import assert_type

import attrs

from servicegroup import ReadyWhen, Service, ServiceGroup


class Consumer(Service):
    name = "consumer"
    ready_when = "announced"
    daemon = True
    start_timeout = 30
    stop_timeout = 2.5
    on_failure = "continue"
    on_return = "stop"
    expected_on_stop = (OSError, EOFError)

    def start(self) -> None:
        self.mark_ready()
        self.stopping.wait()
        self.mark_not_ready()

    def drain(self) -> None:
        assert_type(self.remaining(), float)


class Announcing(Service):
    # mypy takes an option without a type for one that never has another value.
    ready_when: ReadyWhen | None = "announced"
    stop_timeout: float | None = 3


class Batch(Announcing):
    ready_when = "entered"

    def start(self) -> None:
        assert_type(self.stopping, threading.Event)
        assert_type(self.sleep(1), bool)


@dataclass
class Named(Service):
    name: str
    port: int = 80
    seen: list[str] = field(default_factory=list[str])

    def start(self) -> None:
        self.seen.append(self.name)


@dataclass(frozen=True)
class Frozen(Service):
    port: int

    def start(self) -> None:
        self.stopping.wait(self.port)


@attrs.define
class Defined(Service):
    name: str
    port: int = 80

    def start(self) -> None:
        self.stopping.wait(self.port)


@attrs.frozen(kw_only=True)
class FrozenAttrs(Service):
    port: int = 80

    def start(self) -> None:
        self.stopping.wait(self.port)


group = ServiceGroup()
assert_type(group.add(Consumer()), Consumer)
assert_type(group.add(Batch()), Batch)
assert_type(group.add(Named("named", port=8080)), Named)
assert_type(group.add(Frozen(8080)), Frozen)
assert_type(group.add(Defined("defined")), Defined)
assert_type(group.add(FrozenAttrs(port=8080)), FrozenAttrs)
assert_type(Named("named").name, str)

slow = Named("slow")
slow.ready_when = "announced"
slow.stop_timeout = None
