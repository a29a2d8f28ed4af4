"""Whether services were stopped in reverse order."""

from __future__ import annotations

from collections.abc import Iterable

from servicegroup.report import Report, ServiceStatus, State

__tracebackhide__ = True  # by pytest, for all of this file

ROUNDING = 1e-6  # seconds: times since the epoch, as floats, are no finer than a quarter of that


def assert_stopped_lifo(report: Report) -> None:
    """Hold that each service was asked to stop only once all added after it had ended.

    Those that were not asked (never started, or failed by themselves) do not count. The services of
    nested groups are held to the same among themselves.

    Raises:
        AssertionError: one was asked too early, one was abandoned, or none was asked at all.
    """
    wrong = list(_wrong(report.services))
    if not any(one.stopping_at is not None for one in _flat(report.services)):
        wrong.append("no service was asked to stop")
    if wrong:
        raise AssertionError("\n".join(["not stopped last-in-first-out:", *wrong, str(report)]))


def _wrong(services: tuple[ServiceStatus, ...]) -> Iterable[str]:
    after: tuple[str, float] | None = None  # of those added later: who ended last, and when
    for service in reversed(services):
        yield from _wrong(service.parts)
        if service.state is State.ABANDONED:
            yield f"{service.name!r} did not stop: it was abandoned"
        at, seconds = service.stopping_at, service.seconds_to_stop
        if at is None or seconds is None:
            continue
        if after is not None and at < after[1] - ROUNDING:
            early = after[1] - at
            yield f"{service.name!r} was asked {early:.6f} s before {after[0]!r} had ended"
        if after is None or at + seconds > after[1]:
            after = service.name, at + seconds


def _flat(services: tuple[ServiceStatus, ...]) -> Iterable[ServiceStatus]:
    for service in services:
        yield service
        yield from _flat(service.parts)
