"""Messages between a process and its child: pickles behind their length, over a pair of sockets.

Not `multiprocessing.Connection`, whose `recv` blocks in the middle of a message: the parent must
keep its deadlines also with a child that was stopped there.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator

_LENGTH = struct.Struct("!Q")
# A program that has SIGPIPE end it must not be ended by the end of a child.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

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


class Line:
    """The parent's end, which never blocks. For one thread."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._frames = Frames()
        self._out = bytearray()  # what there was no room for
        self.is_open = True

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    def send(self, message: Message) -> None:
        """Send `message`, now or as soon as there is room; lost when nobody reads any more."""
        self._out += frame(message)
        self.flush()

    def flush(self) -> None:
        """Send what there is room for now."""
        try:
            while self._out:
                del self._out[: self._end.send(self._out, _NO_SIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()

    def receive(self) -> list[Message] | None:
        """The messages in the next piece of what has come; None when nothing has, or will."""
        if not self.is_open:
            return None
        try:
            data = self._end.recv(2**18)
        except BlockingIOError:
            return None
        except OSError:  # reset
            data = b""
        if not data:
            self.close()
            return None
        return list(self._frames.feed(data))

    def close(self) -> None:
        self._end.close()
        self.is_open = False
        self._out.clear()


class Sender:
    """The child's end, which blocks while there is no room. Any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unsent: deque[bytes | memoryview] = deque()
        self._lock = threading.RLock()
        self._writing = False
        self._pid = os.getpid()

    def send(self, message: Message) -> None:
        """Write `message`; OSError when nobody reads any more.

        A process forked from this one has the descriptor too, and its messages would tear ours
        apart: what it sends is dropped.
        """
        if os.getpid() != self._pid:
            return
        self._unsent.append(frame(message))
        with self._lock:
            # Called in the midst of a call on the same thread: by a signal's handler that logs, or
            # a __del__ that does. It must neither wait nor write in between.
            if self._writing:
                return
            self._writing = True
            try:
                while self._unsent:
                    data = memoryview(self._unsent[0])
                    # The rest is kept in its place, should a signal's handler raise meanwhile.
                    self._unsent[0] = data[os.write(self._fd, data) :]
                    if not self._unsent[0]:
                        self._unsent.popleft()
            finally:
                self._writing = False
