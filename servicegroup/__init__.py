"""Run several blocking services in one process, each in a thread; stop them in reverse order."""

from servicegroup import events
from servicegroup.errors import (
    GroupRunningError,
    GroupStoppingError,
    ServiceCrashedError,
    ServiceGroupError,
    ServiceTimeoutError,
    StartTimeoutError,
    StopTimeoutError,
)
from servicegroup.group import ServiceGroup
from servicegroup.report import GroupState, Report, ServiceStatus, State
from servicegroup.service import (
    OnFailure,
    OnReturn,
    ReadyWhen,
    Service,
    StartStop,
    with_context,
    with_start,
)

__all__ = [
    "GroupRunningError",
    "GroupState",
    "GroupStoppingError",
    "OnFailure",
    "OnReturn",
    "ReadyWhen",
    "Report",
    "Service",
    "ServiceCrashedError",
    "ServiceGroup",
    "ServiceGroupError",
    "ServiceStatus",
    "ServiceTimeoutError",
    "StartStop",
    "StartTimeoutError",
    "State",
    "StopTimeoutError",
    "events",
    "with_context",
    "with_start",
]
