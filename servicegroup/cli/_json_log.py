"""The log as lines of JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from servicegroup.errors import ServiceGroupError
from servicegroup.report import Report, one_line

_NOT_EXTRA = {*vars(logging.makeLogRecord({})), "message", "asctime", "time", "monotonic"}


class JsonFormatter(logging.Formatter):
    """A line of JSON a record, with the fields of its `extra`; text for what JSON does not know."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _NOT_EXTRA}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=_as_text)


def _as_text(value: object) -> str:
    return one_line(value) if isinstance(value, BaseException) else repr(value)


def print_as_json(report: Report, _error: ServiceGroupError | None) -> None:
    """The report as one more line of the log, whatever has become of its handlers."""
    record = logging.LogRecord(
        "servicegroup",
        logging.INFO if report.exit_code == 0 else logging.ERROR,
        *(__file__, 0),
        str(report).partition("\n")[0],
        *((), None),
    )
    record.event, record.report = "Report", report.to_dict()
    print(JsonFormatter().format(record), file=sys.stderr)
