"""Claims about the agent bench: what is kept is what LangSmith and agentevals read, and a run finds, mends and scores.

The model is scripted, so nothing is claimed about any LLM. All else is real.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langsmith.evaluation import EvaluationResult
from real_logs import conversations, log_of
from scripted_model import ScriptedChatModel, call

from agent_tools.models import ChangeOutcome, ChangeRecord, SettingChange, SupportLevel, SymptomCode
from agent_tools.models.metrics import utc
from benchmarks.agent_bench.answer import Answers
from benchmarks.agent_bench.record import feedback, record, save
from benchmarks.agent_bench.several import repeated
from benchmarks.agent_bench.trial import Trial, changes, run
from benchmarks.incidents.outcome import Outcome
from benchmarks.incidents.scenarios import incidents

KNOWN = incidents()
PAIR = {"a": KNOWN["l1_too_small"], "b": KNOWN["healthy_under_load"]}
GROWN = Outcome(
    symptoms=("l1_too_small",), result="reported", changed={"max_size_mb": [8.0, 32.0]}, rate_before=0.3, rate_after=0.5
)
LEFT_ALONE = Outcome(symptoms=("nothing_wrong",), result="reported", rate_before=0.9, rate_after=0.9)


def trial(*messages: BaseMessage, **outcomes: Outcome) -> Trial:
    return Trial("a-model", PAIR, messages, {"a": GROWN, "b": LEFT_ALONE} | outcomes, 60.0, "2026-01-01")


TALK = (
    HumanMessage("look"),
    AIMessage(
        "",
        tool_calls=[{"name": "lmcache_list_caches", "args": {}, "id": "1"}],
        usage_metadata=UsageMetadata(input_tokens=100, output_tokens=10, total_tokens=110),
    ),
    ToolMessage("a, b", tool_call_id="1", name="lmcache_list_caches"),
    AIMessage("done", usage_metadata=UsageMetadata(input_tokens=120, output_tokens=5, total_tokens=125)),
)


def scores(of: Trial) -> dict[str, Any]:
    return {one["key"]: one["score"] for one in feedback(of)}


def test_a_trial_is_scored_by_diagnosis_action_harm_calls_and_tokens() -> None:
    assert scores(trial(*TALK)) == {
        "diagnosis": 1,
        "action": 1,
        "harm": 0,
        "tool_calls": 1,
        "model_calls": 2,
        "input_tokens": 220,
        "output_tokens": 15,
    }
    meddled = replace(LEFT_ALONE, changed={"max_size_mb": [64.0, 96.0]}, differing_settings=("max_size_mb",))
    wrong = trial(*TALK, a=replace(GROWN, symptoms=("stores_fail",)), b=meddled)
    assert (scores(wrong)["diagnosis"], scores(wrong)["action"], scores(wrong)["harm"]) == (0.5, 0.5, 0.5)
    said = {one["key"]: one["comment"] for one in feedback(wrong)}
    assert said["diagnosis"] == "a (l1_too_small): l1_too_small was not named"
    assert said["action"].startswith("b (healthy_under_load): max_size_mb changed")


def test_a_cache_that_was_not_reported_is_wrong_in_both() -> None:
    silent = trial(*TALK, b=Outcome(result="failed"))
    assert scores(silent)["action"] == 0.5
    crashed = trial(*TALK, a=Outcome(crashed="ValueError: no more"), b=Outcome(crashed="ValueError: no more"))
    assert (scores(crashed)["diagnosis"], scores(crashed)["action"]) == (0, 0)


def test_tokens_that_were_not_counted_for_each_answer_are_unknown() -> None:
    found = {one["key"]: one for one in feedback(trial(*TALK, AIMessage("more")))}
    assert found["input_tokens"]["score"] is None
    assert "did not count" in found["input_tokens"]["comment"]


def test_a_line_holds_a_conversation_in_openais_form_and_langsmiths_feedback(tmp_path: Path) -> None:
    save(trial(*TALK), "a machine", tmp_path / "lines.jsonl")
    save(trial(*TALK), "a machine", tmp_path / "lines.jsonl")
    first, second = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
    assert first == second == json.loads(json.dumps(record(trial(*TALK), "a machine")))
    messages = first["outputs"]["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "assistant"]
    assert all(isinstance(one["content"], str) for one in messages)
    (asked,) = messages[1]["tool_calls"]
    assert (asked["type"], asked["function"]["name"], json.loads(asked["function"]["arguments"])) == (
        "function",
        "lmcache_list_caches",
        {},
    )
    assert messages[2]["tool_call_id"] == asked["id"]
    for one in first["feedback"]:
        assert EvaluationResult(**one).key == one["key"]
    assert first["reference_outputs"]["a"]["symptoms"] == ["l1_too_small"]
    assert first["metadata"]["scenarios"] == {"a": "l1_too_small", "b": "healthy_under_load"}


def test_changes_are_what_was_made_from_first_to_last_unless_all_is_undone() -> None:
    def made(number: int, old: float, new: float, undoes: str | None = None) -> list[ChangeRecord]:
        change = SettingChange(setting="max_size_mb", old=old, new=new, how=SupportLevel.LIVE)
        return [
            ChangeRecord(
                change_id=f"change-{number}",
                recorded_at=utc(1e9 + number),
                cache="a",
                actor="test",
                operation="undo" if undoes else "reconfigure",
                outcome=ChangeOutcome.APPLIED,
                changes=(change,),
                undoes=undoes,
            )
        ]

    first, second = made(1, 8, 16), made(2, 16, 32)
    assert changes([first, second]) == ({"max_size_mb": [8, 32]}, False)
    assert changes([first, made(3, 16, 8, "change-1")]) == ({"max_size_mb": [8, 16]}, True)
    assert changes([]) == ({}, False)


def test_traffic_that_goes_on_asks_for_other_prompts_at_the_same_pace() -> None:
    log = log_of(*conversations(3, 4), range(2, 3), tail=7)
    longer = repeated(log, 3)
    assert len(longer) == 3 * len(log)
    assert longer.unique_chunks == 3 * log.unique_chunks
    assert (np.diff(longer.timestamps) == 1).all()
    assert (longer.tokens == np.tile(log.tokens, 3)).all()


def test_only_caches_that_are_there_can_be_reported() -> None:
    answers = Answers(frozenset({"a", "b"}))
    tool = answers.tool()
    assert "there is no cache" in tool.invoke({"cache": "c", "symptoms": [], "told": ""})
    assert "still to report: b" in tool.invoke({"cache": "a", "symptoms": ["l1_too_small"], "told": "grown"})
    assert tool.invoke({"cache": "b", "symptoms": ["nothing_wrong"], "told": ""}) == "taken; every cache is reported"
    assert answers.given["a"].symptoms == [SymptomCode.L1_TOO_SMALL]


def latest(messages: Sequence[BaseMessage], name: str) -> ToolMessage:
    return next(one for one in reversed(messages) if isinstance(one, ToolMessage) and one.name == name)


def advised(messages: Sequence[BaseMessage]) -> AIMessage:
    """Follow the advice for ``a``: its first recommendation, as the tool's artifact has it."""
    advice = latest(messages, "lmcache_recommend").artifact
    assert advice["verdict"] == "act", advice["why"]
    update = {name: value for name, value in advice["recommendations"][0]["update"].items() if value is not None}
    return call("lmcache_update_config", cache="a", update=update, reason=advice["why"][:400])


