"""What could help: settings searched with the server model over the observed requests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agent_tools.models import MB, ConfigUpdate, EvictionPolicy, Gain, SupportLevel
from agent_tools.prediction.cache_run import CacheRun
from agent_tools.prediction.server_prediction import predict_server, predict_settings
from agent_tools.prediction.server_setting import ServerSetting

from .observation import Observation

SHARES_OF_CEILING = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Sizes tried: those that an always-full LRU would need for so much of the unbounded cache's hits."""
WATERMARKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RATIOS = (0.05, 0.1, 0.2, 0.3)
GOOD_ENOUGH = 0.005
"""Of settings within half a point of the best, the cheapest is proposed."""
MODEL_OFF = 0.03
"""Distance between the model's and the measured hit rate above which the model is not believed."""
BLOCKS = 20
DRAWS = 400
INTERVAL = (5.0, 95.0)
"""Percentiles of the stated 90 % interval."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Proposal:
    """A setting, what it would change, and what the model says it would give."""

    update: ConfigUpdate
    level: SupportLevel
    """``live`` or ``restart``."""
    violation: str | None
    """Why the operator's bounds forbid it; ``None`` when they allow it."""
    gain: Gain
    rate: float
    """Predicted token hit rate of the window's requests."""


@dataclass(frozen=True)
class _Candidate:
    setting: ServerSetting
    size_mb: float


def propose(seen: Observation) -> list[Proposal]:
    """At most one proposal for the size, one for watermark and ratio, one for all three; none without a log.

    Each is the cheapest of the best of its kind, since the operator may allow one kind and not another.
    """
    current = server_setting(seen)
    if current is None or seen.log is None or seen.curve is None or seen.config.max_size_mb is None:
        return []
    here = _Candidate(current, seen.config.max_size_mb)
    best_size = _cheapest_of_best(seen, [here, *_resized(seen, here)])
    best_shape = _cheapest_of_best(seen, [here, *_reshaped(seen, here)])
    best_both = _cheapest_of_best(seen, [best_size, best_shape, *_reshaped(seen, best_size)])
    chosen = [candidate for candidate in dict.fromkeys((best_size, best_shape, best_both)) if candidate != here]
    return [_proposal(seen, here, candidate) for candidate in chosen]


def server_setting(seen: Observation, instead: Mapping[str, Any] | None = None) -> ServerSetting | None:
    """The observed cache as the model takes it; ``None`` when its size in chunks or its eviction is not known.

    A cache with an L2 is not modelled here yet.

    Args:
        seen: The observation.
        instead: Settings to take in place of those observed, by name.
    """
    config = seen.config.model_copy(update=dict(instead or {}))
    size, watermark, ratio = config.max_size_mb, config.eviction_watermark, config.eviction_ratio
    if seen.chunk_bytes is None or size is None or watermark is None or ratio is None or config.l2_adapters:
        return None
    evicts = config.eviction_policy not in {EvictionPolicy.NOOP, EvictionPolicy.NOOP.value}
    return ServerSetting(
        capacity_chunks=size * MB / seen.chunk_bytes, watermark=watermark, ratio=ratio, policy="LRU" if evicts else "noop"
    )


def predicted_rate(seen: Observation, setting: ServerSetting) -> float:
    """The model's token hit rate of the window's requests under a setting, mean over the server's possible clocks."""
    asked, hits = _per_request(seen, setting)
    return float(hits.sum(axis=1).mean() / asked.sum()) if asked.sum() else 0.0


def predicted_gain(seen: Observation, old: ServerSetting, new: ServerSetting) -> Gain:
    """Difference of the token hit rate on the same requests, with its 90 % interval.

    Block bootstrap: blocks of successive requests are drawn with replacement, and for each draw the clock of either server's
    eviction thread anew.
    """
    asked, before = _per_request(seen, old)
    _, after = _per_request(seen, new)
    blocks = [np.arange(len(asked))] if len(asked) < BLOCKS else np.array_split(np.arange(len(asked)), BLOCKS)
    asked_of, before_of, after_of = (
        np.array([part[..., block].sum(axis=-1) for block in blocks]) for part in (asked, before, after)
    )
    draw = np.random.default_rng(0)
    rows = draw.integers(len(blocks), size=(DRAWS, len(blocks)))
    clocks = draw.integers(len(seen.clocks), size=(DRAWS, 2, 1))
    gained = after_of[rows, clocks[:, 0]].sum(axis=1) - before_of[rows, clocks[:, 1]].sum(axis=1)
    drawn = gained / np.maximum(asked_of[rows].sum(axis=1), 1)
    estimate = float((after.sum(axis=1).mean() - before.sum(axis=1).mean()) / max(asked.sum(), 1))
    lower, upper = np.percentile(drawn, INTERVAL)
    return Gain(
        lower=min(float(lower), estimate),
        estimate=estimate,
        upper=max(float(upper), estimate),
        method=f"model of `lmcache server` 0.5.6 on the {len(asked)} observed requests; block bootstrap",
    )


