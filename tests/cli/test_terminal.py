"""`servicegroup run` under a terminal: what it shows, and when the terminal goes away."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.child import PATIENCE
from tests.cli.command import SERVICEGROUP, environment, write
from tests.cli.pseudo_terminal import PseudoTerminal

# Writes nothing of its own, past the table or to a terminal that has gone.
QUIET = """
    from servicegroup import Service, ServiceGroup, _run, with_start

    _run.FLUSH_SECONDS = 30.0  # the subscribers' thread may come late
    group = ServiceGroup(name="shop")
    for name in "ab":
        group.add(with_start(lambda stopping: stopping.wait()), name=name)
"""
# Takes as long to start and to stop as `go` wants.
SLOW = """
    import os

    def wait_for_go():
        descriptor = os.open("go", os.O_RDWR)  # which never comes to its end
        os.read(descriptor, 1)
        os.close(descriptor)

    class Slow(Service):
        ready_when = "announced"

        def start(self):
            wait_for_go()
            print("printed meanwhile")
            self.mark_ready()
            self.stopping.wait()

        def stop(self):
            wait_for_go()

    group.add(Slow(), name="slow")
"""
YELLOW, GREEN, RED = "\x1b[33m", "\x1b[32m", "\x1b[1;31m"
HIDE_CURSOR = "\x1b[?25l"


def go(directory: Path) -> None:
    """Let one of the slow go on; waits until it is there."""
    (directory / "go").write_bytes(b".")


def test_a_table_shows_the_start_and_the_stop_and_the_end_is_in_colours(tmp_path: Path) -> None:
    write(tmp_path, QUIET, SLOW)
    os.mkfifo(tmp_path / "go")
    with PseudoTerminal(tmp_path, "run", "shop:group") as terminal:
        shown = terminal.wait_for(f"slow  {YELLOW}starting")
        go(tmp_path)
        shown += terminal.wait_for("(Ctrl-C stops)")
        assert "printed meanwhile\r\n" in shown
        assert f"slow  {GREEN}running" in shown
        terminal.type("\x03")
        terminal.wait_for(f"slow  {YELLOW}stopping")
        go(tmp_path)
        shown += terminal.wait_for(f"{GREEN}group 'shop' ended after")
        terminal.wait_for("exit code 0: SIGINT")
        assert terminal.end() == 0
        assert HIDE_CURSOR not in shown + terminal.screen


def test_a_failure_is_shown_in_red(tmp_path: Path) -> None:
    write(tmp_path, QUIET, "group.add(with_start(lambda: 1 / 0), name='broken')")
    with PseudoTerminal(tmp_path, "run", "shop:group") as terminal:
        terminal.wait_for("ZeroDivisionError: division by zero")
        terminal.wait_for(f"{RED}group 'shop' ended after")
        terminal.wait_for(f"{RED}  broken   failed")
        assert terminal.end() == 1


def switches(pid: int) -> int:
    """How often threads of the process have gone to sleep."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        line = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)
        assert line is not None
        found += int(line[1])
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_the_table_costs_nothing_once_all_are_running(tmp_path: Path) -> None:
    write(tmp_path, QUIET)
    with PseudoTerminal(tmp_path, "run", "shop:group") as terminal:
        terminal.wait_for("(Ctrl-C stops)")
        until = time.monotonic() + PATIENCE
        before = -1
        while (now := switches(terminal.process.pid)) != before:
            assert time.monotonic() < until, "it never becomes idle"
            before = now
            time.sleep(0.5)  # several times what the table takes to move
        terminal.type("\x03")
        assert terminal.end() == 0


def test_the_admin_server_says_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, QUIET)
    with PseudoTerminal(tmp_path, "run", "shop:group", "--admin", "0") as terminal:
        terminal.wait_for("shop: admin is at http://127.0.0.1:")
        terminal.type("\x03")
        assert terminal.end() == 0


