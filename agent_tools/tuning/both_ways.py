"""Make one async step a graph node for both ``invoke`` and ``ainvoke``. The step runs on the I/O loop."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from langchain_core.runnables import RunnableLambda
from langgraph.config import get_stream_writer
from langgraph.runtime import get_runtime

from agent_tools.io_loop import io_loop

from .person import person

T = TypeVar("T")
Say = Callable[[str], None]
"""Send one sentence of progress as a `custom` stream event."""


def both_ways(name: str, step: Callable[[Any, object, Say, str], Awaitable[T]]) -> RunnableLambda[Any, T]:
    """Return a node that runs ``step(view, context, say, person)``: `context` is the run's context, `person` who runs it."""

    def given() -> tuple[object, Say, str]:
        write = get_stream_writer()
        say = lambda text: write({"type": "lmcache_progress", "step": name, "message": text})  # noqa: E731
        return get_runtime().context, say, person()

    def sync(view: Any) -> T:  # noqa: ANN401
        return io_loop.run(step, view, *given())

    async def asynchronous(view: Any) -> T:  # noqa: ANN401
        return await io_loop.arun(step, view, *given())

    return RunnableLambda(sync, afunc=asynchronous, name=name)
