"""The report's history: each change, its outcome and its effect."""

from collections.abc import Sequence

from agent_tools.changes.log import stories
from agent_tools.models import ChangeOutcome, ChangeRecord
from agent_tools.plain import plain

from .markup import Html, badge, card, folded, listed, tag

MOST_CHANGES = 20
"""The most changes shown."""
JUDGED = {ChangeOutcome.VERIFIED, ChangeOutcome.FOUND_WORSE, ChangeOutcome.KEPT_UNVERIFIED}
"""The outcomes that state the effect of a change."""
TROUBLE = {ChangeOutcome.REFUSED, ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN, ChangeOutcome.FAILED, ChangeOutcome.FOUND_WORSE}


def change_cards(changes: Sequence[ChangeRecord]) -> list[Html]:
    """Return a card for each of the latest changes, the last change first. `changes` is the change log, oldest line first."""
    every = stories(changes)
    latest = [_story(records) for records in every[:MOST_CHANGES]]
    older = len(every) - len(latest)
    return [*latest, tag("p", f"and {older} earlier changes, in the change log", kind="quiet")] if older else latest


def _story(records: Sequence[ChangeRecord]) -> Html:
    """Return one change with its outcome. Its lines in the change log are folded away."""
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
            tag("bdi", plain(first.actor)),
            reason,
            kind="quiet",
        ),
        folded("step by step", listed(lines)),
    )


def _effect(records: Sequence[ChangeRecord]) -> str:
    """Return the measured effect of a change; without a measurement, the last known detail."""
    measured = [one.detail for one in records if one.outcome in JUDGED]
    last = records[-1]
    unverified = "its effect was not verified" if last.changes and last.outcome is ChangeOutcome.APPLIED else ""
    return measured[-1] if measured else last.detail or unverified


def _badge(outcome: ChangeOutcome) -> Html:
    words = "outcome unknown" if outcome in {ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN} else _words(outcome)
    return badge(words, "act" if outcome in TROUBLE else "good" if outcome is ChangeOutcome.VERIFIED else "")


def _words(outcome: ChangeOutcome) -> str:
    return outcome.value.replace("_", " ")
