"""The server model does what LMCache 0.5.6 does: against its own policy objects, a naive two-tier cache, and by hand."""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import log_of, logs, trace
from real_policy import drive, lmcache_module

from agent_tools.prediction.cache_run import CacheRun
from agent_tools.prediction.eviction_clock import AT_ONCE, EVERY_REQUEST, StoreDelay
from agent_tools.prediction.eviction_order import empty_order
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.one_tier import OneTier
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.prediction.two_tiers import EVICTED, PEAK, Order, SecondTier, run_two_tiers
from agent_tools.workload.access_log import AccessLog

# facts/tuning.md, section 2: chunk hit ratio and failed chunks of LMCache's LRU policy object, watermark .8, ratio .2
POLICY_TABLE = [
    ("mooncake_conversation", 0.05, 0.1528, 0),
    ("mooncake_conversation", 0.10, 0.2491, 0),
    ("mooncake_conversation", 0.20, 0.3277, 0),
    ("lmcache_agent_miniswe", 0.05, 0.3152, 6107),
    ("lmcache_agent_miniswe", 0.10, 0.7133, 2180),
    ("lmcache_agent_miniswe", 0.20, 0.8729, 404),
]

# the same, at 5 % and 10 % of the footprint, for (watermark, ratio)
KNOBS = {
    "mooncake_conversation": {
        (0.8, 0.2): (0.153, 0.249),
        (0.8, 0.1): (0.162, 0.256),
        (0.8, 0.05): (0.166, 0.260),
        (0.9, 0.1): (0.178, 0.269),
        (0.9, 0.05): (0.183, 0.273),
        (0.95, 0.05): (0.192, 0.278),
    },
    "lmcache_agent_miniswe": {
        (0.8, 0.2): (0.315, 0.713),
        (0.8, 0.1): (0.292, 0.669),
        (0.8, 0.05): (0.232, 0.671),
        (0.9, 0.1): (0.026, 0.391),
        (0.9, 0.05): (0.026, 0.304),
        (0.95, 0.05): (0.026, 0.130),
    },
}

settings_of_l1 = st.builds(
    ServerSetting,
    capacity_chunks=st.integers(1, 20),
    watermark=st.sampled_from([0.2, 0.5, 0.7, 0.8, 0.95, 1.0]),
    ratio=st.sampled_from([0.05, 0.2, 0.5, 1.0, 1.7]),
)
phases = st.sampled_from([0.0, 0.3, 0.99])  # ticks that fall on no request's moment but the first, whatever the rounding


@pytest.fixture(scope="module", params=["LRU", "ARC"])
def policy_class(request: pytest.FixtureRequest) -> Any:
    module = lmcache_module(f"lmcache.v1.distributed.eviction_policy.{request.param.lower()}")
    return getattr(module, f"{request.param}EvictionPolicy")


@given(log=logs(), setting=settings_of_l1, phase=phases, period=st.sampled_from([EVERY_REQUEST, 0.73205, 1.0]))
def test_l1_equals_lmcaches_policy_object(
    policy_class: Any,
    log: AccessLog,
    setting: ServerSetting,
    phase: float,
    period: float,
) -> None:
    real = drive(policy_class(), log, setting, phase, period)
    run = simulate_server(log, setting, phase=phase, period=period)
    assert run.l1_hit_chunks.tolist() == real["hits"]
    assert run.dropped_chunks.tolist() == real["dropped"]
    assert run.evicted_chunks == real["evicted"]


@pytest.mark.parametrize(("name", "share", "hit_rate", "failed"), POLICY_TABLE)
def test_recorded_traffic_equals_lmcaches_policy_object_request_by_request(
    policy_class: Any,
    name: str,
    share: float,
    hit_rate: float,
    failed: int,
) -> None:
    log = trace(name)
    setting = ServerSetting(int(share * log.unique_chunks))
    run = simulate_server(log, setting, period=EVERY_REQUEST)
    assert (round(run.hit_rate, 4), run.failed_chunks) == (hit_rate, failed)
    real = drive(policy_class(), log, setting, 0, EVERY_REQUEST)
    assert run.l1_hit_chunks.tolist() == real["hits"]
    assert run.dropped_chunks.tolist() == real["dropped"]


@pytest.mark.parametrize("name", KNOBS)
def test_watermark_and_ratio_move_the_hit_rate_as_measured(name: str) -> None:
    log = trace(name)
    for (watermark, ratio), expected in KNOBS[name].items():
        settings = [ServerSetting(int(share * log.unique_chunks), watermark, ratio) for share in (0.05, 0.1)]
        runs = [simulate_server(log, setting, period=EVERY_REQUEST) for setting in settings]
        assert tuple(round(run.hit_rate, 3) for run in runs) == expected


