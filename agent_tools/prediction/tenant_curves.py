"""Each tenant (cache salt) alone with a part of the cache: its exact hits at every capacity, and what a quota is worth to it.

LMCache never shares a chunk between salts, and evicts each salt's chunks against its own quota where quotas are enforced. So a
tenant's hits depend on its own requests and its own quota only, and its requests alone give its whole curve in one pass.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .hit_rate_curve import HitRateCurve, hit_rate_curve, hits_per_request
from .isolation import isolated

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class QuotaEviction:
    """How a byte limit is enforced, on one tenant or on a whole tier.

    LMCache 0.5.6 looks once a second (``IsolatedLRU`` on L2) or once a sweep (the coordinator's fleet quotas): a salt whose bytes
    are at or above ``watermark x quota`` loses ``ratio`` of its keys, oldest first. In between it may outgrow its quota.
    """

    watermark: float = 0.8
    """``trigger_watermark`` of the L2 adapter's ``eviction`` block; the coordinator's ``--trigger-watermark``."""
    ratio: float = 0.2
    """``eviction_ratio`` of that block; the coordinator's ``--eviction-ratio``."""

    @property
    def usable(self) -> float:
        """The share of a limit that is in use on average: it swings between ``watermark x (1 - ratio)`` and ``watermark``."""
        return self.watermark * (1 - min(self.ratio, 1.0) / 2)

    def lru_chunks(self, limit_chunks: float, footprint: int) -> float:
        """The always-full LRU that gives about the same hits as a limit, chunks; all of a footprint that is never evicted."""
        return float(footprint) if limit_chunks * self.watermark > footprint else limit_chunks * self.usable

    def never_evicts(self, footprint: int) -> float:
        """The smallest limit, in chunks, under which a footprint is never evicted."""
        return (footprint + 1) / self.watermark


COORDINATOR = QuotaEviction(watermark=1.0, ratio=0.2)
"""Defaults of ``lmcache coordinator`` 0.5.6."""


@dataclass(frozen=True, eq=False)
class TenantCurve:
    """One tenant as if it had the cache to itself."""

    tenant: str
    """Its cache salt; empty for requests without one."""
    index: Int64
    """(requests,) where its requests stand in the whole log."""
    log: AccessLog
    """Its requests only."""
    counted: Bools
    """(requests,) of these, the ones whose hits are counted; the others only warm its part of the cache."""
    curve: HitRateCurve
    """Hits of the counted ones at every capacity; its footprint is the tenant's own."""

    def hits_per_request(self, capacity_chunks: float) -> Int64:
        """(requests,) prefix hits of each of its requests, in chunks, at one capacity."""
        return hits_per_request(self.log, capacity_chunks)

    def useful_hits(self, eviction: QuotaEviction) -> Int64:
        """(n,) hits, in chunks, with an always-full LRU of 0, 1 ... n - 1 chunks in place of a quota.

        The last point stands for the smallest quota under which nothing of the tenant's is ever evicted: no more can be used.
        """
        last = int(np.ceil(eviction.never_evicts(self.curve.footprint) * eviction.usable))
        hits: Int64 = self.curve.hit_chunks[np.minimum(np.arange(last + 1), len(self.curve.hit_chunks) - 1)]
        hits[last] = self.curve.hit_chunks[-1]
        return hits


def tenant_curves(log: AccessLog, *, counted: Bools | None = None) -> tuple[TenantCurve, ...]:
    """The curve of each tenant that the log names, in its order; a tenant without requests has one without hits.

    Cost: one pass over each tenant's requests, so one over the log in all.

    Args:
        log: What was asked, from an empty cache. Of a sampled log (`AccessLog.sampling_rate`) curves are in recorded chunks.
        counted: (requests,) the requests whose hits are counted; all by default.

    Raises:
        ValueError: If the log breaks the contract of `AccessLog`.
    """
    log = isolated(log)
    chosen = np.ones(len(log), np.bool_) if counted is None else counted
    return tuple(
        _alone(log, tenant, np.flatnonzero(log.tenants == label), chosen) for label, tenant in enumerate(log.tenant_names)
    )


def _alone(log: AccessLog, tenant: str, index: Int64, chosen: Bools) -> TenantCurve:
    own, counted = log.select(index), chosen[index]
    return TenantCurve(tenant, index, own, counted, hit_rate_curve(own, counted=counted))
