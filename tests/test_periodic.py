"""`Periodic` on clocks that the test owns: no test here sleeps."""

from __future__ import annotations

import functools
import logging
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from servicegroup import Periodic, Restart, ServiceGroup, ServiceGroupError
from servicegroup.periodic import LOOK, SHORTEST, Cron, Grid
from tests.child import PATIENCE, Child
from tests.fake_time import FakeClock, fake_time_group, pass_time, wait_until
from tests.scripted import end, is_quiet, run_in_thread
from tests.scripted_kinds import Scheduled

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3600.0


def at(text: str, zone: tzinfo = UTC, fold: int = 0) -> float:
    """A local time in seconds since the epoch."""
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


class World:
    """Two clocks. Waiting moves both; `script` says what happens during the n-th wait."""

    def __init__(self, wall: float = 0.0, until: float = 100.0) -> None:
        self.start = wall
        self.mono = 1000.0
        self.wall = wall
        self.until = self.mono + until
        self.part = 0.5
        self.waits: list[float] = []
        self.script: dict[int, Callable[[], object]] = {}

    def pass_time(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds

    def step(self, seconds: float) -> None:
        self.wall += seconds

    def periodic(self, fn: Callable[..., object], **options: Any) -> Periodic:
        """One that lives in this world, and is stopped at its end."""
        world = self

        class Fake(Periodic):
            _monotonic = staticmethod(lambda: world.mono)
            _wall = staticmethod(lambda: world.wall)
            _random = staticmethod(lambda: world.part)

            def _wait(self, seconds: float) -> None:
                world.script.get(len(world.waits), int)()
                if self.stopping.is_set():
                    return
                world.waits.append(seconds)
                world.pass_time(seconds)
                if world.mono > world.until:
                    self.stop()

        return Fake(fn, **options)

    def runs(self, takes: dict[int, float] | None = None, **options: Any) -> list[float]:
        """When the runs began, from the start of the world; the n-th takes so many seconds."""
        return [mono for mono, _ in self._runs(takes or {}, options)]

    def local_runs(self, takes: dict[int, float] | None = None, **options: Any) -> list[str]:
        """When the runs began, as the wall says, in UTC."""
        walls = [datetime.fromtimestamp(wall, UTC) for _, wall in self._runs(takes or {}, options)]
        return [wall.strftime("%d %H:%M:%S") for wall in walls]

    def _runs(self, takes: dict[int, float], options: Any) -> list[tuple[float, float]]:
        began: list[tuple[float, float]] = []
        first = self.mono

        def fn() -> None:
            began.append((self.mono - first, self.wall))
            self.pass_time(takes.get(len(began) - 1, 0.0))
            assert len(began) < 100_000

        self.periodic(fn, **options).start()
        return began


# -- every ----------------------------------------------------------------------------------------


def test_every_calls_at_once_and_then_on_a_grid() -> None:
    assert World().runs(every=30) == [0, 30, 60, 90]


def test_first_after_waits_for_the_first_tick() -> None:
    assert World().runs(every=30, first="after") == [30, 60, 90]


def test_it_sleeps_exactly_until_the_next_run() -> None:
    world = World()
    world.runs(every=30, takes=dict.fromkeys(range(9), 10.0))
    assert world.waits == [20, 20, 20, 20]


def test_an_idle_one_wakes_once_for_each_tick() -> None:
    world = World(until=1e6)
    assert len(world.runs(every=3e5)) == 4
    assert world.waits == [3e5] * 4


def test_the_grid_does_not_drift() -> None:
    world = World(until=1000)
    ticks = [1000.0 + 0.1 * n for n in range(10_000)]
    assert world.runs(every=0.1)[:10_000] == [tick - 1000.0 for tick in ticks]


def test_every_does_not_look_at_the_wall() -> None:
    world = World()
    world.script = {0: lambda: world.step(-1e6), 1: lambda: world.step(2e6)}
    assert world.runs(every=30) == [0, 30, 60, 90]


@pytest.mark.parametrize(
    ("missed", "takes", "expected"),
    [
        ("skip", {1: 35.0}, [0, 30, 90]),
        ("once", {1: 35.0}, [0, 30, 65, 90]),
        ("once", {0: 65.0}, [0, 65, 90]),
        ("skip", {0: 65.0}, [0, 90]),
        ("once", {0: 30.0}, [0, 30, 60, 90]),  # in time, just
        ("skip", {0: 30.0}, [0, 30, 60, 90]),
        ("skip", {0: 31.0, 1: 31.0}, [0, 60]),
        ("once", {0: 31.0, 1: 31.0}, [0, 31, 62, 90]),
    ],
)
def test_ticks_missed_by_a_long_run(
    missed: str, takes: dict[int, float], expected: list[float]
) -> None:
    assert World().runs(every=30, missed=missed, takes=takes) == expected


@pytest.mark.parametrize("missed", ["skip", "once"])
def test_a_machine_that_slept_runs_once_when_it_wakes(missed: str) -> None:
    world = World()
    world.script = {0: lambda: world.pass_time(44)}  # the wait for 30 ends at 74
    assert world.runs(every=30, missed=missed) == [0, 74, 90]


@settings(deadline=None)
@given(
    every=st.integers(1, 50),
    takes=st.lists(st.integers(0, 120), max_size=8),
    missed=st.sampled_from(["skip", "once"]),
    until=st.integers(1, 500),
)
def test_each_tick_is_kept_or_missed_and_nothing_runs_twice_at_once_or_after_the_stop(
    every: int, takes: list[int], missed: str, until: int
) -> None:
    world = World(until=until)
    runs: list[tuple[float, float]] = []
    left = iter(takes)

    def fn() -> None:
        begin = world.mono - 1000
        world.pass_time(next(left, 0))
        runs.append((begin, world.mono - 1000))
        if world.mono > world.until:
            service.stop()

    service = world.periodic(fn, every=every, missed=missed)
    service.start()
    expected = 0.0
    for begin, ended in runs:
        assert begin == expected <= until
        tick = (begin // every + 1) * every  # the first one after the run began
        late = ended if missed == "once" else (ended // every + 1) * every
        expected = tick if ended <= tick else late
    assert expected > until or runs[-1][1] > until


def test_two_runs_never_overlap() -> None:
    inside: list[int] = []
    world = World()

    def fn() -> None:
        assert not inside
        inside.append(threading.get_ident())
        world.pass_time(45)
        if world.mono > world.until:
            service.stop()
        assert inside.pop() == threading.get_ident()

    service = world.periodic(fn, every=10, missed="once")
    service.start()


def test_a_wait_longer_than_threads_can_is_cut() -> None:
    world = World()
    world.periodic(int, every=1e300).start()
    assert world.waits == [threading.TIMEOUT_MAX]


@settings(deadline=None)
@given(
    origin=st.floats(0, 1e9),
    every=st.floats(SHORTEST, 1e12),
    after=st.floats(0, 1e9),
)
@example(origin=0.0, every=0.1, after=0.3)
def test_a_tick_of_the_grid_is_later_and_the_first(
    origin: float, every: float, after: float
) -> None:
    time = origin + after
    tick = Grid(origin, every)(time)
    assert tick > time
    assert tick - time <= every * (1 + 1e-9) + 1e-6


# -- jitter ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    every=st.floats(0.01, 1e4),
    share=st.floats(0, 0.999),
    parts=st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3),
)
def test_a_run_is_late_by_at_most_the_jitter(
    every: float, share: float, parts: list[float]
) -> None:
    world = World(until=every * 20)
    left = iter(parts * 10)
    drawn: list[float] = []
    began: list[float] = []

    def draw() -> float:
        drawn.append(next(left))
        return drawn[-1]

    service = world.periodic(
        lambda: began.append(world.mono), every=every, jitter=every * share, first="after"
    )
    type(service)._random = staticmethod(draw)
    service.start()
    assert len(began) >= 19
    for number, time in enumerate(began):
        tick = 1000.0 + (number + 1) * every
        assert -1e-6 <= time - tick <= every * share + 1e-6
        assert time - tick == pytest.approx(drawn[number] * every * share, abs=1e-6)


def test_the_first_run_at_once_has_no_jitter() -> None:
    assert World().runs(every=30, jitter=10) == [0, 35, 65, 95]


def test_a_run_late_by_jitter_does_not_cost_the_next_tick() -> None:
    world = World()
    world.part = 0.99
    world.script = {0: lambda: world.pass_time(1)}  # 0.3 s past the tick at 60
    assert world.runs(every=30, jitter=30 - 1e-9, first="after")[:2] == [
        pytest.approx(60.7),
        pytest.approx(89.7),
    ]


def test_one_run_catches_up_despite_jitter() -> None:
    assert World().runs(every=30, jitter=10, missed="once", takes={0: 70}) == [0, 70, 95]


def test_cron_has_jitter_too() -> None:
    world = World(at("2026-11-21T10:00"), 600)
    assert world.runs(cron="*/5 * * * *", jitter=60) == [330]


# -- cron -----------------------------------------------------------------------------------------


def test_cron_begins_with_the_first_tick_after_the_start() -> None:
    world = World(at("2026-11-21T09:58"), 900)
    expected = ["21 10:00:00", "21 10:05:00", "21 10:10:00"]
    assert world.local_runs(cron="*/5 * * * *") == expected


def test_cron_may_begin_at_once() -> None:
    world = World(at("2026-11-21T09:58"), 300)
    assert world.local_runs(cron="*/5 * * * *", first="now") == ["21 09:58:00", "21 10:00:00"]


def test_a_start_on_a_tick_waits_for_the_next() -> None:
    world = World(at("2026-11-21T10:00"), 400)
    assert world.local_runs(cron="*/5 * * * *") == ["21 10:05:00"]


def test_cron_looks_at_the_wall_each_minute_and_no_more() -> None:
    world = World(at("2026-11-21T09:57:30"), 140)
    world.runs(cron="0 10 * * *")
    assert world.waits == [60, 60, 30]


def test_six_fields_begin_with_the_second() -> None:
    world = World(at("2026-11-21T10:00"), 31)
    assert world.runs(cron="*/15 * * * * *") == [15, 30]


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("skip", ["21 10:05:00", "21 10:20:00", "21 10:25:00"]),
        ("once", ["21 10:05:00", "21 10:16:00", "21 10:20:00", "21 10:25:00"]),
    ],
)
def test_cron_ticks_missed_by_a_long_run(missed: str, expected: list[str]) -> None:
    world = World(at("2026-11-21T10:01"), 1500)
    assert world.local_runs(cron="*/5 * * * *", missed=missed, takes={0: 660}) == expected


