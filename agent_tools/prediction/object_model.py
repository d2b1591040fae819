"""`lmcache server` with an L1 and an L2, object by object: for chunks of several objects, or of unequal bytes.

`two_tiers` and `one_tier` do the same for chunks that are one object each and equally large. What differs, observed in LMCache
0.5.6:

* Capacity, watermark and free space are in bytes. The eviction ratio is a share of the objects.
* Each rank stores its objects of a request as a batch of its own, for each object group. A batch that does not fit is dropped,
  and the batches of other ranks that did fit stay: their chunks take room and cannot be hit.
* A hit needs every rank of a chunk in every object group; of a group with a sliding window only the last chunks of the prefix.
* END_SESSION touches group by group, within a group chunk by chunk, within a chunk rank by rank, and the last of them first. So
  eviction takes the last object group of an old request before it takes anything of the group before it.
"""

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

from .eviction_clock import EVERY_REQUEST, StoreDelay, is_full, store_time, ticks_due
from .eviction_order import ABSENT, batch_size, push_newest, touch_block
from .objects import Objects
from .one_tier import OneTier
from .two_tiers import EVICTED, L2_EVICTED, L2_PEAK, LOAD_FAILED, PEAK, Order, SecondTier

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@compiled
def run_objects(  # noqa: PLR0913, PLR0917 - one kernel: its input, its clock, its output columns
    chunk_ids: Int32,
    offsets: Int64,
    times: Float64,
    models: npt.NDArray[np.int16],
    owners: Int32,
    objects: Objects,
    tier: OneTier,
    second: SecondTier,
    l1: Order,
    l2: Order,
    period: float,
    first_tick: float,
    delay: StoreDelay,
    l1_hits: Int32,
    l2_hits: Int32,
    dropped: Float64,
    counts: Float64,
) -> tuple[float, float]:
    """Fill the per-request columns and add to ``counts``, as `run_two_tiers` does.

    ``dropped`` and ``counts`` are in chunks; an object counts as its part of its chunk. Return ``(next tick, chunks loaded from
    L2)``.
    """
    end = len(l1.newer) - 1
    unit = objects.chunk_bytes
    capacity, l2_capacity = tier.capacity * unit, second.capacity * unit
    held = np.zeros(2)  # bytes and objects in L1
    _weigh(l1, end, objects, held)
    lists = len(second.quotas)
    l2_held = np.zeros((lists, 2))
    for owner in range(lists):
        _weigh(l2, end + owner, objects, l2_held[owner])
    batch, whole = np.empty(objects.most, np.int32), np.empty(objects.most, np.int32)
    streaks = np.zeros(objects.windows.shape[1], np.int32)
    next_tick, loads = first_tick, 0.0
    for r in range(len(offsets) - 1):
        model, list_end = models[r], end + owners[r]
        if period != EVERY_REQUEST:
            due = ticks_due(next_tick, times[r], period)
            next_tick += due * period
            _tick_l1(l1, end, objects, tier, capacity, held, due, counts)
            _tick_l2(l2, end, objects, second, l2_held, due, counts)
        request = chunk_ids[offsets[r] : offsets[r + 1]]
        size = _list_objects(objects, model, request, whole)
        l1_prefix = _found(l1, l2, False, objects, model, request, streaks)
        found = _found(l1, l2, True, objects, model, request, streaks) if l2_capacity > 0 else l1_prefix
        absent = _absent_of_prefix(l1, objects, model, request, found, batch) if found > l1_prefix else 0
        if held[0] + objects.bytes[batch[:absent]].sum() > capacity:
            counts[LOAD_FAILED] += objects.share[batch[:absent]].sum()
            found, absent = l1_prefix, 0
        counts[PEAK] = max(counts[PEAK], (held[0] + objects.bytes[batch[:absent]].sum()) / unit)
        loads += objects.share[batch[:absent]].sum()
        touch_block(l2.newer, l2.older, list_end, batch[:absent], False)
        if second.retain:
            _add(l1, end, batch[:absent], objects, held)
        l1_hits[r], l2_hits[r] = min(l1_prefix, found), found - min(l1_prefix, found)
        if period != EVERY_REQUEST:
            due = ticks_due(next_tick, store_time(times, r, delay, len(request) - found), period)
            next_tick += due * period
            _tick_l1(l1, end, objects, tier, capacity, held, due, counts)
            _tick_l2(l2, end, objects, second, l2_held, due, counts)
        for part in range(objects.ranks[model] * objects.groups[model]):
            missing = _missing(l1, objects, model, request[found:], part, batch)
            if held[0] + objects.bytes[batch[:missing]].sum() > capacity:
                dropped[r] += objects.share[batch[:missing]].sum()
            else:
                _store_l2(l2, list_end, objects, second, l2_capacity, l2_held[owners[r]], l2_held[:, 0].sum(), batch[:missing])
                _add(l1, end, batch[:missing], objects, held)
        touch_block(l1.newer, l1.older, end, whole[:size], False)
        counts[PEAK] = max(counts[PEAK], held[0] / unit)
        counts[L2_PEAK] = max(counts[L2_PEAK], l2_held[:, 0].sum() / unit)
        if period == EVERY_REQUEST:
            _tick_l1(l1, end, objects, tier, capacity, held, 1, counts)
            _tick_l2(l2, end, objects, second, l2_held, 1, counts)
    return next_tick, loads


@compiled
def _weigh(order: Order, end: int, objects: Objects, held: Float64) -> None:
    """Add the bytes and the number of the objects in the list that ends at ``end``."""
    one = order.newer[end]
    while one != end:
        held[0] += objects.bytes[one]
        held[1] += 1
        one = order.newer[one]


