"""The forecast: for one access log, what each L1 size would give, as a table a person or an agent can read."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agent_tools.errors import WorkloadError
from agent_tools.models import MB
from agent_tools.models.config import Frozen
from agent_tools.workload.access_log import AccessLog

from .clairvoyant import clairvoyant_hits
from .eviction_clock import AT_ONCE, StoreDelay
from .hit_rate_curve import HitRateCurve, hit_rate_curve
from .isolation import isolated
from .server_prediction import ServerPrediction, predict_settings
from .server_setting import ServerSetting

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

SIZES = 14
"""Rows of a forecast unless sizes are given."""
CURVE_POINTS = 120
"""Points of the drawn curve."""
LEAST_SHARE = 0.2
"""The default sizes begin where an always-full LRU gets so much of the unbounded cache's hits,"""
WIDEST = 300
"""or at most so many times below the last one."""


class ForecastRow(Frozen):
    """What one L1 size would give. All hit rates are token hit rates over whole chunks, as LMCache's live metric counts them."""

    capacity_chunks: Annotated[float, Field(ge=0)]
    """L1 size in chunks."""
    size_mb: Annotated[float, Field(ge=0)] | None
    """L1 size in MB (2**20 bytes); ``None`` when the bytes of a chunk are not known."""
    lru: Share
    """An always-full LRU cache of this size: exact."""
    server: Share
    """`lmcache server` 0.5.6 with the forecast's other settings: mean over the possible eviction clocks."""
    server_lower: Share
    """Lower end of its 90 % interval."""
    server_upper: Share
    """Upper end of its 90 % interval."""
    from_l2: Share = 0
    """The part of `server` that L2 serves."""
    clairvoyant: Share
    """The most that any eviction policy could get from this size and the L2 together (Belady with bypass)."""
    failed_chunks: Annotated[float, Field(ge=0)]
    """Chunks the server would not store for want of room between two eviction ticks, mean."""

    @property
    def policy_gap(self) -> float:
        """What the best possible decisions would add to an always-full LRU at this size."""
        return self.clairvoyant - self.lru


class Forecast(Frozen):
    """What each L1 size would give on one log, from an empty cache. Sizes in MB are of 2**20 bytes."""

    requests: Count
    """Lookups in the log."""
    short_requests: Count
    """Lookups of prompts shorter than one chunk, which can never be cached."""
    duration_seconds: Annotated[float, Field(ge=0)]
    """From the first to the last lookup, seconds."""
    chunk_size: Annotated[int, Field(gt=0)]
    """Tokens per chunk."""
    chunk_mb: Annotated[float, Field(gt=0)] | None
    """MB of one chunk in L1; ``None`` when not known, and then sizes are in chunks only."""
    chunks: Count
    """Whole chunks asked for."""
    footprint_chunks: Count
    """Distinct chunks: an L1 of this size never evicts."""
    largest_request_chunks: Count
    """Most whole chunks of one request."""
    watermark: float
    """Eviction watermark of the server."""
    ratio: float
    """Eviction ratio of the server."""
    policy: Literal["LRU", "ARC", "noop", "IsolatedLRU"]
    """Eviction policy of the server's L1."""
    second_tier: str | None = None
    """The server's L2 in words; ``None`` without one."""
    ceiling: Share
    """Token hit rate of an unbounded cache."""
    useful_chunks: Count
    """The smallest always-full LRU that reaches the ceiling, chunks."""
    rows: tuple[ForecastRow, ...]
    """One for each size, smallest first; none when there is nothing to cache and no sizes were asked for."""
    lru_curve: tuple[tuple[float, float], ...]
    """(chunks, hit rate) of the always-full LRU at many sizes between the first and the last row: the exact curve, drawn."""
    notes: tuple[str, ...]
    """What to know before using it, one sentence each."""

    def table(self) -> list[dict[str, float | None]]:
        """One flat row per size, with ``policy_gap``."""
        return [row.model_dump() | {"policy_gap": row.policy_gap} for row in self.rows]


DEFAULTS = ServerSetting(capacity_chunks=1)
"""LMCache's default settings; a forecast takes its sizes from elsewhere."""


