"""The start options of a server of our own, real or simulated.

Apart from the deployments, which take long to import: the operator's settings hold these options whatever the caches are.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from agent_tools.models import EvictionPolicy, L2Adapter
from agent_tools.models.config import Frozen, Share
from agent_tools.workload.generate import AgentTraffic

_ELSEWHERE = {"seed", "chunk_size", "requests"}
"""Fields of `AgentTraffic` that follow from the options of the cache."""


class ServerOptions(Frozen):
    """The start options that real and simulated servers share. All defaults are LMCache's defaults."""

    l1_size_mb: Annotated[float, Field(gt=0)]
    """L1 capacity, MB."""
    chunk_size: Annotated[int, Field(gt=0)] = 256
    """Tokens per chunk."""
    eviction_policy: EvictionPolicy = EvictionPolicy.LRU
    eviction_watermark: Share = 0.8
    eviction_ratio: Share = 0.2
    l2_adapters: tuple[L2Adapter, ...] = ()
    """L2 adapters, as for ``--l2-adapter``. A simulated server supports at most one."""
    l2_prefetch_policy: Annotated[str, Field(pattern="^(default|retain)$")] = "default"
    """``default`` drops a chunk from L1 after it was loaded from L2 and read; ``retain`` keeps it in L1."""


class EmbeddedOptions(ServerOptions):
    """Options with which a private server starts."""

    l1_size_mb: Annotated[float, Field(gt=0)] = 256.0
    """L1 capacity, MB. The server takes all of it from `arena_folder` when it starts."""
    arena_folder: Path = Path("/dev/shm")  # noqa: S108  shared memory is the place meant
    """Folder that holds L1; it should be in memory."""


class SimulatedOptions(ServerOptions):
    """The options of a simulated cache and of its traffic."""

    l1_size_mb: Annotated[float, Field(gt=0)] = 16_384.0
    """Simulated L1 capacity, MB. The simulation does not use this memory."""
    kv_bytes_per_token: Annotated[int, Field(gt=0)] = 131_072
    """KV of one token, bytes. The default is the size for Llama 3.1 8B in 16 bits."""
    workload: Path | None = None
    """A recorded workload for `read_trace`, instead of generated traffic. The cache is idle when the recording ends."""
    traffic: AgentTraffic | None = AgentTraffic()
    """Traffic that is generated without end; its `requests` are ignored. ``None`` generates no traffic."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the traffic, and of the moments at which the eviction thread wakes."""
    past_seconds: Annotated[float, Field(ge=0, le=86_400)] = 1_800.0
    """Seconds of generated traffic that the cache has served when it is first read, so that it has figures to show at once."""
    speed: Annotated[float, Field(gt=0)] = 1.0
    """How many times faster than recorded the workload runs. The eviction thread still wakes every second."""

    @model_validator(mode="after")
    def _said_once(self) -> "SimulatedOptions":
        twice = sorted(_ELSEWHERE & self.traffic.model_fields_set) if self.traffic else []
        if twice:
            msg = f"the options of the simulated cache determine traffic.{twice[0]}; leave it out of traffic"
            raise ValueError(msg)
        return self