@pytest.mark.parametrize(
    ("missed", "expected"), [("skip", ["22 10:00:00"]), ("once", ["21 12:57:00", "22 10:00:00"])]
)
def test_a_clock_put_forward_over_a_tick(missed: str, expected: list[str]) -> None:
    world = World(at("2026-11-21T09:56"), 22 * HOUR)
    world.script = {0: lambda: world.step(3 * HOUR)}
    assert world.local_runs(cron="0 10 * * *", missed=missed) == expected


def test_a_clock_put_forward_by_little_delays_the_run() -> None:
    world = World(at("2026-11-21T09:59:30"), 60)
    world.script = {0: lambda: world.step(40)}
    assert world.local_runs(cron="0 10 * * *", missed="skip") == ["21 10:00:40"]


def test_a_clock_put_forward_before_a_tick_is_followed() -> None:
    world = World(at("2026-11-21T06:00"), HOUR)
    world.script = {0: lambda: world.step(3.9 * HOUR)}
    assert world.local_runs(cron="0 10 * * *") == ["21 10:00:00"]
    assert world.mono - 1000 >= 0.1 * HOUR


def test_a_clock_put_back_before_a_run_delays_it() -> None:
    world = World(at("2026-11-21T09:50"), 2 * HOUR)
    world.script = {5: lambda: world.step(-HOUR)}
    assert world.runs(cron="0 10 * * *") == [HOUR + 600]


