"""The forecast: the hit rate that each L1 size would give on one access log, as a table for people and agents."""

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
from agent_tools.plain import plain
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import assumed

from .clairvoyant import clairvoyant_hits
from .engine_cache import EngineCache, engine_caches
from .eviction_clock import AT_ONCE, StoreDelay
from .hit_rate_curve import HitRateCurve, hit_rate_curve
from .in_process_disk import can_hang
from .in_process_setting import InProcessSetting
from .isolation import isolated
from .server_prediction import ServerPrediction, predict_settings
from .server_setting import ServerSetting

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

SIZES = 14
"""The number of rows of a forecast if no sizes are given."""
CURVE_POINTS = 120
"""The number of points of the drawn curve."""
LEAST_SHARE = 0.2
"""The default sizes begin where an always-full LRU gets this share of the unbounded cache's hits."""
WIDEST = 300
"""The largest default size is at most this many times the smallest."""


class ForecastRow(Frozen):
    """The prediction for one L1 size. All hit rates are token hit rates over whole chunks, like LMCache's live metric."""

    capacity_chunks: Annotated[float, Field(ge=0)]
    """L1 size in chunks."""
    size_mb: Annotated[float, Field(ge=0)] | None
    """L1 size in MB (2**20 bytes); ``None`` if the bytes of a chunk are unknown."""
    lru: Share
    """Hit rate of an always-full LRU cache of this size; exact."""
    server: Share
    """Hit rate of `lmcache server` 0.5.6 with the forecast's other settings: mean over the possible eviction clocks."""
    server_lower: Share
    """Lower end of the 90 % interval of `server`."""
    server_upper: Share
    """Upper end of the 90 % interval of `server`."""
    from_l2: Share = 0
    """The part of `server` that L2 serves."""
    clairvoyant: Share
    """The highest hit rate that any eviction policy could get from this size and the L2 together (Belady with bypass)."""
    saved: tuple[Share, ...] = ()
    """For each of the forecast's `engine_caches`: the part of `server` that the engine's own cache does not have already. Only
    this part saves the engine work."""
    failed_chunks: Annotated[float, Field(ge=0)]
    """Chunks whose store the server would drop because L1 is full between two eviction ticks; mean."""

    @property
    def policy_gap(self) -> float:
        """Return the hit rate that the best possible decisions would add to an always-full LRU at this size, 0 to 1."""
        return self.clairvoyant - self.lru


class EngineCacheSize(Frozen):
    """One size of the engine's own prefix cache (L0)."""

    tokens: Annotated[int, Field(gt=0)]
    """Its size, tokens."""
    served: Share
    """Share of the whole-chunk prompt tokens that it serves without LMCache."""


class Forecast(Frozen):
    """The predictions for each L1 size on one log, from an empty cache. Sizes in MB are 2**20 bytes."""

    source: str = ""
    """Format of the file that the log was read from; empty for a live cache."""
    models: tuple[str, ...] = ()
    """Models that the log names."""
    assumed: tuple[str, ...] = ()
    """What the log does not state and was assumed, one clause each."""
    requests: Count
    """Lookups in the log."""
    short_requests: Count
    """Lookups of prompts shorter than one chunk. They can never be cached."""
    duration_seconds: Annotated[float, Field(ge=0)]
    """From the first to the last lookup, seconds."""
    chunk_size: Annotated[int, Field(gt=0)]
    """Tokens per chunk."""
    chunk_mb: Annotated[float, Field(gt=0)] | None
    """MB of one chunk in L1; ``None`` if unknown. Sizes are then in chunks only."""
    chunks: Count
    """Whole chunks requested."""
    footprint_chunks: Count
    """Distinct chunks. An L1 of this size never evicts."""
    largest_request_chunks: Count
    """The most whole chunks of one request."""
    watermark: float
    """Eviction watermark of the server."""
    ratio: float
    """Eviction ratio of the server."""
    policy: Literal["LRU", "ARC", "noop", "IsolatedLRU", "LFU", "FIFO", "MRU"]
    """Eviction policy of L1."""
    in_process: bool = False
    """Whether the column `server` is of in-process LMCache, which has neither watermark nor ratio."""
    second_tier: str | None = None
    """The L2 in words: a server's, or the local disk of in-process LMCache; ``None`` without an L2."""
    engine_caches: tuple[EngineCacheSize, ...] = ()
    """Sizes of the engine's own prefix cache for which `ForecastRow.saved` says what LMCache adds."""
    ceiling: Share
    """Token hit rate of an unbounded cache."""
    useful_chunks: Count
    """Size of the smallest always-full LRU that reaches the ceiling, in chunks."""
    rows: tuple[ForecastRow, ...]
    """One row for each size, smallest first; empty if there is nothing to cache and no sizes were given."""
    lru_curve: tuple[tuple[float, float], ...]
    """(chunks, hit rate) of the always-full LRU at many sizes between the first and the last row: the exact curve."""
    notes: tuple[str, ...]
    """What to know before using the forecast, one sentence each."""

    @property
    def requests_per_second(self) -> float | None:
        """Return the rate of requests; ``None`` if all have the same time."""
        return (self.requests - 1) / self.duration_seconds if self.duration_seconds else None

    def table(self) -> list[dict[str, float | None]]:
        """Return one flat row per size, with ``policy_gap``, and ``saved_beyond_<tokens>`` for each engine cache."""
        names = [f"saved_beyond_{cache.tokens}" for cache in self.engine_caches]
        return [
            row.model_dump(exclude={"saved"}) | {"policy_gap": row.policy_gap} | dict(zip(names, row.saved, strict=True))
            for row in self.rows
        ]


