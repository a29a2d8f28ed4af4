"""`Periodic`: a function that is called again and again, every so often or as cron says."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from servicegroup.service import Service, _name_of, require_plain, required_arguments

log = logging.getLogger("servicegroup")

SHORTEST = 1e-6  # below it, a day's worth of ticks is more than a float can count
LOOK = 60.0  # a clock that was set wakes nobody, so somebody has to look
SET_BACK = 3 * 3600.0  # cron's own limit: beyond it, the clock was wrong before

Ticks = Callable[[float], float]


class Grid:
    """The ticks of `every`: `origin` and all that lie a multiple of `every` after it.

    Counted from the origin each time, so that no rounding adds up.
    """

    def __init__(self, origin: float, every: float) -> None:
        self._origin = origin
        self._every = every

    def __call__(self, time: float) -> float:
        """The first tick later than `time`, which is not before the origin."""
        number = math.floor((time - self._origin) / self._every) + 1
        while (tick := self._origin + number * self._every) <= time:  # rounded down
            number += 1
        return tick


class Cron:
    """The ticks of a cron expression, in seconds since the epoch.

    cronsim tells the local times that match; when those are, on days on which the offset changes,
    is decided here. Its own way takes each change for one of whole hours, and misses ticks where
    it is half an hour.

    Raises:
        ImportError: cronsim is not installed.
        ValueError: the expression is wrong.
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError as error:
            raise ImportError(
                "Periodic(cron=...) needs cronsim: pip install servicegroup[cron]"
            ) from error
        self._zone = zone
        self._matches = functools.partial(CronSim, expression)
        try:
            self._matches(datetime.now(zone))
        except (CronSimError, ValueError) as error:  # ValueError: thousands of digits
            raise ValueError(str(error)) from error
        fields = expression.split()
        # As Debian's cron: what has no star in its minute or hour is done once on each day.
        self._once = len(fields) == 5 and not any(field[0] == "*" for field in fields[:2])

    def __call__(self, time: float) -> float:
        """The first tick later than `time`; infinity when there is none in 50 years."""
        now = datetime.fromtimestamp(math.floor(time), self._zone)
        begin = now.replace(tzinfo=None, fold=0)
        # What comes twice has its second time still to come while the first one passes.
        begin -= _offset(now) - _offset(now.replace(fold=1))
        best = math.inf
        for match in self._matches(begin):
            first, *second = self._times_of(match)
            if first > time:
                return min(best, first)
            best = min([best, *(when for when in second if when > time)])
        return best

    def _times_of(self, local: datetime) -> list[float]:
        """When it is that time: once as a rule; never, or twice, when the clocks are changed."""
        first, second = self._both(local)
        if second < first and not self._once:
            return [-math.inf]
        while second < first:  # skipped: the first time that there is after it
            local += timedelta(minutes=1)
            first, second = self._both(local)
        return [first] if self._once else [first, second]

    def _both(self, local: datetime) -> tuple[float, float]:
        """Equal as a rule; the later one first if that time is skipped."""
        there = local.replace(tzinfo=self._zone)
        return there.timestamp(), there.replace(fold=1).timestamp()


def _offset(there: datetime) -> timedelta:
    return there.utcoffset() or timedelta()


class Plan:
    """When to run next. Pure: it is told the time, which is that of the `ticks`.

    Args:
        ticks: the first tick later than a given time.
        jitter: the longest time from a tick to its run.
        random: what part of the jitter to take, from 0 to 1; asked anew for each tick.
        catch_up: whether missed ticks are made up for by one run.
        look: the longest time to wait without a look at the clock, and how late a run may begin.
    """

    def __init__(
        self,
        ticks: Ticks,
        jitter: float,
        random: Callable[[], float],
        catch_up: bool,
        look: float = math.inf,
    ) -> None:
        self._ticks = ticks
        self._jitter = jitter
        self._random = random
        self._catch_up = catch_up
        self._look = look
        self._since = -math.inf  # the ticks until then are done with
        self._tick = -math.inf
        self._due = math.inf

    def aim(self, now: float) -> None:
        """Make the first tick later than `now` the next one."""
        self._since = now
        self._next()

    def wait(self, now: float) -> float:
        """Seconds to wait before asking again; 0: run."""
        if now < self._since - SET_BACK:
            self.aim(now)
        elif now - self._due > self._look:
            self._miss(now)
        return min(max(0.0, self._due - now), self._look)

    def began(self, now: float) -> None:
        """A run begins; it stands for all that was due until now."""
        # A tick that came a moment ago may be due only after its own jitter.
        self._since = max(self._since, self._tick, now - self._jitter)

    def ended(self, now: float) -> None:
        """The run that began has ended."""
        self._next()
        if self._due < now:
            self._miss(now)

    def _next(self) -> None:
        self._tick = self._ticks(self._since)
        self._due = self._tick + self._jitter * self._random()

    def _miss(self, now: float) -> None:
        if self._catch_up:
            self._since = self._tick = self._due = now
        else:
            self.aim(now)


