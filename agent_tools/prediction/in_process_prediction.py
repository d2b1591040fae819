"""Predictions for in-process LMCache in the same form as those for `lmcache server`, so that tables and pictures take both."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from agent_tools.workload.access_log import AccessLog

from .cache_run import CacheRun
from .in_process_disk import simulate_with_disk
from .in_process_model import CODES, InProcessPolicy, simulate_in_process
from .isolation import isolated
from .server_prediction import ServerPrediction
from .server_setting import ServerSetting

FULL = ServerSetting(capacity_chunks=1, watermark=1.0, ratio=0.0)
"""The setting of a cache that evicts only what the next chunk needs, for the grid of sizes."""


def predict_in_process(
    log: AccessLog, capacities_chunks: Sequence[float], policy: InProcessPolicy, disk_chunks: float = 0
) -> list[ServerPrediction]:
    """Predict what in-process LMCache would have given on this log at each ``max_local_cpu_size``, from an empty cache.

    Nothing in this cache depends on time, so there is one run for each size, and its interval is the model's own error.

    Args:
        log: The recorded lookups.
        capacities_chunks: Sizes of its memory, in chunks.
        policy: ``cache_policy``; with a disk, LRU or FIFO.
        disk_chunks: ``max_local_disk_size``, in chunks; 0 for no disk. Its hits are a run's `CacheRun.l2_hit_chunks`.
    """
    log = isolated(log)
    with ThreadPoolExecutor() as threads:
        runs = threads.map(lambda size: _run(log, size, policy, disk_chunks), capacities_chunks)
        return [
            ServerPrediction(ServerSetting(size, watermark=1.0, ratio=0.0, l2_capacity_chunks=disk_chunks), (run,))
            for size, run in zip(capacities_chunks, runs, strict=True)
        ]


def _run(log: AccessLog, size: float, policy: InProcessPolicy, disk_chunks: float) -> CacheRun:
    return simulate_with_disk(log, size, disk_chunks, policy) if disk_chunks else simulate_in_process(log, size, policy)


def in_process_policy(name: str | None) -> InProcessPolicy | None:
    """Return LMCache's name of an eviction policy, whatever its case; ``None`` if in-process LMCache has no such policy."""
    return next((policy for policy in CODES if name is not None and policy == name.upper()), None)
