"""Claims about dividing a log among several engines whose requests it does not tell apart."""

import numpy as np
import pytest
from random_logs import log_of

from agent_tools.prediction.engine_cache import CountedEngine, counted_engine_cache, engine_caches
from agent_tools.prediction.engine_split import UNKNOWN, Admission, divided, matched
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

LOG: AccessLog = AgentTraffic(requests=400, seed=3).generate()
ALL = np.ones(len(LOG), np.bool_)


def served(log: AccessLog, engine_of: np.ndarray, sizes: tuple[int, int]) -> tuple[np.ndarray, list[CountedEngine]]:  # type: ignore[type-arg]
    """Return what two engines really serve of their requests, and what they count."""
    hits, engines = np.zeros(len(log), np.int64), []
    for number, size in enumerate(sizes):
        mine = np.flatnonzero(engine_of == number)
        (cache,) = engine_caches(log.select(mine), [size])
        hits[mine] = cache.hits
        prompts = int(log.tokens[mine].sum())
        engines.append(CountedEngine(size, prompts, cache.hits.sum() * log.chunk_size / prompts))
    return hits, engines


def admissions(log: AccessLog, engine_of: np.ndarray, every: float) -> list[Admission]:  # type: ignore[type-arg]
    """Return what readings `every` so many seconds would show of each engine."""
    found = []
    for end in np.arange(log.timestamps[0], log.timestamps[-1] + every, every):
        for engine in range(2):
            mine = (engine_of == engine) & (log.timestamps > end - every) & (log.timestamps <= end)
            if tokens := int(log.tokens[mine].sum()):
                found.append(Admission(float(end) + 1e-6, engine, tokens))
    return found


def test_readings_tell_which_engine_had_which_request() -> None:
    truth = np.random.default_rng(0).integers(2, size=len(LOG))
    gap = float(np.median(np.diff(LOG.timestamps)))
    found = matched(LOG, admissions(LOG, truth, gap), sticky=False)
    known = found != UNKNOWN
    assert known.mean() > 0.9
    assert (found[known] == truth[known]).mean() > 0.95


def test_what_no_lookups_add_up_to_stays_unknown() -> None:
    assert (matched(LOG, [Admission(float(LOG.timestamps[10]), 0, 1)], sticky=True) == UNKNOWN).all()


def test_of_prompts_of_equal_length_each_goes_to_the_engine_that_had_its_prefix() -> None:
    log = log_of([[1, 2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 9], [1, 2, 3, 10]], times=[0.0, 1.0, 2.0, 2.5])
    size = int(log.tokens[0])
    seen = [Admission(0.5, 0, size), Admission(1.5, 1, size), Admission(3.0, 0, size), Admission(3.1, 1, size)]
    assert matched(log, seen, sticky=True).tolist() == [0, 1, 1, 0]
    assert matched(log, seen, sticky=False).tolist() == [0, 1, 0, 1]


def test_sticky_prompts_stay_with_the_engine_that_has_their_prefix() -> None:
    log = log_of([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4, 9], [5, 6, 7, 8, 10]], times=[0.0, 1.0, 2.0, 3.0])
    unknown = np.full(4, UNKNOWN)
    assert divided(log, unknown, [1, 1], sticky=True).tolist() == [0, 1, 0, 1]
    assert divided(log, np.array([1, UNKNOWN, UNKNOWN, UNKNOWN]), [1, 1], sticky=True).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("sticky", [True, False])
def test_without_readings_the_division_that_explains_the_counters_is_taken(sticky: bool) -> None:
    truth = divided(LOG, np.full(len(LOG), UNKNOWN), [2, 1], sticky=sticky)
    footprint = LOG.unique_chunks * LOG.chunk_size
    hits, engines = served(LOG, truth, (footprint // 3, footprint // 6))
    found = counted_engine_cache(LOG, engines, ALL)
    assert ("with the engine that has their prefix" in found.split) is sticky
    assert found.error < 0.02
    assert abs(int(found.hits.sum()) - int(hits.sum())) * LOG.chunk_size < 0.02 * LOG.tokens.sum()


def test_engines_of_unequal_size_are_each_fitted_to_their_own_count() -> None:
    truth = np.random.default_rng(0).integers(2, size=len(LOG))
    footprint = LOG.unique_chunks * LOG.chunk_size
    hits, engines = served(LOG, truth, (footprint // 2, footprint // 10))
    found = counted_engine_cache(LOG, engines, ALL, admissions(LOG, truth, float(np.median(np.diff(LOG.timestamps)))))
    assert abs(int(found.hits.sum()) - int(hits.sum())) * LOG.chunk_size < 0.02 * LOG.tokens.sum()
    assert "by what each engine admitted" in found.split


def test_an_engine_whose_cache_is_off_serves_nothing() -> None:
    found = counted_engine_cache(LOG, [CountedEngine(0, 1, 0.0), CountedEngine(0, 1, 0.0)], ALL)
    assert not found.hits.any()
    assert found.error == 0
