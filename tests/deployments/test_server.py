"""Claims about a server with our module that we do not own, reached over HTTP only: what is read of it, and what can be done."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.encoders import jsonable_encoder
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from real_cache import Play, eventually
from real_logs import CHUNK_SIZE, conversations, log_of

from agent_tools.caches.registry import Cache
from agent_tools.deployments.base import silent
from agent_tools.deployments.server.answers import entries_of
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.errors import RefusedError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, SETTINGS, CacheConfig, ConfigUpdate, EvictionPolicy, SupportLevel
from agent_tools.workload.generate import AgentTraffic

Connect = Callable[..., ServerDeployment]
CHUNK_BYTES = 128 * CHUNK_SIZE
"""L1 bytes of a chunk that `replay` stores."""


@pytest.fixture
def foreign(connect: Connect, server: ServerProcess, module_token: SecretStr, arena_folder: Path) -> ServerDeployment:
    """The embedded server as another process sees it that reads its log, reaches its shared memory and has its module's token."""
    return connect(server.http_url, access_log=server.folder / "lookups", arena_folder=arena_folder, token=module_token)


def config(deployment: ServerDeployment) -> CacheConfig:
    return io_loop.run(deployment.config)


def used(deployment: ServerDeployment) -> int:
    return io_loop.run(deployment.snapshot).l1_used_bytes


# ---- reading ----


def test_a_stranger_reads_what_the_owner_reads(foreign: ServerDeployment, cache: Cache) -> None:
    assert config(foreign) == io_loop.run(cache.deployment.config)
    assert io_loop.run(foreign.version) == "0.5.6"
    theirs, ours = io_loop.run(foreign.snapshot), io_loop.run(cache.deployment.snapshot)
    assert (theirs.instance_id, theirs.process_start) == (ours.instance_id, ours.process_start)


def test_the_configuration_is_complete_but_for_what_lmcache_does_not_have(foreign: ServerDeployment) -> None:
    known = config(foreign)
    assert known == CacheConfig(
        enabled=True,
        max_size_mb=16,
        eviction_policy=EvictionPolicy.LRU,
        enable_prefix_caching=True,
        min_prefix_length=256,
        cache_warmup=False,
        enable_sharing=True,
        auto_eviction=True,
        chunk_size=256,
        eviction_watermark=0.8,
        eviction_ratio=0.2,
        l2_adapters=(),
        l2_store_policy="default",
        l2_prefetch_policy="default",
        tenant_quotas_mb={},
        hash_algorithm="blake3",
    )


def test_a_window_counts_each_tenants_tokens_as_they_were_sent(foreign: ServerDeployment, play: Play) -> None:
    before = io_loop.run(foreign.snapshot)
    log = AgentTraffic(requests=60, tenants=2, seed=5).generate()
    result = play(log, model="tenants")
    metrics = metrics_between(before, io_loop.run(foreign.snapshot))
    for number, tenant in enumerate(log.tenant_names):
        mine = log.tenants == number
        assert metrics.by_tenant[tenant].requested == log.chunks_per_request[mine].sum() * CHUNK_SIZE
        assert metrics.by_tenant[tenant].hit == result.hits[mine].sum() * CHUNK_SIZE
    assert metrics.by_model["tenants"] == metrics.tokens
    assert metrics.total_requests == result.requests
    assert metrics.kv_bytes_per_token == pytest.approx(128)
    assert metrics.stored_chunks == result.sent_chunks


def test_prompts_shorter_than_a_chunk_are_counted_apart(foreign: ServerDeployment, play: Play) -> None:
    before = io_loop.run(foreign.snapshot)
    play(log_of([], [], range(1), tail=10))
    metrics = metrics_between(before, io_loop.run(foreign.snapshot))
    assert (metrics.total_requests, metrics.short_prompts) == (3, 2)


def test_the_access_log_holds_what_was_asked_and_when(foreign: ServerDeployment, play: Play) -> None:
    began = time.time()
    log = log_of(range(8), range(4))
    play(log, clients=1)
    seen = io_loop.run(foreign.access_log, began)
    assert seen is not None
    assert seen.chunk_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    assert (seen.timestamps >= began).all()


# ---- what can be changed ----


def test_every_setting_says_whether_it_can_be_changed_and_why(foreign: ServerDeployment) -> None:
    support = io_loop.run(foreign.support)
    assert set(support) == set(SETTINGS)
    assert all(one.reason for one in support.values())
    levels = {setting: one.level for setting, one in support.items()}
    assert levels["max_size_mb"] is SupportLevel.LIVE
    assert levels["eviction_watermark"] is SupportLevel.LIVE
    assert levels["l2_adapters"] is SupportLevel.LIVE
    assert levels["chunk_size"] is SupportLevel.RESTART
    assert levels["enable_prefix_caching"] is SupportLevel.UNSUPPORTED


