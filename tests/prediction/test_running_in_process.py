"""Claims about the running model of in-process LMCache: many parts give what one run gives, and chunks can be removed between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import logs

from agent_tools.prediction.in_process_model import CODES, InProcessPolicy, simulate_in_process
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.running_in_process import RunningInProcess
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic


@pytest.mark.parametrize("policy", CODES)
@given(log=logs(), capacity=st.integers(0, 16), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_a_run_in_parts_equals_one_run(policy: InProcessPolicy, log: AccessLog, capacity: int, cuts: list[int]) -> None:
    whole = simulate_in_process(log, capacity, policy)
    log = isolated(log)
    running = RunningInProcess(capacity, policy)
    ends = sorted({*(min(cut, len(log)) for cut in cuts), len(log)})
    parts = [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
    hits, _, dropped = (np.concatenate(column) for column in zip(*(running.run(log, part, 0.0) for part in parts), strict=True))
    assert hits.tolist() == whole.hit_chunks.tolist()
    assert dropped.tolist() == whole.dropped_chunks.tolist()
    assert running.removed == whole.evicted_chunks
    assert running.stored - running.removed == running.in_l1.sum() <= capacity


def test_chunk_ids_that_appear_later_change_nothing() -> None:
    """The log grows as it is served, as under a simulated cache."""
    log = isolated(AgentTraffic(requests=400, seed=3).generate())
    running = RunningInProcess(200, "LFU")
    hits = [running.run(log.select(slice(0, n + 1)), slice(n, n + 1), 0.0)[0] for n in range(len(log))]
    assert np.concatenate(hits).tolist() == simulate_in_process(log, 200, "LFU").hit_chunks.tolist()
    assert running.removed > 0


def test_what_is_removed_is_the_first_to_be_evicted_or_the_named() -> None:
    log = isolated(AgentTraffic(requests=50, seed=3).generate())
    running = RunningInProcess(10_000, "FIFO")
    running.run(log, slice(0, len(log)), 0.0)
    before = running.in_l1.copy()
    running.drop_least_recent(7)
    first_stored = log.chunk_ids[np.sort(np.unique(log.chunk_ids, return_index=True)[1])][:7]
    assert np.flatnonzero(before & ~running.in_l1).tolist() == sorted(first_stored.tolist())
    assert running.drop(first_stored) == 0
    left = np.flatnonzero(running.in_l1).astype(np.int32)
    assert running.drop(left[:3]) == 3
    assert running.removed == 10
