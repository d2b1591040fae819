"""Rank the proposed changes and decide: act, do nothing, or wait for more data."""

from collections.abc import Mapping

from agent_tools.models import (
    ActionKind,
    Advice,
    Confidence,
    OptimizationRecommendation,
    Rung,
    SupportLevel,
    Symptom,
    SymptomCode,
    Verdict,
)
from agent_tools.models.advice import setting_changes
from agent_tools.models.cost import Range
from agent_tools.models.metrics import now

from .freezing import gain_of_dropping
from .modelled import MODEL_OFF, gain_in_points, predicted_rate, saved_share, server_setting
from .observation import Observation
from .proposals import Proposal, beyond_the_bound, propose
from .refusals import refusals
from .spare import spare_memory
from .symptoms import diagnose
from .symptoms.rule import NOTICEABLE
from .trial import WORTH_TRYING, worth_a_trial

WORTH_ACTING = 0.01
"""Smallest lower bound of a benefit, as token hit rate, that is worth a change."""
LIVE = "live, no restart"
"""Effort of a change that needs no restart."""
TREATABLE = (
    SymptomCode.REQUEST_LARGER_THAN_L1,
    SymptomCode.WATERMARK_TOO_HIGH,
    SymptomCode.L1_NEVER_EVICTS,
    SymptomCode.MODEL_STARVES,
    SymptomCode.L1_TOO_SMALL,
    SymptomCode.L2_TOO_SMALL,
    SymptomCode.STORES_FAIL,
    SymptomCode.L2_LOADS_FAIL,
    SymptomCode.L2_SLOW,
    SymptomCode.L2_NOT_RETAINED,
)
"""Symptoms that a size, watermark, ratio or L2 setting can treat, the most specific first."""
UNTREATABLE = {
    SymptomCode.NO_DATA,
    SymptomCode.EVICTION_DEAD,
    SymptomCode.MODEL_NOT_REGISTERED,
    SymptomCode.MODEL_WITHOUT_LAYOUT,
    SymptomCode.ISOLATED_LRU_ON_L1,
    SymptomCode.COUNTERS_INCOMPLETE,
}
"""Symptoms that make every proposal worthless until the operator removes them."""


def recommend(seen: Observation) -> Advice:
    """Return the advice for one observation of a cache."""
    symptoms = diagnose(seen)
    recommendations = sorted(_recommendations(seen, symptoms), key=_rank)
    verdict, why = _decide(seen, symptoms, recommendations)
    small = recommendations or _small_gains(seen, symptoms)
    trial = worth_a_trial(small, seen.bounds, seen.config) if verdict is Verdict.DO_NOTHING else None
    if trial is not None:
        why = f"{why}. Worth a trial: {trial.title}" + ("" if recommendations else f" ({trial.expected_impact})")
    if recommendations:
        why += _beyond(seen, recommendations)
    calm = verdict is Verdict.DO_NOTHING and trial is None and not any(map(_is_worth_it, recommendations))
    sound = not UNTREATABLE & {symptom.code for symptom in symptoms}
    return Advice(
        cache=seen.cache,
        created_at=now(),
        window=seen.metrics.window,
        token_hit_rate=seen.metrics.tokens.hit_rate,
        symptoms=symptoms,
        recommendations=tuple(recommendations),
        verdict=verdict,
        why=why,
        rung=seen.rung,
        trial=trial,
        spare=spare_memory(seen, recommendations) if calm and sound else None,
    )


def _recommendations(seen: Observation, symptoms: tuple[Symptom, ...]) -> list[OptimizationRecommendation]:
    codes = {symptom.code for symptom in symptoms}
    symptom = next((s for code in TREATABLE for s in symptoms if s.code is code), None)
    if symptom is None or codes & UNTREATABLE:
        return []
    found = [_reconfigure(seen, symptom, proposal) for proposal in propose(seen)]
    if SymptomCode.WATERMARK_TOO_HIGH in codes and seen.log is not None:
        found += _thaw(seen, next(s for s in symptoms if s.code is SymptomCode.WATERMARK_TOO_HIGH))
    return found


def _small_gains(seen: Observation, symptoms: tuple[Symptom, ...]) -> list[OptimizationRecommendation]:
    """Return changes that may be tried although no symptom asks for any: what is lost is too little for one."""
    if {one.code for one in symptoms} & {*TREATABLE, *UNTREATABLE}:
        return []
    saved, ceiling = saved_share(seen), seen.ceiling
    if saved is None or ceiling is None or ceiling - saved < WORTH_TRYING:
        return []
    return [_reconfigure(seen, symptoms[0], proposal) for proposal in propose(seen)]


