"""The model of in-process LMCache against LMCache's own cache policies."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import log_of, logs, trace
from real_policy import lmcache_module

from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.in_process_model import InProcessPolicy, simulate_in_process
from agent_tools.workload.access_log import AccessLog

POLICIES: list[InProcessPolicy] = ["LRU", "LFU", "FIFO", "MRU"]


class _Free:
    can_evict = True


def drive(policy: Any, log: AccessLog, capacity: int) -> tuple[list[int], list[int], int]:
    """``LocalCPUBackend`` of LMCache 0.5.6 step by step, with LMCache's policy object: (hits, not stored, evicted)."""
    cache = policy.init_mutable_mapping()
    hits, dropped, evicted = [], [], 0
    for index in range(len(log)):
        request = log.request(index).tolist()
        hit = next((i for i, chunk in enumerate(request) if chunk not in cache), len(request))
        for chunk in reversed(request[:hit]):  # touch_cache
            policy.update_on_hit(chunk, cache)
        allocated: list[int] = []
        for chunk in request[hit:]:
            while len(cache) + len(allocated) >= capacity and cache:
                (victim,) = policy.get_evict_candidates(cache, num_candidates=1)
                cache.pop(victim)  # remove(force=False) tells the policy nothing more
                evicted += 1
            if len(cache) + len(allocated) >= capacity:
                break
            allocated.append(chunk)
        for chunk in allocated:  # batched_submit_put_task
            if chunk not in cache:
                cache[chunk] = _Free()
                policy.update_on_put(chunk)
        hits.append(hit)
        dropped.append(len(request) - hit - len(allocated))
    return hits, dropped, evicted


@pytest.fixture(scope="module", params=POLICIES)
def policy_name(request: pytest.FixtureRequest) -> InProcessPolicy:
    lmcache_module("lmcache.v1.storage_backend.cache_policy")
    return request.param  # type: ignore[no-any-return]


def _real(name: InProcessPolicy) -> Any:
    return lmcache_module("lmcache.v1.storage_backend.cache_policy").get_cache_policy(name)


@given(log=logs(), capacity=st.integers(0, 16))
def test_the_model_equals_lmcaches_policy_object(policy_name: InProcessPolicy, log: AccessLog, capacity: int) -> None:
    run = simulate_in_process(log, capacity, policy_name)
    expected = drive(_real(policy_name), log, capacity)
    assert (run.l1_hit_chunks.tolist(), run.dropped_chunks.tolist(), run.evicted_chunks) == expected


@pytest.mark.parametrize(("name", "share"), [("mooncake_conversation", 0.1), ("lmcache_agent_miniswe", 0.1)])
def test_recorded_traffic_equals_lmcaches_policy_object(policy_name: InProcessPolicy, name: str, share: float) -> None:
    log = trace(name).select(slice(0, 2000))
    capacity = int(share * log.unique_chunks)
    run = simulate_in_process(log, capacity, policy_name)
    expected = drive(_real(policy_name), log, capacity)
    assert (run.l1_hit_chunks.tolist(), run.dropped_chunks.tolist(), run.evicted_chunks) == expected


def test_a_prompt_larger_than_the_memory_is_stored_in_part() -> None:
    run = simulate_in_process(log_of([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]), 3)
    assert run.l1_hit_chunks.tolist() == [0, 3]
    assert run.dropped_chunks.tolist() == [2, 0]
    assert run.evicted_chunks == 2


@given(logs())
def test_a_memory_that_never_fills_gives_what_the_curve_gives(log: AccessLog) -> None:
    for policy in POLICIES:
        run = simulate_in_process(log, log.unique_chunks, policy)
        assert run.hit_tokens == hit_rate_curve(log).hit_tokens(log.unique_chunks)
        assert run.evicted_chunks == 0


def test_nothing_asked_and_nothing_to_hold_give_zeros() -> None:
    for policy in POLICIES:
        assert simulate_in_process(log_of([]), 10, policy).hit_rate == 0.0
        assert simulate_in_process(log_of([[1, 2], [1, 2]]), 0, policy).failed_chunks == 4


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="LRU, LFU, FIFO, MRU"):
        simulate_in_process(log_of([[1]]), 3, "ARC")  # type: ignore[arg-type]
