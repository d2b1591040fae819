"""Claims about L2 adapters that come, go and are retuned in a running server."""

from pathlib import Path

import pytest
from module_client import ModuleClient
from real_cache import eventually
from real_logs import conversations, log_of

FOUR = log_of(*conversations(4, 8))


def test_an_adapter_is_attached_serves_hits_and_is_detached(module: ModuleClient, l2_folder: Path) -> None:
    adapter = module.ask("POST", "l2/adapters", json={"type": "fs", "base_path": str(l2_folder)})
    module.replay(FOUR, "attached")
    eventually(lambda: len(list(l2_folder.iterdir())) == 32)
    module.http.post("/cache/clear")
    module.replay(FOUR, "attached")
    eventually(lambda: len(module.window().log) == 8)
    assert module.window().columns["hit_l2"].tolist() == [0] * 4 + [8] * 4
    module.ask("DELETE", f"l2/adapters/{adapter['id']}")
    assert module.ask("GET", "l2")["adapters"] == []
    assert module.replay(FOUR, "attached").hit_chunks == 0, "with the default policy nothing stayed in L1"


def test_with_prefetch_policy_retain_what_l2_gave_stays_in_l1(module: ModuleClient, l2_folder: Path) -> None:
    module.ask("POST", "l2/adapters", json={"type": "fs", "base_path": str(l2_folder)})
    module.replay(FOUR, "retained")
    eventually(lambda: len(list(l2_folder.iterdir())) == 32)
    changed = module.ask("PUT", "l2/policies", json={"prefetch": "retain"})
    assert changed["previous"] == {"prefetch": "default", "store": "default"}
    module.http.post("/cache/clear")
    module.replay(FOUR, "retained")
    assert module.objects() == 32
    module.ask("PUT", "l2/policies", json=changed["previous"])
    module.http.post("/cache/clear")
    module.replay(FOUR, "retained")
    assert module.objects() == 0


def test_with_store_policy_skip_l1_what_l2_took_leaves_l1(module: ModuleClient, l2_folder: Path) -> None:
    module.ask("POST", "l2/adapters", json={"type": "fs", "base_path": str(l2_folder)})
    module.ask("PUT", "l2/policies", json={"store": "skip_l1"})
    module.replay(FOUR, "skipped")
    eventually(lambda: len(list(l2_folder.iterdir())) == 32)  # all of it was stored, so that there was something to leave L1
    eventually(lambda: module.objects() == 0)


def test_eviction_of_an_adapter_with_a_capacity_is_begun_and_retuned(module: ModuleClient) -> None:
    number = module.ask("POST", "l2/adapters", json={"type": "mock", "max_size_gb": 0.001, "mock_bandwidth_gb": 1})["id"]
    begun = module.ask("PUT", f"l2/adapters/{number}/eviction", json={"watermark": 1.0})
    assert begun["previous"] is None
    module.replay(FOUR, "bounded")
    eventually(lambda: used_by(module, number) == 32 * 4096)
    changed = module.ask("PUT", f"l2/adapters/{number}/eviction", json={"policy": "ARC", "watermark": 0.05, "ratio": 0.5})
    assert changed["previous"] == {"policy": "LRU", "watermark": 1.0, "ratio": 0.2}
    assert changed["tracked"] == 32
    eventually(lambda: used_by(module, number) <= 16 * 4096)
    module.ask("PUT", f"l2/adapters/{number}/eviction", json={"policy": "noop"})
    assert module.ask("GET", "l2")["adapters"][0]["eviction"] == {"policy": "noop", "watermark": 0.05, "ratio": 0.5}


def test_an_adapter_without_a_capacity_cannot_be_told_to_evict(module: ModuleClient, l2_folder: Path) -> None:
    number = module.ask("POST", "l2/adapters", json={"type": "fs", "base_path": str(l2_folder)})["id"]
    status, reason = module.refused("PUT", f"l2/adapters/{number}/eviction", json={"watermark": 0.5})
    assert status == 409
    assert "declares no capacity" in reason


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", "l2/adapters", {"type": "plugin", "module_path": "os", "class_name": "system"}, 403, "not allowed here"),
        ("POST", "l2/adapters", {"type": "fs", "base_path": "/nowhere"}, 403, "not listed in the module's l2_adapters"),
        ("POST", "l2/adapters", {"type": "fs"}, 422, "base_path"),
        ("POST", "l2/adapters", {"type": "fs_native", "base_path": "/proc/nowhere"}, 422, "LMCache"),
        ("PUT", "l2/policies", {"prefetch": "all"}, 422, "it has default, retain"),
        ("PUT", "l2/adapters/99/eviction", {"ratio": 0.5}, 404, "no L2 adapter 99"),
        ("DELETE", "l2/adapters/99", None, 404, "no L2 adapter 99"),
    ],
)
def test_what_lmcache_cannot_do_is_refused_with_its_reason(
    module: ModuleClient, method: str, path: str, body: dict[str, object] | None, status: int, reason: str
) -> None:
    code, detail = module.refused(method, path, json=body)
    assert (code, reason in detail) == (status, True), detail
    assert module.ask("GET", "l2")["adapters"] == []


def used_by(module: ModuleClient, number: int) -> int:
    return int(next(one["used_bytes"] for one in module.ask("GET", "l2")["adapters"] if one["id"] == number))
