"""Write the command line of an `lmcache server`, from its ``/config`` or for a server of our own, with or without a change."""

import ast
import json
import shlex
from collections.abc import Mapping
from typing import Any

from agent_tools.models import CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter
from agent_tools.redaction import SECRET, without_secrets

Flags = dict[str, Any]
"""The value of each flag: a text or number, ``True`` for a bare flag, a list for a repeated flag."""

L1_POLICIES = {EvictionPolicy.LRU: "LRU", EvictionPolicy.ARC: "ARC", EvictionPolicy.NOOP: "noop"}
"""Eviction policies for L1. LMCache 0.5.6 also accepts IsolatedLRU, but the eviction thread then dies at the watermark."""
POLICY_NAMES = {**L1_POLICIES, EvictionPolicy.ISOLATED_LRU: "IsolatedLRU"}

_FROM_CONFIG: tuple[tuple[str, str, Any], ...] = (
    # (place in /config, flag, default of 0.5.6)
    ("mp.instance_id", "--instance-id", None),
    ("mp.transport", "--transport", "zmq"),
    ("mp.host", "--host", "localhost"),
    ("mp.port", "--port", 5555),
    ("mp.chunk_size", "--chunk-size", 256),
    ("mp.max_gpu_workers", "--max-gpu-workers", 1),
    ("mp.max_cpu_workers", "--max-cpu-workers", 1),
    ("mp.hash_algorithm", "--hash-algorithm", "blake3"),
    ("mp.engine_type", "--engine-type", "default"),
    ("mp.supported_transfer_mode", "--supported-transfer-mode", "lmcache_driven"),
    ("mp.session_ttl_seconds", "--session-ttl-seconds", 600.0),
    ("mp.worker_reap_timeout_seconds", "--worker-reap-timeout-seconds", 120.0),
    ("mp.kv_event_log_size", "--kv-event-log-size", 32768),
    ("storage_manager.l1_manager_config.memory_config.align_bytes", "--l1-align-bytes", 4096),
    ("storage_manager.l1_manager_config.memory_config.devdax_path", "--l1-devdax-path", ""),
    ("storage_manager.l1_manager_config.write_ttl_seconds", "--l1-write-ttl-seconds", 600),
    ("storage_manager.l1_manager_config.read_ttl_seconds", "--l1-read-ttl-seconds", 300),
    ("storage_manager.eviction_config.eviction_policy", "--eviction-policy", None),
    ("storage_manager.eviction_config.trigger_watermark", "--eviction-trigger-watermark", 0.8),
    ("storage_manager.eviction_config.eviction_ratio", "--eviction-ratio", 0.2),
    ("storage_manager.store_policy", "--l2-store-policy", "default"),
    ("storage_manager.prefetch_policy", "--l2-prefetch-policy", "default"),
    ("storage_manager.prefetch_max_in_flight", "--l2-prefetch-max-in-flight", 8),
    ("http.http_host", "--http-host", "127.0.0.1"),
    ("http.http_port", "--http-port", 8080),
    ("observability.metrics_sample_rate", "--metrics-sample-rate", 0.01),
    ("observability.max_queue_size", "--event-bus-queue-size", 10000),
    ("observability.otlp_endpoint", "--otlp-endpoint", None),
    ("observability.lookup_hash_log.output_dir", "--lookup-hash-log-dir", ""),
    ("observability.trace_level", "--trace-level", None),
    ("observability.trace_output", "--trace-output", None),
    ("coordinator.url", "--coordinator-url", ""),
    ("coordinator.advertise_ip", "--coordinator-advertise-ip", ""),
)


def flags_of(boot: Mapping[str, Any], now: CacheConfig) -> Flags:
    """Return the flags that start a server with its present settings. Flags with their default value are left out.

    Args:
        boot: Answer of ``GET /config``: the settings at the start. The size of L1 comes from here.
        now: The settings in force.
    """
    config = {**boot, "storage_manager": {**boot["storage_manager"], **_live(boot["storage_manager"], now)}}
    flags: Flags = {"--l1-size-gb": _at(config, "storage_manager.l1_manager_config.memory_config.size_in_bytes") / 2**30}
    for place, flag, default in _FROM_CONFIG:
        value = _at(config, place)
        if value is not None and value != default:
            flags[flag] = without_secrets(value)
    if not _at(config, "storage_manager.l1_manager_config.memory_config.use_lazy"):
        flags["--no-l1-use-lazy"] = True
    if "--l1-devdax-path" in flags:
        flags["--shm-name"] = _at(config, "mp.shm_name") or ""
    flags["--l2-adapter"] = [adapter_json(adapter) for adapter in now.l2_adapters or ()]
    modules = _at(config, "mp.server_modules") or ()
    if modules:
        flags["--server-module"] = [json.dumps(without_secrets(module)) for module in modules]
    return flags


