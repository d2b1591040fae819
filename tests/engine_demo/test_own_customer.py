"""Claims about examples/own_customer.py, over a simulated cache, with a scripted model in place of the real endpoint."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from own_customer import LOOK_BACK, own_customer
from scripted_model import ScriptedChatModel
from simulated_cache import play_simulated, simulated_operations
from tuning import THRASHING, l1_mb, readings

from agent_tools import LMCacheToolkit, Operations
from agent_tools.caches.registry import Cache
from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.io_loop import io_loop
from agent_tools.workload.schedule import ReplaySettings

TASK = ChatTraffic(conversations=4, turns=12, system_words=4, document_words=4, turn_words=2, answer_words=1).requests()
COMPUTING, LOADING = 0.02, 0.002
"""Seconds to the scripted model's first token."""


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    operations = simulated_operations(tmp_path)
    yield operations
    io_loop.run(operations.close)


@pytest.fixture
def cache(operations: Operations) -> Cache:
    """The simulated cache after it has thrashed: one of 16 MB that may grow to 64."""
    cache = operations.registry.get("default")
    with readings(operations):
        play_simulated(cache, THRASHING, ReplaySettings())
    return cache


def worked(operations: Operations, cache: Cache, budget_ms: float) -> tuple[dict[str, Any], ScriptedChatModel]:
    """The agent's state at the end of its task; its model takes as long as one on a cache of that size would."""

    def say(_: Any) -> AIMessage:
        time.sleep(LOADING if l1_mb(cache) > 16 else COMPUTING)
        return AIMessage("bakelu")

    model = ScriptedChatModel(script=[say] * len(TASK))
    tools = {tool.name: tool for tool in LMCacheToolkit(operations=operations).get_tools()}
    graph = own_customer(model, tools["lmcache_tune"], TASK, budget_ms)
    return asyncio.run(graph.ainvoke({}, {"recursion_limit": 3 * len(TASK)})), model


def test_an_agent_that_misses_its_budget_has_the_cache_under_itself_tuned_once_and_gets_faster(
    operations: Operations, cache: Cache
) -> None:
    state, model = worked(operations, cache, budget_ms=1e3 * (COMPUTING + LOADING) / 2)
    assert len(model.heard) == len(state["ttft_ms"]) == len(TASK)
    (note,) = state["notes"]
    assert note.startswith(f"after {LOOK_BACK} requests: ")
    assert l1_mb(cache) > 16
    assert "my median time to first token is" in io_loop.run(operations.changes, "default")[0].reason
    before, after = state["ttft_ms"][:LOOK_BACK], state["ttft_ms"][LOOK_BACK:]
    assert median(after) < median(before)


def test_an_agent_within_its_budget_leaves_the_cache_alone(operations: Operations, cache: Cache) -> None:
    state, _ = worked(operations, cache, budget_ms=60_000)
    assert len(state["ttft_ms"]) == len(TASK)
    assert not state["notes"]
    assert l1_mb(cache) == 16
    assert not io_loop.run(operations.changes, "default")
