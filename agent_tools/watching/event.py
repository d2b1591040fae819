"""What a watch tells: events, and findings that are told once as long as they last."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import AwareDatetime

from agent_tools.models.config import Frozen, Line


class EventKind(str, Enum):
    """What an event is about."""

    FOUND = "found"
    """The watch noticed something: a symptom, a restart, a change that somebody else made."""
    OFFERED = "offered"
    """A change would help or is missing; the text says who makes it, and how."""
    CHANGED = "changed"
    """The watch changed the cache, and the settings read back as wanted."""
    VERIFIED = "verified"
    """A change of the watch was judged and is kept; the text says whether the measurement decided."""
    UNDONE = "undone"
    """A change of the watch was undone."""
    FAILED = "failed"
    """Something did not work; the text says what is known."""


class Event(Frozen):
    """One thing that a watch tells."""

    at: AwareDatetime
    """When it was noticed or done, UTC."""
    cache: str
    """Name of the cache."""
    kind: EventKind
    """What the event is about."""
    text: Line
    """The event in words."""
    change_id: str | None = None
    """The change it is about, for `lmcache-agent undo`."""

    def body(self) -> dict[str, Any]:
        """Return what is sent to a webhook: the fields, with cache and kind in `text`, which chat services show."""
        return {**self.model_dump(mode="json"), "text": str(self)}

    def __str__(self) -> str:
        return f"{self.cache}: {self.kind.value}: {self.text}"


@dataclass(frozen=True)
class Finding:
    """Something that lasts. It is told when it is first found, and not again until it has been gone."""

    key: str
    """What makes it the same finding in the next look: no figures that vary."""
    kind: EventKind
    text: str


class Findings:
    """The findings of one look. Each is told as soon as it is found, unless the look before found it too."""

    def __init__(self, before: Collection[str], say: Callable[[EventKind, str], None]) -> None:
        """Start without findings.

        Args:
            before: Keys of the findings that lasted at the look before.
            say: Tells a finding.
        """
        self._before, self._say = frozenset(before), say
        self._found: dict[str, EventKind] = {}

    def add(self, *findings: Finding) -> None:
        """Tell findings that are new, in this order."""
        for one in findings:
            if one.key not in self._before and one.key not in self._found:
                self._say(one.kind, one.text)
            self._found[one.key] = one.kind

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the findings, in the order in which they were found."""
        return tuple(self._found)

    @property
    def failed(self) -> bool:
        """Whether something did not work."""
        return EventKind.FAILED in self._found.values()
