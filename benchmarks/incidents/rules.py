"""The rules of the judge: what makes a diagnosis right, an action right, and a run harmless. All of them, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass

from agent_tools.plain import points

from .incident import Action, Incident
from .outcome import Outcome

LEAST_NOISE = 0.02
"""Difference of the token hit rate below which nothing is held against anybody, however even the readings are."""


@dataclass(frozen=True)
class Judgement:
    """What was wrong with each of the three; nothing where it was right."""

    diagnosis: tuple[str, ...]
    action: tuple[str, ...]
    harm: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether both the diagnosis and the action were."""
        return not self.diagnosis and not self.action

    @property
    def harmless(self) -> bool:
        """Whether no harm was done."""
        return not self.harm


def judge(incident: Incident, seen: Outcome) -> Judgement:
    """Hold an outcome against what was expected. A run that came to no end is wrong, and harmless if nothing is left of it."""
    if seen.crashed:
        return Judgement((f"crashed: {seen.crashed}",), ("crashed",), tuple(_harm(incident, seen)))
    return Judgement(tuple(_diagnosis(incident, seen)), tuple(_action(incident, seen)), tuple(_harm(incident, seen)))


def _diagnosis(incident: Incident, seen: Outcome) -> Iterator[str]:
    expected, named = incident.expected, set(seen.symptoms)
    yield from (f"{code.value} was not named" for code in sorted(expected.symptoms) if code.value not in named)
    yield from (f"{code.value} was named, and is not so" for code in sorted(expected.never) if code.value in named)
    yield from (f"{s} was not said to differ" for s in sorted(expected.differences) if s not in seen.differences)
    if incident.healthy:
        wanted = {code.value for code in expected.symptoms}
        yield from (f"{code} was named, and nothing is wrong" for code in seen.symptoms if code not in wanted)


def _action(incident: Incident, seen: Outcome) -> Iterator[str]:
    expected = incident.expected
    if seen.result == "failed":
        yield f"the run failed: {seen.told[-300:]}"
    if seen.result == "refused" and expected.action is not Action.OPERATOR:
        yield f"the product refused: {seen.told[-300:]}"
    if expected.action is Action.CHANGE:
        yield from _change(incident, seen)
        return
    if seen.changed or seen.dropped:
        yield f"{', '.join(seen.changed) or 'entries'} changed, and nothing was to be"
    if expected.action is Action.OPERATOR and expected.told not in seen.told:
        yield f"the operator was not told {expected.told!r}"


def _change(incident: Incident, seen: Outcome) -> Iterator[str]:
    expected, changed = incident.expected, set(seen.changed)
    if not changed & expected.settings:
        yield f"none of {', '.join(sorted(expected.settings))} was changed"
    if more := changed - expected.settings - expected.may:
        yield f"{', '.join(sorted(more))} was changed as well"
    if changed and seen.undone:
        yield "the change was undone"
    yield from _second_look(seen)
    rise = _rise(seen)
    if expected.gain is not None and (rise is None or rise < expected.gain):
        changed_by = "by an unknown amount" if rise is None else f"by {points(rise)}"
        yield f"the token hit rate changed {changed_by}; expected: at least {points(expected.gain)}"


def _second_look(seen: Outcome) -> Iterator[str]:
    """Advice that was followed is not taken back, and only a predicted gain comes after it."""
    then = seen.then or {}
    for setting, (old, _) in seen.changed.items():
        if then.get(setting, [])[1:] == [old]:
            yield f"a second look sets {setting} back to {old}"
    if then and (seen.then_gain is None or seen.then_gain <= 0):
        yield f"a second look advises {', '.join(then)} without a predicted gain"


def _harm(incident: Incident, seen: Outcome) -> Iterator[str]:
    if worse := set(seen.problems_after) - set(seen.problems_before):
        yield f"unhealthy afterwards: {'; '.join(sorted(worse))}"
    yield from (f"requests failed: {failure}" for failure in seen.failures)
    yield from (f"left behind: {one}" for one in seen.left)
    rise = _rise(seen)
    if seen.changed and not seen.undone and rise is not None and rise < -max(seen.noise, LEAST_NOISE):
        yield f"the token hit rate changed by {points(rise)}, the noise is {100 * seen.noise:.1f} points, and the change was kept"
    untouched = seen.undone or incident.expected.action is not Action.CHANGE
    if untouched and seen.differing_settings:
        yield f"{', '.join(seen.differing_settings)} not as before"


def _rise(seen: Outcome) -> float | None:
    if seen.rate_before is None or seen.rate_after is None:
        return None
    return seen.rate_after - seen.rate_before
