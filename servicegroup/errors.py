"""Every exception of the core, and when it is raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from servicegroup.report import Report


class GroupRunningError(RuntimeError):
    """The group cannot be started: it runs already, or a thread of its last run still does."""


class GroupStoppingError(RuntimeError):
    """The group is stopping or has stopped: it takes no more services and will not become ready."""


class ServiceCrashedError(RuntimeError):
    """A service raised something that is no `Exception` (a `KeyboardInterrupt`, say).

    An `ExceptionGroup` cannot hold such a thing; it is the `__cause__` of this error.
    """


class ServiceTimeoutError(TimeoutError):
    """A service took too long.

    Attributes:
        service: the service's name.
        seconds: how long it was waited for.
        stack: where its threads were just then, as text.
    """

    _what = "took longer than"

    def __init__(self, service: str, seconds: float, stack: str) -> None:
        super().__init__(f"service {service!r} {self._what} {seconds:.3g} s\n{stack}".rstrip())
        self.service = service
        self.seconds = seconds
        self.stack = stack

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.service, self.seconds, self.stack)


class StartTimeoutError(ServiceTimeoutError):
    """A service was not ready within its `start_timeout`."""

    _what = "was not ready within"


class StopTimeoutError(ServiceTimeoutError):
    """A service had not ended when its time to stop was over; it has been abandoned."""

    _what = "did not stop within"


class ServiceStalledError(ServiceTimeoutError):
    """A service gave no `heartbeat()` for its `heartbeat_timeout`, and has `on_stall="fail"`."""

    _what = "gave no heartbeat for"


class RestartLimitError(RuntimeError):
    """A service had to be restarted more often than its `Restart` allows.

    What it raised last is the `__cause__`; there is none when it returned.
    """


class ServiceGroupError(ExceptionGroup[Exception]):
    """What the services raised, the first failure first; `start()` and `wait()` raise it.

    Every exception in it carries a note naming the service and what the service was doing.

    Attributes:
        report: how the run went. Kept by `split`, `subgroup` and `except*`.
    """

    report: Report

    def __new__(cls, message: str, errors: Sequence[Exception], report: Report) -> Self:
        self = super().__new__(cls, message, errors)
        self.report = report
        return self

    def __init__(self, message: str, errors: Sequence[Exception], _report: Report) -> None:
        super().__init__(message, errors)

    def derive(self, errors: Sequence[Exception]) -> ServiceGroupError:  # type: ignore[override]
        # The base class types derive() for any exception type; in this group they are Exceptions.
        return ServiceGroupError(self.message, errors, self.report)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, list(self.exceptions), self.report)
