"""Compare a cache with our change log: what our changes left in force, and what became of changes without an end on record."""

from collections.abc import Iterable, Sequence

from agent_tools.models import CacheConfig, ChangeOutcome, ChangeRecord, SettingChange
from agent_tools.models.standing import Departure

from .read_back import not_in_force

Story = Sequence[ChangeRecord]
"""The records of one change, oldest first."""
OPEN = {ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN}
"""Last outcomes that leave open whether a change is in force."""


def departures(stories: Iterable[Story], config: CacheConfig, server: str) -> tuple[Departure, ...]:
    """Return the settings that are not as our last change of them left them.

    A setting that a change of unknown outcome touched last is left out.

    Args:
        stories: The changes of the cache, oldest first.
        config: The settings in force.
        server: Identity of the server process that has them.
    """
    left: dict[str, tuple[SettingChange, ChangeRecord, bool]] = {}
    first_old: dict[tuple[str, str | None], object] = {}
    for story in stories:
        record, outcomes = story[0], {one.outcome for one in story}
        if ChangeOutcome.REFUSED in outcomes:
            continue
        for change in record.changes:
            if ChangeOutcome.APPLIED not in outcomes:
                left.pop(change.setting, None)
                continue
            first_old.setdefault((change.setting, record.server), change.old)
            left[change.setting] = change, record, story[-1].outcome is not ChangeOutcome.FOUND_WORSE
    now = config.known()
    return tuple(
        Departure(
            setting=setting,
            ours=change.new,
            in_force=now.get(setting),
            change_id=record.change_id,
            restarted=restarted,
            lost=restarted and worth_keeping and _same(setting, change, first_old[setting, record.server], config),
        )
        for setting, (change, record, worth_keeping) in left.items()
        if not_in_force((change,), config) is not None
        for restarted in [record.server not in (None, server)]
    )


def _same(setting: str, change: SettingChange, value: object, config: CacheConfig) -> bool:
    """Return whether a setting has this value, which is not unknown."""
    return value is not None and not_in_force((change.model_copy(update={"setting": setting, "new": value}),), config) is None


def end_of(story: Story, config: CacheConfig) -> ChangeOutcome | None:
    """Return what became of a change whose end is not on record; ``None`` if the settings in force do not tell."""
    changes = story[0].changes
    if not_in_force(changes, config) is None:
        return ChangeOutcome.APPLIED
    back = tuple(change.model_copy(update={"new": change.old}) for change in changes)
    return ChangeOutcome.REFUSED if not_in_force(back, config) is None else None
