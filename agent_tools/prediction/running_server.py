"""The server model in the middle of its run: requests come bit by bit, and between two of them anything may be changed.

The same kernel as `simulate_server` with an L2, which keeps its order of eviction chunk by chunk, so that settings can change
and chunks be taken out at any moment. A run in many parts gives exactly what one run over the whole log gives.
"""

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .eviction_clock import AT_ONCE, PERIOD, StoreDelay
from .eviction_order import ABSENT, drop_oldest, empty_order, take_out
from .server_model import first_tier, second_tier
from .server_setting import ServerSetting
from .two_tiers import EVICTED, L2_EVICTED, LOAD_FAILED, Order, SecondTier, run_two_tiers

Int32 = npt.NDArray[np.int32]
_NO_L2 = SecondTier(
    capacity=0.0, watermark=1.0, ratio=0.0, evicts=False, hard_limit=True, retain=False, isolated=False, quotas=np.zeros(1)
)


class RunningServer:
    """One modelled `lmcache server` 0.5.6 since its process started. Times are seconds in the log's time.

    It knows one L2 list, so `ServerSetting.tenant_quotas` is not for it.
    """

    def __init__(self, setting: ServerSetting, *, first_tick: float, period: float = PERIOD, delay: StoreDelay = AT_ONCE) -> None:
        """Both tiers are empty.

        Args:
            setting: Its configuration; assign another one to change it from now on, with all contents kept.
            first_tick: When its eviction thread first wakes.
            period: Seconds between its wake-ups.
            delay: How long after its lookup a request stores.
        """
        self.setting = setting
        self._first_tick = self._next_tick = first_tick
        self._period, self._delay = period, delay
        self._l1, self._l2 = Order(*empty_order(0)), Order(*empty_order(0))
        self._counts = np.zeros(5, np.int64)
        self.stored = 0
        """Chunks written into L1 since the start, loads from L2 among them."""
        self.removed = 0
        """Chunks that left L1 for any cause."""

    @property
    def ticks(self) -> int:
        """How often the eviction thread has woken."""
        return round((self._next_tick - self._first_tick) / self._period)

    @property
    def load_failed(self) -> int:
        """Chunks found in L2 that did not fit into L1."""
        return int(self._counts[LOAD_FAILED])

    @property
    def l2_evicted(self) -> int:
        """Chunks that ticks dropped from L2."""
        return int(self._counts[L2_EVICTED])

    def run(self, log: AccessLog, part: slice, until: float) -> tuple[Int32, Int32, Int32]:
        """Serve some requests of a log, then let time pass.

        Args:
            log: All requests so far; chunk ids differ wherever tenants or models do (`isolation`), and never change.
            part: Which of them come now (start and stop).
            until: The instant to which time passes; not before the last of them.

        Returns:
            (requests,) chunks of each that were found in L1, found in L2, and dropped for want of room.
        """
        self._l1, self._l2 = (_for_chunks(order, log.unique_chunks) for order in (self._l1, self._l2))
        # One request for nothing at the end: it makes the ticks happen that are due by then.
        offsets = np.append(log.offsets[part.start : part.stop + 1], log.offsets[part.stop])
        times = np.append(log.timestamps[part], until)
        l1_hits, l2_hits, dropped = (np.zeros(len(times), np.int32) for _ in range(3))
        used, evicted = self._used(), int(self._counts[EVICTED])
        self._next_tick, loads = run_two_tiers(
            log.chunk_ids,
            offsets,
            times,
            np.zeros(len(times), np.int32),
            first_tier(self.setting),
            second_tier(self.setting, ()) if self.setting.l2_capacity_chunks else _NO_L2,
            self._l1,
            self._l2,
            self._period,
            self._next_tick,
            self._delay,
            l1_hits,
            l2_hits,
            dropped,
            self._counts,
        )
        passing = 0 if self.setting.l2_prefetch_policy == "retain" else loads  # these left L1 again
        evicted = int(self._counts[EVICTED]) - evicted
        self.removed += evicted + passing
        self.stored += self._used() - used + evicted + passing
        return l1_hits[:-1], l2_hits[:-1], dropped[:-1]

    @property
    def in_l1(self) -> npt.NDArray[np.bool_]:
        """(chunks met,) whether each is in L1; by chunk id, of at least as many as there are."""
        return np.not_equal(self._l1.newer[:-1], ABSENT)

    @property
    def in_l2(self) -> npt.NDArray[np.bool_]:
        """The same of L2."""
        return np.not_equal(self._l2.newer[:-1], ABSENT)

    def drop_least_recent(self, count: int) -> None:
        """Remove so many chunks from L1, in the order in which a tick would; all when there are fewer."""
        gone = min(max(count, 0), self._used())
        drop_oldest(self._l1.newer, self._l1.older, len(self._l1.newer) - 1, gone)
        self.removed += gone

    def drop(self, chunks: Int32) -> int:
        """Remove these chunks from L1; how many of them were there."""
        here = [int(chunk) for chunk in chunks if self._l1.newer[chunk] != ABSENT]
        for chunk in here:
            take_out(self._l1.newer, self._l1.older, chunk)
        self.removed += len(here)
        return len(here)

    def empty_l2(self) -> None:
        """L2 is another one now."""
        self._l2 = Order(*empty_order(len(self._l2.newer) - 1))

    def _used(self) -> int:
        return int(self.in_l1.sum())


def _for_chunks(order: Order, chunks: int) -> Order:
    """The same order with room for so many chunk ids."""
    end = len(order.newer) - 1
    if chunks <= end:
        return order
    larger = Order(*empty_order(max(chunks, 2 * end)))
    for new, old in zip(larger, order, strict=True):
        renamed = np.where(old == end, len(new) - 1, old)
        new[:end], new[-1] = renamed[:-1], renamed[-1]
    return larger