def test_a_clock_put_back_a_little_repeats_no_run() -> None:
    world = World(at("2026-11-21T09:59"), 3 * HOUR)
    world.script = {1: lambda: world.step(-HOUR)}
    assert world.runs(cron="*/30 * * * *") == [60, HOUR + 1860, HOUR + 3660, HOUR + 5460]


def test_a_clock_put_back_much_begins_anew() -> None:
    world = World(at("2026-11-21T09:59"), HOUR)
    world.script = {1: lambda: world.step(-24 * HOUR)}
    assert world.runs(cron="*/30 * * * *") == [60, 1860]


def local(text: str, zone: tzinfo, expression: str, count: int) -> list[str]:
    ticks = Cron(expression, zone)
    time, found = at(text, zone), []
    for _ in range(count):
        time = ticks(time)
        found.append(datetime.fromtimestamp(time, zone).isoformat()[5:22].replace("T", " "))
    return found


# In Berlin, 02:00 becomes 03:00 on 2026-03-29 and 03:00 becomes 02:00 on 2026-10-25.
DST = [
    # A skipped local time: at the first that there is.
    ("2026-03-28T12:00", "30 2 * * *", ["03-29 03:00:00+02", "03-30 02:30:00+02"]),
    # All that is skipped: once.
    ("2026-03-28T12:00", "0,30 2 * * *", ["03-29 03:00:00+02", "03-30 02:00:00+02"]),
    ("2026-03-29T01:30", "*/30 * * * *", ["03-29 03:00:00+02", "03-29 03:30:00+02"]),
    # A repeated local time: the first of the two.
    (
        "2026-10-24T12:00",
        "30 2 * * *",
        ["10-25 02:30:00+02", "10-26 02:30:00+01", "10-27 02:30:00+01"],
    ),
    # What runs every so often goes on so.
    (
        "2026-10-25T01:30",
        "*/30 * * * *",
        ["10-25 02:00:00+02", "10-25 02:30:00+02", "10-25 02:00:00+01", "10-25 02:30:00+01"],
    ),
    ("2026-10-25T01:30", "0 * * * *", ["10-25 02:00:00+02", "10-25 02:00:00+01"]),
    (
        "2026-10-24T12:00",
        "0,30 2 * * *",
        ["10-25 02:00:00+02", "10-25 02:30:00+02", "10-26 02:00:00+01"],
    ),
    # Six fields: no special care.
    ("2026-03-28T12:00", "0 30 2 * * *", ["03-30 02:30:00+02"]),
    ("2026-10-24T12:00", "0 30 2 * * *", ["10-25 02:30:00+02", "10-25 02:30:00+01"]),
    ("2026-10-25T01:30", "0 0-23 * * *", ["10-25 02:00:00+02", "10-25 03:00:00+01"]),
]


