"""Which settings of a simulated cache can be changed, and what an update makes of them: as on a private `lmcache server`."""

from agent_tools.deployments.server.command_line import L1_POLICIES
from agent_tools.deployments.server.live_change import adapter_change
from agent_tools.deployments.server.module_client import LiveAdapter
from agent_tools.deployments.server.settable import BELOW_PRIMARY, LIVE_PARTS, NOT_A_SETTING, POLICY_REFUSED, SUPPORT
from agent_tools.models import SETTINGS, CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter, Support, SupportLevel
from agent_tools.prediction.configured import setting_of

LIVE = Support(
    level=SupportLevel.LIVE, reason="simulated, as on a server with our module: in force from now on, L1 keeps its contents"
)
NOT_MODELLED = (
    "the model of a running server covers at most one L2 adapter that stores all KV as it is, without quotas of tenants"
)


def support_of(
    config: CacheConfig, primary_mb: float, update: ConfigUpdate | None, obstacle: str | None = None
) -> dict[str, Support]:
    """What can be changed, for every setting; with an update, for those very values.

    Args:
        config: The settings in force.
        primary_mb: The size L1 was started with: a server cannot get smaller than that while it runs.
        update: What is to change.
        obstacle: Why the traffic cannot be told in chunks of the updated size.
    """
    live = {"max_size_mb", *(setting for settings in LIVE_PARTS.values() for setting in settings)}
    support = {setting: LIVE if setting in live else SUPPORT.get(setting, NOT_A_SETTING) for setting in SETTINGS}
    support["chunk_size"] = _restart("it is a start-up flag") if obstacle is None else _never(obstacle)
    support["tenant_quotas_mb"] = _never(NOT_MODELLED)
    support["l2_store_policy"] = _never(f"{NOT_MODELLED}; l2_store_policy is always default")
    if update is None:
        return support
    if update.max_size_mb is not None and update.max_size_mb < primary_mb:
        support["max_size_mb"] = _restart(BELOW_PRIMARY.format(primary_mb))
    if update.eviction_policy is not None and update.eviction_policy not in L1_POLICIES:
        support["eviction_policy"] = _never(POLICY_REFUSED)
    if update.l2_adapters is not None:
        support["l2_adapters"] = _adapter_support(config, update)
    return support


def updated(config: CacheConfig, update: ConfigUpdate) -> CacheConfig:
    """The settings in force after an update."""
    wanted = update.known()
    if update.auto_eviction and config.eviction_policy is EvictionPolicy.NOOP:
        wanted.setdefault("eviction_policy", EvictionPolicy.LRU)  # LMCache's usual one
    after = CacheConfig.model_validate(config.known() | wanted)
    return after.model_copy(
        update={
            "auto_eviction": after.eviction_policy is not EvictionPolicy.NOOP,
            "min_prefix_length": after.chunk_size,
        }
    )


def is_modelled(config: CacheConfig) -> bool:
    """Whether the model of a running server covers these settings."""
    setting = setting_of(config, 1.0)
    return setting is not None and setting.tenant_quotas is None


def another_store(old: tuple[L2Adapter, ...], new: tuple[L2Adapter, ...]) -> bool:
    """Whether what L2 holds is gone when its adapters become others."""
    return len(old) != len(new) or not all(one.same_store(other) for one, other in zip(old, new, strict=True))


def _adapter_support(config: CacheConfig, update: ConfigUpdate) -> Support:
    if not is_modelled(updated(config, update)):
        return _never(NOT_MODELLED)
    live = [LiveAdapter(number, adapter) for number, adapter in enumerate(config.l2_adapters or ())]
    change = adapter_change(live, update.l2_adapters or ())
    return _restart(change) if isinstance(change, str) else LIVE


def _restart(reason: str) -> Support:
    return Support(level=SupportLevel.RESTART, reason=f"simulated, as on a real server: {reason}; a restart loses all of L1")


def _never(reason: str) -> Support:
    return Support(level=SupportLevel.UNSUPPORTED, reason=reason)
