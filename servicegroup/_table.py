"""The table of services: what was added, and whether more may be."""

from __future__ import annotations

import threading

from attrs import define

from servicegroup._options import Options
from servicegroup.errors import GroupStoppingError
from servicegroup.service import Composite, StartStop


# Not frozen, though nobody writes to it: to make a frozen one takes twice as long.
@define(eq=False, repr=False)
class Entry:
    """One service as it was added."""

    service: StartStop
    name: str
    options: Options


class Table:
    """Services in the order of `add`.

    `lock` guards `entries` and `closed`. It is held for a few lines of ours at a time, never while
    user code runs; reading `entries` by index needs no lock, since it only grows.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: list[Entry] = []
        self.closed = False
        self._names: dict[str, int] = {}  # with the last number given to such a name
        self._ids: set[int] = set()

    def add(self, service: StartStop, name: str, options: Options, *, chosen: bool) -> None:
        """Append. Without `chosen`, a name that is taken gets a number.

        Raises:
            GroupStoppingError: the table is closed.
            ValueError: the service is there already, or its chosen name is.
        """
        with self.lock:
            if self.closed:
                raise GroupStoppingError(
                    f"service {name!r} comes too late: the group is stopping. Add it before, or "
                    "once the group has ended, for its next start"
                )
            if id(service) in self._ids:
                raise ValueError(
                    f"service {name!r} is in the group already: add another object of its kind"
                )
            if name in self._names and chosen:
                raise ValueError(f"the name {name!r} is taken: give another with name=")
            self.entries.append(Entry(service, self._unique(name), options))
            self._ids.add(id(service))

    def last_to_front(self) -> None:
        """Have the last one started first and stopped last; only while no run has begun."""
        with self.lock:
            self.entries.insert(0, self.entries.pop())

    def _unique(self, name: str) -> str:
        names = self._names
        number = names.get(name)
        if number is None:
            names[name] = 1
            return name
        unique = name
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        names[name] = number
        names[unique] = 1
        return unique

    def services(self) -> dict[str, StartStop]:
        """By name, with those of nested groups as `group/name`."""
        found: dict[str, StartStop] = {}
        for entry in list(self.entries):
            found[entry.name] = entry.service
            if isinstance(entry.service, Composite):
                for name, service in entry.service.services.items():
                    found[f"{entry.name}/{name}"] = service
        return found

    def close_after(self, count: int) -> bool:
        """Close unless there are more than `count` entries; whether it is closed now."""
        with self.lock:
            self.closed = self.closed or len(self.entries) <= count
            return self.closed

    def close(self) -> bool:
        """Take no more services; whether any were taken until now."""
        with self.lock:
            taken, self.closed = not self.closed, True
            return taken

    def reopen(self) -> None:
        """Take services again, for the next run."""
        with self.lock:
            self.closed = False