class Periodic(Service):
    """Calls a function again and again, on the service's thread; never twice at once.

    It sleeps exactly until the next run or the stop. The stop lets a run in hand finish, and no
    other begins. May be started again; the schedule then begins anew.

    Args:
        fn: what to call. It is passed the `stopping` event if it has a required positional
            parameter, nothing otherwise; what it returns is ignored.
        every: seconds from tick to tick, on the monotonic clock, counted from the start. The ticks
            do not drift, however long `fn` takes.
        cron: when, as in a crontab: `"minute hour day month weekday"`, or six fields with the
            second first. Needs the extra `cron`.
        timezone: whose time `cron` is in: an IANA name or a `tzinfo`; by default UTC.
        first: `"now"`: call it at the start, too; `"after"`: at the first tick after the start.
            By default `"now"` with `every`, `"after"` with `cron`.
        jitter: each run begins up to so many seconds after its tick, at random. A run at the start
            and one that catches up are not delayed.
        missed: what to do when ticks pass while `fn` still runs, or when the clock steps over one:
            `"skip"` them, or make up for all of them with one run, at `"once"`.
        on_error: what to do when `fn` raises: `"fail"`: the service fails with it; `"log"`: log it
            and go on. `SystemExit` and other exceptions that are no `Exception` always go on up.
        name: what the group calls it; by default the name of `fn`.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
        ImportError: `cron` is given and cronsim is not installed.
    """

    # Tests put others in their place.
    _monotonic = staticmethod(time.monotonic)
    _wall = staticmethod(time.time)
    _random = staticmethod(random.random)

    name: str

    def __init__(
        self,
        fn: Callable[[], object] | Callable[[threading.Event], object],
        *,
        every: float | None = None,
        cron: str | None = None,
        timezone: str | tzinfo | None = None,
        first: Literal["now", "after"] | None = None,
        jitter: float = 0.0,
        missed: Literal["skip", "once"] = "skip",
        on_error: Literal["fail", "log"] = "fail",
        name: str | None = None,
    ) -> None:
        self._fn, self._takes_event = _checked_fn(fn)
        self.name = _checked_name(fn, name)
        whose = f"Periodic {self.name!r}"
        if (every is None) == (cron is None):
            given = "neither" if every is None else "both"
            raise ValueError(f"{whose}: give either every= or cron=, not {given}")
        if timezone is not None and cron is None:
            raise ValueError(
                f"{whose}: timezone goes with cron=; every= counts seconds: leave it out"
            )
        if first is None:
            first = "now" if cron is None else "after"
        self._at_once = _word(whose, "first", first, ("now", "after")) == "now"
        self._catch_up = _word(whose, "missed", missed, ("skip", "once")) == "once"
        self._logs = _word(whose, "on_error", on_error, ("fail", "log")) == "log"
        self._jitter = _number(whose, "jitter", jitter)
        if self._jitter < 0:
            raise ValueError(f"{whose}: jitter must be 0 or more seconds, not {jitter!r}")
        self._cron: Cron | None = None
        if cron is not None:
            self._every, self._cron = 0.0, self._checked_cron(whose, cron, timezone)
            return
        self._every = _number(whose, "every", every)
        if self._every < SHORTEST:
            raise ValueError(
                f"{whose}: every must be at least {SHORTEST:f} seconds, not {every!r}; for a loop "
                "without a pause, write a Service"
            )
        _refuse_long_jitter(whose, self._jitter, self._every)

    def _checked_cron(self, whose: str, cron: object, timezone: object) -> Cron:
        if not isinstance(cron, str):
            raise TypeError(f'{whose}: cron must be text like "*/5 * * * *", not {cron!r}')
        zone = _zone(whose, timezone)
        try:
            ticks = Cron(cron, zone)
        except ValueError as error:
            raise ValueError(
                f"{whose}: cron {cron[:80]!r} makes no sense ({error}): it takes five "
                'fields, "minute hour day month weekday", or six with the second first'
            ) from error
        tick = ticks(self._wall())
        if tick == math.inf:
            raise ValueError(
                f"{whose}: cron {cron!r} has no run in the next 50 years: is there such a day?"
            )
        for _ in range(10 if self._jitter else 0):
            tick, before = ticks(tick), tick
            _refuse_long_jitter(whose, self._jitter, tick - before)
        return ticks

    def start(self) -> None:
        """Keep to the schedule until the stop.

        Raises:
            Exception: what `fn` raised, with `on_error="fail"`.
            TypeError: `fn` returned a coroutine, which nobody would await.
        """
        clock = self._monotonic if self._cron is None else self._wall
        now = clock()
        settings = (self._jitter, self._random, self._catch_up)
        if self._cron is None:
            plan = Plan(Grid(now, self._every), *settings)
        else:
            plan = Plan(self._cron, *settings, LOOK)
        plan.aim(now)
        if self._at_once and not self.stopping.is_set():
            self._call()
            plan.ended(clock())
        while not self.stopping.is_set():
            now = clock()
            seconds = plan.wait(now)
            if seconds:
                self._wait(min(seconds, threading.TIMEOUT_MAX))
            else:
                plan.began(now)
                self._call()
                plan.ended(clock())

    def _wait(self, seconds: float) -> None:
        self.stopping.wait(seconds)

    def _call(self) -> None:
        try:
            returned = self._fn(self.stopping) if self._takes_event else self._fn()
        except Exception as error:
            if not self._logs:
                raise
            # The group may know it by another name than it gave itself.
            name = getattr(self._link, "name", self.name)
            extra = {"event": "PeriodicFailed", "service": name, "error": error}
            log.error("%s: a run failed: %r", name, error, exc_info=error, extra=extra)
        else:
            if inspect.iscoroutine(returned):
                returned.close()
                raise TypeError(
                    f"Periodic {self.name!r}: what it calls returned a coroutine, and a service "
                    "thread runs no event loop: call asyncio.run() in it"
                )


