"""Fixtures for the graphs: a cache that has something to be tuned."""

import time

import pytest
from real_cache import Play
from real_logs import FEW_BIG
from tuning import THRASHING, Window, l1_mb, readings

from agent_tools.caches.registry import Cache
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations


@pytest.fixture
def known_state(cache: Cache) -> None:
    """The test starts from a cache of 16 MB."""
    assert l1_mb(cache) == 16


@pytest.fixture
def thrashed(cache: Cache, play: Play, operations: Operations) -> Window:
    """The cache after it has thrashed; readings were taken all the while, so that there is an interval to judge by."""
    io_loop.run(operations.metrics)
    started = time.time()
    with readings(operations):
        play(THRASHING, pace=THRASHING.duration / 5)
    assert cache.history.latest is not None
    return Window(started)


@pytest.fixture
def filled(cache: Cache, play: Play, operations: Operations) -> Window:
    """The cache after it has thrashed for a moment: enough to recommend by, too little to verify by."""
    io_loop.run(operations.metrics)
    started = time.time()
    play(FEW_BIG, kv_bytes_per_token=512, pace=FEW_BIG.duration / 3)  # for more than one eviction tick, whenever they fall
    assert cache.history.latest is not None
    return Window(started)
