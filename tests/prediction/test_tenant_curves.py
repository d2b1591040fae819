"""A tenant's curve is that of its own requests alone, and the division of a capacity is the best there is."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import log_of, logs, lru_hits, trace

from agent_tools.prediction.divided_capacity import divide
from agent_tools.prediction.eviction_clock import EVERY_REQUEST
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.prediction.tenant_curves import COORDINATOR, QuotaEviction, tenant_curves
from agent_tools.workload.access_log import AccessLog


@given(logs(tenants=3))
def test_each_tenant_has_the_hits_of_a_naive_lru_cache_of_its_own(log: AccessLog) -> None:
    for label, one in enumerate(tenant_curves(log)):
        own = log.select(np.flatnonzero(log.tenants == label))
        assert (one.tenant, one.curve.footprint, one.curve.requests) == (f"tenant {label}", own.unique_chunks, len(own))
        for capacity in range(own.unique_chunks + 2):
            assert one.curve.hits(capacity) == sum(lru_hits(own, capacity))
            assert one.hits_per_request(capacity).tolist() == lru_hits(own, capacity)


@given(logs(tenants=2), st.integers(0, 20))
def test_only_counted_requests_count_but_all_warm_the_tenants_part(log: AccessLog, first: int) -> None:
    counted = np.arange(len(log)) >= first
    whole = tenant_curves(log)
    for one, all_of_it in zip(tenant_curves(log, counted=counted), whole, strict=True):
        for capacity in range(one.curve.footprint + 1):
            assert one.curve.hits(capacity) == all_of_it.hits_per_request(capacity)[counted[one.index]].sum()


def test_equal_chunks_of_two_tenants_are_not_shared() -> None:
    log = log_of([[1, 2], [1, 2], [1, 2]], tenants=np.array([0, 1, 1], np.int16), tenant_names=("a", "b"))
    assert [(one.curve.hits(9), one.curve.footprint) for one in tenant_curves(log)] == [(0, 2), (2, 2)]


def test_a_tenant_without_requests_has_a_curve_without_hits() -> None:
    for log in (log_of([[1]], tenant_names=("a", "b")), log_of([], tenant_names=("a", "b"))):
        idle = tenant_curves(log)[1]
        assert (idle.tenant, idle.curve.requests, idle.curve.footprint, idle.curve.hits(5)) == ("b", 0, 0, 0)
        assert not idle.useful_hits(QuotaEviction()).any()


@given(logs(tenants=2), st.sampled_from([(0.8, 0.2), (0.5, 0.5), (1.0, 0.2)]))
def test_what_is_said_to_be_never_evicted_is_not_evicted_by_the_server_model(log: AccessLog, how: tuple[float, float]) -> None:
    eviction = QuotaEviction(*how)
    curves = tenant_curves(log)
    quotas = {one.tenant: eviction.never_evicts(one.curve.footprint) for one in curves}
    setting = ServerSetting(
        capacity_chunks=1000,
        watermark=0.001,  # L1 forgets all at once, so that L2 alone gives the hits
        ratio=1.0,
        l2_capacity_chunks=1000,
        l2_watermark=eviction.watermark,
        l2_ratio=eviction.ratio,
        tenant_quotas=quotas,
    )
    run = simulate_server(log, setting, period=EVERY_REQUEST)
    assert run.l2_evicted_chunks == 0
    assert run.hit_chunks.sum() == sum(int(one.useful_hits(eviction)[-1]) for one in curves)
    for one in curves:
        assert eviction.lru_chunks(quotas[one.tenant], one.curve.footprint) == one.curve.footprint


def _two_halves() -> AccessLog:
    log = trace("mooncake_conversation")
    return replace(log, tenants=(np.arange(len(log)) % 2).astype(np.int16), tenant_names=("even", "odd"))


@pytest.mark.parametrize("how", [QuotaEviction(), COORDINATOR, QuotaEviction(0.9, 0.1)])
def test_a_quota_is_worth_its_share_in_use_to_the_server_model(how: QuotaEviction) -> None:
    """L2 alone on recorded traffic, IsolatedLRU checked after each request: within half a point of token hit rate."""
    log = _two_halves()
    curves = tenant_curves(log)
    for share in (0.05, 0.1, 0.2):
        quotas = {one.tenant: share * one.curve.footprint for one in curves}
        setting = ServerSetting(
            capacity_chunks=10_000,
            watermark=1e-6,
            ratio=1.0,
            l2_capacity_chunks=log.unique_chunks,
            l2_watermark=how.watermark,
            l2_ratio=how.ratio,
            tenant_quotas=quotas,
        )
        run = simulate_server(log, setting, period=EVERY_REQUEST)
        for one in curves:
            served = run.hit_chunks[one.index].sum() / one.curve.chunks
            assert one.curve.hit_rate(how.lru_chunks(quotas[one.tenant], one.curve.footprint)) == pytest.approx(served, abs=0.006)


# ---- the division ----

rising = st.lists(st.integers(0, 9), min_size=1, max_size=9).map(lambda steps: np.cumsum([0, *steps[1:]]))
falling = st.lists(st.integers(0, 9), min_size=1, max_size=9).map(lambda steps: np.cumsum([0, *sorted(steps[1:], reverse=True)]))


def _hits(curves: list[np.ndarray], parts: list[float]) -> int:
    return sum(int(curve[min(int(part + 1e-6), len(curve) - 1)]) for curve, part in zip(curves, parts, strict=True))


def _best(curves: list[np.ndarray], floors: list[int], capacity: int) -> int:
    """Every division there is."""
    ranges = [range(floor, max(len(curve), floor + 1)) for curve, floor in zip(curves, floors, strict=True)]
    return max(_hits(curves, list(parts)) for parts in product(*ranges) if sum(parts) <= capacity)


@given(st.lists(falling, min_size=2, max_size=3), st.integers(0, 20))
def test_concave_curves_are_divided_as_by_trying_everything(curves: list[np.ndarray], capacity: int) -> None:
    parts = divide(curves, [0] * len(curves), capacity)
    assert _hits(curves, parts) == _best(curves, [0] * len(curves), capacity)


@given(st.lists(rising, min_size=2, max_size=3), st.lists(st.integers(0, 3), min_size=3, max_size=3), st.integers(0, 12))
def test_curves_with_cliffs_are_divided_to_within_the_largest_block(
    curves: list[np.ndarray], floors: list[int], more: int
) -> None:
    floors = floors[: len(curves)]
    capacity = sum(floors) + more
    parts = divide(curves, floors, capacity)
    assert sum(parts) <= capacity + 1e-6
    for curve, part, floor in zip(curves, parts, floors, strict=True):
        assert floor <= part <= max(floor, len(curve) - 1) + 1e-6
        assert part == floor or curve[-1] > 0  # without hits, no more than the floor
    best = _best(curves, floors, capacity)
    largest = max(int(curve[-1] - curve[min(floor, len(curve) - 1)]) for curve, floor in zip(curves, floors, strict=True))
    assert best - largest <= _hits(curves, parts) <= best


@given(st.lists(logs(), min_size=2, max_size=3), st.integers(0, 30))
def test_curves_of_requests_are_divided_to_within_the_largest_block(each: list[AccessLog], capacity: int) -> None:
    curves = [tenant_curves(log)[0].useful_hits(QuotaEviction(1.0, 0.0)) for log in each]
    found, best = _hits(curves, divide(curves, [0] * len(curves), capacity)), _best(curves, [0] * len(curves), capacity)
    assert best - max(int(curve[-1]) for curve in curves) <= found <= best


def test_a_loop_that_does_not_fit_does_not_take_what_others_can_use() -> None:
    loop = np.array([0] * 10 + [100])  # nothing until all ten chunks are there
    slow = np.arange(11) * 2
    assert divide([loop, slow], [0, 0], 12) == [10, 2]
    assert divide([loop, slow], [0, 0], 9) == [0, 9]


def test_what_brings_nothing_any_more_goes_to_those_that_have_hits_by_what_they_can_still_use() -> None:
    early, late, none = np.array([0, 5, 5, 5, 5]), np.array([0, 5, 5, 5, 5, 5, 5]), np.zeros(9, np.int64)
    assert divide([early, late, none], [0, 0, 1], 7) == [2.5, 3.5, 1]
    assert divide([early, late, none], [0, 0, 1], 100) == [4, 6, 1]
