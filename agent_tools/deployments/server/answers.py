"""Turn the answers of the admin API of an `lmcache server` 0.5.6 into our snapshot, configuration and entries.

Any error in this module means that an answer has an unexpected format. See `AdminClient.understood`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent_tools.deployments.snapshot import NO_REQUEST_HITS, Snapshot
from agent_tools.models import MB, CacheConfig, CacheEntry, EvictionPolicy, L2Adapter
from agent_tools.models.config import MB_IN_A_GB
from agent_tools.models.metrics import utc
from agent_tools.wire.prometheus import MOST

from .command_line import POLICY_NAMES, adapter_of
from .exposition import Exposition
from .health import health_of
from .module_client import LiveL2
from .versions import Release

Json = Mapping[str, Any]


def snapshot_of(asked_at: float, taken_at: float, status: Json, exposition: Exposition, release: Release) -> Snapshot:
    """Return the snapshot from ``/status`` and ``/metrics``, which were read at the same time."""
    per_chunk = _objects_per_chunk(status, exposition.objects_per_token)
    counters = exposition.counters
    if not release.counts_lookups and per_chunk:
        loaded = round(exposition.l2_loaded_objects / per_chunk) * _count(status["chunk_size"])
        counters = replace(counters, l2_hit_tokens=loaded)
    managers = list(status["storage_manager"]["l1_managers"].values())
    l2_used, l2_total = _l2_account(status["storage_manager"])
    return Snapshot(
        asked_at=asked_at,
        taken_at=taken_at,
        process_start=exposition.process_start,
        instance_id=exposition.instance_id,
        counters=counters if exposition.has_cache_metrics else None,
        tokens=exposition.tokens,
        unlisted=exposition.unlisted,
        l1_used_bytes=sum(_count(m["memory_used_bytes"]) for m in managers),
        l1_total_bytes=sum(_count(m["memory_total_bytes"]) for m in managers),
        resident_objects=sum(_count(m["total_object_count"]) for m in managers),
        objects_per_chunk=per_chunk,
        chunk_size=_count(status["chunk_size"]),
        health=health_of(status),
        locked_objects=sum(_count(m.get("write_locked_count", 0)) + _count(m.get("read_locked_count", 0)) for m in managers),
        l2_used_bytes=l2_used,
        l2_total_bytes=l2_total,
        uncounted=_uncounted(release, exposition, splits=per_chunk is not None),
        unregistered=exposition.unregistered,
        registered_models=_registered_models(status),
        version=release.text,
        notes={} if release.note is None else {"lmcache_version": release.note},
    )


def _uncounted(release: Release, exposition: Exposition, *, splits: bool) -> dict[str, str]:
    """Return the figures that this version does not count, and why."""
    uncounted = dict.fromkeys(("cache_hits", "cache_misses"), NO_REQUEST_HITS)
    if not release.counts_lookups:
        older = f"LMCache {release.text} does not count it; 0.5.5 and later do"
        by_tier = f"LMCache {release.text} counts hits of both tiers together: hits in L2 are in hit_l1 too"
        uncounted |= dict.fromkeys(("total_requests", "short_prompts", "unregistered_lookups", "layoutless_lookups"), older)
        uncounted |= {"by_model.hit_l2": by_tier, "by_tenant.hit_l2": by_tier} | ({} if splits else {"tokens.hit_l2": by_tier})
    elif not release.known:
        why = f"LMCache {release.text} exports no such series (yet), and nobody has tested this version"
        uncounted |= {figure: why for field in exposition.absent for figure in _FIGURES.get(field, (field,))}
    return uncounted


_FIGURES = {
    "lookups": ("total_requests",),
    "unregistered": ("unregistered_lookups",),
    "no_layout": ("layoutless_lookups",),
    "l2_loads": ("l2_load_gb_per_second",),
    "tokens": ("hit_rate_percent", "tokens_served", "tokens_computed", "memory_saved_mb", "memory_savings_percent"),
}
"""The figures of `CacheMetrics` from a field of `Counters`, or from the tokens, if they have other names."""


def _registered_models(status: Json) -> frozenset[str] | None:
    """Return the models that engines have registered now (``cache_context_meta``, ``non_cuda_context_meta`` of ``/status``)."""
    contexts = [status.get("cache_context_meta"), status.get("non_cuda_context_meta")]
    if None in contexts:
        return None
    return frozenset(str(one.get("model_name")) for of_kind in contexts if of_kind for one in of_kind.values())


def _l2_account(manager: Json) -> tuple[int | None, int | None]:
    """Return the used and the declared bytes of L2, or ``None``. Only adapters with an ``eviction`` block count their bytes."""
    accounts = manager.get("l2_eviction_controller", {}).get("adapters", [])
    if not accounts or len(accounts) < manager.get("num_l2_adapters", 0):
        return None, None
    sizes = [_count(account["total_capacity_bytes"]) for account in accounts]
    return sum(_count(account["total_bytes_used"]) for account in accounts), sum(sizes) if all(sizes) else None


def config_of(status: Json, boot: Json, adapters: Json, quotas: Json, l2: LiveL2 | None = None) -> CacheConfig:
    """Return the configuration.

    An invalid value that LMCache 0.5.6 accepted (it validates few flags) becomes ``None``, so that we never repeat it.

    Args:
        status: Answer of ``/status``: the values in force.
        boot: Answer of ``/config``: the values at the start of settings that cannot change.
        adapters: Answer of ``/config/adapters``.
        quotas: Answer of ``/quota``.
        l2: L2 as the server's module reports it. Without it, only the values at the start are known.
    """
    manager = status["storage_manager"]
    controllers = list(manager["l1_eviction_controllers"].values())
    eviction = controllers[0] if len(controllers) == 1 else {}
    policy = next((policy for policy, text in POLICY_NAMES.items() if text == eviction.get("eviction_policy")), None)
    chunk_size = status["chunk_size"] or None
    return CacheConfig(
        enabled=True,
        max_size_mb=sum(m["memory_total_bytes"] for m in manager["l1_managers"].values()) / MB or None,
        eviction_policy=policy,
        enable_prefix_caching=True,
        min_prefix_length=chunk_size,
        cache_warmup=False,
        enable_sharing=True,
        auto_eviction=None if policy is None else policy is not EvictionPolicy.NOOP,
        chunk_size=chunk_size,
        eviction_watermark=_share(eviction.get("trigger_watermark")),
        eviction_ratio=_share(eviction.get("eviction_ratio")),
        l2_adapters=adapters_of(boot, adapters) if l2 is None else tuple(one.adapter for one in l2.adapters),
        l2_store_policy=boot["storage_manager"].get("store_policy") if l2 is None else l2.store_policy,
        l2_prefetch_policy=boot["storage_manager"].get("prefetch_policy") if l2 is None else l2.prefetch_policy,
        tenant_quotas_mb={tenant: quota["limit_gb"] * MB_IN_A_GB for tenant, quota in quotas["users"].items()},
        hash_algorithm=boot["mp"].get("hash_algorithm"),
    )


def adapters_of(boot: Json, live: Json) -> tuple[L2Adapter, ...]:
    """Return the present L2 adapters, with the settings from their start, or `UNKNOWN_SETTINGS`."""
    reported = boot["storage_manager"].get("l2_adapter_config", {}).get("adapters", [])
    types = [a["type_name"] for a in live["adapters"] if a.get("tier") == "l2"]
    return tuple(adapter_of(type_name, settings) for type_name, settings in zip(types, reported, strict=False))


def resident_entry_of(entry: Json, chunk_size: int) -> CacheEntry:
    """Return a chunk in L1 from one of ``top`` of the module's ``GET /agent-tools/entries/top``."""
    return CacheEntry(
        entry_id=f"{entry['model']}@{entry['chunk_hash']}@{entry['tenant']}",
        prefix_hash=entry["chunk_hash"],
        token_count=chunk_size,
        size_mb=entry["bytes"] / MB,
        hit_count=entry["hits"],
        created_at=None if entry["stored"] is None else utc(entry["stored"]),
        last_accessed=None if entry["last_hit"] is None else utc(entry["last_hit"]),
    )


