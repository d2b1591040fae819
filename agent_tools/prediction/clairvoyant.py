"""The clairvoyant bound: the most hits that any eviction policy could get from a cache of a given size.

Belady's MIN (1966) with bypass: a cache that knows the future holds the chunks that are needed soonest. The prefix rule needs no
change to this. A request needs a chunk and its prefix at the same moment, so a prefix is never needed later than the chunks after
it; among chunks that are needed at the same time, the deeper chunk is dropped first.
"""

import heapq

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

from .chunk_steps import chunk_steps
from .hit_rate_curve import hit_rate_curve
from .isolation import isolated
from .prefix_reuse import prefix_reuse

Int32 = npt.NDArray[np.int32]


def clairvoyant_hits(log: AccessLog, capacity_chunks: float) -> Int32:
    """Return (requests,) hit chunks of each request under the best possible decisions. Their sum is the bound.

    Cost: one heap step per run of reused chunks, independent of the capacity.
    """
    log = isolated(log)
    reuse = prefix_reuse(log)
    by_start = np.argsort(reuse.source, kind="stable")
    hits = np.zeros(len(log), np.int32)
    steps, per_chunk = chunk_steps(log)
    sizes = np.ones(len(log), np.int32) if steps is None else steps
    capacity = int(max(capacity_chunks, 0) * per_chunk + 1e-6)
    _keep_soonest(reuse.source[by_start], reuse.request[by_start], reuse.length[by_start], sizes, capacity, hits)
    return hits


def policy_gap(log: AccessLog, capacity_chunks: float) -> float:
    """Return the token hit rate (whole chunks) that the bound exceeds LRU by at the same capacity, 0 to 1; 0 for an empty log."""
    asked = len(log.chunk_ids)
    if not asked:
        return 0.0
    bound = int(clairvoyant_hits(log, capacity_chunks).sum(dtype=np.int64))
    return (bound - hit_rate_curve(log).hits(capacity_chunks)) / asked


@compiled
def _keep_soonest(source: Int32, needed: Int32, length: Int32, sizes: Int32, capacity: int, hits: Int32) -> None:
    """Hold runs from request ``source`` until request ``needed``. If they do not fit, drop the runs needed last.

    ``sizes`` (requests,) is the size of each request's chunks, in the unit of ``capacity``.

    Runs are sorted by ``source``. ``hits[r]`` first counts the chunks held for request r, and in the end its hits.
    """
    held = 0
    latest_first = [0]
    latest_first.pop()
    run = 0
    for r in range(len(hits)):
        held -= hits[r] * sizes[r]  # r is served; what it shares with a later request starts a new run below
        while run < len(source) and source[run] == r:
            if hits[needed[run]] == 0:
                heapq.heappush(latest_first, -needed[run])
            hits[needed[run]] += length[run]
            held += length[run] * sizes[needed[run]]
            run += 1
        while held > capacity:
            last = -latest_first[0]
            given_up = min(-((capacity - held) // sizes[last]), hits[last])
            hits[last] -= given_up
            held -= given_up * sizes[last]
            if hits[last] == 0:
                heapq.heappop(latest_first)
