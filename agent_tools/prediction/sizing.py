"""How large to make L0 (the engine's own cache), L1 and L2, before anything is bought: saved tokens, time and money by size.

What time and money depend on (the prefill speed, prices) is never assumed: without it, the figure is ``None`` with a reason.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from agent_tools.errors import WorkloadError
from agent_tools.models import MB
from agent_tools.models.config import Frozen
from agent_tools.plain import plain
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import ALIGNMENT

from .engine_cache import EngineCache, engine_caches
from .forecast import Forecast, chunks_of, forecast
from .isolation import isolated
from .model_kv import ModelKv
from .server_prediction import ServerPrediction, predict_settings
from .server_setting import ServerSetting
from .size_pricing import Pricing, Seen, Served, SizeRow, Terms

BLOCK = 16
"""Tokens of a block of vLLM's own cache, by default."""
L0_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The sizes of the engine's own cache that are shown, in parts of the size given."""
L2_SIZES = 6
LEAST = 0.01
"""Saved share of the prompt tokens below which no size has a knee."""


class Sizing(Frozen):
    """Sizes of all tiers for one model and one log."""

    model: str
    bytes_per_token: Annotated[float, Field(gt=0)]
    """KV bytes of a token in LMCache, over all ranks."""
    formula: str
    """How the bytes come about."""
    l0_tokens: int | None
    """Tokens that the engine's own cache holds; ``None`` if the GPU's memory is not given."""
    rows: tuple[SizeRow, ...]
    """L0, then L1 without an L2, then L2 behind the chosen L1; each smallest first."""
    l1_knee: SizeRow | None
    """The size of L1 beyond which little more is saved; ``None`` if there is none, see `notes`."""
    l2_knee: SizeRow | None
    """The same of L2; ``None`` without rows of L2."""
    knee_rule: str
    """How the knees were chosen."""
    unknown: dict[str, str]
    """Figure that is ``None`` in the rows -> why, and what to give."""
    forecast: Forecast
    """The curve of L1, for the picture."""
    notes: tuple[str, ...]


def l0_tokens_of(model: ModelKv, gpu_free_gb: float) -> int:
    """Return the tokens that the engine's own cache holds in this much memory of each GPU (GB of 2**30 bytes).

    Layers with a sliding window count like the others: a prefix that is to be found again needs their blocks at its end.
    """
    return int(gpu_free_gb * 2**30 / model.bytes_per_rank) // BLOCK * BLOCK


