"""`tune_cache` as one tool: ``LMCacheToolkit(more=(TUNE,))``."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Annotated, Any, Literal, cast

from langchain_core.runnables.config import ensure_config, set_config_context
from langgraph.config import get_stream_writer
from pydantic import Field

from agent_tools.errors import LMCacheToolError
from agent_tools.models import Mode
from agent_tools.operations import Operations
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache

from .act import ReasonArguments
from .spec import Hints, ToolSpec


class TuneArguments(ReasonArguments):
    """How one tuning run goes about it. There is no mode ``approve``: a tool cannot wait for a person, its agent does."""

    mode: Literal["observe", "recommend", "auto"]
    """observe: only read; recommend: also say what would help; auto: change, verify, and undo what did harm."""
    window_seconds: Annotated[float, Field(ge=0, le=600)] = 30.0
    """Seconds to observe before judging; 0 takes everything since the cache started."""
    verify_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Seconds to wait at most, after a change, for as much traffic as was observed before it."""


async def tune(operations: Operations, arguments: TuneArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_tune`: content is outcome and summary, artifact a `TuneReport`; progress goes out as `custom` stream events.

    Raises:
        LMCacheToolError: The run failed before it changed anything. After that, the report tells what is known.
    """
    say = _progress()

    async def run() -> TuneReport:
        graph, report = build_tune_cache(operations=operations).compile(name="tune_cache"), None
        context = TuneContext(mode=Mode(arguments.mode), **arguments.model_dump(exclude={"mode", "reason"}))
        stream = graph.astream({"tune_reason": arguments.reason}, context=context, stream_mode=["custom", "values"])
        async for kind, event in cast("AsyncIterator[tuple[str, Any]]", stream):
            if kind == "custom":
                say(event)
            else:
                report = event.get("tune_report")
        return TuneReport.model_validate(report)

    # A run of its own: as a subgraph it would use the checkpointer and the stream of the agent's run, from another event loop.
    with set_config_context({"callbacks": ensure_config().get("callbacks")}) as own:
        report = await own.run(asyncio.ensure_future, run())
    if report.outcome is Outcome.FAILED and report.change is None:
        raise LMCacheToolError(report.summary)
    return f"{report.outcome.value}: {report.summary}", report.model_dump(mode="json")


def _progress() -> Callable[[Any], None]:
    """Sends an event into the stream of the graph that calls the tool; nowhere when no graph does."""
    try:
        writer = get_stream_writer()
    except (KeyError, RuntimeError):
        return lambda _: None
    context = copy_context()  # the writer looks up there whose event it is
    return lambda event: context.run(writer, event)


TUNE = ToolSpec(
    name="tune",
    title="Tune a cache",
    description="Observe a cache, find what would help, and in mode auto change it within the operator's bounds, verify by its"
    " own traffic that it helped, and undo what did harm; all in one call that takes window_seconds plus up to verify_seconds.",
    arguments=TuneArguments,
    run=tune,
    hints=Hints(read_only=False, destructive=True, idempotent=False),
)
