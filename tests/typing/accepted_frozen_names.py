"""A frozen service with a `name` field of its own."""

from dataclasses import dataclass
from typing import assert_type

import attrs

from servicegroup import Service, ServiceGroup


@dataclass(frozen=True)
class Frozen(Service):
    name: str

    def start(self) -> None:
        self.stopping.wait()


@attrs.frozen
class FrozenAttrs(Service):
    name: str

    def start(self) -> None:
        self.stopping.wait()


group = ServiceGroup()
assert_type(group.add(Frozen("one")), Frozen)
assert_type(group.add(FrozenAttrs("two")).name, str)