def size_for(
    log: AccessLog,
    model: ModelKv,
    *,
    gpu_free_gb: float | None = None,
    terms: Terms | None = None,
    l1_sizes_mb: Sequence[float] | None = None,
    l1_for_l2_mb: float | None = None,
) -> Sizing:
    """Return what sizes of L0, L1 and L2 would give on a log if this model served it, with one engine in front.

    Args:
        log: The requests. If they name several models, all are taken to go to this one.
        model: The KV of the model.
        gpu_free_gb: Memory that each GPU has for KV, GB (vLLM's log: "Available KV cache memory"). ``None``: the engine's own
            cache counts as empty.
        terms: Speeds and prices.
        l1_sizes_mb: Sizes of L1; by default a grid from the log.
        l1_for_l2_mb: L1 in front of the L2; by default the smallest one shown that drops hardly any stores.

    Raises:
        WorkloadError: The log is empty, or the GPU has no room for a block.
    """
    terms = terms or Terms()
    notes, log = list(_differs(log, model)), _of_model(log, model)
    if len(np.unique(log.models)) > 1:
        notes.append("the log names several models: all requests are taken to go to this one, and share no prefix across models")
    l0_tokens = None if gpu_free_gb is None else l0_tokens_of(model, gpu_free_gb)
    if l0_tokens == 0:
        raise WorkloadError(f"{gpu_free_gb:g} GB hold no block of {BLOCK} tokens of this model: give the memory left for KV")
    capacities = chunks_of(l1_sizes_mb, log) if l1_sizes_mb else None
    seen = forecast(log, capacities_chunks=capacities, shared=True, engine_cache_tokens=[l0_tokens] if l0_tokens else [])
    log = isolated(log)
    sizes = [] if l0_tokens is None else [max(round(part * l0_tokens), BLOCK) for part in L0_FACTORS]
    own = dict(zip(sizes, engine_caches(log, sizes), strict=True))
    l0 = own.get(l0_tokens) if l0_tokens else None
    pricing = Pricing(terms, _seen(log), model.bytes_per_token)
    at_l0 = [pricing.row("L0", cache, (0.0, 0.0), Served()) for cache in own.values()]
    at_l1 = [
        pricing.row("L1", l0, (row.size_mb or 0.0, 0.0), Served(row.server, row.saved[0] if row.saved else row.server))
        for row in seen.rows
    ]
    l1_knee = knee(at_l1)
    l1_mb = l1_for_l2_mb or _smallest(seen)
    at_l2, alone = _behind(log, l1_mb, l0, seen, pricing) if l1_mb else ([], 0.0)
    return Sizing(
        model=plain(model.name),
        bytes_per_token=model.bytes_per_token,
        formula=model.formula,
        l0_tokens=l0_tokens,
        rows=(*at_l0, *at_l1, *at_l2),
        l1_knee=l1_knee,
        l2_knee=knee(at_l2, alone),
        knee_rule=_rule(at_l1),
        unknown=pricing.unknown(),
        forecast=seen,
        notes=(*model.assumed, *notes, *_notes(model, l0, terms, at_l1, at_l2), *seen.notes),
    )


def knee(rows: Sequence[SizeRow], without: float = 0.0) -> SizeRow | None:
    """Return the row of most net benefit; without prices, the row that is farthest above the line from nothing to the last row.

    The latter is the knee of Satopää et al. 2011 ("Kneedle") on linear axes. ``None`` if no size saves anything worth it.

    Args:
        rows: The sizes of one tier, smallest first.
        without: Share that is saved without the tier.
    """
    if not rows or max(row.saved for row in rows) - without < LEAST:
        return None
    if all(row.net_month is not None for row in rows):
        best = max(rows, key=lambda row: row.net_month or 0.0)
        return best if best.net_month is not None and best.net_month > 0 else None
    size, gain = max(row.size_mb for row in rows), max(row.saved for row in rows) - without
    return max(rows, key=lambda row: (row.saved - without) / gain - row.size_mb / size)


def _rule(rows: Sequence[SizeRow]) -> str:
    if rows and all(row.net_month is not None for row in rows):
        return "most net benefit a month"
    return "farthest above the straight line from no cache to the largest size (Kneedle); prices would settle it"


