"""What the admin API of an `lmcache server` 0.5.6 answers -> our snapshot, configuration and entries.

Any error in here means an answer of another shape; see `AdminClient.understood`.
"""

from collections.abc import Mapping
from typing import Any

from agent_tools.deployments.snapshot import Snapshot
from agent_tools.models import MB, CacheConfig, CacheEntry, EvictionPolicy, L2Adapter
from agent_tools.models.config import MB_IN_A_GB
from agent_tools.models.metrics import utc
from agent_tools.wire.prometheus import MOST

from .command_line import POLICY_NAMES, adapter_of
from .exposition import Exposition
from .health import health_of
from .module_client import LiveL2

Json = Mapping[str, Any]


def snapshot_of(asked_at: float, taken_at: float, status: Json, exposition: Exposition) -> Snapshot:
    """From ``/status`` and ``/metrics``, read at the same time."""
    managers = list(status["storage_manager"]["l1_managers"].values())
    l2_used, l2_total = _l2_account(status["storage_manager"])
    return Snapshot(
        asked_at=asked_at,
        taken_at=taken_at,
        process_start=exposition.process_start,
        instance_id=exposition.instance_id,
        counters=exposition.counters if exposition.has_cache_metrics else None,
        tokens=exposition.tokens,
        l1_used_bytes=sum(_count(m["memory_used_bytes"]) for m in managers),
        l1_total_bytes=sum(_count(m["memory_total_bytes"]) for m in managers),
        resident_objects=sum(_count(m["total_object_count"]) for m in managers),
        objects_per_chunk=_objects_per_chunk(status, exposition.objects_per_token),
        chunk_size=_count(status["chunk_size"]),
        health=health_of(status),
        locked_objects=sum(_count(m.get("write_locked_count", 0)) + _count(m.get("read_locked_count", 0)) for m in managers),
        l2_used_bytes=l2_used,
        l2_total_bytes=l2_total,
    )


def _l2_account(manager: Json) -> tuple[int | None, int | None]:
    """Used and declared bytes of the L2 adapters that keep account of them: those with an ``eviction`` block."""
    accounts = manager.get("l2_eviction_controller", {}).get("adapters", [])
    if not accounts or len(accounts) < manager.get("num_l2_adapters", 0):
        return None, None
    sizes = [_count(account["total_capacity_bytes"]) for account in accounts]
    return sum(_count(account["total_bytes_used"]) for account in accounts), sum(sizes) if all(sizes) else None


def config_of(status: Json, boot: Json, adapters: Json, quotas: Json, l2: LiveL2 | None = None) -> CacheConfig:
    """From ``/status`` (what is in force), ``/config`` (start-up values of what cannot change), adapters and quotas.

    `l2` is what the server's module says of L2, without which nothing but a start-up value is known.

    What 0.5.6 accepted though it makes no sense (it validates few flags) is ``None``, so that we never repeat it.
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
    """The L2 adapters there are, with the settings they were started with."""
    reported = boot["storage_manager"].get("l2_adapter_config", {}).get("adapters", [])
    types = [a["type_name"] for a in live["adapters"] if a.get("tier") == "l2"]
    return tuple(adapter_of(type_name, settings) for type_name, settings in zip(types, reported, strict=False))


def resident_entry_of(entry: Json, chunk_size: int) -> CacheEntry:
    """One of ``top`` of the module's ``GET /agent-tools/entries/top``: a chunk in L1."""
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
    """One of ``entries`` of ``GET /cache/objects``."""
    key = entry["key"]
    return CacheEntry(
        entry_id=f"{key['model_name']}@{key['kv_rank']:08x}@{key['chunk_hash_hex']}@{key['object_group_id']}@{key['cache_salt']}",
        prefix_hash=key["chunk_hash_hex"],
        size_mb=entry["size_bytes"] / MB,
    )


def _objects_per_chunk(status: Json, per_token: float | None) -> float | None:
    """Measured on hits where there were any, else from the registered workers: an object is a chunk of one rank."""
    if per_token is not None:
        return per_token * float(status["chunk_size"])
    contexts = [*status.get("cache_context_meta", {}).values(), *status.get("non_cuda_context_meta", {}).values()]
    return 1.0 if contexts and all(c.get("world_size") == 1 for c in contexts) else None


def _count(value: int) -> int:
    """A number of bytes or objects; JSON has other numbers too, and some that are none."""
    if not isinstance(value, int) or not 0 <= value < MOST:
        raise ValueError(f"{value!r} is no size or count")
    return value


def _share(value: float | None) -> float | None:
    return value if value is not None and 0 < value <= 1 else None
