"""Claims about the engine's own prefix cache (L0) and what LMCache saves beyond it."""

from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import log_of, logs

from agent_tools.errors import WorkloadError
from agent_tools.prediction.engine_cache import engine_caches
from agent_tools.prediction.forecast import forecast
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog


class BlockPool:
    """vLLM's pool of blocks: a queue of free blocks that requests free tail first, and that is reused from its front."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.free: OrderedDict[int, None] = OrderedDict()
        """Cached blocks of ended requests, the next to be reused first."""

    def serve(self, prompt: list[int]) -> int:
        hits = 0
        while hits < len(prompt) and prompt[hits] in self.free:
            hits += 1
        for block in prompt:  # the request takes its blocks: those it found, and new ones in place of the oldest free ones
            self.free.pop(block, None)
        while self.free and len(self.free) + len(prompt) > self.blocks:
            self.free.popitem(last=False)
        for block in reversed(prompt):
            self.free[block] = None
        while len(self.free) > self.blocks:
            self.free.popitem(last=False)
        return hits


@given(logs(), st.integers(1, 30))
def test_it_serves_what_a_pool_of_blocks_serves(log: AccessLog, blocks: int) -> None:
    pool = BlockPool(blocks)
    prompts = [log.chunk_ids[a:b].tolist() for a, b in pairwise(log.offsets)]
    (cache,) = engine_caches(log, [blocks * log.chunk_size])
    assert cache.hits.tolist() == [pool.serve(prompt) for prompt in prompts]


@given(logs(), st.integers(1, 30), st.integers(1, 30))
def test_lmcache_saves_only_what_the_engine_lacks(log: AccessLog, blocks: int, capacity: int) -> None:
    (cache,) = engine_caches(log, [blocks * log.chunk_size])
    prediction = predict_server(log, ServerSetting(capacity))
    saved = cache.saved(prediction)
    assert 0 <= saved <= prediction.hit_rate + 1e-12
    by_hand = [sum(max(hit - own, 0) for hit, own in zip(run.hit_chunks, cache.hits, strict=True)) for run in prediction.runs]
    assert saved == pytest.approx(np.mean(by_hand) / cache.asked if cache.asked else 0.0)


ROUNDS = log_of([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]] * 4, times=[float(second) for second in range(0, 36, 3)])
"""Three prompts in turn, four times."""


def test_an_engine_that_holds_everything_leaves_lmcache_nothing() -> None:
    found = forecast(ROUNDS, capacities_chunks=[100], engine_cache_tokens=[12 * 4])
    assert found.engine_caches[0].served == pytest.approx(0.75)
    assert found.rows[0].server == pytest.approx(0.75)
    assert found.rows[0].saved == (0.0,)
    assert any("less than 1% more at every size shown" in note for note in found.notes)


def test_an_engine_that_holds_too_little_leaves_lmcache_everything() -> None:
    found = forecast(ROUNDS, capacities_chunks=[3, 100], engine_cache_tokens=[8 * 4])
    assert found.engine_caches[0].served == 0
    assert [row.saved[0] for row in found.rows] == [row.server for row in found.rows]
    assert any("from an L1 of 100 chunks on" in note for note in found.notes)


def test_several_sizes_are_told_apart_in_their_order() -> None:
    found = forecast(ROUNDS, capacities_chunks=[100], engine_cache_tokens=[48, 4])
    assert [cache.tokens for cache in found.engine_caches] == [48, 4]
    assert found.rows[0].saved == pytest.approx((0.0, 0.75))
    assert found.table()[0]["saved_beyond_48"] == 0


@pytest.mark.parametrize("tokens", [0, -5])
def test_a_size_that_is_not_positive_is_refused(tokens: int) -> None:
    with pytest.raises(WorkloadError, match="positive number of tokens"):
        forecast(ROUNDS, engine_cache_tokens=[tokens])
