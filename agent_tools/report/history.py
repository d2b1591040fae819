"""The report's history: what was changed, what came of it, and to what effect."""

from collections.abc import Sequence

from agent_tools.changes.log import stories
from agent_tools.models import ChangeOutcome, ChangeRecord

from .markup import Html, badge, card, folded, listed, tag

MOST_CHANGES = 20
"""Changes told."""
JUDGED = {ChangeOutcome.VERIFIED, ChangeOutcome.KEPT_UNVERIFIED}
"""The outcomes that tell of a change's effect."""
TROUBLE = {ChangeOutcome.REFUSED, ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN, ChangeOutcome.FAILED}


def told(changes: Sequence[ChangeRecord]) -> list[Html]:
    """The latest changes, the last one first, each from its lines in the change log (oldest first)."""
    every = stories(changes)
    latest = [_story(records) for records in every[:MOST_CHANGES]]
    older = len(every) - len(latest)
    return [*latest, tag("p", f"and {older} earlier, in the change log", kind="quiet")] if older else latest


def _story(records: Sequence[ChangeRecord]) -> Html:
    """One change: what was done, what came of it, and, folded away, its lines in the log."""
    first, last = records[0], records[-1]
    done = f"{first.operation}: {'; '.join(map(str, first.changes))}" if first.changes else first.operation
    undoes = f", undoes {first.undoes}" if first.undoes else ""
    reason = f": {first.reason}" if first.reason else ""
    lines = [f"{one.recorded_at:%H:%M:%S} {_words(one.outcome)}{': ' * bool(one.detail)}{one.detail}" for one in records]
    return card(
        tag("h3", done),
        tag("p", _badge(last.outcome), " ", _effect(records)),
        tag(
            "p",
            f"{first.recorded_at:%Y-%m-%d %H:%M:%S} UTC, {first.change_id}{undoes}, by ",
            tag("bdi", first.actor),
            reason,
            kind="quiet",
        ),
        folded("step by step", listed(lines)),
    )


def _effect(records: Sequence[ChangeRecord]) -> str:
    """What was measured of a change, else the last that is known of it."""
    measured = [one.detail for one in records if one.outcome in JUDGED]
    last = records[-1]
    unverified = "its effect was not verified" if last.changes and last.outcome is ChangeOutcome.APPLIED else ""
    return measured[-1] if measured else last.detail or unverified


def _badge(outcome: ChangeOutcome) -> Html:
    words = "outcome unknown" if outcome in {ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN} else _words(outcome)
    return badge(words, "act" if outcome in TROUBLE else "good" if outcome is ChangeOutcome.VERIFIED else "")


def _words(outcome: ChangeOutcome) -> str:
    return outcome.value.replace("_", " ")
