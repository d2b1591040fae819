"""Fixtures for deployments: connections to servers that they do not own."""

from collections.abc import Iterator
from typing import Any

import pytest

from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.io_loop import io_loop


@pytest.fixture
def connect() -> Iterator[Any]:
    """Makes a `ServerDeployment` of an address, with its keyword arguments; closed at the end of the test."""
    connections: list[ServerDeployment] = []

    def connect(url: str, **options: Any) -> ServerDeployment:
        connections.append(ServerDeployment(url, **options))
        return connections[-1]

    yield connect
    for connection in connections:
        io_loop.run(connection.close)
