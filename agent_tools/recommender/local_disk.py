"""What is behind in-process LMCache's memory, as the model takes it: a local disk of so many chunks, or nothing with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_tools.deployments.in_process.settable import DISK
from agent_tools.models import MB
from agent_tools.models.config import MB_IN_A_GB, L2Adapter
from agent_tools.prediction.in_process_disk import why_disk_not_modelled
from agent_tools.prediction.in_process_model import InProcessPolicy


@dataclass(frozen=True)
class LocalDisk:
    """The tier behind the memory."""

    chunks: float = 0
    """Size of a local disk; 0 if there is none, or if it is not modelled."""
    withheld: str | None = None
    """Why the tier is not modelled, in one sentence; ``None`` if it is, or if there is none."""


def of_configuration(settings: Mapping[str, Any], policy: InProcessPolicy, chunk_bytes: float) -> LocalDisk:
    """Return the tier that a configuration names, by LMCache's names.

    Args:
        settings: The configuration of in-process LMCache.
        policy: Its ``cache_policy``.
        chunk_bytes: Bytes of a chunk on one worker.
    """
    disk = settings.get("local_disk") and settings.get("max_local_disk_size")
    remote = bool(settings.get("remote_url"))
    return _tier(disk, policy, chunk_bytes, other=remote, local_cpu=settings.get("local_cpu") is not False)


def of_adapters(
    adapters: Sequence[L2Adapter], policy: InProcessPolicy, chunk_bytes: float | None, *, local_cpu: bool = True
) -> LocalDisk:
    """Return the tier of a running in-process LMCache.

    Args:
        adapters: Its L2 adapters.
        policy: Its ``cache_policy``.
        chunk_bytes: Bytes of a chunk on one worker; ``None`` if unknown.
        local_cpu: Whether its memory keeps chunks.
    """
    disks = [one.settings.get("max_capacity_gb") for one in adapters if one.type == DISK]
    return _tier(disks[0] if disks else None, policy, chunk_bytes, other=len(adapters) > len(disks[:1]), local_cpu=local_cpu)


def _tier(
    disk_gb: object, policy: InProcessPolicy, chunk_bytes: float | None, *, other: bool, local_cpu: bool = True
) -> LocalDisk:
    size = disk_gb if isinstance(disk_gb, int | float) and not isinstance(disk_gb, bool) and disk_gb > 0 else 0
    if not size and not other:
        return LocalDisk(withheld=None if local_cpu else "local_cpu is false, so its memory keeps no chunks")
    withheld = why_disk_not_modelled(policy, local_cpu=local_cpu, other=other)
    if withheld is None and chunk_bytes is None:
        withheld = "the disk behind in-process LMCache is not predicted, because the bytes of a chunk are not known"
    if withheld is not None or chunk_bytes is None:
        return LocalDisk(withheld=withheld)
    return LocalDisk(size * MB_IN_A_GB * MB / chunk_bytes)
