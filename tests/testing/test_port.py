from __future__ import annotations

import os
import socket

import pytest

from servicegroup.testing import _port as module
from servicegroup.testing import find_free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_can_listen_there(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} cannot be had here")
    with socket.socket(family) as server:
        server.bind((host, find_free_port(host)))
        server.listen()


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ports", lambda: range(20_000, 20_100))
    monkeypatch.setattr(module, "_given", set())
    ports = [find_free_port() for _ in range(50)]
    assert len(set(ports)) == 50


def test_a_port_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "_ports", lambda: range(port, port + 1))
        with pytest.raises(OSError, match=f"no free port .* between {port} and {port}"):
            find_free_port()


def test_the_kernel_gives_none_of_them_to_a_client() -> None:
    with socket.socket() as client:
        client.bind(("127.0.0.1", 0))
        assert client.getsockname()[1] not in module._ports()


def test_the_workers_of_xdist_share_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []
    for number in range(4):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{number}")
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "4")
        ports.append(set(module._ports()))
    assert not set.intersection(*ports)
    assert sum(map(len, ports)) == len(set.union(*ports)) > 10_000


def test_the_fixture_gives_one(free_port: int) -> None:
    assert os.environ.get("PYTEST_XDIST_WORKER") or free_port in module._ports()
