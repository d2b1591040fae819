"""Random changes of all kinds and the traffic under them; the benchmark makes more of the same."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from module_client import ModuleClient
from real_cache import eventually

from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

TRAFFIC = AgentTraffic(requests=3000, conversations=16, context_tokens=8_000, seed=9, tenants=4).generate()
Change = Callable[[], object]


def traffic_until(done: threading.Event, module: ModuleClient) -> int:
    """Full traffic, over and over, of which no request may fail; the distinct chunks it asked for."""
    ran = np.zeros(len(TRAFFIC), dtype=np.bool_)
    while not done.is_set():
        settings = ReplaySettings(clients=4, kv_bytes_per_token=16, model="traffic")
        result = replay(TRAFFIC, module.process.rpc_url, settings, stop=done)
        assert (result.corrupt_chunks, result.failed_retrieves, result.refused_stores) == (0, 0, 0)
        ran |= result.hits >= 0
    return len(np.unique(TRAFFIC.chunk_ids[np.repeat(ran, TRAFFIC.chunks_per_request)]))


def random_changes(module: ModuleClient, folder: Path, count: int) -> Iterator[Change]:
    """Changes of all kinds that evict nothing; each is made before the next is drawn."""
    draw = random.Random(3)  # noqa: S311  no secret

    def eviction() -> object:
        policy, watermark, ratio = draw.choice(["LRU", "ARC", "noop"]), draw.uniform(0.95, 1), draw.uniform(0.05, 0.9)
        changed = module.ask("PUT", "eviction", json={"policy": policy, "watermark": watermark, "ratio": ratio})
        assert changed["current"] == {"policy": policy, "watermark": watermark, "ratio": ratio}
        return changed

    def policy() -> object:
        return module.ask("PUT", "eviction", json={"policy": draw.choice(["LRU", "ARC", "noop"])})

    def prefetch() -> object:
        return module.ask("PUT", "l2/policies", json={"prefetch": draw.choice(["default", "retain"])})

    def size() -> object:
        return module.ask("PUT", "arenas", json={"total_mb": draw.uniform(56, 64)})

    def adapter() -> object:
        attached = module.ask("GET", "l2")["adapters"]
        if attached:
            return module.ask("DELETE", f"l2/adapters/{attached[0]['id']}")
        return module.ask("POST", "l2/adapters", json={"type": "fs", "base_path": str(folder)})

    served = lookups(module)
    for change in draw.choices([eviction, policy, prefetch, size, adapter], k=count):
        # Before each one, traffic: it may still be starting, or be faster than us.
        eventually(lambda served=served: lookups(module) >= served + 10, seconds=60)
        served = lookups(module)
        yield change
        assert module.status()["is_healthy"]


def lookups(module: ModuleClient) -> int:
    return int(module.ask("GET", "status")["recording"]["window"]["next"])
