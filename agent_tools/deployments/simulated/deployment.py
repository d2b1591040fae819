"""A simulated cache: the server model under generated or recorded traffic. It stores and computes nothing.

It answers as the model predicts for an `lmcache server` 0.5.6 of our own with our module. It differs from a real server:

* All KV has one size, and lookups, loads and restarts take no time.
* L2 loses its contents at a restart, and when its adapter is replaced.
* Prompts have no token ids, so that no prompt can be warmed or deleted by its tokens.
* With the policies LFU and FIFO, which only in-process LMCache has, it follows the model of in-process LMCache.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import anyio
import anyio.to_thread
import numpy as np

from agent_tools.deployments.base import Progress
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.deployments.start_options import SimulatedOptions
from agent_tools.errors import UnsupportedError
from agent_tools.models import (
    CacheConfig,
    CacheEntry,
    ConfigUpdate,
    EvictionPolicy,
    Support,
    SupportLevel,
    TenantUsage,
    WarmResult,
)
from agent_tools.prediction.eviction_clock import PERIOD
from agent_tools.workload.access_log import AccessLog, lookups_since
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.readers import read_trace

from .server import SimulatedServer
from .settable import IN_PROCESS, NOT_MODELLED, POLICIES, another_store, is_modelled, shown, support_of, updated
from .traffic import MODEL, Traffic

T = TypeVar("T")
NO_TOKENS = "prompts of a simulated cache have no token ids; {}. Nothing was changed"


class SimulatedDeployment:
    """A simulated server whose time comes from a clock.

    The server is made at the first call. If its traffic is generated, it started ``past_seconds`` of traffic before that call and
    has served this traffic. A recorded workload begins with the first call.
    """

    backend = "simulated"
    owned = True

    def __init__(self, options: SimulatedOptions, clock: Callable[[], float] | None = None) -> None:
        """Check the options, without reading or generating anything yet.

        Args:
            options: The options of the cache and of its traffic.
            clock: A function that returns the Unix time in seconds. The default is this machine's clock. See also `advance`.

        Raises:
            UnsupportedError: The model does not cover these options.
        """
        self._config = _start_config(options)
        in_process = options.eviction_policy in IN_PROCESS
        if options.eviction_policy not in POLICIES or not is_modelled(self._config) or (in_process and options.l2_adapters):
            names = ", ".join(policy.value for policy in POLICIES)
            raise UnsupportedError(f"such a cache cannot be simulated: {NOT_MODELLED}; the policies for L1 are {names}")
        self._options = options
        self._clock = clock or time.time
        self._ahead = 0.0
        self._origin = 0.0
        self._starts = np.random.default_rng(options.seed)
        self._traffic: Traffic | None = None
        self._server: SimulatedServer | None = None
        self._alone = anyio.Lock()

    async def advance(self, seconds: float) -> None:
        """Move the time of the cache ahead of the clock by `seconds`, at once."""
        await self._asked(lambda _: None)  # the server must start before the time moves
        self._ahead += seconds
        await self._asked(lambda _: None)

    async def send(self, log: AccessLog, *, pace: float = 1.0, model: str = MODEL) -> float:
        """Send the requests of a log from now on, in addition to the workload.

        Args:
            log: The requests. Two logs with the same chunk numbers, model and tenant send the same prompts.
            pace: How many times faster than recorded to send the requests.
            model: Model name for requests of a log without one.

        Returns:
            Unix time in seconds of the last request.

        Raises:
            WorkloadError: This cache's chunk size is not a multiple of the log's. Nothing was sent.
        """

        def send(_: SimulatedServer) -> float:
            assert self._traffic is not None  # noqa: S101  set before the server
            now = self._seconds()
            self._traffic.send(log, now, pace, model)
            return self._origin + now + log.duration / pace

        return await self._asked(send)

    async def close(self) -> None:
        """Forget the server. The next call starts a new one."""
        self._server = self._traffic = None

    async def snapshot(self) -> Snapshot:
        """Return the simulated server's counters and sizes at the time of the clock."""
        return await self._asked(lambda server: server.snapshot())

    async def version(self) -> str | None:
        """Return ``simulated``, because there is no LMCache."""
        return "simulated"

    async def config(self) -> CacheConfig:
        """Return the settings in force."""
        return shown(self._config)

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """Return how each setting can be changed, as on our own server with our module, if the model covers the setting."""

        def support(server: SimulatedServer) -> Mapping[str, Support]:
            size = update.chunk_size if update else None
            obstacle = None if size is None or self._traffic is None else self._traffic.obstacle(size, server.now)
            return support_of(self._config, server.primary_mb, update, obstacle)

        return await self._asked(support)

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change settings live if all of them can change live, else by one restart. The past stays unchanged."""
        support = await self.support(update)
        levels = {setting: support[setting] for setting in update.known()}
        for setting, one in levels.items():
            if one.level is SupportLevel.UNSUPPORTED:
                raise UnsupportedError(f"{setting} cannot be changed: {one.reason}. Nothing was changed")
        restarts = any(one.level is SupportLevel.RESTART for one in levels.values())
        progress("restarting the simulated server; L1 starts empty" if restarts else "changing the simulated server")
        await self._asked(lambda server: self._change(server, updated(self._config, update), restarts=restarts))

    async def restart_command(self, update: ConfigUpdate | None) -> str | None:  # noqa: ARG002
        """Return ``None``, because there is no process."""
        return None

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """Return the chunks of L1 with the most hits."""
        return await self._asked(lambda server: server.entries(limit))

    async def clear(self) -> None:
        """Remove all chunks from L1. L2 keeps its chunks."""
        await self.trim(0)

    async def trim(self, max_used_bytes: int) -> None:
        """Remove chunks from L1, in the order in which LMCache itself would evict, until it holds at most `max_used_bytes`."""
        await self._asked(lambda server: server.trim(max_used_bytes))

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """Delete chunks from L1 by the hashes in `entries` and in the access log. Return the number of deleted chunks."""
        hashes = {one.removeprefix("0x") for one in chunk_hashes}
        return await self._asked(lambda server: server.delete(model, hashes, tenant))

    async def warm(self, model: str, tokens: Sequence[int], tenant: str) -> WarmResult:  # noqa: ARG002
        """Raise `UnsupportedError`, because prompts have no token ids."""
        raise UnsupportedError(NO_TOKENS.format("warm a real cache instead"))

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:  # noqa: ARG002
        """Raise `UnsupportedError`, because prompts have no token ids."""
        raise UnsupportedError(NO_TOKENS.format("delete chunks by their hash instead"))

    async def still_found(self, model: str, tokens: Sequence[int], tenant: str) -> tuple[int | None, str]:  # noqa: ARG002
        """Say that prompts have no token ids."""
        return None, "simulated prompts have no token ids"

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:  # noqa: ARG002
        """Raise `UnsupportedError`, like an `lmcache server`."""
        raise UnsupportedError("a simulated cache has no pins, like an `lmcache server` without coordinator. Nothing was changed")

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """Return the usage of all tenants with requests since the start."""
        return await self._asked(lambda server: server.tenants())

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """Return the requests since the server started, with Unix times, or ``None`` before the first."""
        return await lookups_since(await self._asked(lambda server: server.log()), since)

    # ---- parts ----

    async def _asked(self, answer: Callable[[SimulatedServer], T]) -> T:
        """Advance the server to the time of the clock and ask it, in a thread, because advancing may take long."""
        async with self._alone:
            return await anyio.to_thread.run_sync(lambda: answer(self._at_present()))

    def _at_present(self) -> SimulatedServer:
        if self._server is None:
            past = self._options.past_seconds / self._options.speed if self._generates else 0.0
            self._origin = self._clock() + self._ahead - past
            self._traffic = Traffic(_workload(self._options), self._options.chunk_size, self._options.speed)
            self._server = self._start(self._traffic, 0.0)
        self._server.advance(self._seconds())
        return self._server

    @property
    def _generates(self) -> bool:
        return self._options.workload is None and self._options.traffic is not None

    def _seconds(self) -> float:
        """Return the seconds since the server first started."""
        return self._clock() + self._ahead - self._origin

    def _start(self, traffic: Traffic, instant: float) -> SimulatedServer:
        return SimulatedServer(
            traffic,
            self._config,
            bytes_per_token=self._options.kv_bytes_per_token,
            origin=self._origin,
            started=instant,
            first_tick=instant + PERIOD * float(self._starts.random()),
        )

    def _change(self, server: SimulatedServer, config: CacheConfig, *, restarts: bool) -> None:
        before, self._config = self._config, config
        if not restarts:
            server.reconfigure(config, empty_l2=another_store(before.l2_adapters or (), config.l2_adapters or ()))
            return
        assert self._traffic is not None  # noqa: S101  set before the server
        self._traffic.restart(config.chunk_size or self._options.chunk_size, server.now)
        self._server = self._start(self._traffic, server.now)


def _start_config(options: SimulatedOptions) -> CacheConfig:
    return CacheConfig(
        enabled=True,
        max_size_mb=options.l1_size_mb,
        eviction_policy=options.eviction_policy,
        enable_prefix_caching=True,
        min_prefix_length=options.chunk_size,
        cache_warmup=False,
        enable_sharing=True,
        auto_eviction=options.eviction_policy is not EvictionPolicy.NOOP,
        chunk_size=options.chunk_size,
        eviction_watermark=options.eviction_watermark,
        eviction_ratio=options.eviction_ratio,
        l2_adapters=options.l2_adapters,
        l2_store_policy="default",
        l2_prefetch_policy=options.l2_prefetch_policy,
        tenant_quotas_mb={},
    )


def _workload(options: SimulatedOptions) -> AgentTraffic | AccessLog | None:
    if options.workload is not None:
        return read_trace(options.workload)
    return options.traffic and options.traffic.model_copy(update={"seed": options.seed})
