"""What the holder of a token may ask for."""

from enum import Enum


class Right(str, Enum):
    """One right of a token. Every token may read."""

    READ = "read"
    """Ask for figures, advice, plans, the report and the change log."""
    CHANGE = "change"
    """Change settings, undo changes, warm and pin prefixes, set quotas."""
    CLEAR = "clear"
    """Remove stored entries: clear, optimize, delete."""
    APPROVE = "approve"
    """Answer the question of a run on LangGraph's server. Whoever approves changes does not ask for them."""


EVERYTHING = frozenset({Right.READ, Right.CHANGE, Right.CLEAR})
"""The rights of a caller who has no named token: the operator's own `token`, or a program on this machine where there is none."""