@pytest.mark.parametrize(("start", "expression", "expected"), DST)
def test_days_on_which_the_offset_changes(start: str, expression: str, expected: list[str]) -> None:
    assert local(start, BERLIN, expression, len(expected)) == expected


HOWE = ZoneInfo("Australia/Lord_Howe")

# There, 02:00 becomes 01:30 on 2026-04-05 and 02:00 becomes 02:30 on 2026-10-04.
HALF_AN_HOUR = [
    # A repeated local time: the first of the two; what lies beside it is as on any day.
    ("2026-04-04T12:00", "45 1 * * *", ["04-05 01:45:00+11", "04-06 01:45:00+10"]),
    ("2026-04-04T12:00", "15,30 1 * * *", ["04-05 01:15:00+11", "04-05 01:30:00+11"]),
    ("2026-04-04T12:00", "0 2 * * *", ["04-05 02:00:00+10", "04-06 02:00:00+10"]),
    # A skipped local time: at the first that there is; all that is skipped: once.
    ("2026-10-03T12:00", "15 2 * * *", ["10-04 02:30:00+11", "10-05 02:15:00+11"]),
    (
        "2026-10-03T12:00",
        "0,15,45 2 * * *",
        ["10-04 02:30:00+11", "10-04 02:45:00+11", "10-05 02:00:00+11"],
    ),
    # What runs every so often goes on so, and goes on to be at its minute.
    (
        "2026-04-05T01:30",
        "*/15 * * * *",
        ["04-05 01:45:00+11", "04-05 01:30:00+10", "04-05 01:45:00+10", "04-05 02:00:00+10"],
    ),
    (
        "2026-04-05T01:00",
        "45 * * * *",
        ["04-05 01:45:00+11", "04-05 01:45:00+10", "04-05 02:45:00+10"],
    ),
    ("2026-10-04T01:00", "0 * * * *", ["10-04 03:00:00+11", "10-04 04:00:00+11"]),
    ("2026-04-05T00:00", "0 */4 * * *", ["04-05 04:00:00+10", "04-05 08:00:00+10"]),
    ("2026-10-04T00:00", "0 */4 * * *", ["10-04 04:00:00+11", "10-04 08:00:00+11"]),
    ("2026-10-04T00:00", "0 0-23 * * *", ["10-04 01:00:00+10", "10-04 02:30:00+11"]),
    # Six fields: no special care, and the hours after the change are not lost.
    ("2026-04-05T00:00", "0 45 1 * * *", ["04-05 01:45:00+11", "04-05 01:45:00+10"]),
    ("2026-10-04T00:00", "0 15 2 * * *", ["10-05 02:15:00+11"]),
    ("2026-10-04T00:00", "0 0 4 * * *", ["10-04 04:00:00+11"]),
]


@pytest.mark.parametrize(("start", "expression", "expected"), HALF_AN_HOUR)
def test_days_on_which_the_offset_changes_by_half_an_hour(
    start: str, expression: str, expected: list[str]
) -> None:
    assert local(start, HOWE, expression, len(expected)) == expected


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("2026-04-04T14:00", ["04 14:45:00", "04 15:15:00", "04 16:15:00"]),
        ("2026-10-03T14:00", ["03 14:15:00", "03 15:15:00", "03 15:45:00", "03 16:45:00"]),
    ],
)
def test_a_schedule_runs_through_a_change_of_half_an_hour(start: str, expected: list[str]) -> None:
    world = World(at(start), 2.8 * HOUR)
    runs = world.local_runs(cron="45 * * * *", timezone="Australia/Lord_Howe")
    assert runs == expected