def verified(messages: Sequence[BaseMessage]) -> AIMessage:
    change = re.search(r"change-\w+", str(latest(messages, "lmcache_update_config").content))
    assert change is not None, latest(messages, "lmcache_update_config").content
    return call("lmcache_verify_change", change_id=change[0], verify_seconds=12)


def reported(messages: Sequence[BaseMessage]) -> AIMessage:
    """Report the symptoms of the last diagnosis as the tools named them."""
    lines = latest(messages, "lmcache_diagnose").artifact
    codes = [one["code"] for one in lines["symptoms"]]
    return call("report_finding", cache="b", symptoms=codes, told="left alone")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_scripted_model_looks_after_two_real_caches_and_is_scored(lmcache: None, tmp_path: Path) -> None:
    model = ScriptedChatModel(
        script=[
            call("lmcache_list_caches"),
            call("lmcache_recommend", cache="a"),
            advised,
            verified,
            call("report_finding", cache="a", symptoms=["l1_too_small"], told="L1 was grown"),
            call("lmcache_diagnose", cache="b"),
            reported,
            AIMessage("a was too small and is larger now; b is right"),
        ]
    )
    found = run(model, "scripted", PAIR, minutes=1.5)
    kept = save(found, "a machine", tmp_path / "lines.jsonl")
    assert not [one for one in found.messages if isinstance(one, ToolMessage) and one.status == "error"]
    assert {one["key"]: one["score"] for one in kept["feedback"]} == {
        "diagnosis": 1,
        "action": 1,
        "harm": 0,
        "tool_calls": 7,
        "model_calls": 8,
        "input_tokens": None,
        "output_tokens": None,
    }, kept["feedback"]
    assert "max_size_mb" in found.outcomes["a"].changed
    assert not found.outcomes["b"].changed
    assert found.tokens is None, "nobody counts the tokens of a script"
