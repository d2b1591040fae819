"""The observed cache as a setting of the server model, and the hits that the model predicts under other settings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agent_tools.errors import WorkloadError
from agent_tools.models import MB, CacheConfig, ConfigUpdate, Gain
from agent_tools.models.config import SKIP_L1
from agent_tools.models.cost import Range
from agent_tools.models.engine import TimeToFirstToken
from agent_tools.plain import points
from agent_tools.prediction.chunk_size import with_larger_chunks
from agent_tools.prediction.configured import setting_of
from agent_tools.prediction.forecast import DEFAULTS, Forecast, chunks_of, forecast
from agent_tools.prediction.in_process_disk import can_hang
from agent_tools.prediction.in_process_model import InProcessPolicy
from agent_tools.prediction.in_process_setting import InProcessSetting, in_process_policy
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.running_server import RunningServer
from agent_tools.prediction.server_prediction import ServerPrediction, predict_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.prediction.time_to_first_token import seconds_to_first_token, time_to_first_token

from .observation import Floats, Observation, PredictedHits
from .tier_behind import TierBehind, of_adapters

Int32 = npt.NDArray[np.int32]

MODEL_OFF = 0.03
"""Largest distance between the modelled and the measured token hit rate at which the model is believed."""
HANGS = (
    "the longest prompt has {:,} chunks and L1 holds {:,.0f}: with a tier behind it, a hit that L1 cannot hold makes the engine"
    " hang"
)
BLOCKS = 20
"""Blocks of consecutive requests for the bootstrap."""
DRAWS = 400
"""Draws of the bootstrap."""
INTERVAL = (5.0, 95.0)
"""Percentiles of the stated 90 % interval."""


def server_setting(seen: Observation, instead: Mapping[str, Any] | None = None) -> ServerSetting | None:
    """Return the observed cache as a setting of the model: of a server, or of in-process LMCache.

    Return ``None`` if a size or the eviction policy is unknown, or if the model does not cover them.

    Args:
        seen: The observation.
        instead: Settings that replace the observed ones, by name.
    """
    config = CacheConfig.model_validate(seen.config.model_dump() | dict(instead or {}))
    if seen.chunk_bytes is None:
        return None
    if not seen.in_process:
        return setting_of(config, seen.chunk_bytes)
    policy, tier = _inside(config), _tier_behind(seen, config)
    if policy is None or config.max_size_mb is None or tier.withheld is not None:
        return None
    size = config.max_size_mb * MB / seen.chunk_bytes
    return InProcessSetting(size, cache_policy=policy, l2_capacity_chunks=tier.chunks)


def _inside(config: CacheConfig) -> InProcessPolicy | None:
    """Return the eviction policy of in-process LMCache; ``None`` if it is unknown."""
    return in_process_policy(None if config.eviction_policy is None else config.eviction_policy.value)


def _tier_behind(seen: Observation, config: CacheConfig) -> TierBehind:
    """Return what is behind the memory of in-process LMCache."""
    policy = _inside(config)
    if policy is None:
        return TierBehind()
    passes_on = config.l2_store_policy == SKIP_L1
    tier = of_adapters(config.l2_adapters or (), policy, seen.chunk_bytes, local_cpu=not passes_on)
    if not tier.chunks or seen.log is None or seen.chunk_bytes is None or config.max_size_mb is None:
        return tier
    longest, size = int(seen.log.chunks_per_request.max(initial=0)), config.max_size_mb * MB / seen.chunk_bytes
    return TierBehind(withheld=HANGS.format(longest, size)) if can_hang(longest, size) else tier


def predicted_hits(seen: Observation, setting: ServerSetting) -> PredictedHits:
    """Return the hits that the model predicts for the window's requests. Earlier requests only warm the cache."""
    assert seen.log is not None  # noqa: S101  callers have a log
    if setting not in seen.predicted:
        prediction = predict_server(seen.log, setting, clocks=seen.clocks, delay=seen.store_delay)
        dropped = np.array([run.dropped_chunks[seen.in_window] for run in prediction.runs], dtype=np.float64)
        seen.predicted[setting] = replace(hits_of(seen, prediction), dropped=np.asarray(dropped.mean(axis=0)))
    return seen.predicted[setting]


