"""Claims about the chunks that the module finds and removes in L1."""

import time

import pytest
from module_client import ModuleClient
from real_cache import eventually
from real_logs import conversations, log_of

SHARED = log_of([0, 1, 2], [0, 1, 3], [0, 4], [0], tenants=("a", "b"))


def test_the_top_entries_are_those_that_lookups_found_most_often(module: ModuleClient) -> None:
    began = time.time()
    module.replay(log_of([0, 1, 2], [0, 1, 3], [0, 4], [0]), "top")
    eventually(lambda: module.ask("GET", "entries?top=1")["top"][0]["hits"] == 3)
    entries = module.ask("GET", "entries")
    assert (entries["chunks"], entries["objects"], entries["bytes"]) == (5, 5, 5 * 4096)
    assert [entry["hits"] for entry in entries["top"]] == [3, 1, 0, 0, 0]
    light = module.ask("GET", "entries/top")
    assert (light["chunk_size"], [entry["hits"] for entry in light["top"]]) == (256, [3, 1, 0, 0, 0])
    assert all({**entry, "reachable": None} in light["top"] for entry in entries["top"])
    assert module.ask("GET", "entries/top?limit=2")["top"] == light["top"][:2]
    first = entries["top"][0]
    assert (first["model"], first["tenant"], first["bytes"]) == ("top", "", 4096)
    assert began <= first["stored"] <= first["last_hit"] <= time.time()


def test_the_same_prefix_of_two_tenants_is_two_entries(module: ModuleClient) -> None:
    module.replay(SHARED, "tenants")
    eventually(lambda: module.ask("GET", "entries?top=1")["top"][0]["hits"] == 1)
    entries = module.ask("GET", "entries")["top"]
    assert {(entry["tenant"], entry["hits"]) for entry in entries if entry["hits"]} == {("a", 1), ("b", 1)}
    assert (len(entries), len({entry["chunk_hash"] for entry in entries})) == (7, 5), "chunks 0 and 1 are both tenants'"


def test_chunks_without_their_prefix_are_found_and_removed_and_no_others(module: ModuleClient) -> None:
    two = log_of(*conversations(2, 8))
    module.replay(two, "cut")
    eventually(lambda: len(module.window().log) == 2)
    with module.engine("cut"):
        assert module.ask("GET", "entries")["unreachable_chunks"] == 0
        delete(module, "cut", hash_of(module, request=0, position=3))
        entries = module.ask("GET", "entries")
        assert (entries["unreachable_chunks"], entries["unreachable_bytes"]) == (4, 4 * 4096)
        assert sum(not entry["reachable"] for entry in entries["top"]) == 4
        removed = module.ask("POST", "entries/remove", json={"what": "unreachable"})
    assert (removed["removed"], removed["entries_after"], removed["freed_bytes"]) == (4, 11, 4 * 4096)
    assert module.replay(two, "cut").hits.tolist() == [3, 8]


def test_while_l2_may_hold_a_prefix_nothing_is_called_unreachable(module: ModuleClient) -> None:
    module.replay(log_of(range(8)), "in-l2")
    module.ask("POST", "l2/adapters", json={"type": "mock", "max_size_gb": 0.001, "mock_bandwidth_gb": 1})
    with module.engine("in-l2"):
        entries = module.ask("GET", "entries")
        assert "may be in L2" in entries["reach_unknown"]
        assert entries["top"][0]["reachable"] is None
        assert module.refused("POST", "entries/remove", json={"what": "unreachable"})[0] == 409


def test_the_coldest_are_removed_until_so_much_is_used(module: ModuleClient) -> None:
    ten = log_of(*conversations(10, 8))
    module.replay(ten, "trimmed")
    removed = module.ask("POST", "entries/remove", json={"what": "coldest", "until_used_mb": 48 * 4096 / 2**20})
    assert (removed["entries_before"], removed["removed"], removed["entries_after"]) == (80, 32, 48)
    assert module.replay(ten, "trimmed").hits.tolist() == [0] * 4 + [8] * 6


@pytest.mark.parametrize(
    "body",
    [
        {"what": "coldest"},
        {"what": "coldest", "objects": 5, "until_used_mb": 1},
        {"what": "unreachable", "objects": 5},
        {"what": "all"},
        {"what": "coldest", "objects": 0},
    ],
)
def test_a_removal_that_is_not_clear_is_refused(module: ModuleClient, body: dict[str, object]) -> None:
    assert module.refused("POST", "entries/remove", json=body)[0] == 422


def hash_of(module: ModuleClient, request: int, position: int) -> str:
    """The whole hash of a chunk: the window has its first bytes, the entries all of it."""
    window = module.window()
    number = window.log.request(request)[position]
    begin = window.plain["hashes"][8 * number : 8 * number + 8].hex()
    hashes = [entry["chunk_hash"] for entry in module.ask("GET", "entries?top=1000")["top"]]
    return next(one for one in hashes if one.startswith(begin))


def delete(module: ModuleClient, model: str, chunk_hash: str) -> None:
    key = {"chunk_hash_hex": chunk_hash, "model_name": model, "kv_rank": 0x01000100}
    answer = module.http.request("DELETE", "/cache/objects", json={"keys": [key], "tier": "l1"})
    assert answer.json()["deleted"] == 1
