"""The log: one subscriber among others, with the fields of each event in `extra`."""

from __future__ import annotations

import logging

import attrs

from servicegroup import events
from servicegroup.events import Event

log = logging.getLogger("servicegroup")

_LINES: dict[type[Event], tuple[int, str]] = {
    events.ServiceStarting: (logging.DEBUG, "{service}: starting"),
    events.ServiceReady: (logging.INFO, "{service}: ready after {seconds:.3f} s"),
    events.ServiceNotReady: (logging.WARNING, "{service}: not ready"),
    events.ServiceFinished: (logging.INFO, "{service}: finished after {seconds:.3f} s"),
    events.ServiceFailed: (logging.ERROR, "{service}: failed {phase}: {error!r}"),
    events.ServiceStopping: (logging.INFO, "{service}: stopping"),
    events.ServiceStopped: (logging.INFO, "{service}: stopped after {seconds:.3f} s"),
    events.ServiceAbandoned: (
        logging.ERROR,
        "{service}: abandoned, since it had not stopped after {seconds:.3f} s\n{stack}",
    ),
    events.ServiceRestarting: (
        logging.WARNING,
        "{service}: restart {restarts} in {seconds:.3f} s",
    ),
    events.ServiceStalled: (
        logging.ERROR,
        "{service}: stalled, no heartbeat for {seconds:.3f} s\n{stack}",
    ),
    events.ServiceRecovered: (logging.WARNING, "{service}: no longer stalled"),
    events.GroupStarting: (logging.INFO, "starting"),
    events.GroupReady: (logging.INFO, "ready after {seconds:.3f} s"),
    events.GroupDraining: (logging.INFO, "draining: {reason}"),
    events.GroupStopping: (logging.INFO, "stopping: {reason}"),
    events.GroupStopped: (logging.INFO, "stopped after {seconds:.3f} s: {reason}"),
}

_BRIEF = (
    "group %r: every service returned within a second. If start() of one does not block "
    'but leaves something running, add it with ready_when="returned"'
)


def wants_details() -> bool:
    """Whether the log would take an INFO line. Takes no lock, so any thread may ask."""
    return logging.root.manager.disable < logging.INFO and log.getEffectiveLevel() <= logging.INFO


def write(event: Event) -> None:
    """The log's subscriber."""
    level, line = _LINES.get(type(event), (logging.DEBUG, type(event).__name__))
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
    if isinstance(event, events.GroupStopped) and event.brief:
        log.warning(_BRIEF, event.group, extra={"event": "GroupStopped", "group": event.group})
