"""`servicegroup check`: what it prints, and that nothing is started."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from servicegroup import AsyncGroup, AsyncService, ServiceGroup, with_start
from servicegroup.cli._worst_case import worst_case
from tests.cli.command import SHOP, Command, write


def check(directory: Path, *sources: str, code: int = 0) -> list[str]:
    write(directory, *sources)
    with Command(directory, "check", "shop:group") as child:
        assert child.end() == code, child.stderr
        return child.lines or child.stderr.splitlines()


def test_services_are_shown_in_order_with_their_policies_and_none_is_started(
    tmp_path: Path,
) -> None:
    lines = check(
        tmp_path,
        """
        import contextlib
        from servicegroup import *

        @contextlib.contextmanager
        def pool():
            print("entered")
            yield

        class Consumer(Service):
            ready_when = "announced"
            on_failure = Restart(max_restarts=3, within=30)
            heartbeat_timeout = 20
            stop_timeout = 5

            def start(self):
                print("started")

        group = ServiceGroup(name="shop", drain_delay=2)
        group.add(with_context(pool()))
        group.add(Consumer())
        inner = group.add(ServiceGroup(name="inner", shutdown_timeout=3))
        inner.add(with_start(print), name="api", on_return="stop")
        group.defer(print)
    """,
    )
    head, *rows = [re.split(r"  +", line.strip()) for line in lines[1:7]]
    assert head == [
        *("start", "service", "kind", "ready when", "ready within", "on failure", "on return"),
        *("heartbeat", "daemon", "stop within"),
    ]
    assert rows == [
        ["1", "pool", "with_context()", "announced", "60 s", "stop", "continue", "daemon", "10 s"],
        [
            *("2", "Consumer", "Consumer", "announced", "60 s", "restart, 3 in 30 s", "continue"),
            *("20 s, report", "5 s"),
        ],
        *(
            ["3", "inner", "ServiceGroup", "announced", "no limit", "stop", "continue", "3.3 s"],
            ["3.1", "inner/api", "with_start()", "entered", "stop", "stop", "10 s"],
            ["4", "print", "defer()", "returned", "60 s", "stop", "daemon", "10 s"],
        ),
    ]
    assert lines[0] == "group 'shop': nothing was started"
    assert lines[7:] == [
        "stop: print, inner, Consumer, pool",
        "longest stop: 30 s, of which 2 s are drain_delay, more than the shutdown_timeout of 25 s: "
        "after 22.5 s all that is left is asked at once, after 24.5 s it is abandoned",
    ]


def test_columns_without_anything_in_them_are_left_out(tmp_path: Path) -> None:
    head = check(tmp_path, SHOP)[1]
    assert [title in head for title in ("ready within", "heartbeat", "daemon")] == [False] * 3


def test_a_stop_that_can_take_too_long_is_told_with_what_follows(tmp_path: Path) -> None:
    lines = check(tmp_path, SHOP, "group.add(Worker('c'))")
    assert lines[-1] == (
        "longest stop: 30 s, more than the shutdown_timeout of 25 s: after 22.5 s all that is left "
        "is asked at once, after 24.5 s it is abandoned"
    )


def test_a_group_that_does_all_at_once_says_so(tmp_path: Path) -> None:
    lines = check(
        tmp_path,
        SHOP,
        """
        group = ServiceGroup(start_concurrently=True, stop_concurrently=True)
        for name in "abc":
            group.add(Worker(name))
    """,
    )
    assert lines[-3:] == [
        "start: all at once",
        "stop: all at once",
        "longest stop: 10 s, within the shutdown_timeout of 25 s",
    ]


def test_threads_that_the_import_starts_are_told_and_do_not_keep_it(tmp_path: Path) -> None:
    lines = check(
        tmp_path, SHOP, "threading.Thread(target=threading.Event().wait, name='poller').start()"
    )
    assert lines[-1] == "the import itself has started threads: poller"


def test_a_group_without_services_is_an_error(tmp_path: Path) -> None:
    lines = check(tmp_path, "from servicegroup import *\ngroup = ServiceGroup()", code=1)
    assert lines == ["Error: shop:group has no services, and would end at once"]


def group_of(*limits: float, whole: float = 1000, together: bool = False) -> ServiceGroup:
    group = ServiceGroup(shutdown_timeout=whole, stop_concurrently=together)
    for limit in limits:
        group.add(with_start(lambda stopping: stopping.wait()), stop_timeout=limit)
    return group


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (group_of(), 0),
        (group_of(1, 2, 3), 6),
        (group_of(1, 2, 3, together=True), 3),
        (group_of(1, 2, 3, whole=4), 4),
        (group_of(math.inf), 1000),
    ],
)
def test_a_nested_group_takes_what_its_services_take_but_no_more_than_its_own_limit(
    inner: ServiceGroup, expected: float
) -> None:
    outer = group_of(10, 20)
    outer.add(inner)
    assert worst_case(outer) == 30 + expected


def test_a_group_of_coroutines_takes_what_its_services_take() -> None:
    class Waits(AsyncService):
        async def run(self) -> None:
            await self.stopping.wait()

    loop = AsyncGroup(shutdown_timeout=9)
    loop.add(Waits(), stop_timeout=5)
    assert worst_case(group_with(loop)) == 5
    loop.add(Waits(), stop_timeout=5)
    assert worst_case(group_with(loop)) == 9


def group_with(service: AsyncGroup) -> ServiceGroup:
    group = ServiceGroup()
    group.add(service)
    return group


def test_a_service_without_limit_makes_a_stop_without_limit() -> None:
    assert worst_case(group_of(1, math.inf)) == math.inf
