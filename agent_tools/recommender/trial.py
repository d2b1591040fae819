"""Trials of small gains: which change may simply be tried, and whether a trial helped.

A trial is judged on the paired difference: what LMCache saved, minus what the model says that the old setting would have saved of
the same requests. The model's own error is taken from the window before the trial. The doubt that remains is how far the model
errs under either setting, not how unequally a gain is spread over the requests.

What LMCache serves is saved, unless an engine's own prefix cache is before it. Then it is what that engine counts as loaded, or
where only the size of that cache is stated, what LMCache serves less what the model says that this cache has too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent_tools.deployments.snapshot import Served
from agent_tools.models import (
    ActionKind,
    Bounds,
    CacheConfig,
    CacheMetrics,
    Confidence,
    Gain,
    OptimizationRecommendation,
    SupportLevel,
    Verification,
    VerificationVerdict,
    Window,
)
from agent_tools.models.change import Baseline
from agent_tools.prediction.server_setting import ServerSetting

from .counted_requests import Counted, counted_between
from .modelled import gain_in_points, hits_since_change, predicted_hits, server_setting
from .observation import Floats, Observation, PredictedHits
from .sequential import half_width, radius

WORTH_TRYING = 0.005
"""Smallest expected gain, as token hit rate, that is worth a trial."""
ENOUGH_REQUESTS = 50
"""Fewest requests in each window for a comparison of times to first token."""
SLOWER = 1.2
"""Ratio of the median times to first token from which a trial is undone, whatever the hit rate says."""
ALPHA = 0.04
"""Probability with which the sequence of looks after the change may err."""
ALPHA_BEFORE = 0.01
"""Probability with which the model's error before the change may lie outside its interval."""
BLOCKS_BEFORE = 20
"""Blocks into which the window before the change is cut. Blocks after it hold as many tokens each."""


@dataclass(frozen=True)
class TrialResult:
    """What a look at a trial shows."""

    verdict: VerificationVerdict
    gain: Gain | None
    """The gain with an interval that holds at all looks together; ``None`` before there is enough to compute one."""


def worth_a_trial(
    ranked: Sequence[OptimizationRecommendation], bounds: Bounds, config: CacheConfig
) -> OptimizationRecommendation | None:
    """Return the best change that may be tried, or ``None``.

    A change may be tried if it is live, keeps what is cached, costs no memory or at most the operator's `trial_mb`, is expected
    to gain at least `WORTH_TRYING`, and is more likely than not to help.
    """
    good = [one for one in ranked if _may_be_tried(one, bounds, config)]
    return max(good, key=lambda one: one.gain.estimate if one.gain else 0.0, default=None)


def _may_be_tried(one: OptimizationRecommendation, bounds: Bounds, config: CacheConfig) -> bool:
    if one.action is not ActionKind.RECONFIGURE or one.update is None or one.gain is None or one.benefit is None:
        return False
    live = all(change.how is SupportLevel.LIVE for change in one.changes)
    added = 0.0 if one.update.max_size_mb is None else one.update.max_size_mb - (config.max_size_mb or 0.0)
    keeps = one.update.l2_adapters is None and 0 <= added <= bounds.trial_mb
    likely = min(one.gain.lower + one.gain.upper, one.benefit.estimate) > 0
    expected = min(one.gain.estimate, one.benefit.estimate) >= WORTH_TRYING
    return one.within_bounds and live and keeps and likely and expected and one.confidence is not Confidence.LOW


def judge(before: Floats, after: Floats, surprise: Floats) -> TrialResult:
    """Judge a trial. It may be judged again with each further block: the error stays below 5 % over all looks.

    Args:
        before: (blocks,) measured minus modelled share of saved tokens under the old setting: the error of the model.
        after: (blocks,) measured share minus the model's share for the old setting, since the change.
        surprise: (blocks,) the same blocks minus the model's share for the setting in force: what the model did not foresee.
            Its mean is all that is uncertain about the mean of `after`; the rest is the same requests in the same model.
    """
    width = half_width(before, ALPHA_BEFORE) + radius(surprise, ALPHA)
    if not np.isfinite(width):
        return TrialResult(VerificationVerdict.UNDECIDED, None)
    estimate = float(np.clip(after.mean() - before.mean(), -1, 1))
    gain = Gain(
        lower=max(estimate - width, -1.0),
        estimate=estimate,
        upper=min(estimate + width, 1.0),
        interval_percent=95,
        method=f"measured in {len(after)} blocks of requests minus what the model gives the old setting, less the model's error"
        f" in {len(before)} blocks before the change; the interval holds for all looks together",
    )
    better, worse = gain.lower > 0, gain.upper < 0
    verdict = VerificationVerdict.BETTER if better else VerificationVerdict.WORSE if worse else VerificationVerdict.UNDECIDED
    return TrialResult(verdict, gain)


