"""The server model as a running server: requests arrive bit by bit, and anything may change between two of them.

It uses the kernels of `simulate_server` that keep the eviction order chunk by chunk, or object by object. So settings can change
and chunks can be removed at any moment. A run in many parts gives exactly the result of one run over the whole log.
"""

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .eviction_clock import AT_ONCE, PERIOD, StoreDelay
from .eviction_order import ABSENT, drop_oldest, empty_order, take_out
from .object_model import run_objects
from .objects import needs_objects, objects_of
from .server_model import first_tier, second_tier
from .server_setting import ServerSetting
from .two_tiers import EVICTED, L2_EVICTED, LOAD_FAILED, Order, SecondTier, run_two_tiers

Int32 = npt.NDArray[np.int32]
_NO_L2 = SecondTier(
    capacity=0.0, watermark=1.0, ratio=0.0, evicts=False, hard_limit=True, retain=False, isolated=False, quotas=np.zeros(1)
)


class RunningServer:
    """One modelled `lmcache server` 0.5.6 since its process started. Times are seconds in the log's time.

    It has one L2 list, so it ignores `ServerSetting.tenant_quotas`.
    """

    def __init__(self, setting: ServerSetting, *, first_tick: float, period: float = PERIOD, delay: StoreDelay = AT_ONCE) -> None:
        """Start with both tiers empty.

        Args:
            setting: The configuration. Assign another one to change it from now on; the contents are kept.
            first_tick: When the eviction thread first wakes.
            period: Seconds between two wake-ups.
            delay: The delay between a request's lookup and its store.
        """
        self.setting = setting
        self._first_tick = self._next_tick = first_tick
        self._period, self._delay = period, delay
        self._l1, self._l2 = Order(*empty_order(0)), Order(*empty_order(0))
        self._counts = np.zeros(5)
        self.stored = 0
        """Chunks written into L1 since the start, including loads from L2."""
        self.removed = 0
        """Chunks that left L1 for any reason."""

    @property
    def ticks(self) -> int:
        """Return how often the eviction thread has woken."""
        return round((self._next_tick - self._first_tick) / self._period)

    @property
    def load_failed(self) -> int:
        """Return the number of chunks found in L2 that did not fit into L1."""
        return int(self._counts[LOAD_FAILED])

    @property
    def l2_evicted(self) -> int:
        """Return the number of chunks that eviction ticks dropped from L2."""
        return int(self._counts[L2_EVICTED])

    def run(self, log: AccessLog, part: slice, until: float) -> tuple[Int32, Int32, Int32]:
        """Serve some requests of a log, then let time pass.

        Args:
            log: All requests so far. Chunk ids must differ where tenants or models differ (see `isolation`), and never change.
            part: The requests that arrive now (start and stop).
            until: The time to which the model runs, not before the last of these requests.

        Returns:
            (requests,) chunks of each request: found in L1, found in L2, and dropped because L1 was full.
        """
        by_object = needs_objects(log)
        self._make_room(int(objects_of(log).first[-1]) if by_object else log.unique_chunks)
        # An empty request at the end makes the ticks happen that are due by then.
        offsets = np.append(log.offsets[part.start : part.stop + 1], log.offsets[part.stop])
        times = np.append(log.timestamps[part], until)
        l1_hits, l2_hits = (np.zeros(len(times), np.int32) for _ in range(2))
        used, evicted = self._used(), int(self._counts[EVICTED])
        second = second_tier(self.setting, ()) if self.setting.l2_capacity_chunks else _NO_L2
        owners, tier = np.zeros(len(times), np.int32), first_tier(self.setting)
        clock = (self._period, self._next_tick, self._delay)
        if by_object:
            models, failed = np.append(log.models[part], log.models[:1]), np.zeros(len(times))
            self._next_tick, loaded = run_objects(
                *(log.chunk_ids, offsets, times, models, owners, objects_of(log), tier, second, self._l1, self._l2),
                *(*clock, l1_hits, l2_hits, failed, self._counts),
            )
            loads, dropped = round(loaded), np.rint(failed).astype(np.int32)
        else:
            dropped, counts = np.zeros(len(times), np.int32), np.zeros(5, np.int64)
            self._next_tick, loads = run_two_tiers(
                *(log.chunk_ids, offsets, times, owners, tier, second, self._l1, self._l2),
                *(*clock, l1_hits, l2_hits, dropped, counts),
            )
            self._counts += counts
        passing = 0 if self.setting.l2_prefetch_policy == "retain" else loads  # these have left L1 again
        evicted = int(self._counts[EVICTED]) - evicted
        self.removed += evicted + passing
        self.stored += self._used() - used + evicted + passing
        return l1_hits[:-1], l2_hits[:-1], dropped[:-1]

    def _make_room(self, ids: int) -> None:
        self._l1, self._l2 = (_for_chunks(order, ids) for order in (self._l1, self._l2))

    @property
    def in_l1(self) -> npt.NDArray[np.bool_]:
        """Return (chunks,) whether each chunk id is in L1. The array may be longer than the number of ids.

        Where chunks have several objects (see `objects`), this and what else is named a chunk below is an object.
        """
        return np.not_equal(self._l1.newer[:-1], ABSENT)

    @property
    def in_l2(self) -> npt.NDArray[np.bool_]:
        """Return (chunks,) whether each chunk id is in L2. The array may be longer than the number of ids."""
        return np.not_equal(self._l2.newer[:-1], ABSENT)

    def drop_least_recent(self, count: int) -> None:
        """Remove the given number of chunks from L1, in the order of a tick; all chunks if there are fewer."""
        gone = min(max(count, 0), self._used())
        drop_oldest(self._l1.newer, self._l1.older, len(self._l1.newer) - 1, gone)
        self.removed += gone

    def drop(self, chunks: Int32) -> int:
        """Remove the given chunks from L1. Return how many were there."""
        here = [int(chunk) for chunk in chunks if self._l1.newer[chunk] != ABSENT]
        for chunk in here:
            take_out(self._l1.newer, self._l1.older, chunk)
        self.removed += len(here)
        return len(here)

    def empty_l2(self) -> None:
        """Replace L2 by an empty one."""
        self._l2 = Order(*empty_order(len(self._l2.newer) - 1))

    def _used(self) -> int:
        return int(self.in_l1.sum())


def _for_chunks(order: Order, chunks: int) -> Order:
    """Return the same order with room for the given number of chunk ids."""
    end = len(order.newer) - 1
    if chunks <= end:
        return order
    larger = Order(*empty_order(max(chunks, 2 * end)))
    for new, old in zip(larger, order, strict=True):
        renamed = np.where(old == end, len(new) - 1, old)
        new[:end], new[-1] = renamed[:-1], renamed[-1]
    return larger
