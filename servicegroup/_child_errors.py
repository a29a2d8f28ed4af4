"""What goes wrong with a child, and how an exception comes from there to here.

The classes are for users, who know them from `servicegroup.process`.
"""

from __future__ import annotations

import io
import pickle
import signal
import traceback
from types import FunctionType, MethodDescriptorType
from typing import Any, cast

from attrs import frozen

from servicegroup.errors import StopTimeoutError


class ChildDiedError(RuntimeError):
    """A child process ended without a word: it was killed, or called `os._exit()`.

    Attributes:
        pid: its process id.
        exit_code: as in `subprocess`, minus the signal's number after a signal; None if somebody
            else in this process has taken it.
        signal: the signal that killed it, or None.
    """

    __module__ = "servicegroup.process"

    def __init__(self, message: str, pid: int, exit_code: int | None) -> None:
        super().__init__(message)
        self.pid = pid
        self.exit_code = exit_code
        self.signal = -exit_code if exit_code is not None and exit_code < 0 else None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.pid, self.exit_code)


class ChildError(RuntimeError):
    """Stands for an exception of the child that cannot be pickled; the message has its type."""

    __module__ = "servicegroup.process"


class ChildTraceback(Exception):
    """The traceback of an exception as it stood in the child; the `__cause__` of what arrives."""

    __module__ = "servicegroup.process"

    def __str__(self) -> str:
        return f"in the child process\n{self.args[0]}".rstrip()


class ChildStopTimeoutError(StopTimeoutError):
    """A child process did not end in time and was ended by a signal.

    Attributes:
        pid: its process id.
        signal: the signal that ended it, SIGTERM or SIGKILL.
    """

    __module__ = "servicegroup.process"

    def __init__(self, service: str, seconds: float, stack: str, pid: int, number: int) -> None:
        super().__init__(service, seconds, stack)
        first, *rest = str(self).split("\n", 1)
        self.args = ("\n".join([f"{first}: {ended_by(pid, number)}", *rest]),)
        self.pid = pid
        self.signal = number

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.service, self.seconds, self.stack, self.pid, self.signal)


def ended_by(pid: int, number: int) -> str:
    """That we have sent it."""
    return f"its process {pid} was ended by {signal_name(number)}"


def signal_name(number: int) -> str:
    """As in `signal`, where it has a name."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


@frozen(kw_only=True, eq=False, repr=False)
class Failure:
    """An exception on its way to the parent.

    Attributes:
        pickled: itself, or what stands for it.
        text: its type and message, for the case that the parent cannot make it again.
        traceback: as it is printed.
        notes: what was added to it.
    """

    pickled: bytes
    text: str
    traceback: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """`error`, as far as it can be told; raises nothing."""
        return cls(
            pickled=dumps(sendable(error)),
            text=_text(error),
            # One that was never raised, a timeout, has nothing to show there.
            traceback="".join(traceback.format_exception(error)) if error.__traceback__ else "",
            notes=_notes(error),
        )

    def error(self) -> BaseException:
        """The exception that arrives."""
        try:
            error: object = pickle.loads(self.pickled)
        except Exception:  # of a module that is not to be had here, say
            error = None
        if not isinstance(error, BaseException):
            error = _noted(ChildError(self.text), self.notes)
        if self.traceback:
            error.__cause__ = ChildTraceback(self.traceback)
        return error


def sendable(error: BaseException) -> BaseException:
    """`error` if it survives pickling, else what stands for it."""
    try:
        if isinstance(pickle.loads(dumps(error)), BaseException):
            return error
    except Exception:  # whatever the parts of it raise
        pass
    if isinstance(error, BaseExceptionGroup):
        # So that one of them that cannot be sent does not cost the others their types.
        parts = [sendable(part) for part in error.exceptions]
        return _noted(BaseExceptionGroup(str(error.message), parts), _notes(error))
    if isinstance(error, SystemExit):
        return SystemExit(_str(error.code))
    return _noted(ChildError(_text(error)), _notes(error))


def dumps(thing: object) -> bytes:
    """`pickle.dumps`, for what `pickle.loads` reads."""
    file = io.BytesIO()
    _Pickler(file).dump(thing)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Has exceptions made again past an `__init__` of theirs, which may want more than `args`."""

    def reducer_override(self, thing: Any) -> Any:
        kind: Any = type(thing)
        if not isinstance(thing, BaseException) or not isinstance(kind.__init__, FunctionType):
            return NotImplemented
        if not isinstance(kind.__reduce__, MethodDescriptorType):
            return NotImplemented  # it knows best how it is made again
        _, args, *state = cast(tuple[Any, ...], thing.__reduce__())
        return (_made_again, (kind, *args), *state)


def _made_again(kind: type[BaseException], *args: object) -> BaseException:
    base: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        error: BaseException = base.__new__(kind, *args)
    except TypeError:  # there is a base of C between the two
        return kind(*args)
    base.__init__(error, *args)
    return error


def _noted(error: BaseException, notes: tuple[str, ...]) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


def _notes(error: BaseException) -> tuple[str, ...]:
    notes = getattr(error, "__notes__", ())
    return tuple(map(_str, notes)) if isinstance(notes, (list, tuple)) else ()


def _text(error: BaseException) -> str:
    kind = type(error)
    where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{where}{kind.__qualname__}: {_str(error)}"


def _str(thing: object) -> str:
    try:
        return "".join([str(thing)])  # no subclass of str, which the parent might not know
    except Exception:
        return "(its message cannot be had)"