def test_without_the_token_of_the_module_it_is_a_plain_server_and_says_so(
    foreign: ServerDeployment, connect: Connect, server: ServerProcess
) -> None:
    plain = connect(server.http_url)
    assert io_loop.run(plain.snapshot).l1_total_bytes == io_loop.run(foreign.snapshot).l1_total_bytes
    watermark = io_loop.run(plain.support)["eviction_watermark"]
    assert watermark.level is SupportLevel.RESTART
    assert "set module_token in caches.toml" in watermark.reason


def test_the_size_is_live_only_with_a_folder_for_arenas_and_above_the_primary(
    foreign: ServerDeployment, connect: Connect, server: ServerProcess
) -> None:
    without = io_loop.run(connect(server.http_url).support)["max_size_mb"]
    assert (without.level, "arena_folder" in without.reason) == (SupportLevel.RESTART, True)
    small = io_loop.run(foreign.support, ConfigUpdate(max_size_mb=15))["max_size_mb"]
    assert (small.level, "16 MB" in small.reason) == (SupportLevel.RESTART, True)
    assert io_loop.run(foreign.support, ConfigUpdate(max_size_mb=16))["max_size_mb"].level is SupportLevel.LIVE


def test_a_policy_that_l1_cannot_have_is_not_offered(foreign: ServerDeployment) -> None:
    for policy, level in (
        ("arc", SupportLevel.LIVE),
        ("isolated_lru", SupportLevel.UNSUPPORTED),
        ("mru", SupportLevel.UNSUPPORTED),
    ):
        update = ConfigUpdate(eviction_policy=EvictionPolicy(policy))
        assert io_loop.run(foreign.support, update)["eviction_policy"].level is level


# ---- size ----


def test_l1_grows_live_and_keeps_what_it_holds(foreign: ServerDeployment, play: Play, arena_folder: Path) -> None:
    log = log_of(*conversations(10, 16))
    play(log)
    before = used(foreign)
    assert before == 160 * CHUNK_BYTES
    io_loop.run(foreign.apply, ConfigUpdate(max_size_mb=40), silent)
    assert io_loop.run(foreign.snapshot).l1_total_bytes == 40 * MB
    assert used(foreign) == before
    assert play(log).hit_rate == 1
    assert list(arena_folder.iterdir()) == []


def test_l1_shrinks_live_and_a_drained_arena_goes_when_it_is_empty(foreign: ServerDeployment, play: Play) -> None:
    io_loop.run(foreign.apply, ConfigUpdate(max_size_mb=40), silent)
    play(log_of(*conversations(56, 16)), model="before")
    held = used(foreign)
    assert held > 20 * MB
    said: list[str] = []
    io_loop.run(foreign.apply, ConfigUpdate(max_size_mb=20), said.append)
    assert said == ["adding an L1 arena of 4.0 MB", "draining an L1 arena of 24.0 MB"]
    assert config(foreign).max_size_mb == 20
    assert states(foreign) == ["active", "active", "draining"]
    # Traffic keeps eviction going until what is left fits into the smaller L1.
    play(log_of(*conversations(56, 16)), model="after")
    eventually(lambda: used(foreign) <= 20 * MB)
    io_loop.run(foreign.clear)
    eventually(lambda: states(foreign) == ["active", "active"])
    assert config(foreign).max_size_mb == 20


def test_l1_does_not_grow_past_the_bound_while_a_drained_arena_holds_chunks(
    foreign: ServerDeployment, connect: Connect, server: ServerProcess, arena_folder: Path, play: Play
) -> None:
    bounded = connect(server.http_url, arena_folder=arena_folder, most_mb=40)
    io_loop.run(bounded.apply, ConfigUpdate(max_size_mb=40), silent)
    play(log_of(*conversations(56, 16)), model="held")
    io_loop.run(bounded.apply, ConfigUpdate(max_size_mb=16), silent)
    assert states(foreign) == ["active", "draining"]
    with pytest.raises(UnsupportedError, match=r"24.0 MB of drained arenas hold chunks .* than 40.0 MB, the operator's bound"):
        io_loop.run(bounded.apply, ConfigUpdate(max_size_mb=40), silent)
    assert config(foreign).max_size_mb == 16
    assert list(arena_folder.iterdir()) == []
    io_loop.run(foreign.clear)
    eventually(lambda: states(foreign) == ["active"])
    io_loop.run(bounded.apply, ConfigUpdate(max_size_mb=40), silent)
    assert config(foreign).max_size_mb == 40


def states(deployment: ServerDeployment) -> list[str]:
    status = io_loop.run(deployment.admin.read, "/reconfigure/dax/l1/status")
    return sorted(arena["state"] for arena in status["arenas"])


