"""Hits of the window's requests under each way of sharing L2 between tenants, request by request, so that they can be paired."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agent_tools.models import Gain
from agent_tools.prediction.hit_rate_curve import hits_per_request
from agent_tools.prediction.tenant_curves import Bools, QuotaEviction, TenantCurve, tenant_curves
from agent_tools.workload.access_log import AccessLog

from .modelled import difference
from .observation import Ints, Observation

METHOD = "exact LRU curves of the {} observed requests, at the share of each limit that is in use on average; block bootstrap"


@dataclass(frozen=True, eq=False)
class TenantHits:
    """One observation's requests, and how limits are enforced on them. Sizes are in chunks of the log."""

    log: AccessLog
    """All that warms the cache."""
    in_window: Bools
    """(requests,) which of it is counted."""
    eviction: QuotaEviction
    """How a limit binds."""

    @classmethod
    def of(cls, seen: Observation, eviction: QuotaEviction) -> "TenantHits":
        """The requests of an observation, which has a log."""
        assert seen.log is not None  # noqa: S101  callers have a log
        return cls(seen.log, seen.in_window, eviction)

    @cached_property
    def curves(self) -> dict[str, TenantCurve]:
        """Each tenant alone, by cache salt, in the log's order."""
        return {one.tenant: one for one in tenant_curves(self.log, counted=self.in_window)}

    @cached_property
    def asked(self) -> Ints:
        """(window's requests,) chunks asked for."""
        return self._counted(self.log.chunks_per_request)

    def shared(self, limit_chunks: float) -> Ints:
        """(window's requests,) hits of one LRU for all; salts share no chunk, but push each other's out."""
        footprint = sum(one.curve.footprint for one in self.curves.values())
        return self._counted(hits_per_request(self.log, self.eviction.lru_chunks(limit_chunks, footprint)))

    def divided(self, quota_chunks: Callable[[str], float]) -> Ints:
        """(window's requests,) hits when each tenant has a quota of its own."""
        hits = np.zeros(len(self.log), np.int64)
        for tenant, one in self.curves.items():
            capacity = self.eviction.lru_chunks(quota_chunks(tenant), one.curve.footprint)
            hits[one.index] = one.hits_per_request(capacity)
        return self._counted(hits)

    def _counted(self, per_request: Ints) -> Ints:
        counted: Ints = per_request[self.in_window]
        return counted

    def by_tenant(self, per_request: Ints) -> dict[str, int]:
        """Sums of a column of the window's requests, by cache salt."""
        sums = np.bincount(self.log.tenants[self.in_window], per_request, len(self.curves))
        return {tenant: int(total) for tenant, total in zip(self.curves, sums, strict=True)}

    def tokens(self, chunks: int) -> int:
        """Tokens that chunks of the log stand for; each of a sampled log stands for several."""
        return round(chunks * self.log.chunk_size / self.log.sampling_rate)

    def gain(self, before: Ints, after: Ints) -> Gain:
        """Difference of the token hit rate on the same requests, with its 90 % interval."""
        found = difference(self.asked.astype(np.float64), *(hits[None].astype(np.float64) for hits in (before, after)))
        method = METHOD.format(len(self.asked))
        return Gain(lower=found.lower, estimate=found.estimate, upper=found.upper, method=method)