@compiled
def _list_objects(objects: Objects, model: int, request: Int32, into: Int32) -> int:
    """Write all objects of a request in the order in which END_SESSION names them. Return their number."""
    ranks, size = objects.ranks[model], 0
    for group in range(objects.groups[model]):
        for c in request:
            begin = objects.first[c] + group * ranks
            for rank in range(ranks):
                into[size] = begin + rank
                size += 1
    return size


@compiled
def _found(l1: Order, l2: Order, both: bool, objects: Objects, model: int, request: Int32, streaks: Int32) -> int:
    """Return the leading chunks that a lookup finds: in L1, or in either tier."""
    ranks, groups = objects.ranks[model], objects.groups[model]
    streaks[:groups] = 0
    best = 0
    for depth in range(len(request)):
        servable = True
        for group in range(groups):
            begin = objects.first[request[depth]] + group * ranks
            here = True
            for one in range(begin, begin + ranks):
                if l1.newer[one] == ABSENT and not (both and l2.newer[one] != ABSENT):
                    here = False
                    break
            window = objects.windows[model, group]
            if not here and window < 0:
                return best
            streaks[group] = streaks[group] + 1 if here else 0
            servable &= window < 0 or streaks[group] >= min(window, depth + 1)
        if servable:
            best = depth + 1
    return best


@compiled
def _absent_of_prefix(l1: Order, objects: Objects, model: int, request: Int32, found: int, into: Int32) -> int:
    """Write the objects that a hit of ``found`` chunks needs and L1 lacks. Return their number."""
    ranks, size = objects.ranks[model], 0
    for group in range(objects.groups[model]):
        window = objects.windows[model, group]
        for depth in range(0 if window < 0 else max(found - window, 0), found):
            begin = objects.first[request[depth]] + group * ranks
            for one in range(begin, begin + ranks):
                if l1.newer[one] == ABSENT:
                    into[size] = one
                    size += 1
    return size


@compiled
def _missing(l1: Order, objects: Objects, model: int, chunks: Int32, part: int, into: Int32) -> int:
    """Write the objects of one part of the chunks that L1 lacks: of one group and rank. Return their number.

    Parts are counted rank by rank, since each rank stores for itself.
    """
    rank, group = divmod(part, objects.groups[model])
    size = 0
    for c in chunks:
        one = objects.first[c] + group * objects.ranks[model] + rank
        if l1.newer[one] == ABSENT:
            into[size] = one
            size += 1
    return size


@compiled
def _add(order: Order, end: int, some: Int32, objects: Objects, held: Float64) -> None:
    """Add objects that are not in the list as its newest, the last one first."""
    for i in range(len(some) - 1, -1, -1):
        push_newest(order.newer, order.older, end, some[i])
        held[0] += objects.bytes[some[i]]
    held[1] += len(some)


@compiled
def _store_l2(  # noqa: PLR0913, PLR0917  a part of the kernel
    l2: Order, end: int, objects: Objects, second: SecondTier, capacity: float, held: Float64, used: float, batch: Int32
) -> None:
    """Write a batch to L2. A full L2 with a hard limit takes what fits; others keep what they have and take the rest.

    ``held`` is what the request's own list holds, ``used`` the bytes of all lists.
    """
    if capacity <= 0:
        return
    upto = len(batch)
    if second.hard_limit:
        room = capacity - used
        for i in range(len(batch)):
            if l2.newer[batch[i]] == ABSENT:
                if room < objects.bytes[batch[i]]:
                    upto = i
                    break
                room -= objects.bytes[batch[i]]
    for i in range(upto - 1, -1, -1):
        if l2.newer[batch[i]] == ABSENT:
            _add(l2, end, batch[i : i + 1], objects, held)
        elif not second.hard_limit:
            touch_block(l2.newer, l2.older, end, batch[i : i + 1], False)


@compiled
def _drop_oldest(order: Order, end: int, count: int, objects: Objects, held: Float64) -> float:
    """Remove the ``count`` oldest objects. Return how many chunks they are."""
    gone = 0.0
    one = order.newer[end]
    for _ in range(count):
        after = order.newer[one]
        order.newer[one] = ABSENT
        held[0] -= objects.bytes[one]
        gone += objects.share[one]
        one = after
    held[1] -= count
    order.newer[end] = one
    order.older[one] = end
    return gone


@compiled
def _tick_l1(  # noqa: PLR0913, PLR0917  a part of the kernel
    l1: Order, end: int, objects: Objects, tier: OneTier, capacity: float, held: Float64, due: int, counts: Float64
) -> None:
    """Run the due ticks on L1."""
    while due > 0 and tier.evicts and held[1] > 0 and is_full(held[0], capacity, tier.watermark):
        batch = batch_size(int(held[1]), tier.ratio)
        if batch == 0:
            break
        counts[EVICTED] += _drop_oldest(l1, end, batch, objects, held)
        due -= 1


@compiled
def _tick_l2(l2: Order, end: int, objects: Objects, second: SecondTier, held: Float64, due: int, counts: Float64) -> None:
    """Run the due ticks on each list of L2."""
    if not second.evicts:
        return
    for owner in range(len(held)):
        quota, left = second.quotas[owner] * objects.chunk_bytes, due
        wipe = second.isolated and quota == 0
        while left > 0 and held[owner, 1] > 0 and (wipe or is_full(held[owner, 0], quota, second.watermark)):
            batch = batch_size(int(held[owner, 1]), 1.0 if wipe else second.ratio)
            if batch == 0:
                break
            counts[L2_EVICTED] += _drop_oldest(l2, end + owner, batch, objects, held[owner])
            left -= 1
