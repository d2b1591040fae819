"""The ready agent over a real server, end to end; only its chat model is scripted."""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command
from pydantic import ValidationError
from real_cache import Play
from scripted_model import Line, ScriptedChatModel, call
from tuning import l1_mb

from agent_tools.cache_agent import MOST_TOOL_CALLS, PROMPT, build_cache_agent, cache_agent
from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import Settings
from agent_tools.errors import SettingsError
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate, Plan
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneReport
from agent_tools.workload.generate import AgentTraffic

TRAFFIC = AgentTraffic(requests=80, conversations=10, turns=8, tool_tokens=1500, seed=3).generate()
"""With 128 KB a chunk, a third of its chunks fills 16 MB, and what is evicted is asked for again."""
BIGGER = {"max_size_mb": 20}
APPROVE = {"type": "approve"}


class Talk:
    """A conversation with the agent."""

    def __init__(self, operations: Operations, *script: Line, **given: Any) -> None:
        self.model = ScriptedChatModel(script=[*script, AIMessage("That is all.")])
        self.agent = build_cache_agent(
            **{"model": self.model, "operations": operations, "checkpointer": InMemorySaver(), **given}
        )
        self.config: Any = {"configurable": {"thread_id": "1"}}
        self.result: dict[str, Any] = {}

    def start(self) -> "Talk":
        self.result = self.agent.invoke({"messages": [("human", "The cache is slow.")]}, self.config)
        return self

    def answer(self, decision: Any) -> "Talk":
        """A person's decision on what the agent asks."""
        assert self.asked
        self.result = self.agent.invoke(Command(resume=decision), self.config)
        return self

    @property
    def asked(self) -> dict[str, Any] | None:
        """What the agent waits to be told, if it does."""
        waiting = self.result.get("__interrupt__")
        return waiting[0].value if waiting else None

    @property
    def results(self) -> list[ToolMessage]:
        """What tools answered so far."""
        return [message for message in self.result["messages"] if isinstance(message, ToolMessage)]


def recorded(operations: Operations) -> int:
    """Lines in the change log."""
    return len(io_loop.run(operations.changes))


def last(messages: Sequence[BaseMessage]) -> Any:
    """The artifact of the last tool result."""
    assert isinstance(messages[-1], ToolMessage)
    assert messages[-1].status == "success", messages[-1].content
    return messages[-1].artifact


def planned(update: dict[str, Any] = BIGGER) -> tuple[Line, Line]:
    """The two lines of an agent that plans a change and then makes it."""

    def change(messages: Sequence[BaseMessage]) -> AIMessage:
        fingerprint = last(messages)["fingerprint"]
        return call("lmcache_update_config", update=update, reason="too small", plan_fingerprint=fingerprint)

    return call("lmcache_plan_update", update=update), change


# ---- conversations ----


def test_it_diagnoses_proposes_is_approved_applies_and_verifies(operations: Operations, cache: Cache, play: Play) -> None:
    def traffic() -> float:
        io_loop.run(operations.metrics)
        began = time.time()
        play(TRAFFIC, kv_bytes_per_token=512)
        return round(time.time() - began + 0.2, 2)

    def recommend(messages: Sequence[BaseMessage]) -> AIMessage:
        assert last(messages)["metrics"]["used_size_mb"] > 0
        return call("lmcache_recommend", window_seconds=window)

    def plan(messages: Sequence[BaseMessage]) -> AIMessage:
        assert last(messages)["verdict"] == "act", messages[-1].content
        best = last(messages)["recommendations"][0]["update"]
        return call("lmcache_plan_update", update={name: value for name, value in best.items() if value is not None})

    def change(messages: Sequence[BaseMessage]) -> AIMessage:
        made = Plan.model_validate(last(messages))
        return call("lmcache_update_config", update=made.update.known(), reason="it thrashes", plan_fingerprint=made.fingerprint)

    def verify(messages: Sequence[BaseMessage]) -> AIMessage:
        assert last(messages)["success"]
        return call("lmcache_get_metrics", window_seconds=traffic())

    window = traffic()
    talk = Talk(operations, call("lmcache_get_status"), recommend, plan, change, verify).start()
    assert l1_mb(cache) == 16
    assert talk.asked
    assert talk.asked["name"] == "lmcache_update_config"
    assert "max_size_mb 16 -> " in talk.asked["description"]
    talk.answer(APPROVE)
    assert talk.asked is None
    assert [message.status for message in talk.results] == ["success"] * 5
    advice, after = talk.results[1].artifact, talk.results[4].artifact
    assert l1_mb(cache) == pytest.approx(advice["recommendations"][0]["update"]["max_size_mb"])
    served, asked = after["tokens"]["hit_l1"], after["tokens"]["requested"]
    assert served / asked > advice["token_hit_rate"] + 0.05


