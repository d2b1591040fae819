"""One worker of an engine, through its internal API server: what it answers -> our snapshot and configuration."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent_tools.deployments.snapshot import Snapshot
from agent_tools.errors import LMCacheToolError, NotLMCacheError, UnreachableError
from agent_tools.models import MB, CacheConfig, EvictionPolicy, Health, L2Adapter
from agent_tools.models.config import MB_IN_A_GB
from agent_tools.plain import plain
from agent_tools.redaction import text_without_secrets
from agent_tools.wire.http_client import MOST_SAID, AdminClient

from .exposition import EngineExposition, parse_engine_exposition
from .settable import DISK

Json = Mapping[str, Any]
CPU_BACKEND = "LocalCPUBackend"
"""L1."""
DISK_BACKEND = "LocalDiskBackend"
POLICIES = (EvictionPolicy.LRU, EvictionPolicy.LFU, EvictionPolicy.FIFO, EvictionPolicy.MRU)
_WHERE = (
    "An engine's worker N answers on internal_api_server_port_start + 1 + N, its scheduler on internal_api_server_port_start,"
    " when internal_api_server_enabled is true"
)
_OTHERS = (
    ("/status", "storage_manager", "the admin API of an `lmcache server`, whose target is http://host:port"),
    ("/instances", "instances", "LMCache's coordinator, whose target is fleet:http://host:port"),
    ("/v1/models", "data", "the port on which the inference engine takes prompts"),
)
"""(path, key in its answer, what has that)"""


@dataclass(frozen=True)
class WorkerState:
    """How one worker is set and switched now."""

    conf: Json
    """``/conf``: what was asked for, which for most keys is in force since the start only."""
    meta: Json
    """``/meta``: role, rank, model, shape of its KV."""
    backends: tuple[str, ...] = ()
    """All that are attached, by LMCache's name; none in a scheduler."""
    bypassed: tuple[str, ...] = ()
    """Of these, the ones that are neither read nor written."""
    frozen: bool = False
    """Whether nothing is stored and L1 alone is read."""
    hot: bool = True
    """Whether L1 keeps what is stored."""

    @property
    def is_scheduler(self) -> bool:
        """Whether it has a configuration only; the cache is in the workers."""
        return self.meta.get("role") == "scheduler"

    @property
    def keys_per_chunk(self) -> int:
        """Objects that make one chunk of this worker."""
        return int(self.meta["kv_shape"][0]) if self.conf["use_layerwise"] else 1

    @property
    def serving(self) -> list[str]:
        """Backends in which a lookup can find something."""
        off = {*self.bypassed, *(() if self.hot else (CPU_BACKEND,))}
        return [name for name in self.backends if name not in off and (not self.frozen or name == CPU_BACKEND)]


class Worker:
    """The internal API server at one address."""

    def __init__(self, url: str, timeout: float) -> None:
        self._admin = AdminClient(url, timeout)
        self.url = self._admin.base_url

    async def close(self) -> None:
        """Close the connections."""
        await self._admin.close()

    async def read(self, path: str, **params: Any) -> Any:  # noqa: ANN401  JSON
        """GET; see `AdminClient.read`."""
        async with self._asked(path):
            return await self._admin.read(path, **params)

    async def change(self, method: str, path: str, body: Any = None, *, at_least: float = 0.0) -> Any:  # noqa: ANN401  JSON
        """Send one change, once; see `AdminClient.change`."""
        async with self._asked(path):
            return await self._admin.change(method, path, body, at_least=at_least)

    async def state(self) -> WorkerState:
        """From ``/conf``, ``/meta``, ``/bypass/list``, ``/freeze/status`` and ``/hot_cache/status``."""
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
            # A backend that was detached while it was bypassed stays in the list of those (0.5.6).
            bypassed = tuple(name for name in bypass["bypassed_backends"] if name in backends)
            return replace(state, backends=backends, bypassed=bypassed, frozen=freeze["freeze"], hot=hot["hot_cache"])

    async def snapshot(self) -> Snapshot | None:
        """Counters (up to 10 s old) and sizes; ``None`` of a scheduler, which has none of its own."""
        asked_at = _now()
        state = await self.state()
        if state.is_scheduler:
            return None
        async with self._asked("/metrics"):
            text = await self._admin.read_text("/metrics")
        with self.understood("/metrics"):
            seen = parse_engine_exposition(text, state.conf["chunk_size"], state.keys_per_chunk)
            return _snapshot_of(asked_at, state, seen)

    @contextlib.contextmanager
    def understood(self, path: str) -> Iterator[None]:
        """Put around the taking apart of an answer: one of another shape than LMCache 0.5 gives is a `NotLMCacheError`."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise NotLMCacheError(
                f"{self.url} does not answer {path} as an LMCache engine 0.5 does ({type(error).__name__}:"
                f" {plain(error, MOST_SAID)}): something else, or another version, answers there. {_WHERE}"
            ) from error

    @contextlib.asynccontextmanager
    async def _asked(self, path: str) -> AsyncIterator[None]:
        """Failures in the words of an engine."""
        try:
            yield
        except UnreachableError as error:
            raise UnreachableError(
                f"no engine answered {path} at {self.url} within {self._admin.timeout:g} s; nothing was changed. {_WHERE}"
            ) from error
        except NotLMCacheError as error:
            raise NotLMCacheError(f"{self.url} is not an engine's internal API: {await self._what()}. {_WHERE}") from error

    async def _what(self) -> str:
        """What else it is, as far as that can be seen."""
        for path, key, what in _OTHERS:
            with contextlib.suppress(LMCacheToolError):
                answer = await self._admin.read(path)
                if isinstance(answer, dict) and key in answer:
                    return f"it is {what}"
        return "something else answers there"


def config_of(state: WorkerState) -> CacheConfig:
    """How one worker is set; sizes are its own.

    Size and policy of L1 are those of ``/conf``, since LMCache has no figure of what it allocated: they are in force unless
    somebody wrote to ``/conf`` after the start, which we never do. What LMCache took there though it makes no sense is ``None``.
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
        auto_eviction=True,
        chunk_size=conf["chunk_size"],
        l2_adapters=tuple(_adapter_of(name, conf) for name in state.backends if name != CPU_BACKEND),
        hash_algorithm=conf.get("pre_caching_hash_algorithm"),
    )


