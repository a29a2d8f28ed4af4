"""`run --reload`, in processes as a developer has them."""

from __future__ import annotations

import http.client
import os
import pty
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servicegroup._exit import REPEAT_SECONDS
from servicegroup.cli._watch import directories
from tests.child import PATIENCE, Child
from tests.cli.idle import wait_until_idle

APP = """
import os, sys, time
from servicegroup import Service, ServiceGroup

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Worker(Service):
    def __init__(self, name):
        self.name = name
    def start(self):
        say("up", self.name, VERSION, os.getpid())
        self.stopping.wait()
    def stop(self):
        say("stopping", self.name, VERSION)
        STOP
        self.stopping.set()

group = ServiceGroup(name="shop", drain_delay=100, shutdown_timeout=120, on_failure="continue")
group.add(Worker("first"))
group.add(Worker("last"))
"""

RELOAD = """
os.chdir({directory!r})
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # it is there by default
from servicegroup.cli import _link, main, reload
{before}
sys.argv = ["servicegroup", "run", "--reload", "app:group"]
main()
"""


def write(directory: Path, version: object, stop: str = "pass", before: str = "") -> None:
    """Another version of the program, of the same second, and often of the same size."""
    text = before + APP.replace("VERSION", str(version)).replace("STOP", stop)
    new = directory / "new"
    new.write_text(text)
    os.utime(new, (1e9, 1e9))
    new.replace(directory / "app.py")


def reloading(directory: Path, before: str = "") -> Child:
    return Child(RELOAD.format(directory=str(directory), before=before))


def is_alive(pid: int) -> bool:
    try:
        # A zombie has ended: whose child it has become may be slow to notice.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ended(pid: int) -> None:
    until = time.monotonic() + PATIENCE
    while is_alive(pid):
        assert time.monotonic() < until, f"process {pid} is left behind"
        time.sleep(0.01)


def pid_of(line: str) -> int:
    return int(line.split()[-1])


