"""`lmcache server` with L1 only, at a cost per hit: the eviction order is kept between requests, not between chunks.

The server touches a request's chunks as a block, tail first. So the LRU order of the chunks is the order of the requests that
touched them last, and within a request deeper chunks come before shallower ones. What remains of request q in the cache is one
run of depths ``first[q]..end[q]``, evicted from its deep end. Eviction never makes holes: if a chunk is resident, so is its whole
prefix. (`two_tiers` does the same chunk by chunk, for cases where this does not hold; tests compare the two.)
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

from .eviction_clock import EVERY_REQUEST, StoreDelay, is_full, store_time, ticks_due
from .eviction_order import batch_size

Int32 = npt.NDArray[np.int32]


class OneTier(NamedTuple):
    """L1 in the form that the kernel takes."""

    capacity: float
    watermark: float
    ratio: float
    evicts: bool


@compiled
def run_one_tier(  # noqa: PLR0913, PLR0917 - one kernel: its input, its clock, its two output columns
    chunk_ids: Int32,
    offsets: npt.NDArray[np.int64],
    times: npt.NDArray[np.float64],
    unique: int,
    tier: OneTier,
    period: float,
    first_tick: float,
    delay: StoreDelay,
    hits: Int32,
    dropped: Int32,
) -> tuple[int, int]:
    """Fill ``hits`` and ``dropped`` (chunks, per request); return ``(evicted chunks, peak resident chunks)``."""
    requests = len(offsets) - 1
    toucher = np.full(unique, -1, np.int32)  # the request whose run holds the chunk, or held it when it was evicted
    first = np.zeros(requests, np.int32)
    end = np.zeros(requests, np.int32)
    used, peak, evicted, oldest = 0, 0, 0, 0
    next_tick = first_tick
    for r in range(requests):
        if period != EVERY_REQUEST:
            due = ticks_due(next_tick, times[r], period)
            next_tick += due * period
            gone, oldest = _run_ticks(first, end, oldest, used, tier, due)
            used -= gone
            evicted += gone
        start, size = offsets[r], offsets[r + 1] - offsets[r]
        depth = 0
        while depth < size:
            c = chunk_ids[start + depth]
            q = toucher[c]
            if q < 0 or depth >= end[q]:
                break
            toucher[c] = r
            depth += 1
            first[q] = depth
        hits[r] = end[r] = depth
        if period != EVERY_REQUEST:
            due = ticks_due(next_tick, store_time(times, r, delay, size - depth), period)
            next_tick += due * period
            gone, oldest = _run_ticks(first, end, oldest, used, tier, due)
            used -= gone
            evicted += gone
        if used + size - depth > tier.capacity:
            dropped[r] = size - depth
        elif end[r] == depth:  # otherwise its own prefix was evicted meanwhile, and nobody finds what it stores behind that
            for i in range(start + depth, start + size):
                toucher[chunk_ids[i]] = r
            used += size - depth
            end[r] = size
        peak = max(peak, used)
        if period == EVERY_REQUEST and tier.evicts and is_full(used, tier.capacity, tier.watermark):
            gone, oldest = _evict(first, end, oldest, batch_size(used, tier.ratio))
            used -= gone
            evicted += gone
    return evicted, peak


@compiled
def _run_ticks(first: Int32, end: Int32, oldest: int, used: int, tier: OneTier, due: int) -> tuple[int, int]:
    """Run the due ticks. Return the number of evicted chunks and the oldest run that is left."""
    gone = 0
    while due > 0 and tier.evicts and is_full(used - gone, tier.capacity, tier.watermark):
        batch, oldest = _evict(first, end, oldest, batch_size(used - gone, tier.ratio))
        if batch == 0:
            break
        gone += batch
        due -= 1
    return gone, oldest


@compiled
def _evict(first: Int32, end: Int32, oldest: int, count: int) -> tuple[int, int]:
    """Drop ``count`` chunks from the oldest runs, deepest first. Return the number dropped and the oldest run that is left."""
    gone = 0
    while gone < count:
        size = end[oldest] - first[oldest]
        if size <= 0:
            oldest += 1
            continue
        part = min(size, count - gone)
        end[oldest] -= part
        gone += part
    return gone, oldest
