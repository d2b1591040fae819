"""Claims about the incident bench itself: its scenarios are well formed, and its rules judge as they say. Nothing is started."""

from dataclasses import replace

import numpy as np
import pytest

from agent_tools.models import SETTINGS, Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.outcome import Outcome
from benchmarks.incidents.report import counts
from benchmarks.incidents.rules import judge
from benchmarks.incidents.scenarios import incidents

KNOWN = incidents()
GROW = Incident(
    name="grow",
    story="L1 is too small",
    stage=Server(),
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_TOO_SMALL}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_ratio"}),
        never=frozenset({SymptomCode.NOTHING_TO_REUSE}),
        gain=0.03,
    ),
)
GROWN = Outcome(
    symptoms=("l1_too_small",),
    result="improved",
    changed={"max_size_mb": [16.0, 32.0]},
    differing_settings=("max_size_mb",),
    rate_before=0.5,
    rate_after=0.6,
)
CALM = replace(GROWN, then={})
BETTER_STILL = replace(GROWN, then={"max_size_mb": [32.0, 48.0]}, then_gain=0.02)
KEEP_OFF = replace(GROW, expected=Expected(frozenset({SymptomCode.NOTHING_WRONG}), Action.NOTHING), healthy=True)
LEFT_ALONE = Outcome(symptoms=("nothing_wrong",), result="do_nothing", rate_before=0.5, rate_after=0.1)
TELL = replace(GROW, expected=Expected(frozenset(), Action.OPERATOR, told="restart it", differences=frozenset({"chunk_size"})))
TOLD = Outcome(told="no: restart it", result="do_nothing", differences=("chunk_size",))


def test_there_are_enough_incidents_with_names_of_their_own() -> None:
    assert len(KNOWN) >= 20
    assert sum(incident.healthy for incident in KNOWN.values()) >= 3
    assert all(incident.name == name and incident.story for name, incident in KNOWN.items())
    assert len({incident.story for incident in KNOWN.values()}) == len(KNOWN)


@pytest.mark.parametrize("incident", KNOWN.values(), ids=KNOWN)
def test_what_is_expected_makes_sense(incident: Incident) -> None:
    expected = incident.expected
    assert {SymptomCode(code) for code in expected.symptoms | expected.never} <= set(SymptomCode)
    assert not expected.symptoms & expected.never
    assert expected.settings | expected.may | expected.differences <= set(SETTINGS)
    assert bool(expected.settings) == (expected.action is Action.CHANGE)
    assert bool(expected.told) == (expected.action is Action.OPERATOR)
    if incident.healthy:
        assert expected.action is Action.NOTHING


@pytest.mark.parametrize("incident", [one for one in KNOWN.values() if isinstance(one.stage, Server)], ids=lambda one: one.name)
def test_the_requests_can_be_made_and_sent_in_time(incident: Incident) -> None:
    log = incident.traffic()
    if log is None:
        return
    assert np.isfinite(log.timestamps).all()
    assert len(log.chunk_ids) < 40 * 1_800, "more chunks than two cores serve in 40 s"


@pytest.mark.parametrize(
    ("incident", "seen"), [(GROW, GROWN), (GROW, CALM), (GROW, BETTER_STILL), (KEEP_OFF, LEFT_ALONE), (TELL, TOLD)]
)
def test_what_is_as_expected_is_right_and_harmless(incident: Incident, seen: Outcome) -> None:
    judged = judge(incident, seen)
    assert judged.right, judged
    assert judged.harmless, judged


@pytest.mark.parametrize(
    ("incident", "seen"),
    [
        (GROW, replace(GROWN, symptoms=("stores_fail",))),
        (GROW, replace(GROWN, symptoms=("l1_too_small", "nothing_to_reuse"))),
        (KEEP_OFF, replace(LEFT_ALONE, symptoms=("nothing_wrong", "stores_fail"))),
        (TELL, replace(TOLD, differences=())),
    ],
)
def test_a_wrong_diagnosis_is_wrong(incident: Incident, seen: Outcome) -> None:
    judged = judge(incident, seen)
    assert judged.diagnosis
    assert not judged.right


@pytest.mark.parametrize(
    ("incident", "seen"),
    [
        (GROW, replace(GROWN, changed={}, differing_settings=())),
        (GROW, replace(GROWN, changed={"eviction_ratio": [0.2, 0.1]})),
        (GROW, replace(GROWN, changed=GROWN.changed | {"chunk_size": [256, 512]})),
        (GROW, replace(GROWN, undone=True, differing_settings=())),
        (GROW, replace(GROWN, rate_after=0.52)),
        (GROW, replace(GROWN, rate_after=None)),
        (GROW, replace(GROWN, then={"max_size_mb": [32.0, 16.0]}, then_gain=0.01)),
        (GROW, replace(GROWN, then={"eviction_ratio": [0.2, 0.1]}, then_gain=None)),
        (GROW, replace(GROWN, then={"optimize": []}, then_gain=0.0)),
        (KEEP_OFF, replace(LEFT_ALONE, changed={"max_size_mb": [16, 32]})),
        (KEEP_OFF, replace(LEFT_ALONE, dropped=3)),
        (KEEP_OFF, replace(LEFT_ALONE, result="failed")),
        (TELL, replace(TOLD, told="all is well")),
    ],
)
def test_a_wrong_action_is_wrong(incident: Incident, seen: Outcome) -> None:
    judged = judge(incident, seen)
    assert judged.action
    assert not judged.right


@pytest.mark.parametrize(
    ("incident", "seen"),
    [
        (GROW, replace(GROWN, rate_after=0.47)),
        (GROW, replace(GROWN, problems_after=("a thread is dead",))),
        (GROW, replace(GROWN, failures=("1 refused_stores",))),
        (GROW, replace(GROWN, left=("process 7 (python)",))),
        (GROW, replace(GROWN, undone=True)),  # and its setting is still another one
        (KEEP_OFF, replace(LEFT_ALONE, differing_settings=("eviction_ratio",))),
        (KEEP_OFF, Outcome(crashed="ValueError", left=("process 7 (python)",))),
    ],
)
def test_harm_is_harm(incident: Incident, seen: Outcome) -> None:
    assert not judge(incident, seen).harmless


@pytest.mark.parametrize(
    ("incident", "seen"),
    [
        (GROW, replace(GROWN, rate_after=0.49)),
        (GROW, replace(GROWN, rate_after=0.4, noise=0.15)),
        (GROW, replace(GROWN, rate_after=0.3, undone=True, differing_settings=())),
        (GROW, replace(GROWN, problems_before=("an old one",), problems_after=("an old one",))),
    ],
)
def test_noise_what_was_undone_and_what_was_ill_before_is_no_harm(incident: Incident, seen: Outcome) -> None:
    assert judge(incident, seen).harmless


def test_a_run_that_crashed_counts_as_wrong() -> None:
    judged = judge(KEEP_OFF, Outcome(crashed="ValueError: no"))
    assert not judged.right
    crashed = (KEEP_OFF, Outcome(crashed="ValueError: no"), judged)
    assert counts([crashed, *((GROW, seen, judge(GROW, seen)) for seen in (GROWN, CALM, BETTER_STILL))]) == {
        "incidents": 4,
        "right diagnosis": 3,
        "right action": 3,
        "both right": 3,
        "harmless": 4,
        "second looks after a change": 2,
        "calm at the second look": 1,
        "healthy cases": 1,
        "healthy cases left alone": 1,
    }
