"""What a real `lmcache server` 0.5.6 answers, as far as we read it: recorded of one with an ``fs`` L2 after ten requests."""

from typing import Any

METRICS = """\
process_start_time_seconds 1.79563470238e+09
target_info{service_instance_id="%(name)s",service_name="unknown_service"} 1.0
lmcache_mp_event_bus_dropped_events_total 0.0
lmcache_mp_lookups_requests_total{cache_salt="%(name)s",model_name="%(name)s"} 9.0
lmcache_mp_lookup_requested_tokens_total{cache_salt="%(name)s",model_name="%(name)s"} 24064.0
lmcache_mp_lookup_hit_l1_tokens_total{cache_salt="%(name)s",model_name="%(name)s"} 17152.0
lmcache_mp_lookup_hit_l2_tokens_total{cache_salt="%(name)s",model_name="%(name)s"} 0.0
lmcache_mp_lookup_hit_l1_keys_total{cache_salt="%(name)s",model_name="%(name)s"} 67.0
lmcache_mp_l1_write_chunks_total{cache_salt="%(name)s",model_name="%(name)s"} 39.0
lmcache_mp_l1_evicted_chunks_total{cache_salt="%(name)s",model_name="%(name)s"} 0.0
"""
_CONTROLLER = {"is_healthy": True, "thread_alive": True}
_MANAGER = {
    "total_object_count": 39,
    "write_locked_count": 0,
    "read_locked_count": 0,
    "memory_used_bytes": 1277952,
    "memory_total_bytes": 16777216,
}
_EVICTION = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}
ANSWERS: dict[str, Any] = {
    "/status": {
        "is_healthy": True,
        "chunk_size": 256,
        "storage_manager": {
            "l1_managers": {"_default": _MANAGER},
            "store_controllers": {"_default": _CONTROLLER},
            "l1_eviction_controllers": {"_default": _CONTROLLER | _EVICTION},
            "prefetch_controller": _CONTROLLER,
            "l2_eviction_controller": _CONTROLLER | {"adapters": []},
            "l2_adapters": [{"is_healthy": True, "type": "FSL2Adapter"}],
            "num_l2_adapters": 1,
        },
        "cache_context_meta": {},
        "non_cuda_context_meta": {},
    },
    "/config": {
        "mp": {"chunk_size": 256, "hash_algorithm": "blake3", "server_modules": []},
        "storage_manager": {
            "l1_manager_config": {"memory_config": {"size_in_bytes": 16777216, "use_lazy": True}},
            "eviction_config": _EVICTION,
            "l2_adapter_config": {"adapters": [{"base_path": "/kv", "persist_config": "PersistConfig(persist_enabled=True)"}]},
            "store_policy": "default",
            "prefetch_policy": "default",
        },
        "observability": {"otlp_endpoint": None},
        "coordinator": {"url": ""},
    },
    "/config/adapters": {"adapters": [{"index": 0, "type_name": "fs", "tier": "l2"}]},
    "/quota": {"users": {}},
    "/lmc_version": "0.5.6",
    "/metrics": METRICS % {"name": "tenant-1"},
}
