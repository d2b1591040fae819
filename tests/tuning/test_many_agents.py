"""Many agents in one process that wait in `verify` at once: they hold no threads, and wait side by side."""

import asyncio
import threading
import time
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from tuning import Window

from agent_tools.caches.registry import Cache
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext
from agent_tools.tuning.tune_cache import build_tune_cache

AGENTS = 50
PATIENCE = 2.0
SLOW = 2.0
"""Seconds that a busy machine may need until the graph looks."""


@pytest.fixture
def quiet(cache: Cache) -> None:
    """What earlier tests asked of the cache is older than the window."""
    time.sleep(SLOW + 0.5)


@pytest.fixture
def changed(operations: Operations, cache: Cache, quiet: None, filled: Window) -> tuple[Any, Any, TuneContext]:
    """(a graph that has just made a change, the run's checkpoint before `verify`, its settings)."""
    graph = build_tune_cache(operations=operations).compile(checkpointer=InMemorySaver(), interrupt_before=["verify"])
    context = TuneContext(cache=cache.name, mode="auto", window_seconds=filled.seconds + SLOW, verify_seconds=PATIENCE)
    config: Any = {"configurable": {"thread_id": "one"}}
    graph.invoke({}, config, context=context)
    state = graph.get_state(config)
    assert state.next == ("verify",), state.values["tune_report"]["summary"]
    return graph, state.config, context


def test_many_agents_that_verify_hold_no_threads_and_wait_side_by_side(changed: tuple[Any, Any, TuneContext]) -> None:
    graph, checkpoint, context = changed

    async def verified(agents: int) -> tuple[float, int]:
        """(seconds until all have finished, threads in the middle of the wait)."""
        began = time.monotonic()
        runs = asyncio.gather(*(graph.ainvoke(None, checkpoint, context=context) for _ in range(agents)))
        await asyncio.sleep(PATIENCE / 2)
        threads = threading.active_count()
        reports = [result["tune_report"] for result in await runs]
        assert all(report["verification"] for report in reports)
        return time.monotonic() - began, threads

    alone, few = asyncio.run(verified(1))
    together, many = asyncio.run(verified(AGENTS))
    assert many < few + AGENTS / 10
    assert together < AGENTS / 2 * alone, "one after the other they would take as many times as long as they are"