def test_a_rejected_change_is_not_made_and_the_agent_hears_why(operations: Operations, cache: Cache) -> None:
    before = recorded(operations)
    talk = Talk(operations, *planned()).start().answer({"type": "reject", "message": "not today"})
    assert "not today" in talk.results[-1].content
    assert talk.results[-1].status == "error"
    assert l1_mb(cache) == 16
    assert recorded(operations) == before


def test_a_person_is_shown_the_plan_only_of_the_very_change_that_is_asked_for(operations: Operations, cache: Cache) -> None:
    plan, _ = planned()

    def another(messages: Sequence[BaseMessage]) -> AIMessage:
        fingerprint = last(messages)["fingerprint"]
        return call("lmcache_update_config", update={"max_size_mb": 60}, reason="more", plan_fingerprint=fingerprint)

    same, other = Talk(operations, *planned()).start().asked, Talk(operations, plan, another).start().asked
    assert same
    assert other
    assert "max_size_mb 16 -> 20 (live)" in same["description"]
    assert "no cached data is lost" in same["description"]
    assert "made no plan for exactly this change" in other["description"]
    assert "16 -> " not in other["description"]


def test_an_edited_change_is_made_as_edited_and_the_agent_is_told(operations: Operations, cache: Cache) -> None:
    talk = Talk(operations, *planned()).start()
    assert talk.asked
    assert "edit update and remove plan_fingerprint" in talk.asked["description"]
    edited = {**talk.asked["args"], "update": {"max_size_mb": 18}, "plan_fingerprint": None}
    talk.answer({"type": "edit", "edited_action": {"name": "lmcache_update_config", "args": edited}})
    assert l1_mb(cache) == 18
    assert "16 -> 18" in talk.results[-1].content
    assert "human reviewer replaced" in talk.results[-1].content


def test_the_fingerprint_of_a_plan_is_none_of_an_edited_one(operations: Operations, cache: Cache) -> None:
    talk = Talk(operations, *planned()).start()
    assert talk.asked
    edited = {**talk.asked["args"], "update": {"max_size_mb": 18}}
    talk.answer({"type": "edit", "edited_action": {"name": "lmcache_update_config", "args": edited}})
    assert l1_mb(cache) == 16
    assert "that plan is for other settings; read the cache and plan anew" in talk.results[-1].content


def test_a_change_is_found_in_the_history_and_undone_once_approved(operations: Operations, cache: Cache) -> None:
    change = io_loop.run(operations.apply, io_loop.run(operations.plan, "default", ConfigUpdate(max_size_mb=20), "x"), "test")

    def undo(messages: Sequence[BaseMessage]) -> AIMessage:
        return call("lmcache_undo_change", change_id=last(messages)["changes"][0][0]["change_id"])

    talk = Talk(operations, call("lmcache_list_changes", limit=1), undo).start()
    assert change.change_id in talk.results[0].content
    assert l1_mb(cache) == 20
    talk.answer(APPROVE)
    assert l1_mb(cache) == 16
    assert [r.outcome.value for r in io_loop.run(operations.changes) if r.change_id == change.change_id][-1] == "undone"


def test_an_unreachable_cache_is_told_to_the_agent_also_after_an_approval(operations: Operations) -> None:
    before = recorded(operations)
    change = call("lmcache_update_config", cache="unreachable", update=BIGGER, reason="try")
    talk = Talk(operations, call("lmcache_get_status", cache="unreachable"), change).start().answer(APPROVE)
    for message in talk.results:
        assert message.status == "error"
        assert message.content.startswith("unreachable: ")
        assert "nothing was changed" in message.content
    assert recorded(operations) == before


@pytest.mark.parametrize("tool", ["lmcache_warm_prefix", "lmcache_pin_prefix", "lmcache_delete_prefix"])
def test_all_that_takes_room_from_others_asks_a_person(operations: Operations, cache: Cache, tool: str) -> None:
    talk = Talk(operations, call(tool, model="m", token_ids=[1, 2, 3], reason="a test")).start()
    assert talk.asked
    assert talk.asked["name"] == tool
    assert talk.results == []


