"""The configuration of a cache, converted to a setting of the server model."""

from dataclasses import replace

import numpy as np

from agent_tools.models import MB, CacheConfig, EvictionPolicy, L2Adapter
from agent_tools.models.config import DEFAULT_TENANT

from .server_setting import ServerSetting

MODELLED = {"fs": False, "fs_native": False, "resp": False, "valkey": False, "s3": False, "mock": True, "dax": True}
"""The L2 adapters that the model covers, and whether a full adapter refuses chunks between its eviction ticks (LMCache 0.5.6)."""


def setting_of(config: CacheConfig, chunk_bytes: float) -> ServerSetting | None:
    """Return the configuration as a `ServerSetting`, or ``None`` if its size or eviction is unknown or not modelled.

    Args:
        config: The settings in force.
        chunk_bytes: Bytes of one chunk in L1.
    """
    size, watermark, ratio = config.max_size_mb, config.eviction_watermark, config.eviction_ratio
    if size is None or watermark is None or ratio is None:
        return None
    setting = ServerSetting(
        capacity_chunks=size * MB / chunk_bytes,
        watermark=watermark,
        ratio=ratio,
        policy="noop" if config.eviction_policy is EvictionPolicy.NOOP else "LRU",
    )
    return _with_second_tier(setting, config, chunk_bytes) if config.l2_adapters else setting


def _with_second_tier(setting: ServerSetting, config: CacheConfig, chunk_bytes: float) -> ServerSetting | None:
    """Add the L2 tier, or return ``None`` if it is not modelled.

    The model covers one L2 adapter with known settings that keeps KV unchanged and receives everything that is stored.
    """
    first, *others = config.l2_adapters or ()
    if others or not first.settings_known or first.type not in MODELLED or "serde" in first.settings:
        return None
    if config.l2_store_policy not in {None, "default"}:
        return None
    eviction = first.eviction or {}
    return replace(
        setting,
        l2_capacity_chunks=np.inf if first.size_mb is None else first.size_mb * MB / chunk_bytes,
        l2_prefetch_policy=config.l2_prefetch_policy or "default",  # type: ignore[arg-type]  # one of the two, by its pattern
        l2_watermark=eviction.get("trigger_watermark", 0.8),
        l2_ratio=eviction.get("eviction_ratio", 0.2),
        l2_evicts=_evicts(first),
        l2_hard_limit=MODELLED[first.type],
        tenant_quotas=_quotas(config, chunk_bytes) if first.by_tenant else None,
    )


def _evicts(adapter: L2Adapter) -> bool:
    return adapter.eviction is not None and (adapter.size_mb is not None or adapter.by_tenant)


def _quotas(config: CacheConfig, chunk_bytes: float) -> dict[str, float]:
    quotas = config.tenant_quotas_mb or {}
    return {"" if tenant == DEFAULT_TENANT else tenant: limit * MB / chunk_bytes for tenant, limit in quotas.items()}
