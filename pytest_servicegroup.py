"""The plugin of pytest: fixtures, and a watch over groups; docs/testing.md shows how.

Not in the package, since pytest loads it in every run: the package is loaded once a test needs it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from servicegroup.testing import FakeClock
    from servicegroup.testing._guard import Guard

T = TypeVar("T")

OPTION = "servicegroup_watch"
MARKER = "servicegroup_unwatched"


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses; see `servicegroup.testing.find_free_port`."""
    from servicegroup.testing import find_free_port

    return find_free_port()


@pytest.fixture
def fake_clock() -> FakeClock:
    """A `servicegroup.testing.FakeClock` of this test's own."""
    from servicegroup.testing import FakeClock

    return FakeClock()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        OPTION,
        "fail a test that leaves threads of groups behind, or lets a group's failure get lost",
        type="bool",
        default=True,
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MARKER}: it may leave threads of groups behind, and let failures get lost"
    )
    config.pluginmanager.register(_Watch(config.getini(OPTION)), "servicegroup_watch")


class _Watch:
    """The hooks. Innermost (trylast): before 8.4 pytest puts an excepthook around each phase."""

    def __init__(self, on: bool) -> None:
        self._on = on
        self._loaded: Guard | None = None
        self._deaths: list[BaseException] = []  # of threads, during this test

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self) -> Generator[None, T, T]:
        guard = self._guard()
        if guard is not None:
            guard.begin()
        with self._noting_deaths():
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self) -> Generator[None, T, T]:
        with self._noting_deaths():
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, T, T]:
        with self._noting_deaths():
            try:
                result = yield
            except (KeyboardInterrupt, SystemExit, pytest.exit.Exception):
                raise
            except BaseException as error:
                for complaint in self._complaints(item):
                    error.add_note(complaint)
                raise
            complaints = self._complaints(item)
        if complaints:
            pytest.fail("\n\n".join(complaints), pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, T, T]:
        if fixturedef.scope == "function":
            return (yield)
        guard = self._guard()
        before = set() if guard is None else guard.running()
        try:
            return (yield)
        finally:
            guard = self._guard()
            if guard is not None:
                guard.hold(fixturedef, guard.running() - before)

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[object]) -> None:
        if self._loaded is not None:
            self._loaded.release(fixturedef)

    def _guard(self) -> Guard | None:
        """None while nothing has loaded the groups: then there is nothing to watch."""
        if self._loaded is None and "servicegroup.group" in sys.modules:
            from servicegroup.testing._guard import Guard

            self._loaded = Guard()
        return self._loaded

    def _complaints(self, item: pytest.Item) -> list[str]:
        guard = self._guard()
        try:
            if guard is None:
                return []
            guard.let_go()
            unwatched = not self._on or item.get_closest_marker(MARKER) is not None
            return [] if unwatched else guard.complaints(self._deaths)
        finally:
            self._deaths.clear()  # they would keep what the test has let go

    @contextmanager
    def _noting_deaths(self) -> Iterator[None]:
        before = threading.excepthook

        def note(args: threading.ExceptHookArgs) -> None:
            if args.exc_value is not None:
                self._deaths.append(args.exc_value)
            before(args)

        threading.excepthook = note
        try:
            yield
        finally:
            if threading.excepthook is note:
                threading.excepthook = before