def _decide(seen: Observation, symptoms: tuple[Symptom, ...], ranked: list[OptimizationRecommendation]) -> tuple[Verdict, str]:
    codes = {symptom.code: symptom for symptom in symptoms}
    for blocking in (SymptomCode.COUNTERS_INCOMPLETE, SymptomCode.NO_DATA):
        if blocking in codes:
            return Verdict.NO_DATA, codes[blocking].summary
    worth = [recommendation for recommendation in ranked if _is_worth_it(recommendation)]
    if worth and worth[0].within_bounds:
        return Verdict.ACT, f"{worth[0].title}: {worth[0].expected_impact}"
    if worth:
        return Verdict.DO_NOTHING, f"The operator's bounds forbid the change that would help: {worth[0].title} ({worth[0].risk})"
    return Verdict.DO_NOTHING, _why_not(seen, symptoms, ranked)


def _why_not(seen: Observation, symptoms: tuple[Symptom, ...], ranked: list[OptimizationRecommendation]) -> str:
    """Return why no change is worth it."""
    codes = {symptom.code: symptom for symptom in symptoms}
    if SymptomCode.LMCACHE_SAVES_NOTHING in codes:
        return codes[SymptomCode.LMCACHE_SAVES_NOTHING].summary
    if not seen.savings_known:
        return f"Nothing says what more hits of LMCache would save: {seen.savings_unknown}"
    if ranked:
        return f"The best change gains too little to be worth it: {ranked[0].expected_impact}"
    return symptoms[0].summary + _nothing_better(seen, codes)


def _nothing_better(seen: Observation, codes: Mapping[SymptomCode, Symptom]) -> str:
    """Return a remark that no setting is better, if a symptom can be treated and the search tried settings."""
    if not codes.keys() & set(TREATABLE) or codes.keys() & UNTREATABLE or seen.curve is None or server_setting(seen) is None:
        return ""
    priced = seen.economics is not None and seen.economics.prices is not None
    return "; none of the settings that we tried is better" + (" by enough to pay for its memory" if priced else "")


def _beyond(seen: Observation, ranked: list[OptimizationRecommendation]) -> str:
    """Say what L1 size would help beyond the operator's bound, if it helps noticeably more than all that lies within it."""
    found, setting = beyond_the_bound(seen), server_setting(seen)
    if found is None or setting is None:
        return ""
    size, rate = found
    gains = [one.gain.estimate for one in ranked if one.gain is not None and one.within_bounds]
    if rate - predicted_rate(seen, setting) - max([0.0, *gains]) < NOTICEABLE:
        return ""
    return f". Beyond the bounds: {size:,.0f} MB would give {rate:.1%}; your bound is {seen.bounds.max_size_mb:g} MB"


def _is_worth_it(recommendation: OptimizationRecommendation) -> bool:
    return recommendation.benefit is not None and recommendation.benefit.lower >= WORTH_ACTING


def _rank(recommendation: OptimizationRecommendation) -> tuple[bool, bool, bool, float, bool]:
    """Return the sort key: worth a change, within the bounds, lasting, largest lower bound of the benefit, live."""
    benefit = recommendation.benefit
    sure = -1.0 if benefit is None else round(benefit.lower, 2)
    live = recommendation.implementation_effort == LIVE
    lasts = recommendation.action is not ActionKind.OPTIMIZE
    return (not _is_worth_it(recommendation), not recommendation.within_bounds, not lasts, -sure, not live)


def _reconfigure(seen: Observation, symptom: Symptom, proposal: Proposal) -> OptimizationRecommendation:
    changes = setting_changes(proposal.update, seen.config.known(), seen.support)
    live = proposal.level is SupportLevel.LIVE
    gain, ceiling = proposal.gain, seen.ceiling
    confidence, reasons = _confidence(seen)
    return OptimizationRecommendation(
        priority=symptom.severity,
        category=symptom.code,
        title="change " + ", ".join("{} from {} to {}".format(one.setting, *one.in_words) for one in changes),
        description=symptom.summary,
        expected_impact=_impact(proposal, ceiling, beyond_own=seen.own_cache is not None),
        implementation_effort=LIVE
        if live
        else "restart"
        if seen.bounds.allow_restart
        else "the operator restarts the cache with a new command line",
        action=ActionKind.RECONFIGURE,
        update=proposal.update,
        changes=changes,
        evidence=symptom.evidence,
        rung=Rung.ACCESS_LOG,
        gain=gain,
        ceiling=ceiling,
        benefit=proposal.benefit,
        saving=proposal.saving,
        ttft=proposal.ttft,
        confidence=confidence,
        confidence_reasons=reasons,
        cost=_cost(seen, proposal),
        risk=proposal.violation or _risk(seen, proposal, live=live),
        undo="set the old values again"
        + ("; L1 gives memory back as it evicts chunks" if live else ", which needs another restart"),
        verification="compare the token hit rate before the change with the rate after it, over at least as many tokens",
        within_bounds=proposal.violation is None,
    )


def _risk(seen: Observation, proposal: Proposal, *, live: bool) -> str:
    """Return what can go wrong, and which prompts the new setting would refuse."""
    restart = None if live else "the restart empties L1; the engine recomputes requests until L1 is full again"
    setting = server_setting(seen, proposal.update.known())
    refused = None if setting is None else refusals(seen, setting)
    return "; ".join(str(part) for part in (restart, refused) if part) or "none known: L1 keeps its contents"


