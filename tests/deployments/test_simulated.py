"""Claims about the simulated cache: it is the server model, to the chunk; a change touches only what comes after."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from real_logs import CHUNK_SIZE, conversations, log_of

from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.base import silent
from agent_tools.deployments.simulated.deployment import SimulatedDeployment, SimulatedOptions
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import UnsupportedError, WorkloadError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, SETTINGS, Bounds, ConfigUpdate, EvictionPolicy, L2Adapter, Mode, SupportLevel, Verdict
from agent_tools.operations import Operations
from agent_tools.prediction.eviction_clock import PERIOD, EvictionClock, observed_clock
from agent_tools.prediction.in_process_model import InProcessPolicy, simulate_in_process
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

NOW = 1.7e9
"""Where the clock of these tests stands; only `advance` moves it."""
CHUNK_BYTES = 128 * CHUNK_SIZE
SMALL = {"l1_size_mb": 100 * CHUNK_BYTES / MB, "kv_bytes_per_token": 128, "past_seconds": 0}
"""An L1 of 100 chunks, empty at the first call."""
L2 = L2Adapter(type="mock", settings={"max_size_gb": 400 * CHUNK_BYTES / 2**30, "mock_bandwidth_gb": 1, "eviction": {}})
BUSY = AgentTraffic(conversations=60, turns=5, think_seconds=5, system_prompts=2)


def made(**options: Any) -> SimulatedDeployment:
    """A simulated cache of 100 chunks whose time stands still."""
    given = SMALL | {"traffic": BUSY} | options
    return SimulatedDeployment(SimulatedOptions.model_validate(given), clock=lambda: NOW)


def advance(cache: SimulatedDeployment, seconds: float) -> Snapshot:
    io_loop.run(cache.advance, seconds)
    return io_loop.run(cache.snapshot)


def change(cache: SimulatedDeployment, **settings: Any) -> None:
    io_loop.run(cache.apply, ConfigUpdate(**settings), silent)


def log_until_now(cache: SimulatedDeployment) -> AccessLog:
    log = io_loop.run(cache.access_log)
    assert log is not None
    return log


def hits(cache: SimulatedDeployment) -> list[int]:
    assert cache._server is not None
    return cache._server.hits.tolist()


def send(cache: SimulatedDeployment, log: AccessLog) -> list[int]:
    """Ask for a log's requests, and the chunks that each was served."""
    before = len(hits(cache))
    io_loop.run(partial(cache.send, log))
    advance(cache, log.duration)
    return hits(cache)[before:]


def quiet(**options: Any) -> SimulatedDeployment:
    """A simulated cache that nobody asks but the test."""
    cache = made(traffic=None, **options)
    advance(cache, 0)
    return cache


# ---- the model ----


@pytest.mark.parametrize("l2", [(), (L2,)])
def test_it_serves_what_the_server_model_predicts_for_the_same_log(l2: tuple[L2Adapter, ...]) -> None:
    cache = made(l2_adapters=l2)
    for _ in range(30):
        last = advance(cache, 10.1)
    log = log_until_now(cache)
    clock = cache._server.model._first_tick  # type: ignore[union-attr]
    phase = (NOW + clock - log.timestamps[0]) / PERIOD
    setting = ServerSetting(100, l2_capacity_chunks=400 if l2 else 0, l2_hard_limit=bool(l2))
    run = simulate_server(log, setting, phase=phase)
    assert hits(cache) == run.hit_chunks.tolist()
    assert last.counters is not None
    assert last.counters.failed_stores == run.failed_chunks > 0
    assert last.counters.lookups == len(log) > 200
    served, asked = (sum(getattr(one, name) for one in last.tokens.values()) for name in ("hit_l1", "requested"))
    assert served == run.l1_hit_chunks.sum() * CHUNK_SIZE
    assert asked == len(log.chunk_ids) * CHUNK_SIZE
    assert {tenant for _, tenant in last.tokens} == {"tenant-1", "tenant-2"}


