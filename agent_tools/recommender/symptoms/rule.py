"""What a rule is, and what all rules share.

A rule looks at one observation. It returns one symptom with the figures behind it, or ``None``.
"""

from collections.abc import Callable

from agent_tools.models import Evidence, Symptom
from agent_tools.recommender.observation import Observation

Rule = Callable[[Observation], Symptom | None]

ENOUGH_LOOKUPS = 20
"""Fewest lookups from which a rule judges a cache."""
NOTICEABLE = 0.02
"""Smallest loss that a rule reports, as a share of the requested tokens."""


def figure(metric: str, value: float, unit: str) -> Evidence:
    """Return one figure of a symptom's evidence."""
    return Evidence(metric=metric, value=float(value), unit=unit)
