"""Failures and reports."""

from typing import assert_type

from servicegroup import (
    Report,
    ServiceGroup,
    ServiceGroupError,
    ServiceStatus,
    State,
    StopTimeoutError,
)


def start(group: ServiceGroup) -> Report | None:
    try:
        return group.start()
    except ServiceGroupError as error:
        assert_type(error.report, Report)
        assert_type(error.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])
        rest = error.subgroup(lambda one: not isinstance(one, StopTimeoutError))
        return error.report if rest else None


def start_and_sort(group: ServiceGroup) -> None:
    try:
        group.start()
    except* ConnectionError as errors:
        assert_type(errors, ExceptionGroup[ConnectionError])
        for one in errors.exceptions:
            print(one)
    except* StopTimeoutError as errors:
        for late in errors.exceptions:
            if isinstance(late, StopTimeoutError):
                print(late.service, late.stack)
                assert_type(late.seconds, float)


def report_of(group: ServiceGroup) -> Report | None:
    report: Report | None = None
    try:
        group.start()
    except* OSError as errors:
        if isinstance(errors, ServiceGroupError):
            report = errors.report
    return report


def look(report: Report) -> None:
    assert_type(report.services, tuple[ServiceStatus, ...])
    assert_type(report.services[0].state, State)
    assert_type(report.services[0].error, BaseException | None)
    assert_type(report.to_json(indent=2), str)
    assert_type(report.to_dict(), dict[str, object])
