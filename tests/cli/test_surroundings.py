"""`servicegroup run` where a process may find itself: process 1, without stdin, hung up…"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.cli.command import SHOP, Command, write
from tests.cli.test_run import stopped

LISTENS = """
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    say("descriptor", listener.fileno())
"""


def closing(*descriptors: str) -> tuple[str, ...]:
    return ("sh", "-c", f'exec "$@" {" ".join(descriptors)}', "sh")


def test_with_stdin_closed_nothing_takes_its_place(tmp_path: Path) -> None:
    write(tmp_path, SHOP, LISTENS)
    with Command(tmp_path, "run", "shop:group", launcher=closing("<&-")) as child:
        assert int(child.wait_for("descriptor").split()[1]) > 2
        assert stopped(child) == 0


def test_with_all_three_closed_it_runs_and_its_services_are_stopped(tmp_path: Path) -> None:
    write(tmp_path, SHOP, "group.add(with_start(lambda: None), on_return='stop', name='once')")
    arguments = ("run", "shop:group", "--report", "report.json")
    with Command(tmp_path, *arguments, launcher=closing("<&-", ">&-", "2>&-")) as child:
        assert child.end() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [one["state"] for one in report["services"]] == ["stopped", "stopped", "finished"]


def test_with_stderr_closed_nothing_of_it_is_printed_to_stdout(tmp_path: Path) -> None:
    write(tmp_path, SHOP)
    with Command(tmp_path, "run", "shop:group", launcher=closing("2>&-")) as child:
        assert stopped(child) == 0
        assert child.lines == ["ready", "end b", "end a"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_each_of_these_signals_stops_the_services(tmp_path: Path, number: int) -> None:
    write(tmp_path, SHOP)
    with Command(tmp_path, "run", "shop:group", launcher=_with_hang_up("SIG_DFL")) as child:
        child.wait_for("ready")
        child.send(number)
        assert child.end() == 0
        assert child.said("end") == ["end b", "end a"]
        assert f"exit code 0: {signal.Signals(number).name}" in child.stderr


def _with_hang_up(action: str) -> tuple[str, ...]:
    return (
        sys.executable,
        "-c",
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        f"signal.signal(signal.SIGHUP, signal.{action}); os.execv(sys.argv[1], sys.argv[1:])",
    )


@pytest.mark.parametrize(
    ("source", "launcher"),
    [
        ("", _with_hang_up("SIG_IGN")),  # as nohup does
        ("import signal\nsignal.signal(signal.SIGHUP, lambda *_: say('reloaded'))", ()),
    ],
    ids=["nohup", "a handler of the program's own"],
)
def test_a_hang_up_that_somebody_has_seen_to_stops_nothing(
    tmp_path: Path, source: str, launcher: tuple[str, ...]
) -> None:
    write(tmp_path, SHOP, source)
    with Command(tmp_path, "run", "shop:group", launcher=launcher) as child:
        child.wait_for("ready")
        child.send(signal.SIGHUP)
        if source:
            child.wait_for("reloaded")
        child.send(signal.SIGTERM)
        assert child.end() == 0
        assert "exit code 0: SIGTERM" in child.stderr


def test_a_group_that_takes_no_signals_is_left_without(tmp_path: Path) -> None:
    write(tmp_path, SHOP, "group._signals = ()")
    with Command(tmp_path, "run", "shop:group", launcher=_with_hang_up("SIG_DFL")) as child:
        child.wait_for("ready")
        child.send(signal.SIGHUP)
        assert child.end() == -signal.SIGHUP


def test_a_reader_that_goes_away_changes_no_exit_code(tmp_path: Path) -> None:
    write(tmp_path, SHOP)
    launcher = ("sh", "-c", 'mkfifo log; : <log & exec "$@" 2>log', "sh")
    with Command(tmp_path, "run", "shop:group", launcher=launcher) as child:
        assert stopped(child) == 0
        assert child.said("end") == ["end b", "end a"]


def test_a_reader_that_never_reads_costs_neither_the_end_nor_the_report(tmp_path: Path) -> None:
    write(
        tmp_path,
        SHOP,
        """
        os.set_blocking(2, False)
        try:
            while True:
                os.write(2, b"x")
        except BlockingIOError:
            os.set_blocking(2, True)

        # No subscriber hears of anything: their thread is held up by the log.
        _run.FLUSH_SECONDS = 0.1
        group.add(with_start(lambda stopping: (say("up"), stopping.wait())))
    """,
    )
    launcher = ("sh", "-c", 'mkfifo log; exec 3<>log; exec "$@" 2>log', "sh")
    arguments = ("run", "shop:group", "--report", "report.json", "--shutdown-timeout", "4")
    with Command(tmp_path, *arguments, launcher=launcher) as child:
        child.wait_for("up")
        child.send(signal.SIGTERM)
        assert child.end() == 0
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="/proc is read-only for everybody")
def test_in_a_read_only_directory_it_runs_and_refuses_to_write_there(tmp_path: Path) -> None:
    write(tmp_path, SHOP)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).resolve().parents[2]}"}
    with Command(Path("/proc"), "run", "shop:group", env=env) as child:
        assert stopped(child) == 0
        assert child.said("end") == ["end b", "end a"]
    with Command(Path("/proc"), "run", "shop:group", "--report", "r.json", env=env) as child:
        assert child.end() == 2
        assert "r.json" in child.stderr
        assert child.lines == []


# -- process 1 ------------------------------------------------------------------------------------


@cache
def namespace() -> tuple[str, ...] | None:
    """What makes a command process 1; None where that is not permitted."""
    for rights in ((), ("--user", "--map-root-user")):
        command = ("unshare", *rights, "--pid", "--fork", "--kill-child", "--mount-proc")
        if shutil.which("unshare") and not subprocess.call(
            [*command, "true"], stderr=subprocess.DEVNULL
        ):
            return command
    return None


def test_as_process_1_it_is_stopped_by_sigterm_and_says_who_should_reap(tmp_path: Path) -> None:
    launcher = namespace()
    if launcher is None:
        pytest.skip("no process namespace may be made here")
    write(tmp_path, SHOP, "say('pid', os.getpid())")
    with Command(tmp_path, "run", "shop:group", launcher=launcher) as child:
        assert child.wait_for("pid") == "pid 1"
        child.wait_for("ready")
        inside = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
        os.kill(int(inside), signal.SIGTERM)
        assert child.end() == 0
        assert child.said("end") == ["end b", "end a"]
        assert "INFO this is process 1, to which orphans fall" in child.stderr
