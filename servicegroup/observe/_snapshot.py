"""A group as JSON knows it: how it stands now, and what happened lately."""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from servicegroup._stacks import stack_of, stacks_of
from servicegroup.events import Event, GroupEvent, ServiceEvent
from servicegroup.group import ServiceGroup
from servicegroup.report import ServiceStatus, State, one_line

KEPT = 1_000  # events: those of a day may be many more
SLOW_SECONDS = 0.5  # to start or stop, from when on it is told where


class Snapshot:
    """Any thread may call what is here; `note` is for the group's subscribers' thread."""

    def __init__(self, group: ServiceGroup) -> None:
        # As they came, since most are never asked for; but of an error only the text, for it
        # holds all that its frames hold.
        self._events: deque[Event | dict[str, object]] = deque(maxlen=KEPT)
        self._group = group

    def note(self, event: Event) -> None:
        """Keep it."""
        failed = isinstance(event, ServiceEvent) and event.error is not None
        self._events.append(event_dict(event) if failed else event)

    def now(self) -> dict[str, object]:
        """How all stands."""
        group = self._group
        return {
            "group": group.name,
            "state": group.state.value,
            "ready": group.is_ready,
            "pid": os.getpid(),
            "now": time.time(),
            "services": [self._status(one) for one in group.status()],
            "events": [
                event_dict(one) if isinstance(one, Event) else one for one in list(self._events)
            ],
        }

    def _status(self, one: ServiceStatus) -> dict[str, object]:
        found = one.to_dict()
        found["parts"] = [self._status(part) for part in one.parts]
        found["where"] = self._where(one)
        return found

    def _where(self, one: ServiceStatus) -> str | None:
        """Where its threads are, while it is slow."""
        since = one.stopping_at if one.state is State.STOPPING else one.started_at
        slow = one.state in (State.STOPPING, State.STARTING)
        if not slow or since is None or time.time() - since < SLOW_SECONDS:
            return None
        threads = {thread.name: thread for thread in threading.enumerate()}
        own = threads.get(f"{self._group.name}/{one.name}") or threads.get(one.name)
        found = stack_of(own)
        if one.state is State.STOPPING:
            calls = stack_of(threads.get(f"{self._group.name} (stopping)"))
            # Of what is not Python there is no frame: it waits for the next stop() to call.
            if calls and "_stopper.py" not in calls.rpartition("File")[2]:
                found += calls
        return found or None


def event_dict(event: Event) -> dict[str, object]:
    """An event out of what JSON knows; what is not known is left out."""
    found: dict[str, object] = {
        "event": type(event).__name__,
        "group": event.group,
        "time": event.time,
    }
    if isinstance(event, ServiceEvent):
        found |= {
            "service": event.service,
            "seconds": event.seconds,
            "error": None if event.error is None else one_line(event.error),
            "phase": event.phase,
            "restarts": event.restarts,
            "stack": event.stack,
        }
    elif isinstance(event, GroupEvent):
        found |= {"reason": event.reason, "seconds": event.seconds}
    return {name: value for name, value in found.items() if value is not None}


def stacks(group: ServiceGroup) -> str:
    """The stack of every thread, those of services first, in their order."""
    places = {f"{group.name}/{name}": place for place, name in enumerate(group.services)}
    threads = threading.enumerate()
    threads.sort(key=lambda thread: places.get(thread.name, len(places)))
    return stacks_of(threads)
