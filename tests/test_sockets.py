"""Where servers listen: how that is said, opened, taken over, and left."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from servicegroup import sockets
from servicegroup.sockets import Endpoint
from tests.child import Child

ROOT = Path(__file__).resolve().parent.parent


def test_a_port_of_0_is_one_that_is_free() -> None:
    with Endpoint(port=0).open() as one, Endpoint(port=0).open() as other:
        assert sockets.port_of(one) not in (0, sockets.port_of(other))
        assert one.proto == socket.IPPROTO_TCP
        assert sockets.url_of(one) == f"http://127.0.0.1:{sockets.port_of(one)}"
        with socket.create_connection(one.getsockname()):
            pass


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("localhost", "http://")],
)
def test_a_url_is_one_that_clients_here_can_use(host: str, url: str) -> None:
    try:
        listener = Endpoint(host=host, port=0).open()
    except OSError as error:
        if host == "::1" and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("this machine has no IPv6")
        raise
    with listener:
        assert sockets.url_of(listener).startswith(url)


def test_a_taken_port_is_named_with_what_may_be_done() -> None:
    with Endpoint(port=0).open() as listener:
        port = sockets.port_of(listener)
        assert port is not None
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .* in use") as e:
            Endpoint(port=port).open()
        assert e.value.errno == errno.EADDRINUSE
        assert "another process, or another service" in str(e.value)


def test_several_may_share_a_port_when_each_says_so() -> None:
    with Endpoint(port=0, reuse_port=True).open() as one:
        port = sockets.port_of(one)
        assert port is not None
        with Endpoint(port=port, reuse_port=True).open() as other:
            assert sockets.port_of(other) == port
        with pytest.raises(OSError, match="in use"):
            Endpoint(port=port).open()


def test_a_host_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:80.*no such address"):
        Endpoint(host="192.0.2.1", port=8080).open()
    with pytest.raises(OSError, match=r"cannot listen on not a host:8080"):
        Endpoint(host="not a host", port=8080).open()


def test_a_port_for_root_is_refused_with_the_reason() -> None:
    first_free_for_all = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if os.getuid() != 0:
        pytest.skip("only root can become nobody")
    if not first_free_for_all.exists() or int(first_free_for_all.read_text()) <= 80:
        pytest.skip("every user may listen to any port here")
    program = """
        from servicegroup.sockets import Endpoint

        Endpoint(port=0).open().close()  # imports what nobody may not be allowed to read
        os.setuid(65534)
        try:
            Endpoint(port=80).open()
        except PermissionError as error:
            say(error)
    """
    with Child(program) as child:
        assert child.end() == 0
        assert "cannot listen on 127.0.0.1:80: Permission denied" in child.lines[0]
        assert "CAP_NET_BIND_SERVICE" in child.lines[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"port": -1}, "port must be from 0"),
        ({"port": 65536}, "port must be from 0"),
        ({"port": True}, "port must be from 0"),
        ({"host": " "}, "host must not be empty"),
        ({"backlog": 0}, "backlog must be 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(wrong: dict[str, int | str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Endpoint(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"port": "80"}, {"host": None}, {"sock": 3}, {"unix_socket": 3}])
def test_what_is_of_the_wrong_type_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Endpoint(**wrong)  # type: ignore[arg-type]


def test_a_socket_must_be_a_bound_stream_socket() -> None:
    with socket.socket() as unbound, pytest.raises(ValueError, match="must be bound"):
        Endpoint(sock=unbound)
    with (
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        pytest.raises(ValueError, match="must be a stream socket"),
    ):
        Endpoint(sock=datagrams)


def test_a_socket_of_the_users_is_used_and_once_only(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint = Endpoint(sock=bound)
        with pytest.raises(ValueError, match="exclude each other"):
            Endpoint(sock=bound, unix_socket=tmp_path / "x")
        listener = endpoint.open()
        assert listener is bound
        with socket.create_connection(listener.getsockname()):
            pass
        sockets.close(listener)
        with pytest.raises(OSError, match="is closed: a server closes it when it stops"):
            endpoint.open()


# -- Unix sockets ---------------------------------------------------------------------------------


def test_a_unix_socket_comes_and_goes_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "web"
    for _ in range(2):
        listener = Endpoint(unix_socket=path).open()
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert sockets.url_of(listener) == f"unix:{path}"
        assert sockets.port_of(listener) is None
        sockets.refuse_new(listener)  # nothing to be done
        sockets.close(listener)
        assert not path.exists()


def test_a_unix_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "web"
    Endpoint(unix_socket=path).open().close()
    assert path.exists()
    sockets.close(Endpoint(unix_socket=str(path)).open())


def test_a_unix_socket_in_use_and_an_ordinary_file_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "web"
    listener = Endpoint(unix_socket=path).open()
    with pytest.raises(OSError, match=f"cannot listen on {path}: .*in use"):
        Endpoint(unix_socket=path).open()
    os.unlink(path)
    with Endpoint(unix_socket=path).open():
        sockets.close(listener)  # whose path is another's by now
        assert path.exists()
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(OSError, match="cannot listen on"):
        Endpoint(unix_socket=file).open()
    assert file.read_text() == "kept"


# -- systemd --------------------------------------------------------------------------------------

ACTIVATE = """
import os, socket, sys

