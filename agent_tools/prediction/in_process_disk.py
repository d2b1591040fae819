"""Model of in-process LMCache with a local disk or a remote store behind its memory, for LRU and FIFO.

Observed in LMCache 0.5.6 (``storage_manager``, ``local_cpu_backend``, ``local_disk_backend``): a lookup takes L1's leading run,
and the disk's from there on. It touches the chunks tail first in each tier. The disk's chunks are then loaded: each gets memory,
for which L1 evicts what this request does not use, is touched on the disk head first, and stays in L1. A store goes to both.
The disk evicts one chunk for each that does not fit, and takes its new chunks after that. L1 works as in `in_process_model`.
A remote store (``remote_url``) is a disk that never fills.
"""

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

from .cache_run import CacheRun
from .eviction_order import ABSENT, Links, drop_oldest, empty_order, move_to_newest, push_newest, take_out
from .in_process_model import InProcessPolicy
from .isolation import isolated

Int32 = npt.NDArray[np.int32]

NOT_MODELLED: dict[InProcessPolicy, str] = {
    "LFU": "a disk behind in-process LMCache with LFU is not predicted: LMCache's own LFU can end in a KeyError with a disk",
    "MRU": "a disk behind in-process LMCache with MRU is not predicted: our model was 3 points off a real engine there",
}
"""Policies that the model does not cover with a disk, and why."""


def why_disk_not_modelled(policy: InProcessPolicy, *, local_cpu: bool = True, other: bool = False) -> str | None:
    """Return in one sentence why the tier behind in-process LMCache is not modelled; ``None`` if it is, as a local disk.

    Args:
        policy: ``cache_policy``.
        local_cpu: ``local_cpu``: whether L1 keeps chunks.
        other: Whether there is more than one tier, or one that is neither a local disk nor a remote store.
    """
    if other:
        return "behind in-process LMCache one local disk or one remote store is predicted, and not several tiers or others"
    if not local_cpu:
        return "a disk behind in-process LMCache with local_cpu false is not predicted: its memory then only passes chunks on"
    return NOT_MODELLED.get(policy)


def can_hang(longest_chunks: int, capacity_chunks: float) -> bool:
    """Return whether a hit behind L1 can need more memory than L1 has. LMCache 0.5.6 then tries to get it without end.

    Seen on real engines with a local disk and with a remote store.
    """
    return longest_chunks > int(capacity_chunks)


def simulate_with_disk(log: AccessLog, capacity_chunks: float, disk_chunks: float, policy: InProcessPolicy = "LRU") -> CacheRun:
    """Run the model once, from two empty tiers.

    Where a real engine would hang (`can_hang`), the model serves the hit and keeps in L1 what fits; `CacheRun.load_failed_chunks`
    counts the rest. Such a run says nothing about a real engine.

    Args:
        log: The recorded lookups.
        capacity_chunks: ``max_local_cpu_size``, in chunks.
        disk_chunks: ``max_local_disk_size``, in chunks; ``inf`` for a remote store that keeps everything.
        policy: ``cache_policy``, LRU or FIFO.

    Raises:
        ValueError: The model does not cover this policy.
    """
    if policy not in ("LRU", "FIFO"):
        raise ValueError(NOT_MODELLED.get(policy, f"unknown cache_policy {policy!r}"))
    log = isolated(log)
    hits, disk_hits, dropped = (np.zeros(len(log), np.int32) for _ in range(3))
    evicted, peak, disk_evicted, disk_peak, failed = run_engine_with_disk(
        log.chunk_ids,
        log.offsets,
        log.unique_chunks,
        int(max(capacity_chunks, 0)),
        int(min(max(disk_chunks, 0), log.unique_chunks)),  # a disk of every chunk never evicts
        policy == "LRU",
        *empty_order(log.unique_chunks),
        *empty_order(log.unique_chunks),
        np.full(log.unique_chunks, -1, np.int32),
        hits,
        disk_hits,
        dropped,
    )
    return CacheRun(
        chunk_size=log.chunk_size,
        asked_chunks=log.chunks_per_request.astype(np.int32),
        l1_hit_chunks=hits,
        l2_hit_chunks=disk_hits,
        dropped_chunks=dropped,
        evicted_chunks=evicted,
        peak_chunks=peak,
        l2_evicted_chunks=disk_evicted,
        l2_peak_chunks=disk_peak,
        load_failed_chunks=failed,
    )


