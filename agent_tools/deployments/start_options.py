"""What a server that is ours alone, real or modelled, starts with."""

from typing import Annotated

from pydantic import Field

from agent_tools.models import EvictionPolicy, L2Adapter
from agent_tools.models.config import Frozen, Share


class ServerOptions(Frozen):
    """The settings common to both; what is not said is LMCache's default."""

    l1_size_mb: Annotated[float, Field(gt=0)]
    """L1 capacity, MB."""
    chunk_size: Annotated[int, Field(gt=0)] = 256
    """Tokens per chunk."""
    eviction_policy: EvictionPolicy = EvictionPolicy.LRU
    """LMCache's default."""
    eviction_watermark: Share = 0.8
    """LMCache's default."""
    eviction_ratio: Share = 0.2
    """LMCache's default."""
    l2_adapters: tuple[L2Adapter, ...] = ()
    """L2 adapters, as for ``--l2-adapter``; at most one where the server is modelled."""
    l2_prefetch_policy: Annotated[str, Field(pattern="^(default|retain)$")] = "default"
    """``default`` drops an L2 chunk from L1 after the read, ``retain`` keeps it."""
