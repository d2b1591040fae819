"""Claims about health, provoked on real servers: what LMCache hides is found, and its false alarms do not count."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
from real_cache import Launch, eventually

from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.health import health_of
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, CacheStatus, Health
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import replay

Connect = Callable[..., ServerDeployment]
FULL = AgentTraffic(requests=120, seed=3).generate()
"""Some 20 MB: more than any L1 here."""


def health(server: ServerProcess) -> Health:
    return health_of(httpx.get(f"{server.http_url}/status").json())


def test_a_fresh_server_is_healthy(server: ServerProcess) -> None:
    assert health(server) == Health(healthy=True)


def test_an_eviction_thread_that_died_is_found_though_healthcheck_says_healthy(launch: Launch, connect: Connect) -> None:
    server = launch({"--l1-size-gb": 4 / 1024, "--eviction-policy": "IsolatedLRU"})
    replay(FULL, server.rpc_url)
    problem = eventually(lambda: health(server).problems)
    assert "eviction thread of pool" in problem[0]
    assert "IsolatedLRU" in problem[0]
    assert httpx.get(f"{server.http_url}/healthcheck").json() == {"status": "healthy"}
    snapshot = io_loop.run(connect(server.http_url).snapshot)
    assert metrics_between(None, snapshot).status is CacheStatus.ERROR


def test_a_dax_device_that_was_removed_is_no_fault(launch: Launch, tmp_path: Path) -> None:
    devices = [tmp_path / "dax0", tmp_path / "dax1"]
    for device in devices:
        device.write_bytes(b"\0" * 8 * MB)
    adapter = {
        "type": "dax",
        "device_path": str(devices[0]),
        "max_dax_size_gb": 8 / 1024,
        "slot_bytes": 64 * 1024,
        "hotplug_enabled": True,
    }
    server = launch({"--l2-adapter": [json.dumps(adapter)]})
    change = {"adapter_index": 0, "device_path": str(devices[1])}
    added = httpx.post(f"{server.http_url}/reconfigure/dax/l2/add", json={**change, "size": "8MiB"})
    assert added.status_code == 200, added.text
    removed = httpx.post(f"{server.http_url}/reconfigure/dax/l2/remove", json={**change, "mode": "migrate"})
    assert removed.status_code == 200, removed.text
    status = httpx.get(f"{server.http_url}/status").json()
    assert status["is_healthy"] is False
    told = health_of(status)
    assert told.healthy
    assert "removed dax device" in told.discounted[0]
