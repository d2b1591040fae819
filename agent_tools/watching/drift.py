"""What happened to a cache since the last look: a restart, and settings that others changed."""

from collections.abc import Iterable, Sequence

from agent_tools.changes.log import stories
from agent_tools.changes.standing import OPEN
from agent_tools.models import ChangeRecord, ConfigUpdate
from agent_tools.models.standing import Departure, Standing
from agent_tools.plain import MESSAGE, names_cut, plain

from .event import EventKind, Finding
from .memory import Seen

SETTABLE = ConfigUpdate.model_fields.keys()


def happened(seen: Seen, standing: Standing, log: Sequence[ChangeRecord]) -> list[str]:
    """Return what happened once since the last look, in words.

    Settings that our change log explains are left out: those changed since the last look, and those of changes without an end.
    """
    told = []
    restarted = seen.server not in (None, standing.server)
    if restarted:
        told.append("the cache was started again since the last look: L1 was emptied")
    if seen.config is None:
        return told
    explained = {one.setting for one in standing.departures} | {
        change.setting
        for story in stories(log)
        if story[-1].recorded_at.timestamp() >= seen.at or story[-1].outcome in OPEN
        for change in story[0].changes
    }
    old, new = seen.config.known(), standing.config.known()
    moved = [name for name in new if name in SETTABLE and name not in explained and name in old and old[name] != new[name]]
    if moved:
        how = "with that start" if restarted else "by somebody else"
        said = ", ".join(f"{name} {_value(old[name])} -> {_value(new[name])}" for name in moved)
        told.append(f"settings were changed {how}: {said}")
    return told


def left_to_others(seen: Seen, departures: Iterable[Departure]) -> tuple[Departure, ...]:
    """Return the departures with only those lost that were ours until the restart.

    A restart cannot lose what somebody else had overridden before it, although the server then starts with the value from before
    our changes.
    """
    return tuple(one.model_copy(update={"lost": False}) if one.key in seen.overridden else one for one in departures)


def findings(departures: Sequence[Departure], how: str) -> list[Finding]:
    """Return what is not as our changes left it. `how` says what becomes of changes that a restart lost."""
    return [
        Finding(
            f"departure {one.key} {one.lost} {plain(one.in_force, MESSAGE)}",
            EventKind.OFFERED if one.lost else EventKind.FOUND,
            f"{one}{how if one.lost else ''}",
        )
        for one in departures
    ]


def _value(value: object) -> str:
    return plain(names_cut(value), MESSAGE)
