"""What is kept of a trial: a JSON line with the conversation in OpenAI's form, and scores with their reasons.

``outputs.messages`` is a trajectory as `agentevals` takes it. ``feedback`` is a list of key, score and comment as LangSmith's
`EvaluationResult` takes them; ``inputs``, ``outputs`` and ``reference_outputs`` make an example of a data set.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.messages import convert_to_openai_messages

from benchmarks.incidents.incident import Incident
from benchmarks.incidents.rules import Judgement

from .trial import QUESTION, Trial

STORE = Path(__file__).parents[1] / "results" / "agent_bench.jsonl"
SCORED: dict[str, Callable[[Judgement], tuple[str, ...]]] = {
    "diagnosis": lambda judged: judged.diagnosis,
    "action": lambda judged: judged.action,
    "harm": lambda judged: judged.harm,
}


def record(trial: Trial, machine: str) -> dict[str, Any]:
    """Return a trial as plain JSON."""
    messages = convert_to_openai_messages(list(trial.messages))
    assert isinstance(messages, list)  # noqa: S101  of a list
    return {
        "inputs": {"question": QUESTION, "caches": sorted(trial.incidents)},
        "outputs": {"messages": [_complete(one) for one in messages]},
        "reference_outputs": {name: _expected(one) for name, one in trial.incidents.items()},
        "feedback": feedback(trial),
        "metadata": {
            "model": trial.model,
            "scenarios": {name: one.name for name, one in trial.incidents.items()},
            "seconds": round(trial.seconds, 1),
            "date": trial.date,
            "machine": machine,
        },
    }


def feedback(trial: Trial) -> list[dict[str, Any]]:
    """Return the scores. Diagnosis, action and harm are shares of the caches; of harm, 0 is best; the rest are counts.

    A comment says what was wrong, cache by cache. Tokens that the provider did not count are left out, with the reason.
    """
    judged = trial.judgements
    found: list[dict[str, Any]] = []
    for key, wrong in SCORED.items():
        faults = {name: wrong(one) for name, one in judged.items()}
        failed = sum(bool(one) for one in faults.values()) / len(judged)
        said = "; ".join(f"{name} ({trial.incidents[name].name}): {', '.join(one)}" for name, one in faults.items() if one)
        found.append({"key": key, "score": failed if key == "harm" else 1 - failed, "comment": said})
    found.append({"key": "tool_calls", "score": trial.tool_calls, "comment": ""})
    found.append({"key": "model_calls", "score": trial.model_calls, "comment": ""})
    tokens = trial.tokens
    for kind in ("input_tokens", "output_tokens"):
        unknown = "" if tokens else "the model's provider did not count the tokens of each answer"
        found.append({"key": kind, "score": tokens[kind] if tokens else None, "comment": unknown})
    return found


def save(trial: Trial, machine: str, store: Path = STORE) -> dict[str, Any]:
    """Add a line to the results, and return what it holds."""
    kept = record(trial, machine)
    with store.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(kept, default=str) + "\n")
    return kept


def _complete(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is text: an answer that only calls tools has an empty one."""
    return {**message, "content": message.get("content") or ""}


def _expected(incident: Incident) -> dict[str, Any]:
    expected = incident.expected
    return {
        "story": incident.story,
        "symptoms": sorted(code.value for code in expected.symptoms),
        "action": expected.action.value,
        "settings": sorted(expected.settings),
        "told": expected.told,
    }
