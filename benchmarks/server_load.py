"""Clients of the measured servers, which ask as often as they are answered."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from attrs import frozen

from benchmarks.children import PROGRAMS, environment

CONNECTIONS = 16
_TO_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@frozen
class Answers:
    """What servers did.

    Attributes:
        rate: answers a second of all together.
        p99: the 99th percentile of the seconds that one took, where it was the greatest.
    """

    rate: float
    p99: float


def missing(kind: str) -> str:
    """Why servers of that kind cannot be asked; empty if they can."""
    if kind.startswith("Grpc") or shutil.which("wrk") is not None:
        return ""
    return "wrk is missing (the Debian package of that name has it)"


def ask(kind: str, ports: Sequence[str], seconds: int) -> Answers:
    """Ask the servers on all `ports` at once."""
    begin, read = (
        (_begin_calls, _read_calls) if kind.startswith("Grpc") else (_begin_wrk, _read_wrk)
    )
    # Processes of their own: their threads must not wait for the lock of this interpreter.
    children = [
        subprocess.Popen(begin(port, seconds), stdout=subprocess.PIPE, text=True, env=environment())
        for port in ports
    ]
    answers = []
    for child in children:
        printed, _ = child.communicate()
        if child.returncode != 0:
            raise RuntimeError(f"a client of {kind} ended with {child.returncode}: {printed}")
        answers.append(read(printed))
    return Answers(sum(one.rate for one in answers), max(one.p99 for one in answers))


def _begin_wrk(port: str, seconds: int) -> list[str]:
    load = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    return ["wrk", *load, f"http://127.0.0.1:{port}/"]


def _read_wrk(printed: str) -> Answers:
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    tail = re.search(r"99%\s+([\d.]+)(us|ms|s)", printed)
    if rate is None or tail is None or "Socket errors" in printed or "Non-2xx" in printed:
        raise RuntimeError(f"requests failed: {printed}")
    return Answers(float(rate[1]), float(tail[1]) * _TO_SECONDS[tail[2]])


def _begin_calls(port: str, seconds: int) -> list[str]:
    program = str(PROGRAMS / "grpc_calls.py")
    return [sys.executable, program, port, str(CONNECTIONS), str(seconds)]


def _read_calls(printed: str) -> Answers:
    rate, p99 = map(float, printed.split())
    return Answers(rate, p99)