def test_reading_asks_nobody_and_blocks_no_event_loop(operations: Operations, cache: Cache) -> None:
    tune = {"mode": "recommend", "window_seconds": 0.5, "reason": "look"}
    reading = [call(f"lmcache_{name}") for name in ("list_caches", "get_status", "get_config", "list_changes")]
    talk = Talk(operations, *reading, call("lmcache_plan_update", update=BIGGER), call("lmcache_tune", **tune))
    with blockbuster_ctx() as blocking:
        for lock in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):  # as `langgraph dev` does
            blocking.functions[lock].deactivate()
        talk.result = asyncio.run(talk.agent.ainvoke({"messages": [("human", "How is it?")]}, talk.config))
    assert talk.asked is None
    assert [message.status for message in talk.results] == ["success"] * 6


def test_the_agent_is_told_how_to_behave_and_offered_every_tool(operations: Operations, cache: Cache) -> None:
    talk = Talk(operations).start()
    assert talk.model.heard[0][0].content == PROMPT
    for name in talk.model.offered:
        assert name.startswith("lmcache_")
    named = {word.strip(".,;") for word in PROMPT.split() if word.startswith("lmcache_") and word != "lmcache_"}
    assert named <= set(talk.model.offered)


def test_a_read_only_agent_is_offered_no_change(operations: Operations, cache: Cache) -> None:
    talk = Talk(operations, call("lmcache_update_config", update=BIGGER, reason="try"), read_only=True).start()
    assert "lmcache_update_config" not in talk.model.offered
    assert "not a valid tool" in talk.results[0].content
    assert l1_mb(cache) == 16


def test_an_agent_that_goes_round_in_circles_is_stopped(operations: Operations, cache: Cache) -> None:
    talk = Talk(operations, *(call("lmcache_list_caches") for _ in range(MOST_TOOL_CALLS + 5))).start()
    assert len([message for message in talk.results if message.status == "success"]) <= MOST_TOOL_CALLS
    assert isinstance(talk.result["messages"][-1], AIMessage)


def test_without_a_checkpointer_nothing_is_changed(operations: Operations, cache: Cache) -> None:
    model = ScriptedChatModel(script=[call("lmcache_update_config", update=BIGGER, reason="try")])
    agent = build_cache_agent(model=model, operations=operations)
    assert agent.invoke({"messages": [("human", "Grow it.")]})["__interrupt__"]
    assert l1_mb(cache) == 16


# ---- tuning as one tool ----


def test_a_tuning_run_is_approved_changes_and_reports_its_progress(operations: Operations, cache: Cache, play: Play) -> None:
    io_loop.run(operations.metrics)
    began = time.time()
    play(TRAFFIC, kv_bytes_per_token=512)
    tune = {"mode": "auto", "window_seconds": time.time() - began + 0.2, "verify_seconds": 1, "reason": "it thrashes"}
    talk = Talk(operations, call("lmcache_tune", **tune)).start()
    assert talk.asked
    assert talk.asked["name"] == "lmcache_tune"
    assert l1_mb(cache) == 16
    stream = talk.agent.stream(Command(resume=APPROVE), talk.config, stream_mode=["custom", "values"])
    said = []
    for kind, event in stream:
        if kind == "custom":
            said.append(event)
        else:
            talk.result = event
    assert {event["step"] for event in said} == {"read_metrics", "recommend", "reconfigure", "verify"}
    assert all(event["type"] == "lmcache_progress" for event in said)
    report = TuneReport.model_validate(talk.results[-1].artifact)
    assert report.change is not None
    assert talk.results[-1].content.startswith(f"{report.outcome.value}: ")
    assert l1_mb(cache) == pytest.approx(report.change.config.max_size_mb)


@pytest.mark.parametrize("subgraphs", [True, False])
async def test_a_tuning_run_tells_its_progress_once_and_leaves_its_hosts_checkpointer_alone(
    operations: Operations, cache: Cache, subgraphs: bool
) -> None:
    start = {"messages": [("human", "Look.")]}
    look = call("lmcache_tune", mode="recommend", window_seconds=0.5, reason="look")
    async with AsyncSqliteSaver.from_conn_string(":memory:") as saver:  # works on the event loop that made it, and no other
        talk = Talk(operations, look, checkpointer=saver)
        stream = talk.agent.astream(start, talk.config, stream_mode="custom", subgraphs=subgraphs)
        said = [event[-1]["message"] if subgraphs else event["message"] async for event in stream]
    assert said[0] == "reading default"
    assert said.count("reading default") == said.count("searching for better settings") == 1


