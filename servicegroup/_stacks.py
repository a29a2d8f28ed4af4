"""Where a thread is right now, as text."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterable

# Files whose frames begin every stack of ours and tell a reader nothing.
_OURS = (threading.__file__, os.path.dirname(__file__))


def stack_of(thread: threading.Thread | None) -> str:
    """The stack of `thread`, the innermost call last; empty when it is not alive."""
    frame = None if thread is None else sys._current_frames().get(thread.ident or 0)
    if thread is None or frame is None:
        return ""
    frames = traceback.extract_stack(frame)
    first = next((i for i, f in enumerate(frames) if not f.filename.startswith(_OURS)), 0)
    return f"thread {thread.name!r} is at:\n{''.join(traceback.format_list(frames[first:]))}"


def stacks_of(threads: Iterable[threading.Thread | None]) -> str:
    """The stacks of all `threads` that are alive."""
    return "".join(stack_of(thread) for thread in threads)


def all_stacks() -> str:
    """The stack of every thread that Python knows of."""
    return stacks_of(threading.enumerate())
