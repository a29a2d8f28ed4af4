"""Log records on their way from a child to its parent."""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from collections.abc import Mapping

from attrs import frozen

from servicegroup._child_errors import dumps
from servicegroup._child_pipe import Sender

_PLAIN = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


@frozen(kw_only=True, eq=False, repr=False)
class Levels:
    """How much is logged."""

    disabled: int
    of_loggers: Mapping[str, int]

    @classmethod
    def take(cls) -> Levels:
        """Those of this process."""
        root = logging.getLogger()
        levels = {
            name: logger.level
            for name, logger in list(root.manager.loggerDict.items())
            if isinstance(logger, logging.Logger) and logger.level
        }
        return cls(disabled=root.manager.disable, of_loggers={"": root.level, **levels})

    def put(self) -> None:
        """Make them those of this process."""
        logging.disable(self.disabled)
        for name, level in self.of_loggers.items():
            logging.getLogger(name).setLevel(level)


class Forward(logging.Handler):
    """Sends the records to the parent. Any thread."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        """Send `record`; it is with the kernel when this returns, so no end of ours loses it."""
        try:
            self._sender.send(("log", *_packed(record)))
        except OSError:
            pass  # the parent is gone, and so is this process in a moment
        except Exception:
            self.handleError(record)


def _packed(record: logging.LogRecord) -> tuple[bytes, bytes]:
    """What every record has, and what somebody gave as `extra`."""
    fields = {**vars(record), "msg": record.getMessage(), "args": None, "exc_info": None}
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    extra = {name: fields.pop(name) for name in fields.keys() - _PLAIN}
    return _pickled(fields), _pickled(extra)


def _pickled(fields: dict[str, object]) -> bytes:
    try:
        return dumps(fields)
    except Exception:
        return dumps({name: _picklable(value) for name, value in fields.items()})


def _picklable(value: object) -> object:
    try:
        dumps(value)
    except Exception:
        return repr(value)
    return value


def handle(fields: bytes, extra: bytes, service: str, pid: int) -> None:
    """Log here what was logged by process `pid` of `service`; raises nothing."""
    try:
        values = pickle.loads(fields)
        try:
            values |= pickle.loads(extra)
        except Exception:  # of a class that is not to be had here, say
            pass
        record = logging.makeLogRecord({"service": service, **values, "pid": pid})
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:  # a filter raised
        if logging.raiseExceptions:
            print(f"a log record of service {service!r} is lost", file=sys.stderr)
            traceback.print_exc()
