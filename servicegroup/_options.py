"""The options of a service, checked and put together from where they may be given."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter, is_

from attrs import frozen

from servicegroup.service import Managed, OnFailure, OnReturn, OnStall, ReadyWhen


@frozen(kw_only=True, eq=False, repr=False)
class Options:
    """What a group goes by for one service; services with the same options share them."""

    ready_when: ReadyWhen
    daemon: bool
    start_timeout: float
    stop_timeout: float
    on_failure: OnFailure
    on_return: OnReturn
    heartbeat_timeout: float
    on_stall: OnStall
    expected_on_stop: tuple[type[BaseException], ...]


CHOICES: dict[str, tuple[str, ...]] = {
    "ready_when": ("entered", "announced", "returned"),
    "on_failure": ("stop", "continue"),
    "on_return": ("continue", "stop"),
    "on_stall": ("report", "fail"),
}
MAY_RESTART = ("on_failure", "on_return")
NAMES = (
    "ready_when",
    "daemon",
    "start_timeout",
    "stop_timeout",
    "on_failure",
    "on_return",
    "heartbeat_timeout",
    "on_stall",
    "expected_on_stop",
)
_own: Callable[[object], tuple[object, ...]] = attrgetter(*NAMES)
_NOTHING = (None,) * len(NAMES)
_UNSAID = _own(Managed)


def seconds(whose: str, name: str, value: object) -> float:
    """`value` if it is a number of seconds.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{whose}: {name} must be a number of seconds (math.inf: no limit), not {value!r}"
        )
    if math.isnan(value) or value < 0:
        raise ValueError(f"{whose}: {name} must be 0 or more seconds, not {value!r}")
    return value


def choice(whose: str, name: str, value: object) -> object:
    """`value` if it is one of the words for `name`, or a `Restart` where it may be; ValueError."""
    restart = sys.modules.get("servicegroup.restart")  # not loaded: then it cannot be one
    if name in MAY_RESTART and restart is not None and isinstance(value, restart.Restart):
        return value
    for word in CHOICES[name]:
        if value == word:
            return word
    words = ", ".join(map(repr, CHOICES[name]))
    if name in MAY_RESTART:
        words += " or a Restart"
    raise ValueError(f"{whose}: {name} must be one of {words}, not {value!r}")


def flag(whose: str, name: str, value: object) -> bool:
    """`value` if it is a bool; TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{whose}: {name} must be True or False, not {value!r}")
    return value


class Resolver:
    """Puts options together: the keyword before the service's attribute before the default."""

    def __init__(self, defaults: Mapping[str, object]) -> None:
        self._defaults = {
            "ready_when": "entered",
            "heartbeat_timeout": math.inf,
            "on_stall": "report",
            "expected_on_stop": (),
            **defaults,
        }
        self._known: dict[tuple[object, ...], Options] = {}
        self._last: tuple[tuple[object, ...], Options] | None = None
        self._usual: Options | None = None  # of services that say nothing of their own

    def resolve(self, service: object, name: str, given: tuple[object, ...]) -> Options:
        """The options of `service`, which the group knows as `name`; `given` as in `NAMES`.

        Raises:
            TypeError, ValueError: one of them is wrong; the message says which, and whose.
        """
        own = _own(service) if isinstance(service, Managed) else _NOTHING
        # Thousands that say nothing, or of a kind, come one after the other.
        usual = given == _NOTHING and own == _UNSAID
        if usual and self._usual is not None:
            return self._usual
        said = given + own
        last = self._last  # once: another thread may add, too
        if last is not None and all(map(is_, said, last[0])):
            return last[1]
        options = self._put_together(name, given, own)
        self._last = said, options
        if usual:
            self._usual = options
        return options

    def _put_together(
        self, name: str, given: tuple[object, ...], own: tuple[object, ...]
    ) -> Options:
        values: list[object] = []
        for option, first, second in zip(NAMES, given, own, strict=True):
            value = second if first is None else first
            if value is None:
                value = self._defaults.get(option)
                if option == "on_return" and values[0] == "returned":
                    value = "continue"  # the group's default is not meant for these
            values.append(value)
        key = (*values, *map(type, values))  # the types, since True == 1
        try:
            return self._known[key]
        except (KeyError, TypeError):  # TypeError: something unhashable, so certainly wrong
            pass
        options = _checked(f"service {name!r}", dict(zip(NAMES, values, strict=True)))
        self._known[key] = options
        return options


def _checked(whose: str, values: dict[str, object]) -> Options:
    for name in CHOICES:
        choice(whose, name, values[name])
    for name in ("start_timeout", "stop_timeout", "heartbeat_timeout"):
        seconds(whose, name, values[name])
    if values["heartbeat_timeout"] == 0:
        raise ValueError(f"{whose}: heartbeat_timeout must be more than 0 seconds")
    returned = values["ready_when"] == "returned"
    if returned and values["on_return"] != "continue":
        raise ValueError(
            f'{whose}: on_return has no meaning with ready_when="returned", where a start() that '
            "returns means up: leave one of them out"
        )
    daemon = returned if values["daemon"] is None else flag(whose, "daemon", values["daemon"])
    expected = _exception_types(whose, values["expected_on_stop"])
    return Options(**{**values, "daemon": daemon, "expected_on_stop": expected})  # type: ignore[arg-type]


def _exception_types(whose: str, value: object) -> tuple[type[BaseException], ...]:
    types = (value,) if isinstance(value, type) else value
    if isinstance(types, Iterable):
        types = tuple(types)
        if all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
            return types
    raise TypeError(f"{whose}: expected_on_stop must be exception types, not {value!r}")
