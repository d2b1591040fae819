"""Each tenant (cache salt) alone with its part of the cache: its exact hits at every capacity, and the value of a quota.

LMCache never shares a chunk between salts. If quotas are enforced, it evicts each salt's chunks against the salt's own quota. So
a tenant's hits depend only on its own requests and quota, and one pass over its requests gives its whole curve.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .hit_rate_curve import HitRateCurve, hit_rate_curve, sized_hits_per_request
from .isolation import isolated

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class QuotaEviction:
    """The enforcement of a byte limit, on one tenant or on a whole tier.

    LMCache 0.5.6 checks once a second (``IsolatedLRU`` on L2) or once a sweep (the coordinator's fleet quotas). A salt whose
    bytes are at or above ``watermark x quota`` loses ``ratio`` of its keys, oldest first. In between it may exceed its quota.
    """

    watermark: float = 0.8
    """``trigger_watermark`` of the L2 adapter's ``eviction`` block, or the coordinator's ``--trigger-watermark``."""
    ratio: float = 0.2
    """``eviction_ratio`` of the L2 adapter's ``eviction`` block, or the coordinator's ``--eviction-ratio``."""

    @property
    def usable(self) -> float:
        """Return the share of a limit in use on average: use swings between ``watermark x (1 - ratio)`` and ``watermark``."""
        return self.watermark * (1 - min(self.ratio, 1.0) / 2)

    def lru_chunks(self, limit_chunks: float, footprint: int) -> float:
        """Return the size in chunks of the always-full LRU with about the same hits as the limit.

        If the limit never evicts any of the footprint, return the footprint.
        """
        return float(footprint) if limit_chunks * self.watermark > footprint else limit_chunks * self.usable

    def never_evicts(self, footprint: int) -> float:
        """Return the smallest limit, in chunks, under which a footprint is never evicted."""
        return (footprint + 1) / self.watermark


COORDINATOR = QuotaEviction(watermark=1.0, ratio=0.2)
"""The defaults of ``lmcache coordinator`` 0.5.6."""


@dataclass(frozen=True, eq=False)
class TenantCurve:
    """The curve of one tenant, as if it had the cache to itself."""

    tenant: str
    """The tenant's cache salt; empty for requests without a salt."""
    index: Int64
    """(requests,) positions of the tenant's requests in the whole log."""
    log: AccessLog
    """The tenant's requests only."""
    counted: Bools
    """(requests,) whether each of these requests is counted. The others only warm the tenant's part of the cache."""
    curve: HitRateCurve
    """The hits of the counted requests at every capacity. The footprint is the tenant's own."""

    def hits_per_request(self, capacity_chunks: float) -> Int64:
        """Return (requests,) prefix hits of each of the tenant's requests, in chunks, at one capacity."""
        return sized_hits_per_request(self.log, capacity_chunks)

    def useful_hits(self, eviction: QuotaEviction) -> Int64:
        """Return (n,) hits, in chunks, with an always-full LRU of 0, 1 ... n - 1 chunks in place of a quota.

        The last point stands for the smallest quota under which none of the tenant's chunks is ever evicted. More cannot be used.
        """
        last = int(np.ceil(eviction.never_evicts(self.curve.footprint) * eviction.usable))
        known = self.curve.by_chunk()
        hits: Int64 = known[np.minimum(np.arange(last + 1), len(known) - 1)]
        hits[last] = known[-1]
        return hits


def tenant_curves(log: AccessLog, *, counted: Bools | None = None) -> tuple[TenantCurve, ...]:
    """Return the curve of each tenant that the log names, in the log's order. A tenant without requests has a curve without hits.

    Cost: one pass over each tenant's requests, so one pass over the log in total.

    Args:
        log: The recorded lookups, from an empty cache. For a sampled log (`sampling_rate`), curves are in recorded chunks.
        counted: (requests,) the requests whose hits are counted. Default: all requests.

    Raises:
        ValueError: The log breaks the contract of `AccessLog`.
    """
    log = isolated(log)
    chosen = np.ones(len(log), np.bool_) if counted is None else counted
    return tuple(
        _alone(log, tenant, np.flatnonzero(log.tenants == label), chosen) for label, tenant in enumerate(log.tenant_names)
    )


def _alone(log: AccessLog, tenant: str, index: Int64, chosen: Bools) -> TenantCurve:
    own, counted = log.select(index), chosen[index]
    return TenantCurve(tenant, index, own, counted, hit_rate_curve(own, counted=counted))
