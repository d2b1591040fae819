"""Rank what could help, and decide: act, do nothing and why, or not enough data."""

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
from agent_tools.models.metrics import now

from .modelled import MODEL_OFF, predicted_rate, server_setting
from .observation import Observation
from .proposals import Proposal, propose
from .symptoms import diagnose

WORTH_ACTING = 0.01
"""The lower bound of a benefit, in token hit rate, below which it is not worth a change."""
TREATABLE = (
    SymptomCode.REQUEST_LARGER_THAN_L1,
    SymptomCode.WATERMARK_TOO_HIGH,
    SymptomCode.L1_TOO_SMALL,
    SymptomCode.L2_TOO_SMALL,
    SymptomCode.STORES_FAIL,
    SymptomCode.L2_LOADS_FAIL,
    SymptomCode.L2_SLOW,
    SymptomCode.L2_NOT_RETAINED,
)
"""Symptoms that a size, watermark, ratio or L2 setting can treat, the most telling first."""
UNTREATABLE = {
    SymptomCode.NO_DATA,
    SymptomCode.EVICTION_DEAD,
    SymptomCode.ISOLATED_LRU_ON_L1,
    SymptomCode.COUNTERS_INCOMPLETE,
}
"""Symptoms that make every proposal worthless until the operator has seen to them."""


def recommend(seen: Observation) -> Advice:
    """The advice for one observation of a cache."""
    symptoms = diagnose(seen)
    recommendations = sorted(_recommendations(seen, symptoms), key=_rank)
    verdict, why = _decide(seen, symptoms, recommendations)
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
    )


def _recommendations(seen: Observation, symptoms: tuple[Symptom, ...]) -> list[OptimizationRecommendation]:
    codes = {symptom.code for symptom in symptoms}
    symptom = next((s for code in TREATABLE for s in symptoms if s.code is code), None)
    if symptom is None or codes & UNTREATABLE:
        return []
    found = [_reconfigure(seen, symptom, proposal) for proposal in propose(seen)]
    if SymptomCode.WATERMARK_TOO_HIGH in codes and seen.log is not None:
        found.append(_thaw(seen, next(s for s in symptoms if s.code is SymptomCode.WATERMARK_TOO_HIGH)))
    return found


def _decide(seen: Observation, symptoms: tuple[Symptom, ...], ranked: list[OptimizationRecommendation]) -> tuple[Verdict, str]:
    codes = {symptom.code: symptom for symptom in symptoms}
    for blocking in (SymptomCode.COUNTERS_INCOMPLETE, SymptomCode.NO_DATA):
        if blocking in codes:
            return Verdict.NO_DATA, codes[blocking].summary
    worth = [recommendation for recommendation in ranked if _is_worth_it(recommendation)]
    if worth and worth[0].within_bounds:
        return Verdict.ACT, f"{worth[0].title}: {worth[0].expected_impact}"
    if worth:
        return Verdict.DO_NOTHING, f"what would help is outside the operator's bounds: {worth[0].title} ({worth[0].risk})"
    if ranked:
        return Verdict.DO_NOTHING, f"the best there is gains too little to be worth a change: {ranked[0].expected_impact}"
    return Verdict.DO_NOTHING, symptoms[0].summary + _nothing_better(seen, codes)


def _nothing_better(seen: Observation, codes: Mapping[SymptomCode, Symptom]) -> str:
    """What to add when something could be treated, settings were tried, and none of them was better."""
    if not codes.keys() & set(TREATABLE) or codes.keys() & UNTREATABLE or seen.curve is None or server_setting(seen) is None:
        return ""
    priced = seen.economics is not None and seen.economics.prices is not None
    return "; no other setting that was tried does better" + (" by enough to pay for its memory" if priced else "")


def _is_worth_it(recommendation: OptimizationRecommendation) -> bool:
    return recommendation.benefit is None or recommendation.benefit.lower >= WORTH_ACTING


def _rank(recommendation: OptimizationRecommendation) -> tuple[bool, bool, float, bool]:
    """Those worth it first, of these the allowed; then by the benefit that is sure; of equal ones the live one."""
    benefit = recommendation.benefit
    sure = WORTH_ACTING if benefit is None else round(benefit.lower, 2)
    live = recommendation.implementation_effort == "none: live"
    return (not _is_worth_it(recommendation), not recommendation.within_bounds, -sure, not live)


