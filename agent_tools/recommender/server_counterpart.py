"""What stands for each setting of in-process LMCache 0.5.6 in an `lmcache server`.

That is a flag, an option of the engine's connector, or nothing, with the reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from agent_tools.deployments.server.command_line import Flags, adapter_json
from agent_tools.models import L2Adapter
from agent_tools.models.config import STABLE_HASHES
from agent_tools.plain import plain

DEFAULT_CHUNK, DEFAULT_SIZE_GB, DEFAULT_POLICY = 256, 5.0, "LRU"
"""LMCache's own defaults of ``chunk_size``, ``max_local_cpu_size`` and ``cache_policy``."""
EVICTION = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}
_NEEDLESS: dict[str, str] = {
    "local_cpu": "a server always has an L1",
    "local_cpu_use_hugepages": "--l1-use-hugepages, if the host has huge pages reserved",
    "internal_api_server_enabled": "the server's own HTTP API (--http-port)",
    "internal_api_server_host": "the server's own HTTP API (--http-host)",
    "internal_api_server_port_start": "the server's own HTTP API (--http-port)",
    "enable_chunk_statistics": "the server's lookup log (--lookup-hash-log-dir)",
    "chunk_statistics_strategy": "the server's lookup log (--lookup-hash-log-dir)",
    "chunk_statistics_auto_start_statistics": "the server's lookup log (--lookup-hash-log-dir)",
    "lmcache_instance_id": "--instance-id, random by default",
    "enable_controller": "`lmcache coordinator` (--coordinator-url)",
    "controller_pull_url": "`lmcache coordinator` (--coordinator-url)",
    "controller_reply_url": "`lmcache coordinator` (--coordinator-url)",
    "lookup_timeout_ms": "lmcache.mp.mq_timeout, in seconds, among the connector's options",
    "blocking_timeout_secs": "lmcache.mp.mq_timeout among the connector's options",
    "enable_async_loading": "the server always loads beside the engine",
    "enable_lazy_memory_allocator": "L1 is lazy by default where memory is pinned (--no-l1-use-lazy turns it off)",
}
"""Settings that need no flag, or one that this command does not choose -> what stands in their place."""
_NOTHING: dict[str, str] = {
    "save_unfull_chunk": "the server stores whole chunks only: the end of a prompt, shorter than a chunk, is computed each time",
    "min_retrieve_tokens": "the server retrieves every hit of a chunk or more",
    "priority_limit": "the server stores requests of every priority; a request can say lmcache.max_offload_tokens for itself",
    "hit_miss_ratio": "the server has no such rule",
    "use_layerwise": "the server transfers whole chunks, not layer by layer",
    "enable_blending": "a server blends with --engine-type blend, whose other settings are not those of the engine",
    "enable_p2p": "servers share chunks over --p2p-advertise-url and --p2p-listen-url, whose set-up is another",
    "enable_pd": "prefill and decode separation has no server in this form: keep it in the engines",
    "store_location": "a server stores to L1 and every L2 adapter",
    "retrieve_locations": "a server retrieves from L1 and every L2 adapter",
    "external_lookup_client": "the server answers lookups itself",
    "remote_serde": "the server's serde are others (fp8, turboquant), set in an adapter's `serde`",
    "numa_mode": "pin the server itself, e.g. with numactl",
    "reserve_local_cpu_size": "give the server the memory it may take",
    "gds_path": "see --gds-l1-path, which replaces L1 instead of standing behind it",
}
"""Settings without a counterpart -> what that means."""


@dataclass
class Counterpart:
    """A configuration of in-process LMCache, set against a server's."""

    flags: Flags = field(default_factory=dict)
    """Flags of the server, without its L1 size, watermark and ratio."""
    connector: dict[str, Any] = field(default_factory=dict)
    """Options of the engine's connector."""
    kept: dict[str, str] = field(default_factory=dict)
    """Setting -> what stands for it."""
    lost: dict[str, str] = field(default_factory=dict)
    """Setting -> why nothing stands for it."""
    notes: list[str] = field(default_factory=list)
    adapters: list[L2Adapter] = field(default_factory=list)

    def keep(self, name: str, flag: str, value: Any) -> None:  # noqa: ANN401  the value of a flag
        """Note a setting for which a flag stands."""
        self.flags[flag] = value
        self.kept[name] = f"{flag} {value}"


