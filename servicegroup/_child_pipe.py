"""Messages between a process and its child: pickles behind their length, over one descriptor.

Not `multiprocessing.Connection`, whose `recv` blocks in the middle of a message: the parent must
keep its deadlines also with a child that was stopped there.
"""

from __future__ import annotations

import os
import pickle
import struct
import threading
from collections.abc import Iterator

_LENGTH = struct.Struct("!Q")

Message = tuple[object, ...]  # a word, and what belongs to it


def frame(message: Message) -> bytes:
    """The bytes of `message`."""
    data = pickle.dumps(message)
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Puts the bytes that come together to messages. For one thread."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete with `data`."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            end = _LENGTH.size + length
            if len(self._data) < end:
                return
            message: Message = pickle.loads(self._data[_LENGTH.size : end])
            del self._data[:end]
            yield message


class Sender:
    """Writes messages to a descriptor that blocks. Any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def send(self, message: Message) -> None:
        """Write `message`; OSError when nobody reads any more.

        A process forked from this one has the descriptor too, and its messages would tear ours
        apart: what it sends is dropped.
        """
        if os.getpid() != self._pid:
            return
        data = memoryview(frame(message))
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]
