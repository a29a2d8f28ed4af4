"""What systemd is to the measured programs: a socket, and somebody who reads it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

WATCHDOG_SECONDS = 10


@contextmanager
def systemd(directory: Path) -> Iterator[None]:
    """Programs that are started meanwhile are those of a unit with a watchdog."""
    address = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(address))
        thread = threading.Thread(target=_read, args=[reader], daemon=True)
        thread.start()
        unit = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 1_000_000)}
        with patch.dict(os.environ, unit):
            yield
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(address))
        thread.join()


def _read(reader: socket.socket) -> None:
    while reader.recv(4096):
        pass
