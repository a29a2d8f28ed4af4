"""A port that nobody uses."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

FIRST = 20_000  # below are those that programs have for their own
# Where the kernel takes ports from for those who name none, by RFC 6335; Linux says it itself.
EPHEMERAL = 49_152
TRIES = 1_000

_random = random.Random()  # the module's own may be seeded alike in every process
_given: set[int] = set()


def find_free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody on this machine uses, and that no client's connection will take.

    It is not held: between this call and the server's own `bind()` somebody else who was told to
    use just this port may take it. The kernel gives it to nobody by itself, since it lies outside
    the range that it takes ports from; this process is given no port twice; and the workers of
    pytest-xdist are given different ones. A server that can bind port 0 and say which it got has no
    such gap at all. Any thread may call it.

    Args:
        host: the address it is free at.

    Raises:
        OSError: no port could be had at `host`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = _ports()
    last: OSError | None = None
    for _ in range(TRIES):
        port = _random.choice(ports)
        if port in _given:
            continue
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((host, port))  # without SO_REUSEADDR: nor one that is just closed
        except OSError as error:
            last = error
            continue
        _given.add(port)
        return port
    raise OSError(f"no free port found at {host!r} between {ports[0]} and {ports[-1]}") from last


def _ports() -> range:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        low = int(text.split()[0])
    except (OSError, ValueError):
        low = EPHEMERAL
    if low < FIRST + TRIES:  # somebody gave the kernel nearly all of them
        low = 65_536
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return range(FIRST + (int(worker) if worker.isdecimal() else 0) % workers, low, workers)