def _checked_fn(fn: Callable[..., object]) -> tuple[Callable[..., object], bool]:
    """The function, and whether it is to be passed the event."""
    require_plain(fn, "Periodic(): fn")
    needed = required_arguments(fn)
    positional = [p for p in needed if p.kind is not p.KEYWORD_ONLY]
    if len(needed) > 1 or needed != positional:
        raise TypeError(
            f"Periodic(): fn must need no argument, or one (the stopping event), but "
            f"{_name_of(fn)} needs {', '.join(p.name for p in needed)}: "
            "bind them with functools.partial"
        )
    return fn, bool(positional)


def _checked_name(fn: Callable[..., object], name: object) -> str:
    if name is None:
        while isinstance(fn, functools.partial):
            fn = fn.func
        return _name_of(fn)
    if not isinstance(name, str):
        raise TypeError(f"Periodic(): name must be text, not {name!r}")
    if not name:
        raise ValueError("Periodic(): name is empty: leave it out for the name of fn")
    return name


def _word(whose: str, option: str, value: object, words: tuple[str, ...]) -> str:
    for word in words:
        if value == word:
            return word
    choice = " or ".join(map(repr, words))
    raise ValueError(f"{whose}: {option} must be {choice}, not {value!r}")


def _number(whose: str, option: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{whose}: {option} must be a number of seconds, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{whose}: {option} must be a finite number of seconds, not {number!r}")
    return number


def _refuse_long_jitter(whose: str, jitter: float, gap: float) -> None:
    if jitter >= gap:
        raise ValueError(
            f"{whose}: jitter ({jitter} s) must be shorter than the time between two ticks "
            f"({gap} s), or it would make ticks be missed"
        )


def _zone(whose: str, timezone: object) -> tzinfo:
    if timezone is None:
        return UTC
    if isinstance(timezone, tzinfo):
        if hasattr(timezone, "localize"):
            # Such a zone gives the local mean time of 1900 when it is merely attached.
            raise TypeError(
                f"{whose}: timezone {timezone!r} is one of pytz: use zoneinfo.ZoneInfo, "
                "or the zone's name"
            )
        return timezone
    if not isinstance(timezone, str):
        raise TypeError(f"{whose}: timezone must be a name or a tzinfo, not {timezone!r}")
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"{whose}: there is no timezone {timezone!r}: it must be a name like 'Europe/Berlin' "
            "(on a system without timezone data: pip install tzdata)"
        ) from error