def _reconfigure(seen: Observation, symptom: Symptom, proposal: Proposal) -> OptimizationRecommendation:
    changes = setting_changes(proposal.update, seen.config.known(), seen.support)
    live = proposal.level is SupportLevel.LIVE
    gain, ceiling = proposal.gain, seen.curve.ceiling() if seen.curve else None
    confidence, reasons = _confidence(seen)
    return OptimizationRecommendation(
        priority=symptom.severity,
        category=symptom.code,
        title="change " + ", ".join(f"{c.setting} from {_value(c.old)} to {_value(c.new)}" for c in changes),
        description=symptom.summary,
        expected_impact=_impact(proposal, ceiling),
        implementation_effort="none: live"
        if live
        else "restart"
        if seen.bounds.allow_restart
        else "the operator restarts it with a new command line",
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
        risk=proposal.violation
        or ("none known: L1 keeps its contents" if live else "L1 is lost; requests are recomputed until it is full again"),
        undo="set the old values again"
        + ("; draining gives memory back as chunks are evicted" if live else ", by another restart"),
        verification="token hit rate of at least as many tokens after the change, against the same before it",
        within_bounds=proposal.violation is None,
    )


def _impact(proposal: Proposal, ceiling: float | None) -> str:
    """The gain in words, with what it saves where that is known."""
    gain, saving = proposal.gain, proposal.saving
    text = f"token hit rate {proposal.rate:.1%}, {gain.estimate:+.1%} (90 % interval {gain.lower:+.1%} to {gain.upper:+.1%})"
    if ceiling is not None:
        text += f" of at most {ceiling:.1%}"
    if proposal.ttft is not None:
        text += f"; time to first token {proposal.ttft.now} -> {proposal.ttft.then} by the engine's own speed"
    if saving is not None:
        text += f"; {saving.gpu_seconds_per_hour.estimate:,.0f} GPU-seconds an hour"
    if saving is not None and saving.ttft_ms_per_request is not None:
        text += f" and {saving.ttft_ms_per_request.estimate:,.0f} ms of time to first token a request saved"
    return text


def _thaw(seen: Observation, symptom: Symptom) -> OptimizationRecommendation:
    """Drop cold entries by hand from a cache that does not evict by itself; relief now, no cure."""
    target = 100 * min(seen.config.eviction_watermark or 0.8, 0.8) * 0.8
    return OptimizationRecommendation(
        priority=symptom.severity,
        category=symptom.code,
        title=f"drop least recently used entries until {target:.0f} % of L1 is used",
        description=symptom.summary,
        expected_impact="stores succeed again until L1 is full again; how many hits that brings is not predicted",
        implementation_effort="none: live",
        action=ActionKind.OPTIMIZE,
        target_utilization_percent=target,
        evidence=symptom.evidence,
        rung=Rung.COUNTERS,
        confidence=Confidence.MEDIUM,
        confidence_reasons=("the relief is certain and does not last: the watermark stays too high",),
        cost="the dropped entries",
        risk="an entry that is dropped may be asked for again",
        undo="none: entries come back when they are asked for",
        verification="fewer failed stores after than before",
        within_bounds=True,
    )


def _confidence(seen: Observation) -> tuple[Confidence, tuple[str, ...]]:
    """How far the model can be relied on here: first of all whether it explains what was measured."""
    setting, measured = server_setting(seen), seen.metrics.tokens.hit_rate
    if setting is None or measured is None:
        return Confidence.LOW, ("the model cannot be compared with a measured hit rate",)
    modelled = predicted_rate(seen, setting)
    reasons = [f"for the settings in force the model says {modelled:.1%} and the server counted {measured:.1%}"]
    off = abs(modelled - measured) > MODEL_OFF
    if seen.metrics.failed_stores:
        reasons.append("stores failed, which depends on timing to a fraction of a second")
    if not seen.metrics.evictions:
        reasons.append("the cache never filled in the window")
    low = off or not (seen.metrics.evictions or seen.metrics.failed_stores)
    level = Confidence.LOW if low else Confidence.MEDIUM if seen.metrics.failed_stores else Confidence.HIGH
    return level, tuple(reasons)


def _cost(seen: Observation, proposal: Proposal) -> str:
    new, old = proposal.update.max_size_mb, seen.config.max_size_mb
    parts = [f"{new - old:.0f} MB of memory" if new is not None and old is not None else "no memory"]
    if proposal.update.l2_adapters:
        tiers = (seen.config.l2_adapters or (), proposal.update.l2_adapters)
        before, after = (sum(adapter.size_mb or 0 for adapter in tier) for tier in tiers)
        parts.append(f"{after - before:.0f} MB of L2" if after else "an L2 without bound")
    if proposal.saving is not None and proposal.saving.payback_hours is not None:
        parts.append(f"paid back in {proposal.saving.payback_hours:,.0f} h of saved GPU time")
    if proposal.level is not SupportLevel.LIVE:
        parts.append("a restart that empties L1")
    return ", ".join(parts)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