def _of_model(log: AccessLog, model: ModelKv) -> AccessLog:
    """Return the log with the bytes of the model's chunks, as L1 allocates them: one object for each rank."""
    one = -(-model.bytes_per_rank * log.chunk_size // ALIGNMENT) * ALIGNMENT
    return replace(log, layouts=(), chunk_bytes=one * model.copies)


def _differs(log: AccessLog, model: ModelKv) -> Sequence[str]:
    stated = {layout.bytes for layout in log.layouts if layout is not None and layout.world_size is None}
    wanted = model.bytes_per_rank * log.chunk_size
    if not stated or wanted in stated:
        return ()
    said = ", ".join(f"{size / log.chunk_size:,.0f}" for size in sorted(stated))
    return (
        f"the log states {said} KV bytes a token of one rank, this model has {model.bytes_per_rank:,}: the log is of another"
        " model, data type or number of ranks",
    )


def _seen(log: AccessLog) -> Seen:
    rate = (len(log) - 1) / log.duration if log.duration > 0 else None
    return Seen(int(log.tokens.sum()), int(log.chunks_per_request.sum()) * log.chunk_size, len(log), rate)


def _smallest(seen: Forecast) -> float:
    """Return the smallest L1 shown, MB, that drops less than a hundredth of the chunks asked for; 0 if there is none."""
    return next((row.size_mb or 0.0 for row in seen.rows if row.failed_chunks < LEAST * seen.chunks), 0.0)


def _behind(
    log: AccessLog, l1_mb: float, l0: EngineCache | None, seen: Forecast, pricing: Pricing
) -> tuple[list[SizeRow], float]:
    """Return the rows of an L2 behind an L1 of this size, and what L1 alone saves.

    There are no rows if L1 is within a point of all hits.
    """
    (l1,) = chunks_of([l1_mb], log)
    alone = predict_settings(log, [ServerSetting(l1)])[0]
    if seen.ceiling - alone.hit_rate < LEAST:
        return [], 0.0
    chunk_mb = (log.chunk_bytes or MB) / MB
    most = max(seen.footprint_chunks / 0.8 + 1, 2 * l1)
    sizes_mb = sorted({float(f"{size * chunk_mb:.2g}") for size in np.geomspace(min(2 * l1, most / 2), most, L2_SIZES)})
    setting = ServerSetting(l1, l2_prefetch_policy="retain")
    runs = predict_settings(log, [replace(setting, l2_capacity_chunks=size / chunk_mb) for size in sizes_mb])
    rows = [pricing.row("L2", l0, (l1_mb, size), _served(run, l0)) for size, run in zip(sizes_mb, runs, strict=True)]
    return rows, _served(alone, l0).saved


def _served(prediction: ServerPrediction, l0: EngineCache | None) -> Served:
    own = 0 if l0 is None else l0.hits
    asked = max(int(prediction.runs[0].asked_chunks.sum()), 1)
    saved = np.mean([np.maximum(run.hit_chunks - own, 0).sum() for run in prediction.runs]) / asked
    first = np.mean([np.maximum(run.l1_hit_chunks - own, 0).sum() for run in prediction.runs]) / asked
    return Served(prediction.hit_rate, float(saved), float(saved - first))


def _notes(model: ModelKv, l0: EngineCache | None, terms: Terms, at_l1: Sequence[SizeRow], at_l2: Sequence[SizeRow]) -> list[str]:
    notes = []
    if l0 is None:
        notes.append(
            "the GPU's memory is not given (--gpu-free-gb), so the engine's own cache counts as empty: saved is an upper bound"
        )
    else:
        notes.append("one engine serves all requests; the room that running requests and answers take in L0 is not modelled")
    if model.replicated > 1:
        notes.append(
            f"{model.replicated} ranks hold the same KV"
            + ("; LMCache's server stores it once" if model.copies == 1 else f", and LMCache stores it {model.replicated} times")
        )
    if model.windowed_layers:
        notes.append(
            f"{model.windowed_layers} of {model.layers} layers have a window of {model.window_tokens:,} tokens: LMCache stores"
            " their KV of every token all the same, so they count in full"
        )
    if terms.prefill_tokens_per_second is not None and terms.l1_load_gb_per_second is None:
        notes.append("loading takes no time, because no bandwidth is given (--l1-load-gb-per-second): ttft_ms is a lower bound")
    for tier, rows in (("L1", at_l1), ("L2", at_l2)):
        if rows and all(row.net_month is not None and row.net_month <= 0 for row in rows):
            notes.append(f"at these prices no size of {tier} that is shown pays for itself")
    if at_l1 and not at_l2:
        notes.append(
            "no L2 is shown: the smallest L1 that drops hardly any stores is within a point of all hits, or there is none"
        )
    if at_l2:
        notes.append(
            f"L2 stands behind an L1 of {at_l2[0].l1_mb:,.0f} MB (--l1-mb), with prefetch policy retain and eviction 0.8 / 0.2"
        )
    return notes
