"""The results: one JSON with all that was seen, one Markdown for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.prediction import machine

from .incident import Incident
from .outcome import Outcome
from .rules import Judgement, judge

STORE = Path(__file__).parents[1] / "results" / "incidents.json"
Ran = tuple[Incident, Outcome, Judgement]


def save(ran: Sequence[Ran], known: Mapping[str, Incident], store: Path = STORE) -> None:
    """Write both: what was run now, and, of the `known` incidents, what is kept of earlier runs, judged by the rules of now."""
    outcomes = _stored(store) | {incident.name: seen for incident, seen, _ in ran}
    everything = [(one, outcomes[name], judge(one, outcomes[name])) for name, one in known.items() if name in outcomes]
    kept = {"machine": machine(), "counts": counts(everything), "incidents": [_kept(*one) for one in everything]}
    store.write_text(json.dumps(kept, indent=1, default=str) + "\n")
    store.with_suffix(".md").write_text(_page(everything))


def counts(ran: Sequence[Ran]) -> dict[str, int]:
    """How many incidents, and how many were diagnosed, treated and survived as they should."""
    return {
        "incidents": len(ran),
        "right diagnosis": sum(not judged.diagnosis for _, _, judged in ran),
        "right action": sum(not judged.action for _, _, judged in ran),
        "both right": sum(judged.right for _, _, judged in ran),
        "harmless": sum(judged.harmless for _, _, judged in ran),
        "second looks after a change": sum(seen.then is not None for _, seen, _ in ran),
        "calm at the second look": sum(seen.then == {} for _, seen, _ in ran),
        "healthy cases": sum(incident.healthy for incident, _, _ in ran),
        "healthy cases left alone": sum(incident.healthy and not seen.changed and not seen.dropped for incident, seen, _ in ran),
    }


def line(incident: Incident, seen: Outcome, judged: Judgement) -> str:
    """One line for the terminal."""
    wrong = "; ".join((*judged.diagnosis, *judged.action, *judged.harm))
    return f"{incident.name}: {'right' if judged.right else 'WRONG'}, {'harmless' if judged.harmless else 'HARM'}" + (
        f" ({wrong})" if wrong else f" ({seen.result}, {_rates(seen)}, {seen.seconds:.0f} s)"
    )


def _stored(store: Path) -> dict[str, Outcome]:
    if not store.exists():
        return {}
    return {one["name"]: Outcome(**one["seen"]) for one in json.loads(store.read_text())["incidents"]}


def _kept(incident: Incident, seen: Outcome, judged: Judgement) -> dict[str, Any]:
    expected = asdict(incident.expected)
    plain = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in expected.items()}
    return {
        "name": incident.name,
        "story": incident.story,
        "remark": incident.remark,
        "expected": plain,
        "seen": asdict(seen),
        "wrong": asdict(judged),
    }


def _page(ran: Sequence[Ran]) -> str:
    dates = sorted({seen.date for _, seen, _ in ran})
    rows = [_row(*one) for one in ran]
    wrong = [f"* {line(*one)}" for one in ran if not (one[2].right and one[2].harmless)]
    remarks = [f"* `{incident.name}`: {incident.remark}" for incident, _, _ in ran if incident.remark]
    return "\n".join(
        [
            "# Incidents provoked on real LMCache processes",
            "",
            f"{machine()}, {' and '.join(dates)}; LMCache 0.5.6.",
            "",
            *(f"* {name}: {count}" for name, count in counts(ran).items()),
            "",
            "Each is provoked with real traffic, which goes on while the product diagnoses, acts on its own within the operator's"
            " bounds, and verifies; after a change that was kept, it is asked for advice once more. What is"
            " expected was written before the first run but for what the remarks say (`benchmarks/incidents/scenarios`);"
            " `benchmarks/incidents/rules.py` judges. Hit rates are the server's own count.",
            "",
            "| incident | diagnosis | expected | done | hit rate before -> after | diagnosis, action, harmless |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "## Wrong",
            "",
            *(wrong or ["Nothing."]),
            "",
            "## Remarks",
            "",
            *(remarks or ["None."]),
            "",
        ]
    )


def _row(incident: Incident, seen: Outcome, judged: Judgement) -> str:
    done = "; ".join(f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in seen.changed.items()) or "nothing"
    marks = ", ".join("no" if wrong else "yes" for wrong in (judged.diagnosis, judged.action, judged.harm))
    named = ", ".join((*seen.symptoms, *(f"differ: {name}" for name in seen.differences)))
    what, wanted = f"`{incident.name}`: {incident.story}", incident.expected.action.value
    return f"| {what} | {named} | {wanted} | {done} ({seen.result}) | {_rates(seen)} | {marks} |"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    return str(value)


def _rates(seen: Outcome) -> str:
    before, after = ("none" if rate is None else f"{rate:.1%}" for rate in (seen.rate_before, seen.rate_after))
    return f"{before} -> {after}"
