"""Claims about the sub-agent for deepagents. deepagents itself is no dependency: where it is installed, the agent is built."""

import pytest

from agent_tools import LMCacheToolkit
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
    from scripted_model import ScriptedChatModel  # noqa: PLC0415

    assert deepagents.create_deep_agent(model=ScriptedChatModel(script=[]), subagents=[cache_subagent()])
