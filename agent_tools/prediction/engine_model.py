"""LMCache embedded in an engine: eviction one chunk at a time, at the moment a store finds the memory full.

Seen in LMCache 0.5.6 (``cache_engine``, ``local_cpu_backend``, ``cache_policy``): a lookup touches the hit chunks tail first; a
store then allocates the missing chunks head first, evicting one chunk for each that does not fit, and keeps what it could
allocate; only then are they put into the cache, head first. So, unlike in `lmcache server`, the *tail* of a new prompt is the
most recent. There is no watermark, and nothing depends on time.
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

EnginePolicy = Literal["LRU", "LFU", "FIFO", "MRU"]

_LRU, _LFU, _FIFO, _MRU = range(4)
_CODES: dict[EnginePolicy, int] = {"LRU": _LRU, "LFU": _LFU, "FIFO": _FIFO, "MRU": _MRU}


def simulate_engine(log: AccessLog, capacity_chunks: float, policy: EnginePolicy = "LRU") -> CacheRun:
    """What an embedded engine with ``max_local_cpu_size`` of so many chunks would have given, from an empty cache.

    Raises:
        ValueError: If the policy is not one of LMCache's.
    """
    if policy not in _CODES:
        raise ValueError(f"unknown cache_policy {policy!r}; LMCache has {', '.join(_CODES)}")
    log = isolated(log)
    lists = len(log) + 1 if policy == "LFU" else 1  # one list per frequency; a request raises a chunk's by one at most
    newer, older = empty_order(log.unique_chunks, lists)
    hits, dropped = (np.zeros(len(log), np.int32) for _ in range(2))
    evicted, peak = _run(
        log.chunk_ids, log.offsets, log.unique_chunks, int(max(capacity_chunks, 0)), _CODES[policy], newer, older, hits, dropped
    )
    return CacheRun.of_one_tier(log, hits, dropped, evicted, peak)


@compiled
def _run(  # noqa: PLR0913, PLR0917 - one kernel: its input, its state, its two output columns
    chunk_ids: Int32,
    offsets: npt.NDArray[np.int64],
    unique: int,
    capacity: int,
    policy: int,
    newer: Links,
    older: Links,
    hits: Int32,
    dropped: Int32,
) -> tuple[int, int]:
    """Fill ``hits`` and ``dropped`` (chunks, per request); return ``(evicted chunks, peak resident chunks)``."""
    uses = np.zeros(unique, np.int32)  # for LFU: puts and hits since the chunk came in, less one
    used, peak, evicted, rarest = 0, 0, 0, 0
    for r in range(len(offsets) - 1):
        request = chunk_ids[offsets[r] : offsets[r + 1]]
        found = 0
        while found < len(request) and newer[request[found]] != ABSENT:
            found += 1
        hits[r] = found
        if policy != _FIFO:
            for c in request[:found][::-1]:
                uses[c] += policy == _LFU
                move_to_newest(newer, older, unique + uses[c], c)
        wanted = len(request) - found
        victims = min(used, max(0, used + wanted - capacity))
        for _ in range(victims):
            while newer[unique + rarest] == unique + rarest:
                rarest += 1
            end = unique + rarest
            take_out(newer, older, older[end] if policy == _MRU else newer[end])
        used -= victims
        evicted += victims
        fitting = min(wanted, capacity - used)
        dropped[r] = wanted - fitting
        for c in request[found : found + fitting]:
            if newer[c] == ABSENT:
                uses[c] = 0
                push_newest(newer, older, unique, c)
                rarest = 0
                used += 1
        peak = max(peak, used)
    return evicted, peak