# ---- bad input ----


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("lmcache_resize", {"size": 20}, "lmcache_resize is not a valid tool, try one of [lmcache_list_caches, "),
        ("lmcache_get_status", {"cach": "default"}, "there is no argument cach, did you mean cache; nothing was done"),
        ("lmcache_get_status", {"host": "http://evil"}, "there is no argument host, only cache"),
        ("lmcache_plan_update", {"update": {"max_size": 20}}, "there is no argument update.max_size, did you mean max_size_mb"),
        ("lmcache_plan_update", {"update": {"l1": 20}}, "there is no argument update.l1, only enabled, max_size_mb, "),
        ("lmcache_plan_update", {"update": {}}, "update: give at least one setting to change; there are: enabled, max_size_mb"),
        (
            "lmcache_plan_update",
            {"update": {"max_size_mb": "20 MB"}},
            "valid number, unable to parse string as a number, not '20 MB'",
        ),
        ("lmcache_plan_update", {"update": "bigger"}, "update: Input should be a valid dictionary"),
        (
            "lmcache_plan_update",
            {"cache": "prod", "update": BIGGER},
            "no cache named 'prod'; the caches are: default, un",
        ),
        (
            "lmcache_update_config",
            {"update": BIGGER, "reson": "small"},
            "reason is missing; there is no argument reson, did you mean reason",
        ),
        (
            "lmcache_update_config",
            {"update": {"max_size_mb": -1}, "reason": "less"},
            "update.max_size_mb: Input should be greater",
        ),
        ("lmcache_update_config", {"update": {"eviction_policy": "LRU"}, "reason": "old"}, "Input should be 'lru', 'lfu', "),
        (
            "lmcache_optimize",
            {"target_utilization_percent": 0, "reason": "all of it"},
            "target_utilization_percent: Input should be ",
        ),
        (
            "lmcache_tune",
            {"mode": "approve", "reason": "ask me"},
            "mode: Input should be 'observe', 'recommend' or 'auto', not 'app",
        ),
        ("lmcache_tune", {"mode": "observe", "cache": "prod", "reason": "look"}, "there is no cache named 'prod'"),
        ("lmcache_list_changes", {"limit": 10**9}, "limit: Input should be less than or equal to 100, not 1000000000"),
    ],
)
def test_a_wrong_call_is_told_to_the_agent_in_one_sentence_and_asks_nobody(
    operations: Operations, cache: Cache, name: str, arguments: dict[str, Any], words: str
) -> None:
    before = recorded(operations)
    talk = Talk(operations, call(name, **arguments)).start()
    assert talk.asked is None, "a person is not bothered with a call that cannot be carried out"
    (message,) = talk.results
    assert message.status == "error"
    assert words in message.content
    assert "\n" not in message.content.strip()
    assert len(message.content) < 700
    assert l1_mb(cache) == 16
    assert recorded(operations) == before


def test_an_agent_corrects_itself_by_what_the_error_says(operations: Operations, cache: Cache) -> None:
    def corrected(messages: Sequence[BaseMessage]) -> AIMessage:
        meant = str(messages[-1].content).partition("did you mean ")[2].partition(";")[0]
        return call("lmcache_plan_update", update={meant: 20})

    talk = Talk(operations, call("lmcache_plan_update", update={"max_size": 20}), corrected).start()
    assert [message.status for message in talk.results] == ["error", "success"]
    assert Plan.model_validate(talk.results[1].artifact).update.known() == BIGGER


def test_a_number_as_text_is_that_number(operations: Operations, cache: Cache) -> None:
    Talk(operations, *planned({"max_size_mb": "20"})).start().answer(APPROVE)
    assert l1_mb(cache) == 20


def test_a_cache_that_does_not_exist_is_not_changed_by_an_approval(operations: Operations, cache: Cache) -> None:
    before = recorded(operations)
    change = call("lmcache_update_config", cache="prod", update=BIGGER, reason="try")
    talk = Talk(operations, change).start().answer(APPROVE)
    assert "there is no cache named 'prod'; the caches are: default, unreachable" in talk.results[0].content
    assert recorded(operations) == before


def yesterday(operations: Operations) -> str:
    """The fingerprint of a plan since which the cache was changed."""
    plan = io_loop.run(operations.plan, "default", ConfigUpdate.model_validate(BIGGER), "yesterday's")
    meanwhile = io_loop.run(operations.plan, "default", ConfigUpdate(max_size_mb=18), "meanwhile")
    io_loop.run(operations.apply, meanwhile, "somebody else")
    return plan.fingerprint