def hits_since_change(
    seen: Observation, old: ServerSetting, new: ServerSetting, changed_at: float | None = None
) -> PredictedHits:
    """Return the predicted hits of the window if the setting changed from `old` to `new` at a Unix time, or when it began.

    L1 then starts with the chunks that the old setting left there. An L1 that was just enlarged evicts nothing at first, so
    it gives more hits than an L1 that always had this size.
    """
    assert seen.log is not None  # noqa: S101  callers have a log
    inside = isinstance(new, InProcessSetting)
    # `RunningServer` has no tenants' quotas, and is not in-process LMCache.
    if not len(seen.log) or inside or old.tenant_quotas is not None or new.tenant_quotas is not None:
        return predicted_hits(seen, new)
    log = isolated(seen.log)
    start = seen.metrics.window.start.timestamp() if changed_at is None else changed_at
    first = int(np.searchsorted(log.timestamps, start))
    columns = []
    for clock in seen.clocks:
        server = RunningServer(old, first_tick=clock.first_tick(log), period=clock.period, delay=seen.store_delay)
        before = server.run(log, slice(0, first), start)
        server.setting = new
        if old.l2_capacity_chunks != new.l2_capacity_chunks:
            server.empty_l2()
        after = server.run(log, slice(first, len(log)), max(float(log.timestamps[-1]), start))
        l1, l2, _ = (np.concatenate(parts) for parts in zip(before, after, strict=True))
        columns.append((l1, l2))
    return _hits(seen, columns)


def hits_of(seen: Observation, prediction: ServerPrediction) -> PredictedHits:
    """Return the window's part of a prediction for the whole log."""
    return _hits(seen, [(run.l1_hit_chunks, run.l2_hit_chunks) for run in prediction.runs])


def _hits(seen: Observation, columns: Sequence[tuple[Int32, Int32]]) -> PredictedHits:
    """Return the hits of the window's requests.

    Args:
        seen: The observation.
        columns: For each clock, two arrays of shape (requests,): chunks found in L1 and in L2, over the whole log.
    """
    assert seen.log is not None  # noqa: S101  callers have a log
    l1, l2 = (np.array([of_clock[seen.in_window] for of_clock in tier], dtype=np.float64) for tier in zip(*columns, strict=True))
    return PredictedHits(asked=seen.window_chunks.astype(np.float64), l1=l1, l2=l2, own=seen.own_hits)


def predicted_rate(seen: Observation, setting: ServerSetting) -> float:
    """Return the modelled token hit rate of the window's requests, in [0, 1], as the mean over the possible clocks."""
    return predicted_hits(seen, setting).rate


def predicted_ttft(seen: Observation, setting: ServerSetting) -> TimeToFirstToken | None:
    """Return the time to first token of the window's requests under a setting, over the possible clocks.

    The wait for other requests stays in proportion to the time without one, as it does where clients send their next request
    after an answer. Where requests come at times of their own it changes more than that.

    Return ``None`` if the engine's speed is unknown, or if the model does not explain what the engine's own cache serves.
    """
    seconds = _seconds_without_waiting(seen, setting)
    return None if seconds is None else time_to_first_token(_waiting(seen) * seconds)


def _seconds_without_waiting(seen: Observation, setting: ServerSetting) -> Floats | None:
    """Return (clocks, requests) seconds to the first token of each request, if it had the engine to itself."""
    engine = seen.metrics.engine
    if engine is None or seen.engine_speed is None or not seen.savings_known or not seen.in_window.any():
        return None
    assert seen.log is not None  # noqa: S101  there are requests in the window
    hits, tokens = predicted_hits(seen, setting), seen.log.tokens[seen.in_window].astype(np.float64)
    # In a sampled log, each chunk stands for several chunks.
    per_chunk = seen.log.chunk_size / seen.log.sampling_rate
    own, loaded = per_chunk * np.asarray(hits.own), per_chunk * (hits.saved_l1 + hits.saved_l2)
    return seconds_to_first_token(seen.engine_speed, tokens - own, loaded)


def _waiting(seen: Observation) -> float:
    """Return the measured time to first token in units of the one without waiting: at least 1, and 1 if it is unknown."""
    engine, setting = seen.metrics.engine, server_setting(seen)
    if engine is None or engine.ttft_ms is None or setting is None:
        return 1.0
    alone = _seconds_without_waiting(seen, setting)
    return 1.0 if alone is None else max(engine.ttft_ms.mean / (1e3 * float(alone.mean())), 1.0)