def _live(boot: Mapping[str, Any], now: CacheConfig) -> dict[str, Any]:
    """Return the known present values of the ``storage_manager`` settings that can change live."""
    eviction = {
        "eviction_policy": None if now.eviction_policy is None else POLICY_NAMES[now.eviction_policy],
        "trigger_watermark": now.eviction_watermark,
        "eviction_ratio": now.eviction_ratio,
    }
    known = {name: value for name, value in eviction.items() if value is not None}
    policies = {"store_policy": now.l2_store_policy, "prefetch_policy": now.l2_prefetch_policy}
    return {
        "eviction_config": {**(boot.get("eviction_config") or {}), **known},
        **{name: value for name, value in policies.items() if value is not None},
    }


def with_update(flags: Flags, update: ConfigUpdate) -> Flags:
    """Return the flags with the settings of an update."""
    changed = dict(flags)
    policy = update.eviction_policy
    if update.auto_eviction and policy is None and flags.get("--eviction-policy") == L1_POLICIES[EvictionPolicy.NOOP]:
        policy = EvictionPolicy.LRU  # the usual policy of LMCache
    wanted: Flags = {
        "--l1-size-gb": None if update.max_size_mb is None else update.max_size_mb / 1024,
        "--eviction-policy": None if policy is None else POLICY_NAMES[policy],
        "--eviction-trigger-watermark": update.eviction_watermark,
        "--eviction-ratio": update.eviction_ratio,
        "--chunk-size": update.chunk_size,
        "--l2-store-policy": update.l2_store_policy,
        "--l2-prefetch-policy": update.l2_prefetch_policy,
        "--l2-adapter": None if update.l2_adapters is None else [adapter_json(a) for a in update.l2_adapters],
    }
    changed.update({flag: value for flag, value in wanted.items() if value is not None})
    return changed


def argv(flags: Flags) -> list[str]:
    """Return the arguments after ``lmcache server``."""
    arguments: list[str] = []
    for flag, value in flags.items():
        if value is True:
            arguments.append(flag)
        else:
            for one in value if isinstance(value, list) else [value]:
                arguments += [flag, f"{one:.12g}" if isinstance(one, float) else str(one)]
    return arguments


def command_line(flags: Flags) -> str:
    """Return one line to paste into a shell. Secrets appear as ``***``; the operator must fill them in."""
    return shlex.join(["lmcache", "server", *argv(flags)])


def adapter_json(adapter: L2Adapter) -> str:
    """Return the value of ``--l2-adapter`` for one adapter."""
    return json.dumps({"type": adapter.type, **adapter.settings})


def has_secret(adapter: L2Adapter) -> bool:
    """Return whether a secret of the adapter is hidden as ``***``, so that we cannot start the adapter."""
    return SECRET in adapter_json(adapter)


def adapter_of(type_name: str, reported: Mapping[str, Any]) -> L2Adapter:
    """Return an adapter from one entry of ``l2_adapter_config.adapters`` in ``/config``, with secrets replaced by ``***``."""
    settings = {name: value for name, value in reported.items() if value not in (None, "")}
    persist, serde, eviction = (
        _constructor_fields(settings.pop(name, None)) for name in ("persist_config", "serde_config", "eviction_config")
    )
    if eviction:
        settings["eviction"] = {name: eviction[name] for name in ("eviction_policy", "trigger_watermark", "eviction_ratio")}
    if persist.get("persist_enabled") is False:
        settings["persist_enabled"] = False
    if serde:
        settings["serde"] = {"type": serde["type"], **serde["kwargs"]}
    if "devices" in settings:  # only type dax has devices; a single device also has ``device_path``
        devices = [_constructor_fields(device) for device in settings.pop("devices")]
        settings |= {"devices": devices} if len(devices) > 1 else {}
    settings = without_secrets(settings)
    defaults = {"affinity_tag": "_default", "shared": False, "use_odirect": False}
    kept = {name: value for name, value in settings.items() if defaults.get(name, ...) != value}
    return L2Adapter(type=type_name, settings=kept)


def _constructor_fields(text: Any) -> dict[str, Any]:  # noqa: ANN401  JSON
    """Return the fields of a Python repr such as ``EvictionConfig(eviction_policy='LRU', ...)``. 0.5.6 reports these reprs."""
    if not isinstance(text, str):
        return {}
    try:
        call = ast.parse(text, mode="eval").body
        return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg} if isinstance(call, ast.Call) else {}
    except (SyntaxError, ValueError):
        return {}


def _at(config: Mapping[str, Any], place: str) -> Any:  # noqa: ANN401  JSON
    value: Any = config
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
