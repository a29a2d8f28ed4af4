"""MODULE:NAME, as it is typed, and the group that it names."""

from __future__ import annotations

import importlib
import inspect
import os
import reprlib
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import ModuleType
from typing import NoReturn

import click

from servicegroup import group as core
from servicegroup.group import ServiceGroup
from servicegroup.report import one_line
from servicegroup.service import StartStop, required_arguments

MEANT = "MODULE:NAME names a ServiceGroup, or a function that returns one"
GUARD = 'put what an import must not do below `if __name__ == "__main__":`'
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


class TargetError(Exception):
    """A target that names no group; the cause, if there is one, is of the user's code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def end(code: int) -> NoReturn:
    """`sys.exit`, though threads that the import has started would keep the process."""
    main = threading.main_thread()
    if any(not thread.daemon and thread is not main for thread in threading.enumerate()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def load(target: str) -> ServiceGroup:
    """Import the group that `target` names, from the current directory or `sys.path`.

    While this imports, no group can be started: a program whose last line is `group.run()` would
    never come to its end.

    Raises:
        SystemExit: there is none; it has been said what there is.
    """
    try:
        return _load(target)
    except TargetError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        click.secho(f"Error: {error}", err=True, fg="red")
        end(error.code)


def _load(target: str) -> ServiceGroup:
    name, path = _parse(target)
    if not sys.flags.safe_path:
        _look_in_current_directory()
    with _no_start(target):
        module = _import(name)
        try:
            found: object = attrgetter(path)(module)
        except AttributeError:
            raise TargetError(_no_such_name(module, path)) from None
        if not isinstance(found, ServiceGroup):
            found = _call(target, found)
    return found


def _parse(target: str) -> tuple[str, str]:
    name, colon, path = target.partition(":")
    if name.endswith(".py") or "/" in name:
        module = name.removesuffix(".py").replace("/", ".").strip(".")
        raise TargetError(
            f"{name!r} is a file, and a module is meant: {module}:{path or 'NAME'}, "
            "from the directory where it can be imported"
        )
    if not (colon and path and all(name.split(".")) and all(path.split("."))):
        raise TargetError(f"{target!r} is not MODULE:NAME, as shop:group would be; {MEANT}")
    return name, path


def _look_in_current_directory() -> None:
    try:
        here = os.getcwd()
    except FileNotFoundError:  # removed meanwhile: then there is nothing to find in it
        return
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)


@contextmanager
def _no_start(target: str) -> Iterator[None]:
    core.not_now = f"its module is only imported, to find {target}; {GUARD}"
    try:
        yield
    finally:
        core.not_now = None


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise TargetError(f"{error}{_similar(name)}") from None
        raise _raised(f"{name}, when it is imported,", error) from error


def _similar(name: str) -> str:
    import difflib  # here, and not for every program that starts

    try:
        files = os.listdir()
    except OSError:
        files = []
    near = difflib.get_close_matches(name, [file.removesuffix(".py") for file in files])
    return f"; did you mean {' or '.join(near)}?" if near else ", neither here nor on sys.path"


def _raised(what: str, error: BaseException) -> TargetError:
    """For what the user's code raised, which is left with the frames of that code only."""
    frame = error.__traceback__
    while frame is not None and _is_way_there(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    error.__traceback__ = last = frame
    while frame is not None:
        if not frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            last = frame
        frame = frame.tb_next
    if last is not None:
        last.tb_next = None  # inside of this library is nothing to be seen to
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) and error.code else 1
        return TargetError(f"{what} calls sys.exit({error.code!r}); {GUARD}", code)
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    return TargetError(f"{what} raises {one_line(error)}", code)


def _is_way_there(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


def _no_such_name(module: ModuleType, path: str) -> str:
    groups = [name for name, value in vars(module).items() if isinstance(value, ServiceGroup)]
    there = ", ".join(f"{module.__name__}:{name}" for name in groups)
    where = getattr(module, "__file__", None) or "built in"
    return f"module {module.__name__!r} ({where}) has no {path!r}; " + (
        f"there is {there}" if there else f"{MEANT}, and it has no such group at all"
    )


def _call(target: str, found: object) -> ServiceGroup:
    """The group that `found` returns."""
    if isinstance(found, type) and not issubclass(found, ServiceGroup):
        raise TargetError(f"{target} is the class {found.__qualname__}; {MEANT}")
    if not callable(found):
        raise TargetError(f"{target} is {_what(found)}")
    if inspect.iscoroutinefunction(found):
        raise TargetError(f"{target} is a coroutine function, and no loop runs yet: make it plain")
    if needed := required_arguments(found):
        names = ", ".join(one.name for one in needed)
        raise TargetError(f"{target} needs arguments ({names}), and is called without any")
    try:
        made: object = found()
    except BaseException as error:
        raise _raised(f"{target}()", error) from error
    if not isinstance(made, ServiceGroup):
        raise TargetError(f"{target}() returned {_what(made)}")
    return made


def _what(found: object) -> str:
    if isinstance(found, StartStop):
        return f"a service ({found!r}) and not a ServiceGroup: add() it to one, and name that"
    return f"{reprlib.repr(found)}, of type {type(found).__name__}; {MEANT}"
