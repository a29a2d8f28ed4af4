"""What a group costs while nothing happens, and what it leaves behind."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.child import PATIENCE, Child

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

IDLE_SECONDS = 2.0


def _switches(child: Child) -> int:
    """How often threads of `child` have been put on a processor or taken from it."""
    lines = child.stat("voluntary_ctxt_switches") + child.stat("nonvoluntary_ctxt_switches")
    return sum(int(line.split()[1]) for line in lines)


def _assert_idle(child: Child) -> None:
    # The threads that have just said that all is ready have yet to go to sleep; one that waits for
    # a processor makes no switch either.
    until = time.monotonic() + PATIENCE
    before = _switches(child)
    while True:
        time.sleep(0.2)
        asleep = all("(sleeping)" in line for line in child.stat("State:"))
        now = _switches(child)
        if asleep and now == before:
            break
        assert time.monotonic() < until, "it never becomes idle"
        before = now
    time.sleep(IDLE_SECONDS)
    assert _switches(child) == before


_NAMES = [f"worker-{i}" for i in range(10)]


@pytest.mark.parametrize("options", ["", "signals=()"], ids=["default", "no signals"])
def test_idle_group_makes_no_wakeups(options: str) -> None:
    with Child(f"group_of(*{_NAMES}, {options}).run()") as child:
        child.wait_for("GroupReady")
        assert len(child.stat("Pid")) >= 11
        _assert_idle(child)


def test_idle_group_in_a_with_block_makes_no_wakeups() -> None:
    with Child(f"""
        with group_of(*{_NAMES}):
            say("inside")
            signal.pause()
    """) as child:
        child.wait_for("inside")
        _assert_idle(child)


def test_start_deadlines_that_were_met_wake_nobody() -> None:
    # The clock is put forward once all are ready: the deadlines would come up while the test looks
    # on, and none of them before.
    with Child(f"""
        from servicegroup._mailbox import Mailbox

        began = later = 0.0
        Mailbox.now = staticmethod(lambda: time.monotonic() + later)

        class Announcing(Worker):
            ready_when = "announced"

            def start(self):
                global began
                began = time.monotonic()
                self.mark_ready()
                super().start()

        def put_forward(event):
            global later
            if isinstance(event, events.GroupReady):
                later = 60.0 - (time.monotonic() - began) - 1.0
                group.subscribe(print)  # wakes who decides, to look at the clock
                say("later")

        group = ServiceGroup(start_timeout=60.0)
        for name in {_NAMES}:
            group.add(Announcing(name))
        group.subscribe(put_forward)
        group.run()
    """) as child:
        child.wait_for("later")
        _assert_idle(child)


def test_idle_nested_group_makes_no_wakeups() -> None:
    with Child(f"""
        outer = group_of("a")
        inner = ServiceGroup(name="inner")
        for name in {_NAMES}:
            inner.add(Worker(name))
        outer.add(inner)
        outer.run()
    """) as child:
        child.wait_for("GroupReady")
        _assert_idle(child)


def test_dump_leaves_an_idle_group_idle() -> None:
    with Child("logging.basicConfig()", f"group_of(*{_NAMES}).run()") as child:
        child.wait_for("GroupReady")
        child.send(signal.SIGUSR1)
        _assert_idle(child)
        assert "group 'group' is running" in child.stderr


_LEAKS = """
    import gc
    import logging

    logging.disable()
    PAGE = os.sysconf("SC_PAGE_SIZE")

    def one(kind):
        group = ServiceGroup()
        group.subscribe(lambda event: None)
        for _ in range(2):
            group.add(with_start(lambda stopping: stopping.wait()))
        if kind == "block":
            with group:
                pass
            return
        if kind == "failure":
            group.add(with_start(lambda: 1 / 0))
        else:
            group.add(with_start(group.stop))
        try:
            group.start()
        except ExceptionGroup:
            pass

    def left():
        gc.collect()
        # A thread that was joined may be in its last instructions, and that of the subscribers is
        # waited for no longer than a second.
        tasks = lambda: len(os.listdir("/proc/self/task"))
        wait_for(lambda: tasks() == 1, "threads that are left")
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * PAGE
        return tasks(), len(os.listdir("/proc/self/fd")), resident

    def many(count):
        for i in range(count):
            one(("start", "block", "failure", "start")[i % 4])
"""


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_groups_leave_no_thread_descriptor_or_memory_behind(count: int) -> None:
    with Child(
        _LEAKS,
        f"""
        many({count} // 4)  # until the allocator's arenas and the caches have their size
        before = left()
        many({count})
        say("left", *(now - then for now, then in zip(left(), before)))
    """,
    ) as child:
        # The slow one takes longer than anything else may.
        threads, descriptors, resident = map(int, child.wait_for("left", 600).split()[1:])
        assert child.end() == 0
        assert (threads, descriptors) == (0, 0)
        # A run of a group takes tens of kilobytes; a hundred bytes of each are the allocator's.
        assert resident < 1_000_000 + 100 * count


def test_group_started_again_and_again_leaves_nothing_behind() -> None:
    with Child(
        _LEAKS,
        """
        group = ServiceGroup()
        group.add(with_start(lambda stopping: stopping.wait()))
        group.add(with_start(lambda: group.stop()))

        def again(count):
            for _ in range(count):
                group.start()

        again(200)
        before = left()
        again(500)
        say("left", *(now - then for now, then in zip(left(), before)))
    """,
    ) as child:
        threads, descriptors, resident = map(int, child.wait_for("left", 120).split()[1:])
        assert child.end() == 0
        assert (threads, descriptors) == (0, 0)
        assert resident < 1_000_000


def test_ended_groups_are_not_kept_alive() -> None:
    with Child(
        _LEAKS,
        """
        import weakref

        def ended():
            group = ServiceGroup()
            group.add(with_start(lambda: None))
            group.start()
            return weakref.ref(group)

        refs = [ended() for _ in range(20)]
        left()
        gc.collect()
        say("alive", sum(ref() is not None for ref in refs))
    """,
    ) as child:
        assert child.end() == 0
        assert child.said("alive") == ["alive 0"]