@pytest.mark.parametrize("old", [yesterday, lambda _: "plan-1f0c9a2b"], ids=["a fingerprint", "a plan id"])
def test_a_plan_of_yesterday_is_refused(operations: Operations, cache: Cache, old: Callable[[Operations], str]) -> None:
    change = call("lmcache_update_config", update=BIGGER, reason="as planned", plan_fingerprint=old(operations))
    size, before = l1_mb(cache), recorded(operations)
    talk = Talk(operations, change).start()
    assert talk.asked
    assert "made no plan for exactly this change" in talk.asked["description"]
    talk.answer(APPROVE)
    assert talk.results[0].status == "error"
    assert talk.results[0].content.startswith("stale_plan: default is not")
    assert l1_mb(cache) == size
    assert recorded(operations) == before


def test_a_plan_is_stale_when_the_cache_changes_while_a_person_thinks(operations: Operations, cache: Cache) -> None:
    talk = Talk(operations, *planned()).start()
    yesterday(operations)
    talk.answer(APPROVE)
    assert talk.results[-1].content.startswith("stale_plan: ")
    assert l1_mb(cache) == 18


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (True, "valid dictionary"),
        ("yes", "valid dictionary"),
        ([APPROVE], "valid dictionary"),
        ({"decisions": [APPROVE]}, "Unable to extract tag using discriminator 'type'"),
        ({"type": "aprove"}, "'approve', 'edit', 'reject'"),
        ({"type": "respond", "message": "done"}, "'approve', 'edit', 'reject'"),
        ({"type": "edit"}, "edited_action"),
        (
            {"type": "edit", "edited_action": {"name": "lmcache_clear_cache", "args": {"reason": "other"}}},
            "lmcache_update_config",
        ),
        (
            {"type": "edit", "edited_action": {"name": "lmcache_update_config", "args": {"update": {"max_size_mb": -1}}}},
            "greater",
        ),
    ],
    ids=str,
)
def test_an_answer_of_the_wrong_shape_is_refused_and_the_question_stays_open(
    operations: Operations, cache: Cache, answer: Any, words: str
) -> None:
    before, talk = recorded(operations), Talk(operations, *planned()).start()
    with pytest.raises(ValidationError, match=words):
        talk.answer(answer)
    assert l1_mb(cache) == 16
    assert recorded(operations) == before
    talk.answer(APPROVE)
    assert l1_mb(cache) == 20


def test_the_question_publishes_how_it_can_be_answered(operations: Operations, cache: Cache) -> None:
    schema = Talk(operations, *planned()).start().result["__interrupt__"][0].response_schema
    assert set(schema["discriminator"]["mapping"]) == {"approve", "edit", "reject"}


# ---- the chat model ----


def without_a_model(tmp_path: Path, **settings: Any) -> Operations:
    return Operations(Registry(Settings(state_folder=tmp_path, **settings)))


def test_without_a_model_the_exported_agent_loads_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("agent_tools.cache_agent.shared_operations", lambda: without_a_model(tmp_path))
    assert cache_agent.checkpointer is None
    assert "tools" in cache_agent.get_graph().nodes
    with pytest.raises(SettingsError, match="no chat model is configured: set LMCACHE_AGENT_MODEL"):
        cache_agent.invoke({"messages": [("human", "Hello.")]})
    # Only of some errors does `langgraph dev` tell its clients more than the class.
    with pytest.raises(ValueError, match="no chat model is configured"):
        asyncio.run(cache_agent.ainvoke({"messages": [("human", "Hello.")]}))


def test_the_model_is_the_one_of_the_context_or_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_MODEL", "openai:not-installed-here")
    agent, hello = build_cache_agent(operations=without_a_model(tmp_path)), {"messages": [("human", "Hello.")]}
    with pytest.raises(SettingsError, match=r"'openai:not-installed-here' cannot be used: .*langchain-openai"):
        agent.invoke(hello)
    with pytest.raises(SettingsError, match=r"'nobody:other' cannot be used: Unable to infer model provider"):
        agent.invoke(hello, context={"model": "nobody:other"})


def test_a_configured_model_is_used(monkeypatch: pytest.MonkeyPatch, operations: Operations, cache: Cache) -> None:
    model = ScriptedChatModel(script=[call("lmcache_list_caches"), AIMessage("two")])
    monkeypatch.setattr("agent_tools.cache_agent.init_chat_model", {"my:model": model}.__getitem__)
    monkeypatch.setattr("agent_tools.cache_agent.shared_operations", lambda: operations)
    result = asyncio.run(cache_agent.ainvoke({"messages": [("human", "Hello.")]}, context={"model": "my:model"}))
    assert result["messages"][-1].content == "two"


def test_without_langchain_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "langchain"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "langchain", None)
    monkeypatch.delitem(sys.modules, "agent_tools.cache_agent")
    with pytest.raises(SettingsError, match="install the extra `agent`"):
        __import__("agent_tools.cache_agent")