def predicted_gain(seen: Observation, old: ServerSetting, new: ServerSetting) -> Gain:
    """Return the modelled difference in token hit rate on the same requests, with a 90 % interval."""
    return gain_between(predicted_hits(seen, old), predicted_hits(seen, new))


def gain_of_update(seen: Observation, update: ConfigUpdate) -> Gain | None:
    """Return the modelled gain of a change of settings, or ``None`` if the model does not cover it or has no requests."""
    old, new = server_setting(seen), server_setting(seen, update.known())
    changes_chunks = update.chunk_size is not None and update.chunk_size != seen.config.chunk_size
    if seen.log is None or old is None or new is None or changes_chunks or not seen.in_window.any() or not seen.savings_known:
        return None
    return predicted_gain(seen, old, new)


def gain_between(before: PredictedHits, after: PredictedHits) -> Gain:
    """Return the difference in tokens that LMCache saves, for the same requests, with a 90 % interval.

    Without a cache of the engine's own, this is the difference in token hit rate.
    """
    found = _difference(before, after, weight_of_l2=1.0)
    how = f"our model of LMCache 0.5.6 on the {len(before.asked):,} observed requests, block bootstrap"
    if np.any(before.own):
        how += ", beyond what the engine's own prefix cache serves"
    return Gain(lower=found.lower, estimate=found.estimate, upper=found.upper, method=how)


def model_error(seen: Observation, hits: PredictedHits) -> float | None:
    """Return by how much the model overstates the share of tokens that LMCache saves; ``None`` if that is not measured.

    Where the operator states the size of an engine's own cache and the engine is not read, what LMCache saves is not measured,
    but its hits are: return the error of the hit rate.

    Args:
        seen: The observation.
        hits: The modelled hits with the settings in force.
    """
    if seen.saved_rate is not None:
        return hits.saved_rate - seen.saved_rate
    measured = seen.metrics.tokens.hit_rate
    return hits.rate - measured if seen.metrics.engine is None and measured is not None else None


def saved_share(seen: Observation) -> float | None:
    """Return the share of the requested tokens that LMCache saves; ``None`` if nothing tells.

    Where the size of an engine's own cache is stated, it is what LMCache hits, as measured, less what that cache has too, as
    modelled.
    """
    if seen.saved_rate is not None:
        return seen.saved_rate
    here = server_setting(seen)
    if here is None:
        return None
    hits = predicted_hits(seen, here)
    error = model_error(seen, hits)
    return None if error is None else hits.saved_rate - error


def corrected(gain: Gain, error: float) -> Gain:
    """Return a modelled gain corrected by the model's error, with an interval that is wider by the same error.

    Args:
        gain: The modelled gain.
        error: Correction to add to the gain: how much the model overstates the old setting, or understates the new one.
    """
    estimate = min(max(gain.estimate + error, -1.0), 1.0)
    return gain.model_copy(
        update={
            "lower": max(min(gain.lower + error - abs(error), estimate), -1.0),
            "estimate": estimate,
            "upper": min(max(gain.upper + error + abs(error), estimate), 1.0),
        }
    )


def gain_in_points(gain: Gain) -> str:
    """Return a gain as text, e.g. ``+15.0 points (90 % interval +12.0 points to +18.0 points)``."""
    return f"{points(gain.estimate)} ({gain.interval_percent} % interval {points(gain.lower)} to {points(gain.upper)})"


def predicted_worth(seen: Observation, old: ServerSetting, new: ServerSetting) -> Range:
    """Return the modelled difference in hits per requested chunk. A hit in L2 counts by the time it saves relative to L1."""
    return _difference(predicted_hits(seen, old), predicted_hits(seen, new), weight_of_l2=seen.l2_weight)


def _difference(before: PredictedHits, after: PredictedHits, *, weight_of_l2: float) -> Range:
    """Return the difference in what LMCache saves: hits that the engine's own cache has as well do not count."""
    return difference(before.asked, *(hits.saved_l1 + weight_of_l2 * hits.saved_l2 for hits in (before, after)))


