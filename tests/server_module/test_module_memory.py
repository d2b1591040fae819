"""The claim that changes, however many, leave nothing behind in the server's memory."""

import contextlib
import json
from itertools import cycle, islice
from pathlib import Path

import pytest
from module_client import ModuleClient
from real_cache import Launch

from agent_tools.deployments.server.command_line import Flags


@pytest.mark.long
def test_hundreds_of_changes_leave_no_memory_in_use(
    launch: Launch, arena_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    primary = arena_folder / "primary"
    primary.write_bytes(bytes(16 * 2**20))
    listed = [{"type": "fs", "base_path": str(tmp_path)}]
    config = {"arena_folder": str(arena_folder), "max_l1_mb": 64, "l2_adapters": listed}
    specs = [{"module_path": "agent_tools.server_module", "config": config}, {"module_path": "server_memory"}]
    devdax: Flags = {"--l1-devdax-path": str(primary), "--no-l1-use-lazy": True, "--shm-name": ""}
    server = launch(devdax | {"--server-module": [json.dumps(spec) for spec in specs]})
    primary.unlink()
    with contextlib.closing(ModuleClient(server)) as module:
        change(module, tmp_path, 6)  # whatever is made once, is made now
        before = in_use(module)
        change(module, tmp_path, 300)
        assert in_use(module) < before + 0.3, "MB: 1 KB a change would be 0.9"
        assert module.status()["is_healthy"]


def change(module: ModuleClient, folder: Path, count: int) -> None:
    for number, policy in enumerate(islice(cycle(["ARC", "noop", "LRU"]), count)):
        module.ask("PUT", "eviction", json={"policy": policy})
        module.ask("PUT", "l2/policies", json={"prefetch": ["default", "retain"][number % 2]})
        module.ask("PUT", "arenas", json={"total_mb": 20 + number % 40})
        if number % 50 == 0:
            attached = module.ask("POST", "l2/adapters", json={"type": "fs", "base_path": str(folder)})
            module.ask("DELETE", f"l2/adapters/{attached['id']}")
    module.ask("PUT", "eviction", json={"policy": "LRU", "watermark": 0.8 if count == 6 else 0.7})
    module.ask("PUT", "arenas", json={"total_mb": 20})


def in_use(module: ModuleClient) -> float:
    return float(module.http.get("/memory").raise_for_status().json()["in_use_mb"])
