"""The observed cache in the model's terms, and what the model says other settings would have given on the same requests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agent_tools.errors import WorkloadError
from agent_tools.models import CacheConfig, ConfigUpdate, Gain
from agent_tools.models.cost import Range
from agent_tools.models.engine import TimeToFirstToken
from agent_tools.prediction.chunk_size import with_larger_chunks
from agent_tools.prediction.configured import setting_of
from agent_tools.prediction.forecast import DEFAULTS, Forecast, chunks_of, forecast
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.running_server import RunningServer
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.prediction.time_to_first_token import seconds_to_first_token, time_to_first_token

from .observation import Floats, Observation, PredictedHits

Int32 = npt.NDArray[np.int32]

MODEL_OFF = 0.03
"""Distance between the model's and the measured hit rate above which the model is not believed."""
SERVES_ITSELF = 0.02
"""Share of the prompt tokens that the engine's own prefix cache serves above which its requests' times are not the cache's."""
BLOCKS = 20
DRAWS = 400
INTERVAL = (5.0, 95.0)
"""Percentiles of the stated 90 % interval."""


def server_setting(seen: Observation, instead: Mapping[str, Any] | None = None) -> ServerSetting | None:
    """The observed cache as the model takes it; ``None`` when its sizes or its eviction are not known, or not modelled.

    Args:
        seen: The observation.
        instead: Settings to take in place of those observed, by name.
    """
    config = CacheConfig.model_validate(seen.config.model_dump() | dict(instead or {}))
    return None if seen.chunk_bytes is None else setting_of(config, seen.chunk_bytes)


def predicted_hits(seen: Observation, setting: ServerSetting) -> PredictedHits:
    """Hits of the window's requests under a setting; those before the window only warm the cache."""
    assert seen.log is not None  # noqa: S101  callers have a log
    if setting not in seen.predicted:
        runs = predict_server(seen.log, setting, clocks=seen.clocks, delay=seen.store_delay).runs
        seen.predicted[setting] = _hits(seen, [(run.l1_hit_chunks, run.l2_hit_chunks) for run in runs])
    return seen.predicted[setting]


def hits_since_change(seen: Observation, old: ServerSetting, new: ServerSetting) -> PredictedHits:
    """The same where the setting changed from `old` to `new` as the window began: L1 then held what the old one had left there.

    A cache that was just made larger has nothing to evict at first and gives more than one that always was as large.
    """
    assert seen.log is not None  # noqa: S101  callers have a log
    if old.tenant_quotas is not None or new.tenant_quotas is not None:  # which `RunningServer` does not know
        return predicted_hits(seen, new)
    log = isolated(seen.log)
    start = seen.metrics.window.start.timestamp()
    first = int(np.searchsorted(log.timestamps, start))
    columns = []
    for clock in seen.clocks:
        server = RunningServer(old, first_tick=clock.first_tick(log), period=clock.period, delay=seen.store_delay)
        before = server.run(log, slice(0, first), start)
        server.setting = new
        if old.l2_capacity_chunks != new.l2_capacity_chunks:
            server.empty_l2()
        after = server.run(log, slice(first, len(log)), float(log.timestamps[-1]))
        l1, l2, _ = (np.concatenate(parts) for parts in zip(before, after, strict=True))
        columns.append((l1, l2))
    return _hits(seen, columns)


def _hits(seen: Observation, columns: Sequence[tuple[Int32, Int32]]) -> PredictedHits:
    """From (requests,) chunks of the whole log found in L1 and in L2, for each clock."""
    assert seen.log is not None  # noqa: S101  callers have a log
    l1, l2 = (np.array([of_clock[seen.in_window] for of_clock in tier], dtype=np.float64) for tier in zip(*columns, strict=True))
    return PredictedHits(asked=seen.window_chunks.astype(np.float64), l1=l1, l2=l2)


def predicted_rate(seen: Observation, setting: ServerSetting) -> float:
    """The model's token hit rate of the window's requests under a setting, mean over the server's possible clocks."""
    return predicted_hits(seen, setting).rate


