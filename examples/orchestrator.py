"""A workflow that has its cache tuned before its heavy work, after a person approved it: in another process, days later.

    python examples/orchestrator.py start              # prints what is asked and ends
    python examples/orchestrator.py resume approve     # or reject; finishes the work

The cache is the one named `default` in the operator's directory. If that is a private server, it ends with its process, and the
next process finds another one that the plan was not made for. So name one that stays, with LMCACHE_AGENT_SETTINGS;
examples/small_cache.py starts one that has something to be tuned.

Checkpoints go to SQLite. With more than one machine use Postgres: `pip install langgraph-checkpoint-postgres`, and
``PostgresSaver.from_conn_string("postgresql://...")`` in place of `SqliteSaver`; nothing else changes.
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

from agent_tools.tuning.state import TuneContext
from agent_tools.tuning.tune_cache import tune_node

QUESTIONS = ("lease.pdf: who signs?", "audit.pdf: what is missing?", "lease.pdf: until when?", "audit.pdf: who answers?")
CONFIG: Any = {"configurable": {"thread_id": "nightly batch"}}

app = typer.Typer(help=__doc__)


class Batch(TypedDict, total=False):
    """The workflow's own state; the subgraph's keys are not in it."""

    questions: tuple[str, ...]
    in_order: list[str]
    cache_note: str
    answers: list[str]


@dataclass(frozen=True)
class BatchContext:
    """The workflow's own context; the subgraph finds its settings in `tune_cache`."""

    customer: str
    tune_cache: TuneContext


class Answer(str, Enum):
    """What a person may say."""

    APPROVE = "approve"
    REJECT = "reject"


Window = Annotated[float, typer.Option(help="Seconds to observe before judging.")]
Db = Annotated[Path, typer.Option(help="Where the checkpoints are kept.")]


def put_in_order(state: Batch) -> Batch:
    """Questions on one document together, so that its prefix is still in the cache for the next; runs beside the tuning."""
    return {"in_order": sorted(state["questions"])}


def answer_all(state: Batch, runtime: Runtime[BatchContext]) -> Batch:
    """The heavy work: here go the calls of your model."""
    return {"answers": [f"{question} (for {runtime.context.customer})" for question in state["in_order"]]}


def orchestrator() -> StateGraph[Batch, BatchContext, Batch, Batch]:
    """Tune the cache and put the questions in order, side by side; then answer them."""
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
    """Go on until the end or until something is asked, and print which."""
    context = BatchContext("ACME", TuneContext(window_seconds=window, verify_seconds=30))
    with SqliteSaver.from_conn_string(str(db)) as saver:
        graph = orchestrator().compile(checkpointer=saver)
        if isinstance(start, Command) and not graph.get_state(CONFIG).interrupts:
            raise typer.BadParameter("nothing waits for an answer; start first")
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
    """Answer what was asked, and finish the batch."""
    run(Command(resume={"decisions": [{"type": answer.value}]}), db, window)


if __name__ == "__main__":
    app()
