"""What the operator may set: the ``config`` of the ``--server-module`` JSON."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Part = Literal["eviction", "l2", "arenas", "window", "entries"]
Positive = Annotated[int, Field(gt=0)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Share = Annotated[float, Field(gt=0, le=1)]


class Body(BaseModel):
    """A value that came from outside: immutable, closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Options(Body):
    """All have defaults; what costs memory is bounded here."""

    off: frozenset[Part] = frozenset()
    """Parts that are not to be there at all."""
    read_only: bool = False
    """Refuse everything that changes something."""
    arena_folder: Path | None = None
    """Where files for L1 arenas are made, e.g. ``/dev/shm``; without it the size of L1 is not changed."""
    max_l1_mb: Annotated[float, Field(gt=0)] | None = None
    """Most L1 capacity that may be asked for, MB; required with `arena_folder`, or L1 never grows."""
    l2_types: tuple[str, ...] = ("dax", "fs", "fs_native", "mock", "resp", "s3", "valkey")
    """Types of L2 adapter that `l2_adapters` may have. ``plugin`` types load code, so they are not among the defaults."""
    l2_adapters: tuple[dict[str, Any], ...] = ()
    """L2 adapters that may be attached, each as for ``--l2-adapter``. No other can be, except those of the server's start."""
    l2_adapters_env: EnvironmentName | None = None
    """Environment variable with a JSON list of more of them: for adapters with secrets, since ``/config`` shows this config."""
    token_env: EnvironmentName | None = None
    """Environment variable with a token, which every request to the module must then carry as ``Authorization: Bearer``."""
    hosts: tuple[str, ...] = ()
    """Names under which this server is called, besides loopback names and IP addresses, without ports."""
    window_chunks: Annotated[int, Field(ge=1_000, le=50_000_000)] = 2_000_000
    """Chunk references that the window holds, 8 bytes each."""
    window_requests: Annotated[int, Field(ge=100, le=10_000_000)] = 131_072
    """Lookups that the window holds, 48 bytes each."""
    window_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """How far back the window shall reach, if need be by sampling."""
    tracked_chunks: Annotated[int, Field(ge=1_000, le=5_000_000)] = 50_000
    """Chunks whose hits and times are kept, about 200 bytes each."""