@pytest.mark.parametrize(
    ("arguments", "env"), [([], {"TERM": "dumb"}), (["--log-format", "text"], {})]
)
def test_without_a_table_the_log_is_shown(
    tmp_path: Path, arguments: list[str], env: dict[str, str]
) -> None:
    write(tmp_path, QUIET)
    with PseudoTerminal(tmp_path, "run", "shop:group", *arguments, env=env) as terminal:
        terminal.wait_for("shop: ready after")
        terminal.type("\x03")
        terminal.wait_for("exit code 0: SIGINT")
        assert terminal.end() == 0
        assert "\x1b" not in terminal.screen


@pytest.mark.parametrize("arguments", [[], ["--log-format", "text"], ["--log-format", "json"]])
def test_when_the_terminal_goes_away_the_services_are_stopped(
    tmp_path: Path, arguments: list[str]
) -> None:
    write(tmp_path, QUIET)
    arguments = ["run", "shop:group", "--report", "report.json", *arguments]
    with PseudoTerminal(tmp_path, *arguments) as terminal:
        terminal.wait_for("ready after")
        terminal.hang_up()
        assert terminal.end() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["reason"] == "SIGHUP"
    assert [one["state"] for one in report["services"]] == ["stopped", "stopped"]


# -- the whole screen, as a person sees it --------------------------------------------------------


class Pane:
    """A window of tmux."""

    def __init__(self, server: str, directory: Path) -> None:
        self._tmux = ("tmux", "-L", server, "-f", "/dev/null")
        self._call("new-session", "-d", "-x", "100", "-y", "40", "-c", str(directory), "sh")

    def _call(self, *arguments: str) -> str:
        return subprocess.run(
            [*self._tmux, *arguments],
            env=environment({"PS1": "$ "}),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def type(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def wait_for(self, text: str) -> list[str]:
        """The lines of the screen, once `text` is on it."""
        until = time.monotonic() + PATIENCE
        while text not in (shown := self._call("capture-pane", "-p")):
            assert time.monotonic() < until, f"no {text!r} in\n{shown}"
            time.sleep(0.02)
        return shown.splitlines()

    def close(self) -> None:
        self._call("kill-server")


@contextmanager
def pane(directory: Path) -> Iterator[Pane]:
    opened = Pane(f"servicegroup-{os.getpid()}-{directory.name}", directory)
    try:
        yield opened
    finally:
        opened.close()


LOGS = """
    import logging
    logging.basicConfig(level="WARNING", format="logged: %(message)s")

    class Logs(Slow):
        def start(self):
            for i in range(3):
                logging.warning("line %s", i)
            super().start()

    group.add(Logs(), name="logs")
"""


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_what_a_person_sees_is_one_table_with_what_is_written_meanwhile_above_it(
    tmp_path: Path,
) -> None:
    write(tmp_path, QUIET, SLOW, LOGS)
    os.mkfifo(tmp_path / "go")
    with pane(tmp_path) as terminal:
        terminal.type(f"clear; {' '.join(SERVICEGROUP)} run shop:group; echo code $?", "Enter")
        terminal.wait_for("slow  starting")
        go(tmp_path)
        terminal.wait_for("logs  starting")
        go(tmp_path)
        lines = terminal.wait_for("(Ctrl-C stops)")
        table = [line for line in lines if line.startswith(("a ", "b ", "slow ", "logs "))]
        assert [line.split()[:2] for line in table] == [
            *(["a", "running"], ["b", "running"], ["slow", "running"], ["logs", "running"]),
        ]
        for number in range(3):
            assert lines.count(f"logged: line {number}") == 1
        terminal.type("C-c")
        terminal.wait_for("logs  stopping")
        go(tmp_path)
        terminal.wait_for("slow  stopping")
        go(tmp_path)
        lines = terminal.wait_for("code 0")
        assert sum(line.startswith("slow ") for line in lines) == 1  # as it was when all ran
        assert sum("ended after" in line for line in lines) == 1
