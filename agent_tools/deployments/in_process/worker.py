"""One worker of an engine with in-process LMCache: read its internal API server into a snapshot and a configuration."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import LMCacheToolError, NotLMCacheError, UnreachableError
from agent_tools.models import MB, CacheConfig, EvictionPolicy, Health, L2Adapter
from agent_tools.models.config import MB_IN_A_GB, SKIP_L1
from agent_tools.plain import plain
from agent_tools.redaction import text_without_secrets
from agent_tools.wire.access import NO_PROXY, Access
from agent_tools.wire.http_client import MOST_SAID, AdminClient
from agent_tools.wire.prometheus import parsed

from .exposition import InProcessExposition, parse_in_process_exposition
from .settable import DISK, REMOTE

Json = Mapping[str, Any]
CPU_BACKEND = "LocalCPUBackend"
"""L1."""
DISK_BACKEND = "LocalDiskBackend"
POLICIES = (EvictionPolicy.LRU, EvictionPolicy.LFU, EvictionPolicy.FIFO, EvictionPolicy.MRU)
_WHERE = (
    "With internal_api_server_enabled true, worker N answers on port internal_api_server_port_start + 1 + N, and the scheduler on"
    " port internal_api_server_port_start"
)
_OTHERS = (
    ("/status", "storage_manager", "the admin API of an `lmcache server`, whose target is http://host:port"),
    ("/instances", "instances", "LMCache's coordinator, whose target is fleet:http://host:port"),
    ("/v1/models", "data", "the port on which the serving engine takes prompts"),
)
"""Other services: a path, a key in its answer, and what the service is."""


@dataclass(frozen=True)
class WorkerState:
    """The settings and switches of one worker."""

    conf: Json
    """Answer of ``/conf``: the requested values. Most keys take effect only at a start."""
    meta: Json
    """Answer of ``/meta``: role, rank, model, shape of the KV."""
    backends: tuple[str, ...] = ()
    """The attached backends, by LMCache's name. A scheduler has none."""
    bypassed: tuple[str, ...] = ()
    """The attached backends that LMCache neither reads nor writes."""
    frozen: bool = False
    """Whether LMCache stores nothing and reads only L1."""
    hot: bool = True
    """Whether L1 keeps stored chunks."""

    @property
    def is_scheduler(self) -> bool:
        """Return whether this is the scheduler, which has a configuration but no cache."""
        return self.meta.get("role") == "scheduler"

    @property
    def keys_per_chunk(self) -> int:
        """Return how many objects make up one chunk on this worker."""
        return int(self.meta["kv_shape"][0]) if self.conf["use_layerwise"] else 1

    @property
    def serving(self) -> list[str]:
        """Return the backends in which a lookup can find a chunk."""
        off = {*self.bypassed, *(() if self.hot else (CPU_BACKEND,))}
        return [name for name in self.backends if name not in off and (not self.frozen or name == CPU_BACKEND)]


class Worker:
    """The internal API server at one address."""

    def __init__(self, url: str, timeout: float, access: Access = NO_PROXY) -> None:
        self._admin = AdminClient(url, timeout, access=access)
        self.url = self._admin.base_url
        self.meta: Json = {}
        """The answer of ``/meta`` at the last reading."""

    async def close(self) -> None:
        """Close the connections."""
        await self._admin.close()

    async def read(self, path: str, **params: Any) -> Any:  # noqa: ANN401  JSON
        """Send a GET. See `AdminClient.read`."""
        async with self._asked(path):
            return await self._admin.read(path, **params)

    async def change(self, method: str, path: str, body: Any = None, *, at_least: float = 0.0) -> Any:  # noqa: ANN401  JSON
        """Send one change, exactly once. See `AdminClient.change`."""
        async with self._asked(path):
            return await self._admin.change(method, path, body, at_least=at_least)

    async def state(self) -> WorkerState:
        """Return the state from ``/conf``, ``/meta``, ``/bypass/list``, ``/freeze/status`` and ``/hot_cache/status``."""
        conf, meta = await asyncio.gather(self.read("/conf"), self.read("/meta"))
        with self.understood("/conf, /meta"):
            state = WorkerState(dict(conf), dict(meta))
            if conf["chunk_size"] <= 0 or conf["max_local_cpu_size"] < 0 or conf["min_retrieve_tokens"] is None:
                raise ValueError("sizes below zero")
        if state.is_scheduler:
            return state
        bypass, freeze, hot = await asyncio.gather(
            self.read("/bypass/list"), self.read("/freeze/status"), self.read("/hot_cache/status")
        )
        with self.understood("/bypass/list, /freeze/status, /hot_cache/status"):
            backends = tuple(bypass["all_backends"])
            # LMCache 0.5.6 still lists a bypassed backend after it was detached.
            bypassed = tuple(name for name in bypass["bypassed_backends"] if name in backends)
            return replace(state, backends=backends, bypassed=bypassed, frozen=freeze["freeze"], hot=hot["hot_cache"])

    async def snapshot(self, *, alone: bool) -> Snapshot | None:
        """Return the counters (up to 10 s old) and sizes, or ``None`` for a scheduler, which has neither.

        Args:
            alone: Whether this is the cache's only address. Then all ranks on its page are meant, and else its own rank alone.
        """
        asked_at = _now()
        state = await self.state()
        self.meta = state.meta
        if state.is_scheduler:
            return None
        async with self._asked("/metrics"):
            page = await self._admin.read_bytes("/metrics")
        with self.understood("/metrics"):
            rank = None if alone else str(state.meta.get("worker_id"))
            seen = await parsed(parse_in_process_exposition, page, state.conf["chunk_size"], state.keys_per_chunk, rank)
            return _snapshot_of(asked_at, state, seen)

    @contextlib.contextmanager
    def understood(self, path: str) -> Iterator[None]:
        """Turn an error while parsing an answer into a `NotLMCacheError`: the answer is not LMCache 0.5's."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise NotLMCacheError(
                f"{self.url} does not answer {plain(path)} as in-process LMCache 0.5 does ({type(error).__name__}:"
                f" {plain(error, MOST_SAID)}): another program or version answers there. {_WHERE}"
            ) from error

    @contextlib.asynccontextmanager
    async def _asked(self, path: str) -> AsyncIterator[None]:
        """Turn connection errors into errors that name the engine's internal API."""
        try:
            yield
        except UnreachableError as error:
            raise UnreachableError(
                f"no engine answered {plain(path)} at {self.url} within {self._admin.timeout:g} s. Nothing was changed. {_WHERE}"
            ) from error
        except NotLMCacheError as error:
            raise NotLMCacheError(f"{self.url} is not an engine's internal API: {await self._what()}. {_WHERE}") from error

    async def _what(self) -> str:
        """Return what else answers there, if it can be recognised."""
        for path, key, what in _OTHERS:
            with contextlib.suppress(LMCacheToolError):
                answer = await self._admin.read(path)
                if isinstance(answer, dict) and key in answer:
                    return f"it is {what}"
        return "another program answers there"


