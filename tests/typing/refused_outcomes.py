"""What an outcome is not."""

from servicegroup import Report, ServiceGroup, ServiceGroupError, events


def change(report: Report, event: events.ServiceStopped, error: ServiceGroupError) -> None:
    report.exit_code = 0  # refused
    report.services[0].error = None  # refused
    event.service = "other"  # refused
    print(error.reports)  # refused
    print(event.cause)  # refused


def go_on(group: ServiceGroup) -> int:
    code: int = group.start()  # refused
    group.stop(15)  # refused
    group.wait("1")  # refused
    return code
