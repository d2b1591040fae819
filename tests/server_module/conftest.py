"""The module of the shared server, in a known state."""

from collections.abc import Iterator

import pytest
from module_client import ModuleClient

from agent_tools.deployments.server.process import ServerProcess

START = {"policy": "LRU", "watermark": 0.8, "ratio": 0.2}


@pytest.fixture
def module(module_server: ServerProcess) -> Iterator[ModuleClient]:
    """The module with an empty L1, an empty window and its start-up settings; after the test the server must be healthy."""
    client = ModuleClient(module_server)
    client.http.post("/cache/clear").raise_for_status()
    client.ask("DELETE", "window")
    client.ask("PUT", "eviction", json=START)
    client.ask("PUT", "l2/policies", json={"prefetch": "default", "store": "default"})
    yield client
    for adapter in client.ask("GET", "l2")["adapters"]:
        client.ask("DELETE", f"l2/adapters/{adapter['id']}")
    assert client.status()["is_healthy"]
    client.close()
