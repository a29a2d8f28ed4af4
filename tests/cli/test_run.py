"""`servicegroup run`: its options, what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from tests.child import PATIENCE
from tests.cli.command import SHOP, Command, write


def stopped(child: Command) -> int:
    """The exit code of a group that is stopped once it is ready."""
    child.wait_for("ready")
    child.send(signal.SIGTERM)
    return child.end()


FAILS = """
    def fails():
        group.wait_ready()
        raise ConnectionError("no broker")

    group.add(with_start(fails), name="api")
"""


# -- how it ends ----------------------------------------------------------------------------------


def test_a_signal_stops_the_services_the_last_first(tmp_path: Path) -> None:
    write(tmp_path, SHOP)
    with Command(tmp_path, "run", "shop:group") as child:
        assert stopped(child) == 0
        assert child.said("end") == ["end b", "end a"]


def test_a_failure_ends_it_with_1_and_a_traceback_of_the_users_code(tmp_path: Path) -> None:
    write(tmp_path, SHOP, FAILS)
    with Command(tmp_path, "run", "shop:group") as child:
        assert child.end() == 1
        assert child.said("end") == ["end b", "end a"]
        assert '    raise ConnectionError("no broker")\n' in child.stderr
        assert "in service 'api', while running" in child.stderr
        assert "exit code 1: service 'api' failed" in child.stderr


def test_the_exit_code_of_a_service_is_that_of_the_command(tmp_path: Path) -> None:
    write(tmp_path, SHOP, "group.add(with_start(lambda: sys.exit(77)), name='api')")
    with Command(tmp_path, "run", "shop:group") as child:
        assert child.end() == 77


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        SHOP,
        """
        from servicegroup import _exit

        _exit.PRINT_SECONDS = 30.0  # the thread that prints may come late

        def hangs():
            say("stopping")
            threading.Event().wait()

        group.defer(hangs)
    """,
    )
    with Command(tmp_path, "run", "shop:group", "--shutdown-timeout", "300") as child:
        child.wait_for("ready")
        child.send(signal.SIGTERM)
        child.wait_for("stopping")
        time.sleep(0.3)  # sooner, it would be the same signal, delivered twice
        child.send(signal.SIGTERM)
        assert child.end() == 128 + signal.SIGTERM
        assert "SIGTERM again, leaving at once" in child.stderr


def test_code_that_never_lets_go_of_the_interpreter_lock_ends_all_the_same(tmp_path: Path) -> None:
    write(
        tmp_path,
        SHOP,
        """
        import re
        group.defer(lambda: re.match(r"(a+)+$", "a" * 60 + "b"))
    """,
    )
    # As long as it may take until the lock is taken.
    with Command(tmp_path, "run", "shop:group", "--shutdown-timeout", "4") as child:
        assert stopped(child) == 1
        assert "re.match" in child.stderr or "in <lambda>" in child.stderr


def test_a_thread_that_the_import_starts_does_not_keep_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        SHOP,
        """
        from servicegroup import _exit

        _exit.PRINT_SECONDS = 30.0  # the thread that prints may come late
        threading.Thread(target=threading.Event().wait).start()
    """,
    )
    with Command(tmp_path, "run", "shop:group", "--shutdown-timeout", "4") as child:
        assert stopped(child) == 0
        assert child.said("end") == ["end b", "end a"]
        assert "ending the process, which did not end by itself" in child.stderr


def test_child_processes_find_the_module_that_was_looked_for(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import servicegroup
        from servicegroup import InProcess, Service, ServiceGroup

        class InChild(Service):
            def start(self):
                print("in a child of", __name__, flush=True)
                self.stopping.wait()

        group = ServiceGroup()
        group.add(InProcess(InChild))
    """,
    )
    with Command(tmp_path, "run", "shop:group") as child:
        child.wait_for("in a child of shop")
        child.send(signal.SIGTERM)
        assert child.end() == 0


# -- the options ----------------------------------------------------------------------------------


