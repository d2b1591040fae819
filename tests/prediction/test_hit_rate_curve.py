"""The curve is exact: against a naive cache, LMCache's own simulator, and published figures."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import log_of, logs, lru_hits, trace

from agent_tools.prediction.chunk_size import with_larger_chunks
from agent_tools.prediction.hit_rate_curve import (
    HitRateCurve,
    curves_by_model,
    curves_by_tenant,
    hit_rate_curve,
    hits_per_request,
)
from agent_tools.prediction.live_window import LiveHitRateCurve
from agent_tools.workload.access_log import AccessLog

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20, 0.50)

# facts/tuning.md, section 1: unbounded token and chunk hit ratio, then token hit ratio at these shares of the footprint
REFERENCE = {
    "mooncake_conversation": (0.3734, 0.3819, (0.0532, 0.0784, 0.1977, 0.2818, 0.3505, 0.3700)),
    "mooncake_synthetic": (0.6504, 0.6594, (0.0365, 0.0765, 0.1529, 0.2539, 0.3898, 0.5928)),
    "lmcache_agent_miniswe": (0.9180, 0.9371, (0.2399, 0.4270, 0.6451, 0.7703, 0.9065, 0.9171)),
    "lmcache_agent_taubench": (0.3552, 0.7883, (0.1546, 0.1546, 0.1546, 0.3420, 0.3552, 0.3552)),
}


@given(logs())
def test_every_capacity_equals_a_naive_lru_cache(log: AccessLog) -> None:
    curve = hit_rate_curve(log)
    for capacity in range(log.unique_chunks + 2):
        assert curve.hits(capacity) == sum(lru_hits(log, capacity))


@given(logs(), st.integers(0, 20))
def test_every_request_has_the_hits_of_a_naive_lru_cache(log: AccessLog, capacity: int) -> None:
    assert hits_per_request(log, capacity).tolist() == lru_hits(log, capacity)


@given(logs())
def test_every_capacity_equals_a_naive_lru_cache_that_touches_heads_first(log: AccessLog) -> None:
    curve = hit_rate_curve(log, touch_order="head_first")
    for capacity in range(log.unique_chunks + 2):
        assert curve.hits(capacity) == sum(lru_hits(log, capacity, tail_first=False))


@given(logs(), st.data())
def test_only_the_counted_requests_count_but_all_use_the_cache(log: AccessLog, data: st.DataObject) -> None:
    counted = np.array(data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log))), bool)
    curve = hit_rate_curve(log, counted=counted)
    for capacity in range(log.unique_chunks + 2):
        assert curve.hits(capacity) == sum(np.array(lru_hits(log, capacity), int)[counted])
    assert curve.chunks == log.chunks_per_request[counted].sum()


@given(logs(tenants=3))
def test_tenants_and_models_hits_add_up_to_the_whole(log: AccessLog) -> None:
    whole = hit_rate_curve(log)
    tenants = curves_by_tenant(log)
    assert sum(curve.tokens for curve in tenants.values()) == whole.tokens
    for capacity in range(log.unique_chunks + 1):
        assert sum(curve.hits(capacity) for curve in tenants.values()) == whole.hits(capacity)
    assert np.array_equal(curves_by_model(log)[""].hit_chunks, whole.hit_chunks)


def test_equal_chunks_of_two_tenants_or_models_are_not_shared() -> None:
    one = np.array([0, 1], np.int16)
    for labels in ({"tenants": one, "tenant_names": ("a", "b")}, {"models": one, "model_names": ("a", "b")}):
        curve = hit_rate_curve(log_of([[1, 2, 3], [1, 2, 3]], **labels))
        assert (curve.hits(6), curve.footprint) == (0, 6)


@pytest.fixture(scope="module")
def simulate() -> Callable[..., dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Google's packages warn about this Python when lmcache imports them
        module = pytest.importorskip("lmcache.tools.cache_simulator.simulator", reason="lmcache is not installed")
    return module.simulate


@given(log=logs())
def test_head_first_equals_lmcaches_own_simulator_at_every_capacity(simulate: Callable[..., Any], log: AccessLog) -> None:
    _assert_equal_to_lmcache(simulate, log, range(1, log.unique_chunks + 2))


@pytest.mark.parametrize("name", REFERENCE)
def test_head_first_equals_lmcaches_own_simulator_on_recorded_traffic(simulate: Callable[..., Any], name: str) -> None:
    log = trace(name).select(slice(0, 1500))
    _assert_equal_to_lmcache(simulate, log, sorted({max(1, log.unique_chunks * k // 40) for k in range(40)}))


def _assert_equal_to_lmcache(simulate: Callable[..., Any], log: AccessLog, capacities: Any) -> None:
    events = [
        {"chunk_hashes": log.request(i).tolist(), "seq_len": int(log.tokens[i]), "chunk_size": log.chunk_size}
        for i in range(len(log))
    ]
    curve = hit_rate_curve(log, touch_order="head_first")
    for capacity in capacities:
        theirs = simulate(events, capacity, 1, fast=True)
        assert theirs["total_hit_tokens"] == curve.hit_tokens(capacity)
        assert theirs["token_hit_rate"] == curve.hit_rate(capacity, "whole_prompts")


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_table_is_reproduced(name: str) -> None:
    log = trace(name)
    unbounded_tokens, unbounded_chunks, at_shares = REFERENCE[name]
    curve = hit_rate_curve(log)
    assert round(curve.ceiling("whole_prompts"), 4) == unbounded_tokens
    assert round(curve.ceiling(), 4) == unbounded_chunks
    capacities = [max(1, round(share * log.unique_chunks)) for share in SHARES]
    assert [round(curve.hit_rate(capacity, "whole_prompts"), 4) for capacity in capacities] == list(at_shares)


def test_mooncakes_published_curve_is_reproduced() -> None:
    """Mooncake (FAST'25), Fig. 9: 3 M tokens give about 41 % of the maximum on conversation, 50 M nearly all; Table 2: 40 %."""
    curve = hit_rate_curve(trace("mooncake_conversation"))
    assert curve.hit_rate(3e6 / 512) / curve.ceiling() == pytest.approx(0.41, abs=0.03)
    assert curve.hit_rate(50e6 / 512) / curve.ceiling() > 0.99
    assert curve.ceiling() == pytest.approx(0.40, abs=0.02)
    assert hit_rate_curve(trace("mooncake_synthetic")).ceiling() == pytest.approx(0.66, abs=0.005)


def test_the_table_and_the_smallest_useful_capacity_say_what_the_curve_says() -> None:
    curve = hit_rate_curve(log_of([[1, 2], [3], [1, 2], [3, 4]], tails=[3, 0, 0, 1]))
    assert curve.hit_chunks.tolist() == [0, 0, 1, 3]
    assert (curve.capacity_for(0.3), curve.capacity_for(0.34), curve.useful_capacity) == (2, 3, 3)
    row = curve.table([3])[0]
    assert row == {
        "capacity_chunks": 3,
        "share_of_footprint": 3 / 4,
        "hit_chunks": 3,
        "hit_rate": 12 / 28,
        "hit_rate_whole_prompts": 12 / 32,
    }
    with pytest.raises(ValueError, match="between 0 and 1"):
        curve.capacity_for(1.1)


def test_part_of_a_chunk_is_no_capacity() -> None:
    curve = hit_rate_curve(log_of([[1, 2], [1, 2]]))
    assert [curve.hits(capacity) for capacity in (-1, 0, 0.9, 1, 1.99, 2, float(10**9))] == [0, 0, 0, 1, 1, 2, 2]


def _is_all_zero(curve: HitRateCurve) -> bool:
    return (curve.hits(10), curve.hit_rate(10), curve.ceiling("whole_prompts"), curve.useful_capacity) == (0, 0.0, 0.0, 0)


def test_logs_without_reuse_give_zeros() -> None:
    assert _is_all_zero(hit_rate_curve(log_of([])))
    assert _is_all_zero(hit_rate_curve(log_of([[1, 2, 3]])))
    shorter_than_a_chunk = hit_rate_curve(log_of([[], [], []], tails=[3, 2, 1]))
    assert _is_all_zero(shorter_than_a_chunk)
    assert (shorter_than_a_chunk.requests, shorter_than_a_chunk.tokens) == (3, 6)
    assert curves_by_tenant(log_of([]))[""].requests == 0


@pytest.mark.parametrize(
    ("ids", "culprit"),
    [
        ([0, 1, 1], 1),  # chunk 1 followed chunk 0 before
        ([0, 2, 0, 1], 0),  # not numbered by first appearance
        ([0, 1, 1, 0], 1),
        ([0, 1, -5, 0], 1),
    ],
)
def test_ids_that_do_not_stand_for_prefixes_are_refused(ids: list[int], culprit: int) -> None:
    log = log_of([[0, 1], [0] * (len(ids) - 2)])
    log = AccessLog(**(vars(log) | {"chunk_ids": np.array(ids, np.int32)}))
    with pytest.raises(ValueError, match=f"request {culprit} breaks the contract"):
        hit_rate_curve(log)


@given(logs(), st.integers(1, 4))
def test_larger_chunks_are_what_a_server_with_larger_chunks_would_have_logged(log: AccessLog, factor: int) -> None:
    larger = with_larger_chunks(log, factor)
    prefixes = [
        [tuple(log.request(i)[: n + 1].tolist()) for n in range(factor - 1, len(log.request(i)), factor)] for i in range(len(log))
    ]
    numbers = {prefix: number for number, prefix in enumerate(dict.fromkeys(p for request in prefixes for p in request))}
    expected = log_of([[numbers[prefix] for prefix in request] for request in prefixes])
    assert larger.chunk_size == log.chunk_size * factor
    assert np.array_equal(larger.chunk_ids, expected.chunk_ids)
    assert np.array_equal(larger.offsets, expected.offsets)
    assert np.array_equal(larger.tokens, log.tokens)


def test_chunks_cannot_be_made_smaller() -> None:
    with pytest.raises(ValueError, match="larger"):
        with_larger_chunks(log_of([[1]]), 0)


def _hashed(log: AccessLog, names: list[int]) -> AccessLog:
    return AccessLog(**(vars(log) | {"hashes": np.array(names, "<u8").view(np.uint8).reshape(len(names), 8)}))


def _pieces(log: AccessLog, cuts: list[int]) -> list[AccessLog]:
    whole = _hashed(log, [chunk * 256 for chunk in range(log.unique_chunks)])  # some of their bytes are 0
    return [whole.select(slice(start, stop)) for start, stop in zip([0, *cuts], [*cuts, len(log)], strict=True)]


@given(logs(tenants=2), st.data())
def test_a_live_window_fed_in_pieces_gives_the_curve_of_the_whole_log(log: AccessLog, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=4)))
    window = LiveHitRateCurve()
    for piece in _pieces(log, cuts):
        window.add(piece)
        assert window.curve().requests <= len(log)
    assert np.array_equal(window.curve().hit_chunks, hit_rate_curve(log).hit_chunks)
    since = float(log.timestamps[len(log) // 2]) if len(log) else 0.0
    expected = hit_rate_curve(log, counted=log.timestamps >= since)
    assert np.array_equal(window.curve(since=since).hit_chunks, expected.hit_chunks)


def test_a_live_window_forgets_what_is_older_than_its_history() -> None:
    log = log_of([[n, n + 1000] for n in (1, 2, 3, 4, 5, 6, 1, 6)])
    window = LiveHitRateCurve(history_chunks=8)
    for piece in _pieces(log, list(range(1, 8))):
        window.add(piece)
    assert len(window.log()) < 8
    assert window.curve().hits(100) == 2  # of the second request for 6; the first one for 1 is forgotten
    assert window.log().unique_chunks == len(window.log().hashes)


def test_pieces_that_cannot_be_joined_are_refused() -> None:
    window = LiveHitRateCurve()
    with pytest.raises(ValueError, match="no requests"):
        window.curve()
    with pytest.raises(ValueError, match="joined by hash"):
        window.add(log_of([[1]]))
    window.add(_hashed(log_of([[1]]), [1]))
    with pytest.raises(ValueError, match="chunks of 4 tokens, but this piece has 8"):
        window.add(_hashed(log_of([[1]], chunk_size=8), [1]))
    with pytest.raises(ValueError, match="history_chunks"):
        LiveHitRateCurve(history_chunks=0)