def test_a_lower_watermark_rescues_a_cache_whose_requests_are_too_large() -> None:
    log = trace("lmcache_agent_miniswe")
    run = simulate_server(log, ServerSetting(int(0.05 * log.unique_chunks), 0.5, 0.1), period=EVERY_REQUEST)
    assert run.hit_rate == pytest.approx(0.550, abs=0.001)


def _chunk_by_chunk(
    log: AccessLog, setting: ServerSetting, phase: float, delay: StoreDelay
) -> tuple[list[int], list[int], int, int]:
    """L1 alone, computed by the kernel for two tiers."""
    tier = OneTier(setting.capacity_chunks, setting.watermark, setting.ratio, evicts=True)
    none = SecondTier(0, 1, 0, False, True, False, False, np.zeros(1))
    hits, l2_hits, dropped = (np.zeros(len(log), np.int32) for _ in range(3))
    counts = np.zeros(5, np.int64)
    orders = [Order(*empty_order(log.unique_chunks)) for _ in range(2)]
    owners = np.zeros(len(log), np.int32)
    first_tick = log.timestamps[0] + phase
    run_two_tiers(
        log.chunk_ids,
        log.offsets,
        log.timestamps,
        owners,
        tier,
        none,
        *orders,
        1.0,
        first_tick,
        delay,
        hits,
        l2_hits,
        dropped,
        counts,
    )
    return hits.tolist(), dropped.tolist(), int(counts[EVICTED]), int(counts[PEAK])


@pytest.mark.parametrize(("name", "share"), [(name, share) for name, share, *_ in POLICY_TABLE])
def test_the_order_of_requests_gives_nearly_the_same_when_stores_are_late(name: str, share: float) -> None:
    """It leaves out chunks that are stored behind a prefix that went meanwhile: they take room, and are not found."""
    log, delay = trace(name), StoreDelay(0.05, 0.02)
    setting = ServerSetting(int(share * log.unique_chunks))
    run = simulate_server(log, setting, phase=0.3, period=1.0, delay=delay)
    hits, *_ = _chunk_by_chunk(log, setting, 0.3, delay)
    assert run.l1_hit_chunks.sum() == pytest.approx(sum(hits), rel=0.001)
    assert run.l1_hit_chunks.sum() != simulate_server(log, setting, phase=0.3, period=1.0).l1_hit_chunks.sum() or share != 0.1


@pytest.mark.parametrize(("name", "share"), [(name, share) for name, share, *_ in POLICY_TABLE])
def test_the_order_of_requests_gives_the_same_as_the_order_of_chunks(name: str, share: float) -> None:
    log = trace(name)
    setting = ServerSetting(int(share * log.unique_chunks))
    run = simulate_server(log, setting, phase=0.3, period=1.0)
    expected = _chunk_by_chunk(log, setting, 0.3, AT_ONCE)
    assert (run.l1_hit_chunks.tolist(), run.dropped_chunks.tolist(), run.evicted_chunks, run.peak_chunks) == expected


def _naive_two_tiers(  # noqa: C901 - long and plain on purpose
    log: AccessLog, setting: ServerSetting, phase: float, delay: StoreDelay
) -> tuple[list[int], list[int], list[int]]:
    """Both tiers in dictionaries, step by step as in LMCache's source: (L1 hits, L2 hits, dropped)."""
    l1: OrderedDict[int, None] = OrderedDict()
    l2: dict[str | None, OrderedDict[int, None]] = {}
    quotas = setting.tenant_quotas
    rows: tuple[list[int], list[int], list[int]] = ([], [], [])

    def evict(order: OrderedDict[int, None], size: float, watermark: float, ratio: float) -> None:
        if order and size and len(order) / size >= watermark:
            for _ in range(max(int(len(order) * min(ratio, 1.0)), 1 if ratio else 0)):
                order.popitem(last=False)

    def tick() -> None:
        evict(l1, setting.capacity_chunks, setting.watermark, setting.ratio)
        for tenant, order in l2.items() if setting.l2_evicts else ():
            quota = setting.l2_capacity_chunks if quotas is None else quotas.get(tenant or "", 0)
            if quota == 0:
                order.clear()
            evict(order, quota, setting.l2_watermark, setting.l2_ratio)

    next_tick = log.timestamps[0] + phase * 0.73205 if len(log) else 0.0

    def pass_time(until: float) -> None:
        nonlocal next_tick
        while next_tick <= until:
            tick()
            next_tick += 0.73205

    for index in range(len(log)):
        pass_time(log.timestamps[index])
        request = log.request(index).tolist()
        own = l2.setdefault(None if quotas is None else log.tenant_names[log.tenants[index]], OrderedDict())
        l1_prefix = next((i for i, c in enumerate(request) if c not in l1), len(request))
        found = next((i for i, c in enumerate(request) if c not in l1 and c not in own), len(request))
        loads = [c for c in request[:found] if c not in l1]
        if len(l1) + len(loads) > setting.capacity_chunks:
            found, loads = l1_prefix, []
        for chunk in reversed(loads):
            own.move_to_end(chunk)
            if setting.l2_prefetch_policy == "retain":
                l1[chunk] = None
        for chunk in reversed(request[:found]):
            if chunk in l1:
                l1.move_to_end(chunk)
        stored_at = log.timestamps[index] + delay.per_request + delay.per_chunk * (len(request) - found)
        pass_time(min(stored_at, log.timestamps[index + 1]) if index + 1 < len(log) else stored_at)
        missing = [c for c in request[found:] if c not in l1]
        fits = len(l1) + len(missing) <= setting.capacity_chunks
        if fits:
            l1.update(dict.fromkeys(reversed(missing)))
            total = sum(len(order) for order in l2.values())
            new = [c for c in missing if c not in own]
            kept = new[: max(int(setting.l2_capacity_chunks) - total, 0)] if setting.l2_hard_limit else new
            again = [] if setting.l2_hard_limit else [c for c in missing if c in own]
            for chunk in reversed([c for c in missing if c in kept or c in again]):
                own[chunk] = None
                own.move_to_end(chunk)
        for chunk in reversed(request):
            if chunk in l1:
                l1.move_to_end(chunk)
        for row, value in zip(rows, (min(l1_prefix, found), max(found - l1_prefix, 0), 0 if fits else len(missing)), strict=True):
            row.append(value)
    return rows