def test_an_edit_stops_the_last_first_and_starts_afresh(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with reloading(tmp_path) as child:
        first = pid_of(child.wait_for("up last 1"))
        write(tmp_path, 2)
        child.wait_for("stopping last 1")
        child.wait_for("stopping first 1")
        second = pid_of(child.wait_for("up last 2"))
        assert first != second
        assert not is_alive(first)
        child.send(signal.SIGTERM)
        assert child.end() == 0
        assert child.said("stopping")[-2:] == ["stopping last 2", "stopping first 2"]
        assert not is_alive(second)
        assert "servicegroup: app.py changed" in child.stderr
        assert "exit code 0: app.py changed" in child.stderr  # the report of the first
        assert "exit code 0: SIGTERM" in child.stderr


def test_an_edit_of_the_same_second_and_size_is_an_edit(tmp_path: Path) -> None:
    write(tmp_path, 0)
    with reloading(tmp_path) as child:
        for version in range(1, 6):
            child.wait_for(f"up last {version - 1}")
            write(tmp_path, version)
        child.wait_for("up last 5")


def test_many_edits_at_once_are_one(tmp_path: Path) -> None:
    write(tmp_path, 0)
    with reloading(tmp_path) as child:
        child.wait_for("up last 0")
        for version in range(1, 101):
            write(tmp_path, version)
        child.wait_for("up last 100")
        assert len(child.said("up")) < 2 * 20


def test_a_syntax_error_is_shown_and_the_next_edit_recovers(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with reloading(tmp_path) as child:
        child.wait_for("up last 1")
        write(tmp_path, 2, before="say('stopping oops'\n")
        child.wait_for("stopping first 1")
        wait_for_stderr(child, "it ended with exit code 1; an edit starts it again")
        assert "SyntaxError" in child.stderr
        write(tmp_path, 3)
        child.wait_for("up last 3")


def wait_for_stderr(child: Child, text: str, times: int = 1) -> None:
    until = time.monotonic() + PATIENCE
    while child.stderr.count(text) < times:
        assert time.monotonic() < until, child.stderr
        time.sleep(0.01)


def test_a_program_that_is_broken_from_the_start_waits_for_an_edit(tmp_path: Path) -> None:
    write(tmp_path, 1, before="import nothing_of_this_name\n")
    with reloading(tmp_path) as child:
        wait_for_stderr(child, "an edit starts it again")
        child.send(signal.SIGINT)
        assert child.end() == 1


def test_an_edit_while_it_is_imported_is_not_lost(tmp_path: Path) -> None:
    write(tmp_path, 1, before="import os, time; os.write(1, b'importing\\n'); time.sleep(1000)\n")
    with reloading(tmp_path) as child:
        child.wait_for("importing")
        write(tmp_path, 2)
        child.wait_for("up last 2")


def test_one_that_hangs_in_its_import_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.write(1, b'importing %d\\n' % os.getpid()); time.sleep(1000)\n"
    )
    write(tmp_path, 1, before=deaf)
    with reloading(tmp_path, "_link.IMPORT_SECONDS = 0.1") as child:
        pid = pid_of(child.wait_for("importing"))
        write(tmp_path, 2)
        child.wait_for("up last 2")
        assert not is_alive(pid)
        assert "it did not end, and is killed" in child.stderr


def test_the_exit_code_is_that_of_the_program(tmp_path: Path) -> None:
    write(tmp_path, 1, stop="self.stopping.set(); sys.exit(3)")
    with reloading(tmp_path) as child:
        child.wait_for("up last 1")
        child.send(signal.SIGTERM)
        assert child.end() == 3


def test_a_second_signal_ends_it_though_a_stop_hangs(tmp_path: Path) -> None:
    write(tmp_path, 1, stop="time.sleep(1000)")
    with reloading(tmp_path, "reload.LAST_SECONDS = 0.1") as child:
        pid = pid_of(child.wait_for("up last 1"))
        child.send(signal.SIGTERM)
        child.wait_for("stopping last 1")
        time.sleep(2 * REPEAT_SECONDS)  # sooner, it would be the first one delivered twice
        child.send(signal.SIGTERM)
        assert child.end() == 128 + signal.SIGKILL
        assert not is_alive(pid)


def test_a_program_whose_reloader_is_killed_ends_in_good_order(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with reloading(tmp_path) as child:
        pid = pid_of(child.wait_for("up last 1"))
        child.send(signal.SIGKILL)
        child.wait_for("stopping last 1")
        child.wait_for("stopping first 1")
        wait_until_ended(pid)
        wait_for_stderr(child, "exit code 0: run --reload has gone")


@contextmanager
def on_terminal(directory: Path) -> Iterator[tuple[Child, int]]:
    """A reloader whose stdin is a terminal, and what types there."""
    ours, theirs = pty.openpty()
    terminal = f"os.setsid(); os.dup2(os.open({os.ttyname(theirs)!r}, os.O_RDWR), 0)"
    try:
        with Child(terminal, RELOAD.format(directory=str(directory), before="")) as child:
            yield child, ours
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_program_whose_reloader_is_killed_during_the_import_ends(tmp_path: Path) -> None:
    waits = """
import os, time
os.write(1, b"importing %d\\n" % os.getpid())
while not os.path.exists("go"):
    time.sleep(0.01)
"""
    write(tmp_path, 1, before=waits)
    with reloading(tmp_path) as child:
        pid = pid_of(child.wait_for("importing"))
        child.send(signal.SIGKILL)
        child.process.wait()
        (tmp_path / "go").touch()
        wait_for_stderr(child, "exit code 0: run --reload has gone")
        wait_until_ended(pid)


def test_ctrl_c_on_a_terminal_reaches_the_program_once(tmp_path: Path) -> None:
    write(tmp_path, 1, stop=f"say('held'); time.sleep({3 * REPEAT_SECONDS})")
    with on_terminal(tmp_path) as (child, terminal):
        child.wait_for("up last 1")
        child.send(signal.SIGSTOP)
        os.write(terminal, b"\x03")
        child.wait_for("held")
        time.sleep(2 * REPEAT_SECONDS)  # one that were passed on now would end it at once
        child.send(signal.SIGCONT)
        child.wait_for("stopping first 1")
        assert child.end() == 0
        assert "exit code 0: SIGINT" in child.stderr


def test_the_program_reads_from_the_terminal(tmp_path: Path) -> None:
    write(tmp_path, 1, before="import os; os.write(1, b'typed ' + os.read(0, 100))\n")
    with on_terminal(tmp_path) as (child, terminal):
        os.write(terminal, b"words\n")
        child.wait_for("typed words")
        child.wait_for("up last 1")


def test_while_nothing_changes_only_the_watch_wakes_up(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with reloading(tmp_path) as child:
        child.wait_for("up last 1")
        main = Path(f"/proc/{child.pid}/task/{child.pid}/status")
        wait_until_idle(lambda: re.findall(r"^voluntary_ctxt_switches.*", main.read_text(), re.M))


def test_what_is_watched_is_here_and_where_the_target_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    package = elsewhere / "shop"
    for directory in (here, package):
        directory.mkdir(parents=True)
    (package / "__init__.py").touch()
    (elsewhere / "single.py").touch()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(elsewhere)
    assert directories(["--admin", "127.0.0.1:9090", "shop.main:group"]) == [package, here]
    assert directories(["single:group"]) == [elsewhere, here]
    monkeypatch.setitem(sys.modules, "without_spec", types.ModuleType("without_spec"))
    assert directories(["nothing_of_this_name:group", "without_spec:group"]) == [here]
    monkeypatch.chdir(tmp_path)
    assert directories(["shop:group"]) == [tmp_path]


def test_without_watchfiles_it_says_what_to_install(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with reloading(tmp_path, "sys.modules['watchfiles'] = None") as child:
        assert child.end() == 1
        assert "--reload needs watchfiles: pip install 'servicegroup[cli]'" in child.stderr


# -- under load -----------------------------------------------------------------------------------

SERVER = """
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from servicegroup import ServiceGroup
from servicegroup.adapters import socketserver
from servicegroup.adapters.socketserver import SocketServer

socketserver.FIRST_WORD = 30.0  # a client may stand still between its connect() and its request

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"VERSION" * 1000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_arguments):
        pass

os.write(1, b"pid %d\\n" % os.getpid())
group = ServiceGroup(name="shop", stop_timeout=30.0)
group.add(SocketServer(ThreadingHTTPServer, ("127.0.0.1", PORT), Handler))
"""


class Client(threading.Thread):
    """Asks on and on; a new connection for each answer."""

    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.over = port, over
        self.answered = 0
        self.broken: list[str] = []
        self.version = b""

    def run(self) -> None:
        while not self.over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                connection.request("GET", "/")
            except ConnectionError:  # between two versions nobody listens
                self.over.wait(0.002)
                continue
            try:
                body = connection.getresponse().read()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
            else:
                self.answered += 1
                self.version = body[: len(body) // 1000]
            finally:
                connection.close()


@pytest.mark.slow
def test_thirty_edits_under_load_lose_no_port_and_leak_no_process(
    tmp_path: Path, free_port: int
) -> None:
    def save(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        new.replace(tmp_path / "app.py")  # there is never half of it to be seen

    def edit(version: int) -> None:
        save(SERVER.replace("VERSION", f"{version:03}").replace("PORT", str(free_port)))

    edit(0)
    over = threading.Event()
    clients = [Client(free_port, over) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        with reloading(tmp_path) as child:
            for version in range(31):
                if version % 5 == 4:
                    save("group = = 1\n")
                    wait_for_stderr(child, "an edit starts it again", times=version // 5 + 1)
                if version:
                    edit(version)
                wait_until_served(clients, f"{version:03}".encode(), child)
            child.send(signal.SIGTERM)
            assert child.end() == 0
            assert "in use" not in child.stderr
            assert "is killed" not in child.stderr
            assert not [line for line in child.said("pid") if is_alive(pid_of(line))]
    finally:
        over.set()
        for client in clients:
            client.join(PATIENCE)
    assert [client.broken for client in clients] == [[]] * 4
    assert min(client.answered for client in clients) > 30


def wait_until_served(clients: list[Client], version: bytes, child: Child) -> None:
    until = time.monotonic() + PATIENCE
    while any(client.version != version for client in clients):
        assert time.monotonic() < until, child.stderr
        time.sleep(0.01)