@compiled
def run_engine_with_disk(  # noqa: PLR0913, PLR0917 - one kernel: its input, its two orders, its output columns
    chunk_ids: Int32,
    offsets: npt.NDArray[np.int64],
    end: int,
    capacity: int,
    disk_capacity: int,
    touches: bool,
    newer: Links,
    older: Links,
    disk_newer: Links,
    disk_older: Links,
    in_use: Int32,
    hits: Int32,
    disk_hits: Int32,
    dropped: Int32,
) -> tuple[int, int, int, int, int]:
    """Fill the columns (chunks, per request).

    Return the evicted and the most resident chunks of L1, the same of the disk, and the chunks found on the disk for which L1 had
    no room. ``touches`` is whether a use makes a chunk the newest; ``in_use[c]`` is the last request that held chunk c in L1.
    """
    used, peak, evicted, on_disk, disk_peak, disk_evicted, failed = 0, 0, 0, 0, 0, 0, 0
    for r in range(len(offsets) - 1):
        request = chunk_ids[offsets[r] : offsets[r + 1]]
        found = 0
        while found < len(request) and newer[request[found]] != ABSENT:
            in_use[request[found]] = r
            found += 1
        last = found
        while last < len(request) and disk_newer[request[last]] != ABSENT:
            last += 1
        hits[r], disk_hits[r] = found, last - found
        if touches:
            for c in request[:found][::-1]:
                move_to_newest(newer, older, end, c)
            for c in request[found:last]:  # once tail first at the lookup, then head first at the load: the second counts
                move_to_newest(disk_newer, disk_older, end, c)
        gone = _evict_unused(newer, older, end, in_use, r, max(0, used + last - found - capacity))
        fitting = min(last - found, capacity - used + gone)
        failed += last - found - fitting
        used += _put(newer, older, end, request[found : found + fitting]) - gone
        evicted += gone
        wanted = len(request) - last
        gone = min(used, max(0, used + wanted - capacity))
        drop_oldest(newer, older, end, gone)
        used -= gone
        evicted += gone
        stored = request[last : last + min(wanted, capacity - used)]
        dropped[r] = wanted - len(stored)
        used += _put(newer, older, end, stored)
        gone, added = _store_on_disk(disk_newer, disk_older, end, touches, stored, on_disk, disk_capacity)
        disk_evicted += gone
        on_disk += added - gone
        peak, disk_peak = max(peak, used), max(disk_peak, on_disk)
    return evicted, peak, disk_evicted, disk_peak, failed


@compiled
def _evict_unused(newer: Links, older: Links, end: int, in_use: Int32, request: int, count: int) -> int:
    """Evict up to so many chunks, oldest first, but none that this request holds. Return how many were evicted."""
    gone, c = 0, newer[end]
    while gone < count and c != end:
        after = newer[c]
        if in_use[c] != request:
            take_out(newer, older, c)
            gone += 1
        c = after
    return gone


@compiled
def _put(newer: Links, older: Links, end: int, chunks: Int32) -> int:
    """Add the chunks that are not there as the newest, head first. Return how many were added."""
    added = 0
    for c in chunks:
        if newer[c] == ABSENT:
            push_newest(newer, older, end, c)
            added += 1
    return added


@compiled
def _store_on_disk(
    newer: Links,
    older: Links,
    end: int,
    touches: bool,
    chunks: Int32,
    used: int,
    capacity: int,
) -> tuple[int, int]:
    """Store chunks on the disk, head first. Return how many it evicted for them and how many it added.

    A chunk that comes in is not on the list before all of them are, so it cannot be evicted for one behind it.
    """
    gone, added = 0, 0
    fresh = np.empty(len(chunks), np.int32)
    for c in chunks:
        if newer[c] != ABSENT:
            if touches:
                move_to_newest(newer, older, end, c)
            continue
        if used - gone + added >= capacity:
            if used == gone:
                continue
            take_out(newer, older, newer[end])
            gone += 1
        fresh[added] = c
        added += 1
    _put(newer, older, end, fresh[:added])
    return gone, added
