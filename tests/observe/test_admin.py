"""The admin server: probes, stacks, events and the page, over real sockets."""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from servicegroup import Service, ServiceGroup, ServiceGroupError, State, events, with_start
from servicegroup.observe import admin as module
from servicegroup.observe.admin import TELL_SECONDS, AdminServer
from servicegroup.testing import FakeClock
from tests.observe.test_health import PATIENCE, Announces, started, wait_for

PROBES = "/readyz", "/livez"
TOKEN = "a token that is long enough"


def waits() -> Service:
    return with_start(lambda stopping: stopping.wait())


def ask(
    admin: AdminServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    assert admin.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", admin.port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the stop of servers wait for threads that come late."""
    monkeypatch.setattr(module, "TELL_SECONDS", PATIENCE)
    monkeypatch.setattr(module, "LAST_SECONDS", PATIENCE)


@contextmanager
def running(group: ServiceGroup, admin: AdminServer) -> Iterator[None]:
    with started(group):
        wait_for(lambda: admin.port is not None)
        yield


def test_probes_answer_200_or_503_with_the_reasons() -> None:
    group = ServiceGroup(name="shop")
    admin = group.add(AdminServer(group, port=0))
    api = group.add(Announces())
    with running(group, admin):
        assert ask(admin, "/livez")[::2] == (200, "ok\n")
        assert ask(admin, "/startupz")[0] == 503
        code, _, text = ask(admin, "/readyz")
        assert code == 503
        assert "[-] api: it is starting, and not ready" in text
        api.go.set()
        group.wait_ready(PATIENCE)
        assert ask(admin, "/startupz")[::2] == (200, "ok\n")
        assert ask(admin, "/readyz")[::2] == (200, "ok\n")
        assert "[+] api: ok" in ask(admin, "/readyz?verbose")[2]
        code, headers, text = ask(admin, "/readyz", Accept="application/json")
        assert headers["Content-Type"] == "application/json"
        assert json.loads(text)["ok"] is True
        assert ask(admin, "/readyz", "HEAD")[::2] == (200, "")
        code, _, text = ask(admin, "/nowhere")
        assert code == 404
        assert "/livez" in text


class Probed(Announces):
    """It asks for the verdicts while it drains and stops, and knows since when it may be ready."""

    def __init__(self, name: str, admin: AdminServer) -> None:
        super().__init__(name)
        self.go.set()
        self.ready_at = math.inf
        self.codes: list[int] = []
        self._admin = admin

    def start(self) -> None:
        self.ready_at = time.monotonic()
        super().start()

    def drain(self) -> None:
        self.codes += [ask(self._admin, path)[0] for path in PROBES]

    def stop(self) -> None:
        self.codes += [ask(self._admin, path)[0] for path in PROBES]
        super().stop()


@pytest.mark.parametrize("times", [pytest.param(20, marks=pytest.mark.slow), 2])
def test_probes_tell_the_truth_through_start_drain_and_stop(times: int) -> None:
    for _ in range(times):
        group = ServiceGroup(drain_delay=0.1)
        admin = group.add(AdminServer(group, port=0))
        services = [group.add(Probed(name, admin)) for name in ("one", "two")]
        seen: list[tuple[float, float, list[int]]] = []  # asked when, answered when, what
        told: list[events.Event] = []
        group.subscribe(told.append)
        with running(group, admin):
            over = threading.Event()
            prober = threading.Thread(target=_probe, args=(admin, seen, over))
            prober.start()
            group.wait_ready(PATIENCE)
            wait_for(lambda seen=seen: any(codes == [200, 200] for *_, codes in seen))  # type: ignore[misc]
            group.stop()
            group.wait(PATIENCE)
            over.set()
            prober.join(PATIENCE)
        wait_for(lambda told=told: any(isinstance(one, events.GroupStopped) for one in told))  # type: ignore[misc]
        draining = next(one for one in told if isinstance(one, events.GroupDraining))
        for asked, answered, (ready, live) in seen:
            assert live == 200
            if asked > draining.monotonic:
                assert ready == 503
            if ready == 200:
                assert all(one.ready_at < answered for one in services)
        # It answered until every other service had stopped.
        assert [one.codes for one in services] == 2 * [[503, 200, 503, 200]]
        stopped = {one.service: one for one in told if isinstance(one, events.ServiceStopped)}
        stopping = {one.service: one for one in told if isinstance(one, events.ServiceStopping)}
        assert stopped["one"].monotonic <= stopping["admin"].monotonic


def _probe(
    admin: AdminServer, seen: list[tuple[float, float, list[int]]], over: threading.Event
) -> None:
    port = admin.port
    assert port is not None
    while not over.wait(0.01):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            asked = time.monotonic()
            codes = []
            for path in PROBES:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                codes.append(answer.status)
            connection.close()
        except OSError:
            return
        seen.append((asked, time.monotonic(), codes))


def where(admin: AdminServer) -> str:
    """Where its second service is, as its page shows."""
    status = json.loads(ask(admin, "/status.json")[2])
    return status["services"][1]["where"] or ""


def test_status_and_stacks_show_where_a_slow_stop_hangs(fake_clock: FakeClock) -> None:
    release = threading.Event()

    class Hangs(Service):
        def start(self) -> None:
            release.wait()  # here it hangs

    group = ServiceGroup(stop_timeout=2.0)
    fake_clock.control(group)  # not the server, which is added later
    admin = group.add(AdminServer(group, port=0))
    group.add(Hangs())
    with running(group, admin):
        group.wait_ready(PATIENCE)
        assert "release.wait()" in ask(admin, "/stacks")[2]
        group.stop()
        wait_for(lambda: "release.wait()  # here it hangs" in where(admin))
        fake_clock.advance(2.0)
    release.set()
    with pytest.raises(ServiceGroupError) as raised:
        group.wait(PATIENCE)
    assert "release.wait()" in (raised.value.report.services[1].stack or "")


def test_a_stop_that_hangs_is_shown_too() -> None:
    release = threading.Event()
    group = ServiceGroup()
    admin = group.add(AdminServer(group, port=0))
    group.add(with_start(lambda stopping: stopping.wait(), release.wait), name="api")
    with group:
        group.stop()
        wait_for(lambda: "(stopping)" in where(admin))
        release.set()


def test_events_are_streamed_and_end_with_the_server() -> None:
    group = ServiceGroup()
    admin = group.add(AdminServer(group, port=0))
    seen = threading.Event()
    with group, ExitStack() as opened:
        connection = http.client.HTTPConnection("127.0.0.1", admin.port or 0, timeout=PATIENCE)
        opened.callback(connection.close)
        connection.request("GET", "/events")
        answer = opened.enter_context(connection.getresponse())
        assert answer.getheader("Content-Type") == "text/event-stream"
        assert answer.readline() == b"retry: 1000\n"
        group.add(with_start(lambda stopping: stopping.wait(), seen.wait), name="api")
        lines = iter(answer.readline, b"")
        # Those of the start may be among them, for they are told on a thread of their own.
        data = next(line for line in lines if b"ServiceReady" in line and b"admin" not in line)
        assert json.loads(data.partition(b": ")[2])["service"] == "api"
        group.stop()
        assert any(b"GroupStopping" in line for line in lines)
        seen.set()
        assert all(b"event" in line or line in (b"\n",) or b"id:" in line for line in lines)


def test_who_listens_hears_of_the_stop_though_it_is_told_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patient(monkeypatch)
    group = ServiceGroup(stop_timeout=3 * PATIENCE, shutdown_timeout=math.inf)

    def late(event: events.Event) -> None:
        if isinstance(event, events.GroupStopping):
            wait_for(lambda: group.status()[0].state is State.STOPPING)
            time.sleep(TELL_SECONDS / 5)  # a stop that does not wait is over by then

    group.subscribe(late)
    admin = group.add(AdminServer(group, port=0))
    with group, ExitStack() as opened:
        connection = http.client.HTTPConnection("127.0.0.1", admin.port or 0, timeout=PATIENCE)
        opened.callback(connection.close)
        connection.request("GET", "/events")
        answer = opened.enter_context(connection.getresponse())
        assert answer.readline() == b"retry: 1000\n"
        group.stop()
        assert any(b"ServiceStopping" in line for line in iter(answer.readline, b""))


def test_the_events_that_are_kept_are_bounded() -> None:
    group = ServiceGroup()
    admin = AdminServer(group, port=0)
    for number in range(3_000):
        admin._snapshot.note(
            events.ServiceReady(group="group", service=str(number), time=0.0, monotonic=0.0)
        )
    kept = admin._snapshot.now()["events"]
    assert isinstance(kept, list)
    assert len(kept) == 1_000
    assert kept[-1]["service"] == "2999"


def test_an_event_that_is_kept_does_not_keep_its_error() -> None:
    class Lost(Exception):
        pass

    error = Lost()
    seen = weakref.ref(error)
    admin = AdminServer(ServiceGroup(), port=0)
    admin._snapshot.note(
        events.ServiceFailed(group="group", service="api", time=0.0, monotonic=0.0, error=error)
    )
    del error
    assert seen() is None
    assert "Lost" in str(admin._snapshot.now()["events"])


def test_a_stop_is_asked_for_with_the_token_only(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)  # its answer is sent while it stops
    group = ServiceGroup(stop_timeout=2 * PATIENCE, shutdown_timeout=math.inf)
    admin = group.add(AdminServer(group, port=0, token=TOKEN))
    group.add(waits())
    with started(group) as thread:
        wait_for(lambda: admin.port is not None)
        assert ask(admin, "/stop")[0] == 404
        assert ask(admin, "/stop", "POST")[0] == 401
        assert ask(admin, "/stop", "POST", Authorization="Bearer wrong")[0] == 401
        assert ask(admin, "/livez", "POST", Authorization=f"Bearer {TOKEN}")[0] == 405
        assert ask(admin, "/stop", "POST", Authorization=f"Bearer {TOKEN}")[0] == 202
        thread.join(PATIENCE)
    assert group.wait(PATIENCE).reason == "asked for by POST /stop"


def test_without_a_token_nothing_can_be_stopped() -> None:
    group = ServiceGroup()
    admin = group.add(AdminServer(group, port=0))
    with running(group, admin):
        assert ask(admin, "/stop", "POST", Authorization="Bearer ")[0] == 405
    with pytest.raises(ValueError, match="16 characters or more"):
        AdminServer(group, token="short")


def test_a_name_that_was_made_to_lead_here_is_refused() -> None:
    group = ServiceGroup()
    admin = group.add(AdminServer(group, port=0))
    with running(group, admin):
        assert ask(admin, "/status.json", Host="evil.example:80")[0] == 421
        assert ask(admin, "/livez", Host="localhost:9090")[0] == 200
        assert ask(admin, "/livez", Host="[::1]:9090")[0] == 200


def test_answers_have_the_headers_that_browsers_ask_for() -> None:
    group = ServiceGroup()
    admin = group.add(AdminServer(group, port=0))
    with running(group, admin):
        for path in ("/", "/livez", "/status.json"):
            headers = ask(admin, path)[1]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert headers["Cache-Control"] == "no-store"
        assert "http://" not in ask(admin, "/")[2].replace("http://www.w3.org/2000/svg", "")


def test_added_later_it_works_and_says_why_first_is_better(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = ServiceGroup()
    group.add(waits(), name="api")
    admin = group.add(AdminServer(group, port=0))
    with group:
        assert ask(admin, "/livez")[0] == 200
    assert "Add it first" in caplog.text


def test_added_first_nothing_is_said_and_it_does_not_keep_the_group(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = ServiceGroup()
    group.add(AdminServer(group, port=0))
    group.add(with_start(lambda: None), name="done")
    group.start()
    assert "Add it first" not in caplog.text


def test_slow_and_broken_clients_neither_hold_up_probes_nor_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 10 * PATIENCE)  # they hold out longer
    group = ServiceGroup(stop_timeout=3 * PATIENCE, shutdown_timeout=math.inf)
    admin = group.add(AdminServer(group, port=0))
    with ExitStack() as opened:
        with group:
            for number in range(200):
                client = opened.enter_context(
                    socket.create_connection(("127.0.0.1", admin.port or 0))
                )
                client.sendall(
                    [b"GET /li", b"\x00\xff\r\n", b"GET /events HTTP/1.1\r\n\r\n"][number % 3]
                )
            took = []
            for _ in range(21):
                at = time.monotonic()
                assert ask(admin, "/livez")[0] == 200
                took.append(time.monotonic() - at)
            at = time.monotonic()
        assert time.monotonic() - at < PATIENCE
        assert min(took) < 0.1


def test_one_object_serves_again() -> None:
    group = ServiceGroup()
    admin = group.add(AdminServer(group, port=0))
    for _ in range(2):
        with group:
            assert ask(admin, "/readyz")[0] == 200


def test_two_groups_of_one_process_have_one_each() -> None:
    groups = [ServiceGroup(name=name) for name in ("one", "two")]
    admins = [group.add(AdminServer(group, port=0)) for group in groups]
    with groups[0], groups[1]:
        for group, admin in zip(groups, admins, strict=True):
            assert json.loads(ask(admin, "/status.json")[2])["group"] == group.name
            assert ask(admin, "/metrics")[0] == 200
