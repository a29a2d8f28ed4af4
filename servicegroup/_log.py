"""The log: one subscriber among others, with the fields of each event in `extra`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import attrs

from servicegroup import events
from servicegroup.events import Event

if TYPE_CHECKING:
    from logging import Logger

# Those of the standard library's logging, which is imported when there is something to write: a
# program without it has no handler but the one of last resort, for warnings and what is worse.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40

_LINES: dict[type[Event], tuple[int, str]] = {
    events.ServiceStarting: (DEBUG, "{service}: starting"),
    events.ServiceReady: (INFO, "{service}: ready after {seconds:.3f} s"),
    events.ServiceNotReady: (WARNING, "{service}: not ready"),
    events.ServiceFinished: (INFO, "{service}: finished after {seconds:.3f} s"),
    events.ServiceFailed: (ERROR, "{service}: failed {phase}: {error!r}"),
    events.ServiceStopping: (INFO, "{service}: stopping"),
    events.ServiceStopped: (INFO, "{service}: stopped after {seconds:.3f} s"),
    events.ServiceAbandoned: (
        ERROR,
        "{service}: abandoned, since it had not stopped after {seconds:.3f} s\n{stack}",
    ),
    events.ServiceRestarting: (
        WARNING,
        "{service}: restart {restarts} in {seconds:.3f} s",
    ),
    events.ServiceStalled: (
        ERROR,
        "{service}: stalled, no heartbeat for {seconds:.3f} s\n{stack}",
    ),
    events.ServiceRecovered: (WARNING, "{service}: no longer stalled"),
    events.GroupStarting: (INFO, "starting"),
    events.GroupReady: (INFO, "ready after {seconds:.3f} s"),
    events.GroupDraining: (INFO, "draining: {reason}"),
    events.GroupStopping: (INFO, "stopping: {reason}"),
    events.GroupStopped: (INFO, "stopped after {seconds:.3f} s: {reason}"),
}

_BRIEF = (
    "group %r: every service returned within a second. If start() of one does not block "
    'but leaves something running, add it with ready_when="returned"'
)


_logger: Logger | None = None


def logger() -> Logger:
    """Where all is logged. Any thread but the deciding one: it takes logging's lock."""
    global _logger
    import logging

    _logger = logging.getLogger("servicegroup")
    return _logger


def look() -> None:
    """Find out whether the program uses logging. Any thread but the deciding one."""
    if "logging" in sys.modules:
        logger()


def wants_details() -> bool:
    """Whether the log would take an INFO line. Takes no lock, so any thread may ask."""
    log = _logger
    return log is not None and log.manager.disable < INFO and log.getEffectiveLevel() <= INFO


def write(event: Event) -> None:
    """The log's subscriber."""
    level, line = _LINES.get(type(event), (DEBUG, type(event).__name__))
    brief = isinstance(event, events.GroupStopped) and event.brief
    if level < WARNING and not brief and "logging" not in sys.modules:
        return
    log = _logger or logger()
    if log.isEnabledFor(level):
        fields = {name: getattr(event, name) for name in attrs.fields_dict(type(event))}
        known = {name: value for name, value in fields.items() if value is not None}
        log.log(
            level,
            "%s: %s",
            event.group,
            line.format_map(fields),
            exc_info=known.get("error"),
            extra={"event": type(event).__name__, **known},
        )
    if brief:
        log.warning(_BRIEF, event.group, extra={"event": "GroupStopped", "group": event.group})
