"""No LMCache at hand: the server model as a cache, asked by generated or recorded traffic. Nothing is stored or computed.

What it gives is what the model says a private `lmcache server` 0.5.6 with our module would give; it differs from one in that

* all KV has one size, and a request is served in an instant: lookups, loads and a restart take no time;
* what L2 holds is gone after a restart, and when its adapter is exchanged;
* prompts have no token ids, so that none can be named for warming or deleting.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
import anyio.to_thread
import numpy as np
from pydantic import Field, model_validator

from agent_tools.deployments.base import Progress
from agent_tools.deployments.server.command_line import L1_POLICIES
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.deployments.start_options import ServerOptions
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
from .settable import NOT_MODELLED, another_store, is_modelled, support_of, updated
from .traffic import MODEL, Traffic

T = TypeVar("T")
NO_TOKENS = "prompts of a simulated cache have no token ids, so none can be named by them; {}. Nothing was changed"
_ELSEWHERE = {"seed", "chunk_size", "requests"}
"""Fields of `AgentTraffic` that follow from the options of the cache."""


class SimulatedOptions(ServerOptions):
    """What is simulated, and under which traffic."""

    l1_size_mb: Annotated[float, Field(gt=0)] = 16_384.0
    """L1 capacity, MB; no memory is taken."""
    kv_bytes_per_token: Annotated[int, Field(gt=0)] = 131_072
    """KV of one token, bytes; by default that of Llama 3.1 8B in 16 bits."""
    workload: Path | None = None
    """A recorded workload instead of generated traffic, as `read_trace` reads it. The cache is idle when it has ended."""
    traffic: AgentTraffic | None = AgentTraffic()
    """Traffic that is generated without end (its `requests` do not count); ``None`` for a cache that nobody asks."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the traffic, and of the moments at which the eviction thread wakes."""
    speed: Annotated[float, Field(gt=0)] = 1.0
    """How many times faster than it says the workload comes, as in a paced replay; the eviction thread keeps its second."""

    @model_validator(mode="after")
    def _said_once(self) -> "SimulatedOptions":
        twice = sorted(_ELSEWHERE & self.traffic.model_fields_set) if self.traffic else []
        if twice:
            msg = f"traffic.{twice[0]} is that of the simulated cache itself, or without end; leave it out of its traffic"
            raise ValueError(msg)
        return self


