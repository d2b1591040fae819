"""Claims about advice: it acts on evidence only, stays inside the bounds, and says why it does nothing."""

import re
from dataclasses import replace

import pytest
from observed import CONFIG, LIVE, as_served, observation
from real_logs import conversations, log_of

from agent_tools.models import (
    ActionKind,
    Advice,
    Bounds,
    CacheConfig,
    ConfigUpdate,
    EvictionPolicy,
    Health,
    OptimizationRecommendation,
    Rung,
    Support,
    SupportLevel,
    SymptomCode,
    TokenCounts,
    Verdict,
)
from agent_tools.models.advice import setting_changes
from agent_tools.recommender.recommend import WORTH_ACTING, recommend
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

AGENTS = AgentTraffic(requests=900, seed=11).generate()
"""Multi-turn agents whose chunks take some 45 MB."""
SMALL = AgentTraffic(requests=60, seed=11).generate()


def sound(advice: Advice) -> Advice:
    """What holds of any advice."""
    for one in advice.recommendations:
        assert one.description
        assert one.undo
        assert one.verification
        assert (one.action is ActionKind.RECONFIGURE) == (one.update is not None) == bool(one.changes)
        assert (one.action is ActionKind.OPTIMIZE) == (one.target_utilization_percent is not None)
        assert one.gain is None or one.rung is Rung.ACCESS_LOG
        assert one.confidence_reasons
    if advice.verdict is Verdict.ACT:
        assert advice.best is not None
        assert advice.best.within_bounds
        assert advice.best.gain is None or advice.best.gain.lower >= WORTH_ACTING
    else:
        assert advice.best is None
    assert advice.why
    assert Advice.model_validate(advice.model_dump(mode="json")).why == advice.why
    return advice


def test_a_cache_that_evicts_what_is_needed_again_is_made_larger() -> None:
    advice = sound(recommend(as_served(AGENTS)))
    assert advice.verdict is Verdict.ACT
    best = advice.best
    assert best is not None
    assert best.gain is not None
    assert best.update is not None
    assert best.category in {SymptomCode.L1_TOO_SMALL, SymptomCode.STORES_FAIL}
    assert 16 < (best.update.max_size_mb or 16) <= 64
    assert best.gain.lower > 0.05
    assert best.ceiling is not None
    assert best.ceiling >= (advice.token_hit_rate or 0) + best.gain.estimate - 1e-9
    assert best.cost.endswith("MB more memory")
    assert re.search(r", \+[\d.]+ points \(90 % interval \+[\d.]+ points to \+[\d.]+ points\)", best.expected_impact)


def test_the_size_stays_inside_the_bounds() -> None:
    advice = sound(recommend(as_served(AGENTS, bounds=Bounds(max_size_mb=20))))
    assert all(one.update is None or (one.update.max_size_mb or 0) <= 20 for one in advice.recommendations)


def test_without_a_largest_size_what_would_help_is_named_and_not_done() -> None:
    advice = sound(recommend(as_served(AGENTS, bounds=Bounds())))
    assert advice.verdict is Verdict.DO_NOTHING
    assert "The operator's bounds forbid the change that would help" in advice.why
    assert advice.recommendations
    assert not any(one.within_bounds for one in advice.recommendations)
    assert any("name no max_size_mb" in one.risk for one in advice.recommendations)


def test_a_restart_is_proposed_only_where_it_is_allowed() -> None:
    restart = {"max_size_mb": Support(level=SupportLevel.RESTART, reason="plain memory")}
    seen = as_served(AGENTS)
    for allowed in (True, False):
        bounds = Bounds(max_size_mb=64, allow_restart=allowed)
        advice = sound(recommend(replace(seen, support={**seen.support, **restart}, bounds=bounds)))
        assert (advice.verdict is Verdict.ACT) == allowed
        assert any("restart" in one.implementation_effort for one in advice.recommendations)
    assert "The operator's bounds forbid the change that would help" in advice.why


def test_a_help_that_is_forbidden_is_not_hidden_by_an_allowed_one_that_is_too_small() -> None:
    hidden = 0
    for tenths in range(161, 171):
        advice = sound(recommend(as_served(AGENTS, bounds=Bounds(max_size_mb=tenths / 10))))
        allowed = [one for one in advice.recommendations if one.within_bounds]
        if not allowed or is_worth_it(allowed[0]):
            continue
        hidden += any(is_worth_it(one) for one in advice.recommendations)
        assert advice.verdict is Verdict.DO_NOTHING
        assert advice.why.startswith("The operator's bounds forbid the change that would help")
    assert hidden


def test_a_gain_too_small_to_be_worth_a_change_is_not_acted_on() -> None:
    sizes_only = {**LIVE, "eviction_watermark": Support(level=SupportLevel.UNSUPPORTED, reason="a test")}
    bounds = [Bounds(max_size_mb=tenths / 10) for tenths in range(161, 171)]
    advice = [sound(recommend(as_served(AGENTS, bounds=one, support=sizes_only))) for one in bounds]
    small = [one for one in advice if one.recommendations and not is_worth_it(one.recommendations[0])]
    assert small
    for one in small:
        assert one.verdict is Verdict.DO_NOTHING
        assert one.why.startswith("The best change gains too little to be worth it: token hit rate")


