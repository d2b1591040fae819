"""The recommended L2 quotas of the tenants, and what they gain. Sizes are MB = 2**20 bytes."""

from typing import Annotated

from pydantic import Field

from agent_tools.models import Gain, Verdict, Window
from agent_tools.models.config import DEFAULT_TENANT, Frozen
from agent_tools.models.metrics import Count

Size = Annotated[float, Field(ge=0)]


class TenantQuota(Frozen):
    """One tenant's requests, and the hits that its quota would give it."""

    tenant: str
    """Cache salt. Empty for requests without one."""
    requests: Count
    """The tenant's lookups in the window that the access log holds."""
    requested_tokens: Count
    """Tokens of whole chunks that these lookups requested."""
    hit_tokens_now: Count
    """Hit tokens in the window: LMCache's own count, or by the tenant's curve if `TenantQuotas.measured` is false."""
    hit_tokens_shared: Count
    """Hit tokens that one shared L2 of the same budget would give."""
    hit_tokens_quota: Count
    """Hit tokens that `quota_mb` would give."""
    hit_tokens_most: Count
    """Hit tokens if L2 never evicted any of the tenant's chunks."""
    footprint_mb: Size
    """Size of all distinct chunks that the tenant requested since the log begins."""
    quota_now_mb: Size | None
    """The quota in force. ``None`` if the tenant has no quota, or if L2 enforces no quotas."""
    quota_mb: Size
    """The recommended quota."""


class TenantQuotas(Frozen):
    """A division of L2 among the tenants of a cache, and what it gains."""

    cache: str
    """Name of the cache in caches.toml."""
    window: Window
    """The window whose requests are counted."""
    budget_mb: Size
    """Largest sum of all quotas."""
    floor_mb: Size
    """Smallest quota of each tenant."""
    spare_mb: Size
    """Part of the budget that would not have added hits for any tenant in the window."""
    tenants: tuple[TenantQuota, ...]
    """All tenants, the one with the most requested tokens first."""
    measured: bool
    """Whether `hit_tokens_now` is LMCache's own count."""
    requested_tokens: Count
    """Tokens of whole chunks that were requested in the window."""
    hit_tokens_shared: Count
    """Hit tokens with one shared L2 of the same budget (policy ``LRU``; tenants still share no chunk)."""
    hit_tokens_equal: Count
    """Hit tokens with an equal quota for each tenant."""
    hit_tokens_quotas: Count
    """Hit tokens with the recommended quotas."""
    gain: Gain
    """Gain of the recommended quotas over the quotas in force. Without quotas in force: over one shared L2 of the same budget."""
    gain_over_shared: Gain
    """Gain of the recommended quotas over one shared L2 of the same budget."""
    verdict: Verdict
    """``act`` only if the lower end of `gain` is worth a change."""
    why: str
    """The reason for the verdict, in one or two sentences."""
    notes: tuple[str, ...] = ()
    """Warnings to read before using the quotas, one sentence each."""

    @property
    def quotas_mb(self) -> dict[str, float]:
        """Return the recommended quotas for `ConfigUpdate.tenant_quotas_mb`. The empty salt has LMCache's name for it."""
        return {one.tenant or DEFAULT_TENANT: one.quota_mb for one in self.tenants}