def entry_of(entry: Json) -> CacheEntry:
    """Return an entry from one of ``entries`` of ``GET /cache/objects``."""
    key = entry["key"]
    return CacheEntry(
        entry_id=f"{key['model_name']}@{key['kv_rank']:08x}@{key['chunk_hash_hex']}@{key['object_group_id']}@{key['cache_salt']}",
        prefix_hash=key["chunk_hash_hex"],
        size_mb=entry["size_bytes"] / MB,
    )


def _objects_per_chunk(status: Json, per_token: float | None) -> float | None:
    """Return the objects per chunk: measured on hits, else 1 for one worker, else ``None``. An object is one rank's chunk."""
    if per_token is not None:
        return per_token * float(status["chunk_size"])
    contexts = [*status.get("cache_context_meta", {}).values(), *status.get("non_cuda_context_meta", {}).values()]
    return 1.0 if contexts and all(c.get("world_size") == 1 for c in contexts) else None


def _count(value: int) -> int:
    """Return a number of bytes or objects. Raise `ValueError` for any other JSON value."""
    if not isinstance(value, int) or not 0 <= value < MOST:
        raise ValueError(f"{value!r} is not a size or count")
    return value


def _share(value: float | None) -> float | None:
    return value if value is not None and 0 < value <= 1 else None
