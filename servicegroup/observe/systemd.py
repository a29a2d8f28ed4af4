"""`notify_systemd`: tells systemd when a group is ready, what it does, that it lives and stops.

The protocol is that of sd_notify(3): a datagram of `NAME=value` lines to `NOTIFY_SOCKET`.
"""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from servicegroup import _log, events
from servicegroup.group import ServiceGroup
from servicegroup.report import GroupState, ServiceStatus, State

SEND_SECONDS = 5.0  # to wait while systemd does not read; what only informs waits for nothing
STATUS_BYTES = 2048  # systemd takes 4096 for a whole datagram, and throws away a longer one
EXIT_SECONDS = 2.0  # what `ServiceGroup.run` may take beyond shutdown_timeout to end the process

_STATUS: dict[type[events.Event], str] = {
    events.ServiceStarting: "starting {service}",
    events.ServiceNotReady: "not ready: {service}",
    events.ServiceRestarting: "restart {restarts} of {service} in {seconds:.1f} s",
    events.ServiceStalled: "stalled: {service}, no heartbeat for {seconds:.1f} s",
    events.ServiceRecovered: "no longer stalled: {service}",
    events.ServiceStopping: "stopping {service}",
    events.ServiceAbandoned: "abandoned {service}",
    events.GroupDraining: "draining",
    events.GroupStopped: "stopped",
}


def notify_systemd(group: ServiceGroup) -> None:
    """Tell systemd how `group` fares; do nothing where `NOTIFY_SOCKET` is not set.

    `READY=1` when the group is first ready; `STOPPING=1` when its stop begins, with an
    `EXTEND_TIMEOUT_USEC=` as long as that may take; `STATUS=` all along. Where the unit has a
    `WatchdogSec=`, a thread sends `WATCHDOG=1` twice in that time, from the first readiness to the
    beginning of the stop, while no service is stalled or abandoned.

    What cannot be sent is logged, and the services go on. The environment stays as it is.

    Raises:
        TypeError: `group` is no `ServiceGroup`.
        ValueError: `NOTIFY_SOCKET`, `WATCHDOG_USEC` or `WATCHDOG_PID` makes no sense.
    """
    if not isinstance(group, ServiceGroup):
        raise TypeError(f"notify_systemd() takes a ServiceGroup, not {group!r}")
    where = os.environ.get("NOTIFY_SOCKET")
    if not where:
        return
    notifier = _Notifier(group, _address(where), _watchdog_seconds())
    group.subscribe(notifier.on_event)
    if group.is_ready:
        notifier.on_ready()  # the event was before


class Pause(Protocol):
    """As much of a `threading.Event` as a `Watchdog` needs."""

    def wait(self, timeout: float, /) -> bool: ...

    def set(self) -> None: ...


class Watchdog:
    """A thread that calls `ping` at once and then every `interval` seconds, until `end`.

    Not a service of the group: as one it would have a place in the order of the stop, and a row in
    every report.
    """

    def __init__(
        self, group: str, interval: float, ping: Callable[[], None], pause: Pause | None = None
    ) -> None:
        self._interval = min(interval, threading.TIMEOUT_MAX)
        self._ping = ping
        self._pause = threading.Event() if pause is None else pause
        self._thread = threading.Thread(
            target=self._work, name=f"{group} (systemd watchdog)", daemon=True
        )
        self.start = self._thread.start

    def end(self) -> None:
        """Have it end; return at once."""
        self._pause.set()

    def _work(self) -> None:
        while True:
            self._ping()
            if self._pause.wait(self._interval):
                return


