"""`lmcache server` with an L1 and an L2, chunk by chunk.

Observed in LMCache 0.5.6 (``prefetch_controller``, ``store_controller``, ``l2_adapters``):

* A lookup finds the leading chunks that are in either tier. The server loads the chunks that are only in L2 into L1 as one batch.
  If L1 has no room for the batch, the server loads none of it, and the hit ends where L1's own prefix ends.
* With prefetch policy ``default``, loaded chunks leave L1 when the request has read them; with ``retain`` they stay.
* A store writes its chunks to L1 and at once to L2. Loaded chunks are not written to L2.
* Only loads renew L2's order; hits in L1 do not reach it. L2's own thread evicts once a second, from the whole tier (LRU) or per
  tenant against a quota (IsolatedLRU; a tenant with quota 0 loses everything).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

from .eviction_clock import EVERY_REQUEST, StoreDelay, is_full, store_time, ticks_due
from .eviction_order import ABSENT, Links, batch_size, drop_oldest, touch_block
from .one_tier import OneTier

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

EVICTED, PEAK, L2_EVICTED, L2_PEAK, LOAD_FAILED = range(5)
"""Positions of the counts of `run_two_tiers`, in chunks."""


class SecondTier(NamedTuple):
    """L2 in the form that the kernel takes. ``quotas`` has one entry per list: a tenant's quota, or the whole capacity."""

    capacity: float
    watermark: float
    ratio: float
    evicts: bool
    hard_limit: bool
    retain: bool
    isolated: bool
    quotas: npt.NDArray[np.float64]


class Order(NamedTuple):
    """The eviction order of one tier; see `eviction_order`."""

    newer: Links
    older: Links


@compiled
def run_two_tiers(  # noqa: PLR0913, PLR0917 - one kernel: its input, its clock, its output columns
    chunk_ids: Int32,
    offsets: Int64,
    times: npt.NDArray[np.float64],
    owners: Int32,
    tier: OneTier,
    second: SecondTier,
    l1: Order,
    l2: Order,
    period: float,
    first_tick: float,
    delay: StoreDelay,
    l1_hits: Int32,
    l2_hits: Int32,
    dropped: Int32,
    counts: Int64,
) -> tuple[float, int]:
    """Fill the per-request columns and add to ``counts``. Return ``(next tick, chunks loaded from L2)``.

    ``owners`` (requests,) is each request's list in L2. Both tiers start with the contents of their orders: empty, or left by an
    earlier part of the same run.
    """
    unique = len(l1.newer) - 1
    l2_used = np.array([_length(l2, unique + owner) for owner in range(len(second.quotas))], np.int64)
    used, loads = _length(l1, unique), 0
    next_tick = first_tick
    for r in range(len(offsets) - 1):
        if period != EVERY_REQUEST:
            due = ticks_due(next_tick, times[r], period)
            next_tick += due * period
            used -= _tick_l1(l1, unique, tier, used, due, counts)
            _tick_l2(l2, unique, second, l2_used, due, counts)
        request = chunk_ids[offsets[r] : offsets[r + 1]]
        end = unique + owners[r]
        l1_prefix, found = _look_up(l1, l2, request)
        loaded = _count_absent(l1, request[:found])
        if used + loaded > tier.capacity:
            counts[LOAD_FAILED] += loaded
            found, loaded = l1_prefix, 0
        counts[PEAK] = max(counts[PEAK], used + loaded)
        loads += loaded
        if loaded:
            _renew(l2, end, l1, request[:found], False, True)
        l1_hits[r], l2_hits[r] = min(l1_prefix, found), found - min(l1_prefix, found)
        used += touch_block(l1.newer, l1.older, unique, request[:found], second.retain)
        if period != EVERY_REQUEST:
            due = ticks_due(next_tick, store_time(times, r, delay, len(request) - found), period)
            next_tick += due * period
            used -= _tick_l1(l1, unique, tier, used, due, counts)
            _tick_l2(l2, unique, second, l2_used, due, counts)
        missing = _count_absent(l1, request[found:])
        stored = used + missing <= tier.capacity
        if stored:
            upto = len(request)
            if second.hard_limit:
                upto = found + _fitting(l1, l2, request[found:], second.capacity - l2_used.sum())
            l2_used[owners[r]] += _renew(l2, end, l1, request[found:upto], True, not second.hard_limit)
        else:
            dropped[r] = missing
        used += touch_block(l1.newer, l1.older, unique, request[found:], stored)
        touch_block(l1.newer, l1.older, unique, request[:found], False)
        counts[PEAK] = max(counts[PEAK], used)
        counts[L2_PEAK] = max(counts[L2_PEAK], l2_used.sum())
        if period == EVERY_REQUEST:
            used -= _tick_l1(l1, unique, tier, used, 1, counts)
            _tick_l2(l2, unique, second, l2_used, 1, counts)
    return next_tick, loads


