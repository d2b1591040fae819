"""The model of in-process LMCache in the middle of its run: requests come bit by bit, and chunks may be removed between two.

It uses the kernel of `simulate_in_process`. A run in many parts gives exactly what one run over the whole log gives.
"""

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .eviction_order import ABSENT, empty_order, take_out
from .in_process_model import CODES, InProcessPolicy, evict, run_engine

Int32 = npt.NDArray[np.int32]


class RunningInProcess:
    """One modelled in-process LMCache 0.5.6 since its process started. It has no L2, no watermark and no eviction thread."""

    ticks = 0
    load_failed = 0
    l2_evicted = 0

    def __init__(self, capacity_chunks: float, policy: InProcessPolicy) -> None:
        """Start with an empty L1."""
        self.capacity_chunks = capacity_chunks
        self._policy = CODES[policy]
        self._end = 0
        self._uses: Int32 = np.zeros(0, np.int32)
        self._newer, self._older = empty_order(0)
        self.stored = 0
        """Chunks written into L1 since the start."""
        self.removed = 0
        """Chunks that left L1 for any cause."""

    def run(self, log: AccessLog, part: slice, until: float) -> tuple[Int32, Int32, Int32]:  # noqa: ARG002  as `RunningServer`
        """Serve some requests of a log. See `RunningServer.run`; nothing here depends on time."""
        count = part.stop - part.start
        self._make_room(log.unique_chunks, count)
        hits, dropped = (np.zeros(count, np.int32) for _ in range(2))
        used, capacity = self._used(), int(max(self.capacity_chunks, 0))
        orders = (self._newer, self._older, self._uses)
        offsets = log.offsets[part.start : part.stop + 1]
        evicted, _ = run_engine(log.chunk_ids, offsets, self._end, capacity, self._policy, *orders, used, hits, dropped)
        self.removed += evicted
        self.stored += self._used() - used + evicted
        return hits, np.zeros(count, np.int32), dropped

    @property
    def in_l1(self) -> npt.NDArray[np.bool_]:
        """(chunks met,) whether each is in L1; by chunk id."""
        return np.not_equal(self._newer[: self._end], ABSENT)

    @property
    def in_l2(self) -> npt.NDArray[np.bool_]:
        """The same of L2, which is not there."""
        return np.zeros(self._end, np.bool_)

    def drop_least_recent(self, count: int) -> None:
        """Remove so many chunks from L1, in the order of the policy; remove all if there are fewer."""
        gone = min(max(count, 0), self._used())
        evict(self._newer, self._older, self._end, self._policy, 0, gone)
        self.removed += gone

    def drop(self, chunks: Int32) -> int:
        """Remove these chunks from L1 and return how many of them were there."""
        here = [int(chunk) for chunk in chunks if self._newer[chunk] != ABSENT]
        for chunk in here:
            take_out(self._newer, self._older, chunk)
        self.removed += len(here)
        return len(here)

    def empty_l2(self) -> None:
        """Do nothing: there is no L2."""

    def _used(self) -> int:
        return int(self.in_l1.sum())

    def _make_room(self, chunks: int, requests: int) -> None:
        """Grow the order until it has room for these chunk ids and, for LFU, for one list per frequency."""
        lists = int(self._uses.max(initial=0)) + requests + 1
        if chunks <= self._end and lists <= len(self._newer) - self._end:
            return
        moved, end = self._end, self._end if chunks <= self._end else max(chunks, 2 * self._end)
        newer, older = empty_order(end, max(2 * lists, len(self._newer) - moved))
        for new, old in ((newer, self._newer), (older, self._older)):
            renamed = np.where(old >= moved, old + (end - moved), old)
            new[:moved] = renamed[:moved]
            new[end : end + len(old) - moved] = renamed[moved:]
        self._newer, self._older, self._end = newer, older, end
        self._uses = np.append(self._uses, np.zeros(end - moved, np.int32))
