"""Verify a change: compare the token hit rate after it with the rate that the old setting gave, or would have given."""

import numpy as np
import numpy.typing as npt

from agent_tools.models import CacheConfig, CacheMetrics, ChangeRecord, Gain, Verification, VerificationVerdict, Window
from agent_tools.models.change import Baseline
from agent_tools.models.metrics import utc
from agent_tools.prediction.server_setting import ServerSetting

from .modelled import (
    MODEL_OFF,
    corrected,
    gain_between,
    gain_in_points,
    hits_since_change,
    model_error,
    predicted_gain,
    predicted_hits,
    server_setting,
)
from .observation import Observation

LEAST_INTERVALS = 5
"""Fewest readings on each side for an interval."""
NO_DIFFERENCE = 0.005
"""Largest difference in token hit rate that is too small to act on."""
DRAWS = 1000
"""Draws of the bootstrap."""
BLOCK = 3
"""Consecutive readings that are drawn together, because neighbouring readings are similar."""

Intervals = npt.NDArray[np.float64]


def verify(
    before: Baseline,
    after: Baseline,
    *,
    in_force: bool,
    seen: Observation,
    old: ServerSetting | None,
    changed_at: float | None = None,
    predicted: Gain | None = None,
) -> Verification:
    """Judge whether a change helped, on the same requests if possible.

    * If the access logs show that both windows held the same requests, compare what the server counted in each window.
    * Otherwise, the model predicts what the old setting would have given on the requests after the change. Compare this with
      what the server counted. The model's error for the new setting widens the interval.
    * Without a log, or if the model does not explain the measured hit rate, compare the window before the change with the
      window after it. The interval then also covers how requests vary from minute to minute.

    Args:
        before: The window before the change.
        after: The window after the change.
        in_force: Whether the cache reads back the settings that were set.
        seen: The cache after the change, with its log.
        old: The setting of the model before the change.
        changed_at: Unix time of the change, if nothing else was changed since. The window may start later.
        predicted: The gain that was predicted when the change was planned. By default the model predicts it now, on the requests
            before the change.
    """
    same = before.requests_digest is not None and before.requests_digest == after.requests_digest
    modelled = None if same or old is None else gain_by_model(seen, old, changed_at)
    gain = modelled or _gain(before, after)
    verdict, why = _judge(gain, before.metrics, after.metrics)
    if verdict is VerificationVerdict.BETTER and (nothing := _nothing_for_the_engine(before.metrics, after.metrics)):
        verdict, why = VerificationVerdict.UNDECIDED, f"{nothing}. {why}"
    if not in_force:
        verdict, why = VerificationVerdict.UNDECIDED, f"The cache does not read back the settings that were set. {why}"
    return Verification(
        verdict=verdict,
        in_force=in_force,
        gain=gain,
        paired=same or modelled is not None,
        before=before.metrics,
        after=after.metrics,
        why=why,
        predicted=predicted or (None if old is None else _predicted_before(before, seen, old, changed_at)),
    )


def settings_moved(record: ChangeRecord, config: CacheConfig) -> bool:
    """Return whether a setting that the change did not touch is not as it was when the change was made."""
    touched, old, now = {one.setting for one in record.changes}, record.before, config.known()
    return old is not None and any(now.get(name) != value for name, value in old.known().items() if name not in touched)


def _predicted_before(before: Baseline, seen: Observation, old: ServerSetting, changed_at: float | None) -> Gain | None:
    """Return the gain that the model predicts on the requests before the change; ``None`` if the log has none of them."""
    new, window = server_setting(seen), before.metrics.window
    if new is None or seen.log is None or changed_at is None:
        return None
    past = seen.during(Window(start=window.start, end=max(window.start, utc(changed_at))))
    return predicted_gain(past, old, new) if past.in_window.any() else None


def gain_by_model(seen: Observation, old: ServerSetting, changed_at: float | None = None) -> Gain | None:
    """Return the gain on the observed requests: the measured hit rate minus the model's hit rate for the old setting.

    Return ``None`` without a log, or if the model is off by more than `MODEL_OFF` for the setting in force.
    """
    new = server_setting(seen)
    if new is None or seen.curve is None or not seen.savings_known:
        return None
    since = hits_since_change(seen, old, new, changed_at)
    error = model_error(seen, since)
    if error is None or abs(error) > MODEL_OFF:
        return None
    how = (
        f"measured on {int(seen.in_window.sum()):,} requests, minus the model's hit rate for the old setting on the same requests"
    )
    return corrected(gain_between(predicted_hits(seen, old), since), -error).model_copy(update={"method": how})