def test_what_was_stored_is_there_or_was_removed() -> None:
    for l2 in ((), (L2,)):
        last = advance(made(l2_adapters=l2), 200)
        assert last.counters is not None
        assert last.counters.stored_chunks - last.counters.evictions == last.resident_objects > 0
        assert last.counters.evictions > 0


def test_the_same_seed_gives_the_same_figures_however_often_it_is_read_and_another_gives_others() -> None:
    once, often, other = made(seed=7), made(seed=7), made(seed=8)
    for _ in range(50):
        advance(often, 4)
    ends = [advance(cache, seconds) for cache, seconds in ((once, 200), (often, 0), (other, 200))]
    assert asdict(ends[0]) == asdict(ends[1])
    assert ends[0].counters != ends[2].counters


def test_traffic_goes_on_without_end_and_its_past_stays() -> None:
    cache = made()
    advance(cache, 60)
    before = log_until_now(cache)
    advance(cache, 3000)
    after = log_until_now(cache)
    assert len(after) > AgentTraffic().requests
    assert after.timestamps[-1] > NOW + 3050
    for column in ("chunk_ids", "offsets", "timestamps", "hashes"):
        known = getattr(before, column)
        assert np.array_equal(getattr(after, column)[: len(known)], known)


def test_its_ticks_are_counted_as_by_a_server_so_that_its_clock_is_found() -> None:
    cache = made(seed=3)
    reads = [advance(cache, step) for step in np.random.default_rng(0).uniform(0.2, 0.7, 80)]
    found = observed_clock(log_until_now(cache), [(s.asked_at, s.taken_at, s.counters.eviction_ticks) for s in reads])  # type: ignore[misc,union-attr]
    assert found is not None
    assert found.period == pytest.approx(PERIOD, abs=0.005)
    true = EvictionClock((NOW + cache._server.model._first_tick - log_until_now(cache).timestamps[0]) / PERIOD % 1)  # type: ignore[union-attr]
    assert abs((found.phase - true.phase + 0.5) % 1 - 0.5) < 0.1


def test_a_faster_workload_comes_sooner_and_the_second_of_the_eviction_thread_stays() -> None:
    slow, fast = made(), made(speed=4)
    one, other = advance(slow, 200), advance(fast, 50)
    assert one.counters is not None
    assert other.counters is not None
    assert one.counters.lookups == other.counters.lookups
    assert one.counters.eviction_ticks == pytest.approx(4 * other.counters.eviction_ticks, abs=4)


def test_time_that_runs_backwards_stands_still() -> None:
    cache = made()
    later = advance(cache, 100)
    assert advance(cache, -50).counters == later.counters


