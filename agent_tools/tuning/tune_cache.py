"""The subgraph that tunes one cache: read metrics -> recommend -> (approve) -> optimize or reconfigure -> verify -> keep or undo.

You can embed it in three ways:

* ``builder.add_node("tune", tune_cache)`` in a parent whose state has the keys `tune_reason` (in) and `tune_report` (out);
* ``builder.add_node("tune", tune_node(read=..., write=..., context=...))`` in a parent whose state has other keys;
* ``build_tune_cache(operations=...).compile(...)`` with caches from your own settings.
"""

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph

from agent_tools.operations import Operations, shared_operations

from . import nodes
from .state import Advised, Changed, Finished, Nothing, Observed, Planned, TuneContext, TuneInput, TuneOutput, TuneState


def build_tune_cache(*, operations: Operations | None = None) -> StateGraph[TuneState, TuneContext, TuneInput, TuneOutput]:
    """Return the uncompiled graph, so that the host can choose checkpointer, store and names.

    Args:
        operations: Operations on your own caches. The default is the process-wide operations on caches.toml, which are created
            when the first node runs.
    """

    def chosen() -> Operations:
        return operations or shared_operations()

    steps = (
        (nodes.read_metrics, Nothing, ("recommend", "report"), "Read metrics"),
        (nodes.recommend, Observed, ("approve", "reconfigure", "optimize", "report"), "Recommend"),
        (nodes.optimize, Advised, ("report",), "Optimize"),
        (nodes.reconfigure, Planned, ("verify", "try_out", "report"), "Reconfigure"),
        (nodes.verify, Changed, ("roll_back", "report"), "Verify"),
        (nodes.try_out, Changed, ("roll_back", "report"), "Try out"),
        (nodes.roll_back, Changed, ("report",), "Roll back"),
    )
    builder = StateGraph(TuneState, context_schema=TuneContext, input_schema=TuneInput, output_schema=TuneOutput)
    for step, view, destinations, label in steps:
        builder.add_node(
            step.__name__, nodes.node(step, chosen), input_schema=view, destinations=destinations, metadata={"label": label}
        )
    builder.add_node(
        "approve",
        RunnableLambda(nodes.approve),  # a plain function could not interrupt an async run on Python 3.10
        input_schema=Planned,
        destinations=("reconfigure", "report"),
        metadata={"label": "Approve"},
    )
    builder.add_node("report", nodes.report, input_schema=Finished, metadata={"label": "Report"})
    builder.add_edge(START, "read_metrics")
    builder.add_edge("report", END)
    return builder


tune_cache = build_tune_cache().compile(name="tune_cache")
"""The compiled graph. It uses its host's checkpointer and store. Without a checkpointer, mode `approve` changes nothing."""


def tune_node(
    *,
    read: Callable[[Any], TuneInput] | None = None,
    write: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    context: Callable[[Any], TuneContext | None] | TuneContext | None = None,
    graph: Any = tune_cache,  # noqa: ANN401  a CompiledStateGraph with the host's type parameters
) -> RunnableLambda[Any, dict[str, Any]]:
    """Return the subgraph as a node for a host whose state has other keys.

    Args:
        read: Turn the host's state into the input of `tune_cache`. The default is an empty input.
        write: Turn the report (a `TuneReport` as plain JSON) into the host's update. The default is ``{"tune_report": report}``.
        context: The run's settings, or a function that returns them from the host's state. The default is the settings in the
            host's own context (see `context_of`).
        graph: The compiled graph to run.
    """

    def given(state: Any) -> tuple[TuneInput, TuneContext | None]:  # noqa: ANN401
        settings = context(state) if callable(context) else context
        return (read(state) if read else {}), settings  # LangGraph replaces None with the host's context

    def written(result: dict[str, Any]) -> dict[str, Any]:
        report = result["tune_report"]
        return dict(write(report)) if write else {"tune_report": report}

    def sync(state: Any, config: RunnableConfig) -> dict[str, Any]:  # noqa: ANN401
        start, settings = given(state)
        return written(graph.invoke(start, config, context=settings))

    async def asynchronous(state: Any, config: RunnableConfig) -> dict[str, Any]:  # noqa: ANN401
        start, settings = given(state)
        return written(await graph.ainvoke(start, config, context=settings))

    return RunnableLambda(sync, afunc=asynchronous, name="tune_cache")