def _adapter_of(name: str, conf: Json) -> L2Adapter:
    """A backend as an L2 adapter: type and settings under our names where we know it, else LMCache's name alone."""
    if name == DISK_BACKEND:
        return L2Adapter(type=DISK, settings={"path": conf["local_disk"], "max_capacity_gb": conf["max_local_disk_size"]})
    if name == "RemoteBackend":
        return L2Adapter(type="remote", settings={"url": text_without_secrets(str(conf["remote_url"]))})
    return L2Adapter(type=name)


def _snapshot_of(asked_at: float, state: WorkerState, seen: EngineExposition) -> Snapshot:
    conf, l2 = state.conf, [name for name in state.backends if name != CPU_BACKEND]
    accounted = l2 == [DISK_BACKEND]
    return Snapshot(
        asked_at=asked_at,
        taken_at=_now(),
        process_start=seen.process_start,
        instance_id=conf.get("lmcache_instance_id"),
        counters=seen.counters,
        tokens=seen.tokens,
        l1_used_bytes=seen.l1_used_bytes,
        l1_total_bytes=round(conf["max_local_cpu_size"] * MB_IN_A_GB * MB),
        resident_objects=seen.resident_keys,
        objects_per_chunk=float(state.keys_per_chunk),
        chunk_size=conf["chunk_size"],
        health=_health_of(state, seen),
        l2_used_bytes=seen.disk_used_bytes if accounted else None,
        l2_total_bytes=round(conf["max_local_disk_size"] * MB_IN_A_GB * MB) if accounted else None,
        uncounted=UNCOUNTED,
    )


UNCOUNTED = dict.fromkeys(
    (
        "failed_stores",
        "short_prompts",
        "dropped_events",
        "evicted_followed",
        "evicted_needed",
        "l2_loads_failed",
        "l2_loads_lost",
        "l2_evictions",
        "locked_chunks",
    ),
    "an LMCache engine does not count it",
) | {"tokens.hit_l2": "an LMCache engine does not count hits by tier: those of a disk tier stand among those of L1"}


def _health_of(state: WorkerState, seen: EngineExposition) -> Health:
    problems = [f"{name} is bypassed: it is neither read nor written" for name in state.bypassed]
    if seen.healthy is False:
        problems.append("LMCache's health monitor says that the engine is unhealthy: it serves nothing; look at the engine's log")
    if state.frozen:
        problems.append("the engine is frozen: nothing is stored, and L1 alone is read")
    if not state.hot and state.conf.get("local_cpu"):
        problems.append("the hot cache is off: L1 keeps nothing")
    return Health(healthy=not problems, problems=tuple(problems))


def _positive(size: float) -> float | None:
    return size if size > 0 else None


def _now() -> float:
    """Unix time to the microsecond, as datetimes are: a reading must not fall out of the window that begins with it."""
    return round(time.time(), 6)
