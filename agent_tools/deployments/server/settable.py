"""Which settings of an `lmcache server` 0.5.6 can be changed, how, and what to do about those that cannot."""

from collections.abc import Sequence

from agent_tools.models import Support, SupportLevel

DRAM = "L1 is plain memory, whose size is a start-up flag; start it with --l1-devdax-path FILE --no-l1-use-lazy to make it live"
BELOW_PRIMARY = "the primary arena of {:g} MB cannot be removed from a running server, so less than that needs a restart"
ARENAS = "L1 arenas are added in and drained from {}; L1 keeps its contents"
NO_FOLDER = "the directory names no arena_folder on the server's host in which L1 arenas could be made"
POLICY_REFUSED = (
    "L1 of `lmcache server` has LRU, ARC and noop only; IsolatedLRU on L1 is accepted by 0.5.6 but kills the eviction thread"
)
_FLAG = "it is a start-up flag of `lmcache server` 0.5.6; a restart loses all of L1 and may end a vLLM in front"
_MODULE = f"{_FLAG}; with --server-module agent_tools.server_module (docs/server_module.md) it is changed live"
NOT_A_SETTING = Support(level=SupportLevel.UNSUPPORTED, reason="`lmcache server` has no such setting")
SUPPORT = {
    "enabled": Support(
        level=SupportLevel.UNSUPPORTED, reason="`lmcache server` has no off switch; take the connector out of the engine"
    ),
    "eviction_policy": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "auto_eviction": Support(level=SupportLevel.RESTART, reason=f"false is policy noop; {_MODULE}"),
    "enable_prefix_caching": Support(
        level=SupportLevel.UNSUPPORTED, reason="prefix caching is what LMCache does; it is always on"
    ),
    "min_prefix_length": Support(level=SupportLevel.UNSUPPORTED, reason="one chunk is the shortest prefix; change chunk_size"),
    "cache_warmup": Support(
        level=SupportLevel.UNSUPPORTED, reason="it is an operation, not a setting: warm a known prefix from L2"
    ),
    "enable_sharing": Support(
        level=SupportLevel.UNSUPPORTED, reason="tenants are kept apart by the cache salt that the engine's client sends"
    ),
    "max_concurrent_users": Support(level=SupportLevel.UNSUPPORTED, reason="LMCache bounds tenants by quotas, not by number"),
    "chunk_size": Support(level=SupportLevel.RESTART, reason=f"{_FLAG}, and makes all of L2 unreachable"),
    "eviction_watermark": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "eviction_ratio": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "l2_adapters": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "l2_store_policy": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "l2_prefetch_policy": Support(level=SupportLevel.RESTART, reason=_MODULE),
}

EVICTION = Support(level=SupportLevel.LIVE, reason="the server's module changes it: no key is lost, the order of eviction stays")
L2_POLICY = Support(level=SupportLevel.LIVE, reason="the server's module changes it from the next request on")
L2_ADAPTERS = Support(
    level=SupportLevel.LIVE,
    reason="the server's module attaches and detaches adapters and changes their eviction; another capacity needs a restart",
)
LIVE_PARTS: dict[str, dict[str, Support]] = {
    "eviction": dict.fromkeys(("eviction_policy", "auto_eviction", "eviction_watermark", "eviction_ratio"), EVICTION),
    "l2": {"l2_adapters": L2_ADAPTERS, "l2_store_policy": L2_POLICY, "l2_prefetch_policy": L2_POLICY},
}
"""Part of the server's module -> the settings that it makes live."""
MODULE_ARENAS = "the server's module adds and drains L1 arenas, up to {:g} MB in all; L1 keeps its contents"
ABOVE_LIMIT = "the server's module may make L1 no larger than {:g} MB (max_l1_mb of its config)"
SECRETS_NOT_KEPT = "secrets of an L2 adapter are shown as *** and kept nowhere; give the adapters with their secrets"

NO_ISOLATED_L2 = Support(
    level=SupportLevel.UNSUPPORTED,
    reason="quotas are enforced by an L2 adapter that evicts by tenant (IsolatedLRU) or a fleet's coordinator; here is neither",
)
QUOTAS = Support(
    level=SupportLevel.LIVE,
    reason="enforced within a second; a tenant that is not listed loses all it has in L2, and a restart forgets all quotas",
)


def wiped(tenants: Sequence[str]) -> Support:
    """For quotas that leave out tenants that are alive."""
    return Support(
        level=SupportLevel.UNSUPPORTED,
        reason=f"L2 would delete all that tenants without a quota have in it: list {', '.join(tenants)} as well",
    )