def test_a_recorded_workload_is_served_and_ends(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [
        f'{{"timestamp": {1000 * i}, "input_length": {16 * n}, "hash_ids": {list(range(n))}}}' for i, n in enumerate([3, 3, 5])
    ]
    trace.write_text("\n".join(lines), encoding="utf-8")
    cache = made(workload=trace, chunk_size=16)
    last = advance(cache, 100)
    assert hits(cache) == [0, 3, 3]
    assert last.counters is not None
    assert last.counters.stored_chunks == 5
    with pytest.raises(WorkloadError, match="chunks of 16 tokens need a chunk size that is a multiple of 16"):
        advance(made(workload=trace, chunk_size=24), 1)


# ---- changes ----


@pytest.mark.parametrize(
    "settings",
    [{"eviction_watermark": 0.3}, {"max_size_mb": 3.5}, {"eviction_ratio": 0.5}, {"eviction_policy": EvictionPolicy.NOOP}],
)
def test_a_live_change_keeps_all_contents_and_leaves_the_past_as_it_was(settings: dict[str, Any]) -> None:
    cache, unchanged = made(), made()
    before = advance(cache, 100)
    change(cache, **settings)
    after = io_loop.run(cache.snapshot)
    assert after.follows(before)
    assert (after.resident_objects, after.counters) == (before.resident_objects, before.counters)
    advance(cache, 200)
    advance(unchanged, 300)
    past = before.counters.lookups  # type: ignore[union-attr]
    assert hits(cache)[:past] == hits(unchanged)[:past]
    assert hits(cache) != hits(unchanged)


def test_after_a_live_change_of_size_what_was_stored_is_hit() -> None:
    cache, log = quiet(), log_of(*conversations(4, 16))
    send(cache, log)
    change(cache, max_size_mb=2 * SMALL["l1_size_mb"])
    assert send(cache, log) == [16] * 4
    assert io_loop.run(cache.snapshot).l1_total_bytes == 200 * CHUNK_BYTES


@pytest.mark.parametrize("settings", [{"chunk_size": 128}, {"max_size_mb": 1}])
def test_a_restart_empties_l1_and_starts_to_count_anew(settings: dict[str, Any]) -> None:
    cache = made()
    before = advance(cache, 100)
    levels = io_loop.run(cache.support, ConfigUpdate(**settings))
    assert levels[next(iter(settings))].level is SupportLevel.RESTART
    change(cache, **settings)
    after = io_loop.run(cache.snapshot)
    assert (after.resident_objects, after.counters.lookups, io_loop.run(cache.access_log)) == (0, 0, None)  # type: ignore[union-attr]
    assert not after.follows(before)
    assert after.process_start == NOW + 100
    assert io_loop.run(cache.config).known().items() >= settings.items()
    advance(cache, 100)
    log = log_until_now(cache)
    assert log.timestamps[0] > NOW + 100
    assert log.chunk_size == settings.get("chunk_size", CHUNK_SIZE)
    assert sum(hits(cache)) > 0


def test_an_l2_is_attached_and_detached_while_it_runs() -> None:
    cache, log = quiet(), log_of(*conversations(2, 8))
    change(cache, l2_adapters=[L2])
    send(cache, log)
    io_loop.run(cache.clear)
    assert send(cache, log) == [8, 8]
    usage = io_loop.run(cache.tenants)[""]
    assert usage.l2_mb == pytest.approx(16 * CHUNK_BYTES / MB)
    change(cache, l2_adapters=[])
    assert io_loop.run(cache.snapshot).l2_used_bytes is None
    io_loop.run(cache.clear)
    assert send(cache, log) == [0, 0]


@pytest.mark.parametrize("policy", ["LFU", "FIFO"])
def test_with_a_policy_of_in_process_lmcache_it_serves_what_that_model_predicts(policy: InProcessPolicy) -> None:
    cache = made()
    advance(cache, 50)
    change(cache, eviction_policy=policy.lower())
    for _ in range(30):
        last = advance(cache, 10.1)
    log = log_until_now(cache)
    assert log.timestamps[0] > NOW + 50, "it was restarted"
    run = simulate_in_process(log, 100, policy)
    assert hits(cache) == run.hit_chunks.tolist()
    assert last.counters is not None
    assert last.counters.evictions == run.evicted_chunks > 0
    assert last.counters.stored_chunks - last.counters.evictions == last.resident_objects
    assert hits(cache) != simulate_server(log, ServerSetting(100)).hit_chunks.tolist()
    io_loop.run(cache.trim, 10 * CHUNK_BYTES)
    assert io_loop.run(cache.snapshot).resident_objects == 10


def test_in_process_lmcache_reports_no_watermark_and_the_way_back_is_a_restart_too() -> None:
    cache = made(eviction_watermark=0.7)
    before = io_loop.run(cache.config)
    change(cache, eviction_policy="lfu", max_size_mb=before.max_size_mb)
    config, support = io_loop.run(cache.config), io_loop.run(cache.support)
    assert (config.eviction_policy, config.eviction_watermark, config.eviction_ratio) == (EvictionPolicy.LFU, None, None)
    levels = {name: one.level.value for name, one in support.items()}
    assert {levels[name] for name in ("max_size_mb", "eviction_policy", "chunk_size")} == {"restart"}
    assert {levels[name] for name in ("eviction_watermark", "eviction_ratio", "l2_adapters")} == {"unsupported"}
    with pytest.raises(UnsupportedError, match="no watermark"):
        change(cache, eviction_watermark=0.5)
    change(cache, eviction_policy="lru")
    assert io_loop.run(cache.config) == before


def test_in_process_lmcache_is_modelled_without_l2() -> None:
    cache = made(l2_adapters=(L2,))
    with pytest.raises(UnsupportedError, match=r"eviction_policy cannot be changed: .* no L2"):
        change(cache, eviction_policy="lfu")
    with pytest.raises(UnsupportedError, match="cannot be simulated"):
        made(l2_adapters=(L2,), eviction_policy="fifo")
    change(cache, eviction_policy="lfu", l2_adapters=[])
    assert io_loop.run(cache.config).l2_adapters == ()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"eviction_policy": EvictionPolicy.MRU}, "only LRU, ARC and noop"),
        ({"l2_adapters": [L2, L2]}, "at most one L2 adapter"),
        ({"l2_store_policy": "skip_l1"}, "always default"),
        ({"tenant_quotas_mb": {"a": 1}}, "quotas"),
        ({"enabled": False}, "no off switch"),
    ],
)
def test_what_the_model_or_a_server_does_not_have_is_refused_and_changes_nothing(settings: dict[str, Any], why: str) -> None:
    cache = made()
    before = advance(cache, 50)
    with pytest.raises(UnsupportedError, match=f"{why}.*Nothing was changed"):
        change(cache, eviction_ratio=0.5, **settings)
    assert io_loop.run(cache.config).eviction_ratio == 0.2
    assert io_loop.run(cache.snapshot) == before


