"""Between `run --reload` and the process that it starts anew: a socket, and both its ends.

The child says how long its stop may take, once it has a group to stop. The parent says why it is to
stop, or says nothing and is gone. So a child is stopped in good order after a `kill -9` of its
parent, and a Ctrl-C that the terminal has sent to both reaches it once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

from servicegroup._exit import GRACE_SECONDS, PRINT_SECONDS
from servicegroup.group import ServiceGroup

IMPORT_SECONDS = 5.0  # for the end of one that has no group yet, so nothing to stop
SPARE_SECONDS = GRACE_SECONDS + 2 * PRINT_SECONDS + 1.0  # after which `run` should have ended


class Child:
    """`servicegroup run` in a process of its own; for one thread."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._link, other = socket.socketpair()
        self._link.setblocking(False)
        self._said = b""
        with other:
            link = str(other.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "servicegroup", "run", "--reload-link", link, *arguments],
                pass_fds=(other.fileno(),),
            )

    def has_ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int:
        """As a shell has it: 128 and the signal that ended it."""
        code = self._process.wait()
        return 128 - code if code < 0 else code

    @property
    def patience(self) -> float:
        """Seconds within which it ends once it is asked to."""
        return float(self._said) + SPARE_SECONDS if self._has_group() else IMPORT_SECONDS

    def ask_to_stop(self, reason: str) -> None:
        """Have it end in good order."""
        if not self._has_group():
            self._process.terminate()
            return
        try:
            self._link.send(reason.encode())
        except OSError:
            pass  # it has gone by itself

    def close(self) -> None:
        """No trace of it is left: neither the process nor the link."""
        if not self.has_ended():
            self._process.kill()
        self._process.wait()
        self._link.close()

    def _has_group(self) -> bool:
        try:
            self._said = self._said or self._link.recv(64)
        except OSError:
            pass  # nothing yet
        return bool(self._said)


def obey(descriptor: int, group: ServiceGroup) -> None:
    """In the child: stop `group` when the parent says so or has ended."""
    os.set_inheritable(descriptor, False)
    link = socket.socket(fileno=descriptor)

    def listen() -> None:
        try:
            link.sendall(str(group.shutdown_timeout).encode())
            reason = link.recv(4096).decode()
        except ConnectionError:  # it has ended without having listened
            reason = ""
        group.stop(reason or "run --reload has gone")

    threading.Thread(target=listen, name="servicegroup (reload)", daemon=True).start()
