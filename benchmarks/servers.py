"""HTTP servers in a group against their libraries alone, with wrk.

    python -m benchmarks.servers

Needs wrk, and the extras of the servers.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from attrs import define, field

from benchmarks.children import PROGRAMS, environment

KINDS = ("socketserver", "asgi", "wsgi", "aiohttp")
ROUNDS = int(os.environ.get("ROUNDS", "7"))
SECONDS = 2
CONNECTIONS = 16
IDLE_SECONDS = 2.0
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}  # to milliseconds


@define
class Measured:
    """Of one program, a value a round."""

    rates: list[float] = field(factory=list)  # requests/s
    tails: list[float] = field(factory=list)  # p99 in ms
    ends: list[float] = field(factory=list)  # SIGTERM to exit without load, in ms
    wakes: list[float] = field(factory=list)  # wake-ups a second when idle


def main() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: install Debian's package wrk")
    print(f"{ROUNDS} rounds of {SECONDS} s with {CONNECTIONS} connections, medians\n")
    print(f"{'server':14}{'requests/s':>12}{'bare':>10}{'ratio':>8}", end="")
    print(f"{'p99 ms':>10}{'bare':>8}{'ratio':>8}{'to exit ms':>12}{'wake-ups/s':>12}")
    for kind in KINDS:
        ours, bare = Measured(), Measured()
        for _ in range(ROUNDS):
            _measure(kind, "ours", ours)
            _measure(kind, "bare", bare)
        rate = median(one / other for one, other in zip(ours.rates, bare.rates, strict=True))
        tail = median(one / other for one, other in zip(ours.tails, bare.tails, strict=True))
        print(f"{kind:14}{median(ours.rates):12,.0f}{median(bare.rates):10,.0f}{rate:8.2f}", end="")
        print(f"{median(ours.tails):10.2f}{median(bare.tails):8.2f}{tail:8.2f}", end="")
        print(f"{median(ours.ends):12.1f}{median(ours.wakes):12.1f}")


def _measure(kind: str, mode: str, measured: Measured) -> None:
    command = [sys.executable, str(PROGRAMS / "servers.py"), kind, mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stdout is not None
        url = f"http://127.0.0.1:{child.stdout.readline().strip()}/"
        time.sleep(0.2)  # the bare ones print before they serve
        wrk = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", url]
        text = subprocess.run(wrk, capture_output=True, text=True, check=True).stdout
        rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
        tail = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
        if rate is None or tail is None or "Socket errors" in text or "Non-2xx" in text:
            raise SystemExit(f"{kind} {mode}: {text}")
        measured.rates.append(float(rate[1]))
        measured.tails.append(float(tail[1]) * UNITS[tail[2]])
        if mode == "ours":
            time.sleep(0.5)  # until the last connections are gone
            before = _switches(child.pid)
            time.sleep(IDLE_SECONDS)
            measured.wakes.append((_switches(child.pid) - before) / IDLE_SECONDS)
        begun = time.monotonic()
        child.send_signal(signal.SIGTERM)
        child.wait()
        measured.ends.append((time.monotonic() - begun) * 1000)


def _switches(pid: int) -> int:
    """Context switches of all threads so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


if __name__ == "__main__":
    main()
