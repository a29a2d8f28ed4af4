"""Python files that change, seen by watchfiles."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

# How long no other file has to change for an edit to be over. watchfiles wakes up as often while
# nothing changes: it has no other way to wait.
STEP_MILLISECONDS = 100
_TARGET = re.compile(r"([^\W\d]\w*)(\.\w+)*:[\w.]+")


class Watch:
    """`changed` has the names of what has changed; `wake` is called from another thread.

    Attributes:
        begun: from now on nothing is missed.
        error: why nothing is watched any more.
    """

    def __init__(self, directories: Iterable[Path], wake: Callable[[], None]) -> None:
        self.changed: deque[str] = deque()
        self.begun = False
        self.error: Exception | None = None
        self._directories = directories
        self._wake = wake
        self._over = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch as long as the block lasts.

        Raises:
            click.ClickException: watchfiles is missing.
        """
        try:
            import watchfiles
        except ImportError:
            raise click.ClickException(
                "--reload needs watchfiles: pip install 'servicegroup[cli]'"
            ) from None

        def watch() -> None:
            try:
                for changes in watchfiles.watch(
                    *self._directories,
                    watch_filter=watchfiles.PythonFilter(),
                    step=STEP_MILLISECONDS,
                    rust_timeout=0,
                    stop_event=self,
                    ignore_permission_denied=True,
                ):
                    self.changed.extend(path for _, path in changes)
                    self._wake()
            except Exception as error:  # no more watches to be had from the system, say
                self.error = error
                self._wake()

        thread = threading.Thread(target=watch, name="servicegroup (watch)", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over = True
            thread.join()

    def is_set(self) -> bool:
        """What watchfiles asks now and then: whether to end. So by then it has begun."""
        if not self.begun:
            self.begun = True
            self._wake()
        return self._over


def directories(arguments: Iterable[str]) -> list[Path]:
    """The current one, and where the target among `arguments` comes from."""
    found = [Path.cwd()]
    for target in filter(None, map(_TARGET.fullmatch, arguments)):
        try:
            spec = importlib.util.find_spec(target[1])  # of the top, so nothing is imported
        except (ImportError, ValueError):  # `run` will say what is wrong with it
            continue
        if spec is not None and spec.submodule_search_locations is not None:
            found += map(Path, spec.submodule_search_locations)
        elif spec is not None and spec.has_location and spec.origin is not None:
            found.append(Path(spec.origin).parent)
    ours = {path.resolve() for path in found}
    return sorted(path for path in ours if ours.isdisjoint(path.parents))
