"""A bell between processes: who waits for a file to change sleeps until somebody rings."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

SUFFIX = "-bells"


class Bell:
    """For one who waits: a datagram socket in a directory beside the file.

    Attributes:
        socket: readable once somebody has rung.

    Raises:
        OSError: no socket can be made there.
    """

    def __init__(self, file: Path) -> None:
        directory = Path(f"{file}{SUFFIX}")
        directory.mkdir(exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._path = directory / uuid.uuid4().hex
        try:
            _at(directory, self._path.name, self.socket.bind)
        except BaseException:
            self.socket.close()
            raise

    def hush(self) -> None:
        """Take the rings that have come."""
        try:
            while self.socket.recv(64):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        self.socket.close()
        self._path.unlink(missing_ok=True)


def ring(file: Path) -> None:
    """Wake all that wait and can be reached. It never fails: what they wait for is there."""
    directory = Path(f"{file}{SUFFIX}")
    try:
        _ring(directory, os.listdir(directory))
    except OSError:
        pass  # nobody waits; or no descriptor is left, or no right to look


def _ring(directory: Path, names: list[str]) -> None:
    if not names:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ringer:
        for name in names:
            try:
                _at(directory, name, lambda address: ringer.sendto(b"!", address))
            except BlockingIOError:
                pass  # full: it has plenty to wake it
            except ConnectionRefusedError:  # it was killed
                (directory / name).unlink(missing_ok=True)
            except OSError:
                pass  # it has just gone, or is another user's


def _at(directory: Path, name: str, use: object) -> None:
    """Call `use` with an address for the socket: paths of sockets may have 107 bytes only."""
    assert callable(use)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        use(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
