"""The default executor of a service's loop: threads that cannot keep the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from servicegroup._stacks import stacks_of

P = ParamSpec("P")
T = TypeVar("T")

Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class DaemonExecutor(ThreadPoolExecutor):
    """A `ThreadPoolExecutor` by type, since loops take no other, with threads of its own.

    Those of the base class are no daemons and are joined when the interpreter ends, without bound:
    one that hangs would keep the process.
    """

    def __init__(self, name: str, max_workers: int | None = None) -> None:
        super().__init__(max_workers, thread_name_prefix=name)
        self._name = name
        self._guard = threading.Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._in_hand: dict[threading.Thread, object] = {}
        self._idle = 0  # workers that no job is meant for; too many once there are all workers
        self._alive = 0
        self._closed = False
        self._given_up = False
        self._on_empty: Callable[[], None] = lambda: None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        with self._guard:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._idle:
                self._idle -= 1
            elif len(self._workers) < self._max_workers:
                number = len(self._workers) + 1
                worker = threading.Thread(
                    target=self._work, name=f"{self._name} {number}", daemon=True
                )
                worker.start()
                self._workers.append(worker)
                self._alive += 1
            self._jobs.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._guard:
            if not self._closed:
                self._closed = True
                for _ in self._workers:
                    self._jobs.put(None)
            dropped = self._drop() if cancel_futures else []
        for future in dropped:
            future.cancel()
        if wait and not self._given_up:
            for worker in self._workers:
                worker.join()

    def busy(self) -> list[threading.Thread]:
        """The threads that are at work."""
        return list(self._in_hand.copy())

    def waiting(self) -> int:
        """How many calls no thread has taken yet."""
        return self._jobs.qsize()

    def _drop(self) -> list[Future[Any]]:
        """Empty the queue, from which the workers take meanwhile; what was in it."""
        dropped = []
        try:
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    dropped.append(job[0])
        except Empty:
            for _ in self._workers:
                self._jobs.put(None)
        return dropped

    async def close(self) -> None:
        """Take no more work and wait for what is in hand.

        The loop goes on meanwhile: what runs on a thread may be waiting for it.
        """
        loop = asyncio.get_running_loop()
        empty = asyncio.Event()
        self._on_empty = lambda: _post(loop, empty.set)
        self.shutdown(wait=False)
        with self._guard:
            if not self._alive:
                empty.set()
        await empty.wait()
        for worker in self._workers:
            worker.join()  # the last few instructions of each

    def give_up(self) -> str:
        """Wait no more; where the threads are that have not ended."""
        # What is in the queue would begin when the loop is long gone.
        self.shutdown(wait=False, cancel_futures=True)
        self._given_up = True
        # A stack has no frame for what is not written in Python.
        calls = "".join(
            f"thread {worker.name!r} runs {fn!r}\n" for worker, fn in self._in_hand.copy().items()
        )
        return calls + stacks_of(self._workers)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, fn, args, kwargs = job
            if future.set_running_or_notify_cancel():
                self._in_hand[threading.current_thread()] = fn
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            # An idle thread must not keep what it worked with.
            del job, future, fn, args, kwargs
            self._in_hand.pop(threading.current_thread(), None)
            with self._guard:
                self._idle += 1
        with self._guard:
            self._alive -= 1
            last = not self._alive
        if last:
            self._on_empty()


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:  # closed: it came after the deadline
        pass
