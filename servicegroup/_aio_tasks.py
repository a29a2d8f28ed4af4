"""Where a task is, as text; and the end of a loop, in bounded time."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import traceback
from collections.abc import Awaitable, Callable, Iterable
from types import FrameType

from attrs import define, field

from servicegroup._aio_executor import DaemonExecutor

CLEANUP_SECONDS = 5.0  # for what run() left behind, when no stop sets a limit
_OURS = os.path.dirname(__file__)
# What stands before a coroutine or generator that is awaited by other means than `await`.
_HIDES = {"coroutine_wrapper", "async_generator_asend"}


def task_stack(task: asyncio.Task[object]) -> str:
    """The stack of `task`, the innermost call last."""
    # Task.get_stack() shows the outermost call only of a task that waits.
    frames: list[tuple[FrameType, int]] = []
    awaited: object = task.get_coro()
    while awaited is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                frames.append((frame, frame.f_lineno))
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            inside = gc.get_referents(awaited) if type(awaited).__name__ in _HIDES else []
            awaited = inside[0] if inside else None
    lines = list(traceback.StackSummary.extract(iter(frames)))
    first = next((i for i, line in enumerate(lines) if not line.filename.startswith(_OURS)), 0)
    where = "".join(traceback.format_list(lines[first:])) or "  (its end)\n"
    return f"task {task.get_name()!r} is at:\n{where}"


def task_stacks(tasks: Iterable[asyncio.Task[object]]) -> str:
    """The stacks of all `tasks`."""
    return "".join(map(task_stack, tasks))


@define(eq=False, repr=False)
class Cleanup:
    """Ends what `run()` left behind in its loop: tasks, generators, the executor's threads.

    Each step may take half of the time that is left, so that the last one has some, too; a quarter
    of it is kept for telling.

    Attributes:
        told_of: tasks that would not end, as is known; they are not waited for.
        on_threads_hung: is given where threads are that would not end; returns what of it to tell.
        errors: what the tasks raised when they were cancelled.
        hung: where they are that would not end, as text.
        tasks_hung: whether there are tasks among them.
    """

    loop: asyncio.AbstractEventLoop
    executor: DaemonExecutor
    remaining: Callable[[], float]
    told_of: set[asyncio.Task[object]]
    on_threads_hung: Callable[[str], str]
    errors: list[BaseException] = field(factory=list)
    hung: str = ""
    tasks_hung: bool = False
    _cancelled: set[asyncio.Task[object]] = field(factory=set)
    _until: float = field(init=False)
    _kept: float | None = None
    _wait: asyncio.Timeout | None = None

    def __attrs_post_init__(self) -> None:
        self._until = self.loop.time() + CLEANUP_SECONDS

    def _half(self) -> float:
        left = self.remaining()
        if left == math.inf:
            left = self._until - self.loop.time()
        if self._kept is None or self._kept > left:
            self._kept = left / 4
        return max(0.0, (left - self._kept) / 2)

    async def _bounded(self, step: Awaitable[object]) -> bool:
        """Whether `step` ended in its part of the time."""
        try:
            async with asyncio.timeout(self._half()) as self._wait:
                await step
        except TimeoutError:
            return False
        finally:
            self._wait = None
        return True

    def hurry(self) -> None:
        """There is less time than there was. In the loop."""
        if self._wait is not None and not self._wait.expired():
            self._wait.reschedule(self.loop.time() + self._half())

    def run(self, runner: asyncio.Runner) -> None:
        """Do it. A SystemExit or KeyboardInterrupt of a task ends a loop's run: begin again."""
        while True:
            try:
                return runner.run(self._main())
            except (SystemExit, KeyboardInterrupt) as error:
                self.errors.append(error)

    async def _main(self) -> None:
        await self._cancel()
        generators = self.loop.create_task(
            self.loop.shutdown_asyncgens(), name="shutdown_asyncgens"
        )
        await self._bounded(asyncio.wait([generators]))
        if not await self._bounded(self.executor.close()):
            self.hung = self.on_threads_hung(self.executor.give_up())
        # What the generators and threads began meanwhile; and who would not end before gets one
        # more chance, not one more wait.
        await self._cancel()
        left = _others()
        for task in self._cancelled - left:
            error = None if task.cancelled() else task.exception()
            # SystemExit and KeyboardInterrupt came out of the loop itself.
            if isinstance(error, Exception):
                self.errors.append(error)
        for task in left:
            # It is told of here; asyncio need not tell again.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks_hung = bool(left)
        untold = sorted(left - self.told_of, key=lambda task: task.get_name())
        self.hung = task_stacks(untold) + self.hung

    async def _cancel(self) -> None:
        tasks = _others()
        if not tasks:
            return
        self._cancelled |= tasks
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        waiting = {task for task in tasks - self.told_of if not task.done()}
        if waiting:
            await self._bounded(asyncio.wait(waiting))


def _others() -> set[asyncio.Task[object]]:
    tasks: set[asyncio.Task[object]] = asyncio.all_tasks()
    current = asyncio.current_task()
    return {task for task in tasks if task is not current}
