"""Whether a change was already made and undone, so that a small gain is not tried again and again."""

from collections.abc import Iterable, Sequence
from datetime import timedelta

from agent_tools.models import ChangeOutcome, ChangeRecord, SettingChange
from agent_tools.models.metrics import now

from .log import stories

TRIED_AGAIN_AFTER = timedelta(days=1)
"""A trial that was undone is not repeated for so long: traffic that changes from hour to hour comes back after a day."""


def undone_lately(records: Iterable[ChangeRecord], changes: Sequence[SettingChange]) -> ChangeRecord | None:
    """Return the last record of a change of the same settings from the same values that was undone lately, or ``None``.

    The new values may differ: the next search may find a slightly different size.

    Args:
        records: The cache's changes, oldest first.
        changes: What is about to be changed.
    """
    wanted = {one.setting: one.old for one in changes}
    for story in stories(records):
        first, last = story[0], story[-1]
        same = first.undoes is None and {one.setting: one.old for one in first.changes} == wanted
        if same and last.outcome is ChangeOutcome.UNDONE and last.recorded_at > now() - TRIED_AGAIN_AFTER:
            return last
    return None
