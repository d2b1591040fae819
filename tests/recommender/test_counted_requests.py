"""Claims about which requests were counted between two readings of the counters."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent_tools.deployments.snapshot import Served
from agent_tools.recommender.counted_requests import counted_between

REQUESTS = 60


def readings(counted_at: np.ndarray, asked: np.ndarray, edges: np.ndarray) -> tuple[list[Served], list[tuple[int, int]]]:
    """What a counter tells between readings, and the requests that it counted there."""
    places = np.searchsorted(counted_at, edges)
    between = [(int(a), int(b)) for a, b in pairwise(places)]
    spans = pairwise(edges)
    served = [Served(start, end, int(asked[a:b].sum()), 0) for (start, end), (a, b) in zip(spans, between, strict=True)]
    return served, between


def places(times: np.ndarray, asked: np.ndarray, served: list[Served]) -> list[tuple[int, int]]:
    return [(one.first, one.last) for one in counted_between(times, asked, served)]


@given(st.integers(0, 2**32 - 1), st.floats(-0.3, 0.3))
def test_requests_are_told_apart_by_what_was_counted_however_late_that_was(seed: int, late: float) -> None:
    draw = np.random.default_rng(seed)
    times, asked = np.sort(draw.uniform(0, 60, REQUESTS)), draw.integers(1, 500, REQUESTS) * 64
    served, between = readings(times + late, asked, np.arange(3.0, 57.0, 0.45))
    assert places(times, asked, served) == between


def test_where_log_and_counter_disagree_times_tell() -> None:
    """Half of the requests are not in the log, or readings are missing."""
    times, asked = np.arange(0.05, REQUESTS), np.arange(1, REQUESTS + 1) * 64
    served, between = readings(times + 0.1, asked, np.arange(10.0, 50.0))
    assert places(times, asked, served) == between
    half, gap = slice(None, None, 2), served[:5] + served[6:]
    assert places(times[half], asked[half], served) == by_time(times[half], served)
    assert places(times, asked, gap) == by_time(times, gap)


def by_time(times: np.ndarray, served: list[Served]) -> list[tuple[int, int]]:
    return [(int(np.searchsorted(times, one.start)), int(np.searchsorted(times, one.end))) for one in served]


def test_nothing_was_counted_without_readings_or_requests() -> None:
    assert counted_between(np.zeros(0), np.zeros(0, np.int64), []) == []
    assert places(np.zeros(0), np.zeros(0, np.int64), [Served(0.0, 1.0, 0, 0), Served(1.0, 2.0, 0, 0)]) == [(0, 0), (0, 0)]
