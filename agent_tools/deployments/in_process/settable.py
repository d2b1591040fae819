"""Which settings of in-process LMCache 0.5.6 can be changed, how, and what to do about the others.

``POST /conf`` accepts every key, but LMCache reads most keys only at its start. This module offers only keys that it reads later.
"""

import math
from collections.abc import Sequence

from agent_tools.models import SETTINGS, L2Adapter, Support, SupportLevel
from agent_tools.plain import names_cut, plain

DISK = "local_disk"
"""The type of the disk tier among the L2 adapters. Its settings are `path` and `max_capacity_gb`."""
REMOTE = "remote"
"""The type of the remote tier among the L2 adapters. Its setting is `url`."""
_START = "set {} in the engine's LMCache configuration (LMCACHE_CONFIG_FILE) and restart the engine, which empties L1"
_RECREATE = "LMCache reads it when it creates the L1 backend, and creating L1 again crashes a running engine (LMCache 0.5.6)"
_MIN_RETRIEVE = (
    "sets min_retrieve_tokens, which vLLM's connector reads at every request (SGLang's never reads it); the value of chunk_size"
    " means no minimum"
)
_NO_SCHEDULER = (
    "vLLM's scheduler reads min_retrieve_tokens. With several workers the scheduler is a separate process, and its address is"
    " missing from this cache: add the address with the port internal_api_server_port_start"
)
_DISK = (
    "one local_disk tier (settings path and max_capacity_gb, per worker) can be attached and detached; detaching leaves its files"
    " on disk, and LMCache forgets their contents"
)
_REASONS: dict[str, tuple[SupportLevel, str]] = {
    "enabled": (SupportLevel.UNSUPPORTED, "in-process LMCache has no off switch; remove the connector from the engine"),
    "max_size_mb": (SupportLevel.RESTART, f"{_RECREATE}; {_START.format('max_local_cpu_size (GB, each worker)')}"),
    "eviction_policy": (SupportLevel.RESTART, f"{_RECREATE}; {_START.format('cache_policy (LRU, LFU, FIFO or MRU)')}"),
    "enable_prefix_caching": (SupportLevel.UNSUPPORTED, "LMCache's prefix caching is always on"),
    "min_prefix_length": (SupportLevel.LIVE, _MIN_RETRIEVE),
    "cache_warmup": (SupportLevel.UNSUPPORTED, "in-process LMCache stores only what the engine serves; send the prompts to it"),
    "auto_eviction": (SupportLevel.UNSUPPORTED, "in-process LMCache always evicts when L1 is full"),
    "enable_sharing": (SupportLevel.UNSUPPORTED, "in-process LMCache has no tenants"),
    "max_concurrent_users": (SupportLevel.UNSUPPORTED, "in-process LMCache has no tenants"),
    "chunk_size": (
        SupportLevel.RESTART,
        f"LMCache reads it only at its start; {_START.format('chunk_size')} and makes L2 unusable",
    ),
    "eviction_watermark": (SupportLevel.UNSUPPORTED, "in-process LMCache evicts key by key when L1 is full; it has no watermark"),
    "eviction_ratio": (SupportLevel.UNSUPPORTED, "in-process LMCache evicts as much as the next store needs; it has no ratio"),
    "l2_adapters": (SupportLevel.LIVE, _DISK),
    "l2_store_policy": (SupportLevel.UNSUPPORTED, "in-process LMCache stores every chunk in all its backends"),
    "l2_prefetch_policy": (SupportLevel.UNSUPPORTED, "in-process LMCache has no such policy"),
    "tenant_quotas_mb": (SupportLevel.UNSUPPORTED, "in-process LMCache has no tenants and no quotas"),
}
SUPPORT = {setting: Support(level=level, reason=reason) for setting, (level, reason) in _REASONS.items()}
assert set(SUPPORT) == set(SETTINGS)  # noqa: S101  a new setting needs an entry here
WITHOUT_SCHEDULER = Support(level=SupportLevel.UNSUPPORTED, reason=_NO_SCHEDULER)


def disk_among(adapters: Sequence[L2Adapter]) -> L2Adapter | None:
    """Return the disk tier, or ``None`` if there is none."""
    return next((adapter for adapter in adapters if adapter.type == DISK), None)


def adapter_support(now: Sequence[L2Adapter], wanted: Sequence[L2Adapter]) -> Support:
    """Return whether one worker can change its L2 adapters to `wanted` without a restart. Only the disk tier can."""
    here, disk = disk_among(now), disk_among(wanted)
    nonsense = None if disk in (None, here) else _nonsense(disk)
    if nonsense is not None:
        return Support(level=SupportLevel.UNSUPPORTED, reason=nonsense)
    others = [adapter for adapter in now if adapter.type != DISK]
    if here is not None and disk is not None:
        kept = list(now)
        why = (
            "path and capacity of an attached disk tier are fixed: detach the tier in one change and attach a new one in the next"
        )
    else:
        kept = others if disk is None else [*others, disk]
        why = "a running engine can attach or detach only one local_disk tier, as the last adapter"
    if list(wanted) == kept:
        return SUPPORT["l2_adapters"]
    return Support(level=SupportLevel.RESTART, reason=f"{why}; or {_START.format('it')}")


def _nonsense(disk: L2Adapter | None) -> str | None:
    """Return what is wrong with a disk tier, or ``None``. LMCache itself does not check this."""
    settings = {} if disk is None else disk.settings
    path, size = settings.get("path"), settings.get("max_capacity_gb")
    if set(settings) != {"path", "max_capacity_gb"}:
        return f"a local_disk tier needs exactly the settings path and max_capacity_gb; given: {', '.join(map(plain, settings))}"
    if not isinstance(path, str) or not path.startswith("/") or "," in path or "\0" in path:
        return f"path of a local_disk tier must be one absolute path on the engine's host, not {names_cut(path)!r}"
    if isinstance(size, bool) or not isinstance(size, int | float) or not (math.isfinite(size) and size > 0):
        return f"max_capacity_gb of a local_disk tier must be a number of GB above 0, not {names_cut(size)!r}"
    return None
