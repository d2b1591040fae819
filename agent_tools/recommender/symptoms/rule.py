"""What a rule is, and what rules have in common.

A rule looks at one observation and names one symptom, with the figures it rests on, or says nothing.
"""

from collections.abc import Callable

from agent_tools.models import Evidence, Symptom
from agent_tools.recommender.observation import Observation

Rule = Callable[[Observation], Symptom | None]

ENOUGH_LOOKUPS = 20
"""Fewer lookups than this say nothing about a cache."""
NOTICEABLE = 0.02
"""Share of the requested tokens below which a loss is not worth a word."""


def figure(metric: str, value: float, unit: str) -> Evidence:
    """One figure of the evidence."""
    return Evidence(metric=metric, value=float(value), unit=unit)
