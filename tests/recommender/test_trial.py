"""Claims about trials of small gains: what may be tried, how a trial is judged, and how often that errs."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from observed import CHUNK_BYTES, CHUNK_SIZE, CONFIG, LIVE, as_served

from agent_tools.deployments.snapshot import Served
from agent_tools.models import (
    MB,
    Advice,
    Bounds,
    Gain,
    OptimizationRecommendation,
    SupportLevel,
    SymptomCode,
    Verdict,
    VerificationVerdict,
)
from agent_tools.recommender.counted_requests import Counted
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import WORTH_ACTING, recommend
from agent_tools.recommender.sequential import LEAST, radius
from agent_tools.recommender.trial import cut, judge, worth_a_trial
from agent_tools.workload.generate import AgentTraffic
from benchmarks.trials import trial

BOUNDS = Bounds(max_size_mb=64)


def advice() -> Advice:
    return recommend(as_served(AgentTraffic(requests=900, seed=11).generate()))


# ---- what may be tried ----


def with_gain(one: Advice, lower: float, estimate: float, upper: float) -> Advice:
    gain = Gain(lower=lower, estimate=estimate, upper=upper, method="a test")
    benefit = {"lower": lower, "estimate": estimate, "upper": upper}
    changed = tuple(
        type(r).model_validate(r.model_dump() | {"gain": gain.model_dump(), "benefit": benefit}) for r in one.recommendations
    )
    return one.model_copy(update={"recommendations": changed})


def tried(gain: tuple[float, float, float], bounds: Bounds = BOUNDS, **changed: object) -> bool:
    """Whether the change of watermark and ratio in `advice` would be tried if its gain was this."""
    seen = with_gain(advice(), *gain).recommendations
    free = [live(one).model_copy(update=changed) for one in seen if one.update and set(one.update.known()) <= SHAPE]
    assert free
    return worth_a_trial(free, bounds, CONFIG) is not None


def live(one: OptimizationRecommendation) -> OptimizationRecommendation:
    """The same change on a server with our module."""
    changes = tuple(change.model_copy(update={"how": SupportLevel.LIVE}) for change in one.changes)
    return one.model_copy(update={"changes": changes})


SHAPE = {"eviction_watermark", "eviction_ratio"}


def test_a_live_change_of_small_gain_that_costs_nothing_is_tried() -> None:
    assert tried((-0.01, 0.02, 0.04))


@pytest.mark.parametrize("gain", [(-0.01, 0.004, 0.03), (-0.05, 0.006, 0.02)])
def test_a_change_below_half_a_point_or_as_likely_to_harm_is_not(gain: tuple[float, float, float]) -> None:
    assert not tried(gain)


def test_a_change_outside_the_bounds_or_with_a_restart_is_not_tried() -> None:
    assert not tried((-0.01, 0.02, 0.04), within_bounds=False)
    (some, *_) = (one for one in advice().recommendations if one.update and set(one.update.known()) <= SHAPE)
    restart = tuple(change.model_copy(update={"how": SupportLevel.RESTART}) for change in some.changes)
    assert not tried((-0.01, 0.02, 0.04), changes=restart)


def test_memory_is_tried_only_up_to_the_operators_trial_mb() -> None:
    seen = with_gain(advice(), -0.01, 0.02, 0.04).recommendations
    (size, *_) = (one for one in seen if one.update and set(one.update.known()) == {"max_size_mb"})
    assert size.update is not None
    added = (size.update.max_size_mb or 0) - 16
    assert worth_a_trial([size], BOUNDS, CONFIG) is None
    assert worth_a_trial([size], Bounds(max_size_mb=64, trial_mb=added), CONFIG) == size
    assert worth_a_trial([size], Bounds(max_size_mb=64, trial_mb=added - 1), CONFIG) is None


def test_a_trial_is_offered_only_where_nothing_is_worth_a_change() -> None:
    acts = advice()
    assert acts.verdict is Verdict.ACT
    assert acts.trial is None
    for seed in range(4):
        seen = as_served(AgentTraffic(requests=300, conversations=30, turns=8, seed=seed).generate(), bounds=Bounds())
        one = recommend(seen)
        if one.trial is not None:
            assert one.verdict is Verdict.DO_NOTHING
            assert one.trial.gain is not None
            assert one.trial.benefit is not None
            assert one.trial.benefit.lower < WORTH_ACTING
            assert "Worth a trial" in one.why


def healthy(share: float) -> Observation:
    """A cache that lacks nothing much, whose L1 holds this share of all chunks."""
    log = AgentTraffic(requests=1500, seed=2, tenants=1).generate()
    config = CONFIG.model_copy(update={"max_size_mb": share * log.unique_chunks * CHUNK_BYTES / MB})
    return as_served(log, config=config, support=LIVE | dict.fromkeys(SHAPE, LIVE["max_size_mb"]))


@pytest.mark.parametrize(("share", "tried"), [(0.25, {"eviction_watermark": 0.95, "eviction_ratio": 0.05}), (0.5, None)])
def test_a_small_gain_is_tried_though_nothing_is_wrong(share: float, tried: dict[str, float] | None) -> None:
    """An L1 of a quarter of all chunks loses a point and a half, which is no symptom; one of half of them loses nothing."""
    one = recommend(healthy(share))
    assert [symptom.code for symptom in one.symptoms] == [SymptomCode.NOTHING_WRONG]
    assert (one.verdict, one.recommendations) == (Verdict.DO_NOTHING, ())
    assert (one.trial and one.trial.update and one.trial.update.known()) == tried
    assert ("Worth a trial: change eviction_watermark from 0.8 to 0.9" in one.why) == (tried is not None)
    assert ("+1.3 points (90 % interval" in one.why) == (tried is not None), "nothing else says what it is expected to bring"


def test_behind_an_engines_cache_of_stated_size_a_small_gain_is_tried_too() -> None:
    """The cache that is stated holds next to nothing, so that advice is as without it."""
    seen = healthy(0.25)
    plain, stated = (recommend(one).trial for one in (seen, replace(seen, own_cache_tokens=CHUNK_SIZE, predicted={})))
    assert plain is not None
    assert stated is not None
    assert stated.update == plain.update


def test_the_bound_for_trials_can_only_be_narrowed() -> None:
    assert Bounds(trial_mb=8).narrowed(Bounds(trial_mb=2)).trial_mb == 2
    assert Bounds(trial_mb=2).narrowed(Bounds(trial_mb=8)).trial_mb == 2
    assert Bounds(trial_mb=8).narrowed(Bounds()).trial_mb == 8, "a run that does not name it narrows nothing"


# ---- how it is judged ----


def noise(count: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return mean + 0.01 * np.random.default_rng(seed).standard_normal(count)


def test_a_clear_difference_is_better_or_worse_and_too_few_blocks_say_nothing() -> None:
    assert judge(noise(20), noise(30, 0.05, 1), noise(30, 0, 1)).verdict is VerificationVerdict.BETTER
    assert judge(noise(20), noise(30, -0.05, 1), noise(30, 0, 1)).verdict is VerificationVerdict.WORSE
    assert judge(noise(20), noise(LEAST - 1, 0.5, 1), noise(LEAST - 1)).gain is None
    assert judge(noise(LEAST - 1), noise(30, 0.5, 1), noise(30)).gain is None


def test_what_the_model_foresees_is_no_doubt_however_unequal_and_what_it_does_not_foresee_is() -> None:
    """Every tenth block gains 30 points, the others nothing."""
    gains = np.where(np.arange(60) % 10 == 0, 0.3, 0.0)
    after = noise(60, seed=1) + gains
    foreseen, unforeseen = judge(noise(20), after, after - gains), judge(noise(20), after, after)
    assert foreseen.verdict is VerificationVerdict.BETTER
    assert unforeseen.verdict is VerificationVerdict.UNDECIDED
    assert foreseen.gain is not None
    assert unforeseen.gain is not None
    assert foreseen.gain.estimate == unforeseen.gain.estimate == pytest.approx(0.03, abs=0.005)


def test_the_models_own_error_is_no_gain() -> None:
    """The model understates the hit rate by 3 points, before the change and after it."""
    assert judge(noise(20, 0.03), noise(40, 0.03, 1), noise(40, 0.03, 1)).verdict is VerificationVerdict.UNDECIDED


def test_the_sequence_covers_the_mean_at_all_looks_together() -> None:
    missed = 0
    for seed in range(200):
        values = noise(120, seed=seed)
        missed += any(abs(values[:n].mean()) > radius(values[:n], 0.05) for n in range(LEAST, 121))
    assert missed <= 0.05 * 200


def test_blocks_hold_enough_tokens_and_a_rest_is_left_out() -> None:
    readings = [Counted(i, i + 1, Served(float(i), i + 1.0, 100, 60, loaded=55 if i else None)) for i in range(10)]
    assert cut(readings, np.full(10, 50.0), 300).tolist() == pytest.approx([0.1] * 3)
    assert cut(readings, np.full(10, 50.0), 300, by_engine=True).tolist() == pytest.approx([0.05] * 3)


def test_trials_of_nothing_are_rarely_kept_or_undone_and_real_gains_are_found() -> None:
    """A short run of benchmarks/trials.py, whose cache is not quite the one that the judge believes in."""
    change: dict[str, float] = {"watermark": 0.9, "ratio": 0.05}
    nothing = Counter(trial(seed, None, believed_in).verdict for seed in range(20) for believed_in in (None, change))
    assert nothing["better"] + nothing["worse"] <= 1
    gains = [trial(seed, change) for seed in range(6)]
    assert not any(one.verdict == "worse" for one in gains if one.true_gain > 0)
    assert any(one.verdict == "better" for one in gains)
