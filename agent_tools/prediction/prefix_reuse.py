"""Prefix reuse: which requests find which part of their prefix in which earlier request, and how far down the LRU order.

Two facts allow the whole analysis in one cheap pass. Each chunk is touched once, and the order is kept between requests, not
between chunks:

* Chunk ids stand for whole prefixes. So the chunks of a request that were last touched by the same earlier request are one
  unbroken *run* of its depths.
* A request is touched as a block. So the LRU order of the chunks is the order of the requests that touched them last, and
  within one request the order of depth.

For a run last touched by request q, let S be the number of chunks touched after q as a whole, and W the number of chunks whose
last touch is q. If chunks are touched tail first (LMCache's server: depth 0 is the most recent), the k-th chunk of the run has
distance S + k. If chunks are touched head first (LMCache's simulator), the run's prefix is complete exactly as long as its first
chunk is resident, at distance S + W - 1. The distance counts distinct chunks between two touches, at the start of the request
(Mattson et al. 1970, with LMCache's prefix rule added).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PrefixReuse:
    """Every run of reused prefix chunks, in the order of the log."""

    request: Int32
    """(runs,) the request that finds the run."""
    source: Int32
    """(runs,) the earlier request, which touched the run last."""
    newer: Int32
    """(runs,) distinct chunks touched since that earlier request; in steps if chunks differ in size."""
    group: Int32
    """(runs,) chunks whose last touch is that earlier request, at least `length`; in steps if chunks differ in size."""
    length: Int32
    """(runs,) chunks in the run."""
    step: Int32
    """(runs,) size of each chunk of the run, in steps; 1 if all chunks count as equally large."""

    def of_requests(self, chosen: npt.NDArray[np.bool_]) -> "PrefixReuse":
        """Return the runs that the chosen requests find; ``chosen`` is (requests,)."""
        kept = chosen[self.request]
        columns = (self.request, self.source, self.newer, self.group, self.length, self.step)
        return PrefixReuse(*(column[kept] for column in columns))


def prefix_reuse(log: AccessLog, steps: Int32 | None = None) -> PrefixReuse:
    """Return all reuse in ``log``, as if nothing were ever evicted.

    Cost: one step per chunk and two Fenwick-tree walks per run; 8 bytes per distinct chunk and 24 bytes per run.

    Args:
        log: The recorded lookups.
        steps: (requests,) size of each request's chunks, in steps of any unit. Default: every chunk is one step.

    Raises:
        ValueError: Chunk ids are not numbered by first appearance, or one id follows two different prefixes.
    """
    buffers = [np.empty(len(log.chunk_ids), np.int32) for _ in range(6)]  # untouched pages cost no memory
    sizes = np.ones(len(log), np.int32) if steps is None else steps
    runs = _find_runs(log.chunk_ids, log.offsets, log.unique_chunks, sizes, *buffers)
    if runs < 0:
        raise ValueError(
            f"request {-runs - 1} breaks the contract of an access log: chunk ids must be numbered by first appearance, and an"
            " id must always follow the same prefix"
        )
    for buffer in buffers:
        buffer.resize(runs, refcheck=False)
    return PrefixReuse(*buffers)


@compiled
def _sum_to(tree: Int32, index: int) -> int:
    """Return the sum of the weights 0..index (binary indexed tree, Fenwick 1994)."""
    total = 0
    node = index + 1
    while node > 0:
        total += tree[node]
        node &= node - 1
    return total


@compiled
def _add_at(tree: Int32, index: int, amount: int) -> None:
    """Add an amount to one weight."""
    node = index + 1
    while node < len(tree):
        tree[node] += amount
        node += node & -node


@compiled
def _find_runs(  # noqa: PLR0913, PLR0917 - one kernel: its input and its six output columns
    chunk_ids: Int32,
    offsets: Int64,
    unique: int,
    sizes: Int32,
    request: Int32,
    source: Int32,
    newer: Int32,
    group: Int32,
    length: Int32,
    step: Int32,
) -> int:
    """Fill the six columns. Return the number of runs, or ``-(r + 1)`` if request ``r`` breaks the contract."""
    requests = len(offsets) - 1
    toucher = np.empty(unique, np.int32)  # the request that last touched a chunk
    parent = np.empty(unique, np.int32)  # the chunk before it, the same in every request
    weight = np.zeros(requests, np.int32)  # the size of the chunks whose last touch is this request
    tree = np.zeros(requests + 1, np.int32)  # sums of `weight`
    seen, seen_size = 0, 0
    runs = 0
    for r in range(requests):
        at, stop = offsets[r], offsets[r + 1]
        known, known_size, size = seen, seen_size, sizes[r]
        previous = np.int32(-1)
        while at < stop and 0 <= chunk_ids[at] < known:
            q = toucher[chunk_ids[at]]
            first = at
            while at < stop:
                c = chunk_ids[at]
                if not 0 <= c < known or toucher[c] != q:
                    break
                if parent[c] != previous or q == r:
                    return -(r + 1)
                toucher[c] = r
                previous = c
                at += 1
            request[runs], source[runs] = r, q
            newer[runs], group[runs] = known_size - _sum_to(tree, q), weight[q]
            length[runs], step[runs] = at - first, size
            runs += 1
            weight[q] -= (at - first) * size
            _add_at(tree, q, (first - at) * size)
        for i in range(at, stop):
            if chunk_ids[i] != seen:
                return -(r + 1)
            toucher[seen] = r
            parent[seen] = previous
            previous = np.int32(seen)
            seen += 1
            seen_size += size
        weight[r] = (stop - offsets[r]) * size
        _add_at(tree, r, (stop - offsets[r]) * size)
    return runs
