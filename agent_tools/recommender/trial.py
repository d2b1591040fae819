"""Trials of small gains: which change may simply be tried, and whether a trial helped.

A trial is judged on the paired difference: what LMCache saved, minus what the model says that the old setting would have saved of
the same requests. The model's own error is taken from the window before the trial. The doubt that remains is how far the model
errs under either setting, not how unequally a gain is spread over the requests.

What LMCache serves is saved, unless an engine's own prefix cache is before it. Then it is what that engine counts as loaded, or
where only the size of that cache is stated, what LMCache serves less what the model says that this cache has too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

from .modelled import gain_in_points, hits_since_change, predicted_hits, server_setting
from .observation import Floats, Observation
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


def cut(times: Floats, expected: Floats, served: Sequence[Served], tokens: float) -> Floats:
    """Return (blocks,) measured minus modelled share of saved tokens, in blocks of at least `tokens` requested tokens.

    Args:
        times: (requests,) Unix times of the requests, ascending.
        expected: (requests,) tokens of each request that a setting would save, by the model.
        served: What was counted between successive readings.
        tokens: Requested tokens of a block. A rest that fills no block is left out.
    """
    so_far = np.concatenate([[0.0], np.cumsum(expected)])
    found, asked, surplus = [], 0, 0.0
    for one in served:
        first, last = np.searchsorted(times, (one.start, one.end))
        asked += one.requested
        surplus += one.hit - float(so_far[last] - so_far[first])
        if asked >= max(tokens, 1):
            found.append(surplus / asked)
            asked, surplus = 0, 0.0
    return np.array(found)


def _blocks(
    seen: Observation,
    old: ServerSetting,
    new: ServerSetting,
    changed: float,
    earlier: Sequence[Served],
    served: Sequence[Served],
) -> tuple[Floats, Floats, Floats]:
    """Return what `judge` takes: the model's error before the change, what was gained since, and what the model did not foresee.

    Args:
        seen: The cache from before the change until now.
        old: The setting before the change.
        new: The setting since.
        changed: Unix time of the change.
        earlier: What was counted between the readings before the change.
        served: What was counted between the readings since.
    """
    assert seen.log is not None  # noqa: S101  callers have a log
    log, by_engine = seen.log, seen.own_cache is not None and seen.metrics.engine is not None
    if by_engine:
        earlier, served = ([replace(one, hit=one.loaded) for one in some if one.loaded is not None] for some in (earlier, served))
    least = sum(one.requested for one in earlier) / BLOCKS_BEFORE
    then, now = predicted_hits(seen, old), hits_since_change(seen, old, new, changed)
    # What the engine's own cache has too is in LMCache's counter, and not in what the engine loads.
    held_then, held_now = (0.0 if by_engine else one.served - one.saved for one in (then, now))

    def less(chunks: Floats, counted: Sequence[Served]) -> Floats:
        return cut(log.timestamps[seen.in_window], chunks * (log.chunk_size / log.sampling_rate), counted, least)

    return less(then.saved + held_then, earlier), less(then.saved + held_now, served), less(now.saved + held_now, served)


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
        found = judge(*_blocks(whole, old, new, since.timestamp(), earlier, served))
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
