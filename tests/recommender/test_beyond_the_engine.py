"""Claims about advice for an LMCache behind an engine whose own prefix cache (L0) is on: only what L0 lacks is worth anything."""

from dataclasses import replace

import numpy as np
import pytest
from observed import BYTES_PER_TOKEN, CHUNK_BYTES, CHUNK_SIZE, CONFIG, as_served

from agent_tools.deployments.snapshot import Served
from agent_tools.models import (
    MB,
    Confidence,
    SymptomCode,
    TokenCounts,
    Verdict,
    Verification,
    VerificationVerdict,
    Window,
)
from agent_tools.models.change import Baseline
from agent_tools.models.cost import Economics, Prefill
from agent_tools.models.engine import EngineMetrics, EngineSpeed, TimeToFirstToken
from agent_tools.models.metrics import utc
from agent_tools.prediction.engine_cache import engine_caches
from agent_tools.recommender.modelled import hits_since_change, model_error, predicted_hits, predicted_ttft, server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.proposals import propose
from agent_tools.recommender.recommend import recommend
from agent_tools.recommender.symptoms import diagnose
from agent_tools.recommender.trial import look
from agent_tools.recommender.verify import verify
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

LOG: AccessLog = AgentTraffic(requests=600, seed=3).generate()
FOOTPRINT = LOG.unique_chunks * CHUNK_SIZE
"""Distinct tokens of the workload."""
SMALL = CONFIG.model_copy(update={"max_size_mb": 0.25 * LOG.unique_chunks * CHUNK_BYTES / MB})
"""An L1 of a quarter of the workload, which evicts what is asked for again."""


def behind(own_tokens: int, *, usable: float = 1.0, stated: bool = False, size_known: bool = True) -> Observation:
    """Return what a small L1 shows behind an engine whose own cache has this size, and what that engine counted.

    Args:
        own_tokens: Size of the engine's own cache, tokens.
        usable: Share of it that the engine really uses for what is asked again.
        stated: Whether the operator states the size, and the engine cannot be read.
        size_known: Whether the engine's metrics give the size.
    """
    seen = as_served(LOG, config=SMALL, economics=Economics(prefill=Prefill(tokens_per_second=5_000)))
    if stated:
        return replace(seen, own_cache_tokens=own_tokens)
    (own,) = engine_caches(LOG, [int(usable * own_tokens)])
    setting = server_setting(seen)
    assert setting is not None
    hits = predicted_hits(seen, setting)
    prompts, asked = int(LOG.tokens.sum()), hits.asked.sum()
    loaded = int(np.maximum((hits.l1 + hits.l2) - own.hits, 0).sum(axis=1).mean() * CHUNK_SIZE)
    served = int(own.hits.sum() * CHUNK_SIZE)
    assert asked
    engine = EngineMetrics(
        seconds=600,
        requests=len(LOG),
        prompt_tokens=prompts,
        computed_tokens=prompts - served - loaded,
        own_cache_tokens=served,
        lmcache_tokens=loaded,
        own_cache_size_tokens=own_tokens if size_known else None,
    )
    return replace(seen, metrics=seen.metrics.model_copy(update={"engine": engine}), predicted={})


def test_without_a_cache_of_the_engines_own_the_gain_is_that_of_the_hit_rate() -> None:
    plain, off = as_served(LOG, config=SMALL), behind(0)
    assert [p.gain.estimate for p in propose(off)] == [p.gain.estimate for p in propose(plain)]
    assert off.ceiling == plain.ceiling


def test_behind_an_engine_that_holds_everything_nothing_is_proposed_and_it_says_why() -> None:
    seen = behind(2 * FOOTPRINT)
    assert seen.metrics.tokens.hit_rate is not None
    assert seen.metrics.tokens.hit_rate > 0.1
    advice = recommend(seen)
    assert advice.verdict is Verdict.DO_NOTHING
    assert "LMCache saves nothing here" in advice.why
    assert "No L1 size would change that" in advice.why
    assert all(one.gain is not None and one.gain.upper < 0.01 for one in advice.recommendations)
    assert all(one.saving is None or one.saving.gpu_seconds_per_hour.estimate < 1 for one in advice.recommendations)
    assert SymptomCode.LMCACHE_SAVES_NOTHING in {symptom.code for symptom in advice.symptoms}


