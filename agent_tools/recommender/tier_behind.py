"""What is behind in-process LMCache's memory, as the model takes it: a local disk, a remote store, or nothing with a reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_tools.deployments.in_process.settable import DISK, REMOTE
from agent_tools.models import MB
from agent_tools.models.config import MB_IN_A_GB, L2Adapter
from agent_tools.prediction.in_process_disk import why_disk_not_modelled
from agent_tools.prediction.in_process_model import InProcessPolicy

KEEPS_ALL = "the remote store is taken to keep all that it is given, and to be used by this engine alone"


@dataclass(frozen=True)
class TierBehind:
    """The tier behind the memory."""

    chunks: float = 0
    """Size of a local disk, ``inf`` for a remote store; 0 if there is none, or if it is not modelled."""
    withheld: str | None = None
    """Why the tier is not modelled, in one sentence; ``None`` if it is, or if there is none."""

    @property
    def assumed(self) -> tuple[str, ...]:
        """Return what the model takes for granted, one sentence each."""
        return (KEEPS_ALL,) if math.isinf(self.chunks) else ()


def of_configuration(settings: Mapping[str, Any], policy: InProcessPolicy, chunk_bytes: float) -> TierBehind:
    """Return the tier that a configuration names, by LMCache's names.

    Args:
        settings: The configuration of in-process LMCache.
        policy: Its ``cache_policy``.
        chunk_bytes: Bytes of a chunk on one worker.
    """
    disk = _number(settings.get("max_local_disk_size")) if settings.get("local_disk") else None
    sizes = [] if disk is None else [disk]
    if settings.get("remote_url"):
        sizes.append(math.inf)
    return _tier(sizes, policy, chunk_bytes, local_cpu=settings.get("local_cpu") is not False)


def of_adapters(
    adapters: Sequence[L2Adapter], policy: InProcessPolicy, chunk_bytes: float | None, *, local_cpu: bool = True
) -> TierBehind:
    """Return the tier of a running in-process LMCache.

    Args:
        adapters: Its L2 adapters.
        policy: Its ``cache_policy``.
        chunk_bytes: Bytes of a chunk on one worker; ``None`` if unknown.
        local_cpu: Whether its memory keeps chunks.
    """
    return _tier([_size_of(one) for one in adapters], policy, chunk_bytes, local_cpu=local_cpu)


def _size_of(adapter: L2Adapter) -> float | None:
    """Return the size of a tier in GB; ``None`` if we do not know this kind of tier."""
    if adapter.type == DISK:
        return _number(adapter.settings.get("max_capacity_gb"))
    return math.inf if adapter.type == REMOTE else None


def _number(value: Any) -> float | None:  # noqa: ANN401  from a configuration
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _tier(sizes_gb: Sequence[float | None], policy: InProcessPolicy, chunk_bytes: float | None, *, local_cpu: bool) -> TierBehind:
    if not sizes_gb:
        return TierBehind(withheld=None if local_cpu else "local_cpu is false, so its memory keeps no chunks")
    size = sizes_gb[0]
    withheld = why_disk_not_modelled(policy, local_cpu=local_cpu, other=len(sizes_gb) > 1 or size is None)
    if withheld is None and chunk_bytes is None:
        withheld = "the tier behind in-process LMCache is not predicted, because the bytes of a chunk are not known"
    if withheld is not None or chunk_bytes is None or size is None:
        return TierBehind(withheld=withheld)
    return TierBehind(size * MB_IN_A_GB * MB / chunk_bytes)
