"""The settings of in-process LMCache that change its hits."""

from dataclasses import dataclass

from .in_process_model import CODES, InProcessPolicy
from .server_setting import ServerSetting


@dataclass(frozen=True)
class InProcessSetting(ServerSetting):
    """One configuration of in-process LMCache 0.5.6, on one worker. Nothing in it depends on time.

    It evicts only what the next chunk needs. `l2_capacity_chunks` is ``max_local_disk_size``, or ``inf`` for a remote store that
    keeps everything; hits there are those of L2.
    """

    watermark: float = 1.0
    ratio: float = 0.0
    cache_policy: InProcessPolicy = "LRU"
    """``cache_policy``; with a disk, LRU or FIFO."""


def in_process_policy(name: str | None) -> InProcessPolicy | None:
    """Return LMCache's name of an eviction policy, whatever its case; ``None`` if in-process LMCache has no such policy."""
    return next((policy for policy in CODES if name is not None and policy == name.upper()), None)
