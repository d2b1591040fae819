"""Hits per request under each way of sharing L2 between tenants. Two ways can be compared request by request."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agent_tools.models import Gain
from agent_tools.prediction.hit_rate_curve import sized_hits_per_request
from agent_tools.prediction.tenant_curves import Bools, QuotaEviction, TenantCurve, tenant_curves
from agent_tools.workload.access_log import AccessLog

from .modelled import difference
from .observation import Ints, Observation

METHOD = "exact LRU curves of the {:,} observed requests, at the average used share of each limit; block bootstrap"


@dataclass(frozen=True, eq=False)
class TenantHits:
    """One observation's requests, and how L2 enforces limits on them. Sizes are in chunks of the log."""

    log: AccessLog
    """All requests, including the ones that only warm the cache."""
    in_window: Bools
    """(requests,) mask of the requests that count."""
    eviction: QuotaEviction
    """How L2 enforces a limit."""

    @classmethod
    def of(cls, seen: Observation, eviction: QuotaEviction) -> "TenantHits":
        """Return the requests of an observation with a log."""
        assert seen.log is not None  # noqa: S101  callers have a log
        return cls(seen.log, seen.in_window, eviction)

    @cached_property
    def curves(self) -> dict[str, TenantCurve]:
        """Return each tenant's own hit rate curve by cache salt, in the log's order."""
        return {one.tenant: one for one in tenant_curves(self.log, counted=self.in_window)}

    @cached_property
    def asked(self) -> Ints:
        """Return the requested chunks of the window's requests, shape (window's requests,)."""
        return self._counted(self.log.chunks_per_request)

    def shared(self, limit_chunks: float) -> Ints:
        """Return the hits with one LRU for all tenants, shape (window's requests,).

        Tenants share no chunk, but each can evict the others' chunks.
        """
        footprint = sum(one.curve.footprint for one in self.curves.values())
        return self._counted(sized_hits_per_request(self.log, self.eviction.lru_chunks(limit_chunks, footprint)))

    def divided(self, quota_chunks: Callable[[str], float]) -> Ints:
        """Return the hits with one quota per tenant, shape (window's requests,)."""
        hits = np.zeros(len(self.log), np.int64)
        for tenant, one in self.curves.items():
            capacity = self.eviction.lru_chunks(quota_chunks(tenant), one.curve.footprint)
            hits[one.index] = one.hits_per_request(capacity)
        return self._counted(hits)

    def _counted(self, per_request: Ints) -> Ints:
        counted: Ints = per_request[self.in_window]
        return counted

    def by_tenant(self, per_request: Ints) -> dict[str, int]:
        """Return a column's sums by cache salt; the column has the shape (window's requests,)."""
        sums = np.bincount(self.log.tenants[self.in_window], per_request, len(self.curves))
        return {tenant: int(total) for tenant, total in zip(self.curves, sums, strict=True)}

    def tokens(self, chunks: int) -> int:
        """Return the tokens of chunks of the log. A chunk of a sampled log stands for several chunks."""
        return round(chunks * self.log.chunk_size / self.log.sampling_rate)

    def gain(self, before: Ints, after: Ints) -> Gain:
        """Return the difference in token hit rate on the same requests, with a 90 % interval."""
        found = difference(self.asked.astype(np.float64), *(hits[None].astype(np.float64) for hits in (before, after)))
        method = METHOD.format(len(self.asked))
        return Gain(lower=found.lower, estimate=found.estimate, upper=found.upper, method=method)