def _judge(gain: Gain | None, before: CacheMetrics, after: CacheMetrics) -> tuple[VerificationVerdict, str]:
    if gain is None:
        tokens = f"{before.tokens.requested:,} requested tokens before the change and {after.tokens.requested:,} after it"
        return VerificationVerdict.UNDECIDED, (
            f"There is too little data to judge the change ({tokens}): no access log that the model explains, and fewer than"
            f" {LEAST_INTERVALS} readings of LMCache's counters before or after the change; observe for longer"
        )
    rates = " and ".join(
        f"{m.tokens.hit_rate:.1%} {when}" for m, when in ((before, "before"), (after, "after")) if m.tokens.hit_rate is not None
    )
    figures = f"Token hit rate {rates}; gain {gain_in_points(gain)}, {gain.method}" + _at_the_engine(before, after)
    if gain.lower > 0:
        return VerificationVerdict.BETTER, figures
    if gain.upper < 0:
        return VerificationVerdict.WORSE, figures
    return VerificationVerdict.UNDECIDED, f"{figures}; the interval includes zero: {_how_long(gain, after.window.seconds)}"


def why_undone(found: Verification) -> str:
    """Return what spoke against a change that is undone, with its figures: ``made the cache worse: -2.0 points (...)``."""
    worse = found.verdict is VerificationVerdict.WORSE
    slower = worse and (found.gain is None or found.gain.upper >= 0)  # judged by time to first token
    figures = found.why if slower or found.gain is None else gain_in_points(found.gain)
    return f"{'made the cache worse' if worse else 'did not show that it helps'}: {figures}"


def _nothing_for_the_engine(before: CacheMetrics, after: CacheMetrics) -> str | None:
    """Say that LMCache's counter rose and the engine was spared nothing, if its own cache served prompts in both windows."""
    engines = [metrics.engine for metrics in (before, after) if metrics.engine is not None]
    if len(engines) < 2 or not all(engine.prompt_tokens for engine in engines) or not engines[1].own_cache_tokens:
        return None
    saved, own = ([getattr(engine, share) or 0.0 for engine in engines] for share in ("saved_share", "own_cache_share"))
    if any(engine.saved_share is None for engine in engines) or saved[1] - saved[0] >= NO_DIFFERENCE:
        return None
    return (
        f"No gain for the engine: it loaded {saved[0]:.1%} of its prompt tokens from LMCache before the change and {saved[1]:.1%}"
        f" after it, and its own cache served {own[0]:.1%} and {own[1]:.1%}"
    )


def _at_the_engine(before: CacheMetrics, after: CacheMetrics) -> str:
    """Return the engine's time to first token in both windows. The verdict ignores it, because requests may differ too much."""
    times = [one.engine.ttft_ms for one in (before, after) if one.engine is not None and one.engine.ttft_ms is not None]
    return f"; time to first token {times[0]} before, {times[1]} after" if len(times) == 2 else ""


def _how_long(gain: Gain, seconds: float) -> str:
    """Return how long a window must be for a verdict. The interval shrinks with the square root of the window's length."""
    if abs(gain.estimate) < NO_DIFFERENCE:
        return "the difference is too small to matter"
    needed = seconds * ((gain.upper - gain.lower) / 2 / abs(gain.estimate)) ** 2
    return f"a verdict needs about {max(needed, seconds):.0f} s of such traffic; {seconds:.0f} s were observed"


def _gain(before: Baseline, after: Baseline) -> Gain | None:
    """Return the gain between two windows, of saved tokens where the engine counted them and its own cache serves prompts."""
    own = [one.metrics.engine is not None and one.metrics.engine.own_cache_tokens for one in (before, after)]
    by_engine = any(own) and bool(before.loaded and after.loaded)
    old, new = (_rate(one, by_engine=by_engine) for one in (before, after))
    if old is None or new is None or min(len(before.intervals), len(after.intervals)) < LEAST_INTERVALS:
        return None
    draw = np.random.default_rng(0)
    drawn = np.subtract(*(_resampled(_readings(one, by_engine=by_engine), draw) for one in (after, before)))
    lower, upper = np.percentile(drawn, (5, 95))
    counted = "what the engine loaded from LMCache" if by_engine else "LMCache's counters"
    return Gain(
        lower=min(float(lower), new - old),
        estimate=new - old,
        upper=max(float(upper), new - old),
        method=f"from {len(before.intervals)} readings of {counted} before and {len(after.intervals)} after the change",
    )


def _rate(one: Baseline, *, by_engine: bool) -> float | None:
    requested = one.metrics.tokens.requested
    if not by_engine:
        return one.metrics.tokens.hit_rate
    return sum(one.loaded) / requested if requested else None


def _readings(one: Baseline, *, by_engine: bool) -> Intervals:
    """Return (readings, 2) requested tokens, and those of them that LMCache served, or saved as the engine counts."""
    counted = np.array(one.intervals, float)
    return np.column_stack([counted[:, 0], one.loaded]) if by_engine else counted


def _resampled(intervals: Intervals, draw: np.random.Generator) -> Intervals:
    """Return the hit rates of resampled readings, shape (draws,).

    Args:
        intervals: (readings, 2) requested and served tokens.
        draw: The random generator.
    """
    count = len(intervals)
    starts = draw.integers(count, size=(DRAWS, -(-count // BLOCK)))
    rows = (starts[..., None] + np.arange(BLOCK)).reshape(DRAWS, -1)[:, :count] % count
    sums = intervals[rows].sum(axis=1)
    return np.asarray(sums[:, 1] / np.maximum(sums[:, 0], 1))