def test_every_setting_comes_with_how_it_can_be_changed() -> None:
    support = io_loop.run(made().support)
    assert set(support) == set(SETTINGS)
    assert all("simulated" in one.reason for one in support.values() if one.level is not SupportLevel.UNSUPPORTED)


def test_requests_in_other_chunks_are_refused_and_nothing_is_sent() -> None:
    cache = quiet(chunk_size=384)
    with pytest.raises(WorkloadError, match=r"chunks of 384 tokens\. Nothing was sent"):
        send(cache, log_of(range(4)))
    assert advance(cache, 10).counters.lookups == 0  # type: ignore[union-attr]


# ---- contents ----


def test_trim_drops_what_was_asked_for_longest_ago() -> None:
    cache, log = quiet(), log_of(*conversations(4, 16))
    send(cache, log)
    io_loop.run(cache.trim, 30 * CHUNK_BYTES)
    assert io_loop.run(cache.snapshot).resident_objects == 30
    assert send(cache, log) == [0, 0, 14, 16]


def test_chunks_are_listed_with_their_hits_and_deleted_by_hash_and_tenant() -> None:
    cache, log = quiet(), log_of(range(4), tenants=("acme",))
    assert send(cache, log) == [0]
    assert send(cache, log) == [4]
    entries = io_loop.run(cache.entries, 10)
    assert [(entry.hit_count, entry.token_count) for entry in entries] == [(1, CHUNK_SIZE)] * 4
    logged = log_until_now(cache)
    assert logged.hashes is not None
    hashes = [logged.hashes[chunk].tobytes().hex() for chunk in logged.request(0)]
    assert {entry.prefix_hash for entry in entries} == set(hashes)
    assert io_loop.run(cache.delete, "simulated", hashes[2:], "other") == 0
    assert io_loop.run(cache.delete, "simulated", [f"0x{one}" for one in hashes[2:]], "acme") == 2
    assert send(cache, log) == [2]


def test_tenants_share_nothing_and_their_use_adds_up() -> None:
    cache = made()
    last = advance(cache, 100)
    usage = io_loop.run(cache.tenants)
    assert set(usage) == {"tenant-1", "tenant-2"}
    assert sum(one.l1_mb or 0 for one in usage.values()) == pytest.approx(last.l1_used_bytes / MB)