@given(
    logs(tenants=2),
    settings_of_l1,
    st.fixed_dictionaries(
        {
            "l2_capacity_chunks": st.integers(1, 30),
            "l2_prefetch_policy": st.sampled_from(["default", "retain"]),
            "l2_watermark": st.sampled_from([0.3, 0.8, 1.0]),
            "l2_ratio": st.sampled_from([0.0, 0.2, 0.6]),
            "l2_evicts": st.booleans(),
            "l2_hard_limit": st.booleans(),
            "tenant_quotas": st.sampled_from([None, {}, {"tenant 0": 4.0}, {"tenant 0": 3.0, "tenant 1": 12.0}]),
        }
    ),
    phases,
    st.sampled_from([AT_ONCE, StoreDelay(0.31, 0.0), StoreDelay(0.0, 0.17), StoreDelay(9.0, 0.0)]),
)
def test_two_tiers_equal_a_naive_pair_of_caches(
    log: AccessLog, l1: ServerSetting, l2: dict[str, Any], phase: float, delay: StoreDelay
) -> None:
    setting = replace(l1, **l2)
    run = simulate_server(log, setting, phase=phase, period=0.73205, delay=delay)
    l1_hits, l2_hits, dropped = _naive_two_tiers(log, setting, phase, delay)
    assert run.l1_hit_chunks.tolist() == l1_hits
    assert run.l2_hit_chunks.tolist() == l2_hits
    assert run.dropped_chunks.tolist() == dropped


@given(logs())
def test_a_cache_that_never_fills_gives_what_the_curve_gives(log: AccessLog) -> None:
    run = simulate_server(log, ServerSetting(2 * log.unique_chunks + 1))
    assert run.hit_tokens == hit_rate_curve(log).hit_tokens(log.unique_chunks)
    assert run.peak_chunks == log.unique_chunks
    assert (run.failed_chunks, run.evicted_chunks) == (0, 0)


def test_a_store_larger_than_the_free_space_is_dropped_whole() -> None:
    log = log_of([[1, 2, 3], [4, 5], [1, 2, 3], [4, 5]], times=[0, 0.1, 0.2, 0.3])
    run = simulate_server(log, ServerSetting(4), phase=0.9)
    assert run.dropped_chunks.tolist() == [0, 2, 0, 2]
    assert run.l1_hit_chunks.tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize(("delay", "hits"), [(AT_ONCE, [0, 1]), (StoreDelay(0.6, 0.1), [0, 3])])
def test_what_an_engine_still_computes_cannot_be_evicted(delay: StoreDelay, hits: list[int]) -> None:
    """Seen with a real vLLM: a client that waits for its answers finds all that it stored a moment ago."""
    log = log_of([[1, 2, 3], [1, 2, 3]], times=[0, 1])
    run = simulate_server(log, ServerSetting(4, watermark=0.5, ratio=0.7), phase=0.5, period=1.0, delay=delay)
    assert run.l1_hit_chunks.tolist() == hits