def test_a_hundredth_that_lmcache_loads_is_next_to_nothing() -> None:
    seen = behind(2 * FOOTPRINT)
    engine = seen.metrics.engine
    assert engine is not None
    assert engine.prompt_tokens is not None
    loads = engine.model_copy(update={"lmcache_tokens": engine.prompt_tokens // 100})
    advice = recommend(replace(seen, metrics=seen.metrics.model_copy(update={"engine": loads})))
    assert advice.verdict is Verdict.DO_NOTHING
    assert "LMCache saves next to nothing here" in advice.why


def test_an_engine_that_holds_little_leaves_a_gain_that_is_smaller_than_the_hit_rates() -> None:
    alone, behind_small = recommend(behind(0)).best, recommend(behind(int(0.3 * FOOTPRINT))).best
    assert alone is not None
    assert behind_small is not None
    assert alone.gain is not None
    assert behind_small.gain is not None
    assert 0.01 < behind_small.gain.estimate < alone.gain.estimate
    assert "beyond the engine's own cache" in behind_small.expected_impact
    assert behind_small.ceiling is not None
    assert alone.ceiling is not None
    assert behind_small.ceiling < alone.ceiling


def test_the_predicted_savings_are_those_of_the_model_less_what_the_engine_has() -> None:
    seen = behind(int(0.4 * FOOTPRINT))
    setting = server_setting(seen)
    assert setting is not None
    hits = predicted_hits(seen, setting)
    assert hits.saved_rate < hits.rate
    assert hits.saved_rate == pytest.approx(seen.saved_rate, abs=0.02)


def test_what_running_requests_take_of_the_engines_cache_is_found_from_what_it_counted() -> None:
    seen = behind(FOOTPRINT // 2, usable=0.7)
    assert seen.own_cache is not None
    assert seen.own_cache.tokens == pytest.approx(0.7 * FOOTPRINT / 2, rel=0.05)
    assert seen.savings_known


def test_a_count_that_no_size_explains_withholds_the_predictions() -> None:
    seen = behind(FOOTPRINT // 2)
    engine = seen.metrics.engine
    assert engine is not None
    odd = engine.model_copy(update={"own_cache_tokens": 0, "computed_tokens": engine.prompt_tokens - engine.lmcache_tokens})
    seen = replace(seen, metrics=seen.metrics.model_copy(update={"engine": odd}))
    assert not seen.savings_known
    advice = recommend(seen)
    assert (advice.verdict, advice.recommendations) == (Verdict.DO_NOTHING, ())
    assert "the model does not explain" in advice.why


def test_an_engine_cache_of_unknown_size_withholds_them_too_until_its_size_is_stated() -> None:
    seen = behind(FOOTPRINT // 8, size_known=False)
    assert not seen.savings_known
    assert "engine_cache_tokens" in recommend(seen).why
    stated = replace(seen, own_cache_tokens=FOOTPRINT // 8)
    assert stated.savings_known
    assert recommend(stated).recommendations


def test_a_stated_size_is_enough_without_an_engine_to_read() -> None:
    whole = behind(2 * FOOTPRINT, stated=True)
    assert recommend(whole).verdict is Verdict.DO_NOTHING
    assert whole.ceiling == pytest.approx(0)


def test_without_an_engine_the_hit_rate_is_called_an_upper_bound_and_confidence_is_at_most_medium() -> None:
    best = recommend(as_served(LOG, config=SMALL)).best
    assert best is not None
    assert best.confidence in {Confidence.MEDIUM, Confidence.LOW}
    assert any("upper bound" in reason for reason in best.confidence_reasons)


def test_an_l1_smaller_than_the_engines_cache_is_named() -> None:
    codes = {symptom.code: symptom for symptom in diagnose(behind(FOOTPRINT // 2))}
    told = codes[SymptomCode.L1_SMALLER_THAN_ENGINE_CACHE]
    assert told.evidence[1].value == FOOTPRINT // 2
    assert SymptomCode.L1_SMALLER_THAN_ENGINE_CACHE not in {symptom.code for symptom in diagnose(behind(FOOTPRINT // 10))}


def test_time_to_first_token_counts_what_the_engine_serves_itself() -> None:
    speed = EngineSpeed(per_request=0.01, per_computed_token=1e-3, per_loaded_token=1e-5, requests=20, intervals=9)
    alone, shared = (
        recommend(replace(behind(tokens), engine_speed=speed)).recommendations[0].ttft for tokens in (0, FOOTPRINT // 3)
    )
    assert alone is not None
    assert shared is not None
    assert shared.now.mean < alone.now.mean
    assert shared.now.mean - shared.then.mean < alone.now.mean - alone.then.mean


def test_requests_that_wait_for_each_other_wait_less_where_each_is_faster() -> None:
    """The engine counted twice the time that a request takes alone, since others were before it."""
    speed = EngineSpeed(per_request=0.01, per_computed_token=1e-3, per_loaded_token=1e-5, requests=20, intervals=9)
    alone = replace(behind(0), engine_speed=speed)
    (setting, engine) = (server_setting(alone), alone.metrics.engine)
    assert setting is not None
    assert engine is not None
    now = predicted_ttft(alone, setting)
    assert now is not None
    counted = TimeToFirstToken(mean=2 * now.mean, p50=2 * now.p50, p95=2 * now.p95, p99=2 * now.p99)
    metrics = alone.metrics.model_copy(update={"engine": engine.model_copy(update={"ttft_ms": counted})})
    told, crowded = (recommend(one).recommendations[0].ttft for one in (alone, replace(alone, metrics=metrics)))
    assert told is not None
    assert crowded is not None
    assert crowded.now.mean == pytest.approx(2 * told.now.mean)
    assert crowded.then.mean == pytest.approx(2 * told.then.mean)


@pytest.mark.parametrize("stated", [True, False])
def test_a_size_that_is_stated_is_no_error_of_the_model(stated: bool) -> None:
    """What the model says is saved is compared with what was saved, and where nobody counts that, hits with hits."""
    seen = behind(int(0.05 * FOOTPRINT), stated=stated)
    setting = server_setting(seen)
    assert setting is not None
    hits = predicted_hits(seen, setting)
    assert hits.rate - hits.saved_rate > 0.01
    error = model_error(seen, hits)
    assert error is not None
    assert abs(error) < 0.005
    assert (seen.saved_rate is None) == stated


# ---- a trial ----

LARGER = SMALL.model_copy(update={"max_size_mb": 2 * (SMALL.max_size_mb or 0)})
HALF = len(LOG) // 2
A_READING = 5
"""Requests between two readings."""


def looked_at(own_tokens: int, *, saves_more: bool = True, stated: bool = False) -> Verification:
    """Look at a trial of twice the memory after half of the requests.

    LMCache counts the hits that the model predicts.

    Args:
        own_tokens: Size of the engine's own cache, tokens.
        saves_more: Whether the engine loads what the model predicts, or no more than it would have with the old size.
        stated: Whether the operator states the size, and the engine cannot be read.
    """
    seen = replace(as_served(LOG, config=LARGER), own_cache_tokens=own_tokens)
    assert seen.log is not None
    old, new = (server_setting(seen, {"max_size_mb": config.max_size_mb}) for config in (SMALL, LARGER))
    assert old is not None
    assert new is not None
    times = seen.log.timestamps
    whole, changed = seen.metrics.window, float(times[HALF]) - 0.001
    then, now = predicted_hits(seen, old), hits_since_change(seen, old, new, changed)
    hit, more, less = (
        (one * CHUNK_SIZE).mean(axis=0).astype(int)
        for one in (now.l1 + now.l2, now.saved_l1 + now.saved_l2, then.saved_l1 + then.saved_l2)
    )
    loaded, asked = more if saves_more else less, (seen.window_chunks * CHUNK_SIZE).astype(int)
    (own,) = engine_caches(LOG, [own_tokens])
    late = slice(HALF, None)
    prompts, served = int(LOG.tokens[late].sum()), int(own.hits[late].sum() * CHUNK_SIZE)
    engine = EngineMetrics(
        seconds=600,
        requests=len(LOG) - HALF,
        prompt_tokens=prompts,
        computed_tokens=prompts - served - int(loaded[late].sum()),
        own_cache_tokens=served,
        lmcache_tokens=int(loaded[late].sum()),
        own_cache_size_tokens=own_tokens,
    )
    since = Window(start=utc(changed), end=whole.end)
    after = seen.metrics.model_copy(update={"engine": None if stated else engine, "window": since})
    readings = [
        Served(
            float(times[i]) - 0.001,
            float(times[i + A_READING]) - 0.001,
            *(int(tokens[i : i + A_READING].sum()) for tokens in (asked, hit, loaded)),
        )
        for i in range(0, len(LOG) - A_READING, A_READING)
    ]
    before = seen.metrics.model_copy(update={"window": Window(start=whole.start, end=utc(changed))})
    return look(
        replace(seen, metrics=after, predicted={}, own_cache_tokens=own_tokens if stated else None),
        old,
        Baseline(metrics=before),
        [one for one in readings if one.end <= changed + 0.01],
        [one for one in readings if one.start >= changed],
        in_force=True,
    )


def test_a_trial_behind_an_engine_is_judged_by_what_the_engine_loads() -> None:
    """LMCache counts twenty points more hits each time, and where the engine loads no more of them, that is no gain."""
    assert looked_at(FOOTPRINT // 20).verdict is VerificationVerdict.BETTER
    nothing = looked_at(FOOTPRINT // 20, saves_more=False)
    assert nothing.verdict is VerificationVerdict.UNDECIDED
    assert nothing.gain is not None
    assert abs(nothing.gain.estimate) < 0.01


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_where_only_its_size_is_stated_a_trial_is_judged_less_what_the_model_says_it_holds(share: float) -> None:
    counted, stated = (looked_at(int(share * FOOTPRINT), stated=stated).gain for stated in (False, True))
    assert counted is not None
    assert stated is not None
    assert stated.estimate == pytest.approx(counted.estimate, abs=0.001)


def test_less_is_gained_behind_a_larger_cache() -> None:
    gains = [looked_at(int(share * FOOTPRINT)).gain for share in (0.05, 0.3)]
    assert [gain is not None and gain.estimate > 0.01 for gain in gains] == [True, True]
    assert gains[0] is not None
    assert gains[1] is not None
    assert gains[1].estimate < gains[0].estimate - 0.05


# ---- verification ----


def window(hit: int, saved: int, own: int = 6_000) -> Baseline:
    """Return a window of 10,000 prompt tokens, of which LMCache counted `hit` as hits and the engine loaded `saved`."""
    computed = 10_000 - own - saved
    engine = EngineMetrics(
        seconds=60,
        requests=50,
        prompt_tokens=10_000,
        computed_tokens=computed,
        own_cache_tokens=own,
        lmcache_tokens=saved,
    )
    tokens = TokenCounts(requested=10_000, hit_l1=hit)
    metrics = as_served(LOG, config=SMALL).metrics.model_copy(update={"tokens": tokens, "engine": engine})
    return Baseline(metrics=metrics, intervals=((500, hit // 20),) * 20)


def judged(before: Baseline, after: Baseline) -> tuple[VerificationVerdict, str]:
    seen = as_served(LOG, config=SMALL)
    done = verify(before, after, in_force=True, seen=replace(seen, metrics=after.metrics, log=None), old=None)
    return done.verdict, done.why


def test_a_change_that_raised_the_counter_and_saved_nothing_is_no_gain_for_the_engine() -> None:
    verdict, why = judged(window(3_000, 0), window(8_000, 0))
    assert verdict is VerificationVerdict.UNDECIDED
    assert why.startswith("No gain for the engine: it loaded 0.0% of its prompt tokens from LMCache before the change and 0.0%")


def test_a_change_that_saved_something_is_better() -> None:
    assert judged(window(3_000, 0), window(8_000, 2_000))[0] is VerificationVerdict.BETTER


def test_where_the_engine_was_read_the_gain_is_of_what_it_loaded() -> None:
    """LMCache's hit rate rose by 50 points, and what the engine loaded by 20."""
    before, after = (
        window(hit, saved).model_copy(update={"loaded": (saved // 20,) * 20}) for hit, saved in ((3_000, 0), (8_000, 2_000))
    )
    seen = as_served(LOG, config=SMALL)
    done = verify(before, after, in_force=True, seen=replace(seen, metrics=after.metrics, log=None), old=None)
    assert done.verdict is VerificationVerdict.BETTER
    assert done.gain is not None
    assert done.gain.estimate == pytest.approx(0.2)
    assert "20 readings of what the engine loaded from LMCache before" in done.why


def test_with_the_engines_cache_off_the_counter_is_what_is_saved() -> None:
    assert judged(window(3_000, 3_000, own=0), window(8_000, 8_000 - 6_000, own=0))[0] is VerificationVerdict.BETTER


def test_the_small_l1_is_small() -> None:
    assert (SMALL.max_size_mb or 0) * MB / BYTES_PER_TOKEN < FOOTPRINT / 2
