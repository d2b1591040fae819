"""Turn the answers of the admin API of an `lmcache server` 0.5.6 into our snapshot, configuration and entries.

Any error in this module means that an answer has an unexpected format. See `AdminClient.understood`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from agent_tools.deployments.snapshot import Snapshot
from agent_tools.models import MB, CacheConfig, CacheEntry, EvictionPolicy, L2Adapter
from agent_tools.models.config import MB_IN_A_GB
from agent_tools.models.metrics import utc
from agent_tools.wire.prometheus import MOST
from agent_tools.workload.chunk_layout import ChunkLayout, ObjectGroup

from .command_line import POLICY_NAMES
from .exposition import Exposition
from .health import health_of
from .module_client import LiveL2
from .reported_adapter import adapter_of
from .start_flags import at
from .uncounted import uncounted
from .versions import Release

Json = Mapping[str, Any]


_BY_MODULE = {"stored_chunks", "evictions", "failed_stores"}
"""Figures that our module counts, whatever ``/metrics`` holds."""


def snapshot_of(asked_at: float, taken_at: float, status: Json, exposition: Exposition, release: Release) -> Snapshot:
    """Return the snapshot from ``/status`` and ``/metrics``, which were read at the same time."""
    per_chunk = _objects_per_chunk(status, exposition)
    common, counters = _common(per_chunk), exposition.counters
    if not release.counts_lookups and common:
        loaded = round(exposition.l2_loaded_objects / common) * _count(status["chunk_size"])
        counters = replace(counters, l2_hit_tokens=loaded)
    managers = list(status["storage_manager"]["l1_managers"].values())
    l2_used, l2_total = _l2_account(status["storage_manager"])
    objects = sum(_count(m["total_object_count"]) for m in managers)
    missing = uncounted(release, exposition, resident=objects, splits=common is not None)
    chunks = status.get("agent_tools", {}).get("chunks")
    if chunks:  # counted by the module, chunk by chunk
        counters = replace(
            counters,
            stored_chunks=int(chunks["stored"]),
            evictions=int(chunks["evicted"]),
            failed_stores=int(chunks["failed"]),
        )
        missing = {figure: why for figure, why in missing.items() if figure not in _BY_MODULE}
    return Snapshot(
        asked_at=asked_at,
        taken_at=taken_at,
        process_start=exposition.process_start,
        instance_id=exposition.instance_id,
        counters=counters if exposition.has_cache_metrics else None,
        tokens={} if "tokens.requested" in missing else exposition.tokens,
        unlisted=exposition.unlisted,
        l1_used_bytes=sum(_count(m["memory_used_bytes"]) for m in managers),
        l1_total_bytes=sum(_count(m["memory_total_bytes"]) for m in managers),
        resident_objects=objects,
        objects_per_chunk=objects / _count(chunks["resident"]) if chunks and chunks["resident"] else common,
        objects_by_model={} if chunks else per_chunk,
        incomplete_chunks=_count(chunks["incomplete"]) if chunks else None,
        bytes_by_model=bytes_of(status),
        chunk_size=_count(status["chunk_size"]),
        health=health_of(status),
        locked_objects=sum(_count(m.get("write_locked_count", 0)) + _count(m.get("read_locked_count", 0)) for m in managers),
        l2_used_bytes=l2_used,
        l2_total_bytes=l2_total,
        uncounted=missing,
        unregistered=exposition.unregistered,
        registered_models=_registered_models(status),
        version=release.text,
        notes={} if release.note is None else {"lmcache_version": release.note},
    )


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


def config_of(
    status: Json, boot: Json, adapters: tuple[L2Adapter, ...], quotas: Json | None, l2: LiveL2 | None = None
) -> CacheConfig:
    """Return the configuration.

    An invalid value that LMCache 0.5.6 accepted (it validates few flags) becomes ``None``, so that we never repeat it.

    Args:
        status: Answer of ``/status``: the values in force.
        boot: Answer of ``/config``: the values at the start of settings that cannot change. Empty if there is no such route.
        adapters: The L2 adapters.
        quotas: Answer of ``/quota``, if the server has that route.
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
        l2_adapters=adapters,
        l2_store_policy=at(boot, "storage_manager.store_policy") if l2 is None else l2.store_policy,
        l2_prefetch_policy=at(boot, "storage_manager.prefetch_policy") if l2 is None else l2.prefetch_policy,
        tenant_quotas_mb=None if quotas is None else {who: one["limit_gb"] * MB_IN_A_GB for who, one in quotas["users"].items()},
        hash_algorithm=at(boot, "mp.hash_algorithm"),
    )