listeners = []
for number in range(int(sys.argv[1])):
    listener = socket.create_server(("127.0.0.1", 0))
    listeners.append(os.dup(listener.fileno()))
for number, descriptor in enumerate(listeners):
    os.dup2(descriptor, 3 + number, inheritable=True)
pid = str(os.getpid()) if sys.argv[3] == "us" else "1"
os.environ.update(LISTEN_FDS=sys.argv[1], LISTEN_FDNAMES=sys.argv[2], LISTEN_PID=pid)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[4]])
"""


def activated(count: int, names: str, program: str, *, whom: str = "us") -> str:
    """What a program says that was started as systemd starts one."""
    command = [sys.executable, "-c", ACTIVATE, str(count), names, whom, program]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=30)
    return done.stdout + done.stderr


def test_sockets_come_from_systemd_by_name() -> None:
    program = """
from servicegroup.sockets import Endpoint, systemd_socket, systemd_sockets
print({name: len(ones) for name, ones in systemd_sockets().items()})
print(systemd_socket("admin").getsockname()[1] > 0)
Endpoint(sock=systemd_socket("admin")).open()
systemd_socket("web")
"""
    said = activated(3, "web:web:admin", program)
    assert said.startswith("{'web': 2, 'admin': 1}\nTrue\n")
    assert "a socket named 'web' was to come from systemd, but it passed 2 named 'web'" in said
    assert "see Sockets= of the service" in said


def test_without_names_the_one_socket_is_found() -> None:
    program = "from servicegroup.sockets import systemd_socket as s; print(s().family.name)"
    assert activated(1, "", program).startswith("AF_INET\n")


@pytest.mark.parametrize("whom", ["us", "another"])
def test_sockets_for_nobody_or_for_another_process_are_not_taken(whom: str) -> None:
    program = "from servicegroup.sockets import systemd_socket as s; s()"
    said = activated(0 if whom == "us" else 1, "web", program, whom=whom)
    assert "a socket was to come from systemd, but it passed none" in said


# -- leaving --------------------------------------------------------------------------------------


class Strict(socket.socket):
    """As in a container of an ordinary user, on a kernel that lets only administrators filter."""

    def setsockopt(self, *_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_kernel_that_lets_nobody_filter_does_not_spoil_the_stop() -> None:
    with Strict() as listener:
        sockets.refuse_new(listener)


def _require_filters() -> None:
    accept_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF))
    program = struct.pack("HP", 1, ctypes.addressof(accept_all))
    with socket.socket() as one:
        try:
            one.setsockopt(socket.SOL_SOCKET, 26, program)
        except PermissionError:
            pytest.skip("this kernel lets only administrators filter packets")


@pytest.mark.skipif(sys.platform != "linux", reason="a packet filter of Linux")
def test_who_comes_late_is_neither_let_in_nor_turned_away_and_who_was_let_in_can_go_on() -> None:
    _require_filters()
    listener = Endpoint(port=0).open()
    with socket.create_connection(listener.getsockname()) as early:
        sockets.refuse_new(listener)
        with socket.socket() as late:
            late.settimeout(0.1)
            with pytest.raises(TimeoutError):
                late.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            sockets.close(listener)
            threading.Thread(target=early.sendall, args=(b"hello",)).start()
            assert server.recv(5) == b"hello"