def counterpart_of(settings: Mapping[str, Any], copies: int) -> Counterpart:
    """Return what stands for the settings of in-process LMCache.

    Args:
        settings: Its configuration, by LMCache's names. What is missing has LMCache's default.
        copies: Workers whose caches hold different KV: sizes are per worker there, and of the whole server here.
    """
    found = Counterpart()
    found.keep("chunk_size", "--chunk-size", settings.get("chunk_size") or DEFAULT_CHUNK)
    _policy(found, str(settings.get("cache_policy") or DEFAULT_POLICY))
    _hashes(found, settings.get("pre_caching_hash_algorithm"))
    _disk(found, settings, copies)
    _remote(found, settings)
    if settings.get("save_decode_cache"):
        found.connector["lmcache.mp.save_decode_cache"] = True
        found.kept["save_decode_cache"] = "lmcache.mp.save_decode_cache among the connector's options"
    extra = settings.get("extra_config")
    unknown = [name for name in extra if not str(name).startswith("chunk_statistics_")] if isinstance(extra, Mapping) else []
    if unknown:
        found.lost["extra_config"] = f"{', '.join(map(plain, unknown))}: settings of backends inside the engine"
    for name, value in settings.items():
        if name in found.kept or name in found.lost or name in _HANDLED or value is None or value is False or value == "":
            continue
        if name in _NEEDLESS:
            found.kept[name] = _NEEDLESS[name]
        else:
            found.lost[plain(name)] = _NOTHING.get(name, "LMCache's server has no such setting that we know")
    if found.adapters:
        found.flags["--l2-adapter"] = [adapter_json(adapter.masked) for adapter in found.adapters]
    return found


_HANDLED = frozenset({
    "chunk_size", "max_local_cpu_size", "cache_policy", "pre_caching_hash_algorithm", "local_disk", "max_local_disk_size",
    "remote_url", "save_decode_cache", "extra_config",
})  # fmt: skip


def _policy(found: Counterpart, policy: str) -> None:
    found.flags["--eviction-policy"] = "LRU"
    if policy.upper() == "LRU":
        found.kept["cache_policy"] = "--eviction-policy LRU, which evicts in another order (see what changes)"
    else:
        found.lost["cache_policy"] = f"a server has LRU, ARC and noop, not {plain(policy)}: LRU is taken"


def _hashes(found: Counterpart, algorithm: object) -> None:
    if algorithm is None:
        return
    if algorithm in STABLE_HASHES:
        found.keep("pre_caching_hash_algorithm", "--hash-algorithm", algorithm)
    else:
        found.kept["pre_caching_hash_algorithm"] = "blake3, the server's own: names are the same in every process without a seed"


def _disk(found: Counterpart, settings: Mapping[str, Any], copies: int) -> None:
    path, size = settings.get("local_disk"), settings.get("max_local_disk_size")
    if not path or path is True or not isinstance(size, int | float) or size <= 0:
        if path:
            found.lost["local_disk"] = "max_local_disk_size is not above 0, so the disk is not used"
        return
    first, *others = [one.strip() for one in (path if isinstance(path, list) else str(path).split(","))]
    folder = first.removeprefix("file://").rstrip("/") + "/lmcache-server"
    adapter = L2Adapter(type="fs_native", settings={"base_path": folder, "max_capacity_gb": size * copies, "eviction": EVICTION})
    found.adapters.append(adapter)
    found.kept["local_disk"] = f"an fs_native L2 in {folder}"
    found.kept["max_local_disk_size"] = f"max_capacity_gb {size * copies:g} of that L2, for all workers"
    found.notes.append(f"create {folder} before the start; the files of in-process LMCache cannot be read by a server")
    if others:
        found.notes.append(
            f"the other paths of local_disk are left out ({', '.join(map(plain, others))}): give each an adapter of its own"
        )


def _remote(found: Counterpart, settings: Mapping[str, Any]) -> None:
    url = settings.get("remote_url")
    if not url:
        return
    parts = urlsplit(str(url).split(",", maxsplit=1)[0])
    if parts.scheme in {"redis", "rediss", "valkey"} and parts.hostname:
        secrets = {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}
        try:
            port = parts.port or 6379
        except ValueError:
            port = 6379
        given = {name: value for name, value in secrets.items() if value}
        found.adapters.append(L2Adapter(type="resp", settings={"host": parts.hostname, "port": port, **given}))
        found.kept["remote_url"] = (
            f"a resp L2 at {plain(parts.hostname)}:{port}; what in-process LMCache stored there is not found"
        )
        found.notes.append(
            "the resp L2 has no capacity: the remote store must evict by itself, or give max_capacity_gb and eviction"
        )
    elif parts.scheme == "fs":
        folder = (parts.path.rstrip("/") or "/tmp") + "/lmcache-server"  # noqa: S108  what the operator named
        found.adapters.append(L2Adapter(type="fs", settings={"base_path": folder}))
        found.kept["remote_url"] = f"an fs L2 in {folder}, which has no bound; fs_native with a capacity evicts"
        found.notes.append(f"create {folder} before the start")
    else:
        found.lost["remote_url"] = f"no adapter is known for {plain(parts.scheme)}:// ; write its --l2-adapter by hand"


def kv_transfer_config(connector: Mapping[str, Any], host: str, port: int) -> str:
    """Return the JSON of vLLM's ``--kv-transfer-config`` for a server at this RPC address."""
    options = {"lmcache.mp.host": f"tcp://{host}", "lmcache.mp.port": port, **connector}
    return json.dumps({"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": options})
