"""The exact hit-rate curve: the hits that every L1 size would have given, from one pass over an access log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

from .chunk_steps import chunk_steps, footprint
from .isolation import isolated
from .prefix_reuse import Int32, PrefixReuse, prefix_reuse

TouchOrder = Literal["tail_first", "head_first"]
"""Which chunk of a request stays longest: the first (LMCache's server) or the last (LMCache's cache simulator)."""

Denominator = Literal["chunk_aligned", "whole_prompts"]
"""The tokens that a hit rate is a share of. ``chunk_aligned``: whole chunks only, like LMCache's live metric
``lmcache_mp_lookup_hit_tokens_total / lmcache_mp_lookup_requested_tokens_total``. ``whole_prompts``: prompts with their tails,
which are never cached, like LMCache's cache simulator."""

ROUNDING = 1e-6
"""Steps and chunks by which a capacity may be off: quotients of sizes are rounded."""


@dataclass(frozen=True, eq=False)
class HitRateCurve:
    """The prefix hits of an always-full LRU cache at every capacity.

    If chunks differ in size (several models), capacities are in chunks of the log's average size, so that they are bytes in the
    end.

    A server that evicts early gets fewer hits. A server that drops stores can get more, because a dropped store displaces
    nothing.
    """

    chunk_size: int
    """Tokens per chunk."""
    hit_chunks: npt.NDArray[np.int64]
    """(n,) prefix hits, in chunks, at a capacity of 0, 1, ... n - 1 steps. More capacity gives as many hits as the last."""
    requests: int
    """Number of requests counted."""
    chunks: int
    """Whole chunks that the counted requests asked for."""
    tokens: int
    """Prompt tokens of the counted requests, tails included."""
    footprint: int
    """Distinct chunks in the whole log. A cache of this many chunks never evicts."""
    steps_per_chunk: float = 1.0
    """Steps of capacity in one chunk; above 1 if chunks differ in size."""

    def hits(self, capacity_chunks: float) -> int:
        """Return the prefix hits at a capacity, in chunks. Fractions of a chunk do not count as capacity."""
        steps = int(max(capacity_chunks, 0) * self.steps_per_chunk + ROUNDING)
        return int(self.hit_chunks[min(steps, len(self.hit_chunks) - 1)])

    def by_chunk(self) -> npt.NDArray[np.int64]:
        """Return (n,) prefix hits, in chunks, at a capacity of 0, 1, ... n - 1 chunks, up to all hits."""
        if self.steps_per_chunk == 1:
            return self.hit_chunks
        last = int(np.ceil((len(self.hit_chunks) - 1) / self.steps_per_chunk))
        steps = (np.arange(last + 1) * self.steps_per_chunk + ROUNDING).astype(np.int64)
        hits: npt.NDArray[np.int64] = self.hit_chunks[np.minimum(steps, len(self.hit_chunks) - 1)]
        return hits

    def hit_tokens(self, capacity_chunks: float) -> int:
        """Return the prefix hits at a capacity, in tokens."""
        return self.hits(capacity_chunks) * self.chunk_size

    def hit_rate(self, capacity_chunks: float, of: Denominator = "chunk_aligned") -> float:
        """Return the token hit rate at a capacity, 0 to 1; 0 if nothing was requested."""
        asked = self.chunks * self.chunk_size if of == "chunk_aligned" else self.tokens
        return self.hit_tokens(capacity_chunks) / asked if asked else 0.0

    def ceiling(self, of: Denominator = "chunk_aligned") -> float:
        """Return the token hit rate of an unbounded cache, 0 to 1."""
        return self.hit_rate(self.footprint, of)

    @property
    def useful_capacity(self) -> int:
        """Return the smallest capacity, in chunks, that reaches the ceiling."""
        return self.capacity_for(1.0)

    def capacity_for(self, share_of_ceiling: float) -> int:
        """Return the smallest capacity, in chunks, that gives at least this share of the unbounded cache's hits; 0 without hits.

        Raises:
            ValueError: The share is not between 0 and 1.
        """
        if not 0 <= share_of_ceiling <= 1:
            raise ValueError(f"share_of_ceiling must be between 0 and 1, got {share_of_ceiling}")
        wanted = np.ceil(share_of_ceiling * int(self.hit_chunks[-1]) - 1e-9)
        return int(np.ceil(np.searchsorted(self.hit_chunks, wanted) / self.steps_per_chunk - ROUNDING))

    def table(self, capacities_chunks: Sequence[float]) -> list[dict[str, float]]:
        """Return one row for each capacity: capacity_chunks, share_of_footprint, hit_chunks, and both token hit rates."""
        return [
            {
                "capacity_chunks": capacity,
                "share_of_footprint": capacity / self.footprint if self.footprint else 0.0,
                "hit_chunks": self.hits(capacity),
                "hit_rate": self.hit_rate(capacity),
                "hit_rate_whole_prompts": self.hit_rate(capacity, "whole_prompts"),
            }
            for capacity in capacities_chunks
        ]


def hit_rate_curve(
    log: AccessLog, *, touch_order: TouchOrder = "tail_first", counted: npt.NDArray[np.bool_] | None = None
) -> HitRateCurve:
    """Return the exact curve of ``log``, from an empty cache.

    Chunk i of a request is a hit at capacity C exactly if ``max(D_1..D_i) < C``. D is the number of distinct chunks touched since
    the chunk's last touch, at the start of the request (Mattson et al. 1970, with LMCache's prefix rule; LMCache looks up first
    and stores afterwards).

    Args:
        log: The recorded lookups.
        touch_order: See `TouchOrder`.
        counted: (requests,) the requests whose hits are counted; the others only warm the cache. Default: all requests.

    Raises:
        ValueError: The log breaks the contract of `AccessLog`.
    """
    log = isolated(log)
    return _curve(log, sized_reuse(log), touch_order, counted)


