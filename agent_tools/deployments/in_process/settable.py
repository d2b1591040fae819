"""Which settings of an LMCache engine 0.5.6 can be changed, how, and what to do about those that cannot.

``POST /conf`` takes every key and says so, though most are read at the start only: what is offered here is what is read later.
"""

import math
from collections.abc import Sequence

from agent_tools.models import SETTINGS, L2Adapter, Support, SupportLevel

DISK = "local_disk"
"""The type under which an engine's disk tier stands among the L2 adapters; its settings are `path` and `max_capacity_gb`."""
_START = "set {} in the engine's LMCache configuration (LMCACHE_CONFIG_FILE) and restart the engine, which empties L1"
_RECREATE = "it is read when the L1 backend is made, and making that anew in a running engine crashes it (LMCache 0.5.6)"
_MIN_RETRIEVE = (
    "min_retrieve_tokens, which vLLM's connector reads at every request (SGLang's never does); chunk_size means no minimum"
)
_NO_SCHEDULER = (
    "min_retrieve_tokens is read in vLLM's scheduler, which with several workers is a process of its own, and its address is"
    " not among those of this cache: add that of internal_api_server_port_start itself"
)
_DISK = (
    "one local_disk tier (settings path and max_capacity_gb, a worker each) is attached and detached; detaching leaves its files"
    " and forgets what they hold"
)
_REASONS: dict[str, tuple[SupportLevel, str]] = {
    "enabled": (SupportLevel.UNSUPPORTED, "an engine has no off switch; take the connector out of the engine"),
    "max_size_mb": (SupportLevel.RESTART, f"{_RECREATE}; {_START.format('max_local_cpu_size (GB, each worker)')}"),
    "eviction_policy": (SupportLevel.RESTART, f"{_RECREATE}; {_START.format('cache_policy (LRU, LFU, FIFO or MRU)')}"),
    "enable_prefix_caching": (SupportLevel.UNSUPPORTED, "prefix caching is what LMCache does; it is always on"),
    "min_prefix_length": (SupportLevel.LIVE, _MIN_RETRIEVE),
    "cache_warmup": (SupportLevel.UNSUPPORTED, "an engine fills its cache with what it serves; send the known prompts to it"),
    "auto_eviction": (SupportLevel.UNSUPPORTED, "an engine always evicts when L1 is full"),
    "enable_sharing": (SupportLevel.UNSUPPORTED, "an engine keeps no tenants apart"),
    "max_concurrent_users": (SupportLevel.UNSUPPORTED, "an engine keeps no tenants apart"),
    "chunk_size": (SupportLevel.RESTART, f"it is read at the start only; {_START.format('chunk_size')} and makes L2 unreachable"),
    "eviction_watermark": (SupportLevel.UNSUPPORTED, "an engine evicts when L1 is full, key by key; it has no watermark"),
    "eviction_ratio": (SupportLevel.UNSUPPORTED, "an engine evicts as much as the next store needs; it has no ratio"),
    "l2_adapters": (SupportLevel.LIVE, _DISK),
    "l2_store_policy": (SupportLevel.UNSUPPORTED, "an engine stores every chunk in all its backends"),
    "l2_prefetch_policy": (SupportLevel.UNSUPPORTED, "an engine has no such policy"),
    "tenant_quotas_mb": (SupportLevel.UNSUPPORTED, "an engine has no tenants and no quotas"),
}
SUPPORT = {setting: Support(level=level, reason=reason) for setting, (level, reason) in _REASONS.items()}
assert set(SUPPORT) == set(SETTINGS)  # noqa: S101  a new setting needs a word here
WITHOUT_SCHEDULER = Support(level=SupportLevel.UNSUPPORTED, reason=_NO_SCHEDULER)


def disk_among(adapters: Sequence[L2Adapter]) -> L2Adapter | None:
    """The disk tier, if there is one."""
    return next((adapter for adapter in adapters if adapter.type == DISK), None)


def adapter_support(now: Sequence[L2Adapter], wanted: Sequence[L2Adapter]) -> Support:
    """Whether one worker's L2 adapters can become these without a restart: its disk tier may come or go, nothing else."""
    here, disk = disk_among(now), disk_among(wanted)
    nonsense = None if disk in (None, here) else _nonsense(disk)
    if nonsense is not None:
        return Support(level=SupportLevel.UNSUPPORTED, reason=nonsense)
    others = [adapter for adapter in now if adapter.type != DISK]
    if here is not None and disk is not None:
        kept = list(now)
        why = "path and capacity of the disk tier are fixed when it is attached: detach it in one change, attach one in the next"
    else:
        kept = others if disk is None else [*others, disk]
        why = "only one local_disk tier, as the last of the adapters, comes and goes in a running engine"
    if list(wanted) == kept:
        return SUPPORT["l2_adapters"]
    return Support(level=SupportLevel.RESTART, reason=f"{why}; or {_START.format('it')}")


def _nonsense(disk: L2Adapter | None) -> str | None:
    """What is wrong with a disk tier, which LMCache itself does not check."""
    settings = {} if disk is None else disk.settings
    path, size = settings.get("path"), settings.get("max_capacity_gb")
    if set(settings) != {"path", "max_capacity_gb"}:
        return f"a local_disk tier has the settings path and max_capacity_gb, no more and no less; given: {', '.join(settings)}"
    if not isinstance(path, str) or not path.startswith("/") or "," in path or "\0" in path:
        return f"path of a local_disk tier is one absolute path on the engine's host, not {path!r}"
    if isinstance(size, bool) or not isinstance(size, int | float) or not (math.isfinite(size) and size > 0):
        return f"max_capacity_gb of a local_disk tier is a number of GB above 0, not {size!r}"
    return None
