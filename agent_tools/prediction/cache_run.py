"""The outcome of a modelled cache, request by request."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class CacheRun:
    """The outcome of a modelled cache on a log. Its per-request columns compare two settings on the same requests."""

    chunk_size: int
    """Tokens per chunk."""
    asked_chunks: Int32
    """(requests,) whole chunks that each request asked for."""
    l1_hit_chunks: Int32
    """(requests,) leading chunks found in L1."""
    l2_hit_chunks: Int32
    """(requests,) leading chunks beyond these that L2 served."""
    dropped_chunks: Int32
    """(requests,) chunks whose store failed (``lmcache_mp_l1_allocation_failure_chunks_total{during="l1_store"}``)."""
    evicted_chunks: int
    """Chunks that eviction ticks dropped from L1."""
    peak_chunks: int
    """The most chunks in L1 at one time."""
    l2_evicted_chunks: int = 0
    """Chunks that eviction ticks dropped from L2."""
    l2_peak_chunks: int = 0
    """The most chunks in L2 at one time."""
    load_failed_chunks: int = 0
    """Chunks found in L2 that did not fit into L1 (``lmcache_mp_l2_prefetch_failure_chunks_total{reason="l1_oom"}``)."""

    @classmethod
    def of_one_tier(cls, log: AccessLog, hits: Int32, dropped: Int32, evicted: int, peak: int) -> "CacheRun":
        """Return the run of a cache without an L2, from the columns that its kernel filled."""
        return cls(
            chunk_size=log.chunk_size,
            asked_chunks=log.chunks_per_request.astype(np.int32),
            l1_hit_chunks=hits,
            l2_hit_chunks=np.zeros(len(log), np.int32),
            dropped_chunks=dropped,
            evicted_chunks=evicted,
            peak_chunks=peak,
        )

    @property
    def hit_chunks(self) -> Int32:
        """Return (requests,) chunks served from the cache."""
        return self.l1_hit_chunks + self.l2_hit_chunks

    @property
    def hit_tokens(self) -> int:
        """Return the tokens served from the cache (``lmcache_mp_lookup_hit_tokens_total``)."""
        return int(self.hit_chunks.sum(dtype=np.int64)) * self.chunk_size

    @property
    def failed_chunks(self) -> int:
        """Return the number of chunks whose store failed, over all requests."""
        return int(self.dropped_chunks.sum(dtype=np.int64))

    @property
    def hit_rate(self) -> float:
        """Return the token hit rate over whole chunks, as the live metric counts it; 0 if nothing was requested."""
        return _share(self.hit_chunks, self.asked_chunks)

    @property
    def l1_hit_rate(self) -> float:
        """Return the part of `hit_rate` that L1 served."""
        return _share(self.l1_hit_chunks, self.asked_chunks)

    @property
    def l2_hit_rate(self) -> float:
        """Return the part of `hit_rate` that L2 served."""
        return _share(self.l2_hit_chunks, self.asked_chunks)


def _share(part: Int32, whole: Int32) -> float:
    asked = int(whole.sum(dtype=np.int64))
    return int(part.sum(dtype=np.int64)) / asked if asked else 0.0