def test_limits_go_before_those_of_the_program(tmp_path: Path) -> None:
    write(
        tmp_path,
        SHOP,
        """
        class Tells(Worker):
            def stop(self):
                say("left", self.remaining() < 60)

        group.add(Tells("c"), stop_timeout=1000)
    """,
    )
    with Command(
        tmp_path, "run", "shop:group", "--shutdown-timeout", "60", "--drain-delay", "0.2"
    ) as child:
        child.wait_for("ready")
        at = child.send(signal.SIGTERM)
        child.wait_for("left True")
        assert time.monotonic() - at >= 0.2
        assert child.end() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shutdown-timeout", "-1"], "shutdown_timeout must be 0 or more seconds"),
        (["--shutdown-timeout", "nan"], "shutdown_timeout must be 0 or more seconds"),
        (["--shutdown-timeout", "soon"], "'soon' is not a valid float"),
        (["--drain-delay", "25"], "drain_delay (25.0) must be shorter than shutdown_timeout"),
        (["--admin", "http"], "'http' does not end with a port from 0 to 65535"),
        (["--admin", "65536"], "'65536' does not end with a port"),
        (["--log-format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["--env-file", "no-such-file"], "'no-such-file' does not exist"),
        (["--report", "no/such/directory.json"], "No such file or directory"),
        (["--report", "."], "Is a directory"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    write(tmp_path, SHOP)
    with Command(tmp_path, "run", "shop:group", *arguments) as child:
        assert child.end() == 2
        assert said in child.stderr
        assert "Usage:" in child.stderr
        assert child.lines == []


@pytest.mark.parametrize(("source", "code", "state"), [("", 0, "stopped"), (FAILS, 1, "failed")])
def test_the_report_is_written_however_it_went(
    tmp_path: Path, source: str, code: int, state: str
) -> None:
    write(tmp_path, SHOP, source)
    (tmp_path / "report.json").write_text("of the last time, and longer" * 1000)
    with Command(tmp_path, "run", "shop:group", "--report", "report.json") as child:
        assert (child.end() if code else stopped(child)) == code
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["name"] == "shop"
    assert report["exit_code"] == code
    assert report["services"][-1]["state"] == state


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_report_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    write(tmp_path, SHOP)
    with Command(tmp_path, "run", "shop:group", "--report", "/dev/full") as child:
        assert stopped(child) == 1
        assert "the report is not in /dev/full: " in child.stderr


def test_the_admin_server_is_started_first_and_stopped_last(tmp_path: Path) -> None:
    write(tmp_path, SHOP)
    with Command(tmp_path, "run", "shop:group", "--admin", "0", "--report", "report.json") as child:
        child.wait_for("ready")
        until = time.monotonic() + PATIENCE
        while (found := re.search(r"admin is at (http://127\.0\.0\.1:\d+)", child.stderr)) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        with urllib.request.urlopen(f"{found[1]}/status.json", timeout=PATIENCE) as answer:
            names = [one["name"] for one in json.load(answer)["services"]]
        assert names == ["admin", "a", "b"]
        child.send(signal.SIGTERM)
        assert child.end() == 0
    services = json.loads((tmp_path / "report.json").read_text())["services"]
    stops = {one["name"]: one["stopping_at"] for one in services}
    assert stops["admin"] > stops["a"] > stops["b"]


def test_an_admin_server_whose_port_is_taken_starts_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, SHOP)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Command(tmp_path, "run", "shop:group", "--admin", f"127.0.0.1:{port}") as child:
            assert child.end() == 1
            assert "Address already in use" in child.stderr
            assert child.lines == []


def test_variables_of_a_file_are_there_for_the_import_and_override_none(tmp_path: Path) -> None:
    write(tmp_path, SHOP, "say('found', os.environ['PORT'], os.environ['HOST'])")
    (tmp_path / "prod.env").write_text("# ports\nexport PORT=1234\nHOST='of the file'\n")
    with Command(
        tmp_path, "run", "shop:group", "--env-file", "prod.env", env={"HOST": "ours"}
    ) as child:
        assert stopped(child) == 0
        assert child.said("found") == ["found 1234 ours"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"A=1\n'B'=2\nnot this\n", "env:3 is no"), (b"A=\xff", "env is not UTF-8")],
)
def test_a_wrong_file_of_variables_is_refused_with_its_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    write(tmp_path, SHOP)
    (tmp_path / "env").write_bytes(content)
    with Command(tmp_path, "run", "shop:group", "--env-file", "env") as child:
        assert child.end() == 2
        assert said in child.stderr
        assert child.lines == []


