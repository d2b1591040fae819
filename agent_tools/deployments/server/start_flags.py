"""The start flags of an `lmcache server` 0.5.6, and where each stands in its ``/config``.

`tests/deployments/test_restart_command.py` holds this against LMCache's own parsers: no flag may be missing here.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agent_tools.redaction import without_secrets

Json = Mapping[str, Any]

_MEMORY = "storage_manager.l1_manager_config.memory_config"
_GDS = "storage_manager.l1_manager_config.gds_l1_config"
VALUES: tuple[tuple[str, str, Any], ...] = (
    # (place in /config, flag, default of 0.5.6)
    ("mp.instance_id", "--instance-id", None),
    ("mp.transport", "--transport", "zmq"),
    ("mp.host", "--host", "localhost"),
    ("mp.port", "--port", 5555),
    ("mp.chunk_size", "--chunk-size", 256),
    ("mp.null_block_id", "--null-block-id", 0),
    ("mp.max_workers", "--max-workers", 1),
    ("mp.max_gpu_workers", "--max-gpu-workers", ...),
    ("mp.max_cpu_workers", "--max-cpu-workers", ...),
    ("mp.grpc_server_workers", "--grpc-server-workers", 32),
    ("mp.hash_algorithm", "--hash-algorithm", "blake3"),
    ("mp.engine_type", "--engine-type", "default"),
    ("mp.supported_transfer_mode", "--supported-transfer-mode", "lmcache_driven"),
    ("mp.session_ttl_seconds", "--session-ttl-seconds", 600.0),
    ("mp.worker_reap_timeout_seconds", "--worker-reap-timeout-seconds", 120.0),
    ("mp.worker_registration_grace_seconds", "--worker-registration-grace-seconds", 3600.0),
    ("mp.kv_event_log_size", "--kv-event-log-size", 32768),
    ("mp.p2p_config.advertise_url", "--p2p-advertise-url", ""),
    ("mp.p2p_config.listen_url", "--p2p-listen-url", ""),
    ("mp.p2p_config.lookup_timeout", "--p2p-lookup-timeout", 30.0),
    ("mp.p2p_config.load_timeout", "--p2p-load-timeout", 30.0),
    ("mp.p2p_config.transfer_engine", "--p2p-transfer-engine", "nixl"),
    (f"{_MEMORY}.align_bytes", "--l1-align-bytes", 4096),
    (f"{_MEMORY}.devdax_path", "--l1-devdax-path", ""),
    (f"{_GDS}.file_location", "--gds-l1-path", None),
    (f"{_GDS}.backend", "--gds-l1-backend", "auto"),
    ("storage_manager.l1_manager_config.write_ttl_seconds", "--l1-write-ttl-seconds", 600),
    ("storage_manager.l1_manager_config.read_ttl_seconds", "--l1-read-ttl-seconds", 300),
    ("storage_manager.eviction_config.eviction_policy", "--eviction-policy", None),
    ("storage_manager.eviction_config.trigger_watermark", "--eviction-trigger-watermark", 0.8),
    ("storage_manager.eviction_config.eviction_ratio", "--eviction-ratio", 0.2),
    ("storage_manager.store_policy", "--l2-store-policy", "default"),
    ("storage_manager.prefetch_policy", "--l2-prefetch-policy", "default"),
    ("storage_manager.prefetch_max_in_flight", "--l2-prefetch-max-in-flight", 8),
    ("storage_manager.periodic_notifier_interval_ms", "--periodic-notifier-interval-ms", 5),
    ("http.http_host", "--http-host", "127.0.0.1"),
    ("http.http_port", "--http-port", 8080),
    ("observability.metrics_sample_rate", "--metrics-sample-rate", 0.01),
    ("observability.max_queue_size", "--event-bus-queue-size", 10000),
    ("observability.prometheus_port", "--prometheus-port", 9090),
    ("observability.otlp_endpoint", "--otlp-endpoint", None),
    ("observability.lookup_hash_log.output_dir", "--lookup-hash-log-dir", ""),
    ("observability.lookup_hash_log.rotation_interval_sec", "--lookup-hash-log-rotation-interval", 21600),
    ("observability.lookup_hash_log.rotation_max_size", "--lookup-hash-log-rotation-max-size", 104857600),
    ("observability.lookup_hash_log.max_files", "--lookup-hash-log-max-files", 100),
    ("observability.gc_monitor.min_pause_ms", "--gc-monitor-min-pause-ms", 1.0),
    ("observability.gc_monitor.top_objects", "--gc-monitor-top-objects", 0),
    ("observability.extra_logging_interval", "--extra-logging-interval", 10.0),
    ("observability.trace_level", "--trace-level", None),
    ("observability.trace_output", "--trace-output", None),
    ("coordinator.url", "--coordinator-url", ""),
    ("coordinator.advertise_ip", "--coordinator-advertise-ip", ""),
    ("coordinator.heartbeat_interval", "--coordinator-heartbeat-interval", 5.0),
    ("coordinator.event_flush_interval", "--coordinator-event-flush-interval", 1.0),
    ("coordinator.event_sink_config.bootstrap_servers", "--coordinator-kafka-bootstrap-servers", None),
    ("coordinator.event_sink_config.topic", "--coordinator-kafka-topic", "lmcache-cache-events"),
    ("coordinator.event_sink_config.delivery_timeout", "--coordinator-kafka-delivery-timeout", 300.0),
    ("coordinator.blend_timeout", "--coordinator-blend-timeout", 1.0),
    ("coordinator.blend_match_concurrency", "--coordinator-blend-match-concurrency", 8),
)
"""Flags with a value. The default ``...`` is the value of another flag, see `_FOLLOW`."""
_FOLLOW = {
    "--max-gpu-workers": "mp.max_workers",
    "--max-cpu-workers": "mp.max_workers",
}
SWITCHES: tuple[tuple[str, str, bool], ...] = (
    # (place in /config, flag, the value that the flag sets)
    ("mp.isolated_ipc", "--isolated-ipc", True),
    ("mp.run_script_api_enabled", "--run-script-api-enabled", True),
    ("mp.separate_object_groups", "--separate-object-groups", True),
    ("mp.enable_segmented_prefix", "--enable-segmented-prefix", True),
    ("mp.enable_dedup_content", "--enable-dedup-content", True),
    ("mp.enable_blend_reorder", "--enable-blend-reorder", True),
    (f"{_MEMORY}.use_lazy", "--no-l1-use-lazy", False),
    (f"{_MEMORY}.use_hugepages", "--l1-use-hugepages", True),
    (f"{_GDS}.use_direct_io", "--no-gds-l1-use-direct-io", False),
    ("observability.enabled", "--disable-observability", False),
    ("observability.metrics_enabled", "--disable-metrics", False),
    ("observability.logging_enabled", "--disable-logging", False),
    ("observability.tracing_enabled", "--enable-tracing", True),
    ("observability.gc_monitor.enabled", "--enable-gc-monitor", True),
    ("observability.extra_logging_enabled", "--enable-extra-logging", True),
    ("coordinator.event_reporting", "--coordinator-event-reporting", True),
)
LISTS: tuple[tuple[str, str], ...] = (
    ("mp.runtime_plugin_config.locations", "--runtime-plugin-locations"),
    ("mp.script_allowed_imports", "--script-allowed-imports"),
    ("mp.enable", "--enable"),
)
"""Flags that take all their values at once."""
LARGEST_FIRST_ALLOCATION = 20 * 2**30
"""Bytes that a lazy L1 takes at its start (``--l1-init-size-gb``), unless L1 is smaller."""


def start_flags(config: Json) -> Iterator[tuple[str, Any]]:
    """Yield the flags that start a server with this ``/config``, without those of its L1 size, L2 adapters and modules.

    Flags with their default value are left out, and secrets are replaced by ``***``.
    """
    for place, flag, default in VALUES:
        value = at(config, place)
        usual = at(config, _FOLLOW[flag]) if default is ... else default
        if value is not None and value != usual:
            yield flag, without_secrets(value)
    for place, flag, value in SWITCHES:
        if at(config, place) is value:
            yield flag, True
    for place, flag in LISTS:
        if at(config, place):
            yield flag, tuple(at(config, place))
    if extra := at(config, "mp.runtime_plugin_config.extra_config"):
        yield "--runtime-plugin-config", json.dumps(without_secrets(extra))
    if at(config, "observability.grpc_metrics_enabled") is False and at(config, "mp.transport") == "grpc":
        yield "--disable-grpc-metrics", True  # on for grpc, and always off for zmq
    if at(config, "coordinator.event_sink_config.bootstrap_servers"):
        yield "--coordinator-event-transport", "kafka"
    yield from _shared_memory(config)


def _shared_memory(config: Json) -> Iterator[tuple[str, Any]]:
    """Yield ``--shm-name``. Its default is none from 0.5.6 on; older servers make a segment unless told not to."""
    name = at(config, "mp.shm_name")
    older = "server_modules" not in (config.get("mp") or {})
    if name or (name == "" and (older or at(config, f"{_MEMORY}.devdax_path"))):
        yield "--shm-name", name


def first_allocation(config: Json) -> Iterator[tuple[str, Any]]:
    """Yield ``--l1-init-size-gb`` if it was given."""
    size, first = at(config, f"{_MEMORY}.size_in_bytes"), at(config, f"{_MEMORY}.init_size_in_bytes")
    if first is not None and first != min(LARGEST_FIRST_ALLOCATION, size):
        yield "--l1-init-size-gb", first / 2**30


def tagged_pools(config: Json) -> list[dict[str, Any]]:
    """Return the ``--l1-manager`` objects of a server that was started with them; empty for a plain ``--l1-size-gb``."""
    pools = at(config, "storage_manager.l1_manager_configs") or []
    if [pool.get("tag") for pool in pools] in ([], ["_default"]):
        return []
    return [_tagged(pool) for pool in pools]


def _tagged(pool: Json) -> dict[str, Any]:
    memory, gds, eviction = pool["memory_config"], pool.get("gds_l1_config"), pool.get("eviction") or {}
    kind: dict[str, Any]
    if gds:
        kind = {"type": "GDS", "path": gds["file_location"], "backend": gds["backend"], "direct_io": gds["use_direct_io"]}
    elif memory.get("devdax_path"):
        kind = {"type": "DEVDAX", "path": memory["devdax_path"]}
    else:
        kind = {"type": "DRAM", "use_lazy": memory["use_lazy"], "init_size_gb": memory["init_size_in_bytes"] / 2**30}
        kind |= {"shm_name": memory.get("shm_name", ""), "use_hugepages": memory.get("use_hugepages", False)}
    return {
        **kind,
        "tag": pool["tag"],
        "size_gb": memory["size_in_bytes"] / 2**30,
        "align_bytes": memory["align_bytes"],
        "read_ttl_seconds": pool["read_ttl_seconds"],
        "write_ttl_seconds": pool["write_ttl_seconds"],
        "eviction": {name: eviction[name] for name in ("eviction_policy", "trigger_watermark", "eviction_ratio")},
    }


def at(config: Json, place: str) -> Any:  # noqa: ANN401  JSON
    """Return the value at a place like ``mp.chunk_size``, or ``None``."""
    value: Any = config
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
