"""Memory across caches of one machine: where a megabyte earns most, within the bounds of each cache.

The division is the one for tenants' quotas: straight pieces of each curve's upper hull, the most hit tokens per megabyte first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from agent_tools.errors import OutOfBoundsError, UnsupportedError, WorkloadError
from agent_tools.models import MB, Gain, SupportLevel, Verdict, Window
from agent_tools.models.config import Frozen
from agent_tools.plain import plain, points
from agent_tools.prediction.divided_capacity import divide
from agent_tools.prediction.tenant_curves import QuotaEviction

from .modelled import predicted_gain, server_setting
from .observation import Ints, Observation
from .recommend import WORTH_ACTING

FLOOR_OF_EQUAL_SHARE = 0.25
"""Share of an equal division that a cache keeps, whatever its curve says, since traffic changes. It depends on the budget and not
on the present sizes, so that following the advice again and again does not shrink a cache to nothing."""
UNITS = 4000
"""Largest number of steps in which the memory is divided."""
PER_HOUR = 3600.0

Size = Annotated[float, Field(ge=0)]


class CacheShare(Frozen):
    """One cache's part of the memory, and what it earns."""

    cache: str
    """Name of the cache."""
    window: Window
    """The window whose requests were counted."""
    size_mb: Size
    """L1 in force."""
    proposed_mb: Size
    """L1 that the division gives it."""
    least_mb: Size
    """Smallest size that the division may give: the bound, or a quarter of an equal division; the present size if a smaller
    one takes a restart that the bounds do not allow."""
    most_mb: Size
    """Largest size that the division may give: the bound, or the present size where the bounds name none."""
    requested_tokens_per_hour: Size
    """Tokens of whole chunks asked for."""
    tokens_per_hour_per_mb: Size
    """Hit tokens per hour that its next megabytes would earn (the next straight piece of its hull); 0 if none would."""
    gain: Gain | None
    """Gain of the proposed size in token hit rate, by the server model; ``None`` if the size stays."""
    how: SupportLevel
    """How its size can be changed."""


class CacheComparison(Frozen):
    """A division of memory among caches, with what it gains."""

    budget_mb: Size
    """Memory that was divided: by default what the compared caches have."""
    caches: tuple[CacheShare, ...]
    """The cache whose next megabyte earns most comes first."""
    unknown: Mapping[str, str] = {}
    """Caches that keep what they have, and why nothing can be said of them."""
    tokens_per_hour: float
    """Hit tokens per hour that the proposed sizes gain together, by the server model; caches that lose count too."""
    verdict: Verdict
    """``act`` only if the lower ends of the gains together are worth a change."""
    why: str
    """The reason, in one or two sentences."""


@dataclass(frozen=True, eq=False)
class _Part:
    """One cache, with its curve in steps of `unit` MB."""

    seen: Observation
    hits: Ints
    """(n,) hit tokens per hour with 0, 1 ... n - 1 units, up to the largest size allowed."""
    size: float
    least: float
    most: float
    """Sizes in MB."""
    hours: float


def why_unknown(seen: Observation) -> str | None:
    """Return why a cache cannot be compared, or ``None``."""
    if seen.no_log is not None:
        return seen.no_log
    if seen.log is None or not seen.in_window.any():
        return "no access log with a request in the window; start the server with --server-module agent_tools.server_module"
    if seen.chunk_bytes is None or seen.config.max_size_mb is None:
        return "the size of L1 or of a chunk is unknown; wait for traffic"
    if seen.curve is None or server_setting(seen) is None:
        return "the model does not cover its settings"
    if seen.workers > 1:
        return f"its size is that of each of {seen.workers} workers of an engine"
    return None


def compare_caches(
    observed: Sequence[Observation],
    unknown: Mapping[str, str],
    reach: Mapping[str, tuple[float, float]],
    *,
    budget_mb: float | None = None,
) -> CacheComparison:
    """Return the sizes of L1 that give the most hit tokens together, within the bounds of each cache.

    The caches must share one machine's memory: that is the caller's knowledge. A hit token counts alike in each cache.

    Args:
        observed: One observation for each cache.
        unknown: Caches that could not be observed, and why.
        reach: Cache -> the smallest and the largest size, MB, that it may be given; see `limits`.
        budget_mb: Memory to divide among the caches that can be compared. By default what they have now.

    Raises:
        UnsupportedError: Fewer than two caches can be compared.
        OutOfBoundsError: The budget does not cover the smallest sizes.
    """
    why = {seen.cache: why_unknown(seen) for seen in observed}
    unknown = {**unknown, **{cache: reason for cache, reason in why.items() if reason is not None}}
    known = [seen for seen in observed if why[seen.cache] is None]
    if len(known) < 2:
        said = "; ".join(f"{plain(cache)}: {reason}" for cache, reason in unknown.items())
        raise UnsupportedError(f"fewer than two caches can be compared ({said or 'name at least two'})")
    budget = budget_of(known) if budget_mb is None else budget_mb
    unit = max(budget, *(reach[seen.cache][1] for seen in known)) / UNITS
    parts = [_part(seen, unit, *reach[seen.cache]) for seen in known]
    least = sum(part.least for part in parts)
    if budget < least * (1 - 1e-9):
        raise OutOfBoundsError(
            f"{budget:g} MB do not cover the smallest sizes of these caches, {least:g} MB together: give a larger budget_mb, or"
            " lower their min_size_mb. Nothing was changed"
        )
    divided = divide([part.hits for part in parts], [part.least / unit for part in parts], budget / unit)
    proposed = [min(max(share * unit, part.least), part.most) for share, part in zip(divided, parts, strict=True)]
    shares = [_share(part, size, unit) for part, size in zip(parts, proposed, strict=True)]
    return _verdict(budget, sorted(shares, key=lambda one: -one.tokens_per_hour_per_mb), unknown)


