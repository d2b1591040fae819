"""Prompts that a setting refuses: their stores are larger than the space that eviction keeps free, so the server drops them."""

from collections import Counter
from dataclasses import dataclass
from math import ceil

import numpy as np

from agent_tools.models import MB
from agent_tools.plain import plain
from agent_tools.prediction.server_setting import ServerSetting

from .modelled import predicted_hits, server_setting
from .observation import Observation

MANY = 0.01
"""Smallest share of the window's prompts whose refusal is reported."""
LISTED = 3
"""The most tenants that are named."""


@dataclass(frozen=True)
class Refusals:
    """The prompts of a window that a setting does not store, or not whole."""

    prompts: int
    of: int
    """All prompts of the window of at least one chunk."""
    smallest: int
    """Whole chunks of the smallest refused prompt."""
    largest: int
    """Whole chunks of the largest refused prompt."""
    tenants: tuple[str, ...]
    """The tenants with the most refused prompts."""
    enough_mb: float | None
    """L1 size at which the largest would fit into the space that this watermark keeps free, MB; ``None`` if L1 is as large, so
    that bursts and not single prompts fill it."""

    def __str__(self) -> str:
        whose = f" of {', '.join(plain(name) or '(no salt)' for name in self.tenants)}" if any(self.tenants) else ""
        end = "" if self.enough_mb is None else f"; an L1 of {self.enough_mb:,.0f} MB at this watermark would store all of them"
        return (
            f"it works by refusing prompts: {self.prompts:,} of {self.of:,}{whose}, of {self.smallest:,} to {self.largest:,}"
            f" chunks, would not be stored whole{end}"
        )


def refusals(seen: Observation, setting: ServerSetting) -> Refusals | None:
    """Return the prompts of the window that a setting refuses, or ``None`` if they are few, or no more than now."""
    assert seen.log is not None  # noqa: S101  callers have a log
    refused = np.flatnonzero(predicted_hits(seen, setting).dropped > 0)
    asked = int((seen.window_chunks > 0).sum())
    here = server_setting(seen)
    refused_now = 0 if here is None else int((predicted_hits(seen, here).dropped > 0).sum())
    if not asked or len(refused) < MANY * asked or len(refused) <= refused_now:
        return None
    sizes, owners = seen.window_chunks[refused], seen.log.tenants[seen.in_window][refused]
    largest, free = int(sizes.max()), 1 - setting.watermark
    enough = ceil(largest / free * seen.chunk_bytes / MB) if seen.chunk_bytes and free > 0 else 0
    return Refusals(
        prompts=len(refused),
        of=asked,
        smallest=int(sizes.min()),
        largest=largest,
        tenants=tuple(seen.log.tenant_names[owner] for owner, _ in Counter(owners.tolist()).most_common(LISTED)),
        enough_mb=enough if enough > (seen.config.max_size_mb or 0) else None,
    )
