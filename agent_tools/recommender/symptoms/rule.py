"""What a rule is, and what all rules share.

A rule looks at one observation. It returns one symptom with the figures behind it, or ``None``.
"""

from collections.abc import Callable

from agent_tools.models import CacheMetrics, Evidence, Symptom
from agent_tools.recommender.observation import Observation

Rule = Callable[[Observation], Symptom | None]

ENOUGH_LOOKUPS = 20
"""Fewest lookups from which a rule judges a cache."""
ENOUGH_CHUNKS = 200
"""Fewest requested chunks from which a rule judges a cache that does not count its lookups (LMCache up to 0.5.4)."""
NOTICEABLE = 0.02
"""Smallest loss that a rule reports, as a share of the requested tokens."""


def enough(lookups: int | None, metrics: CacheMetrics, chunk_size: int | None) -> bool:
    """Return whether there were enough lookups to judge a cache; without a count of them, whether enough chunks."""
    if lookups is None:
        return metrics.tokens.requested >= ENOUGH_CHUNKS * (chunk_size or 1)
    return lookups >= ENOUGH_LOOKUPS


def figure(metric: str, value: float, unit: str) -> Evidence:
    """Return one figure of a symptom's evidence."""
    return Evidence(metric=metric, value=float(value), unit=unit)
