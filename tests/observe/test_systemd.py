"""What systemd is told of a group, received by a real datagram socket."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import pytest

from servicegroup import Restart, Service, ServiceGroup, ServiceStatus, State, events, with_start
from servicegroup.observe import systemd
from servicegroup.observe.systemd import notify_systemd
from tests.child import Child
from tests.observe.test_health import wait_for

PATIENCE = 30.0


class Manager:
    """The receiving end, as systemd has it."""

    def __init__(self, kind: Literal["path", "abstract"], directory: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        if kind == "path":
            self.where = str(directory / "notify")
            self.socket.bind(self.where)
        else:
            name = f"servicegroup-test-{os.getpid()}-{id(self)}"
            self.where = f"@{name}"
            self.socket.bind(f"\0{name}")

    def receive(self) -> list[str]:
        """The lines of the next datagram."""
        return self.socket.recv(65536).decode().split("\n")

    def until(self, line: str) -> list[list[str]]:
        """All datagrams up to the first that has a line which begins with `line`."""
        found = [self.receive()]
        while not any(one.startswith(line) for one in found[-1]):
            found.append(self.receive())
        return found

    def fill(self) -> None:
        """Let nothing more go in."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(self.socket.getsockname())
            try:
                while True:
                    sender.send(b"x")
            except BlockingIOError:
                pass


