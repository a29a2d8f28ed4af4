"""`status`: how a program stands, over real sockets."""

from __future__ import annotations

import inspect
import os
import pty
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from click.testing import CliRunner, Result

from servicegroup import Restart, ServiceGroup, State, with_start
from servicegroup.cli import _admin
from servicegroup.cli._standing import seconds
from servicegroup.cli.status import command
from servicegroup.observe._stream import BEHIND
from servicegroup.observe.admin import AdminServer
from tests.child import PATIENCE, Child
from tests.cli.admin import Waits, answering, ok, running
from tests.cli.idle import wait_until_idle
from tests.observe.test_health import wait_for

WATCH = """
from servicegroup.cli.status import command
command(["--watch", {port!r}])
"""


SECONDS = r"\d+\.\d+ s"  # little on a quiet machine


def status(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_a_group_that_is_ready_is_shown_and_the_exit_code_is_0() -> None:
    with running(Waits()) as shop:
        result = status(shop.port)
    assert result.exit_code == 0
    title, head, admin, waits = result.output.splitlines()
    assert title == f"group 'shop' is running, ready; pid {os.getpid()}"
    assert head.split("  ")[1] == "service"
    assert re.fullmatch(rf"  admin    running  {SECONDS} +{SECONDS}", admin)
    assert re.fullmatch(rf"  Waits    running  {SECONDS} +{SECONDS}", waits)


def test_one_that_is_not_ready_says_why_and_the_exit_code_is_1() -> None:
    class Orders(Waits):
        def check(self) -> None:
            raise ConnectionError("the database\x1b[2J is away")

    with running(Orders()) as shop:
        result = status(shop.port)
    assert result.exit_code == 1
    assert "group 'shop' is running, not ready;" in result.output
    assert result.output.splitlines()[-1] == (
        r"not ready: Orders: its check failed: ConnectionError: the database\x1b[2J is away"
    )


def test_parts_restarts_and_failures_are_shown() -> None:
    class Silent(Waits):
        heartbeat_timeout = 0.01

    def fails() -> None:
        raise ValueError("no\tsuch order")

    inner = ServiceGroup(name="inner")
    inner.add(Silent())
    with running(Waits()) as shop:
        shop.group.add(inner)
        forever = Restart(delay=1000, jitter=0)
        shop.group.add(with_start(fails), name="fails", on_failure=forever)
        wait_for(lambda: inner.status()[0].stalled)
        wait_for(lambda: shop.group.status()[-1].state is State.BACKING_OFF)
        lines = status(shop.port).output.splitlines()
    assert any(line.startswith("    inner/Silent  running, stalled  ") for line in lines)
    (row,) = [line for line in lines if line.startswith("  fails")]
    assert row.split("  ")[1:][0] == "fails"
    assert "backing off" in row
    assert row.endswith(r"ValueError: no\tsuch order")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, ""),
        (0.0123, "0.012 s"),
        (12.0, "12.0 s"),
        (184.0, "3 min 4 s"),
        (7_380.0, "2 h 3 min"),
        (93_600.0, "1 d 2 h"),
    ],
)
def test_seconds_are_as_one_reads_them(value: float | None, read: str) -> None:
    assert seconds(value) == read


def test_the_default_address_is_that_of_an_admin_server() -> None:
    default = inspect.signature(AdminServer).parameters
    assert f"http://{default['host'].default}:{default['port'].default}" == _admin.URL


@pytest.mark.parametrize("form", ["{}", "127.0.0.1:{}", "http://127.0.0.1:{}/", "localhost:{}"])
def test_an_address_may_be_short(form: str) -> None:
    with running() as shop:
        assert status(form.format(shop.port)).exit_code == 0


