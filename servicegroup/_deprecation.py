"""Old names that go on working for a while, and say what to use instead: docs/stability.md."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def deprecated(old: str, instead: str, *, since: str, until: str) -> None:
    """Warn of `old` at the line that called the function, or the `__getattr__`, that calls this."""
    text = f"{old} is deprecated since servicegroup {since}, and gone in {until}: use {instead}"
    warnings.warn(text, DeprecationWarning, stacklevel=3)


def renamed_keyword(
    old: str, new: str, *, since: str, until: str
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function, or an `__init__`, take its keyword `new` by the name `old`, too.

    The signature, and so type checkers, know the new name only.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> T:  # Any: with `old`, it is not what P says
            if old in kwargs:
                deprecated(f"{function.__qualname__}({old}=…)", f"{new}=", since=since, until=until)
                return function(*args, **{new: kwargs.pop(old)}, **kwargs)
            return function(*args, **kwargs)

        return wrapper

    return decorate
