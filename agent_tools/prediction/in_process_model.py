"""Model of in-process LMCache: it evicts one chunk at a time, at the moment when a store finds the memory full.

Observed in LMCache 0.5.6 (``cache_engine``, ``local_cpu_backend``, ``cache_policy``): a lookup touches the hit chunks tail first.
A store then allocates the missing chunks head first, evicts one chunk for each chunk that does not fit, and keeps what it could
allocate. It puts the chunks into the cache afterwards, head first. So, unlike in `lmcache server`, the *tail* of a new prompt is
the most recent. There is no watermark, and nothing depends on time.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

from .cache_run import CacheRun
from .eviction_order import ABSENT, Links, empty_order, move_to_newest, push_newest, take_out
from .isolation import isolated

Int32 = npt.NDArray[np.int32]

InProcessPolicy = Literal["LRU", "LFU", "FIFO", "MRU"]

_LRU, _LFU, _FIFO, _MRU = range(4)
CODES: dict[InProcessPolicy, int] = {"LRU": _LRU, "LFU": _LFU, "FIFO": _FIFO, "MRU": _MRU}
"""The policies as the kernels take them."""


def simulate_in_process(log: AccessLog, capacity_chunks: float, policy: InProcessPolicy = "LRU") -> CacheRun:
    """Run the model once, from an empty cache.

    Args:
        log: The recorded lookups.
        capacity_chunks: ``max_local_cpu_size``, in chunks.
        policy: ``cache_policy``.

    Raises:
        ValueError: LMCache has no such policy.
    """
    if policy not in CODES:
        raise ValueError(f"unknown cache_policy {policy!r}; LMCache has {', '.join(CODES)}")
    log = isolated(log)
    lists = len(log) + 1 if policy == "LFU" else 1  # one list per frequency; a request raises a chunk's frequency by one at most
    newer, older = empty_order(log.unique_chunks, lists)
    uses = np.zeros(log.unique_chunks, np.int32)
    hits, dropped = (np.zeros(len(log), np.int32) for _ in range(2))
    evicted, peak = run_engine(
        log.chunk_ids,
        log.offsets,
        log.unique_chunks,
        int(max(capacity_chunks, 0)),
        CODES[policy],
        newer,
        older,
        uses,
        0,
        hits,
        dropped,
    )
    return CacheRun.of_one_tier(log, hits, dropped, evicted, peak)


@compiled
def run_engine(  # noqa: PLR0913, PLR0917 - one kernel: its input, its state, its two output columns
    chunk_ids: Int32,
    offsets: npt.NDArray[np.int64],
    end: int,
    capacity: int,
    policy: int,
    newer: Links,
    older: Links,
    uses: Int32,
    used: int,
    hits: Int32,
    dropped: Int32,
) -> tuple[int, int]:
    """Fill ``hits`` and ``dropped`` (chunks, per request); return ``(evicted chunks, peak resident chunks)``.

    The cache starts with what the order holds: nothing, or what an earlier part of the same run left there. ``end`` is the end of
    its first list; ``uses`` counts, for LFU, puts and hits since a chunk came in, less one; ``used`` is the chunks it holds.
    """
    peak, evicted, rarest = used, 0, 0
    for r in range(len(offsets) - 1):
        request = chunk_ids[offsets[r] : offsets[r + 1]]
        found = 0
        while found < len(request) and newer[request[found]] != ABSENT:
            found += 1
        hits[r] = found
        if policy != _FIFO:
            for c in request[:found][::-1]:
                uses[c] += policy == _LFU
                move_to_newest(newer, older, end + uses[c], c)
        wanted = len(request) - found
        victims = min(used, max(0, used + wanted - capacity))
        rarest = evict(newer, older, end, policy, rarest, victims)
        used -= victims
        evicted += victims
        fitting = min(wanted, capacity - used)
        dropped[r] = wanted - fitting
        for c in request[found : found + fitting]:
            if newer[c] == ABSENT:
                uses[c] = 0
                push_newest(newer, older, end, c)
                rarest = 0
                used += 1
        peak = max(peak, used)
    return evicted, peak


@compiled
def evict(newer: Links, older: Links, end: int, policy: int, rarest: int, count: int) -> int:
    """Evict so many chunks, which must be there. ``rarest`` is the first list that may hold one; return the same afterwards."""
    for _ in range(count):
        while newer[end + rarest] == end + rarest:
            rarest += 1
        first = end + rarest
        take_out(newer, older, older[first] if policy == _MRU else newer[first])
    return rarest
