"""The clairvoyant bound: nothing does better, something does as well."""

from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logs import log_of, logs, trace

from agent_tools.prediction.clairvoyant import clairvoyant_hits, policy_gap
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.in_process_model import simulate_in_process
from agent_tools.workload.access_log import AccessLog


def _best_of_all_decisions(log: AccessLog, capacity: int) -> int:
    """Most prefix hits over every way to keep at most `capacity` of the chunks at hand after each request."""
    requests = [log.request(index).tolist() for index in range(len(log))]

    @cache
    def best(index: int, held: frozenset[int]) -> int:
        if index == len(requests):
            return 0
        hit = next((i for i, chunk in enumerate(requests[index]) if chunk not in held), len(requests[index]))
        at_hand = held | set(requests[index])
        size = min(capacity, len(at_hand))
        return hit + max(best(index + 1, frozenset(kept)) for kept in combinations(sorted(at_hand), size))

    return best(0, frozenset())


@settings(max_examples=40)
@given(logs(max_requests=5), st.integers(0, 3))
def test_the_bound_is_the_best_of_all_decisions(log: AccessLog, capacity: int) -> None:
    if log.unique_chunks <= 9:
        assert clairvoyant_hits(log, capacity).sum() == _best_of_all_decisions(log, capacity)


@given(logs(), st.integers(0, 20))
def test_no_policy_of_lmcache_does_better(log: AccessLog, capacity: int) -> None:
    bound = clairvoyant_hits(log, capacity).sum()
    assert hit_rate_curve(log).hits(capacity) <= bound <= hit_rate_curve(log).hits(log.unique_chunks)
    for policy in ("LRU", "LFU", "FIFO", "MRU"):
        assert simulate_in_process(log, capacity, policy).l1_hit_chunks.sum() <= bound  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.05, 0.10])
def test_the_reference_bound_on_recorded_traffic_is_reproduced(share: float) -> None:
    """facts/tuning.md, section 2: .382 / .382 at 5 / 10 % of the footprint against LRU .202 / .288."""
    log = trace("mooncake_conversation")
    capacity = share * log.unique_chunks
    assert round(clairvoyant_hits(log, capacity).sum() / len(log.chunk_ids), 3) == 0.382
    assert policy_gap(log, capacity) == pytest.approx(0.382 - {0.05: 0.202, 0.10: 0.288}[share], abs=0.001)


def test_without_anything_asked_there_is_no_gap() -> None:
    assert policy_gap(log_of([]), 10) == 0.0
    assert clairvoyant_hits(log_of([]), 10).tolist() == []
    assert policy_gap(log_of([[1, 2], [1, 2]]), 0) == 0.0
