"""A real server with the module, whose L1 is one devdax arena of 16 MB, shared by the tests of this folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from module_client import ModuleClient

from agent_tools.deployments.arenas import _reserve
from agent_tools.deployments.server_command import Flags
from agent_tools.deployments.server_process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.models import MB

START = {"policy": "LRU", "watermark": 0.8, "ratio": 0.2}


def flags(**config: object) -> Flags:
    spec = {"module_path": "agent_tools.server_module", "config": config}
    return {
        "--l1-size-gb": 16 / 1024,
        "--eviction-policy": "LRU",
        "--supported-transfer-mode": "auto",
        "--server-module": json.dumps(spec),
    }


@pytest.fixture(scope="session")
def module_server(lmcache: None, arena_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    primary = _reserve(arena_folder, 16 * MB)
    devdax: Flags = {"--l1-devdax-path": str(primary), "--no-l1-use-lazy": True, "--shm-name": ""}
    config = flags(arena_folder=str(arena_folder), max_l1_mb=64)
    process = ServerProcess.launch(config | devdax, tmp_path_factory.mktemp("module-logs"))
    try:
        io_loop.run(process.wait_ready)
        primary.unlink()
        yield process
    finally:
        primary.unlink(missing_ok=True)
        io_loop.run(process.stop)


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
