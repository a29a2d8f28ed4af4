"""Run orders.py, send it orders, and a SIGTERM in the middle; start it again; count.

Ends with 1 if an order that was accepted was not handled exactly once, or a run did not end with 0.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = Path(__file__).with_name("orders.py")
SECONDS = 1.5  # of load before the signal
CLIENTS = 4
PAUSE = 0.004  # between two orders of a client: together, more than can be handled meanwhile
PATIENCE = 60.0


class Client(threading.Thread):
    """Sends one order after the other, until nobody listens any more."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.accepted: list[str] = []
        self._connection = http.client.HTTPConnection(address, timeout=PATIENCE)

    def run(self) -> None:
        number = 0
        while self._send(order := f"{self.name}-{number}"):
            self.accepted.append(order)
            number += 1
            time.sleep(PAUSE)

    def _send(self, order: str) -> bool:
        try:
            self._connection.request("POST", "/", order)
            response = self._connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return False  # it was not accepted: the client knows
        return response.status == 202


class Run:
    """One life of the program."""

    def __init__(self, child: subprocess.Popen[str], address: str, output: str) -> None:
        self.address = address
        self._child = child
        self._output = output

    def end(self) -> str:
        """Send SIGTERM, wait for the end; what it printed."""
        self._child.send_signal(signal.SIGTERM)
        self._output += self._child.communicate(timeout=PATIENCE)[0]
        return self._output

    @property
    def code(self) -> int | None:
        return self._child.returncode


@contextmanager
def running(directory: Path) -> Iterator[Run]:
    """The program, from when it listens."""
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env={**os.environ, "PORT": "0", "ORDERS": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert child.stdout is not None
        output = ""
        while not (found := re.search(r"at http://(\S+)", output)):
            line = child.stdout.readline()
            if not line:
                raise SystemExit(output)
            output += line
        yield Run(child, found[1], output)
    finally:
        child.kill()
        child.wait()


def ledger(directory: Path) -> list[str]:
    """What was handled so far."""
    path = directory / "ledger.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def take_orders(directory: Path, prefix: str, seconds: float = SECONDS) -> tuple[Run, list[str]]:
    """A run with a SIGTERM under load; the orders that were accepted."""
    with running(directory) as run:
        clients = [Client(run.address, f"{prefix}-{number}") for number in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(seconds)
        run.end()
        for client in clients:
            client.join(PATIENCE)
        return run, [order for client in clients for order in client.accepted]


def finish(directory: Path, accepted: list[str]) -> tuple[Run, str]:
    """A run that handles what is left, and what it printed."""
    with running(directory) as run:
        until = time.monotonic() + PATIENCE
        while set(accepted) - set(ledger(directory)) and time.monotonic() < until:
            time.sleep(0.05)
        return run, run.end()


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        first, accepted = take_orders(directory, "order")
        early = len(ledger(directory))
        print(f"{CLIENTS} clients sent orders; SIGTERM came after {SECONDS} s of that")
        print(f"  {len(accepted):6} orders accepted")
        print(f"  {early:6} handled when the first run ended, with exit code {first.code}")
        second, output = finish(directory, accepted)
        handled = Counter(ledger(directory))
    lost = [order for order in accepted if not handled[order]]
    twice = [order for order, times in handled.items() if times > 1]
    print(f"  {sum(handled.values()):6} handled when the second had ended, with {second.code}")
    print(f"  {len(lost):6} lost", *lost, sep="\n")
    print(f"  {len(twice):6} handled twice", *twice, sep="\n")
    print("the second run:\n")
    print(output[output.find("group 'shop' ended") :])
    return int(bool(lost or twice or first.code or second.code))


if __name__ == "__main__":
    sys.exit(main())
