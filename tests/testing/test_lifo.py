from __future__ import annotations

import attrs
import pytest

from servicegroup import AsyncGroup, AsyncService, Report, ServiceGroup, ServiceGroupError
from servicegroup.testing import Fails, Hangs, Returns, Runs, assert_stopped_lifo


def report_of(group: ServiceGroup) -> Report:
    with group:
        pass
    assert group.report is not None
    return group.report


def group_of(*services: Runs | Returns) -> ServiceGroup:
    group = ServiceGroup()
    for service in services:
        group.add(service)
    return group


def report_of_hung(group: ServiceGroup) -> Report:
    group.add(Runs())
    with Hangs() as hung:
        group.add(hung, stop_timeout=0.05)
        with pytest.raises(ServiceGroupError) as caught, group:
            pass
    return caught.value.report


def test_a_group_stops_last_in_first_out() -> None:
    report = report_of(group_of(Runs(), Runs(), Returns(), Runs()))
    assert_stopped_lifo(report)


def test_one_that_was_asked_too_early_is_named() -> None:
    report = report_of(group_of(Runs(), Runs()))
    first, second = report.services
    assert second.stopping_at is not None
    early = attrs.evolve(first, stopping_at=second.stopping_at)
    late = attrs.evolve(second, seconds_to_stop=0.5)
    with pytest.raises(AssertionError, match=r"'Runs' was asked 0\.500000 s before 'Runs-2'"):
        assert_stopped_lifo(attrs.evolve(report, services=(early, late)))


def test_one_that_outlives_several_that_were_added_before_is_named_each_time() -> None:
    report = report_of(group_of(Runs(), Runs(), Runs()))
    *others, last = report.services
    slow = attrs.evolve(last, seconds_to_stop=3600.0)
    with pytest.raises(AssertionError, match=r"'Runs-2' .* before 'Runs-3'.*\n'Runs' .* 'Runs-3'"):
        assert_stopped_lifo(attrs.evolve(report, services=(*others, slow)))


def test_all_at_once_is_not_last_in_first_out() -> None:
    report = report_of_hung(ServiceGroup(stop_concurrently=True))
    with pytest.raises(AssertionError, match=r"'Runs' was asked .* before 'Hangs' had ended"):
        assert_stopped_lifo(report)


def test_one_that_was_abandoned_did_not_stop() -> None:
    report = report_of_hung(ServiceGroup())
    with pytest.raises(AssertionError, match="'Hangs' did not stop: it was abandoned") as caught:
        assert_stopped_lifo(report)
    assert "was asked" not in str(caught.value)


def test_one_that_failed_by_itself_does_not_count() -> None:
    group = group_of(Runs())
    group.add(Fails(after=0.01))
    group.add(Runs())
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    assert_stopped_lifo(caught.value.report)


def test_where_nothing_was_stopped_nothing_is_shown() -> None:
    group = ServiceGroup()
    group.add(Fails())
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    with pytest.raises(AssertionError, match="no service was asked to stop"):
        assert_stopped_lifo(caught.value.report)


class Coroutine(AsyncService):
    async def run(self) -> None:
        await self.stopping.wait()


def test_the_services_of_nested_groups_are_looked_at_too() -> None:
    inner = ServiceGroup(name="inner")
    crew = AsyncGroup(name="crew")
    for _ in range(2):
        inner.add(Runs())
        crew.add(Coroutine())
    group = ServiceGroup()
    group.add(inner)
    group.add(crew)
    report = report_of(group)
    assert_stopped_lifo(report)
    for number in range(2):
        nested = report.services[number]
        parts = (nested.parts[0], attrs.evolve(nested.parts[1], seconds_to_stop=3600.0))
        services = list(report.services)
        services[number] = attrs.evolve(nested, parts=parts)
        with pytest.raises(AssertionError, match=f"'{nested.name}/.*' was asked"):
            assert_stopped_lifo(attrs.evolve(report, services=tuple(services)))
