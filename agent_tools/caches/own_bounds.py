"""Bounds of a cache of our own for which the operator stated none: it may grow to half of the machine's free memory."""

import contextlib
import shutil
from pathlib import Path

from agent_tools.deployments.start_options import SimulatedOptions
from agent_tools.models import MB, Bounds
from agent_tools.workload.memory import kernel_available_bytes

from .settings import CacheSettings

SHARE = 0.5
"""Share of the free memory that our own cache may take."""
_CGROUP = Path("/sys/fs/cgroup")
_SIMULATED_MB = SimulatedOptions().l1_size_mb
"""A simulated cache takes no memory, so it may always have its default size."""


def with_own_bounds(settings: CacheSettings) -> CacheSettings:
    """Return the settings with bounds, if the cache is private and the operator stated no bounds.

    Nobody else uses a private cache, so it may also be restarted.
    """
    if not settings.private or "bounds" in settings.model_fields_set:
        return settings
    if settings.kind == "simulated":
        free, least = free_mb(), max(settings.simulated.l1_size_mb, _SIMULATED_MB)
    else:
        free, least = free_mb(settings.embedded.arena_folder), settings.embedded.l1_size_mb
    most = None if free is None else max(SHARE * free, least)
    return settings.model_copy(update={"bounds": Bounds(max_size_mb=most, allow_restart=True)})


def free_mb(folder: Path | None = None) -> float | None:
    """Return the memory that a new process could use, MB, or ``None`` if the system does not say.

    Args:
        folder: A folder in shared memory, whose free space limits the answer too.
    """
    known: list[float | None] = [kernel_available_bytes(), _left_in_group()]
    if folder is not None and folder.is_dir():
        known.append(shutil.disk_usage(folder).free)
    return min((one / MB for one in known if one is not None), default=None)


def _left_in_group() -> float | None:
    """Return what the container's limit leaves, bytes, or ``None`` if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (float((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        return max(limit - used, 0.0)
    return None
