"""Claims about the ports that we give to servers of our own."""

import socket
from pathlib import Path

import pytest

from agent_tools.deployments.server import process


def test_a_free_port_is_none_that_an_outgoing_connection_may_take_before_the_server_listens() -> None:
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not ports.exists():
        pytest.skip("only Linux says which ports it gives to outgoing connections")
    lowest = int(ports.read_text().split()[0])
    assert lowest > max(process.FIXED_PORTS)
    assert {process.free_port() in process.FIXED_PORTS for _ in range(50)} == {True}


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", process.free_port())) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(process, "FIXED_PORTS", range(taken, taken + 1))
        assert process.free_port() != taken