CHANGES = st.sampled_from(
    [
        ("Australia/Lord_Howe", "2026-04-04T15:00"),
        ("Australia/Lord_Howe", "2026-10-03T15:30"),
        ("Europe/Berlin", "2026-03-29T01:00"),
        ("Europe/Berlin", "2026-10-25T01:00"),
        ("Antarctica/Troll", "2026-03-29T01:00"),  # by two hours
        ("Antarctica/Troll", "2026-10-25T01:00"),
        ("Pacific/Apia", "2011-12-30T10:00"),  # by a day
        ("Asia/Kathmandu", "1985-12-31T18:30"),  # by a quarter
    ]
)
STEPS = st.sampled_from(["*", "*/2", "*/15", "*/20", "0", "15", "30", "45", "0,50", "10-40/10"])
HOURS = st.sampled_from(["*", "*/2", "*/4", "0", "1", "2", "3", "1,2", "0-23", "1-4"])


@settings(deadline=None)
@given(change=CHANGES, minute=STEPS, hour=HOURS, begin=st.integers(-300, 300), six=st.booleans())
def test_around_a_change_each_tick_is_where_a_look_at_each_minute_finds_it(
    change: tuple[str, str], minute: str, hour: str, begin: int, six: bool
) -> None:
    zone = ZoneInfo(change[0])
    time = at(change[1]) + 60 * begin
    ticks = Cron(f"{'0 ' if six else ''}{minute} {hour} * * *", zone)
    once = not (six or minute[0] == "*" or hour[0] == "*")
    at_utc = Cron(f"{minute} {hour} * * *", UTC)  # so without any changes

    def matches(local: datetime) -> bool:
        when = local.replace(tzinfo=UTC).timestamp()
        return at_utc(when - 1) == when

    expected, before = [], datetime.fromtimestamp(time, zone)
    for number in range(1, 600):
        now = datetime.fromtimestamp(time + 60 * number, zone)
        shown = [now.replace(tzinfo=None, fold=0)]
        if once:
            last = before.replace(tzinfo=None, fold=0)
            steps = range(1, (shown[0] - last) // timedelta(minutes=1))
            shown += [last + timedelta(minutes=n) for n in steps]  # what was skipped
        if any(map(matches, shown)) and not (once and now.fold):
            expected.append(now.timestamp())
        before = now
    found = []
    while (time := ticks(time)) < before.timestamp():
        found.append(time)
    assert found == [tick for tick in expected if tick < before.timestamp()]


def test_a_repeated_hour_is_slept_through() -> None:
    # From the middle of the repetition, where the local time lies before the run that was.
    time = at("2026-10-25T02:10", BERLIN, fold=1)
    assert Cron("30 2 * * *", BERLIN)(time) == at("2026-10-26T02:30", BERLIN)


def test_a_schedule_runs_through_both_changes() -> None:
    for start, runs in (("2026-03-28T12:00", [13.5]), ("2026-10-24T12:00", [13.5])):
        world = World(at(start, UTC), 20 * HOUR)
        assert world.runs(cron="30 3 * * *", timezone="Europe/Berlin") == [
            pytest.approx(HOUR * (run if start[6] == "3" else run + 1)) for run in runs
        ]


def test_the_timezone_is_utc_unless_it_is_said() -> None:
    noon = at("2026-11-21T12:00")
    for zone, expected in (
        (None, HOUR),
        ("Europe/Berlin", 24 * HOUR),
        (BERLIN, 24 * HOUR),
        (timezone(timedelta(hours=-1)), 2 * HOUR),
        (UTC, HOUR),
    ):
        assert World(noon, 25 * HOUR).runs(cron="0 13 * * *", timezone=zone)[0] == expected


@settings(deadline=None)
@given(
    start=st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
    step=st.sampled_from([1, 7, 15, 30]),
)
@example(start=datetime(2026, 10, 25, 0, 10), zone="Europe/Berlin", step=15)
@example(start=datetime(2026, 3, 29, 0, 10), zone="Europe/Berlin", step=15)
def test_frequent_ticks_are_all_the_minutes_that_match(
    start: datetime, zone: str, step: int
) -> None:
    info = ZoneInfo(zone)
    begin = start.replace(tzinfo=UTC, second=0, microsecond=0).timestamp()
    minutes = [begin + 60.0 * n for n in range(1, 240)]
    expected = [t for t in minutes if datetime.fromtimestamp(t, info).minute % step == 0]
    ticks, time, found = Cron(f"*/{step} * * * *", info), begin, []
    while (time := ticks(time)) <= minutes[-1]:
        found.append(time)
    assert found == expected


FIELD = st.from_regex(r"(\*|[0-9]{1,2}(-[0-9]{1,2})?)(/[0-9]{1,2})?", fullmatch=True)


@settings(deadline=None)
@given(
    fields=st.lists(FIELD, min_size=5, max_size=6),
    start=st.integers(0, 4_000_000_000),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo"]),
)
def test_a_cron_tick_is_always_later(fields: list[str], start: int, zone: str) -> None:
    try:
        ticks = Cron(" ".join(fields), ZoneInfo(zone))
    except ValueError:
        assume(False)
    time = start + 0.5
    for _ in range(3):
        tick = ticks(time)
        assert tick > time
        time = min(tick, 4e9)


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789*/,-#LWMON ²"), max_size=20))
def test_any_text_is_an_expression_or_refused_as_one(text: str) -> None:
    try:
        Periodic(int, cron=text)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = "cron"
    assert "cron" in refusal


# -- the function ---------------------------------------------------------------------------------


def test_the_event_is_passed_only_to_who_must_have_it() -> None:
    seen: list[object] = []

    def must(stopping: threading.Event) -> None:
        seen.append(stopping)

    def may(stopping: object = None) -> None:
        seen.append(stopping)

    services = [World(until=1).periodic(fn, every=30) for fn in (must, may)]
    for service in services:
        service.start()
    assert seen == [services[0].stopping, services[0].stopping, None, None][::2]


def test_it_is_named_after_its_function() -> None:
    def report(day: int = 0) -> None: ...

    assert Periodic(report, every=1).name == "report"
    assert Periodic(functools.partial(report, 1), every=1).name == "report"
    assert Periodic(ServiceGroup().status, every=1).name == "ServiceGroup"
    assert Periodic(lambda: None, every=1).name == "lambda"
    assert Periodic(report, every=1, name="daily").name == "daily"


def raising(error: BaseException) -> Callable[[], None]:
    def fn() -> None:
        raise error

    return fn


def test_a_failed_run_fails_the_service() -> None:
    with pytest.raises(OSError, match="gone"):
        World().periodic(raising(OSError("gone")), every=30).start()


def test_a_failed_run_is_logged_and_the_next_comes(caplog: pytest.LogCaptureFixture) -> None:
    error = OSError("gone")
    World().periodic(raising(error), every=30, on_error="log", name="poll").start()
    # The subscribers' thread of a group that ended long ago may log, too.
    records = [r for r in caplog.records if r.thread == threading.get_ident()]
    lines = [(r.name, r.levelno, r.getMessage()) for r in records]
    line = ("servicegroup", logging.ERROR, "poll: a run failed: OSError('gone')")
    assert lines == [line] * 4
    record = records[0]
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert (vars(record)["service"], vars(record)["error"]) == ("poll", error)


def test_the_log_has_the_name_that_the_group_knows(caplog: pytest.LogCaptureFixture) -> None:
    group = ServiceGroup()
    runs: list[int] = []

    def fn() -> None:
        runs.append(1)
        group.stop()
        raise OSError

    group.add(Periodic(fn, every=3600, on_error="log"), name="given")
    group.start()
    assert [r.getMessage() for r in caplog.records if "run failed" in r.getMessage()] == [
        "given: a run failed: OSError()"
    ]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("on_error", ["fail", "log"])
def test_what_is_no_exception_always_goes_on_up(error: BaseException, on_error: str) -> None:
    with pytest.raises(type(error)):
        World().periodic(raising(error), every=30, on_error=on_error).start()


@pytest.mark.parametrize("on_error", ["fail", "log"])
def test_a_coroutine_that_nobody_would_await_is_a_failure(on_error: str) -> None:
    async def poll() -> None: ...

    with pytest.raises(TypeError, match=r"asyncio\.run"):
        World().periodic(lambda: poll(), every=30, on_error=on_error).start()


# -- the stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["now", "after"])
def test_a_stop_before_the_start_lets_nothing_run(first: str) -> None:
    runs: list[int] = []
    world = World()
    service = world.periodic(lambda: runs.append(1), every=30, first=first)
    service.stop()
    service.start()
    assert (runs, world.waits) == ([], [])


@pytest.mark.parametrize("missed", ["skip", "once"])
def test_a_stop_in_the_middle_of_a_run_lets_it_finish_and_no_other_begin(missed: str) -> None:
    world = World()
    seen: list[str] = []

    def fn() -> None:
        seen.append("begin")
        world.pass_time(100)
        service.stop()
        seen.append("end")

    service = world.periodic(fn, every=30, missed=missed)
    service.start()
    assert (seen, world.waits) == (["begin", "end"], [])


def test_a_stop_just_as_a_tick_comes_lets_nothing_run() -> None:
    world = World(until=30)
    runs: list[float] = []
    service = world.periodic(lambda: runs.append(world.mono), every=30, first="after")
    world.until = world.mono + 29  # so it is stopped in the wait that ends with the tick
    service.start()
    assert (runs, world.waits) == ([], [30])


@pytest.mark.parametrize("options", [{"every": 3600.0}, {"cron": "0 0 1 1 *", "first": "now"}])
def test_a_stop_wakes_it_from_its_sleep(options: dict[str, Any]) -> None:
    ran = threading.Event()
    group = ServiceGroup(stop_timeout=PATIENCE, shutdown_timeout=2 * PATIENCE)
    service = group.add(Periodic(ran.set, **options))
    with group:
        assert ran.wait(PATIENCE)
        assert group.is_ready
    assert service.stopping.is_set()
    assert [status.state.value for status in group.status()] == ["stopped"]
    assert (group.status()[0].seconds_to_stop or 0.0) < PATIENCE


def test_one_object_runs_again() -> None:
    group = ServiceGroup()
    runs: list[int] = []

    def fn() -> None:
        runs.append(1)
        group.stop()

    group.add(Periodic(fn, every=3600.0))
    for _ in range(3):
        group.start()
    assert len(runs) == 3


def test_a_schedule_begins_anew_with_each_start() -> None:
    world = World(until=70)
    began: list[float] = []
    service = world.periodic(lambda: began.append(world.mono - 1000), every=30)
    service.start()
    world.pass_time(7)
    world.until = world.mono + 50
    service._rearm()
    service.start()
    assert began == [0, 30, 60, 97, 127]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # As at any start: one run at once, and the grid begins there.
        ({"every": 30.0}, [0, 30, 32, 62, 92]),
        ({"every": 30.0, "first": "after"}, [30, 60, 92]),
        # The clock began at 00:16:40.
        ({"cron": "*/5 * * * *"}, [200, 500, 800]),
        ({"cron": "*/5 * * * *", "first": "now"}, [0, 200, 202, 500, 800]),
    ],
)
def test_one_that_fails_is_restarted_and_its_schedule_begins_anew(
    options: dict[str, Any], expected: list[float]
) -> None:
    clock = FakeClock()
    runs: list[float] = []

    class Failing(Scheduled):
        def tick(self) -> None:
            runs.append(clock.time - 1000)
            if len(runs) == 2:
                raise OSError("gone")

    group = fake_time_group(clock)
    policy = Restart(delay=2.0, jitter=0.0)
    service = group.add(Failing("job", [], "obey", "", clock, **options), on_failure=policy)
    thread, raised = run_in_thread(group)
    try:
        end_at = clock.time + expected[-1] + 1
        pass_time(group, clock, lambda: is_quiet(group), end_at)
        assert runs == expected
        assert group.status()[0].restarts == 1
        group.stop()
        end(group, clock, thread)
        assert raised == []
        assert runs == expected
    finally:
        service.free()


