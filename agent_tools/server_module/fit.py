"""Whether this LMCache is one whose insides we know: every private name that is used, by part."""

import importlib
import re
from collections.abc import Iterable, Mapping

TESTED = "0.5.6"
"""The version whose source these names were read in, and against which the tests run."""

_EVENTS = (
    "lmcache.v1.mp_observability.event:EventType.MP_LOOKUP",
    "lmcache.v1.mp_observability.event:EventType.MP_LOOKUP_PREFETCH_END",
    "event_bus.subscribe",
    "event_bus.enabled",
)
_LAYOUTS = (
    *(f"layout_desc_registry.{name}" for name in ("_lock", "_registry", "find_attn_desc", "find_group_layout_descs")),
    "session_manager.get",
    *(
        f"lmcache.v1.mp_observability.event:EventType.{name}"
        for name in ("L1_WRITE_FINISHED", "L1_WRITE_FINISHED_AND_READ_RESERVED", "L1_KEYS_EVICTED", "L1_ALLOCATION_FAILED")
    ),
)
_POLICIES = (
    "lmcache.v1.distributed.eviction_policy:CreateEvictionPolicy",
    "lmcache.v1.distributed.config:EvictionConfig",
    *(f"lmcache.v1.distributed.eviction_policy.lru:LRUEvictionPolicy().{name}" for name in ("_lock", "_order")),
    *(f"lmcache.v1.distributed.eviction_policy.arc:ARCEvictionPolicy().{name}" for name in ("_lock", "_t1", "_t2")),
)
_CONTROLLERS = "storage_manager._eviction_controllers.*"
_L1_TABLE = (
    f"{_CONTROLLERS}._l1_manager.config.tag",
    f"{_CONTROLLERS}._l1_manager._lock",
    f"{_CONTROLLERS}._l1_manager._objects",
)
_CONFIG = ("eviction_policy", "trigger_watermark", "eviction_ratio")
_STATES = "storage_manager._l2_eviction_controller._adapter_states"

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "eviction": (
        *_POLICIES,
        *_L1_TABLE,
        f"{_CONTROLLERS}._l1_manager._staging",
        *(f"{_CONTROLLERS}._eviction_config.{name}" for name in _CONFIG),
        *(
            f"{_CONTROLLERS}.{name}"
            for name in ("_eviction_policy", "_listener._policy", "_thread", "_stop_flag", "eviction_loop")
        ),
    ),
    "l2": (
        *_POLICIES,
        "lmcache.v1.distributed.l2_adapters.config:add_l2_adapters_args",
        "lmcache.v1.distributed.l2_adapters.config:parse_args_to_l2_adapters_config",
        "lmcache.v1.distributed.storage_controllers:L2AdapterEvictionState",
        "lmcache.v1.distributed.storage_controllers.prefetch_policy:create_prefetch_policy",
        "lmcache.v1.distributed.storage_controllers.prefetch_policy:get_registered_prefetch_policies",
        "lmcache.v1.distributed.storage_controllers.store_policy:create_store_policy",
        "lmcache.v1.distributed.storage_controllers.store_policy:get_registered_store_policies",
        *(f"lmcache.v1.utils.json_utils:{name}" for name in ("make_json_safe", "safe_asdict")),
        *(f"storage_manager.{name}" for name in ("add_l2_adapter", "delete_l2_adapter", "_snapshot_adapters")),
        "storage_manager._l2_eviction_controller._states_lock",
        "storage_manager._l2_eviction_controller.add_adapter_state",
        *(f"{_STATES}.*.eviction_config.{name}" for name in _CONFIG),
        *(f"{_STATES}.*.{name}" for name in ("adapter_id", "eviction_policy", "listener._policy")),
        "storage_manager._prefetch_controller._policy",
        "storage_manager._store_controllers.*._policy",
    ),
    "arenas": (
        "lmcache.v1.distributed.error:L1ReconfigureError",
        *(
            f"storage_manager.{name}"
            for name in ("get_l1_devdax_arena_statuses", "add_l1_devdax_device", "remove_l1_devdax_device")
        ),
        f"{_CONTROLLERS}._l1_manager.get_capacity_bytes_by_backend",
    ),
    "window": (*_EVENTS, *_LAYOUTS, "chunk_size"),
    "entries": (
        *_EVENTS,
        *_LAYOUTS,
        "lmcache.v1.mp_observability.event:EventType.L1_WRITE_FINISHED",
        "lmcache.v1.mp_observability.event:EventType.L1_WRITE_FINISHED_AND_READ_RESERVED",
        "lmcache.v1.distributed.error:L1Error.SUCCESS",
        "lmcache.v1.distributed.api:ObjectKey.WorldSizeFromKVRank",
        *_POLICIES,
        *_L1_TABLE,
        f"{_CONTROLLERS}._eviction_policy",
        f"{_CONTROLLERS}._l1_manager.delete",
        "layout_desc_registry.find_attn_desc",
        "storage_manager.get_l2_usages_by_type",
        "chunk_size",
    ),
}
"""Part -> names it needs. A name is a path from LMCache's server context, ``*`` standing for each item of a collection, or begins
with ``module:Name``, where ``()`` makes one."""


def misfits(context: object, part: str) -> tuple[str, ...]:
    """The names that a part needs and this LMCache does not have."""
    return tuple(name for name in REQUIRED[part] if not _has(context, name))


def _has(context: object, name: str) -> bool:
    try:
        if ":" in name:
            module, name = name.split(":")
            context = importlib.import_module(module)
        _walk(context, re.findall(r"\w+|\(\)|\*", name))
    except Exception:  # noqa: BLE001  whatever an unknown LMCache does, it only does not fit
        return False
    return True


def _walk(value: object, steps: list[str]) -> None:
    for position, step in enumerate(steps):
        if step == "*":
            for item in _items(value):
                _walk(item, steps[position + 1 :])
            return
        value = value() if step == "()" and callable(value) else getattr(value, step)


def _items(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, Iterable):
        return value
    raise TypeError
