"""Which settings of a simulated cache can be changed, and how an update changes them, as on an `lmcache server` of our own."""

from agent_tools.deployments.server.command_line import L1_POLICIES
from agent_tools.deployments.server.live_change import adapter_change
from agent_tools.deployments.server.module_client import LiveAdapter
from agent_tools.deployments.server.settable import BELOW_PRIMARY, LIVE_PARTS, NOT_A_SETTING, POLICY_REFUSED, SUPPORT
from agent_tools.models import SETTINGS, CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter, Support, SupportLevel
from agent_tools.prediction.configured import setting_of
from agent_tools.prediction.in_process_model import InProcessPolicy

LIVE = Support(
    level=SupportLevel.LIVE, reason="simulated, as on a server with our module: takes effect now; L1 keeps its contents"
)
IN_PROCESS: dict[EvictionPolicy, InProcessPolicy] = {EvictionPolicy.LFU: "LFU", EvictionPolicy.FIFO: "FIFO"}
"""Policies that only in-process LMCache has. With one of them the simulated cache is modelled on in-process LMCache."""
POLICIES = (*L1_POLICIES, *IN_PROCESS)
"""Policies of L1 that a simulated cache can have."""
ANOTHER_MODEL = (
    "only in-process LMCache has the policies lfu and fifo: the simulated cache is then modelled on it, which evicts chunk by"
    " chunk when L1 is full, has no watermark and here no L2, and reads its settings when it starts"
)
NOT_MODELLED = (
    "the model of a running server covers at most one L2 adapter, which stores all KV unchanged, and no quotas of tenants"
)


def support_of(
    config: CacheConfig, primary_mb: float, update: ConfigUpdate | None, obstacle: str | None = None
) -> dict[str, Support]:
    """Return for every setting how it can be changed. With an update, return how it can be changed to these values.

    Args:
        config: The settings in force.
        primary_mb: L1's size at the start, MB. A running server cannot become smaller.
        update: The wanted change.
        obstacle: Why the traffic cannot be cut into chunks of the updated size.
    """
    live = {"max_size_mb", *(setting for settings in LIVE_PARTS.values() for setting in settings)}
    support = {setting: LIVE if setting in live else SUPPORT.get(setting, NOT_A_SETTING) for setting in SETTINGS}
    support["chunk_size"] = _restart("it is a start-up flag") if obstacle is None else _never(obstacle)
    support["tenant_quotas_mb"] = _never(NOT_MODELLED)
    support["l2_store_policy"] = _never(f"{NOT_MODELLED}; l2_store_policy is always default")
    policy = config.eviction_policy if update is None or update.eviction_policy is None else update.eviction_policy
    if policy in IN_PROCESS or config.eviction_policy in IN_PROCESS:
        return support | _with_in_process(config, policy, update)
    if update is None:
        return support
    if update.max_size_mb is not None and update.max_size_mb < primary_mb:
        support["max_size_mb"] = _restart(BELOW_PRIMARY.format(primary_mb))
    if update.eviction_policy is not None and update.eviction_policy not in L1_POLICIES:
        support["eviction_policy"] = _never(POLICY_REFUSED)
    if update.l2_adapters is not None:
        support["l2_adapters"] = _adapter_support(config, update)
    return support


def shown(config: CacheConfig) -> CacheConfig:
    """Return the settings as they are reported: in-process LMCache has none of these."""
    if config.eviction_policy not in IN_PROCESS:
        return config
    return config.model_copy(
        update=dict.fromkeys(("eviction_watermark", "eviction_ratio", "l2_store_policy", "l2_prefetch_policy"))
    )


def _with_in_process(config: CacheConfig, policy: EvictionPolicy | None, update: ConfigUpdate | None) -> dict[str, Support]:
    """Return what differs if the cache is, or becomes, one modelled on in-process LMCache: a restart sets all it has."""
    restart, never = _restart(ANOTHER_MODEL), _never(ANOTHER_MODEL)
    support = dict.fromkeys(("max_size_mb", "eviction_policy", "auto_eviction"), restart)
    others = ("eviction_watermark", "eviction_ratio", "l2_adapters", "l2_prefetch_policy")
    support |= dict.fromkeys(others, never if policy in IN_PROCESS else restart)
    adapters = config.l2_adapters if update is None or update.l2_adapters is None else update.l2_adapters
    if policy not in POLICIES:
        support["eviction_policy"] = _never(POLICY_REFUSED)
    elif policy not in IN_PROCESS:
        support["l2_adapters"] = restart if update is None or is_modelled(updated(config, update)) else _never(NOT_MODELLED)
    elif adapters:
        support["eviction_policy"] = never
    else:
        support["l2_adapters"] = restart if config.l2_adapters else never
    return support


def updated(config: CacheConfig, update: ConfigUpdate) -> CacheConfig:
    """Return the settings in force after an update."""
    wanted = update.known()
    if update.auto_eviction and config.eviction_policy is EvictionPolicy.NOOP:
        wanted.setdefault("eviction_policy", EvictionPolicy.LRU)  # the usual policy of LMCache
    after = CacheConfig.model_validate(config.known() | wanted)
    return after.model_copy(
        update={
            "auto_eviction": after.eviction_policy is not EvictionPolicy.NOOP,
            "min_prefix_length": after.chunk_size,
        }
    )


def is_modelled(config: CacheConfig) -> bool:
    """Return whether the model of a running server covers these settings."""
    setting = setting_of(config, 1.0)
    return setting is not None and setting.tenant_quotas is None


def another_store(old: tuple[L2Adapter, ...], new: tuple[L2Adapter, ...]) -> bool:
    """Return whether L2 loses its contents when its adapters change from `old` to `new`."""
    return len(old) != len(new) or not all(one.same_store(other) for one, other in zip(old, new, strict=True))


def _adapter_support(config: CacheConfig, update: ConfigUpdate) -> Support:
    if not is_modelled(updated(config, update)):
        return _never(NOT_MODELLED)
    live = [LiveAdapter(number, adapter) for number, adapter in enumerate(config.l2_adapters or ())]
    change = adapter_change(live, update.l2_adapters or ())
    return _restart(change) if isinstance(change, str) else LIVE


def _restart(reason: str) -> Support:
    return Support(level=SupportLevel.RESTART, reason=f"simulated, as on a real server: {reason}; a restart empties L1")


def _never(reason: str) -> Support:
    return Support(level=SupportLevel.UNSUPPORTED, reason=reason)