def predicted_ttft(seen: Observation, setting: ServerSetting) -> TimeToFirstToken | None:
    """Time to first token of the window's requests under a setting, over the server's possible clocks, without queueing.

    ``None`` where no engine has shown its speed, or where its own prefix cache serves part of the prompts, which is not modelled.
    """
    engine = seen.metrics.engine
    if engine is None or seen.engine_speed is None or engine.own_cache_share > SERVES_ITSELF or not seen.in_window.any():
        return None
    assert seen.log is not None  # noqa: S101  there are requests in the window
    hits, tokens = predicted_hits(seen, setting), seen.log.tokens[seen.in_window].astype(np.float64)
    # With a sampled log each chunk stands for several.
    per_chunk = seen.log.chunk_size / seen.log.sampling_rate
    return time_to_first_token(seconds_to_first_token(seen.engine_speed, tokens, per_chunk * (hits.l1 + hits.l2)))


def predicted_gain(seen: Observation, old: ServerSetting, new: ServerSetting) -> Gain:
    """Difference of the token hit rate on the same requests, with its 90 % interval."""
    return gain_between(predicted_hits(seen, old), predicted_hits(seen, new))


def gain_between(before: PredictedHits, after: PredictedHits) -> Gain:
    """The same from hits of the same requests."""
    found = _difference(before, after, weight_of_l2=1.0)
    how = f"model of `lmcache server` 0.5.6 on the {len(before.asked)} observed requests; block bootstrap"
    return Gain(lower=found.lower, estimate=found.estimate, upper=found.upper, method=how)


def corrected(gain: Gain, error: float) -> Gain:
    """A modelled gain moved by how far model and server were apart on one side of it; its interval is wider by as much."""
    estimate = min(max(gain.estimate + error, -1.0), 1.0)
    return gain.model_copy(
        update={
            "lower": max(min(gain.lower + error - abs(error), estimate), -1.0),
            "estimate": estimate,
            "upper": min(max(gain.upper + error + abs(error), estimate), 1.0),
        }
    )


def predicted_worth(seen: Observation, old: ServerSetting, new: ServerSetting) -> Range:
    """The same difference with each hit of L2 counted by the time it saves against one of L1."""
    return _difference(predicted_hits(seen, old), predicted_hits(seen, new), weight_of_l2=seen.l2_weight)


def _difference(before: PredictedHits, after: PredictedHits, *, weight_of_l2: float) -> Range:
    return difference(before.asked, *(hits.l1 + weight_of_l2 * hits.l2 for hits in (before, after)))


def difference(asked: Floats, before: Floats, after: Floats) -> Range:
    """Of hits per chunk asked for, with its 90 % interval: blocks of successive requests are drawn with replacement.

    Args:
        asked: (requests,) chunks asked for.
        before: (clocks, requests) hits, for each clock the eviction thread may have; with each draw of blocks one is drawn.
        after: The same, of the same requests under another setting.
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
    """What L1 sizes would give on all of an observation's log, with every other setting as it is, or as it is in `instead`.

    Args:
        seen: The observation, which has a log.
        instead: Settings to take in place of those in force; chunk_size must be a multiple of the present one.
        sizes_mb: L1 sizes, MB; by default a grid from the log, the present size, and that of `instead`.

    Raises:
        WorkloadError: The log cannot be predicted from, or not for such settings.
    """
    if instead is not None and instead.chunk_size is not None:
        seen = _with_chunks_of(seen, instead.chunk_size)
    assert seen.log is not None  # noqa: S101  callers have a log
    under = server_setting(seen, instead.known() if instead else None)
    if under is None and instead is not None:
        raise WorkloadError(f"the model does not cover {', '.join(instead.known())} with those values on {seen.cache}")
    here = server_setting(seen)
    return forecast(
        seen.log,
        under or DEFAULTS,
        capacities_chunks=None if sizes_mb is None else chunks_of(sizes_mb, seen.log, seen.metrics.kv_bytes_per_token),
        including=[] if sizes_mb else sorted({one.capacity_chunks for one in (here, under) if one is not None}),
        chunk_bytes=seen.chunk_bytes,
        shared=True,
        delay=seen.store_delay,
    )


def _with_chunks_of(seen: Observation, tokens: int) -> Observation:
    """The same observation as a server with larger chunks would have logged it."""
    assert seen.log is not None  # noqa: S101  callers have a log
    factor, rest = divmod(tokens, seen.log.chunk_size)
    if rest or not factor:
        raise WorkloadError(
            f"chunks of {tokens} tokens cannot be predicted from a log with chunks of {seen.log.chunk_size}: only whole multiples"
            " of these can, since the log names whole chunks"
        )
    config = seen.config.model_copy(update={"chunk_size": tokens})
    return replace(seen, log=with_larger_chunks(seen.log, factor), config=config, predicted={})
