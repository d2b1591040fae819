"""An agent that is its own customer: it notices that its chat model has become slow, and tunes the cache behind the model.

    make demo-engine && .venv-engine/bin/python examples/own_customer.py --budget-ms 800

The chat model is a real vLLM on this machine's CPU, with its own `lmcache server` whose L1 is too small. The agent works on
several documents in turn, so its prompts evict each other. A model with random weights calls no tools. Therefore a node makes the
decision that a capable model would make: it compares the measured times to first token with the budget, and calls the tool
`lmcache_tune`. Everything else works the same with any chat model.
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

LOOK_BACK = 24
"""Number of last requests whose median time to first token is compared with the budget."""


class State(TypedDict, total=False):
    """The agent's state."""

    ttft_ms: Annotated[list[float], operator.add]
    """Time to first token of each request so far, ms."""
    notes: Annotated[list[str], operator.add]
    """Results of tuning: after how many requests, and the tool's answer."""


def own_customer(
    model: BaseChatModel, tune: BaseTool, task: Sequence[ChatRequest], budget_ms: float, cache: str = "default"
) -> CompiledStateGraph[State, None, State, State]:
    """Return the graph: send one request after the other, and call the tool once if their median misses the budget.

    Args:
        model: The chat model whose time to first token is measured.
        tune: The tool ``lmcache_tune`` of a toolkit.
        task: The requests to the model.
        budget_ms: Budget for the median time to first token of the last `LOOK_BACK` requests, ms.
        cache: Name of the model's cache.
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
        took = median(state["ttft_ms"][-LOOK_BACK:])
        reason = f"my median time to first token is {took:,.0f} ms, and my budget is {budget_ms:g} ms"
        # The agent sends nothing while it waits for the tool, so the tool cannot verify. The next requests show the effect.
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
    """Start both servers, run the agent, and print what it measured."""
    from langchain_openai import ChatOpenAI  # noqa: PLC0415  an extra

    traffic = ChatTraffic(turns=10, turn_words=100, seed=seed)
    task = traffic.requests()
    with tempfile.TemporaryDirectory() as state_folder:
        async with engine_on_a_cache(settings_for(traffic, Path(state_folder)), print) as engine:
            body = {"ignore_eos": True, "skip_special_tokens": False}  # vLLM options that make each token of an answer visible
            model = ChatOpenAI(
                base_url=f"{engine.vllm.url}/v1", api_key="none", model=MODEL, max_tokens=4, max_retries=0, extra_body=body
            )
            tools = LMCacheToolkit(operations=engine.operations).get_tools()
            (tune,) = (tool for tool in tools if tool.name == "lmcache_tune")
            graph = own_customer(model, tune, task, budget_ms)
            state = await graph.ainvoke({}, {"recursion_limit": 3 * len(task)})
    print(*(state.get("notes") or ["the agent met its budget, so it did not tune the cache"]), sep="\n")
    for start in range(0, len(task), LOOK_BACK):
        times = state["ttft_ms"][start : start + LOOK_BACK]
        print(f"requests {start + 1} to {start + len(times)}: median time to first token {median(times):,.0f} ms")


def main(budget_ms: float = 800, seed: int = 0) -> None:
    """Work under a budget for the median time to first token."""
    asyncio.run(run(budget_ms, seed))


if __name__ == "__main__":
    typer.run(main)