@pytest.mark.parametrize("wrong", ["ftp://localhost", "http://", "[::1", "localhost:http", "0"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    result = status(wrong)
    assert result.exit_code == 2
    assert f"{wrong!r} is no address of an admin server, as http://127.0.0.1:9090 is" in (
        result.output
    )


def test_where_nobody_listens_the_exit_code_is_3() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # so that nobody else does
        port = str(deaf.getsockname()[1])
        for arguments in ([port], ["--watch", port]):
            result = status(*arguments)
            assert result.exit_code == 3
            assert f"http://127.0.0.1:{port} does not answer: nobody listens there" in result.output


ODD = b'{"group": "g", "state": 7, "pid": 1, "now": 0, "services": [{"name": "a"}]}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "answers 401 Unauthorized: something before"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", "it answers 302 to /status.json: Foun"),
        (
            b"HTTP/1.1 421 No\r\nContent-Type: text/plain\r\n\r\nnot you\n",
            "421 to /status.json: not",
        ),
        (ok(b"<html>", b"text/html"), "its answer to /status.json is no JSON"),
        (ok(b"[" * 100_000), "its answer to /status.json is no JSON"),
        (ok(b"[]"), "its answer to /status.json is no JSON"),
        (ok(b'{"status": "up"}'), "what it tells is not the status of a group"),
        (ok(ODD), "what it tells is not the status of a group"),
        (b"220 mail.example ESMTP\r\n", "it does not speak HTTP"),
        (b"", "does not"),
    ],
)
def test_where_something_else_answers_it_says_so(answer: bytes, said: str) -> None:
    with answering(answer) as port:
        for arguments in ([port], ["--watch", port]):
            result = status(*arguments)
            assert result.exit_code == 3
            assert f"Error: http://127.0.0.1:{port} " in result.output
        assert said in status(port).output


def test_one_who_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_admin, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = status(str(silent.getsockname()[1]))
    assert result.exit_code == 3
    assert "there was no answer within 0 s" in result.output


# -- to watch -------------------------------------------------------------------------------------


def wait_for_line(child: Child, pattern: str) -> None:
    until = time.monotonic() + PATIENCE
    while not any(re.search(pattern, line) for line in child.lines):
        assert time.monotonic() < until, (pattern, child.lines, child.stderr)
        child.said()
        time.sleep(0.01)


def test_in_a_pipe_what_happens_is_a_line_each_until_the_end() -> None:
    with ExitStack() as ended, running(Waits()) as shop:
        child = ended.enter_context(Child(WATCH.format(port=shop.port)))
        child.wait_for("  Waits    running")
        shop.group.add(Waits(), name="late")
        wait_for_line(child, rf"^\d\d:\d\d:\d\d\.\d{{3}}  ServiceReady  late  {SECONDS}$")
        shop.group.stop("enough")
        wait_for_line(child, r"GroupStopping  shop  enough")
        child.wait_for("group 'shop': its admin server has ended")
        assert child.end() == 0
        assert child.stderr == ""


def test_a_watch_that_begins_during_the_stop_ends_with_it() -> None:
    release = threading.Event()
    slow = with_start(lambda stopping: stopping.wait(), release.wait)
    with ExitStack() as ended, running(Waits()) as shop:
        shop.group.add(slow, name="slow")
        shop.group.stop()
        wait_for(lambda: shop.group.status()[-1].state is State.STOPPING)
        child = ended.enter_context(Child(WATCH.format(port=shop.port)))
        child.wait_for("group 'shop' is stopping, not ready")
        release.set()
        assert child.end() == 0


def test_a_program_that_is_killed_is_missed() -> None:
    program = """
    from servicegroup.observe.admin import AdminServer

    group = ServiceGroup(name="shop")
    admin = group.add(AdminServer(group, port=0))
    group.add(Worker("api"))

    def tell(event):
        if isinstance(event, events.GroupReady):  # the last that the watch could hear
            say("port", admin.port)

    group.subscribe(tell)
    group.run()
    """
    with Child(program) as shop:
        port = shop.wait_for("port ").split()[1]
        with Child(WATCH.format(port=port)) as child:
            child.wait_for("  api")
            shop.send(signal.SIGKILL)
            assert child.end() == 3
            assert f"http://127.0.0.1:{port} has gone" in child.stderr