def forecast(
    log: AccessLog,
    under: ServerSetting = DEFAULTS,
    *,
    capacities_chunks: Sequence[float] | None = None,
    including: Sequence[float] = (),
    chunk_bytes: float | None = None,
    shared: bool = False,
    delay: StoreDelay = AT_ONCE,
) -> Forecast:
    """What L1 sizes would give on a log, with every other setting as it is in `under`.

    Cost: the exact curve, and for each size 20 runs of the server model and one of the clairvoyant bound.

    Args:
        log: What was asked, of one model; `by_model` splits a log of several.
        under: All settings but the L1 size.
        capacities_chunks: Sizes in chunks (`chunks_of` turns MB into them); by default a grid from the curve.
        including: Sizes in chunks to add to that grid, e.g. the present one.
        chunk_bytes: L1 bytes of one chunk; by default as the log states.
        shared: Whether the models of the log share one L1, as those of one server do; their chunks are then taken to be of one
            size, and a note says so.
        delay: How long after its lookup a request stores.

    Raises:
        WorkloadError: The log is empty, mixes models that do not share, or has times that are not finite; or a size makes no
            sense.
    """
    log = isolated(_checked(log, shared=shared))
    chunk_bytes = chunk_bytes or log.chunk_bytes
    curve = hit_rate_curve(log)
    chosen = _grid(curve, chunk_bytes, under.watermark, under.ratio) if capacities_chunks is None else _some(capacities_chunks)
    capacities = _sorted([*chosen, *including])
    settings = [replace(under, capacity_chunks=capacity) for capacity in capacities]
    rows = tuple(_rows(log, curve, predict_settings(log, settings, delay=delay), chunk_bytes))
    return Forecast(
        requests=len(log),
        short_requests=int((log.tokens < log.chunk_size).sum()),
        duration_seconds=max(log.duration, 0.0),
        chunk_size=log.chunk_size,
        chunk_mb=chunk_bytes / MB if chunk_bytes else None,
        chunks=curve.chunks,
        footprint_chunks=curve.footprint,
        largest_request_chunks=int(log.chunks_per_request.max(initial=0)),
        watermark=under.watermark,
        ratio=under.ratio,
        policy=under.policy,
        second_tier=_in_words(under) if under.l2_capacity_chunks else None,
        ceiling=curve.ceiling(),
        useful_chunks=curve.useful_capacity,
        rows=rows,
        lru_curve=_drawn(curve, capacities),
        notes=tuple(_notes(log, curve, chunk_bytes, rows)),
    )


def by_model(log: AccessLog) -> dict[str, AccessLog]:
    """The part of a log that each model asked for, by the model's name; each then fills an L1 of its own."""
    found = np.unique(log.models)
    if len(found) <= 1:
        return {log.model_names[label]: log for label in found}
    return {
        log.model_names[label]: replace(
            log.select(np.flatnonzero(log.models == label)),
            models=np.zeros(int((log.models == label).sum()), np.int16),
            model_names=(log.model_names[label],),
        )
        for label in found
    }


def chunks_of(sizes_mb: Sequence[float], log: AccessLog, kv_bytes_per_token: float | None = None) -> list[float]:
    """Sizes in MB (2**20 bytes) as chunks.

    Raises:
        WorkloadError: The bytes of a chunk are neither in the log nor given.
    """
    chunk_bytes = kv_bytes_per_token * log.chunk_size if kv_bytes_per_token else log.chunk_bytes
    if not chunk_bytes:
        raise WorkloadError(
            "sizes in MB need the KV bytes of a token, which this log does not state: give kv_bytes_per_token"
            " (`lmcache-agent status` measures it), or sizes in chunks"
        )
    return [size * MB / chunk_bytes * log.sampling_rate for size in sizes_mb]


def _in_words(under: ServerSetting) -> str:
    size = "without bound" if math.isinf(under.l2_capacity_chunks) else f"of {under.l2_capacity_chunks:.0f} chunks"
    return f"an L2 {size}, prefetch policy {under.l2_prefetch_policy}"


def _checked(log: AccessLog, *, shared: bool) -> AccessLog:
    if not len(log):
        raise WorkloadError("the log holds no requests: let the server answer some, or name another log")
    names = [log.model_names[label] for label in np.unique(log.models)]
    if len(names) > 1 and not shared:
        raise WorkloadError(
            f"the log mixes {len(names)} models ({', '.join(names[:5])}), whose KV differs: choose one of them (forecast.by_model"
            " splits the log)"
        )
    if not np.isfinite(log.timestamps).all():
        raise WorkloadError("the log has times that are not numbers: eviction runs once a second and cannot be modelled without")
    if log.duration < 0 or (np.diff(log.timestamps) < 0).any():
        raise WorkloadError("the log is not in the order of its times: sort it first (access_log.in_time_order)")
    return log