def _impact(proposal: Proposal, ceiling: float | None, *, beyond_own: bool) -> str:
    """Return the gain as text, with the savings if they are known."""
    saving = proposal.saving
    text = f"token hit rate {proposal.rate:.1%}, {gain_in_points(proposal.gain)}"
    if beyond_own:
        text = (
            f"LMCache saves {proposal.saved:.1%} of the requested tokens beyond the engine's own cache,"
            f" {gain_in_points(proposal.gain)}"
        )
    if ceiling is not None:
        text += f"; an unbounded cache would give {ceiling:.1%}"
    if proposal.ttft is not None:
        text += f"; time to first token {proposal.ttft.now} -> {proposal.ttft.then}, at the engine's measured speed"
    if saving is not None:
        text += f"; saves {saving.gpu_seconds_per_hour.estimate:,.0f} GPU-seconds an hour"
    if saving is not None and saving.ttft_ms_per_request is not None:
        text += f" and {saving.ttft_ms_per_request.estimate:,.0f} ms of time to first token per request"
    return text


def _thaw(seen: Observation, symptom: Symptom) -> list[OptimizationRecommendation]:
    """Recommend to drop cold entries from a cache that does not evict by itself, if that is predicted to bring hits.

    This relieves the cache but does not cure it.
    """
    target = 100 * min(seen.config.eviction_watermark or 0.8, 0.8) * 0.8
    gain = gain_of_dropping(seen, target / 100)
    if gain is None or gain.lower <= 0:
        return []
    relief = OptimizationRecommendation(
        priority=symptom.severity,
        category=symptom.code,
        title=f"drop the least recently used entries until {target:.0f} % of L1 is used",
        description=symptom.summary,
        expected_impact=f"token hit rate {gain_in_points(gain)}, until L1 is full again",
        implementation_effort=LIVE,
        action=ActionKind.OPTIMIZE,
        target_utilization_percent=target,
        evidence=symptom.evidence,
        rung=Rung.ACCESS_LOG,
        gain=gain,
        ceiling=seen.ceiling,
        benefit=Range(lower=gain.lower, estimate=gain.estimate, upper=gain.upper),
        confidence=Confidence.LOW,
        confidence_reasons=("the relief does not last: the watermark stays too high",),
        cost="the dropped entries",
        risk="requests may ask for a dropped entry again",
        undo="not possible; the server stores an entry again when a request computes it again",
        verification="compare the failed stores before and after",
        within_bounds=True,
    )
    return [relief]


def _confidence(seen: Observation) -> tuple[Confidence, tuple[str, ...]]:
    """Return how reliable the model is here, with the reasons. The main test is whether it explains the measured hit rate."""
    setting, measured = server_setting(seen), seen.metrics.tokens.hit_rate
    if setting is None or measured is None:
        return Confidence.LOW, ("there is no measured hit rate to compare the model with",)
    modelled = predicted_rate(seen, setting)
    reasons = [f"for the settings in force the model predicts a token hit rate of {modelled:.1%}; LMCache counted {measured:.1%}"]
    off = abs(modelled - measured) > MODEL_OFF
    if seen.metrics.failed_stores:
        reasons.append("stores failed, and whether a store fails depends on fractions of a second")
    if not seen.metrics.evictions:
        reasons.append("the cache evicted nothing in the window")
    if seen.metrics.engine is None and seen.own_cache_size is None:
        reasons.append("no engine is read: the hit rate is an upper bound of what LMCache saves; name `engine` in caches.toml")
    if seen.own_cache is not None and seen.own_cache.split:
        reasons.append(f"LMCache's log names no engine; requests were divided among the engines: {seen.own_cache.split}")
    low = off or not (seen.metrics.evictions or seen.metrics.failed_stores)
    unsure = seen.metrics.failed_stores or (seen.metrics.engine is None and seen.own_cache_size is None)
    level = Confidence.LOW if low else Confidence.MEDIUM if unsure else Confidence.HIGH
    return level, tuple(reasons)


def _cost(seen: Observation, proposal: Proposal) -> str:
    new, old = proposal.update.max_size_mb, seen.config.max_size_mb
    each = f" on each of {seen.workers} workers" if seen.workers > 1 else ""
    parts = [f"{new - old:,.0f} MB more memory{each}" if new is not None and old is not None else "no memory"]
    if proposal.update.l2_adapters:
        tiers = (seen.config.l2_adapters or (), proposal.update.l2_adapters)
        before, after = (sum(adapter.size_mb or 0 for adapter in tier) for tier in tiers)
        parts.append(f"{after - before:,.0f} MB more L2" if after else "an unbounded L2")
    if proposal.saving is not None and proposal.saving.payback_hours is not None:
        parts.append(f"saved GPU time pays it back in {proposal.saving.payback_hours:,.0f} h")
    if proposal.level is not SupportLevel.LIVE:
        parts.append("a restart that empties L1")
    return ", ".join(parts)