def adapters_of(boot: Json, live: Json) -> tuple[L2Adapter, ...]:
    """Return the present L2 adapters, with the settings from their start, or `UNKNOWN_SETTINGS`."""
    reported = boot["storage_manager"].get("l2_adapter_config", {}).get("adapters", [])
    types = [a["type_name"] for a in live["adapters"] if a.get("tier") == "l2"]
    return tuple(adapter_of(type_name, settings) for type_name, settings in zip(types, reported, strict=False))


def resident_entry_of(entry: Json, chunk_size: int) -> CacheEntry:
    """Return a chunk in L1 from one of ``top`` of the module's ``GET /agent-tools/entries/top``."""
    return CacheEntry(
        entry_id=f"{entry['model']}@{entry.get('world_size', 1)}@{entry['chunk_hash']}@{entry['tenant']}",
        prefix_hash=entry["chunk_hash"],
        token_count=chunk_size,
        size_mb=entry["bytes"] / MB,
        hit_count=entry["hits"],
        created_at=None if entry["stored"] is None else utc(entry["stored"]),
        last_accessed=None if entry["last_hit"] is None else utc(entry["last_hit"]),
    )


def entries_of(entries: Sequence[Json]) -> list[CacheEntry]:
    """Return the chunks of ``entries`` of ``GET /cache/objects``; the objects of a chunk are one entry."""
    chunks: dict[tuple[str, int, str, str], float] = {}
    for entry in entries:
        key = entry["key"]
        chunk = (key["model_name"], key["kv_rank"] >> 24, key["chunk_hash_hex"], key["cache_salt"])
        chunks[chunk] = chunks.get(chunk, 0) + entry["size_bytes"]
    return [
        CacheEntry(entry_id=f"{model}@{world_size}@{chunk}@{salt}", prefix_hash=chunk, size_mb=size / MB)
        for (model, world_size, chunk, salt), size in chunks.items()
    ]


def _objects_per_chunk(status: Json, exposition: Exposition) -> dict[str, float]:
    """Return the objects of a chunk of each model, as far as that is known: its KV ranks, times its object groups.

    Without our module the groups show in the objects of a hit: a group with a sliding window adds less than a whole one to it.
    """
    sizes, groups = world_sizes_of(status), groups_of(status)
    found: dict[str, float] = {}
    for model in {*sizes, *exposition.objects_per_token}:
        measured = exposition.objects_per_token.get(model, 0.0) * float(status["chunk_size"])
        known = sizes.get(model, set())
        if len(known) == 1:
            (size,) = known
            found[model] = size * (groups[model] if model in groups else max(ceil(measured / max(size, 1) - 0.01), 1))
        elif measured:
            found[model] = measured
    return found


def _common(values: Mapping[str, float]) -> float | None:
    """Return the value that all models share, or ``None``."""
    return next(iter(values.values())) if len(set(values.values())) == 1 else None


def bytes_of(status: Json) -> dict[str, int]:
    """Return the bytes of a chunk of each model with one world size, where the server's module tells its layout."""
    found: dict[str, set[int]] = {}
    for layout in status.get("agent_tools", {}).get("layouts", ()):
        shape = ChunkLayout(tuple(ObjectGroup(_count(size), window) for size, window in layout["groups"]), layout["world_size"])
        found.setdefault(str(layout["model"]), set()).add(shape.bytes)
    return {model: next(iter(sizes)) for model, sizes in found.items() if len(sizes) == 1}


def world_sizes_of(status: Json) -> dict[str, set[int]]:
    """Return the world sizes with which engines have registered each model, from ``/status``."""
    sizes: dict[str, set[int]] = {}
    for context in (*status.get("cache_context_meta", {}).values(), *status.get("non_cuda_context_meta", {}).values()):
        sizes.setdefault(str(context["model_name"]), set()).add(_count(context["world_size"]))
    for layout in status.get("agent_tools", {}).get("layouts", ()):
        sizes.setdefault(str(layout["model"]), set()).add(_count(layout["world_size"]))
    return sizes


def single_ranks_of(exposition: Exposition, chunk_size: int) -> dict[str, set[int]]:
    """Return world size 1 for each model whose hits were one object a chunk; this holds after its engine has gone."""
    return {model: {1} for model, per_token in exposition.objects_per_token.items() if per_token * chunk_size == 1}


def groups_of(status: Json) -> dict[str, int]:
    """Return the object groups of each model, where the server's module tells them."""
    groups: dict[str, int] = {}
    for layout in status.get("agent_tools", {}).get("layouts", ()):
        groups[str(layout["model"])] = max(groups.get(str(layout["model"]), 0), len(layout["groups"]))
    return groups


def _count(value: int) -> int:
    """Return a number of bytes or objects. Raise `ValueError` for any other JSON value."""
    if not isinstance(value, int) or not 0 <= value < MOST:
        raise ValueError(f"{value!r} is not a size or count")
    return value


def _share(value: float | None) -> float | None:
    return value if value is not None and 0 < value <= 1 else None