def hits_per_request(log: AccessLog, capacity_chunks: float) -> npt.NDArray[np.int64]:
    """Return (requests,) prefix hits of each request, in chunks, at one capacity; for comparing two capacities.

    All chunks count as equally large, also if the log knows their bytes: an engine's own cache is counted in tokens. See
    `sized_hits_per_request`.
    """
    return hits_at(prefix_reuse(isolated(log)), len(log), capacity_chunks)


def sized_hits_per_request(log: AccessLog, capacity_chunks: float) -> npt.NDArray[np.int64]:
    """Return `hits_per_request` at a capacity in bytes: in chunks of the log's average size."""
    log = isolated(log)
    steps, per_chunk = chunk_steps(log)
    return hits_at(prefix_reuse(log, steps), len(log), capacity_chunks * per_chunk + ROUNDING)


def sized_reuse(log: AccessLog) -> PrefixReuse:
    """Return the prefix reuse of an isolated log with distances in steps, where its chunks differ in size."""
    return prefix_reuse(log, chunk_steps(log)[0])


def hits_at(reuse: PrefixReuse, requests: int, capacity_chunks: float) -> npt.NDArray[np.int64]:
    """Return `hits_per_request` from the prefix reuse of a log with this number of requests.

    The capacity is in steps of the reuse, which are chunks unless their sizes were given.
    """
    per_run = np.clip((int(max(capacity_chunks, 0)) - reuse.newer) // reuse.step, 0, reuse.length)
    hits = np.zeros(requests, np.int64)
    np.add.at(hits, reuse.request, per_run)
    return hits


def curves_by_tenant(log: AccessLog, *, touch_order: TouchOrder = "tail_first") -> dict[str, HitRateCurve]:
    """Return each tenant's curve inside the cache that all tenants share. Their hits add up to the whole curve."""
    return _curves_by(log, log.tenants, log.tenant_names, touch_order)


def curves_by_model(log: AccessLog, *, touch_order: TouchOrder = "tail_first") -> dict[str, HitRateCurve]:
    """Return each model's curve inside the cache that all models share. Their hits add up to the whole curve."""
    return _curves_by(log, log.models, log.model_names, touch_order)


def _curves_by(
    log: AccessLog, labels: npt.NDArray[np.int16], names: tuple[str, ...], touch_order: TouchOrder
) -> dict[str, HitRateCurve]:
    log = isolated(log)
    reuse = sized_reuse(log)
    return {name: _curve(log, reuse, touch_order, labels == label) for label, name in enumerate(names)}


def _curve(log: AccessLog, reuse: PrefixReuse, touch_order: TouchOrder, counted: npt.NDArray[np.bool_] | None) -> HitRateCurve:
    if counted is not None:
        reuse = reuse.of_requests(counted)
    tail_first = touch_order == "tail_first"
    reach = reuse.newer + (reuse.length * reuse.step if tail_first else reuse.group)
    hit_chunks = np.zeros(int(reach.max(initial=0)) + 1, np.int64)
    steps, per_chunk = chunk_steps(log)
    if tail_first and steps is not None:
        _add_sized_hits(hit_chunks, reuse.newer, reuse.length, reuse.step)
    else:
        _add_hits(hit_chunks, reuse.newer, reach, reuse.length, tail_first)
    chosen = slice(None) if counted is None else counted
    return HitRateCurve(
        chunk_size=log.chunk_size,
        hit_chunks=hit_chunks,
        requests=len(log.tokens[chosen]),
        chunks=int(log.chunks_per_request[chosen].sum()),
        tokens=int(log.tokens[chosen].sum()),
        footprint=footprint(log),
        steps_per_chunk=per_chunk,
    )


@compiled
def _add_hits(
    hit_chunks: npt.NDArray[np.int64],
    newer: npt.NDArray[np.int32],
    reach: npt.NDArray[np.int32],
    length: npt.NDArray[np.int32],
    tail_first: bool,
) -> None:
    """Convert runs into hits by capacity, in place. A run fills chunk by chunk (tail first) or all at once (head first)."""
    slope = 0
    if tail_first:
        for i in range(len(newer)):  # the second difference: hits grow by one per chunk from `newer` to `reach`
            hit_chunks[newer[i]] += 1
            hit_chunks[reach[i]] -= 1
        for c in range(len(hit_chunks)):
            step = hit_chunks[c]
            hit_chunks[c] = slope if c == 0 else hit_chunks[c - 1] + slope
            slope += step
    else:
        for i in range(len(newer)):
            hit_chunks[reach[i]] += length[i]
        for c in range(1, len(hit_chunks)):
            hit_chunks[c] += hit_chunks[c - 1]


@compiled
def _add_sized_hits(hit_chunks: npt.NDArray[np.int64], newer: npt.NDArray[np.int32], length: Int32, step: Int32) -> None:
    """Convert runs of chunks of any size into hits by capacity, in place. A run fills chunk by chunk."""
    for i in range(len(newer)):
        for k in range(1, length[i] + 1):
            hit_chunks[newer[i] + k * step[i]] += 1
    for c in range(1, len(hit_chunks)):
        hit_chunks[c] += hit_chunks[c - 1]
