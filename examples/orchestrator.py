"""A workflow that tunes its cache before its heavy work. A person approves the change in another process, even days later.

    python examples/orchestrator.py start              # print the approval request and end
    python examples/orchestrator.py resume approve     # or reject; finish the work

The workflow tunes the cache `default` of caches.toml. Use a server that keeps running: an `embedded:` server ends with its
process, so the next process would start another server, for which the plan is not valid. Set LMCACHE_AGENT_SETTINGS to your
caches.toml; examples/small_cache.py starts a suitable server.

Checkpoints go to SQLite. For several machines use Postgres: `pip install langgraph-checkpoint-postgres`, and replace
`SqliteSaver` by ``PostgresSaver.from_conn_string("postgresql://...")``. Nothing else changes.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command
from typing_extensions import TypedDict

from agent_tools import TuneContext, tune_node

QUESTIONS = ("lease.pdf: who signs?", "audit.pdf: what is missing?", "lease.pdf: until when?", "audit.pdf: who answers?")
CONFIG: Any = {"configurable": {"thread_id": "nightly batch"}}

app = typer.Typer(help=__doc__)


class Batch(TypedDict, total=False):
    """The workflow's own state. It has none of the subgraph's keys."""

    questions: tuple[str, ...]
    in_order: list[str]
    cache_note: str
    answers: list[str]


@dataclass(frozen=True)
class BatchContext:
    """The workflow's own context. The subgraph reads its settings from `tune_cache`."""

    customer: str
    tune_cache: TuneContext


class Answer(str, Enum):
    """A person's decision."""

    APPROVE = "approve"
    REJECT = "reject"


Window = Annotated[float, typer.Option(help="Seconds to observe the cache.")]
Db = Annotated[Path, typer.Option(help="File for the checkpoints.")]


def put_in_order(state: Batch) -> Batch:
    """Group questions by document, so that the next question finds the prefix in the cache. This runs beside the tuning."""
    return {"in_order": sorted(state["questions"])}


def answer_all(state: Batch, runtime: Runtime[BatchContext]) -> Batch:
    """Do the heavy work: put the calls of your model here."""
    return {"answers": [f"{question} (for {runtime.context.customer})" for question in state["in_order"]]}


def orchestrator() -> StateGraph[Batch, BatchContext, Batch, Batch]:
    """Return the graph: tune the cache and sort the questions side by side, then answer them."""
    builder = StateGraph(Batch, context_schema=BatchContext)
    builder.add_node(
        "tune",
        tune_node(
            read=lambda state: {"tune_reason": f"before a batch of {len(state['questions'])} questions"},
            write=lambda report: {"cache_note": f"{report['outcome']}: {report['summary']}"},
        ),
    )
    builder.add_node("put_in_order", put_in_order)
    builder.add_node("answer_all", answer_all)
    builder.add_edge(START, "tune")
    builder.add_edge(START, "put_in_order")
    builder.add_edge(["tune", "put_in_order"], "answer_all")
    builder.add_edge("answer_all", END)
    return builder


def run(start: Any, db: Path, window: float) -> None:  # noqa: ANN401  an input or a Command
    """Run until the end or until an approval request, and print the result or the request."""
    context = BatchContext("ACME", TuneContext(window_seconds=window, verify_seconds=30))
    with SqliteSaver.from_conn_string(str(db)) as saver:
        graph = orchestrator().compile(checkpointer=saver)
        if isinstance(start, Command) and not graph.get_state(CONFIG).interrupts:
            raise typer.BadParameter("no request waits for an answer; run start first")
        state = graph.invoke(start, CONFIG, context=context)
    for question in state.get("__interrupt__", ()):
        print(question.value["action_requests"][0]["description"])
        print("Answer with: resume approve, or: resume reject")
        return
    print(state["cache_note"], *state["answers"], sep="\n")


@app.command()
def start(db: Db = Path("orchestrator.db"), window: Window = 10) -> None:
    """Start the batch."""
    run({"questions": QUESTIONS}, db, window)


@app.command()
def resume(answer: Answer, db: Db = Path("orchestrator.db"), window: Window = 10) -> None:
    """Answer the approval request, and finish the batch."""
    run(Command(resume={"decisions": [{"type": answer.value}]}), db, window)


if __name__ == "__main__":
    app()
