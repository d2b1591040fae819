"""Division of a capacity among tenants so that their hits together are highest.

If every hit curve is concave, giving each next chunk to the tenant that gains most is optimal (Fox 1966). Hit curves have cliffs:
a loop brings no hits until all of it fits. So a step here is a straight piece of a curve's upper hull: the block of chunks with
the most hits per chunk (the look-ahead of Qureshi and Patt's utility-based cache partitioning, MICRO 2006). The result is optimal
for the hulls while blocks fit. Its distance from the true optimum is at most the hits of the first block that did not fit.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

Int64 = npt.NDArray[np.int64]

ROUNDING = 1e-6
"""Tolerance in chunks: sizes are floating point numbers, so a block may seem too large by a rounding error."""


def divide(hits: Sequence[Int64], floors: Sequence[float], capacity: float) -> list[float]:
    """Return the chunks for each tenant, together at most `capacity`.

    Capacity that brings no more hits goes to the tenants that have any hits, in proportion to what each could still use, because
    future traffic differs a little from past traffic.

    Args:
        hits: For each tenant, (n,) hits with 0, 1 ... n - 1 chunks, never falling. A tenant cannot use more than n - 1 chunks.
        floors: The least chunks that each tenant gets, useful or not; together at most `capacity`.
        capacity: Number of chunks to divide.
    """
    parts = [float(floor) for floor in floors]
    left = capacity - sum(parts)
    blocks = [_Blocks(curve, part, left) for curve, part in zip(hits, parts, strict=True)]
    queue = [(-one.hits_per_chunk(), tenant) for tenant, one in enumerate(blocks) if one.more()]
    heapify(queue)
    while queue:
        _, tenant = heappop(queue)
        one = blocks[tenant]
        if one.ends_at() - one.part > left + ROUNDING:
            one.limit(left)
        else:
            left -= one.take()
        if one.more():
            heappush(queue, (-one.hits_per_chunk(), tenant))
    return _with_the_rest(hits, [one.part for one in blocks], left)


class _Blocks:
    """The blocks that one tenant would take next, one after the other."""

    def __init__(self, hits: Int64, part: float, room: float) -> None:
        self._hits = hits
        self.part = part
        """Chunks that the tenant has."""
        self.limit(room)

    def limit(self, room: float) -> None:
        """Limit the chunks that are left for the tenant."""
        last = len(self._hits) - 1
        start, stop = min(int(self.part), last), min(int(self.part + room + ROUNDING), last)
        self._corners, self._next = _corners(self._hits, start, stop), 1

    def more(self) -> bool:
        """Return whether some block would still bring hits."""
        return self._next < len(self._corners)

    def ends_at(self) -> int:
        """Return the chunks that the tenant would have with its next block."""
        return int(self._corners[self._next])

    def hits_per_chunk(self) -> float:
        """Return the hits per chunk of the next block."""
        brings = self._hits[self.ends_at()] - self._hits[int(self.part)]
        return float(brings) / (self.ends_at() - self.part)

    def take(self) -> float:
        """Give the tenant its next block and return the block's chunks."""
        taken = self.ends_at() - self.part
        self.part = float(self.ends_at())
        self._next += 1
        return taken


def _with_the_rest(hits: Sequence[Int64], parts: list[float], left: float) -> list[float]:
    usable = [max(len(curve) - 1 - part, 0.0) if curve[-1] else 0.0 for curve, part in zip(hits, parts, strict=True)]
    share = min(max(left, 0.0) / (sum(usable) or 1.0), 1.0)
    return [part + share * more for part, more in zip(parts, usable, strict=True)]


@compiled
def _corners(hits: Int64, start: int, stop: int) -> Int64:
    """Return the corners of the curve's upper hull from ``start`` (the first corner) to ``stop``, until it no longer rises."""
    corners = np.empty(stop - start + 1, np.int64)
    corners[0] = start
    count = 1
    for c in range(start + 1, stop + 1):
        if hits[c] == hits[c - 1]:
            continue
        while count > 1:
            a, b = corners[count - 2], corners[count - 1]
            if (hits[b] - hits[a]) * (c - b) > (hits[c] - hits[b]) * (b - a):
                break
            count -= 1
        corners[count] = c
        count += 1
    return corners[:count]
