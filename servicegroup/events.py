"""What happened: the records a subscriber gets, in the order in which the group decided them.

Every event tells the `group`, and when: `time` in seconds since the epoch, `monotonic` in seconds
of `time.monotonic()`. What a nested group's services do reaches the outer group's subscribers under
the name `inner/service`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen


@frozen(kw_only=True, eq=False)
class Event:
    """The base of all events."""

    group: str
    time: float
    monotonic: float


@frozen(kw_only=True, eq=False)
class ServiceEvent(Event):
    """Something happened to one service.

    Attributes:
        service: its name.
        seconds: how long what has just ended took, where that is known; the kinds of event below
            say what else is. (The records are of one make, for each make costs time at import.)
    """

    service: str
    seconds: float | None = None
    error: BaseException | None = None
    phase: str | None = None
    restarts: int | None = None
    stack: str | None = None


class ServiceStarting(ServiceEvent):
    """Its thread is about to run `start()`."""

    __slots__ = ()


class ServiceReady(ServiceEvent):
    """It is up; `seconds` since it was started, or since it was last up."""

    __slots__ = ()


class ServiceNotReady(ServiceEvent):
    """It was up and is not for now."""

    __slots__ = ()


class ServiceFinished(ServiceEvent):
    """Its `start()` returned before it was asked to stop; `seconds` since it was started."""

    __slots__ = ()


class ServiceStopping(ServiceEvent):
    """It is being asked to stop."""

    __slots__ = ()


class ServiceStopped(ServiceEvent):
    """Its `stop()` returned and its `start()` has ended; `seconds` since it was asked."""

    __slots__ = ()


class ServiceFailed(ServiceEvent):
    """It raised `error` (a `StartTimeoutError`: was not ready in time); `phase` says when."""

    __slots__ = ()
    if TYPE_CHECKING:
        error: BaseException
        phase: str


class ServiceRestarting(ServiceEvent):
    """It ended and will be started again in `seconds`, for the `restarts`th time.

    `error` is what it raised; None when it returned.
    """

    __slots__ = ()
    if TYPE_CHECKING:
        restarts: int
        seconds: float


class ServiceAbandoned(ServiceEvent):
    """It did not stop within `seconds`; `stack` tells where it was, and the group went on."""

    __slots__ = ()
    if TYPE_CHECKING:
        stack: str


class ServiceStalled(ServiceEvent):
    """It gave no heartbeat for `seconds`; `stack` tells where it is."""

    __slots__ = ()
    if TYPE_CHECKING:
        stack: str


class ServiceRecovered(ServiceEvent):
    """It was stalled and gives heartbeats again."""

    __slots__ = ()


@frozen(kw_only=True, eq=False)
class GroupEvent(Event):
    """Something happened to the whole group.

    Attributes:
        reason: why it stops, once it does.
        seconds: since the group was started.
        brief: at the end: every service returned by itself, within a second.
    """

    reason: str | None = None
    seconds: float = 0.0
    brief: bool = False


class GroupStarting(GroupEvent):
    """The first service is about to be started."""

    __slots__ = ()


class GroupReady(GroupEvent):
    """All services are up (again)."""

    __slots__ = ()


class GroupDraining(GroupEvent):
    """The group is going to stop and is no longer ready; its services still serve."""

    __slots__ = ()


class GroupStopping(GroupEvent):
    """The last service is about to be asked to stop."""

    __slots__ = ()


class GroupStopped(GroupEvent):
    """The end; `seconds` is all the time it took."""

    __slots__ = ()
