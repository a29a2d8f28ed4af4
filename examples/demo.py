"""Run morning_evening.py, send it requests, and a SIGTERM in the middle; tell what happened.

    python examples/demo.py [--report FILE.json]

Ends with 1 if a request was lost, the services did not stop last-in-first-out, or the program did
not end with 0.

A request is *answered* when its whole answer came. It is *refused* when its connection was, so that
nothing was sent: the listener is closed, and a client goes elsewhere. It is *lost* when its
connection was accepted and anything but a whole answer came. One case is told apart, as HTTP does
(RFC 9112, 9.3.1): on a connection that has served before, the server may close it just when the
client sends the next request; not a byte comes back, and the client *sends it again* on a new one.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import attrs

PROGRAM = Path(__file__).with_name("morning_evening.py")
SECONDS = 1.5  # of load before the signal
CLIENTS = 3  # of each kind, for each service
SLOW = "?seconds=0.3"


@attrs.define
class Tally:
    """What one client saw."""

    answered: int = 0
    after_signal: int = 0  # of these, answered after the signal was sent
    in_flight: int = 0  # of these, sent before it
    refused: int = 0
    repeated: int = 0
    lost: list[str] = attrs.Factory(list)


class Client(threading.Thread):
    """Sends one request after the other until it is refused, or loses one."""

    signalled_at = float("inf")  # of all clients

    def __init__(self, url: str, keep_alive: bool, slow: bool) -> None:
        super().__init__(name=f"client of {url}", daemon=True)
        _, _, address, path = url.split("/")
        self.tally = Tally()
        self.ended = False
        self._expected = f"good {path}\n".encode()
        self._path = f"/{path}{SLOW if slow else ''}"
        self._headers = {} if keep_alive else {"Connection": "close"}
        self._connection = http.client.HTTPConnection(address, timeout=30)

    def run(self) -> None:
        while self._request():
            time.sleep(random.uniform(0, 0.005))
        self.ended = True

    def _request(self) -> bool:
        """Send one request and note what becomes of it; whether to go on."""
        connection, tally = self._connection, self.tally
        sent_at = time.monotonic()
        reused = connection.sock is not None
        try:
            if not reused:
                connection.connect()
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
        except ConnectionRefusedError as error:
            if sent_at < self.signalled_at:
                tally.lost.append(f"{self.name}: {error!r} before the signal")
            tally.refused += 1
            return False
        except (ConnectionError, http.client.HTTPException) as error:
            connection.close()
            if reused and isinstance(error, ConnectionError):  # not a byte of an answer
                tally.repeated += 1
                return self._request()
            tally.lost.append(f"{self.name}: {error!r}")
            return False
        except OSError as error:
            tally.lost.append(f"{self.name}: {error!r}")
            return False
        try:
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            tally.lost.append(f"{self.name}: {error!r}")
            return False
        if (response.status, body) != (200, self._expected):
            tally.lost.append(f"{self.name}: answered {response.status} {body!r}")
            return False
        tally.answered += 1
        if time.monotonic() > self.signalled_at:
            tally.after_signal += 1
            tally.in_flight += sent_at < self.signalled_at
        return True


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Send a program requests and a SIGTERM.")
    parser.add_argument("--report", metavar="FILE.json", help="write the program's report there")
    found = parser.parse_args()
    if found.report and not found.report.endswith(".json"):
        parser.error(f"--report: {found.report!r} must end in .json, for JSON is what it will be")
    return found


def main() -> int:
    report = arguments().report
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env={
            **os.environ,
            "MORNING_PORT": "0",
            "EVENING_PORT": "0",
            **({"REPORT": report} if report else {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert child.stdout is not None
        output = ""
        while len(urls := re.findall(r"http://\S+", output)) < 2:
            line = child.stdout.readline()
            if not line:
                print(output, file=sys.stderr)
                return 1
            output += line
        clients = [
            Client(url, keep_alive, slow)
            for url in urls
            for keep_alive in (True, False)
            for slow in (True, *[False] * (CLIENTS - 1))
        ]
        print(f"{len(clients)} clients, half of them with keep-alive, of {' and '.join(urls)}")
        for client in clients:
            client.start()
        time.sleep(SECONDS)
        Client.signalled_at = time.monotonic()
        child.send_signal(signal.SIGTERM)
        output += child.communicate(timeout=60)[0]
        for client in clients:
            client.join(60)
    finally:
        child.kill()
        child.wait()
    tallies = [client.tally for client in clients]
    lost = [loss for tally in tallies for loss in tally.lost]
    lost += [f"{client.name} did not end as it should" for client in clients if not client.ended]
    stopped = re.findall(r"day: (\w+): stopped", output)
    table = output[output.find("group 'day' ended") :]
    print(f"SIGTERM was sent after {SECONDS} s; the program ended with {child.returncode}")
    print(f"  {sum(tally.answered for tally in tallies):6} requests answered, of them")
    print(f"  {sum(tally.after_signal for tally in tallies):6} after the signal, of them")
    print(f"  {sum(tally.in_flight for tally in tallies):6} in flight when it came")
    print(f"  {sum(tally.refused for tally in tallies):6} connections refused, at the end")
    print(f"  {sum(tally.repeated for tally in tallies):6} sent again")
    print(f"  {len(lost):6} requests lost", *lost, sep="\n")
    print(f"stopped: first {', then '.join(stopped)}\n\n{table}")
    return int(bool(lost) or stopped != ["evening", "morning"] or child.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