class SimulatedDeployment:
    """A modelled server, whose time is that of a clock; it starts with the first call."""

    backend = "simulated"
    owned = True

    def __init__(self, options: SimulatedOptions, clock: Callable[[], float] | None = None) -> None:
        """Nothing is read or generated yet.

        Args:
            options: What is simulated.
            clock: Unix time, seconds; that of this machine by default. See also `advance`.

        Raises:
            UnsupportedError: The model does not cover these options.
        """
        self._config = _start_config(options)
        if options.eviction_policy not in L1_POLICIES or not is_modelled(self._config):
            names = ", ".join(policy.value for policy in L1_POLICIES)
            raise UnsupportedError(f"such a cache cannot be simulated: {NOT_MODELLED}; policies of L1 are {names}")
        self._options = options
        self._clock = clock or time.time
        self._ahead = 0.0
        self._origin = 0.0
        self._starts = np.random.default_rng(options.seed)
        self._traffic: Traffic | None = None
        self._server: SimulatedServer | None = None
        self._alone = anyio.Lock()

    async def advance(self, seconds: float) -> None:
        """Let so much time pass at once, beside that of the clock."""
        await self._asked(lambda _: None)  # it starts now, not then
        self._ahead += seconds
        await self._asked(lambda _: None)

    async def send(self, log: AccessLog, *, pace: float = 1.0, model: str = MODEL) -> float:
        """Ask for a log's requests from now on, besides the workload.

        Args:
            log: Two logs that give their chunks the same numbers ask for the same prompts, if model and tenant are equal too.
            pace: How many times faster than the log says.
            model: Name for the requests of a log that names none.

        Returns:
            Unix time of the last one.

        Raises:
            WorkloadError: It has chunks that do not make up those of this cache; nothing was sent.
        """

        def send(_: SimulatedServer) -> float:
            assert self._traffic is not None  # noqa: S101  it comes before the server
            now = self._seconds()
            self._traffic.send(log, now, pace, model)
            return self._origin + now + log.duration / pace

        return await self._asked(send)

    async def close(self) -> None:
        """There is nothing to stop; the next call starts a new server."""
        self._server = self._traffic = None

    async def snapshot(self) -> Snapshot:
        """What the modelled server has counted, at the time of the clock."""
        return await self._asked(lambda server: server.snapshot())

    async def version(self) -> str | None:
        """That there is none."""
        return "simulated"

    async def config(self) -> CacheConfig:
        """The settings in force."""
        return self._config

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """As for a private server with our module; what the model does not cover cannot be set."""

        def support(server: SimulatedServer) -> Mapping[str, Support]:
            size = update.chunk_size if update else None
            obstacle = None if size is None or self._traffic is None else self._traffic.obstacle(size, server.now)
            return support_of(self._config, server.primary_mb, update, obstacle)

        return await self._asked(support)

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Live when all of it can be changed live; else all of it by one restart. What came before stays as it was."""
        support = await self.support(update)
        levels = {setting: support[setting] for setting in update.known()}
        for setting, one in levels.items():
            if one.level is SupportLevel.UNSUPPORTED:
                raise UnsupportedError(f"{setting} cannot be changed: {one.reason}. Nothing was changed")
        restarts = any(one.level is SupportLevel.RESTART for one in levels.values())
        progress("restarting the simulated server; L1 starts empty" if restarts else "changing the simulated server")
        await self._asked(lambda server: self._change(server, updated(self._config, update), restarts=restarts))

    async def restart_command(self, update: ConfigUpdate) -> str | None:  # noqa: ARG002
        """There is no process."""
        return None

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """The chunks of L1 with most hits."""
        return await self._asked(lambda server: server.entries(limit))

    async def clear(self) -> None:
        """All of L1; L2 is not touched."""
        await self.trim(0)

    async def trim(self, max_used_bytes: int) -> None:
        """In the order in which LMCache itself would evict."""
        await self._asked(lambda server: server.trim(max_used_bytes))

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """By the hashes that `entries` and the access log tell."""
        hashes = {one.removeprefix("0x") for one in chunk_hashes}
        return await self._asked(lambda server: server.delete(model, hashes, tenant))

    async def warm(self, model: str, tokens: Sequence[int], tenant: str) -> WarmResult:  # noqa: ARG002
        """Always refused."""
        raise UnsupportedError(NO_TOKENS.format("warm a real cache"))

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:  # noqa: ARG002
        """Always refused."""
        raise UnsupportedError(NO_TOKENS.format("delete chunks by their hash instead"))

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:  # noqa: ARG002
        """Always refused, as an `lmcache server` does."""
        raise UnsupportedError("a simulated cache has no pins, as an `lmcache server` by itself has none. Nothing was changed")

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """Those that have sent requests since the start."""
        return await self._asked(lambda server: server.tenants())

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """All requests since the server started, at Unix times; ``None`` before the first."""
        return await lookups_since(await self._asked(lambda server: server.log()), since)

    # ---- parts ----

    async def _asked(self, answer: Callable[[SimulatedServer], T]) -> T:
        """Bring the server to the time of the clock and ask it; in a thread, since it may have much to catch up on."""
        async with self._alone:
            return await anyio.to_thread.run_sync(lambda: answer(self._at_present()))

    def _at_present(self) -> SimulatedServer:
        if self._server is None:
            self._origin = self._clock() + self._ahead
            self._traffic = Traffic(_workload(self._options), self._options.chunk_size, self._options.speed)
            self._server = self._start(self._traffic, 0.0)
        self._server.advance(self._seconds())
        return self._server

    def _seconds(self) -> float:
        """Since the cache was first read."""
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
        assert self._traffic is not None  # noqa: S101  it comes before the server
        self._traffic.restart(config.chunk_size or self._options.chunk_size, server.now)
        self._server = self._start(self._traffic, server.now)


def _start_config(options: SimulatedOptions) -> CacheConfig:
    return CacheConfig(
        enabled=True,
        max_size_mb=options.l1_size_mb,
        eviction_policy=options.eviction_policy,
        enable_prefix_caching=True,
        min_prefix_length=options.chunk_size,
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