def test_what_is_not_needed_is_not_loaded(tmp_path: Path) -> None:
    write(tmp_path, SHOP, "group.defer(lambda: say('loaded', *sys.modules))")
    with Command(tmp_path, "run", "shop:group") as child:
        assert stopped(child) == 0
        (line,) = child.said("loaded")
    loaded = line.split()
    assert "click" in loaded
    assert {"rich", "dotenv", "watchfiles", "asyncio", "http", "json"}.isdisjoint(loaded)


# -- the log --------------------------------------------------------------------------------------

LOGS = "import logging\nlogging.getLogger('shop').info('of the program: %s', 'é')"
LOGS_ALONE = "import logging\nlogging.basicConfig(level='INFO', format='mine %(message)s')"


def lines_of(child: Command) -> list[str]:
    return child.stderr.splitlines()


def test_in_a_pipe_what_becomes_of_the_group_is_told_in_plain_lines(tmp_path: Path) -> None:
    write(tmp_path, SHOP, LOGS)
    with Command(tmp_path, "run", "shop:group") as child:
        assert stopped(child) == 0
        first, *_ = lines_of(child)
        assert re.fullmatch(r"[-\d]+ [:,\d]+ INFO shop: starting", first)
        assert "INFO shop: b: stopped after" in child.stderr
        assert "of the program" not in child.stderr
        assert "\x1b" not in child.stderr
        assert "group 'shop' ended after" in child.stderr


def test_a_program_that_has_a_log_keeps_it(tmp_path: Path) -> None:
    write(tmp_path, SHOP, LOGS_ALONE, LOGS)
    with Command(tmp_path, "run", "shop:group") as child:
        assert stopped(child) == 0
        assert lines_of(child)[:2] == ["mine of the program: é", "mine shop: starting"]
        assert child.stderr.count("shop: starting") == 1


def test_log_format_text_shows_the_whole_log(tmp_path: Path) -> None:
    write(tmp_path, SHOP, LOGS)
    with Command(tmp_path, "run", "shop:group", "--log-format", "text") as child:
        assert stopped(child) == 0
        assert " INFO shop: of the program: é\n" in child.stderr
        assert " INFO servicegroup: shop: starting\n" in child.stderr


def test_log_format_json_makes_every_line_json_that_of_the_report_too(tmp_path: Path) -> None:
    write(tmp_path, SHOP, LOGS, FAILS)
    with Command(tmp_path, "run", "shop:group", "--log-format", "json") as child:
        assert child.end() == 1
        lines = [json.loads(line) for line in lines_of(child)]
    assert lines[0]["message"] == "of the program: é"
    (failed,) = (line for line in lines if line.get("event") == "ServiceFailed")
    assert failed["error"] == "ConnectionError: no broker"
    assert 'raise ConnectionError("no broker")' in failed["traceback"]
    assert failed["service"] == "api"
    assert lines[-1]["event"] == "Report"
    assert lines[-1]["level"] == "ERROR"
    assert lines[-1]["report"]["exit_code"] == 1


def test_what_json_does_not_know_is_logged_as_text(tmp_path: Path) -> None:
    write(
        tmp_path,
        SHOP,
        "import logging\nlogging.warning('%s', 1, extra={'thing': {1}}, stack_info=True)",
    )
    with Command(tmp_path, "run", "shop:group", "--log-format", "json") as child:
        assert stopped(child) == 0
        line = json.loads(lines_of(child)[0])
    assert line["thing"] == "{1}"
    assert "shop.py" in line["stack"]
    assert line["time"].endswith("+00:00")
