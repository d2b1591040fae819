"""What came of an incident, as it is judged and kept: plain figures and words."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What the product said and did, and how the cache was before and after."""

    symptoms: tuple[str, ...] = ()
    """Codes, worst first."""
    differences: tuple[str, ...] = ()
    """Settings in which several processes are said to differ."""
    told: str = ""
    """All that a person reads: the symptoms' summaries and the report's."""
    result: str = ""
    """How the run ended, as the report says (`agent_tools.tuning.state.Outcome`)."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Setting -> [old, new] of a change that was made, undone or not."""
    undone: bool = False
    dropped: int = 0
    """Entries that were dropped to give relief."""
    then: dict[str, Any] | None = None
    """Setting -> [old, new] of what a second look advises or would try, after a change that was kept; empty if it is calm, and
    ``None`` without a second look."""
    then_gain: float | None = None
    """Its predicted gain, as token hit rate."""
    verified: str = ""
    """The product's own verdict on its change."""
    rate_before: float | None = None
    """Token hit rate as LMCache counted it, before anything was done ..."""
    rate_after: float | None = None
    """... and after it."""
    noise: float = 0.0
    """Difference of the two that means nothing: two standard errors over the readings."""
    problems_before: tuple[str, ...] = ()
    """Of the health, by ``/status``."""
    problems_after: tuple[str, ...] = ()
    differing_settings: tuple[str, ...] = ()
    """Settings that are not at the end as they were at the start."""
    failures: tuple[str, ...] = ()
    """What went wrong for those who sent requests."""
    left: tuple[str, ...] = ()
    """Processes and files of shared memory that were left behind."""
    crashed: str = ""
    """Why the run came to no end."""
    seconds: float = 0.0
    date: str = ""
    """When it was run, UTC."""