@compiled
def _length(order: Order, end: int) -> int:
    """Return the number of chunks in the list that ends at ``end``."""
    length, chunk = 0, order.newer[end]
    while chunk != end:
        length += 1
        chunk = order.newer[chunk]
    return length


@compiled
def _look_up(l1: Order, l2: Order, request: Int32) -> tuple[int, int]:
    """Return the number of leading chunks in L1, and in either tier."""
    l1_prefix, found = 0, 0
    for c in request:
        if l1.newer[c] == ABSENT:
            break
        l1_prefix += 1
    for c in request:
        if l1.newer[c] == ABSENT and l2.newer[c] == ABSENT:
            break
        found += 1
    return l1_prefix, found


@compiled
def _count_absent(l1: Order, chunks: Int32) -> int:
    absent = 0
    for c in chunks:
        absent += l1.newer[c] == ABSENT
    return absent


@compiled
def _fitting(l1: Order, l2: Order, chunks: Int32, room: float) -> int:
    """Return how many leading chunks a full L2 handles before its room is used up. It writes chunks that are in neither tier."""
    for i in range(len(chunks)):
        if l1.newer[chunks[i]] == ABSENT and l2.newer[chunks[i]] == ABSENT:
            if room < 1:
                return i
            room -= 1
    return len(chunks)


@compiled
def _renew(l2: Order, end: int, l1: Order, chunks: Int32, add: bool, touch: bool) -> int:
    """Touch in L2, or add to L2, the chunks that are not in L1. Return how many were added.

    Without ``touch``, chunks that are already in L2 keep their place: ``mock`` skips a key that it already has.
    """
    added = 0
    upto = len(chunks)
    while upto > 0:
        if l1.newer[chunks[upto - 1]] != ABSENT or (not touch and l2.newer[chunks[upto - 1]] != ABSENT):
            upto -= 1
            continue
        first = upto - 1
        while first > 0 and l1.newer[chunks[first - 1]] == ABSENT and (touch or l2.newer[chunks[first - 1]] == ABSENT):
            first -= 1
        added += touch_block(l2.newer, l2.older, end, chunks[first:upto], add)
        upto = first
    return added


@compiled
def _tick_l1(l1: Order, end: int, tier: OneTier, used: int, due: int, counts: Int64) -> int:
    """Run the due ticks. Return the number of chunks that left L1."""
    gone = 0
    while due > 0 and tier.evicts and is_full(used - gone, tier.capacity, tier.watermark):
        batch = batch_size(used - gone, tier.ratio)
        if batch == 0:
            break
        drop_oldest(l1.newer, l1.older, end, batch)
        gone += batch
        due -= 1
    counts[EVICTED] += gone
    return gone


@compiled
def _tick_l2(l2: Order, unique: int, second: SecondTier, used: Int64, due: int, counts: Int64) -> None:
    """Run the due ticks on each list of L2 and update ``used``."""
    if not second.evicts:
        return
    for owner in range(len(used)):
        quota = second.quotas[owner]
        left = due
        wipe = second.isolated and quota == 0
        while left > 0 and used[owner] > 0 and (wipe or is_full(used[owner], quota, second.watermark)):
            batch = batch_size(used[owner], 1.0 if wipe else second.ratio)
            if batch == 0:
                break
            drop_oldest(l2.newer, l2.older, unique + owner, batch)
            used[owner] -= batch
            counts[L2_EVICTED] += batch
            left -= 1
