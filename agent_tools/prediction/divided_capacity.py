"""A capacity divided among tenants so that their hits together are the most.

Where every curve is concave, giving each next chunk to whom it brings most is optimal (Fox 1966). Hit curves have cliffs (a loop
brings nothing until it fits as a whole), so a step here is a straight piece of a curve's upper hull: the block of chunks that
brings most for each (the look-ahead of Qureshi and Patt's utility-based cache partitioning, MICRO 2006). The result is optimal
for the hulls while blocks fit, and within the hits of the first block that did not fit of the true optimum.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

Int64 = npt.NDArray[np.int64]

ROUNDING = 1e-6
"""Chunks by which a block may seem not to fit only because sizes are floating point numbers."""


def divide(hits: Sequence[Int64], floors: Sequence[float], capacity: float) -> list[float]:
    """Chunks for each tenant, together at most `capacity`.

    What brings no hits any more goes to the tenants that have hits at all, in proportion to what each could still use: traffic
    to come is not quite the traffic seen.

    Args:
        hits: For each tenant, (n,) hits with 0, 1 ... n - 1 chunks, never falling; more than n - 1 it cannot use.
        floors: What each gets at least, in chunks, useful or not; together at most `capacity`.
        capacity: Chunks there are.
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
    """What one tenant would take next, block by block."""

    def __init__(self, hits: Int64, part: float, room: float) -> None:
        self._hits = hits
        self.part = part
        """Chunks it has."""
        self.limit(room)

    def limit(self, room: float) -> None:
        """Only so many chunks are left for it."""
        last = len(self._hits) - 1
        start, stop = min(int(self.part), last), min(int(self.part + room + ROUNDING), last)
        self._corners, self._next = _corners(self._hits, start, stop), 1

    def more(self) -> bool:
        """Whether some block would bring hits."""
        return self._next < len(self._corners)

    def ends_at(self) -> int:
        """Chunks it would have with its next block."""
        return int(self._corners[self._next])

    def hits_per_chunk(self) -> float:
        """What its next block brings for each chunk."""
        brings = self._hits[self.ends_at()] - self._hits[int(self.part)]
        return float(brings) / (self.ends_at() - self.part)

    def take(self) -> float:
        """Give it its next block; return the block's chunks."""
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
    """Corners of the curve's upper hull from ``start`` to ``stop``, up to where it no longer rises; the first is ``start``."""
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
