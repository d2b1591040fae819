"""Which settings of an `lmcache server` 0.5.6 can be changed, how, and what to do about the others."""

from collections.abc import Sequence

from agent_tools.models import Support, SupportLevel
from agent_tools.plain import plain

DRAM = "L1 is plain memory, whose size is a start-up flag; start with --l1-devdax-path FILE --no-l1-use-lazy to change it live"
BELOW_PRIMARY = "a running server cannot remove its primary arena of {:g} MB, so a smaller size needs a restart"
ARENAS = "we add and drain L1 arenas in {}; L1 keeps its contents"
NO_FOLDER = "caches.toml sets no arena_folder on the server's host for L1 arenas"
POLICY_REFUSED = (
    "L1 of `lmcache server` supports only LRU, ARC and noop; LMCache 0.5.6 accepts IsolatedLRU on L1, but then the eviction"
    " thread dies"
)
_FLAG = "it is a start-up flag of `lmcache server` 0.5.6; a restart empties L1 and may end a vLLM in front"
_MODULE = f"{_FLAG}; with --server-module agent_tools.server_module (docs/server_module.md) it changes live"
NOT_A_SETTING = Support(level=SupportLevel.UNSUPPORTED, reason="`lmcache server` has no such setting")
SUPPORT = {
    "enabled": Support(
        level=SupportLevel.UNSUPPORTED, reason="`lmcache server` has no off switch; remove the connector from the engine"
    ),
    "eviction_policy": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "auto_eviction": Support(level=SupportLevel.RESTART, reason=f"false means policy noop; {_MODULE}"),
    "enable_prefix_caching": Support(level=SupportLevel.UNSUPPORTED, reason="LMCache's prefix caching is always on"),
    "min_prefix_length": Support(level=SupportLevel.UNSUPPORTED, reason="one chunk is the shortest prefix; change chunk_size"),
    "cache_warmup": Support(
        level=SupportLevel.UNSUPPORTED, reason="this is an operation, not a setting: warm a known prefix from L2"
    ),
    "enable_sharing": Support(
        level=SupportLevel.UNSUPPORTED, reason="the cache salt that the engine's client sends separates the tenants"
    ),
    "max_concurrent_users": Support(
        level=SupportLevel.UNSUPPORTED, reason="LMCache limits tenants by quotas, not by their number"
    ),
    "chunk_size": Support(level=SupportLevel.RESTART, reason=f"{_FLAG}, and makes all of L2 unusable"),
    "eviction_watermark": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "eviction_ratio": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "l2_adapters": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "l2_store_policy": Support(level=SupportLevel.RESTART, reason=_MODULE),
    "l2_prefetch_policy": Support(level=SupportLevel.RESTART, reason=_MODULE),
}

EVICTION = Support(
    level=SupportLevel.LIVE, reason="the server's module changes it; no key is lost, and the order of eviction stays"
)
L2_POLICY = Support(level=SupportLevel.LIVE, reason="the server's module changes it from the next request on")
L2_ADAPTERS = Support(
    level=SupportLevel.LIVE,
    reason="the server's module attaches and detaches adapters and changes their eviction; a new capacity needs a restart",
)
NOT_LISTED = Support(
    level=SupportLevel.RESTART,
    reason="the adapter is not listed in the module's l2_adapters, so it cannot be attached live; a restart loses all of L1"
    " and may end a vLLM in front",
)
LIVE_PARTS: dict[str, dict[str, Support]] = {
    "eviction": dict.fromkeys(("eviction_policy", "auto_eviction", "eviction_watermark", "eviction_ratio"), EVICTION),
    "l2": {"l2_adapters": L2_ADAPTERS, "l2_store_policy": L2_POLICY, "l2_prefetch_policy": L2_POLICY},
}
"""The settings that each part of the server's module makes live."""
SEVERAL_POOLS = dict.fromkeys(
    ("max_size_mb", *LIVE_PARTS["eviction"]),
    Support(
        level=SupportLevel.RESTART,
        reason="this server has several L1 pools, each with a size and an eviction of its own; a restart empties them and may"
        " end a vLLM in front",
    ),
)
"""Settings that are not changed live where there are several pools, since nothing says which pool is meant."""
MODULE_ARENAS = "the server's module adds and drains L1 arenas, up to {:g} MB in total; L1 keeps its contents"
ABOVE_LIMIT = "the server's module may not make L1 larger than {:g} MB (max_l1_mb in its config)"
SECRETS_NOT_KEPT = "we show secrets of an L2 adapter as *** and never store them; give the adapters with their secrets"

NO_ISOLATED_L2 = Support(
    level=SupportLevel.UNSUPPORTED,
    reason="quotas need an L2 adapter that evicts by tenant (IsolatedLRU), or a fleet's coordinator; this server has neither",
)
QUOTAS = Support(
    level=SupportLevel.LIVE,
    reason="L2 enforces quotas within a second; a tenant that is not listed loses all its chunks in L2, and a restart forgets all"
    " quotas",
)


OLDER = "LMCache {} changes it by a restart only, which empties L1 and may end a vLLM in front; live changes need LMCache 0.5.6"
NO_ARC = "LMCache {} has no ARC; its policies for L1 are LRU and noop"


def locked(support: Support) -> Support:
    """Return how a setting can be changed on a server whose module asks for a token that we do not have."""
    return support.model_copy(
        update={
            "reason": f"{support.reason}; its module asks for a token: set module_token in caches.toml;"
            " a server of a fleet gets it only if addresses maps it to a host and a port"
        }
    )


def wiped(tenants: Sequence[str]) -> Support:
    """Return that quotas are refused, because they do not list these active tenants."""
    return Support(
        level=SupportLevel.UNSUPPORTED,
        reason=f"L2 would delete all chunks of tenants without a quota: list {', '.join(map(plain, tenants))} as well",
    )
