"""A graph that blocks its event loop, to show that the server which serves the others would have noticed."""

import time
from typing import Any

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict


class Empty(TypedDict, total=False):
    """Nothing flows."""

    nothing: str


async def block(_: Empty) -> dict[str, Any]:
    time.sleep(0.01)  # noqa: ASYNC251  that is its purpose
    return {}


graph = StateGraph(Empty).add_node("block", block).add_edge(START, "block").compile()
