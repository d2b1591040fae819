"""An agent that measures its own latency, and tunes its cache when it misses its budget.

    python examples/supervisor.py --budget-ms 8

It needs no model and no GPU. It replays agents' requests with real KV into its own `lmcache server`, and computes the missed
chunks. A small matrix product per chunk replaces the prefill of a real engine; its time is measured.
"""

import operator
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from small_cache import AGENTS, AT_PACE, SMALL, small_cache
from typing_extensions import TypedDict

from agent_tools import Mode, Operations, TuneContext, TuneReport, build_tune_cache, tune_node
from agent_tools.workload.replay import replay

CHUNK, WEIGHTS = np.ones((AGENTS.chunk_size, 128), np.float32), np.ones((128, 128), np.float32)
TUNE = TuneContext(cache=SMALL, mode=Mode.AUTO, window_seconds=0, verify_seconds=1)
"""Tune within the operator's bounds, without approval, on all data so far. The next round shows whether it helped."""


class State(TypedDict, total=False):
    """The supervisor's state."""

    p95_ms: Annotated[list[float], operator.add]
    """95th percentile of the compute time in each round, ms."""
    notes: Annotated[list[str], operator.add]
    """Result of each tuning."""


def prefill(chunks: int) -> float:
    """Compute `chunks` chunks of a prompt. Return the time in ms."""
    began = time.perf_counter()
    for _ in range(chunks):
        np.einsum("tc,cd->td", CHUNK, WEIGHTS)
    return 1e3 * (time.perf_counter() - began)


def note(report: dict[str, Any]) -> dict[str, Any]:
    """Return a note on what was changed, or why nothing was changed."""
    read = TuneReport.model_validate(report)
    return {"notes": [read.change.message if read.change else read.summary]}


def supervisor(
    operations: Operations, rpc_url: str, budget_ms: float, rounds: int, checkpointer: BaseCheckpointSaver[str]
) -> CompiledStateGraph[State, None, State, State]:
    """Return the graph: work in rounds, and tune the cache after each round that missed the budget."""

    def work(state: State) -> dict[str, Any]:  # noqa: ARG001  LangGraph passes it
        hits = replay(AGENTS, rpc_url, AT_PACE).hits
        times = [prefill(missed) for missed in AGENTS.chunks_per_request - hits]
        return {"p95_ms": [float(np.percentile(times, 95))]}

    def supervise(state: State) -> str:
        if len(state["p95_ms"]) == rounds:
            return END
        return "tune" if state["p95_ms"][-1] > budget_ms else "work"

    tune = tune_node(
        read=lambda state: {"tune_reason": f"p95 is {state['p95_ms'][-1]:.1f} ms, the budget is {budget_ms:g} ms"},
        write=note,
        context=TUNE,
        graph=build_tune_cache(operations=operations).compile(),
    )
    builder = StateGraph(State)
    builder.add_node("work", work)
    builder.add_node("tune", tune)
    builder.add_edge(START, "work")
    builder.add_conditional_edges("work", supervise, ["work", "tune", END])
    builder.add_edge("tune", "work")
    return builder.compile(checkpointer=checkpointer)


def main(budget_ms: float = 8, rounds: int = 3, db: Path = Path("supervisor.db")) -> None:
    """Work some rounds under a latency budget. Checkpoints go to SQLite (for Postgres, see examples/orchestrator.py)."""
    this_run: Any = {"configurable": {"thread_id": f"{time.time()}"}}
    with small_cache() as (operations, server), SqliteSaver.from_conn_string(str(db)) as saver:
        for update in supervisor(operations, server.rpc_url, budget_ms, rounds, saver).stream({}, this_run):
            for step, written in update.items():
                print(f"{step}: p95 {written['p95_ms'][0]:.1f} ms" if step == "work" else f"{step}: {written['notes'][0]}")


if __name__ == "__main__":
    typer.run(main)