def _per_request(seen: Observation, setting: ServerSetting) -> tuple[Floats, Floats]:
    """Chunks asked, (requests,), and hit, (clocks, requests), of the window's requests; those before it only warm the cache."""
    assert seen.log is not None  # noqa: S101  callers have a log
    if setting not in seen.predicted:
        runs = predict_server(seen.log, setting, clocks=seen.clocks).runs
        asked = runs[0].asked_chunks[seen.in_window].astype(np.float64)
        seen.predicted[setting] = asked, np.array([run.hit_chunks[seen.in_window] for run in runs], dtype=np.float64)
    return seen.predicted[setting]


def _resized(seen: Observation, here: _Candidate) -> Iterator[_Candidate]:
    """Larger sizes, up to the operator's bound if there is one."""
    assert seen.curve is not None  # noqa: S101
    assert seen.chunk_bytes is not None  # noqa: S101
    # Between eviction passes L1 works down to watermark x (1 - ratio) of its size.
    worst_share = here.setting.watermark * (1 - here.setting.ratio) or 1.0
    wanted = {seen.curve.capacity_for(share) / worst_share for share in SHARES_OF_CEILING}
    wanted.add(seen.curve.footprint / here.setting.watermark + 1)
    sizes = {float(np.ceil(chunks * seen.chunk_bytes / MB)) for chunks in wanted}
    bound = seen.bounds.max_size_mb
    if bound is not None:
        sizes = {min(size, bound) for size in sizes}
    for size in sorted(sizes):
        if size > here.size_mb:
            chunks = size * MB / seen.chunk_bytes
            yield _Candidate(replace(here.setting, capacity_chunks=chunks), size)


def _reshaped(seen: Observation, base: _Candidate) -> Iterator[_Candidate]:
    """The same size with every watermark and ratio within the bounds."""
    if seen.support["eviction_watermark"].level is SupportLevel.UNSUPPORTED or not base.setting.evicts:
        return
    bounds = seen.bounds
    for watermark in WATERMARKS:
        for ratio in RATIOS:
            inside = bounds.min_watermark <= watermark <= bounds.max_watermark and bounds.min_ratio <= ratio <= bounds.max_ratio
            if inside:
                yield _Candidate(replace(base.setting, watermark=watermark, ratio=ratio), base.size_mb)


def _cheapest_of_best(seen: Observation, candidates: Sequence[_Candidate]) -> _Candidate:
    """The first (smallest, least changed) of those within `GOOD_ENOUGH` of the best."""
    assert seen.log is not None  # noqa: S101
    likeliest = seen.clocks[len(seen.clocks) // 2]
    predictions = predict_settings(seen.log, [candidate.setting for candidate in candidates], clocks=[likeliest])
    rates = [_rate(prediction.runs[0], seen.in_window) for prediction in predictions]
    return next(c for c, rate in zip(candidates, rates, strict=True) if rate >= max(rates) - GOOD_ENOUGH)


def _rate(run: CacheRun, counted: npt.NDArray[np.bool_]) -> float:
    asked = run.asked_chunks[counted].sum()
    return float(run.hit_chunks[counted].sum() / asked) if asked else 0.0


def _proposal(seen: Observation, here: _Candidate, candidate: _Candidate) -> Proposal:
    old, new = here.setting, candidate.setting
    update = ConfigUpdate(
        max_size_mb=candidate.size_mb if candidate.size_mb != here.size_mb else None,
        eviction_watermark=new.watermark if new.watermark != old.watermark else None,
        eviction_ratio=new.ratio if new.ratio != old.ratio else None,
    )
    levels = {seen.support[setting].level for setting in update.known()}
    level = SupportLevel.LIVE if levels == {SupportLevel.LIVE} else SupportLevel.RESTART
    violation = seen.bounds.violation(update, seen.config)
    if violation is None and level is SupportLevel.RESTART and not seen.bounds.allow_restart:
        violation = "it needs a restart, which the operator's bounds do not allow"
    return Proposal(update, level, violation, predicted_gain(seen, old, new), predicted_rate(seen, new))