def test_a_size_of_odd_bytes_is_met_to_a_memory_page(foreign: ServerDeployment) -> None:
    io_loop.run(foreign.apply, ConfigUpdate(max_size_mb=17.3), silent)
    assert config(foreign).max_size_mb == pytest.approx(17.3, abs=4096 / MB)


def test_a_size_that_the_folder_has_no_room_for_changes_nothing_and_leaves_nothing(
    foreign: ServerDeployment, arena_folder: Path
) -> None:
    too_much = shutil.disk_usage(arena_folder).free / MB + 1024
    with pytest.raises(UnsupportedError, match=rf"cannot create .* in {arena_folder}: it has .* MB free; ask for less"):
        io_loop.run(foreign.apply, ConfigUpdate(max_size_mb=too_much), silent)
    assert config(foreign).max_size_mb == 16
    assert list(arena_folder.iterdir()) == []


def test_a_shrink_whose_remainder_has_no_room_changes_nothing(
    foreign: ServerDeployment, connect: Connect, server: ServerProcess, tmp_path: Path
) -> None:
    io_loop.run(foreign.apply, ConfigUpdate(max_size_mb=40), silent)
    elsewhere = connect(server.http_url, arena_folder=tmp_path / "missing")
    with pytest.raises(UnsupportedError, match=r"cannot create an L1 arena of 4.0 MB in .*missing: No such file"):
        io_loop.run(elsewhere.apply, ConfigUpdate(max_size_mb=20), silent)
    assert config(foreign).max_size_mb == 40


# ---- entries ----


def test_clear_empties_l1(foreign: ServerDeployment, play: Play) -> None:
    play(log_of(*conversations(4, 8)))
    assert used(foreign)
    io_loop.run(foreign.clear)
    assert used(foreign) == 0


def test_chunks_are_deleted_by_the_hash_that_their_entry_has(foreign: ServerDeployment, play: Play) -> None:
    log = log_of(range(8), tenants=("acme",))
    play(log, model="deleted")
    assert play(log, model="deleted").hits.tolist() == [8]
    entries = io_loop.run(foreign.entries, 10)
    assert [(one.hit_count, one.token_count, one.size_mb) for one in entries] == [(1, 256, CHUNK_BYTES / MB)] * 8
    assert all(one.created_at is not None and one.last_accessed is not None for one in entries)
    some = [one.prefix_hash for one in entries[:4]]
    assert io_loop.run(foreign.delete, "deleted", some, "other") == 0
    assert io_loop.run(foreign.delete, "deleted", [f"0x{one}" for one in some], "acme") == 4
    assert len(io_loop.run(foreign.entries, 10)) == 4


def test_a_hash_that_is_none_is_refused(foreign: ServerDeployment) -> None:
    with pytest.raises(RefusedError) as refused:
        io_loop.run(foreign.delete, "deleted", ["not hexadecimal"], "")
    assert refused.value.status in {400, 422}


def test_trim_drops_what_was_asked_for_longest_ago(foreign: ServerDeployment, play: Play) -> None:
    log = log_of(*conversations(10, 16), tenants=("acme", "globex"))
    play(log, clients=1)
    assert used(foreign) == 160 * CHUNK_BYTES
    io_loop.run(foreign.trim, 70 * CHUNK_BYTES)
    assert used(foreign) == 70 * CHUNK_BYTES
    assert play(log, clients=1).hits.tolist() == [0, 0, 0, 0, 0, 6, 16, 16, 16, 16]


def test_trim_to_more_than_is_used_drops_nothing(foreign: ServerDeployment, play: Play) -> None:
    play(log_of(range(4)))
    io_loop.run(foreign.trim, 16 * MB)
    assert used(foreign) == 4 * CHUNK_BYTES


@given(st.binary(min_size=32, max_size=32), st.integers(0, 3), st.integers(1, 2**30))
def test_an_entry_is_read_as_lmcache_would_send_it(chunk_hash: bytes, group: int, size: int) -> None:
    api = pytest.importorskip("lmcache.v1.distributed.api", reason="the entry's own class is LMCache's", exc_type=ImportError)
    key = api.ObjectKey(chunk_hash, "org/model", 0x01000100, object_group_id=group, cache_salt="acme")
    page = api.KeyListPage(entries=(api.KeyEntry(key.to_encoded_object_key(), size),), next_page_token=None)
    (entry,) = entries_of(jsonable_encoder({"entries": page.entries})["entries"])
    assert entry.prefix_hash == chunk_hash.hex()
    assert entry.entry_id == f"org/model@1@{chunk_hash.hex()}@acme"
    assert entry.size_mb == size / MB