def test_ctrl_c_ends_one_that_runs_in_the_main_thread() -> None:
    for source, said in (
        ("service = Periodic(lambda: say('in'), every=1000)", []),
        ("service = Periodic(run, every=1000, on_error='log')", ["finally"]),
    ):
        with Child(
            """
            from servicegroup import Periodic

            def run():
                try:
                    say("in")
                    threading.Event().wait()
                finally:
                    say("finally")
            """,
            source,
            "service.start()",
        ) as child:
            child.wait_for("in")
            child.send(signal.SIGINT)
            assert child.end() == -signal.SIGINT
            assert child.said("finally") == said
            assert child.stderr.endswith("\nKeyboardInterrupt\n")


def test_in_a_group_a_failed_run_is_a_failure_of_the_service() -> None:
    group = ServiceGroup()
    group.add(Periodic(raising(OSError("gone")), every=3600.0))
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    assert [str(error) for error in caught.value.exceptions] == ["gone"]


def test_the_real_clocks_are_used_outside_of_tests() -> None:
    runs: list[int] = []
    group = ServiceGroup()
    group.add(Periodic(lambda: runs.append(1), every=0.001, jitter=0.0005))
    with group:
        wait_until(lambda: len(runs) > 3)


# -- what is refused ------------------------------------------------------------------------------


