"""Health of a group as three verdicts: startup, liveness, readiness."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from attrs import frozen

from servicegroup._options import seconds
from servicegroup._stacks import stack_of
from servicegroup.group import ServiceGroup
from servicegroup.report import GroupState, ServiceStatus, State, one_line
from servicegroup.service import Managed

CHECK_SECONDS = 1.0  # a check may take, before it counts as failed
CACHE_SECONDS = 1.0  # its answer holds: many may probe

_BEFORE = (GroupState.NEW, GroupState.STARTING)


@frozen(kw_only=True)
class Finding:
    """What is the matter with one service, or with the whole group.

    Attributes:
        service: its name; empty for the group.
        reason: what the matter is; empty if it is well.
    """

    service: str
    reason: str = ""


@frozen(kw_only=True)
class Verdict:
    """The answer to one probe.

    Attributes:
        kind: `"startup"`, `"liveness"` or `"readiness"`.
        ok: whether it is a yes.
        findings: of the group, and of each of its services.
    """

    kind: str
    ok: bool
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        """A line for each service, `[+]` or `[-]` before it, and the verdict."""
        lines = [
            f"[{'-' if one.reason else '+'}] {one.service or 'group'}: {one.reason or 'ok'}"
            for one in self.findings
        ]
        return "\n".join([*lines, f"{self.kind}: {'ok' if self.ok else 'failed'}"])

    def to_dict(self) -> dict[str, object]:
        """The same out of what JSON knows."""
        return {
            "probe": self.kind,
            "ok": self.ok,
            "findings": [{"service": one.service, "reason": one.reason} for one in self.findings],
        }


class Health:
    """Tells how a group is. Any thread may ask.

    Args:
        group: the group.
        check_timeout: seconds that a service's `check()` may take.
        cache: seconds for which its answer holds.

    Raises:
        TypeError, ValueError: `check_timeout` or `cache` is no number of seconds.
    """

    def __init__(
        self,
        group: ServiceGroup,
        *,
        check_timeout: float = CHECK_SECONDS,
        cache: float = CACHE_SECONDS,
    ) -> None:
        self._group = group
        self._timeout = seconds("Health", "check_timeout", check_timeout)
        self._cache = seconds("Health", "cache", cache)
        self._lock = threading.Lock()  # guards the next line; not held while anything is checked
        self._checks: dict[str, _Check] = {}

    def startup(self) -> Verdict:
        """Whether the start is over: liveness means nothing before that."""
        state = self._group.state
        before = state in _BEFORE
        findings = [Finding(service="", reason=f"it is {state.value}" if before else "")]
        findings += [
            Finding(service=one.name, reason=f"it is {one.state.value}" if waits else "")
            for one in _flat(self._group.status())
            for waits in [before and not one.ready]
        ]
        return Verdict(kind="startup", ok=not before, findings=tuple(findings))

    def liveness(self) -> Verdict:
        """Whether a new process would do better: not, while no service is stalled or abandoned.

        Of nothing outside: a broker that is away does not come back by a restart of its clients.
        """
        findings = []
        for one in _flat(self._group.status()):
            reason = ""
            if one.state is State.ABANDONED:
                reason = "it did not stop, and was left behind"
            elif one.stalled:
                reason = "it is stalled: no heartbeat for too long"
            findings.append(Finding(service=one.name, reason=reason))
        ok = not any(one.reason for one in findings)
        return Verdict(kind="liveness", ok=ok, findings=(Finding(service=""), *findings))

    def readiness(self) -> Verdict:
        """Whether to send it requests: all services are up, their checks pass, and no stop is near.

        Takes up to `check_timeout` seconds.
        """
        group = self._group
        state = group.state
        reason = "" if state is GroupState.RUNNING else f"it is {state.value}"
        findings = [Finding(service="", reason=reason)]
        statuses = list(_flat(group.status()))
        failed = self._failed_checks(statuses) if not reason else {}
        findings += [
            Finding(service=one.name, reason=_unready(one) or failed.get(one.name, ""))
            for one in statuses
        ]
        # Asked last, so that no check that took its time hides a stop.
        ok = group.is_ready and not failed
        if group.state is not state:
            findings[0] = Finding(service="", reason=f"it is {group.state.value}")
        return Verdict(kind="readiness", ok=ok, findings=tuple(findings))

    def _failed_checks(self, statuses: list[ServiceStatus]) -> dict[str, str]:
        """The reasons, by the names of the services."""
        up = {one.name for one in statuses if one.ready}
        asked = []
        now = time.monotonic()
        for name, service in self._group.services.items():
            if name not in up or not isinstance(service, Managed):
                continue
            if type(service).check is Managed.check and "check" not in vars(service):
                continue
            with self._lock:
                check = self._checks.get(name)
                if check is None or check.is_old(now, self._cache):
                    check = self._checks[name] = _Check(name, service.check)
            asked.append(check)
        until = now + self._timeout
        return {check.name: reason for check in asked if (reason := check.wait(until))}


class _Check:
    """One call of a `check()`, on a thread of its own: it may hang."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self.name = name
        self._begun = time.monotonic()
        self._done = threading.Event()
        self._reason = ""
        self._thread = threading.Thread(
            target=self._run, args=(function,), name=f"check of {name}", daemon=True
        )
        self._thread.start()

    def is_old(self, now: float, seconds: float) -> bool:
        """Whether another is to be made. Not beside one that hangs."""
        return self._done.is_set() and now - self._begun >= seconds

    def wait(self, until: float) -> str:
        """What it said by then; empty: all is well."""
        if not self._done.wait(max(0.0, until - time.monotonic())):
            took = time.monotonic() - self._begun
            return f"its check has not ended after {took:.1f} s: {_last_line(self._thread)}"
        return self._reason

    def _run(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            self._reason = f"its check failed: {one_line(error)}"
        self._done.set()


def _unready(one: ServiceStatus) -> str:
    if one.state is State.FAILED:
        return "it failed" if one.error is None else f"it failed: {one_line(one.error)}"
    if one.state in (State.FINISHED, State.STOPPED) or one.ready:
        return ""
    return f"it is {one.state.value}, and not ready"


def _last_line(thread: threading.Thread) -> str:
    lines = stack_of(thread).strip().splitlines()
    return lines[-1].strip() if lines else "it ends just now"


def _flat(statuses: tuple[ServiceStatus, ...]) -> Iterator[ServiceStatus]:
    for one in statuses:
        yield one
        yield from _flat(one.parts)
