"""Listening sockets: one place for how servers open, take over, describe and leave them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
from pathlib import Path

from attrs import field, frozen
from attrs.validators import instance_of, optional

# So many connections may wait to be accepted. Linux cuts it to net.core.somaxconn.
BACKLOG = 2048
# Seconds for those who are halfway through opening their connection when the listener goes.
ROUND_TRIP = 0.01
SD_LISTEN_FDS_START = 3  # as sd_listen_fds(3) says

_HINTS = {
    errno.EADDRINUSE: "another process, or another service of this one, listens there",
    errno.EACCES: "ports below 1024 are for root, or need CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


@frozen(kw_only=True)
class Endpoint:
    """Where a server listens: `sock` if there is one, else `unix_socket`, else `host` and `port`.

    Attributes:
        host: a name or an address; the first address of a name is taken. `"0.0.0.0"`: all of IPv4.
        port: 0 chooses one that is free.
        sock: a bound stream socket. It is taken over, and closed with the server.
        unix_socket: the path of a Unix socket. One that nobody listens to any more is replaced; the
            file goes when the server stops.
        reuse_port: let other processes listen to the same port; the system spreads the connections.
        backlog: how many connections may wait to be accepted.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    host: str = field(default="127.0.0.1", validator=instance_of(str))
    port: int = field(default=8000, validator=instance_of(int))
    sock: socket.socket | None = field(default=None, validator=optional(instance_of(socket.socket)))
    unix_socket: str | Path | None = field(
        default=None, validator=optional(instance_of((str, Path)))
    )
    reuse_port: bool = field(default=False, validator=instance_of(bool))
    backlog: int = field(default=BACKLOG, validator=instance_of(int))

    def __attrs_post_init__(self) -> None:
        if isinstance(self.port, bool) or not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 (any that is free) to 65535, not {self.port!r}")
        if not self.host.strip():
            raise ValueError('host must not be empty: "0.0.0.0" means all addresses')
        if self.backlog < 1:
            raise ValueError(f"backlog must be 1 or more, not {self.backlog!r}")
        if self.sock is not None and self.unix_socket is not None:
            raise ValueError("sock and unix_socket exclude each other: give one of them")
        if self.reuse_port and not hasattr(socket, "SO_REUSEPORT"):
            raise ValueError("reuse_port cannot be had on this system")
        if self.sock is not None:
            _require_bound(self.sock)

    def open(self) -> socket.socket:
        """Listen.

        Raises:
            OSError: that cannot be; the message names the address and says what to do.
        """
        if self.sock is not None:
            if self.sock.fileno() < 0:
                raise OSError(
                    errno.EBADF,
                    "the socket given as sock= is closed: a server closes it when it stops, so one "
                    "that is to start again needs host and port",
                )
            self.sock.listen(self.backlog)
            return self.sock
        if self.unix_socket is not None:
            return self._open_unix(str(self.unix_socket))
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise _named(error, f"{self.host}:{self.port}") from None
        family, kind, _, _, address = found[0]
        # With the protocol named: without it asyncio sets no TCP_NODELAY on what is accepted.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(self.backlog)
        except OSError as error:
            listener.close()
            raise _named(error, f"{self.host}:{self.port}") from None
        return listener

    def _open_unix(self, path: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_left_over(path):
                    raise
                os.unlink(path)
                listener.bind(path)
            listener.listen(self.backlog)
        except OSError as error:
            listener.close()
            raise _named(error, path) from None
        return listener


def systemd_sockets() -> dict[str, list[socket.socket]]:
    """The listening sockets that systemd passed to this process, by name.

    Names are those of `FileDescriptorName=` in the socket unit, by default the unit's own. Calling
    it again gives new objects for the same sockets. Other languages call it `sd_listen_fds`.

    Returns:
        Nothing when the process was not started by a socket unit.
    """
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        name = names[index] if index < len(names) and names[index] else "unknown"
        descriptor = os.dup(SD_LISTEN_FDS_START + index)
        found.setdefault(name, []).append(socket.socket(fileno=descriptor))
    return found


def systemd_socket(name: str | None = None) -> socket.socket:
    """The one listening socket that systemd passed (under `name`), for a server's `sock=`.

    Raises:
        RuntimeError: there is none, or there are several; the message says which there are.
    """
    found = systemd_sockets()
    fitting = [one for key, ones in found.items() if name in (None, key) for one in ones]
    if len(fitting) == 1:
        return fitting[0]
    for one in (one for ones in found.values() for one in ones):
        one.close()
    there = ", ".join(f"{len(ones)} named {key!r}" for key, ones in found.items()) or "none"
    wanted = "a socket" if name is None else f"a socket named {name!r}"
    raise RuntimeError(
        f"{wanted} was to come from systemd, but it passed {there}: see Sockets= of the service "
        "and FileDescriptorName= of the socket unit"
    )


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Where clients on this machine find `listener`; `unix:` and the path for a Unix socket."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{address}"
    host, port = address[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def port_of(listener: socket.socket) -> int | None:
    """The port of `listener`; None for a Unix socket."""
    if listener.family == socket.AF_UNIX:
        return None
    port: int = listener.getsockname()[1]
    return port


def refuse_new(listener: socket.socket) -> None:
    """Let nobody begin to open a connection; those who have begun can go on. TCP on Linux only.

    A connection that is opened between the last accept() and close() would be reset though its
    client was let in, which happens now and then under load. Elsewhere let the load balancer look
    away first: that is what `drain_delay` is for.
    """
    if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
        # A packet filter: load byte 13, the TCP flags; is SYN among them? Drop it, else let it in.
        code = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)
        steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
        so_attach_filter = 26
        program = struct.pack("HP", len(code), ctypes.addressof(steps))
        try:
            listener.setsockopt(socket.SOL_SOCKET, so_attach_filter, program)
        except OSError:
            pass  # some kernels let only administrators do that: then it is as elsewhere


def close(listener: socket.socket) -> None:
    """Close `listener`; the file of a Unix socket goes with it, unless it is another's by now."""
    path = ""
    if listener.fileno() >= 0 and listener.family == socket.AF_UNIX:
        path = listener.getsockname()
    listener.close()
    if path and not path.startswith("\0") and _is_left_over(path):
        os.unlink(path)


def _is_left_over(path: str) -> bool:
    """Whether `path` is a Unix socket that nobody listens to."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _require_bound(sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"sock must be a stream socket, not {sock!r}")
    address = sock.getsockname()
    if not address or (isinstance(address, tuple) and address[1] == 0):
        raise ValueError(f"sock must be bound to an address: call its bind() first ({sock!r})")


def _named(error: OSError, where: str) -> OSError:
    """The same error, saying where, and what may be done about it."""
    hint = _HINTS.get(error.errno or 0)
    text = f"cannot listen on {where}: {error.strerror}" + (f" ({hint})" if hint else "")
    return type(error)(error.errno, text)