DEFAULTS = ServerSetting(capacity_chunks=1)
"""LMCache's default settings. A forecast replaces the size."""


def forecast(  # noqa: PLR0913  what a forecast depends on
    log: AccessLog,
    under: ServerSetting = DEFAULTS,
    *,
    capacities_chunks: Sequence[float] | None = None,
    including: Sequence[float] = (),
    chunk_bytes: float | None = None,
    shared: bool = False,
    delay: StoreDelay = AT_ONCE,
    engine_cache_tokens: Sequence[int] = (),
    engine_cache: EngineCache | None = None,
) -> Forecast:
    """Predict the hit rate that L1 sizes would give on a log, with all other settings as in `under`.

    Cost: the exact curve, and for each size 20 runs of the server model and one run of the clairvoyant bound.

    Args:
        log: The recorded lookups of one model; `by_model` splits a log of several models.
        under: All settings but the L1 size, of a server or of in-process LMCache.
        capacities_chunks: Sizes in chunks (`chunks_of` converts MB). Default: a grid from the curve.
        including: Sizes in chunks to add to the grid, e.g. the present size.
        chunk_bytes: Bytes of one chunk in L1. Default: as the log states.
        shared: Whether the models of the log share one L1, like the models of one server. If the log does not say what their
            chunks are made of, all chunks count as equally large, and a note says so.
        delay: The delay between a request's lookup and its store.
        engine_cache_tokens: Sizes of the engine's own prefix cache, tokens, for which to predict what LMCache saves.
        engine_cache: The caches of the engines in front, as a model explains them, for which to predict it too.

    Raises:
        WorkloadError: The log is empty, mixes models that do not share an L1, or has times that are not finite; or a size is not
            a positive number.
    """
    log = isolated(_checked(log, shared=shared))
    chunk_bytes = chunk_bytes or log.chunk_bytes
    curve = hit_rate_curve(log)
    inside = under.cache_policy if isinstance(under, InProcessSetting) else None
    longest, on_disk = int(log.chunks_per_request.max(initial=0)), inside is not None and under.l2_capacity_chunks > 0
    if capacities_chunks is None:
        grid = _grid(curve, chunk_bytes, under.watermark, under.ratio)
        chosen: Sequence[float] = [size for size in grid if not on_disk or not can_hang(longest, size)]
    else:
        chosen = _some(capacities_chunks)
    capacities = _sorted([*chosen, *including])
    predictions = predict_settings(log, [replace(under, capacity_chunks=size) for size in capacities], delay=delay)
    own = [*([] if engine_cache is None else [engine_cache]), *engine_caches(log, _positive(engine_cache_tokens))]
    rows = tuple(_rows(log, curve, predictions, chunk_bytes, own))
    return Forecast(
        source=log.source,
        models=tuple(plain(log.model_names[label]) for label in np.unique(log.models) if log.model_names[label]),
        assumed=log.assumed,
        requests=len(log),
        short_requests=int((log.tokens < log.chunk_size).sum()),
        duration_seconds=max(log.duration, 0.0),
        chunk_size=log.chunk_size,
        chunk_mb=chunk_bytes / MB if chunk_bytes else None,
        chunks=curve.chunks,
        footprint_chunks=curve.footprint,
        largest_request_chunks=longest,
        watermark=under.watermark,
        ratio=under.ratio,
        policy=inside or under.policy,
        in_process=inside is not None,
        second_tier=_in_words(under) if under.l2_capacity_chunks else None,
        engine_caches=tuple(EngineCacheSize(tokens=one.tokens, served=one.share) for one in own),
        ceiling=curve.ceiling(),
        useful_chunks=curve.useful_capacity,
        rows=rows,
        lru_curve=_drawn(curve, capacities),
        notes=(
            *_notes(log, curve, chunk_bytes, rows, in_process=inside is not None),
            *(_of_a_tier(longest, capacities, chunk_bytes) if on_disk else ()),
            *_savings(own, rows),
        ),
    )