class Steps:
    """The pause of a watchdog, that ends when the test says so."""

    def __init__(self) -> None:
        self.timeouts: SimpleQueue[float] = SimpleQueue()
        self._commands: SimpleQueue[bool] = SimpleQueue()

    def wait(self, timeout: float, /) -> bool:
        self.timeouts.put(timeout)
        return self._commands.get()

    def set(self) -> None:
        self._commands.put(True)

    def step(self) -> None:
        """Let one pause pass; return when what follows it is done."""
        self._commands.put(False)
        self.timeouts.get(timeout=PATIENCE)


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    made = Manager(request.param, tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", made.where)
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.socket.close()
    for watchdog in watchdogs():  # or the next test would find it
        watchdog.join(PATIENCE)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Watchdogs are due twice in ten seconds, which pass when the test says so."""
    made = Steps()
    real = systemd.Watchdog
    monkeypatch.setattr(
        systemd, "Watchdog", lambda group, interval, ping: real(group, interval, ping, made)
    )
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    return made


def waits(stopping: threading.Event) -> None:
    stopping.wait()


def shop(**options: float) -> ServiceGroup:
    group = ServiceGroup(name="shop", **options)  # type: ignore[arg-type]
    group.add(with_start(waits), name="database")
    group.add(with_start(waits), name="api")
    return group


def watchdogs() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "shop (systemd watchdog)"]


def test_a_group_tells_of_start_readiness_and_stop(manager: Manager) -> None:
    group = shop(shutdown_timeout=7.0)
    notify_systemd(group)
    with group:
        started = manager.until("READY=1")
        assert started == [
            ["STATUS=starting database"],
            ["STATUS=starting api"],
            ["READY=1", "STATUS=ready"],
        ]
    assert manager.until("STATUS=stopped") == [
        ["STOPPING=1", "STATUS=draining: the with block has ended", "EXTEND_TIMEOUT_USEC=9000000"],
        ["STATUS=stopping api: the with block has ended"],
        ["STATUS=stopping database: the with block has ended"],
        ["STATUS=stopped: the with block has ended"],
    ]


def test_without_systemd_nobody_listens_and_the_environment_stays(
    monkeypatch: pytest.MonkeyPatch, manager: Manager
) -> None:
    before = dict(os.environ)
    notify_systemd(shop())
    assert dict(os.environ) == before
    monkeypatch.delenv("NOTIFY_SOCKET")
    monkeypatch.setenv("WATCHDOG_USEC", "no number, and nobody looks")
    group = shop()
    notify_systemd(group)
    assert group._subscribers == []


def test_a_stop_without_limit_leaves_the_limit_to_the_unit(manager: Manager) -> None:
    group = shop(shutdown_timeout=math.inf)
    notify_systemd(group)
    with group:
        pass
    assert manager.until("STOPPING=1")[-1] == [
        *("STOPPING=1", "STATUS=draining: the with block has ended")
    ]


def test_readiness_of_a_nested_group_is_not_that_of_the_whole(manager: Manager) -> None:
    inner = ServiceGroup(name="inner")
    inner.add(with_start(waits), name="api")
    group = ServiceGroup(name="shop")
    group.add(inner)
    notify_systemd(group)
    with group:
        started = manager.until("READY=1")
        assert ["STATUS=starting inner/api"] in started
    stopped = manager.until("STATUS=stopped")
    assert ["STATUS=stopping inner/api: the with block has ended"] in stopped
    told = [line for lines in (*started, *stopped) for line in lines]
    assert told.count("READY=1") == told.count("STOPPING=1") == 1


def test_readiness_that_comes_and_goes_is_told_as_status_and_ready_only_once(
    manager: Manager, steps: Steps
) -> None:
    class Comes(Service):
        ready_when = "announced"

        def start(self) -> None:
            self.mark_ready()
            self.stopping.wait()

    group = ServiceGroup(name="shop")
    service = group.add(Comes())
    notify_systemd(group)
    with group:
        manager.until("WATCHDOG=1")
        service.mark_not_ready()
        assert manager.receive() == ["STATUS=not ready: Comes"]
        service.mark_ready()
        assert manager.receive() == ["STATUS=ready"]
        service.mark_not_ready()
        assert manager.receive() == ["STATUS=not ready: Comes"]
        assert len(watchdogs()) == 1


def test_one_that_was_never_ready_says_only_that_it_stops(manager: Manager) -> None:
    def fails() -> None:
        raise ConnectionError("no\nbroker")

    group = ServiceGroup(name="shop")
    group.add(with_start(waits), name="api")
    group.add(with_start(fails), name="broker", ready_when="returned")
    notify_systemd(group)
    with pytest.raises(ExceptionGroup):
        group.start()
    told = manager.until("STATUS=stopped")
    assert ["READY=1", "STATUS=ready"] not in told
    reason = "service 'broker' failed: ConnectionError: no"
    assert told[-1] == [f"STATUS=stopped: {reason}"]


def test_a_group_that_is_started_again_is_ready_again(manager: Manager) -> None:
    group = shop()
    notify_systemd(group)
    for _ in range(2):
        with group:
            assert manager.until("READY=1")
        manager.until("STATUS=stopped")


def test_a_group_that_is_ready_already_is_told_at_once(manager: Manager) -> None:
    group = shop()
    told = SimpleQueue[events.Event]()
    group.subscribe(told.put)
    with group:
        while not isinstance(told.get(timeout=PATIENCE), events.GroupReady):
            pass
        notify_systemd(group)
        assert manager.receive() == ["READY=1", "STATUS=ready"]


def test_a_status_is_one_line_of_what_systemd_takes(manager: Manager) -> None:
    with shop() as group:
        notify_systemd(group)
        group.stop("a\nb\0\ud800" + "ü" * 5000)
        told = manager.until("STOPPING=1")[-1]
    assert told[1].startswith("STATUS=draining: a b  ü")
    assert len("\n".join(told).encode()) < 4096
    assert len(told) == 3


def test_a_restart_is_told(manager: Manager) -> None:
    tries: list[int] = []

    def comes_back(stopping: threading.Event) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError
        stopping.wait()

    group = ServiceGroup(name="shop", on_failure=Restart(delay=0.0, jitter=0.0))
    group.add(with_start(comes_back), name="broker")
    notify_systemd(group)
    with group:
        manager.until("STATUS=restart 1 of broker in 0.0 s")
        manager.until("STATUS=starting broker")


# -- the watchdog ---------------------------------------------------------------------------------


def test_the_watchdog_is_told_twice_in_its_time_from_ready_to_stopping(
    manager: Manager, steps: Steps
) -> None:
    group = shop()
    notify_systemd(group)
    assert watchdogs() == []
    with group:
        manager.until("READY=1")
        assert manager.receive() == ["WATCHDOG=1"]
        assert steps.timeouts.get(timeout=PATIENCE) == 5.0
        for _ in range(3):
            steps.step()
            assert manager.receive() == ["WATCHDOG=1"]
        (watchdog,) = watchdogs()
    told = manager.until("STATUS=stopped")
    assert told[0][0] == "STOPPING=1"
    assert ["WATCHDOG=1"] not in told
    watchdog.join(PATIENCE)
    assert not watchdog.is_alive()


def test_no_ping_follows_the_beginning_of_the_stop(manager: Manager, steps: Steps) -> None:
    """Not even one that was under way: it would have systemd watch again."""
    group = shop()
    notify_systemd(group)
    with group:
        manager.until("WATCHDOG=1")
        real = group.status

        def meanwhile() -> tuple[ServiceStatus, ...]:
            group.stop()
            told = manager.until("STATUS=stopped")
            assert told[0][0] == "STOPPING=1"
            return real()

        group.status = meanwhile  # type: ignore[method-assign]
        steps.timeouts.get(timeout=PATIENCE)
        (watchdog,) = watchdogs()
        steps._commands.put(False)
        watchdog.join(PATIENCE)
    assert_silent(manager)


@pytest.mark.parametrize("sick", [{"stalled": True}, {"state": State.ABANDONED}])
def test_a_sick_service_silences_the_watchdog_at_any_depth(
    manager: Manager, steps: Steps, sick: dict[str, object]
) -> None:
    state = sick.pop("state", State.RUNNING)
    bad = ServiceStatus(name="a/b/c", state=state, **sick)  # type: ignore[arg-type]
    sick.setdefault("state", state)
    for name in ("a/b", "a"):
        bad = ServiceStatus(name=name, state=State.RUNNING, parts=(bad,))
    good = ServiceStatus(name="good", state=State.RUNNING)
    group = shop()
    notify_systemd(group)
    with group:
        manager.until("WATCHDOG=1")
        steps.timeouts.get(timeout=PATIENCE)
        group.status = lambda: (good, bad)  # type: ignore[method-assign]
        steps.step()
        assert_silent(manager)
        group.status = lambda: (good,)  # type: ignore[method-assign]
        steps.step()
        assert manager.receive() == ["WATCHDOG=1"]


def test_a_watchdog_that_cannot_see_does_not_bite(
    manager: Manager, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    def blind() -> tuple[ServiceStatus, ...]:
        raise ValueError("no status")

    group = shop()
    notify_systemd(group)
    with group:
        manager.until("WATCHDOG=1")
        steps.timeouts.get(timeout=PATIENCE)
        group.status = blind  # type: ignore[method-assign]
        steps.step()
        assert manager.receive() == ["WATCHDOG=1"]
        assert "its status cannot be had" in caplog.text


def test_a_watchdog_of_another_process_is_not_ours(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    group = shop()
    notify_systemd(group)
    with group:
        manager.until("READY=1")
        assert watchdogs() == []
    assert ["WATCHDOG=1"] not in manager.until("STATUS=stopped")


def test_with_its_own_pid_it_pings_by_the_real_clock(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    group = shop()
    notify_systemd(group)
    with group:
        for _ in range(3):
            manager.until("WATCHDOG=1")
        group.stop()
        manager.until("STOPPING=1")  # pings that nobody reads would hold it up


def test_without_a_watchdog_there_is_no_thread_for_it(manager: Manager) -> None:
    group = shop()
    notify_systemd(group)
    with group:
        manager.until("READY=1")
        assert watchdogs() == []


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_socket_that_is_gone_is_logged_once_and_changes_nothing(
    manager: Manager, caplog: pytest.LogCaptureFixture, steps: Steps
) -> None:
    manager.socket.close()
    if manager.where[0] == "/":
        Path(manager.where).unlink()
    group = shop()
    notify_systemd(group)
    with group:
        for _ in range(3):
            steps.timeouts.get(timeout=PATIENCE)
            steps._commands.put(False)
        assert group.is_ready
    assert group.wait(PATIENCE).exit_code == 0
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith("group 'shop': systemd could not be told READY=1: ")


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_one_who_took_the_place_of_another_is_told(
    manager: Manager, caplog: pytest.LogCaptureFixture, steps: Steps, tmp_path: Path
) -> None:
    group = shop()
    notify_systemd(group)
    with group:
        manager.until("WATCHDOG=1")
        steps.timeouts.get(timeout=PATIENCE)
        manager.socket.close()
        Path(manager.where).unlink()
        manager.__init__("path", tmp_path)  # type: ignore[misc]
        steps.step()
        assert manager.receive() == ["WATCHDOG=1"]
    manager.until("STATUS=stopped")
    assert not caplog.records


def test_what_only_informs_never_waits_and_the_rest_not_for_ever(
    manager: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "SEND_SECONDS", 0.01)
    manager.fill()
    waited: list[float | None] = []
    settimeout = socket.socket.settimeout

    def noting(self: socket.socket, seconds: float | None) -> None:
        waited.append(seconds)
        settimeout(self, seconds)

    monkeypatch.setattr(socket.socket, "settimeout", noting)
    group = shop()
    notify_systemd(group)
    with group:
        pass
    assert group.wait(PATIENCE).exit_code == 0
    wait_for(lambda: len(waited) >= 7)
    assert sorted(str(one) for one in waited) == ["0.0"] * 5 + ["0.01"] * 2
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(told) == 1
    assert "READY=1: TimeoutError" in told[0]


def test_one_who_waits_does_not_spin(manager: Manager) -> None:
    manager.fill()
    notifier = systemd._Notifier(ServiceGroup(), systemd._address(manager.where), None)
    used = time.thread_time()
    notifier._send(["READY=1"], 0.5)
    assert time.thread_time() - used < 0.25


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NOTIFY_SOCKET", "relative", "NOTIFY_SOCKET must be a path from / on"),
        ("NOTIFY_SOCKET", "vsock:2:1234", "NOTIFY_SOCKET must be a path from / on"),
        ("WATCHDOG_USEC", "soon", "WATCHDOG_USEC must be a whole number above 0"),
        ("WATCHDOG_USEC", "0", "WATCHDOG_USEC must be a whole number above 0"),
        ("WATCHDOG_PID", "-1", "WATCHDOG_PID must be a whole number above 0"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        notify_systemd(shop())


def test_what_is_no_group_is_refused(manager: Manager) -> None:
    with pytest.raises(TypeError, match="takes a ServiceGroup, not 'shop'"):
        notify_systemd("shop")  # type: ignore[arg-type]


def assert_silent(manager: Manager) -> None:
    """Nothing is there to be received."""
    manager.socket.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        manager.receive()
    manager.socket.settimeout(PATIENCE)


# -- the whole ------------------------------------------------------------------------------------

PROGRAM = """
from servicegroup import _run
from servicegroup.observe.systemd import notify_systemd

_run.FLUSH_SECONDS = 30.0  # the subscribers' thread may come late

group = group_of("database", "api", name="shop", drain_delay=0.1, shutdown_timeout=28.0)
notify_systemd(group)
group.run()
"""


def test_a_program_under_systemd_from_start_through_drain_to_stop(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So slow that they do not fill the socket while this thread stands still: what only informs
    # would be lost.
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    with Child(PROGRAM) as child:
        told = manager.until("READY=1")
        told += manager.until("WATCHDOG=1")
        told += manager.until("WATCHDOG=1")
        child.send(signal.SIGTERM)
        told += manager.until("STOPPING=1")
        told += manager.until("STATUS=stopped")
        assert child.end() == 0
    assert_silent(manager)
    lines = [line for one in told for line in one]
    assert [line for line in lines if line != "WATCHDOG=1"] == [
        "STATUS=starting database",
        "STATUS=starting api",
        "READY=1",
        "STATUS=ready",
        "STOPPING=1",
        "STATUS=draining: SIGTERM",
        "EXTEND_TIMEOUT_USEC=30000000",
        "STATUS=stopping api: SIGTERM",
        "STATUS=stopping database: SIGTERM",
        "STATUS=stopped: SIGTERM",
    ]
    watched = [number for number, line in enumerate(lines) if line == "WATCHDOG=1"]
    assert lines.index("READY=1") < watched[0]
    assert watched[-1] < lines.index("STOPPING=1")
