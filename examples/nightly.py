"""A nightly job that tunes caches side by side and writes a page about each and a summary of all.

    python examples/nightly.py                                   # all caches of the operator's directory
    python examples/nightly.py --cache chat --cache batch --mode auto --folder /var/www/caches

A cache that fails or cannot be reached has its line in the summary, and does not keep the others from being tuned. Mode `auto`
changes what the operator's bounds allow; `recommend`, the default, nothing. A night that was cut short goes on where it stopped
when it is started again on the same day: checkpoints are in SQLite beside the pages (Postgres: see examples/orchestrator.py).
For something to tune, see examples/small_cache.py.
"""

import operator
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Overwrite, Send
from typing_extensions import TypedDict

from agent_tools import LMCacheToolError, Operations
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.io_loop import io_loop
from agent_tools.models import Mode
from agent_tools.tuning.state import TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache, tune_node


class Night(TypedDict, total=False):
    """What one night does."""

    caches: list[str]
    reports: Annotated[list[dict[str, Any]], operator.add]
    summary: str


def nightly(
    operations: Operations, mode: Mode, window: float, folder: Path, checkpointer: BaseCheckpointSaver[str]
) -> CompiledStateGraph[Night, None, Night, Night]:
    """The graph: every cache tuned at the same time; then the pages."""

    def every_cache(state: Night) -> list[Send]:
        return [Send("tune", {"cache": name}) for name in state["caches"]]

    def write_pages(state: Night) -> Night:
        reports = sorted(map(TuneReport.model_validate, state["reports"]), key=lambda report: report.cache)
        rows = [f"| {report.cache} | {report.outcome.value} | {with_page(report)} |" for report in reports]
        title = f"# Caches on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
        summary = "\n".join([title, "", "| cache | outcome | what was found |", "|---|---|---|", *rows, ""])
        (folder / "summary.md").write_text(summary, encoding="utf-8")
        return {"summary": summary}

    def with_page(report: TuneReport) -> str:
        try:
            page = io_loop.run(operations.report, report.cache)
        except LMCacheToolError:
            return report.summary
        (folder / f"{report.cache}.html").write_text(page, encoding="utf-8")
        return f"[{report.summary}]({report.cache}.html)"

    tune = tune_node(
        read=lambda _: {"tune_reason": "nightly"},
        write=lambda report: {"reports": [report]},
        context=lambda state: TuneContext(cache=state["cache"], mode=mode, window_seconds=window),
        graph=build_tune_cache(operations=operations).compile(),
    )
    builder = StateGraph(Night)
    builder.add_node("tune", tune)
    builder.add_node("write_pages", write_pages)
    builder.add_conditional_edges(START, every_cache, ["tune"])
    builder.add_edge("tune", "write_pages")
    builder.add_edge("write_pages", END)
    return builder.compile(checkpointer=checkpointer)


def main(
    cache: Annotated[list[str] | None, typer.Option(help="Name of a cache; may be repeated.")] = None,
    mode: Mode = Mode.RECOMMEND,
    window: Annotated[float, typer.Option(help="Seconds to observe; 0 for all since each cache started.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where the pages go.")] = Path("caches"),
) -> None:
    """Tune caches and report."""
    if mode is Mode.APPROVE:
        raise typer.BadParameter("nobody is there at night to approve; use recommend or auto")
    folder.mkdir(parents=True, exist_ok=True)
    operations = Operations(Registry(Settings.load()))
    tonight: Any = {"configurable": {"thread_id": f"{datetime.now(timezone.utc):%Y-%m-%d}"}}
    try:
        with SqliteSaver.from_conn_string(str(folder / "nightly.db")) as saver:
            graph = nightly(operations, mode, window, folder, saver)
            left = graph.get_state(tonight).next  # by a night that was cut short
            names = cache or list(operations.registry.names)
            start: Any = None if left else {"caches": names, "reports": Overwrite([])}
            print(graph.invoke(start, tonight)["summary"])
    finally:
        io_loop.run(operations.close)


if __name__ == "__main__":
    typer.run(main)
