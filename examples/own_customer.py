"""An agent that is its own customer: it notices that its chat model has become slow, and has the cache under that model tuned.

    make demo-engine && .venv-engine/bin/python examples/own_customer.py --budget-ms 800

Its chat model is a real vLLM on this machine's CPU, in front of a private `lmcache server` with too small an L1. It works on
several documents in turn, so that its own prompts push each other out. A model of random weights calls no tools, so what a
capable one would decide by itself is decided by a node: it looks at the times to first token that it measured, and calls the
tool `lmcache_tune`. Everything else is as it would be with any chat model.
"""

import asyncio
import operator
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from agent_tools import LMCacheToolkit
from agent_tools.demo.engine.chat_traffic import ChatRequest, ChatTraffic
from agent_tools.demo.engine.demo import engine_on_a_cache, settings_for
from agent_tools.demo.engine.vllm_server import MODEL
from agent_tools.tools.tune import TUNE

LOOK_BACK = 24
"""Requests whose median it compares with its budget."""


class State(TypedDict, total=False):
    """What the agent knows of itself."""

    ttft_ms: Annotated[list[float], operator.add]
    """Of each request so far."""
    notes: Annotated[list[str], operator.add]
    """What tuning came to: after how many requests, and what the tool said."""


def own_customer(
    model: BaseChatModel, tune: BaseTool, task: Sequence[ChatRequest], budget_ms: float, cache: str = "default"
) -> CompiledStateGraph[State, None, State, State]:
    """The graph: one request of the task after the other, and once, when their median misses the budget, the tool.

    Args:
        model: Whose time to first token is measured.
        tune: The tool ``lmcache_tune`` of a toolkit.
        task: What is asked of the model.
        budget_ms: For the median of the last `LOOK_BACK` requests.
        cache: Name of the cache under the model.
    """

    async def work(state: State) -> dict[str, Any]:
        request = task[len(state.get("ttft_ms", ()))]
        began, first = time.perf_counter(), None
        async for chunk in model.astream(list(request.messages)):
            if first is None and chunk.content:
                first = time.perf_counter() - began
        return {"ttft_ms": [1e3 * (first if first is not None else time.perf_counter() - began)]}

    def notice(state: State) -> str:
        times = state["ttft_ms"]
        if len(times) == len(task):
            return END
        slow = len(times) >= LOOK_BACK and median(times[-LOOK_BACK:]) > budget_ms
        return "tune" if slow and not state.get("notes") else "work"

    async def call_tool(state: State) -> dict[str, Any]:
        reason = f"my median time to first token is {median(state['ttft_ms'][-LOOK_BACK:]):,.0f} ms, my budget {budget_ms:g} ms"
        # It waits for the tool, so there is no traffic to verify by meanwhile: what follows shows whether it helped.
        arguments = {"cache": cache, "mode": "auto", "reason": reason, "window_seconds": 0, "verify_seconds": 1}
        said = await tune.ainvoke(arguments)
        return {"notes": [f"after {len(state['ttft_ms'])} requests: {said}"]}

    builder = StateGraph(State)
    builder.add_node("work", work)
    builder.add_node("tune", call_tool)
    builder.add_edge(START, "work")
    builder.add_conditional_edges("work", notice, ["work", "tune", END])
    builder.add_edge("tune", "work")
    return builder.compile()


async def run(budget_ms: float, seed: int) -> None:
    """Start both servers, work, and tell what the agent saw."""
    from langchain_openai import ChatOpenAI  # noqa: PLC0415  an extra

    traffic = ChatTraffic(turns=10, turn_words=100, seed=seed)
    task = traffic.requests()
    with tempfile.TemporaryDirectory() as state_folder:
        async with engine_on_a_cache(settings_for(traffic, Path(state_folder)), print) as engine:
            body = {"ignore_eos": True, "skip_special_tokens": False}  # of vLLM: each token of an answer is seen
            model = ChatOpenAI(
                base_url=f"{engine.vllm.url}/v1", api_key="none", model=MODEL, max_tokens=4, max_retries=0, extra_body=body
            )
            tools = LMCacheToolkit(operations=engine.operations, more=(TUNE,)).get_tools()
            (tune,) = (tool for tool in tools if tool.name == "lmcache_tune")
            graph = own_customer(model, tune, task, budget_ms)
            state = await graph.ainvoke({}, {"recursion_limit": 3 * len(task)})
    print(*(state.get("notes") or ["the budget was kept; nothing was tuned"]), sep="\n")
    for start in range(0, len(task), LOOK_BACK):
        times = state["ttft_ms"][start : start + LOOK_BACK]
        print(f"requests {start + 1} to {start + len(times)}: median time to first token {median(times):,.0f} ms")


def main(budget_ms: float = 800, seed: int = 0) -> None:
    """Work under a budget for the median time to first token."""
    asyncio.run(run(budget_ms, seed))


if __name__ == "__main__":
    typer.run(main)
