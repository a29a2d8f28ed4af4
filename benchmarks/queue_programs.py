"""Consumers as child processes, which print a number a line; see programs/tally.py."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from benchmarks.children import PROGRAMS, environment
from benchmarks.processors import only_on

PATIENCE = 60.0  # far more than anything here takes


@frozen
class Running:
    """A program that consumes."""

    name: str
    child: subprocess.Popen[bytes]

    def number(self) -> float:
        """The next one it prints.

        Raises:
            RuntimeError: it has ended, or nothing came.
        """
        stdout = self.child.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], PATIENCE)
        line = stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"{self.name} {'ended too early' if ready else 'got stuck'}")
        return float(line)

    def end(self) -> None:
        """Have it end by SIGTERM.

        Raises:
            RuntimeError: it did not, or not in good order.
        """
        self.child.terminate()
        if self.child.wait(PATIENCE) != 0:
            raise RuntimeError(f"{self.name} ended with {self.child.returncode}")


@contextmanager
def running(program: str, *arguments: object, on: set[int]) -> Iterator[Running]:
    """On these processors; killed at the end, unless it has ended.

    Raises:
        RuntimeError: one from within, with what the program wrote to stderr.
    """
    command = [sys.executable, str(PROGRAMS / f"{program}.py"), *map(str, arguments)]
    with tempfile.TemporaryFile() as stderr:
        with only_on(on):
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, env=environment(), bufsize=0
            )
        try:
            yield Running(" ".join([program, *map(str, arguments[:1])]), child)
        except RuntimeError as error:
            stderr.seek(0)
            raise RuntimeError(f"{error}: {stderr.read().decode(errors='replace')}") from None
        finally:
            child.kill()
            child.communicate()