def budget_of(observed: Sequence[Observation]) -> float:
    """Return the memory, MB, that the caches which can be compared have now."""
    return sum(seen.config.max_size_mb or 0.0 for seen in observed if why_unknown(seen) is None)


def limits(seen: Observation, equal_mb: float) -> tuple[float, float]:
    """Return the smallest and the largest size in MB that the bounds let the division give a cache.

    `equal_mb` is what each cache would get in an equal division.
    """
    size, bounds = seen.config.max_size_mb or 0.0, seen.bounds
    least = bounds.min_size_mb if bounds.min_size_mb is not None else FLOOR_OF_EQUAL_SHARE * equal_mb
    most = bounds.max_size_mb if bounds.max_size_mb is not None else size
    return min(least, size), max(most, min(least, size))


def _part(seen: Observation, unit: float, least: float, most: float) -> _Part:
    size = seen.config.max_size_mb or 0.0
    here = server_setting(seen)
    if here is None or seen.curve is None or seen.chunk_bytes is None or seen.log is None:
        raise WorkloadError(f"{seen.cache} cannot be compared")  # `why_unknown` was asked before
    hours = max(seen.metrics.window.seconds, 1.0) / PER_HOUR
    eviction = QuotaEviction(here.watermark, here.ratio)
    steps = np.arange(int(most / unit + 1e-6) + 1) * unit * MB / seen.chunk_bytes
    known, footprint = seen.curve.by_chunk(), seen.curve.footprint
    chunks = np.array([eviction.lru_chunks(float(step), footprint) for step in steps])
    hits = known[np.minimum(chunks.astype(np.int64), len(known) - 1)]
    per_hour = hits * (seen.log.chunk_size / seen.log.sampling_rate / hours)
    return _Part(seen, np.maximum.accumulate(per_hour.astype(np.int64)), size, least, most, hours)


def _share(part: _Part, proposed: float, unit: float) -> CacheShare:
    seen = part.seen
    assert seen.log is not None  # noqa: S101  `why_unknown` was asked before
    old, new = server_setting(seen), server_setting(seen, {"max_size_mb": proposed})
    moved = abs(proposed - part.size) > unit
    asked = int(seen.log.chunks_per_request[seen.in_window].sum()) * seen.log.chunk_size / seen.log.sampling_rate / part.hours
    return CacheShare(
        cache=seen.cache,
        window=seen.metrics.window,
        size_mb=part.size,
        proposed_mb=round(proposed, 1) if moved else part.size,
        least_mb=part.least,
        most_mb=part.most,
        requested_tokens_per_hour=asked,
        tokens_per_hour_per_mb=_next_piece(part.hits, int(part.size / unit)) / unit,
        gain=predicted_gain(seen, old, new) if moved and old is not None and new is not None else None,
        how=seen.support["max_size_mb"].level,
    )


def _next_piece(hits: Ints, at: int) -> float:
    """Return the most hits per unit that any number of further units brings."""
    more = hits[at + 1 :] - hits[min(at, len(hits) - 1)]
    return float((more / np.arange(1, len(more) + 1)).max(initial=0.0))


def _verdict(budget: float, shares: Sequence[CacheShare], unknown: Mapping[str, str]) -> CacheComparison:
    asked = sum(one.requested_tokens_per_hour for one in shares) or 1.0
    gains = [(one.gain, one.requested_tokens_per_hour) for one in shares if one.gain is not None]
    estimate, lower = (sum(getattr(gain, end) * tokens for gain, tokens in gains) for end in ("estimate", "lower"))
    moved = "; ".join(f"{one.cache} {one.size_mb:g} -> {one.proposed_mb:g} MB" for one in shares if one.gain is not None)
    act = lower / asked >= WORTH_ACTING
    figures = f"together the token hit rate changes by {points(estimate / asked)} (at least {points(lower / asked)})"
    if not moved:
        why = "every cache has the size that the division gives it"
    else:
        why = f"{moved}: {figures}" if act else f"{moved} would be the best division, but {figures}: too little for a change"
    return CacheComparison(
        budget_mb=budget,
        caches=tuple(shares),
        unknown=unknown,
        tokens_per_hour=estimate,
        verdict=Verdict.ACT if act else Verdict.DO_NOTHING,
        why=why,
    )
