"""Claims about the workload window: of a real server, held against LMCache's own log of the same lookups; and of its memory."""

import numpy as np
import numpy.typing as npt
import pytest
from module_client import ModuleClient
from real_cache import eventually
from real_logs import log_of

from agent_tools.deployments.server.process import ServerProcess
from agent_tools.server_module.lookups import Lookup
from agent_tools.server_module.window import Window
from agent_tools.workload.access_log import renumber
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.readers import read_lookup_log

TRAFFIC = AgentTraffic(requests=150, conversations=6, context_tokens=8_000, seed=5).generate()


def test_the_window_holds_what_lmcache_logs_and_tenants_and_hits(module: ModuleClient, module_server: ServerProcess) -> None:
    result = module.replay(TRAFFIC, "window")
    eventually(lambda: len(module.window().log) == 150)
    seen = module.window()
    logged = read_lookup_log(module_server.folder / "lookups")
    logged = logged.select(np.flatnonzero(np.array([logged.model_names[model] == "window" for model in logged.models])))
    assert (seen.log.chunk_ids == logged.chunk_ids).all()
    assert (seen.log.offsets == logged.offsets).all()
    assert (seen.log.tokens == logged.tokens).all()
    assert np.abs(seen.log.timestamps - logged.timestamps).max() < 1e-5
    assert [seen.log.model_names[model] for model in seen.log.models] == ["window"] * 150
    assert (seen.columns["hit_l1"] == result.hits).all()
    assert not seen.columns["hit_l2"].any()
    asked_by = [TRAFFIC.tenant_names[tenant] for tenant in TRAFFIC.tenants]
    assert [seen.log.tenant_names[tenant] for tenant in seen.log.tenants] == asked_by


def test_the_window_is_read_in_parts_that_join_by_their_hashes(module: ModuleClient) -> None:
    module.replay(TRAFFIC, "parts")
    eventually(lambda: len(module.window().log) == 150)
    whole = module.window()
    since, ids = whole.plain["first"], []
    for _ in range(3):
        part = module.window(since, limit=50)
        ids.append(np.frombuffer(part.plain["hashes"], "<u8")[part.log.chunk_ids])
        since = part.plain["next"]
    assert not part.plain["more"]
    joined, _ = renumber(np.concatenate(ids))
    assert (joined == whole.log.chunk_ids).all()
    assert len(module.window(since).log) == 0
    assert part.plain["instance"] == whole.plain["instance"] == module.ask("GET", "status")["instance"]


def test_requests_without_a_whole_chunk_are_counted_only(module: ModuleClient) -> None:
    before = module.ask("GET", "status")["recording"]["without_chunks"]
    module.replay(log_of([], [], tail=100), "short")
    eventually(lambda: module.ask("GET", "status")["recording"]["without_chunks"] == before + 2)
    assert len(module.window().log) == 0


@pytest.mark.parametrize("query", ["since=-1", "limit=0", "since=x"])
def test_a_window_that_cannot_be_is_refused(module: ModuleClient, query: str) -> None:
    assert module.refused("GET", f"window?{query}")[0] == 422


def test_when_the_bound_forces_it_half_of_the_chunks_is_kept_with_all_their_reuse() -> None:
    window = Window(requests=1000, chunks=3000, seconds=1e9)
    requests = [hashes_of(conversation, turns) for turns in range(1, 21) for conversation in range(20)]
    for second, request in enumerate(requests):
        window.add(lookup(second, request))
    part = window.since(0, 10_000)
    assert len(part.records) == 400
    assert part.rate == 0.5
    assert part.records["chunks"].tolist() == [len(request) for request in requests]
    assert part.records["recorded"].sum() == len(part.chunks) <= 3000
    # A chunk is in all requests that have it or in none.
    everything = np.concatenate([first_bytes(request) for request in requests])
    kept = np.isin(everything, part.chunks)
    assert (everything[kept] == part.chunks).all()
    assert 0.35 < kept.mean() < 0.65


def test_old_lookups_go_before_young_ones_are_thinned_out() -> None:
    window = Window(requests=1000, chunks=1000, seconds=50)
    for second in range(300):
        window.add(lookup(second, hashes_of(second, 10)))
    part = window.since(0, 1000)
    assert part.rate == 1.0
    assert (part.lost, part.first, len(part.records)) == (200, 200, 100)
    assert part.chunks.tolist() == np.concatenate([first_bytes(hashes_of(second, 10)) for second in range(200, 300)]).tolist()


def test_a_prompt_larger_than_the_window_is_recorded_in_part() -> None:
    window = Window(requests=10, chunks=1000, seconds=60)
    window.add(lookup(0, hashes_of(1, 5000)))
    part = window.since(0, 10)
    assert part.records["chunks"].tolist() == [5000]
    assert 0 < len(part.chunks) <= 1000


def test_forgetting_begins_again_with_every_chunk_and_the_next_number() -> None:
    window = Window(requests=100, chunks=1000, seconds=60)
    for second in range(30):
        window.add(lookup(second, hashes_of(second, 100)))
    assert window.rate < 1
    window.forget()
    window.add(lookup(99, hashes_of(99, 7)))
    part = window.since(0, 10)
    assert (part.first, part.rate, len(part.chunks)) == (30, 1.0, 7)


def test_beyond_the_names_that_are_told_apart_a_tenant_has_none() -> None:
    window = Window(requests=10_000, chunks=10_000, seconds=60)
    for number in range(4098):
        window.add(lookup(number, hashes_of(number, 1), tenant=f"tenant-{number}"))
    tenants = window.since(0, 10_000).records["tenant"]
    assert tenants[[0, 4095, 4096, 4097]].tolist() == [0, 4095, -1, -1]
    assert len(window.names("tenant")) == 4096


def lookup(second: float, hashes: list[bytes], tenant: str = "") -> Lookup:
    return Lookup(second, "model", tenant, len(hashes) * 256, hashes, 0, 0)


def hashes_of(conversation: int, turns: int) -> list[bytes]:
    draw = np.random.default_rng(conversation)
    return [draw.bytes(32) for _ in range(turns)]


def first_bytes(hashes: list[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(one[:8] for one in hashes), "<u8")
