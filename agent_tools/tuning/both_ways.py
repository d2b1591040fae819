"""One async step as a graph node for both ``invoke`` and ``ainvoke``; it runs on the I/O loop."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from langchain_core.runnables import RunnableLambda
from langgraph.config import get_stream_writer
from langgraph.runtime import get_runtime

from agent_tools.io_loop import io_loop

T = TypeVar("T")
Say = Callable[[str], None]
"""Sends one sentence of progress as a `custom` stream event."""


def both_ways(name: str, step: Callable[[Any, object, Say], Awaitable[T]]) -> RunnableLambda[Any, T]:
    """A node from ``step(view, the run's context, say)``."""

    def given() -> tuple[object, Say]:
        write = get_stream_writer()
        return get_runtime().context, lambda text: write({"type": "lmcache_progress", "step": name, "message": text})

    def sync(view: Any) -> T:  # noqa: ANN401
        return io_loop.run(step, view, *given())

    async def asynchronous(view: Any) -> T:  # noqa: ANN401
        return await io_loop.arun(step, view, *given())

    return RunnableLambda(sync, afunc=asynchronous, name=name)