@pytest.mark.parametrize("ask", ["warm", "delete_prefix", "pin"])
def test_what_cannot_be_named_or_done_is_refused(ask: str) -> None:
    cache = made()
    call: Callable[..., Any] = getattr(cache, ask)
    with pytest.raises(UnsupportedError, match=r"simulated.*Nothing was changed"):
        io_loop.run(partial(call, "m", [1] * 600, "", **({"pinned": True} if ask == "pin" else {})))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"options of the simulated cache determine traffic\.seed"):
        SimulatedOptions(traffic=AgentTraffic(seed=1))
    with pytest.raises(UnsupportedError, match="cannot be simulated"):
        made(l2_adapters=(L2, L2))
    with pytest.raises(UnsupportedError, match="cannot be simulated"):
        made(eviction_policy="mru")


def test_generated_traffic_has_a_past_when_the_cache_is_first_read_and_a_recording_has_none(tmp_path: Path) -> None:
    lived_in = io_loop.run(made(past_seconds=300).snapshot)
    assert lived_in == replace(advance(made(), 300), asked_at=NOW, taken_at=NOW, process_start=NOW - 300)
    fast = io_loop.run(made(past_seconds=300, speed=10).snapshot)
    assert (fast.process_start, fast.counters.lookups) == (NOW - 30, lived_in.counters.lookups)
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 1000, "output_length": 1, "hash_ids": [1, 2]}\n' * 3)
    assert io_loop.run(made(past_seconds=300, workload=trace, chunk_size=512).snapshot).process_start == NOW


# ---- under the operations ----


@pytest.fixture
def badly_set(tmp_path: Path) -> tuple[Operations, Cache]:
    """A cache that is far too small for its traffic, in real time, as an agent would find it."""
    settings = CacheSettings(target="simulated:", bounds=Bounds(max_size_mb=64), cooldown_seconds=0)
    registry = Registry(Settings(caches={"default": settings}, state_folder=tmp_path))
    # 20 s of it stand for 400 s of traffic.
    options = SimulatedOptions.model_validate(SMALL | {"traffic": BUSY, "speed": 20})
    cache = registry._caches["default"] = Cache("default", settings, SimulatedDeployment(options))
    return Operations(registry), cache


def test_tune_cache_improves_a_badly_set_cache_verifies_it_and_undoes_it(badly_set: tuple[Operations, Cache]) -> None:
    operations, cache = badly_set
    graph = build_tune_cache(operations=operations).compile()
    context = TuneContext(mode=Mode.AUTO, window_seconds=6, verify_seconds=30)
    report = TuneReport.model_validate(graph.invoke({"tune_reason": "test"}, context=context)["tune_report"])
    assert report.outcome is Outcome.IMPROVED, report.summary
    assert report.change is not None
    assert report.verification is not None
    before, after = (metrics.tokens.hit_rate for metrics in (report.verification.before, report.verification.after))
    assert before is not None
    assert after is not None
    assert after > before + 0.05
    io_loop.run(operations.undo, "default", report.change.change_id, "test")
    assert io_loop.run(cache.deployment.config).max_size_mb == SMALL["l1_size_mb"]


def test_the_first_look_at_the_simulated_default_shows_figures_and_advice(tmp_path: Path) -> None:
    settings = Settings(caches={"default": CacheSettings(target="simulated:")}, state_folder=tmp_path)
    operations = Operations(Registry(settings))
    metrics, advice = io_loop.run(operations.metrics), io_loop.run(operations.recommend)
    assert metrics.window.simulated
    assert metrics.hit_rate_percent is not None
    assert 50 < metrics.hit_rate_percent < 90
    assert advice.verdict is not Verdict.NO_DATA


def test_its_status_says_that_it_is_simulated(badly_set: tuple[Operations, Cache]) -> None:
    status = io_loop.run(badly_set[0].status)
    assert (status.backend, status.lmcache_version, status.instance_id) == ("simulated", "simulated", "simulated")
    assert "<html" in io_loop.run(badly_set[0].report).lower()
