"""Run several blocking services in one process, each in a thread; stop them in reverse order."""

import typing

from servicegroup import events
from servicegroup.errors import (
    GroupRunningError,
    GroupStoppingError,
    RestartLimitError,
    ServiceCrashedError,
    ServiceGroupError,
    ServiceStalledError,
    ServiceTimeoutError,
    StartTimeoutError,
    StopTimeoutError,
)
from servicegroup.group import ServiceGroup
from servicegroup.report import GroupState, Report, ServiceStatus, State
from servicegroup.service import (
    OnFailure,
    OnReturn,
    OnStall,
    ReadyWhen,
    Service,
    StartStop,
    with_context,
    with_start,
)

if typing.TYPE_CHECKING:
    from servicegroup.aio import AsyncGroup, AsyncService
    from servicegroup.periodic import Periodic
    from servicegroup.process import InProcess
    from servicegroup.restart import Restart

__all__ = [
    "AsyncGroup",
    "AsyncService",
    "GroupRunningError",
    "GroupState",
    "GroupStoppingError",
    "InProcess",
    "OnFailure",
    "OnReturn",
    "OnStall",
    "Periodic",
    "ReadyWhen",
    "Report",
    "Restart",
    "RestartLimitError",
    "Service",
    "ServiceCrashedError",
    "ServiceGroup",
    "ServiceGroupError",
    "ServiceStalledError",
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

# Loaded when first named: what a program does not use, it does not pay for.
_LAZY = {
    "AsyncGroup": "aio",
    "AsyncService": "aio",
    "InProcess": "process",
    "Periodic": "periodic",
    "Restart": "restart",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = found
    return found
