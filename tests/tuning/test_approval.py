"""Mode `approve`: what a person is shown, and what each answer does and does not do."""

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import ValidationError
from tuning import Window, l1_mb

from agent_tools.caches.registry import Cache
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.operations import Operations
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache

pytestmark = pytest.mark.usefixtures("known_state")

MALFORMED: list[Any] = [
    True,
    "approve",
    {"decisions": []},
    {"decisions": [{"type": "yes"}]},
    {"decisions": [{"type": "approve"}, {"type": "approve"}]},
    {"decisions": [{"type": "approve", "note": "fine"}]},
    {"decisions": [{"type": "edit"}]},
    {"decisions": [{"type": "edit", "edited_action": {"name": "x", "args": {"update": {"max_size": 20}}}}]},
    {"decisions": [{"type": "edit", "edited_action": {"name": "x", "args": {"update": {}}}}]},
    {"decisions": [{"type": "approve", "edited_action": {"name": "x", "args": {"update": {"max_size_mb": 20}}}}]},
]


class Asked:
    """A run of the graph that waits for approval."""

    def __init__(self, operations: Operations, window: Window) -> None:
        self.graph = build_tune_cache(operations=operations).compile(checkpointer=InMemorySaver())
        self.config: Any = {"configurable": {"thread_id": "1"}}
        self.context = TuneContext(window_seconds=window.seconds, verify_seconds=1)
        result = self.graph.invoke({}, self.config, context=self.context)
        assert "__interrupt__" in result, result["tune_report"]["summary"]
        self.request = result["__interrupt__"][0].value

    def answer(self, *decisions: dict[str, Any], **more: Any) -> TuneReport:
        """Resume with decisions."""
        result = self.graph.invoke(Command(resume={"decisions": list(decisions), **more}), self.config, context=self.context)
        return TuneReport.model_validate(result["tune_report"])


@pytest.fixture
def asked(operations: Operations, filled: Window) -> Asked:
    return Asked(operations, filled)


def test_the_approval_shows_what_changes_why_and_what_it_costs(asked: Asked) -> None:
    action = asked.request["action_requests"][0]
    assert "max_size_mb" in action["args"]["update"]
    for word in (
        *action["args"]["update"],
        "token hit rate",
        " points (90 % interval ",
        "No cached data is lost.",
        "Cost",
        "Undo",
    ):
        assert word in action["description"]
    assert asked.request["review_configs"][0]["allowed_decisions"] == ["approve", "edit", "reject"]


def test_an_approved_plan_is_applied(asked: Asked, cache: Cache) -> None:
    report = asked.answer({"type": "approve"}, fingerprint=asked.request["action_requests"][0]["args"]["fingerprint"])
    assert report.outcome is Outcome.KEPT_UNDECIDED, "no traffic came after it"
    assert l1_mb(cache) == asked.request["action_requests"][0]["args"]["update"]["max_size_mb"]


def test_a_rejected_plan_changes_nothing(asked: Asked, cache: Cache) -> None:
    report = asked.answer({"type": "reject", "message": "not today"})
    assert report.outcome is Outcome.REJECTED
    assert "not today" in report.summary
    assert l1_mb(cache) == 16


def test_an_edited_plan_is_applied_as_edited(asked: Asked, cache: Cache) -> None:
    asked.answer({"type": "edit", "edited_action": {"name": "lmcache_apply_plan", "args": {"update": {"max_size_mb": 20}}}})
    assert l1_mb(cache) == 20


def test_an_edit_outside_the_bounds_changes_nothing(asked: Asked, cache: Cache) -> None:
    report = asked.answer({"type": "edit", "edited_action": {"args": {"update": {"max_size_mb": 6400}}}})
    assert report.outcome is Outcome.FAILED
    assert "above the operator's bound of 64" in report.summary
    assert l1_mb(cache) == 16


def test_an_approval_of_another_plan_changes_nothing(asked: Asked, cache: Cache) -> None:
    assert asked.answer({"type": "approve"}, fingerprint="0" * 16).outcome is Outcome.FAILED
    assert l1_mb(cache) == 16


def test_a_cache_that_changed_while_the_approval_waited_is_left_alone(asked: Asked, operations: Operations, cache: Cache) -> None:
    plan = io_loop.run(operations.plan, "default", ConfigUpdate(max_size_mb=18), "meanwhile")
    io_loop.run(operations.apply, plan, "somebody else")
    report = asked.answer({"type": "approve"})
    assert report.outcome is Outcome.FAILED
    assert "changed since" in report.summary
    assert l1_mb(cache) == 18


def test_a_malformed_answer_is_refused_and_the_question_stays_open(asked: Asked, cache: Cache) -> None:
    for answer in MALFORMED:
        with pytest.raises(ValidationError):
            asked.graph.invoke(Command(resume=answer), asked.config, context=asked.context)
    assert asked.answer({"type": "reject"}).outcome is Outcome.REJECTED
    assert l1_mb(cache) == 16


def test_without_a_checkpointer_approve_changes_nothing(operations: Operations, cache: Cache, filled: Window) -> None:
    result = build_tune_cache(operations=operations).compile().invoke({}, context=TuneContext(window_seconds=filled.seconds))
    assert "tune_report" not in result
    assert l1_mb(cache) == 16
