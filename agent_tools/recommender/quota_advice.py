"""The answer to "which tenant should get how much of L2, and is it worth it?". Sizes are MB = 2**20 bytes."""

from typing import Annotated

from pydantic import Field

from agent_tools.models import Gain, Verdict, Window
from agent_tools.models.config import DEFAULT_TENANT, Frozen
from agent_tools.models.metrics import Count

Size = Annotated[float, Field(ge=0)]


class TenantQuota(Frozen):
    """One tenant: what it asked for, and what its quota would give it."""

    tenant: str
    """Cache salt; empty for requests without one."""
    requests: Count
    """Its lookups in the window, as far as the access log has them."""
    requested_tokens: Count
    """Tokens of whole chunks that these asked for."""
    hit_tokens_now: Count
    """Tokens it was served: as LMCache counted them, or (`TenantQuotas.measured` is false) by its curve."""
    hit_tokens_shared: Count
    """Tokens it would get from one shared L2 of the same budget."""
    hit_tokens_quota: Count
    """Tokens it would get with `quota_mb`."""
    hit_tokens_most: Count
    """Tokens it would get if nothing of it were ever evicted."""
    footprint_mb: Size
    """All distinct chunks it asked for since the log begins."""
    quota_now_mb: Size | None
    """The quota in force; ``None`` when it has none, or none are enforced."""
    quota_mb: Size
    """The quota that is recommended."""


class TenantQuotas(Frozen):
    """L2 divided among the tenants of a cache, and what that is worth."""

    cache: str
    """Name of the cache in the operator's directory."""
    window: Window
    """The span of time whose requests are counted."""
    budget_mb: Size
    """What the quotas may come to."""
    floor_mb: Size
    """What each tenant gets at least."""
    spare_mb: Size
    """What no tenant that reuses anything could use in the window."""
    tenants: tuple[TenantQuota, ...]
    """Those that asked for most first."""
    measured: bool
    """Whether the hits of now are LMCache's own count."""
    requested_tokens: Count
    """Tokens of whole chunks asked for in the window."""
    hit_tokens_shared: Count
    """Tokens served from one shared L2 of the same budget (policy ``LRU``; salts still share no chunk)."""
    hit_tokens_equal: Count
    """Tokens served with an equal quota for each tenant."""
    hit_tokens_quotas: Count
    """Tokens served with the quotas that are recommended."""
    gain: Gain
    """The recommended quotas against what there is: the quotas in force, else one shared L2 of the same budget."""
    gain_over_shared: Gain
    """The recommended quotas against one shared L2 of the same budget."""
    verdict: Verdict
    """``act`` only if the lower end of `gain` is worth a change."""
    why: str
    """One or two sentences."""
    notes: tuple[str, ...] = ()
    """What to know before using it, one sentence each."""

    @property
    def quotas_mb(self) -> dict[str, float]:
        """The recommended quotas as `ConfigUpdate.tenant_quotas_mb` takes them: the empty salt by LMCache's name for it."""
        return {one.tenant or DEFAULT_TENANT: one.quota_mb for one in self.tenants}
