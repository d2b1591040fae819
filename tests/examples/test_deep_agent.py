"""Claims about the sub-agent for deepagents. deepagents itself is no dependency: where it is installed, the agent is run."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from scripted_model import ScriptedChatModel, call

from agent_tools import LMCacheToolkit, Operations
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.io_loop import io_loop
from examples.deep_agent import cache_subagent


def test_every_tool_that_changes_something_asks_first() -> None:
    agent = cache_subagent()
    changing = {tool.name for tool in agent["tools"] if not tool.metadata["readOnlyHint"]}
    assert set(agent["interrupt_on"]) == changing == {
        "lmcache_update_config", "lmcache_undo_change", "lmcache_use_changing_tool",
    }  # fmt: skip


def test_the_skill_names_only_tools_that_there_are() -> None:
    prompt = cache_subagent()["system_prompt"]
    known = {tool.name for tool in (*LMCacheToolkit().get_tools(), *LMCacheToolkit().on_demand().get_tools())}
    named = {word.strip("`.,:;()") for word in prompt.split() if word.startswith("`lmcache_")}
    assert len(named) >= 8
    assert named <= known
    assert prompt.startswith("# Look after")


def test_deepagents_takes_it() -> None:
    deepagents = pytest.importorskip("deepagents")
    assert deepagents.create_deep_agent(model=ScriptedChatModel(script=[]), subagents=[cache_subagent()])


@pytest.mark.parametrize(("decision", "ratio"), [("approve", 0.3), ("reject", 0.2)])
def test_the_sub_agent_of_a_real_deep_agent_asks_before_it_changes(decision: str, ratio: float, tmp_path: Path) -> None:
    deepagents = pytest.importorskip("deepagents")
    caches = {"default": {"target": "simulated:", "cooldown_seconds": 0}}
    operations = Operations(Registry(Settings.model_validate({"caches": caches, "state_folder": tmp_path})))
    model = ScriptedChatModel(
        script=[
            call("task", description="Set the eviction ratio of the cache default to 0.3", subagent_type="lmcache"),
            call("lmcache_get_config"),
            call("lmcache_update_config", update={"eviction_ratio": 0.3}, reason="a test"),
            AIMessage("The sub-agent is done."),
            AIMessage("The main agent is done."),
        ]
    )
    agent = deepagents.create_deep_agent(model=model, subagents=[cache_subagent(operations)], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    try:
        asked = agent.invoke({"messages": [("user", "Set the eviction ratio of my cache to 0.3")]}, config)
        (wanted,) = asked["__interrupt__"][0].value["action_requests"]
        assert (wanted["name"], wanted["args"]["update"]) == ("lmcache_update_config", {"eviction_ratio": 0.3})
        assert io_loop.run(operations.settings).eviction_ratio == 0.2  # nothing yet
        answer = agent.invoke(Command(resume={"decisions": [{"type": decision}]}), config)
        assert answer["messages"][-1].text == "The main agent is done."
        assert io_loop.run(operations.settings).eviction_ratio == ratio
        outcomes = [one.outcome.value for one in io_loop.run(operations.changes)]
        assert outcomes == (["started", "applied"] if decision == "approve" else [])
    finally:
        io_loop.run(operations.close)
