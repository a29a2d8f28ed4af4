"""One timer for all that is due in a loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st

from servicegroup._aio_agenda import Agenda
from tests.fake_loop import FakeLoop
from tests.fake_time import FakeClock


@define(eq=False)
class Thing:
    name: str
    due: float = math.inf


class Desk:
    """An agenda, and a loop that is run by hand."""

    def __init__(self, look: Callable[[Thing, float], None] | None = None) -> None:
        self.loop = FakeLoop(FakeClock())
        self.looked: list[tuple[str, float]] = []
        self.agenda = Agenda[Thing](self.loop, look or self.note)

    def note(self, thing: Thing, now: float) -> None:
        self.looked.append((thing.name, now))

    def advance(self, seconds: float) -> None:
        self.loop.clock.advance(seconds)
        while self.loop.busy():
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.loop.close()


def test_each_is_looked_at_when_it_is_due_and_once(desk: Desk) -> None:
    for name, when in (("b", 1002.0), ("a", 1001.0), ("c", 1003.0)):
        desk.agenda.put(Thing(name), when)
    assert desk.loop.alarms() == [1001.0]
    desk.advance(2.0)
    assert desk.looked == [("a", 1002.0), ("b", 1002.0)]
    desk.advance(9.0)
    assert desk.looked[2:] == [("c", 1011.0)]
    assert desk.loop.alarms() == []


def test_the_last_word_counts(desk: Desk) -> None:
    sooner, later, never = Thing("sooner"), Thing("later"), Thing("never")
    for thing in (sooner, later, never):
        desk.agenda.put(thing, 1005.0)
    desk.agenda.put(sooner, 1002.0)
    desk.agenda.put(later, 1007.0)
    desk.agenda.put(never, math.inf)
    desk.advance(2.0)
    assert desk.looked == [("sooner", 1002.0)]
    desk.advance(3.0)
    desk.advance(2.0)
    assert desk.looked[1:] == [("later", 1007.0)]


def test_what_is_dropped_wakes_nobody(desk: Desk) -> None:
    thing, other = Thing("thing"), Thing("other")
    desk.agenda.put(thing, 1001.0)
    desk.agenda.drop(thing)
    assert desk.loop.alarms() == []
    desk.agenda.drop(other)
    desk.agenda.put(other, 1002.0)
    desk.agenda.put(thing, math.inf)
    assert desk.loop.alarms() == [1002.0]


def test_what_is_dropped_without_a_word_is_not_looked_at(desk: Desk) -> None:
    thing, other = Thing("thing"), Thing("other")
    desk.agenda.put(thing, 1001.0)
    desk.agenda.put(other, 1002.0)
    thing.due = math.inf
    desk.advance(1.0)
    assert (desk.looked, desk.loop.alarms()) == ([], [1002.0])


def test_a_look_may_put_the_same_one_again() -> None:
    def again(thing: Thing, now: float) -> None:
        one.note(thing, now)
        one.agenda.put(thing, now + 1.0)

    one = Desk(again)
    one.agenda.put(Thing("a"), 1001.0)
    for _ in range(3):
        one.advance(1.0)
    assert [when for _, when in one.looked] == [1001.0, 1002.0, 1003.0]
    assert one.loop.alarms() == [1004.0]
    one.agenda.close()
    assert one.loop.alarms() == []
    one.loop.close()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.one_of(st.integers(0, 9), st.just(math.inf))), max_size=30
    )
)
def test_whatever_is_put_comes_when_it_is_due(steps: list[tuple[int, float]]) -> None:
    desk = Desk()
    things = [Thing(str(number)) for number in range(5)]
    for number, seconds in steps:
        desk.agenda.put(things[number], 1000.0 + seconds)
    expected = sorted((thing.due, thing.name) for thing in things if thing.due < math.inf)
    for second in range(11):
        desk.advance(1.0 if second else 0.0)
    assert sorted((when, name) for name, when in desk.looked) == expected
    desk.loop.close()