class _Notifier:
    """Called on the subscribers' thread, but for `_ping`."""

    def __init__(self, group: ServiceGroup, address: str, interval: float | None) -> None:
        self._group = group
        self._address = address
        self._interval = interval
        self._lock = threading.Lock()  # around each datagram: no ping may follow STOPPING=1
        self._sender: socket.socket | None = None
        self._told_ready = False
        self._stopping = False
        self._reason = ""
        self._watchdog: Watchdog | None = None
        self._unheard = False

    def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.GroupEvent) and event.group != self._group.name:
            return  # of a nested group, which is one service among others here
        if isinstance(event, events.GroupStarting):
            self._told_ready = self._stopping = False
            self._reason = ""
        elif isinstance(event, events.GroupReady):
            self.on_ready()
        elif isinstance(event, events.GroupDraining):
            self._on_stop(event)
        elif type(event) in _STATUS:
            with self._lock:
                self._send([self._status(event)], 0.0)
                if isinstance(event, events.GroupStopped):
                    self._close()

    def on_ready(self) -> None:
        with self._lock:
            if self._stopping:
                return
            first, self._told_ready = not self._told_ready, True
            self._send(["READY=1", "STATUS=ready"] if first else ["STATUS=ready"], SEND_SECONDS)
            if first and self._interval is not None:
                self._watchdog = Watchdog(self._group.name, self._interval, self._ping)
                self._watchdog.start()

    def _on_stop(self, event: events.GroupDraining) -> None:
        self._reason = event.reason or ""
        lines = ["STOPPING=1", self._status(event)]
        limit = self._group.shutdown_timeout
        if limit != math.inf:  # else the unit's own TimeoutStopSec= is the only one there is
            lines.append(f"EXTEND_TIMEOUT_USEC={math.ceil((limit + EXIT_SECONDS) * 1e6)}")
        with self._lock:
            # At STOPPING=1 systemd ends its watch; one more ping would begin it again (see
            # service_reset_watchdog() in its core/service.c), and kill what takes long to stop.
            self._stopping = True
            if self._watchdog is not None:
                self._watchdog.end()
                self._watchdog = None
            self._send(lines, SEND_SECONDS)

    def _ping(self) -> None:
        try:
            alive = self._group.state is not GroupState.STOPPED and _live(self._group.status())
        except Exception:  # a watchdog that cannot see must not bite
            alive = True
            _log.logger().exception("group %r: its status cannot be had", self._group.name)
        with self._lock:
            if alive and not self._stopping:
                self._send(["WATCHDOG=1"], SEND_SECONDS)

    def _status(self, event: events.Event) -> str:
        fields = {"service": "", "seconds": 0.0, "restarts": 0}
        for name in fields:
            fields[name] = getattr(event, name, None)
        text = _STATUS[type(event)].format_map(fields)
        if self._reason:
            text = f"{text}: {self._reason}"
        return f"STATUS={_one_line(text)}"

    def _send(self, lines: list[str], patience: float) -> None:
        try:
            try:
                self._put(lines, patience)
            except ConnectionError:  # who read there has gone; perhaps there is another by now
                self._close()
                self._put(lines, patience)
        except OSError as error:
            self._close()
            if patience and not self._unheard:
                self._unheard = True  # once, for a watchdog would say it again and again
                _log.logger().warning(
                    "group %r: systemd could not be told %s: %r",
                    self._group.name,
                    lines[0],
                    error,
                )
        else:
            self._unheard = False

    def _put(self, lines: list[str], patience: float) -> None:
        if self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.connect(self._address)  # unconnected, it would not wait but spin
        self._sender.settimeout(patience)
        self._sender.send("\n".join(lines).encode())

    def _close(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def _live(services: Iterable[ServiceStatus]) -> bool:
    return all(
        not one.stalled and one.state is not State.ABANDONED and _live(one.parts)
        for one in services
    )


def _one_line(text: str) -> str:
    """What systemd takes for a status: nothing that UTF-8 or a line has no place for."""
    printable = "".join(one if one.isprintable() else " " for one in text)
    return printable.encode()[:STATUS_BYTES].decode(errors="ignore")


def _address(where: str) -> str:
    if where[0] not in "/@":
        raise ValueError(
            f"NOTIFY_SOCKET must be a path from / on, or @ and the name of an abstract socket, "
            f"not {where!r}"
        )
    return f"\0{where[1:]}" if where[0] == "@" else where


def _watchdog_seconds() -> float | None:
    """Seconds from ping to ping: half of what sd_watchdog_enabled(3) tells. None: no watchdog."""
    usec = _environment_int("WATCHDOG_USEC")
    pid = _environment_int("WATCHDOG_PID")
    if usec is None or pid not in (None, os.getpid()):
        return None
    return usec / 2e6


def _environment_int(name: str) -> int | None:
    value = os.environ.get(name)
    if not value:
        return None
    if not value.isascii() or not value.isdecimal() or int(value) == 0:
        raise ValueError(f"{name} must be a whole number above 0, as systemd sets it: {value!r}")
    return int(value)