def config_of(state: WorkerState) -> CacheConfig:
    """Return the configuration of one worker. Sizes are per worker.

    L1's size and policy come from ``/conf``, because LMCache does not report what it allocated. They are in force unless another
    program wrote to ``/conf`` after the start; we never do. An invalid value that LMCache accepted becomes ``None``. With
    ``local_cpu: false``, L1 only passes chunks on to L2, as with ``skip_l1`` on a server.
    """
    conf = state.conf
    policy = str(conf.get("cache_policy")).lower()
    minimum = conf["min_retrieve_tokens"]
    return CacheConfig(
        enabled=None if state.is_scheduler else bool(state.serving),
        max_size_mb=_positive(conf["max_local_cpu_size"] * MB_IN_A_GB),
        eviction_policy=next((known for known in POLICIES if known.value == policy), None),
        enable_prefix_caching=True,
        min_prefix_length=minimum if minimum > 0 else conf["chunk_size"],
        cache_warmup=False,
        enable_sharing=True,
        auto_eviction=True,
        chunk_size=conf["chunk_size"],
        l2_adapters=tuple(_adapter_of(name, conf) for name in state.backends if name != CPU_BACKEND),
        l2_store_policy=None if conf.get("local_cpu", True) else SKIP_L1,
        hash_algorithm=conf.get("pre_caching_hash_algorithm"),
    )


def _adapter_of(name: str, conf: Json) -> L2Adapter:
    """Return a backend as an L2 adapter: with our type and settings for a known backend, else only with LMCache's name."""
    if name == DISK_BACKEND:
        return L2Adapter(type=DISK, settings={"path": conf["local_disk"], "max_capacity_gb": conf["max_local_disk_size"]})
    if name == "RemoteBackend":
        return L2Adapter(type=REMOTE, settings={"url": text_without_secrets(str(conf["remote_url"]))})
    return L2Adapter(type=name)


def _snapshot_of(asked_at: float, state: WorkerState, seen: InProcessExposition) -> Snapshot:
    conf, l2 = state.conf, [name for name in state.backends if name != CPU_BACKEND]
    accounted = l2 == [DISK_BACKEND]
    return Snapshot(
        asked_at=asked_at,
        taken_at=_now(),
        process_start=seen.process_start,
        instance_id=conf.get("lmcache_instance_id"),
        counters=seen.counters,
        tokens=seen.tokens,
        unlisted=seen.unlisted,
        l1_used_bytes=seen.l1_used_bytes,
        l1_total_bytes=round(conf["max_local_cpu_size"] * MB_IN_A_GB * MB) * seen.ranks,
        resident_objects=seen.resident_keys,
        objects_per_chunk=float(state.keys_per_chunk * seen.ranks),
        chunk_size=conf["chunk_size"],
        health=_health_of(state, seen),
        l2_used_bytes=seen.disk_used_bytes if accounted else None,
        l2_total_bytes=round(conf["max_local_disk_size"] * MB_IN_A_GB * MB) * seen.ranks if accounted else None,
        uncounted=UNCOUNTED,
    )


UNCOUNTED = dict.fromkeys(
    (
        "failed_stores",
        "short_prompts",
        "unregistered_lookups",
        "layoutless_lookups",
        "dropped_events",
        "evicted_followed",
        "evicted_needed",
        "l2_loads_failed",
        "l2_loads_lost",
        "l2_evictions",
        "locked_chunks",
    ),
    "in-process LMCache does not count it",
) | {"tokens.hit_l2": "in-process LMCache does not count hits by tier: hits in the disk tier count as hits in L1"}


def _health_of(state: WorkerState, seen: InProcessExposition) -> Health:
    problems = [f"{plain(name)} is bypassed: LMCache neither reads nor writes it" for name in state.bypassed]
    if seen.healthy is False:
        problems.append("LMCache's health monitor reports that LMCache is unhealthy and serves nothing; read the engine's log")
    if state.frozen:
        problems.append("LMCache is frozen: it stores nothing and reads only L1")
    if not state.hot and state.conf.get("local_cpu"):
        problems.append("the hot cache is off: L1 keeps no chunks")
    return Health(healthy=not problems, problems=tuple(problems))


def _positive(size: float) -> float | None:
    return size if size > 0 else None


def _now() -> float:
    """Return the Unix time in microsecond precision, like datetimes, so that a reading falls into the window it starts."""
    return round(time.time(), 6)