def test_a_stream_that_ends_too_early_is_begun_anew() -> None:
    with ExitStack() as ended, running(Waits()) as shop:
        child = ended.enter_context(Child(WATCH.format(port=shop.port)))
        child.wait_for("  Waits    running")
        shop.group.add(Waits(), name="late")
        wait_for_line(child, "ServiceReady  late")
        stream = shop.admin._stream
        with stream.changed:  # as if the watch had been too slow
            stream._listeners[0].waiting.extend([b""] * (BEHIND + 1))
            stream.changed.notify_all()
        child.wait_for("group 'shop' is running")
        child.wait_for("  late     running")
        shop.group.stop()
        assert child.end() == 0


def test_ctrl_c_ends_the_watch_with_130() -> None:
    with running(Waits()) as shop, Child(WATCH.format(port=shop.port)) as child:
        child.wait_for("  Waits    running")
        child.send(signal.SIGINT)
        assert child.end() == 130
        assert child.stderr == ""


# -- on a terminal --------------------------------------------------------------------------------


class Terminal:
    """What `child` shows on a terminal."""

    def __init__(self, child: Child, ours: int) -> None:
        self.child = child
        self._ours = ours
        self._shown = ""

    def wait_for(self, pattern: str) -> None:
        """What comes next."""
        until = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self._shown, re.DOTALL)):
            left = until - time.monotonic()
            assert left > 0, (pattern, self._shown, self.child.stderr)
            self._read(left)
        self._shown = self._shown[found.end() :]

    def switches(self) -> list[str]:
        """How often its threads have waited."""
        self._read(0.0)  # a terminal that is full would hold them up
        return self.child.stat("voluntary_ctxt_switches")

    def _read(self, seconds: float) -> None:
        if select.select([self._ours], [], [], seconds)[0]:
            self._shown += os.read(self._ours, 65536).decode()


@contextmanager
def on_terminal(*arguments: str, before: str = "") -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    try:
        with Child(
            f"""
            os.dup2(os.open({os.ttyname(theirs)!r}, os.O_RDWR | os.O_NOCTTY), 1)
            os.environ |= {{"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}}
            os.environ.pop("NO_COLOR", None)
            {before}
            from servicegroup.cli.status import command
            command({list(arguments)!r})
            """
        ) as child:
            yield Terminal(child, ours)
    finally:
        os.close(ours)
        os.close(theirs)


GREEN, YELLOW, RESET = r"\x1b\[32m", r"\x1b\[33m", r"\x1b\[0m"


def test_on_a_terminal_states_have_colours() -> None:
    with running(Waits()) as shop, on_terminal(shop.port) as terminal:
        terminal.wait_for(f"group 'shop' is running, ready.*Waits +{GREEN}running *{RESET}")
        assert terminal.child.end() == 0


def test_on_a_terminal_the_table_changes_and_the_cursor_comes_back() -> None:
    with ExitStack() as ended, running(Waits()) as shop:
        terminal = ended.enter_context(on_terminal("--watch", shop.port))
        terminal.wait_for(f"Waits +{GREEN}running")
        late = shop.group.add(Waits(), name="late")
        terminal.wait_for(f"late +{GREEN}running")
        late.mark_not_ready()
        terminal.wait_for(f"not ready;.*late +{YELLOW}running, not ready")
        terminal.child.send(signal.SIGINT)
        assert terminal.child.end() == 130
        terminal.wait_for(r"\x1b\[\?25h")


def test_while_nothing_happens_the_watch_does_not_wake_up() -> None:
    with running(Waits()) as shop, on_terminal("--watch", shop.port) as terminal:
        terminal.wait_for("Waits +.*running")
        wait_until_idle(terminal.switches)


def test_without_rich_it_says_what_to_install() -> None:
    with on_terminal("9090", before="sys.modules['rich'] = None") as terminal:
        assert terminal.child.end() == 1
        assert "need rich: pip install 'servicegroup[cli]'" in terminal.child.stderr