def difference(asked: Floats, before: Floats, after: Floats) -> Range:
    """Return the difference in hits per requested chunk, with a 90 % interval from a block bootstrap over consecutive requests.

    Args:
        asked: (requests,) requested chunks.
        before: (clocks, requests) hits for each possible clock of the eviction thread. Each draw also draws one clock.
        after: (clocks, requests) hits of the same requests under the other setting.
    """
    blocks = [np.arange(len(asked))] if len(asked) < BLOCKS else np.array_split(np.arange(len(asked)), BLOCKS)
    asked_of, before_of, after_of = (_by_block(part, blocks) for part in (asked, before, after))
    draw = np.random.default_rng(0)
    rows = draw.integers(len(blocks), size=(DRAWS, len(blocks)))
    clocks = draw.integers(len(before), size=(DRAWS, 2, 1))
    gained = after_of[rows, clocks[:, 0]].sum(axis=1) - before_of[rows, clocks[:, 1]].sum(axis=1)
    drawn = gained / np.maximum(asked_of[rows].sum(axis=1), 1)
    estimate = float((after.sum(axis=1).mean() - before.sum(axis=1).mean()) / max(asked.sum(), 1))
    lower, upper = np.percentile(drawn, INTERVAL)
    return Range(lower=min(float(lower), estimate), estimate=estimate, upper=max(float(upper), estimate))


def _by_block(part: Floats, blocks: list[np.ndarray[Any, Any]]) -> Floats:
    return np.array([part[..., block].sum(axis=-1) for block in blocks])


def forecast_of(seen: Observation, instead: ConfigUpdate | None = None, sizes_mb: Sequence[float] | None = None) -> Forecast:
    """Return a forecast for several L1 sizes over an observation's whole log. All other settings stay as they are.

    Args:
        seen: An observation with a log.
        instead: Settings that replace the ones in force. `chunk_size` must be a multiple of the present one.
        sizes_mb: L1 sizes in MB. The default is a grid from the log, the present size and the size in `instead`.

    Raises:
        WorkloadError: The log does not allow a prediction, or the model does not cover these settings.
    """
    if instead is not None and instead.chunk_size is not None:
        seen = _with_chunks_of(seen, instead.chunk_size)
    assert seen.log is not None  # noqa: S101  callers have a log
    changed = instead.known() if instead else {}
    config = CacheConfig.model_validate(seen.config.model_dump() | changed)
    under, tier = server_setting(seen, changed), _tier_behind(seen, config) if seen.in_process else TierBehind()
    if under is None and seen.in_process and (policy := _inside(config)) is not None:
        under = InProcessSetting(seen.capacity_chunks or 0, cache_policy=policy)
    if under is None and instead is not None:
        raise WorkloadError(f"the model does not cover these values of {', '.join(instead.known())} on {seen.cache}")
    here = server_setting(seen)
    now = {one.capacity_chunks for one in (here, under) if one is not None and one.capacity_chunks}
    found = forecast(
        seen.log,
        under or DEFAULTS,
        capacities_chunks=None if sizes_mb is None else _chunks(seen, sizes_mb),
        including=[] if sizes_mb else sorted(now),
        chunk_bytes=seen.chunk_bytes,
        shared=True,
        delay=seen.store_delay,
        engine_cache=seen.own_cache,
    )
    more = tier.assumed if tier.withheld is None else (f"the hit rates are of memory alone: {tier.withheld}",)
    return found.model_copy(update={"notes": (*found.notes, *more)})


def _chunks(seen: Observation, sizes_mb: Sequence[float]) -> list[float]:
    """Return sizes in MB as chunks of the observation's log."""
    if seen.chunk_bytes is None:
        assert seen.log is not None  # noqa: S101  callers have a log
        return chunks_of(sizes_mb, seen.log, seen.metrics.kv_bytes_per_token)
    return [size * MB / seen.chunk_bytes for size in sizes_mb]


def _with_chunks_of(seen: Observation, tokens: int) -> Observation:
    """Return the observation as a server with chunks of `tokens` tokens would have logged it."""
    assert seen.log is not None  # noqa: S101  callers have a log
    factor, rest = divmod(tokens, seen.log.chunk_size)
    if rest or not factor:
        raise WorkloadError(
            f"cannot predict chunks of {tokens} tokens from a log with chunks of {seen.log.chunk_size} tokens; choose a multiple"
            f" of {seen.log.chunk_size}"
        )
    config = seen.config.model_copy(update={"chunk_size": tokens})
    return replace(seen, log=with_larger_chunks(seen.log, factor), config=config, predicted={})