def test_a_store_is_never_later_than_the_next_lookup() -> None:
    log = log_of([[1, 2, 3], [1, 2, 3]], times=[0, 1])
    assert simulate_server(log, ServerSetting(4), delay=StoreDelay(1e9, 0.0)).l1_hit_chunks.tolist() == [0, 3]


def test_a_watermark_above_what_fits_freezes_the_cache_for_good() -> None:
    """Seen live: 0.9375 used, watermark 0.95, every store failing, nothing evicted."""
    log = log_of([[n, n + 100] for n in range(40)])
    run = simulate_server(log, ServerSetting(15, watermark=0.95))
    assert (run.peak_chunks, run.evicted_chunks, run.failed_chunks) == (14, 0, 66)


def test_a_tick_evicts_the_deepest_chunks_of_the_oldest_request_first() -> None:
    log = log_of([[1, 2, 3], [4, 5], [1, 2, 3]], times=[0, 0.1, 1.5])
    run = simulate_server(log, ServerSetting(6, ratio=0.4), phase=0.5)
    assert run.evicted_chunks == 2
    assert run.l1_hit_chunks.tolist() == [0, 0, 1]


def test_after_a_long_pause_ticks_stop_at_the_watermark() -> None:
    log = log_of([list(range(10)), [11]], times=[0, 10_000])
    run = simulate_server(log, ServerSetting(10, watermark=0.5, ratio=0.1))
    assert run.evicted_chunks == 6  # 10 -> 4: the first count below half


@pytest.mark.parametrize("policy", ["noop", "IsolatedLRU"])
def test_policies_that_never_evict_l1_keep_what_came_first(policy: Any) -> None:
    log = log_of([[1, 2], [3, 4], [5, 6], [1, 2], [5, 6]])
    run = simulate_server(log, ServerSetting(4, watermark=0.1, ratio=1, policy=policy))
    assert run.l1_hit_chunks.tolist() == [0, 0, 0, 2, 0]
    assert (run.evicted_chunks, run.failed_chunks) == (0, 4)


def test_time_that_runs_backwards_evicts_nothing_and_a_jump_ahead_is_survived() -> None:
    log = log_of([[1, 2], [3, 4], [1, 2], [5]], times=[1e9, 5.0, 6.0, 1e300])
    run = simulate_server(log, ServerSetting(4, watermark=0.5, ratio=0.5))
    assert run.l1_hit_chunks.tolist() == [0, 0, 2, 0]
    assert run.evicted_chunks == 3  # 4 -> 2 -> 1


def test_one_tenant_without_quota_loses_everything_in_l2() -> None:
    log = log_of(
        [[1, 2], [3, 4], [1, 2], [3, 4]],
        times=[0, 0.1, 3, 3.1],
        tenants=np.array([0, 1, 0, 1], np.int16),
        tenant_names=("known", "unknown"),
    )
    setting = ServerSetting(4, watermark=0.5, ratio=1, l2_capacity_chunks=100, tenant_quotas={"known": 50})
    run = simulate_server(log, setting)
    assert run.l2_hit_chunks.tolist() == [0, 0, 2, 0]
    assert run.l2_evicted_chunks == 2


def _is_all_zero(run: CacheRun) -> bool:
    return (run.hit_rate, run.l1_hit_rate, run.l2_hit_rate, run.hit_tokens, run.failed_chunks) == (0.0, 0.0, 0.0, 0, 0)


@pytest.mark.parametrize("l2", [0, 10])
def test_logs_without_chunks_give_zeros(l2: float) -> None:
    setting = ServerSetting(10, l2_capacity_chunks=l2)
    for log in (log_of([]), log_of([[]], tails=[3]), log_of([[], []], tails=[1, 2])):
        assert _is_all_zero(simulate_server(log, setting))
        assert len(simulate_server(log, setting).hit_chunks) == len(log)


def test_an_l1_of_no_size_drops_every_store() -> None:
    run = simulate_server(log_of([[1, 2], [1, 2]]), ServerSetting(0))
    assert (run.hit_rate, run.failed_chunks, run.peak_chunks) == (0.0, 4, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity_chunks": -1},
        {"capacity_chunks": float("nan")},
        {"capacity_chunks": 1, "watermark": -0.1},
        {"capacity_chunks": 1, "ratio": float("nan")},
        {"capacity_chunks": 1, "l2_capacity_chunks": -1},
        {"capacity_chunks": 1, "tenant_quotas": {"a": -1.0}},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        ServerSetting(**wrong)


def test_a_clock_that_means_nothing_is_refused() -> None:
    log = log_of([[1], [2]])
    for period in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive number of seconds"):
            simulate_server(log, ServerSetting(4), period=period)
    with pytest.raises(ValueError, match="not finite"):
        simulate_server(log_of([[1]], times=[float("nan")]), ServerSetting(4))
