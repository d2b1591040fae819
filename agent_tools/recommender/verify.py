"""Did it help? The token hit rate LMCache counted after a change, against what the old setting gave or would have given."""

import numpy as np
import numpy.typing as npt

from agent_tools.models import CacheMetrics, Gain, Verification, VerificationVerdict
from agent_tools.models.change import Baseline
from agent_tools.prediction.server_setting import ServerSetting

from .modelled import MODEL_OFF, corrected, gain_between, hits_since_change, predicted_hits, server_setting
from .observation import Observation

LEAST_INTERVALS = 5
"""Fewer readings than this on either side give no interval."""
NO_DIFFERENCE = 0.005
"""A difference of the token hit rate that nobody would act on."""
DRAWS = 1000
BLOCK = 3
"""Successive readings drawn together, since neighbours are alike."""

Intervals = npt.NDArray[np.float64]


def verify(before: Baseline, after: Baseline, *, in_force: bool, seen: Observation, old: ServerSetting | None) -> Verification:
    """Judge a change on the same requests wherever that can be had.

    * When both windows held the very same requests, by their access logs, what the server counted in each is compared.
    * Else the model says what the old setting would have given on the requests after the change, and that is compared with what
      the server counted on them; the distance between model and server for the new setting widens the interval.
    * Without a log, or where the model does not explain what is measured, all that is left is before against after, whose
      interval also carries how requests differ from minute to minute.

    Args:
        before: Window before the change.
        after: Window after it.
        in_force: Whether the settings read back as they were set.
        seen: The cache after the change, its log included.
        old: The setting before the change, as the model takes it.
    """
    same = before.requests_digest is not None and before.requests_digest == after.requests_digest
    modelled = None if same or old is None else gain_by_model(seen, old)
    gain = modelled or _gain(before, after)
    verdict, why = _judge(gain, before.metrics, after.metrics)
    if not in_force:
        verdict, why = VerificationVerdict.UNDECIDED, "the settings do not read back as they were set; " + why
    return Verification(
        verdict=verdict,
        in_force=in_force,
        gain=gain,
        paired=same or modelled is not None,
        before=before.metrics,
        after=after.metrics,
        why=why,
    )


def gain_by_model(seen: Observation, old: ServerSetting) -> Gain | None:
    """What the new setting gained on the observed requests: measured, less what the model says the old one would have given.

    ``None`` without a log, or when the model is off by more than `MODEL_OFF` for the setting that is in force.
    """
    new, measured = server_setting(seen), seen.metrics.tokens.hit_rate
    if new is None or measured is None or seen.curve is None:
        return None
    since = hits_since_change(seen, old, new)
    error = measured - since.rate
    if abs(error) > MODEL_OFF:
        return None
    how = f"measured on {int(seen.in_window.sum())} requests, less the model of the old setting on the same ones"
    return corrected(gain_between(predicted_hits(seen, old), since), error).model_copy(update={"method": how})


def _judge(gain: Gain | None, before: CacheMetrics, after: CacheMetrics) -> tuple[VerificationVerdict, str]:
    if gain is None:
        tokens = f"{before.tokens.requested} tokens before and {after.tokens.requested} after it"
        return VerificationVerdict.UNDECIDED, (
            f"too little was seen of the change to judge it ({tokens}): no log from which the model explains what was counted,"
            f" and fewer than {LEAST_INTERVALS} readings of LMCache's counters on one side or both; observe for longer"
        )
    rates = " and ".join(
        f"{m.tokens.hit_rate:.1%} {when}" for m, when in ((before, "before"), (after, "after")) if m.tokens.hit_rate is not None
    )
    figures = (
        f"token hit rate {rates}; gain {gain.estimate:+.1%} (90 % interval {gain.lower:+.1%} to {gain.upper:+.1%}), {gain.method}"
        + _at_the_engine(before, after)
    )
    if gain.lower > 0:
        return VerificationVerdict.BETTER, figures
    if gain.upper < 0:
        return VerificationVerdict.WORSE, figures
    return VerificationVerdict.UNDECIDED, f"{figures}; the interval holds zero: {_how_long(gain, after.window.seconds)}"


def _at_the_engine(before: CacheMetrics, after: CacheMetrics) -> str:
    """What the engine measured in both windows, which is told and not judged: its requests may differ more than their hits."""
    times = [one.engine.ttft_ms for one in (before, after) if one.engine is not None and one.engine.ttft_ms is not None]
    return f"; time to first token {times[0]} before, {times[1]} after" if len(times) == 2 else ""


def _how_long(gain: Gain, seconds: float) -> str:
    """How long a window would have to be to tell: an interval shrinks with the square root of what it rests on."""
    if abs(gain.estimate) < NO_DIFFERENCE:
        return "there is no difference worth telling"
    needed = seconds * ((gain.upper - gain.lower) / 2 / abs(gain.estimate)) ** 2
    return f"about {max(needed, seconds):.0f} s of such traffic would tell, {seconds:.0f} s were seen"


def _gain(before: Baseline, after: Baseline) -> Gain | None:
    old, new = before.metrics.tokens.hit_rate, after.metrics.tokens.hit_rate
    if old is None or new is None or min(len(before.intervals), len(after.intervals)) < LEAST_INTERVALS:
        return None
    draw = np.random.default_rng(0)
    drawn = _resampled(np.array(after.intervals, float), draw) - _resampled(np.array(before.intervals, float), draw)
    lower, upper = np.percentile(drawn, (5, 95))
    return Gain(
        lower=min(float(lower), new - old),
        estimate=new - old,
        upper=max(float(upper), new - old),
        method=f"by {len(before.intervals)} and {len(after.intervals)} readings of LMCache's counters",
    )


def _resampled(intervals: Intervals, draw: np.random.Generator) -> Intervals:
    """(draws,) hit rates of resampled readings; `intervals` is (readings, 2): requested and hit tokens."""
    count = len(intervals)
    starts = draw.integers(count, size=(DRAWS, -(-count // BLOCK)))
    rows = (starts[..., None] + np.arange(BLOCK)).reshape(DRAWS, -1)[:, :count] % count
    sums = intervals[rows].sum(axis=1)
    return np.asarray(sums[:, 1] / np.maximum(sums[:, 0], 1))
