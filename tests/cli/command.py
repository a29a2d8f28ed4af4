"""`servicegroup` as a process, run where a program of the test's own is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

from tests.child import Child

ROOT = Path(__file__).resolve().parent.parent.parent
SERVICEGROUP = (sys.executable, "-m", "servicegroup")

# A group of two that says on stdout what becomes of it.
SHOP = """
    import os
    import sys
    import threading

    from servicegroup import Service, ServiceGroup, _run, events, with_start

    _run.FLUSH_SECONDS = 30.0  # the subscribers' thread may come late

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    class Worker(Service):
        def __init__(self, name):
            self.name = name

        def start(self):
            self.stopping.wait()
            say("end", self.name)

    def tell(event):
        if isinstance(event, events.GroupReady):
            say("ready")

    group = ServiceGroup(name="shop")
    group.subscribe(tell)
    group.add(Worker("a"))
    group.add(Worker("b"))
"""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of a process that finds this checkout."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **(extra or {})}


def write(directory: Path, *sources: str, name: str = "shop") -> None:
    """Make `sources`, one behind the other, a module."""
    (directory / f"{name}.py").write_text("\n".join(map(dedent, sources)))


class Command(Child):
    """`servicegroup` with `arguments`, run in `directory` by `launcher`, a command before it."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        launcher: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._taken = 0
        self._partial = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*launcher, *SERVICEGROUP, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment(env),
            bufsize=0,
        )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
