"""The clairvoyant bound: the most hits any eviction policy could get from a cache of a given size.

Belady's MIN (1966) with bypass: of all chunks it could hold, a cache that knows the future holds those that are needed soonest.
Under the prefix rule this needs no change: whoever needs a chunk needs its prefix at the same moment, so a prefix is never needed
later than what follows it, and among equals the deeper chunk is given up first.
"""

import heapq

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

from .hit_rate_curve import hit_rate_curve
from .isolation import isolated
from .prefix_reuse import prefix_reuse

Int32 = npt.NDArray[np.int32]


def clairvoyant_hits(log: AccessLog, capacity_chunks: float) -> Int32:
    """(requests,) hit chunks of each request under the best possible decisions; their sum is the bound.

    Cost: one heap step per run of reused chunks, independent of the capacity.
    """
    log = isolated(log)
    reuse = prefix_reuse(log)
    by_start = np.argsort(reuse.source, kind="stable")
    hits = np.zeros(len(log), np.int32)
    _keep_soonest(reuse.source[by_start], reuse.request[by_start], reuse.length[by_start], int(max(capacity_chunks, 0)), hits)
    return hits


def policy_gap(log: AccessLog, capacity_chunks: float) -> float:
    """Token hit rate (whole chunks) that the clairvoyant bound has over LRU at the same capacity; 0 when nothing was asked."""
    asked = len(log.chunk_ids)
    if not asked:
        return 0.0
    bound = int(clairvoyant_hits(log, capacity_chunks).sum(dtype=np.int64))
    return (bound - hit_rate_curve(log).hits(capacity_chunks)) / asked


@compiled
def _keep_soonest(source: Int32, needed: Int32, length: Int32, capacity: int, hits: Int32) -> None:
    """Hold runs from request ``source`` until request ``needed``; where they do not fit, give up those needed last.

    Runs are sorted by ``source``. ``hits[r]`` first counts what is held for request r, and stays as its hits.
    """
    held = 0
    latest_first = [0]
    latest_first.pop()
    run = 0
    for r in range(len(hits)):
        held -= hits[r]  # r is served; whatever it shares with a later request starts a new run below
        while run < len(source) and source[run] == r:
            if hits[needed[run]] == 0:
                heapq.heappush(latest_first, -needed[run])
            hits[needed[run]] += length[run]
            held += length[run]
            run += 1
        while held > capacity:
            last = -latest_first[0]
            given_up = min(held - capacity, hits[last])
            hits[last] -= given_up
            held -= given_up
            if hits[last] == 0:
                heapq.heappop(latest_first)
