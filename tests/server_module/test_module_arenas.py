"""Claims about an L1 that grows and shrinks in a running server."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from module_client import ModuleClient
from real_cache import eventually
from real_logs import conversations, log_of

MB = 2**20
TEN = log_of(*conversations(10, 8))


def test_l1_grows_and_shrinks_with_all_its_chunks_and_leaves_no_file(module: ModuleClient, arena_folder: Path) -> None:
    module.replay(TEN, "grown")
    grown = module.ask("PUT", "arenas", json={"total_mb": 40})
    assert (grown["previous_bytes"], grown["current_bytes"], grown["added_bytes"]) == (16 * MB, 40 * MB, 24 * MB)
    assert module.status()["storage_manager"]["l1_manager"]["memory_total_bytes"] == 40 * MB
    assert list(arena_folder.glob("lmcache-agent-l1-*")) == []
    assert module.replay(TEN, "grown").hit_chunks == 80
    shrunk = module.ask("PUT", "arenas", json={"total_mb": grown["previous_bytes"] / MB})
    assert (shrunk["current_bytes"], shrunk["added_bytes"]) == (16 * MB, 0)
    assert module.replay(TEN, "grown").hit_chunks == 80
    module.http.post("/cache/clear")
    eventually(lambda: [arena["state"] for arena in module.ask("GET", "arenas")["arenas"]] == ["active"])


def test_shrinking_in_part_leaves_exactly_what_was_asked_for(module: ModuleClient) -> None:
    module.ask("PUT", "arenas", json={"total_mb": 40})
    assert module.ask("PUT", "arenas", json={"total_mb": 30})["current_bytes"] == 30 * MB
    assert module.ask("PUT", "arenas", json={"total_mb": 16})["current_bytes"] == 16 * MB


@pytest.mark.parametrize(
    ("size", "reason"),
    [(64.5, "at most 64 MB"), (15, "16 MB of L1 cannot be removed"), (-1, "greater than 0"), ("Infinity", "finite")],
)
def test_a_size_beyond_the_bounds_is_refused_and_changes_nothing(module: ModuleClient, size: object, reason: str) -> None:
    status, detail = module.refused("PUT", "arenas", json={"total_mb": size})
    assert status == 422
    assert reason in detail
    assert module.ask("GET", "arenas")["total_bytes"] == 16 * MB


def test_drained_arenas_that_hold_chunks_count_until_these_are_evicted(module: ModuleClient) -> None:
    module.ask("PUT", "arenas", json={"total_mb": 64})
    module.replay(log_of(*conversations(100, 150)), "drained")
    refused = module.refused("PUT", "arenas", json={"total_mb": 40})  # 24 MB more, beside 48 that are drained
    assert refused[0] == 409
    assert "48 MB of drained arenas hold chunks" in refused[1]
    assert module.ask("PUT", "arenas", json={"total_mb": 16})["draining_bytes"] == 48 * MB
    assert module.refused("PUT", "arenas", json={"total_mb": 17})[0] == 409
    assert module.ask("GET", "arenas")["total_bytes"] == 16 * MB
    module.http.post("/cache/clear")
    eventually(lambda: module.ask("GET", "arenas")["draining_bytes"] == 0)
    assert module.ask("PUT", "arenas", json={"total_mb": 17})["current_bytes"] == 17 * MB
    module.ask("PUT", "arenas", json={"total_mb": 16})


@pytest.mark.filterwarnings("ignore")  # LMCache uses what OpenTelemetry and Google have deprecated
def test_an_arena_that_does_not_fit_into_the_folder_is_refused_before_anything_is_written(lmcache: None, tmp_path: Path) -> None:
    from agent_tools.server_module.arenas import Arenas  # noqa: PLC0415  imports LMCache
    from agent_tools.server_module.options import Options  # noqa: PLC0415
    from agent_tools.server_module.refusal import Refusal  # noqa: PLC0415

    arenas = Arenas(SimpleNamespace(storage_manager=None), Options(arena_folder=tmp_path))
    with pytest.raises(Refusal, match="MB free") as refusal:
        arenas._add(2**50)
    assert refusal.value.status == 507
    assert list(tmp_path.iterdir()) == []