@pytest.mark.parametrize("error", [0.01, 0.0, -0.01])
def test_without_prices_the_figure_that_ranks_is_the_gain_whichever_way_the_model_errs(error: float) -> None:
    seen = as_served(AGENTS)
    asked, hit = seen.metrics.tokens.requested, seen.metrics.tokens.hit_l1
    counted = TokenCounts(requested=asked, hit_l1=round(hit - error * asked))
    advice = recommend(replace(seen, metrics=seen.metrics.model_copy(update={"tokens": counted})))
    predicted = [one for one in advice.recommendations if one.update is not None]
    assert predicted
    for one in predicted:
        assert one.gain is not None
        assert one.benefit is not None
        ends = (one.benefit.lower, one.benefit.estimate, one.benefit.upper)
        assert ends == pytest.approx((one.gain.lower, one.gain.estimate, one.gain.upper))


def is_worth_it(one: OptimizationRecommendation) -> bool:
    return one.gain is not None and one.gain.lower >= WORTH_ACTING


def test_where_nothing_repeats_nothing_is_done() -> None:
    advice = sound(recommend(as_served(log_of(*conversations(200, 20)))))
    assert advice.verdict is Verdict.DO_NOTHING
    assert advice.recommendations == ()
    assert "no cache setting can help" in " ".join(symptom.summary for symptom in advice.symptoms)


def test_at_the_ceiling_nothing_is_done() -> None:
    advice = sound(recommend(as_served(SMALL)))
    assert advice.verdict is Verdict.DO_NOTHING
    assert advice.symptoms[0].code is SymptomCode.NOTHING_WRONG
    assert advice.recommendations == ()


def test_too_few_lookups_are_no_data() -> None:
    advice = sound(recommend(observation(total_requests=5, evictions=100)))
    assert advice.verdict is Verdict.NO_DATA
    assert "too few to judge" in advice.why


def test_incomplete_counters_are_no_data() -> None:
    advice = sound(recommend(as_served(AGENTS, dropped_events=9)))
    assert advice.verdict is Verdict.NO_DATA
    assert advice.recommendations == ()


def test_a_dead_thread_is_told_and_no_setting_is_proposed() -> None:
    sick = Health(healthy=False, problems=("the L1 eviction thread is dead",))
    advice = sound(recommend(as_served(AGENTS, health=sick)))
    assert advice.verdict is Verdict.DO_NOTHING
    assert advice.recommendations == ()
    assert "eviction thread is dead" in advice.why


def test_without_a_log_no_gain_is_predicted_and_only_the_log_is_asked_for() -> None:
    figures = {"evictions": 500, "failed_stores": 50, "tokens": TokenCounts(requested=256_000, hit_l1=25_600)}
    advice = sound(recommend(observation(**figures)))
    assert advice.verdict is Verdict.DO_NOTHING
    assert advice.rung is Rung.COUNTERS
    assert advice.recommendations == ()
    assert "--lookup-hash-log-dir" in " ".join(symptom.summary for symptom in advice.symptoms)


@pytest.mark.parametrize(
    "unknown",
    [
        {"max_size_mb": None},
        {"eviction_watermark": None},
        {"eviction_ratio": None},
    ],
)
def test_a_cache_that_the_model_does_not_cover_is_told_no_gain(unknown: dict[str, object]) -> None:
    seen = as_served(AGENTS)
    advice = sound(recommend(replace(seen, config=seen.config.model_copy(update=unknown), predicted={})))
    assert advice.verdict is Verdict.DO_NOTHING
    assert all(one.gain is None for one in advice.recommendations)


def test_a_cache_that_does_not_evict_is_told_a_policy_first() -> None:
    """Another watermark or ratio does nothing without a policy that evicts."""
    seen = as_served(AGENTS)
    noop = seen.config.model_copy(update={"eviction_policy": EvictionPolicy.NOOP, "auto_eviction": False})
    for one in sound(recommend(replace(seen, config=noop, predicted={}))).recommendations:
        assert one.update is not None
        assert one.update.eviction_policy is EvictionPolicy.LRU


def test_the_same_observation_gives_the_same_advice() -> None:
    one, other = (recommend(as_served(AGENTS)).model_dump(exclude={"created_at"}) for _ in range(2))
    assert one == other


def test_an_empty_log_is_no_log() -> None:
    empty = AccessLog(**{**vars(AGENTS.select([])), "hashes": None})
    seen = observation(evictions=10)
    object.__setattr__(seen, "log", empty)
    assert sound(recommend(seen)).rung is Rung.COUNTERS


def test_only_what_differs_is_a_change() -> None:
    support = observation().support
    update = ConfigUpdate(max_size_mb=16, eviction_watermark=0.6, eviction_ratio=0.2)
    (change,) = setting_changes(update, CONFIG.known(), support)
    assert str(change) == "eviction_watermark 0.8 -> 0.6 (restart)"
    assert setting_changes(update, CacheConfig().known(), support)[0].old is None


def test_what_would_help_beyond_the_bound_is_said_with_its_figure() -> None:
    advice = sound(recommend(as_served(AGENTS, bounds=Bounds(max_size_mb=18))))
    told = re.search(r"Beyond the bounds: (\d+) MB would give ([\d.]+)%; your bound is 18 MB", advice.why)
    assert told is not None
    assert float(told[1]) > 18
    assert float(told[2]) / 100 > (advice.token_hit_rate or 0) + 0.05
    assert "Beyond the bounds" not in recommend(as_served(AGENTS, bounds=Bounds(max_size_mb=1024))).why
