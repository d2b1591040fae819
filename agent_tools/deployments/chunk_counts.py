"""LMCache's counts of objects as chunks, and bytes by model: a chunk is an object for each KV rank and object group."""

from collections.abc import Mapping
from dataclasses import replace

from agent_tools.models import MB, TokenCounts

from .counters import Counters, Labels

OF_OBJECTS = (
    "stored_chunks",
    "evictions",
    "failed_stores",
    "evicted_followed",
    "evicted_needed",
    "l2_loads_failed",
    "l2_loads_lost",
    "l2_evictions",
)
"""The counters of an `lmcache server` 0.5.6 whose unit is called chunks and that count objects."""


def in_chunks(counted: Counters, objects: Mapping[str, float], tokens: Mapping[Labels, TokenCounts]) -> Counters:
    """Return counters of a window in chunks.

    LMCache does not name the model of a stored or evicted object. Every missed chunk is stored, so what models with several
    world sizes store is mixed as what they missed.

    Args:
        counted: Counters in objects.
        objects: Objects of a chunk of each model; if empty, the counters already are in chunks.
        tokens: What was requested and found in the window.
    """
    per_chunk = _mean(objects, tokens)
    if per_chunk == 1:
        return counted
    return replace(counted, **{name: round(getattr(counted, name) / per_chunk) for name in OF_OBJECTS})


def _mean(objects: Mapping[str, float], tokens: Mapping[Labels, TokenCounts]) -> float:
    """Return the objects of a missed chunk, as the mean over the models."""
    if len(set(objects.values())) <= 1:
        return next(iter(objects.values()), 1.0)
    missed: dict[str, int] = {}
    for (model, _), counts in tokens.items():
        if model is not None and model in objects:
            missed[model] = missed.get(model, 0) + counts.requested - counts.hit
    total = sum(missed.values())
    if not total:
        return sum(objects.values()) / len(objects)
    return sum(objects[model] * count for model, count in missed.items()) / total


def saved_mb(
    sizes: Mapping[str, int], chunk_size: int, by_model: Mapping[str | None, TokenCounts], per_token: float | None
) -> float | None:
    """Return the MB of KV that requests took from the cache; ``None`` if the bytes of a model with hits are unknown.

    Args:
        sizes: Bytes of a chunk of each model, as far as they are known.
        chunk_size: Tokens per chunk.
        by_model: What was requested and found.
        per_token: Mean bytes of a token in L1, for models whose bytes are unknown.
    """
    total = 0.0
    for model, counts in by_model.items():
        size = sizes.get(model or "", None if per_token is None else per_token * chunk_size)
        if size is None and counts.hit:
            return None
        total += counts.hit / max(chunk_size, 1) * (size or 0.0)
    if not by_model and per_token is None:
        return None
    return total / MB
