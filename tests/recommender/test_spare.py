"""Claims about spare memory: what is called spare is not missed, and who gives it away is not advised to take it back."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observed import CHUNK_BYTES, CONFIG, as_served, observation
from test_beyond_the_engine import FOOTPRINT, behind

from agent_tools.models import MB, Bounds, CacheConfig, L2Adapter, SpareMemory, TokenCounts, Verdict
from agent_tools.recommender.modelled import predicted_hits, server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import recommend
from agent_tools.recommender.spare import KEPT, WORTH_TELLING
from agent_tools.tools.observe import describe_advice
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

LOG = AgentTraffic(requests=400, seed=11).generate()
WHOLE = LOG.unique_chunks * CHUNK_BYTES / MB
"""MB of all chunks of the log."""
STEPS = 5


def sized(size_mb: float, log: AccessLog = LOG, config: CacheConfig = CONFIG, **options: object) -> Observation:
    return as_served(log, config=config.model_copy(update={"max_size_mb": float(size_mb)}), **options)


def spare(seen: Observation) -> SpareMemory | None:
    return recommend(seen).spare


def saved(seen: Observation, size_mb: float) -> float:
    setting = server_setting(seen, {"max_size_mb": size_mb})
    assert setting is not None
    return predicted_hits(seen, setting).saved_rate


def test_the_smallest_size_that_keeps_the_hit_rate_is_found_and_a_smaller_one_does_not_keep_it() -> None:
    seen = sized(4 * WHOLE)
    found = spare(seen)
    assert found is not None
    assert found.enough_mb < 2 * WHOLE
    assert found.spare_mb == pytest.approx(4 * WHOLE - found.enough_mb)
    assert found.saved_now == saved(seen, 4 * WHOLE)
    assert found.saved_then == saved(seen, found.enough_mb) > found.saved_now - KEPT
    assert saved(seen, 0.9 * found.enough_mb) < found.saved_now - KEPT
    assert found.gain.estimate == pytest.approx(found.saved_then - found.saved_now)
    assert not found.beyond_own


def test_a_cache_that_uses_its_memory_has_none_to_spare() -> None:
    assert spare(sized(0.3 * WHOLE, bounds=Bounds(max_size_mb=8 * WHOLE))) is None
    assert spare(sized(0.3 * WHOLE, bounds=Bounds())) is None, "the bounds forbid it to grow; that makes no memory spare"


def test_it_stays_within_the_bounds() -> None:
    found = spare(sized(4 * WHOLE, bounds=Bounds(min_size_mb=3 * WHOLE, max_size_mb=8 * WHOLE)))
    assert found is not None
    assert 3 * WHOLE <= found.enough_mb < 3 * WHOLE + 1
    assert spare(sized(4 * WHOLE, bounds=Bounds(min_size_mb=3.9 * WHOLE, max_size_mb=8 * WHOLE))) is None


def test_without_a_log_or_with_a_model_that_is_off_nothing_is_called_spare() -> None:
    seen = sized(4 * WHOLE)
    assert spare(replace(seen, log=None)) is None
    tokens = seen.metrics.tokens
    off = TokenCounts(requested=tokens.requested, hit_l1=tokens.hit_l1 // 2)
    assert spare(replace(seen, metrics=seen.metrics.model_copy(update={"tokens": off}))) is None
    assert spare(observation(LOG, total_requests=5)) is None


def test_with_an_engine_only_what_its_own_cache_lacks_is_kept() -> None:
    """The engine holds all that comes again, so that LMCache saves nothing and needs no memory."""
    seen = behind(2 * FOOTPRINT)
    found = spare(seen)
    assert found is not None
    assert found.beyond_own
    assert found.enough_mb < (seen.config.max_size_mb or 0) / 10
    assert saved(seen, found.enough_mb) > found.saved_now - KEPT
    hits = predicted_hits(seen, server_setting(seen, {"max_size_mb": found.enough_mb}) or pytest.fail("no setting"))
    assert hits.rate < (seen.metrics.tokens.hit_rate or 0) - 0.05, "LMCache's own hit rate is not what counts"
    assert "what LMCache saves beyond the engine's own cache" in str(found)


def test_it_is_told_with_its_figures_and_its_limits() -> None:
    text = describe_advice(recommend(sized(4 * WHOLE)))
    (line,) = [line for line in text.splitlines() if line.startswith("spare memory: ")]
    assert "would keep the token hit rate" in line
    assert "90 % interval" in line
    assert line.endswith("Prompts that come back later than that are not counted")
    assert "spare memory" not in describe_advice(recommend(sized(0.3 * WHOLE)))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        AgentTraffic,
        requests=st.integers(60, 250),
        conversations=st.integers(2, 40),
        turns=st.integers(1, 8),
        spread=st.sampled_from([0.1, 0.5, 1.0]),
        seed=st.integers(0, 10**6),
    ),
    st.sampled_from([1.0, 1.5, 3.0, 10.0]),
    st.sampled_from([None, 1.0, 4.0]),
    st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.95, 0.05)]),
    st.sampled_from([(), (L2Adapter(type="mock", settings={"max_size_gb": 24 / 1024}),)]),
)
def test_who_gives_spare_memory_away_is_not_advised_to_take_it_back(
    traffic: AgentTraffic, times: float, bound: float | None, shape: tuple[float, float], l2: tuple[L2Adapter, ...]
) -> None:
    log = traffic.generate()
    size = max(times * log.unique_chunks * CHUNK_BYTES / MB, 2.0)
    bounds = Bounds(max_size_mb=None if bound is None else bound * size, trial_mb=8)
    config = CONFIG.model_copy(update={"eviction_watermark": shape[0], "eviction_ratio": shape[1], "l2_adapters": l2})
    look = partial(sized, log=log, config=config, bounds=bounds)
    best = saved(look(size), (bound or 100) * size)
    found = spare(look(size))
    for _ in range(STEPS):
        if found is None:
            return
        assert found.enough_mb <= (1 - WORTH_TELLING) * found.size_mb
        assert found.saved_then > best - KEPT, "however often it is followed, less than half a point is lost"
        again = recommend(look(found.enough_mb))
        assert again.verdict is Verdict.DO_NOTHING
        assert again.trial is None
        found = again.spare
    pytest.fail(f"still sparing after {STEPS} steps")