def by_model(log: AccessLog) -> dict[str, AccessLog]:
    """Split a log into the part of each model, by model name. Each part then fills an L1 of its own."""
    return {log.model_names[label]: _part(log, label) for label in np.unique(log.models)}


def _part(log: AccessLog, label: int) -> AccessLog:
    if len(log.model_names) == 1:
        return log
    layout = log.layouts[label] if log.layouts else None
    return replace(
        log.select(np.flatnonzero(log.models == label)),
        models=np.zeros(int((log.models == label).sum()), np.int16),
        model_names=(log.model_names[label],),
        layouts=() if layout is None else (layout,),
        chunk_bytes=log.chunk_bytes if layout is None else layout.bytes,
    )


def chunks_of(sizes_mb: Sequence[float], log: AccessLog, kv_bytes_per_token: float | None = None) -> list[float]:
    """Return sizes in MB (2**20 bytes) as chunks.

    Raises:
        WorkloadError: The bytes of a chunk are neither in the log nor given.
    """
    chunk_bytes = kv_bytes_per_token * log.chunk_size if kv_bytes_per_token else log.chunk_bytes
    if not chunk_bytes:
        raise WorkloadError(
            "sizes in MB need the KV bytes of a token, which this log does not state: give kv_bytes_per_token (`lmcache-agent"
            " status` measures it), or give sizes in chunks"
        )
    return [size * MB / chunk_bytes * log.sampling_rate for size in sizes_mb]


def _in_words(under: ServerSetting) -> str:
    if isinstance(under, InProcessSetting) and math.isinf(under.l2_capacity_chunks):
        return "a remote store that keeps everything"
    size = "without bound" if math.isinf(under.l2_capacity_chunks) else f"of {under.l2_capacity_chunks:.0f} chunks"
    if isinstance(under, InProcessSetting):
        return f"a local disk {size}"
    return f"an L2 {size}, prefetch policy {under.l2_prefetch_policy}"


def _checked(log: AccessLog, *, shared: bool) -> AccessLog:
    if not len(log):
        raise WorkloadError("the log holds no requests: let the server answer some requests, or name another log")
    names = [log.model_names[label] for label in np.unique(log.models)]
    if len(names) > 1 and not shared:
        raise WorkloadError(
            f"the log mixes {len(names)} models ({', '.join(map(plain, names[:5]))}), whose KV differs: choose one of them"
            " (forecast.by_model splits the log)"
        )
    if not np.isfinite(log.timestamps).all():
        raise WorkloadError("the log has times that are not numbers, and the model of eviction needs them: mend the log")
    if log.duration < 0 or (np.diff(log.timestamps) < 0).any():
        raise WorkloadError("the log is not in time order: sort it first (access_log.in_time_order)")
    return log


def _some(capacities: Sequence[float]) -> Sequence[float]:
    if not len(capacities):
        raise WorkloadError("the list of sizes is empty: give at least one size, or leave the list out for a grid from the log")
    return capacities


def _positive(tokens: Sequence[int]) -> Sequence[int]:
    wrong = [str(size) for size in tokens if size <= 0]
    if wrong:
        raise WorkloadError(f"the engine's own cache must hold a positive number of tokens, not {', '.join(wrong)}")
    return tokens


def _sorted(capacities: Sequence[float]) -> list[float]:
    wrong = [str(capacity) for capacity in capacities if not 0 < capacity < math.inf]
    if wrong:
        raise WorkloadError(f"sizes must be positive numbers, got {', '.join(wrong)}: leave these out")
    return sorted({float(capacity) for capacity in capacities})


def _grid(curve: HitRateCurve, chunk_bytes: float | None, watermark: float, ratio: float) -> list[float]:
    """Return round sizes in MB or chunks, from where hits begin to where the server has all hits; empty without chunks."""
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
    log: AccessLog,
    curve: HitRateCurve,
    predictions: Sequence[ServerPrediction],
    chunk_bytes: float | None,
    own: Sequence[EngineCache],
) -> list[ForecastRow]:
    capacities = [p.setting.capacity_chunks + p.setting.l2_capacity_chunks for p in predictions]
    with ThreadPoolExecutor() as threads:
        held = [min(capacity, curve.footprint) for capacity in capacities]
        bounds = list(threads.map(lambda capacity: int(clairvoyant_hits(log, capacity).sum(dtype=np.int64)), held))
    return [
        _row(curve, prediction, bound / max(curve.chunks, 1), chunk_bytes, own)
        for prediction, bound in zip(predictions, bounds, strict=True)
    ]


