"""`tune_cache` as one tool. The graph is imported when the tool is called, since tools are defined without LangGraph."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import anyio.to_thread
from langchain_core.runnables.config import ensure_config, set_config_context
from pydantic import Field

from agent_tools.errors import LMCacheToolError
from agent_tools.models import Mode

from .act import ReasonArguments
from .changes import describe_verification
from .spec import Hints, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.tuning.state import TuneReport


class TuneArguments(ReasonArguments):
    """The settings of one tuning run.

    There is no mode ``approve``: a tool cannot wait for a person. Its agent can.
    """

    mode: Literal["observe", "recommend", "auto"]
    """observe: only read. recommend: also recommend changes. auto: change, verify, and undo a change that did harm."""
    window_seconds: Annotated[float, Field(ge=0, le=600)] = 30.0
    """Seconds to observe before judging. 0: use all figures since the cache started."""
    verify_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """The most seconds to wait, after a change, for as much traffic as was observed before it."""


async def tune(operations: Operations, arguments: TuneArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_tune`. The content is outcome and summary; the artifact is a `TuneReport`.

    The tool reports its progress as `custom` stream events.

    Raises:
        LMCacheToolError: The run failed before it changed anything. After a change, a failed run returns its report.
    """
    # In a thread, since an import reads files, which would block the event loop.
    await anyio.to_thread.run_sync(import_module, "agent_tools.tuning.tune_cache")
    from agent_tools.tuning.state import Outcome  # noqa: PLC0415

    say = _progress()
    # A separate run: as a subgraph it would use the checkpointer and the stream of the agent's run, from another event loop.
    with set_config_context({"callbacks": ensure_config().get("callbacks")}) as own:
        report = await own.run(asyncio.ensure_future, _run(operations, arguments, say))
    if report.outcome is Outcome.FAILED and report.change is None:
        raise LMCacheToolError(report.summary)
    return describe_tuning(report), report.model_dump(mode="json")


def describe_tuning(report: "TuneReport") -> str:
    """Return what a run found and did: outcome, what it changed from old to new, and the id that undoes it."""
    lines = [f"{report.outcome.value}: {report.summary}"]
    if report.change is not None:
        undone = "; undone, the old values are in force" if report.undo is not None else f". To undo: {report.change.undo}"
        lines.append(f"changed {report.change.plan}; change_id {report.change.change_id}{undone}")
    elif report.plan is not None:
        lines.append(f"planned, not changed: {report.plan}")
    if report.verification is not None:
        lines.append(describe_verification(report.verification).splitlines()[1])
    return "\n".join(lines)


async def _run(operations: Operations, arguments: TuneArguments, say: Callable[[Any], None]) -> "TuneReport":
    """Run the graph to its end, in which it always leaves a report."""
    from agent_tools.tuning.state import TuneContext, TuneReport  # noqa: PLC0415
    from agent_tools.tuning.tune_cache import build_tune_cache  # noqa: PLC0415

    # The person who approved the call has not seen the plans that the run will make.
    unapproved = operations.approved(None)
    graph, report = build_tune_cache(operations=unapproved).compile(name="tune_cache"), None
    context = TuneContext(mode=Mode(arguments.mode), **arguments.model_dump(exclude={"mode", "reason"}))
    stream = graph.astream({"tune_reason": arguments.reason}, context=context, stream_mode=["custom", "values"])
    async for kind, event in cast("AsyncIterator[tuple[str, Any]]", stream):
        if kind == "custom":
            say(event)
        else:
            report = event.get("tune_report")
    return TuneReport.model_validate(report)


def _progress() -> Callable[[Any], None]:
    """Return a function that sends an event into the stream of the calling graph. Without such a graph, events are dropped."""
    from langgraph.config import get_stream_writer  # noqa: PLC0415

    try:
        writer = get_stream_writer()
    except (KeyError, RuntimeError):
        return lambda _: None
    context = copy_context()  # the writer reads from the context which run the event belongs to
    return lambda event: context.run(writer, event)


TUNE = ToolSpec(
    name="tune",
    title="Tune a cache",
    description="Observe a cache and find what would help. In mode auto also change it within the operator's bounds, verify on"
    " its own traffic that the change helped, and undo a change that did harm. One call takes window_seconds plus up to"
    " verify_seconds.",
    arguments=TuneArguments,
    run=tune,
    hints=Hints(read_only=False, destructive=True, idempotent=False),
)