async def coroutine() -> None: ...


class Pytz(ZoneInfo):
    def localize(self) -> None: ...


REFUSED: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "give either every= or cron=, not neither", {}),
    (ValueError, "give either every= or cron=, not both", {"every": 1, "cron": "* * * * *"}),
    (ValueError, "at least 0.000001 seconds, not 0", {"every": 0}),
    (ValueError, "at least 0.000001 seconds, not -1", {"every": -1}),
    (ValueError, "write a Service", {"every": 1e-7}),
    (ValueError, "every must be a finite number of seconds, not nan", {"every": float("nan")}),
    (ValueError, "every must be a finite number of seconds, not inf", {"every": float("inf")}),
    (ValueError, "every must be a finite number of seconds, not inf", {"every": 10**400}),
    (TypeError, "every must be a number of seconds, not '5'", {"every": "5"}),
    (TypeError, "every must be a number of seconds, not True", {"every": True}),
    (ValueError, "jitter must be 0 or more seconds, not -1", {"every": 1, "jitter": -1}),
    (ValueError, "jitter must be a finite", {"every": 1, "jitter": float("nan")}),
    (TypeError, "jitter must be a number", {"every": 1, "jitter": None}),
    (ValueError, r"jitter \(1.0 s\) must be shorter than", {"every": 1, "jitter": 1}),
    (ValueError, r"jitter \(60.0 s\) must be shorter", {"cron": "* * * * *", "jitter": 60}),
    (ValueError, r"jitter \(300.0 s\)", {"cron": "0,5 0 * * *", "jitter": 300}),
    (ValueError, r"jitter \(70.0 s\)", {"cron": "0,5,6,12 0 * * *", "jitter": 70}),
    (ValueError, "first must be 'now' or 'after', not 'soon'", {"every": 1, "first": "soon"}),
    (ValueError, "missed must be 'skip' or 'once', not 'all'", {"every": 1, "missed": "all"}),
    (ValueError, "on_error must be 'fail' or 'log', not None", {"every": 1, "on_error": None}),
    (ValueError, "timezone goes with cron=", {"every": 1, "timezone": "UTC"}),
    (ValueError, "no timezone 'Mars/Base'", {"cron": "* * * * *", "timezone": "Mars/Base"}),
    (ValueError, "no timezone ''", {"cron": "* * * * *", "timezone": ""}),
    (ValueError, "no timezone 'Europe'", {"cron": "* * * * *", "timezone": "Europe"}),
    (ValueError, "no timezone '/etc'", {"cron": "* * * * *", "timezone": "/etc"}),
    (TypeError, "name or a tzinfo, not 2", {"cron": "* * * * *", "timezone": 2}),
    (TypeError, "one of pytz", {"cron": "* * * * *", "timezone": Pytz("UTC")}),
    (TypeError, r"cron must be text like .*, not 5", {"cron": 5}),
    (ValueError, r"cron '\* \*' makes no sense .*five fields", {"cron": "* *"}),
    (ValueError, "Bad minute", {"cron": "61 * * * *"}),
    (ValueError, "Bad day-of-month", {"cron": "0 0 30 2 *"}),
    (ValueError, "makes no sense", {"cron": "9" * 5000 + " * * * *"}),
    (ValueError, "no run in the next 50 years", {"cron": "* * */20 * 1L"}),
    (TypeError, "name must be text, not 3", {"every": 1, "name": 3}),
    (ValueError, "name is empty", {"every": 1, "name": ""}),
    (TypeError, "fn must be callable, not 3", {"fn": 3, "every": 1}),
    (TypeError, "fn is a coroutine function", {"fn": coroutine, "every": 1}),
    (TypeError, "needs a, b: bind them", {"fn": lambda a, b: None, "every": 1}),
    (TypeError, "needs a: bind", {"fn": functools.partial(lambda *, a: None), "every": 1}),
]


@pytest.mark.parametrize(
    ("kind", "words", "options"), REFUSED, ids=[words for _, words, _ in REFUSED]
)
def test_refused(kind: type[Exception], words: str, options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=words) as caught:
        Periodic(**{"fn": print, **options})
    assert "Periodic" in str(caught.value)


def test_refusals_name_the_culprit() -> None:
    with pytest.raises(ValueError, match="Periodic 'poll': every"):
        Periodic(print, every=0, name="poll")


def test_without_cronsim_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(ImportError, match=r"pip install servicegroup\[cron\]"):
        Periodic(print, cron="* * * * *")
    Periodic(print, every=1)


def test_the_longest_look_is_a_minute() -> None:
    assert LOOK == 60