def _row(
    curve: HitRateCurve,
    prediction: ServerPrediction,
    clairvoyant: float,
    chunk_bytes: float | None,
    own: Sequence[EngineCache],
) -> ForecastRow:
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
        saved=tuple(cache.saved(prediction) for cache in own),
        failed_chunks=prediction.failed_chunks,
    )


def _drawn(curve: HitRateCurve, capacities: Sequence[float]) -> tuple[tuple[float, float], ...]:
    if not capacities:
        return ()
    sizes = np.unique(np.geomspace(capacities[0], capacities[-1], CURVE_POINTS))
    return tuple((float(size), curve.hit_rate(size)) for size in sizes)


def _notes(
    log: AccessLog, curve: HitRateCurve, chunk_bytes: float | None, rows: Sequence[ForecastRow], *, in_process: bool
) -> list[str]:
    short = int((log.tokens < log.chunk_size).sum())
    notes = []
    if not curve.chunks:
        notes.append(
            f"all {len(log)} requests are shorter than one chunk ({log.chunk_size} tokens): no size helps, but smaller chunks may"
        )
    elif short > len(log) / 2:
        notes.append(
            f"{short} of {len(log)} requests are shorter than one chunk ({log.chunk_size} tokens) and can never be cached"
        )
    if len(log) == 1:
        notes.append("the log holds one request: nothing could be reused yet")
    elif curve.chunks and not curve.ceiling():
        notes.append("no request repeats the prefix of an earlier one: no size helps")
    if len(log) > 1 and log.duration == 0 and not in_process:
        notes.append(
            "all requests have the same time, so the model never evicts between them: do not rely on the column of the server"
        )
    if len(np.unique(log.models)) > 1:
        notes.append("the models share L1; " + _sizes_in_words(log))
    notes += assumed(log)
    if chunk_bytes is None:
        notes.append("the log does not state the bytes of a chunk, so sizes are in chunks")
    if not in_process and any(row.failed_chunks for row in rows):
        notes.append("if stores fail, the outcome depends on timing to a fraction of a second")
    notes += log.remarks
    if log.bad_lines:
        notes.append(f"{log.bad_lines} broken lines of the log were skipped")
    return notes


def _of_a_tier(longest: int, capacities: Sequence[float], chunk_bytes: float | None) -> list[str]:
    """Warn of the L1 sizes at which an engine with a tier behind L1 can hang, and say which of the table's they are."""
    least = f"{longest:,} chunks" + (f" ({longest * chunk_bytes / MB:,.1f} MB)" if chunk_bytes else "")
    shown = sum(can_hang(longest, size) for size in capacities)
    return [
        f"with a tier behind it, do not choose an L1 below {least}, the longest prompt of the log: a hit there that L1 cannot"
        " hold makes the engine hang"
        + (f"; the {shown} smallest sizes shown are below, and what they state cannot be relied on" if shown else "")
    ]


def _sizes_in_words(log: AccessLog) -> str:
    if not log.layouts:
        return "all chunks are assumed to be equally large"
    used = [(log.model_names[label], log.layouts[label]) for label in np.unique(log.models)]
    return "bytes of a chunk: " + ", ".join(f"{plain(name)} {layout.bytes:,}" for name, layout in used if layout is not None)


WORTH_SAVING = 0.01
"""Share of the prompt tokens from which LMCache is said to save something."""


def _savings(own: Sequence[EngineCache], rows: Sequence[ForecastRow]) -> list[str]:
    """Say for each size of the engine's own cache from which L1 size on LMCache saves anything."""
    notes = []
    for number, cache in enumerate(own):
        begins = next((row for row in rows if row.saved[number] >= WORTH_SAVING), None)
        told = f"an engine cache of {cache.tokens:,} tokens serves {cache.share:.1%} of the prompt tokens itself; LMCache saves"
        if begins is None:
            notes.append(f"{told} less than {WORTH_SAVING:.0%} more at every size shown: the engine has what comes again")
        else:
            size = f"{begins.capacity_chunks:,.0f} chunks" if begins.size_mb is None else f"{begins.size_mb:,.0f} MB"
            notes.append(f"{told} {WORTH_SAVING:.0%} more or better from an L1 of {size} on")
    return notes
