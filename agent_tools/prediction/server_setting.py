"""The settings of an `lmcache server` that change its hits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

L1Policy = Literal["LRU", "ARC", "noop", "IsolatedLRU"]
PrefetchPolicy = Literal["default", "retain"]


@dataclass(frozen=True)
class ServerSetting:
    """One configuration of `lmcache server` 0.5.6. Sizes are in chunks and may be fractional (bytes / chunk bytes)."""

    capacity_chunks: float
    """L1 size, in chunks."""
    watermark: float = 0.8
    """``--eviction-trigger-watermark``: the used share of L1 at which an eviction tick evicts. Above 1 it never evicts."""
    ratio: float = 0.2
    """``--eviction-ratio``: the share of the keys that one tick drops. LMCache clamps it to 0..1."""
    policy: L1Policy = "LRU"
    """``--eviction-policy``. ARC equals LRU here, because END_SESSION touches every key of a request again. noop never evicts.
    IsolatedLRU never evicts from L1, because its eviction thread dies at its first eviction."""
    l2_capacity_chunks: float = 0
    """L2 size, in chunks. 0: no L2. ``inf``: an L2 without a bound (``fs``)."""
    l2_prefetch_policy: PrefetchPolicy = "default"
    """``--l2-prefetch-policy``. default: chunks loaded from L2 leave L1 after the read. retain: they stay in L1."""
    l2_watermark: float = 0.8
    """``trigger_watermark`` of the L2 adapter's ``eviction`` block."""
    l2_ratio: float = 0.2
    """``eviction_ratio`` of the L2 adapter's ``eviction`` block."""
    l2_evicts: bool = True
    """Whether the L2 adapter has an ``eviction`` block."""
    l2_hard_limit: bool = False
    """True: a full L2 refuses chunks between ticks (``mock``, ``dax``). False: it exceeds its size (``fs_native``, ``resp``)."""
    tenant_quotas: Mapping[str, float] | None = field(default=None, hash=False)
    """L2 chunks per tenant (cache salt), enforced by ``IsolatedLRU`` on L2. A tenant that is not named has 0. ``None``: plain
    LRU."""

    def __post_init__(self) -> None:
        for name in ("capacity_chunks", "watermark", "ratio", "l2_capacity_chunks", "l2_watermark", "l2_ratio"):
            value = getattr(self, name)
            if math.isnan(value) or value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for tenant, quota in (self.tenant_quotas or {}).items():
            if math.isnan(quota) or quota < 0:
                raise ValueError(f"the quota of tenant {tenant!r} must be 0 or more, got {quota}")

    @property
    def evicts(self) -> bool:
        """Return whether L1 ever evicts under this policy."""
        return self.policy in ("LRU", "ARC")