def cut(readings: Sequence[Counted], expected: Floats, tokens: float, *, by_engine: bool = False) -> Floats:
    """Return (blocks,) measured minus modelled share of saved tokens, in blocks of at least `tokens` requested tokens.

    Args:
        readings: What was counted between successive readings, of which requests.
        expected: (requests,) tokens of each request that a setting would save, by the model.
        tokens: Requested tokens of a block. A rest that fills no block is left out.
        by_engine: Whether what the engine loaded was saved, and not what LMCache served.
    """
    so_far = np.concatenate([[0.0], np.cumsum(expected)])
    found, asked, surplus = [], 0, 0.0
    for one in readings:
        saved = one.served.loaded if by_engine else one.served.hit
        if saved is None:
            continue
        asked += one.served.requested
        surplus += saved - float(so_far[one.last] - so_far[one.first])
        if asked >= max(tokens, 1):
            found.append(surplus / asked)
            asked, surplus = 0, 0.0
    return np.array(found)


def doubt(seen: Observation, served: Sequence[Served]) -> float:
    """Return how far the model may err under the setting in force: a trial after this window shows no smaller gain.

    It is a share of the requested tokens; infinite if there are too few requests, or if nothing says what LMCache saves.

    Args:
        seen: The cache in the window before a trial.
        served: What was counted between the readings of that window.
    """
    here = server_setting(seen)
    if here is None or seen.log is None or not seen.savings_known:
        return math.inf
    hits = predicted_hits(seen, here)
    return half_width(_unforeseen(seen, hits, hits, _requests(seen, served), _least(served)), ALPHA_BEFORE)


def _least(earlier: Sequence[Served]) -> float:
    """Return the requested tokens of a block."""
    return sum(one.requested for one in earlier) / BLOCKS_BEFORE


def _requests(seen: Observation, served: Sequence[Served]) -> list[Counted]:
    """Return the requests of the window that were counted between readings."""
    assert seen.log is not None  # noqa: S101  callers have a log
    return counted_between(seen.log.timestamps[seen.in_window], seen.window_chunks * seen.log.chunk_size, served)


def _unforeseen(
    seen: Observation, expected: PredictedHits, in_force: PredictedHits, readings: Sequence[Counted], least: float
) -> Floats:
    """Return (blocks,) the measured minus the expected share of saved tokens.

    Args:
        seen: The cache in a window that holds all of the readings.
        expected: The hits of the setting that it is compared with.
        in_force: The hits of the setting that was in force.
        readings: What was counted between successive readings, of which requests.
        least: Requested tokens of a block.
    """
    assert seen.log is not None  # noqa: S101  callers have a log
    by_engine = seen.own_cache is not None and seen.metrics.engine is not None
    # What the engine's own cache has too is in LMCache's counter, and not in what the engine loads.
    held = 0.0 if by_engine else in_force.served - in_force.saved
    chunk = seen.log.chunk_size / seen.log.sampling_rate
    return cut(readings, (expected.saved + held) * chunk, least, by_engine=by_engine)


def look(
    seen: Observation,
    old: ServerSetting | None,
    before: Baseline,
    earlier: Sequence[Served],
    served: Sequence[Served],
    *,
    in_force: bool,
) -> Verification:
    """Return what one look at a trial shows.

    Args:
        seen: The cache since the change, with its log.
        old: The setting of the model before the change.
        before: What the cache did before the change.
        earlier: What was counted between the readings of the window before the change.
        served: What was counted between the readings since the change.
        in_force: Whether the change, and nothing else, is in force.
    """
    found, new = TrialResult(VerificationVerdict.UNDECIDED, None), server_setting(seen)
    if old is not None and new is not None and seen.log is not None and seen.savings_known and in_force:
        since = seen.metrics.window.start
        whole = seen.during(Window(start=min(before.metrics.window.start, since), end=seen.metrics.window.end))
        then, now, least = predicted_hits(whole, old), hits_since_change(whole, old, new, since.timestamp()), _least(earlier)
        early, late = (_requests(whole, part) for part in (earlier, served))
        found = judge(
            _unforeseen(whole, then, then, early, least),
            _unforeseen(whole, then, now, late, least),
            _unforeseen(whole, now, now, late, least),
        )
    slower = _slower(before.metrics, seen.metrics)
    verdict = VerificationVerdict.WORSE if slower else found.verdict
    unknown = seen.savings_unknown or "too few requests to judge yet"
    gain = unknown if found.gain is None else f"{gain_in_points(found.gain)}, {found.gain.method}"
    meddled = "" if in_force else "settings were changed by somebody else during the trial; "
    return Verification(
        verdict=verdict,
        in_force=in_force,
        gain=found.gain,
        paired=found.gain is not None,
        before=before.metrics,
        after=seen.metrics,
        why=f"{meddled}{slower}{gain}",
    )


def _slower(before: CacheMetrics, after: CacheMetrics) -> str:
    """Return that the engine's time to first token got clearly worse, or an empty text."""
    engines = [one.engine for one in (before, after) if one.engine is not None and one.engine.requests >= ENOUGH_REQUESTS]
    times = [engine.ttft_ms for engine in engines if engine.ttft_ms is not None]
    if len(times) < 2 or times[1].p50 < SLOWER * times[0].p50:
        return ""
    return f"the engine's time to first token rose: {times[0]} before, {times[1]} after; "


def keep_trial(found: Verification, *, added_mb: float) -> bool:
    """Return whether to keep a change after its trial: if it helped, or if it costs nothing and nothing speaks against it."""
    if found.verdict is not VerificationVerdict.UNDECIDED:
        return found.verdict is VerificationVerdict.BETTER
    return added_mb <= 0 and found.gain is not None and found.gain.estimate > 0