def _some(capacities: Sequence[float]) -> Sequence[float]:
    if not len(capacities):
        raise WorkloadError("give at least one size, or none at all for a grid from the log")
    return capacities


def _sorted(capacities: Sequence[float]) -> list[float]:
    wrong = [str(capacity) for capacity in capacities if not 0 < capacity < math.inf]
    if wrong:
        raise WorkloadError(f"sizes must be positive numbers, got {', '.join(wrong)}")
    return sorted({float(capacity) for capacity in capacities})


def _grid(curve: HitRateCurve, chunk_bytes: float | None, watermark: float, ratio: float) -> list[float]:
    """Sizes, two digits each in MB or chunks, from where hits begin to where the server has them all; none without chunks."""
    if not curve.footprint:
        return []
    # Between eviction passes L1 works down to watermark x (1 - ratio) of its size; at footprint / watermark it never evicts.
    worst = max(min(watermark, 1.0) * (1 - min(ratio, 1.0)), 0.05)
    last = min(1.1 * max(curve.useful_capacity, 1) / worst, curve.footprint / max(min(watermark, 1.0), 0.05) + 1)
    first = min(max(curve.capacity_for(LEAST_SHARE), last / WIDEST, 1), last / 8)
    unit = (chunk_bytes or MB) / MB
    sizes = {_two_digits(size) for size in np.geomspace(first * unit, last * unit, SIZES)}
    return [size / unit for size in sorted(sizes)]


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _rows(
    log: AccessLog, curve: HitRateCurve, predictions: Sequence[ServerPrediction], chunk_bytes: float | None
) -> list[ForecastRow]:
    capacities = [p.setting.capacity_chunks + p.setting.l2_capacity_chunks for p in predictions]
    with ThreadPoolExecutor() as threads:
        held = [min(capacity, log.unique_chunks) for capacity in capacities]
        bounds = list(threads.map(lambda capacity: int(clairvoyant_hits(log, capacity).sum(dtype=np.int64)), held))
    return [
        _row(curve, prediction, bound / max(curve.chunks, 1), chunk_bytes)
        for prediction, bound in zip(predictions, bounds, strict=True)
    ]


def _row(curve: HitRateCurve, prediction: ServerPrediction, clairvoyant: float, chunk_bytes: float | None) -> ForecastRow:
    capacity = prediction.setting.capacity_chunks
    lower, upper = prediction.interval
    return ForecastRow(
        capacity_chunks=capacity,
        size_mb=capacity * chunk_bytes / MB if chunk_bytes else None,
        lru=curve.hit_rate(capacity),
        server=prediction.hit_rate,
        server_lower=lower,
        server_upper=upper,
        from_l2=float(np.mean([run.l2_hit_rate for run in prediction.runs])),
        clairvoyant=clairvoyant,
        failed_chunks=prediction.failed_chunks,
    )


def _drawn(curve: HitRateCurve, capacities: Sequence[float]) -> tuple[tuple[float, float], ...]:
    if not capacities:
        return ()
    sizes = np.unique(np.geomspace(capacities[0], capacities[-1], CURVE_POINTS))
    return tuple((float(size), curve.hit_rate(size)) for size in sizes)


def _notes(log: AccessLog, curve: HitRateCurve, chunk_bytes: float | None, rows: Sequence[ForecastRow]) -> list[str]:
    short = int((log.tokens < log.chunk_size).sum())
    notes = []
    if not curve.chunks:
        notes.append(
            f"all {len(log)} requests are shorter than one chunk ({log.chunk_size} tokens): no size helps, smaller chunks may"
        )
    elif short > len(log) / 2:
        notes.append(
            f"{short} of {len(log)} requests are shorter than one chunk ({log.chunk_size} tokens) and can never be cached"
        )
    if len(log) == 1:
        notes.append("the log holds one request: nothing could be reused yet")
    elif curve.chunks and not curve.ceiling():
        notes.append("no request repeats the prefix of an earlier one: no size helps")
    if len(log) > 1 and log.duration == 0:
        notes.append(
            "all requests carry the same time, so the server never evicts between them: its column is not to be relied on"
        )
    if len(np.unique(log.models)) > 1:
        notes.append("the models share L1, and their chunks are taken to be of one size")
    if chunk_bytes is None:
        notes.append("the log does not state the bytes of a chunk: sizes are in chunks")
    if any(row.failed_chunks for row in rows):
        notes.append("where chunks fail to be stored, the outcome depends on timing to a fraction of a second")
    notes += log.remarks
    if log.bad_lines:
        notes.append(f"{log.bad_lines} broken lines of the log were left out")
    return notes
