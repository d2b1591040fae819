"""A nightly job that tunes caches side by side. It writes a page for each cache and a summary of all.

    python examples/nightly.py                                   # all caches of caches.toml
    python examples/nightly.py --cache chat --cache batch --mode auto --folder /var/www/caches

If a cache fails or is unreachable, the summary says so, and the job still tunes the others. Mode `auto` makes changes within the
operator's bounds; `recommend`, the default, changes nothing. If a job is interrupted, start it again on the same day: it
continues where it stopped. Checkpoints are in SQLite next to the pages (for Postgres, see examples/orchestrator.py). To get a
cache to tune, run examples/small_cache.py.
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

from agent_tools import (
    LMCacheToolError,
    Mode,
    Operations,
    Registry,
    Settings,
    TuneContext,
    TuneReport,
    build_tune_cache,
    tune_node,
)
from agent_tools.io_loop import io_loop


class Night(TypedDict, total=False):
    """The state of one night's run."""

    caches: list[str]
    reports: Annotated[list[dict[str, Any]], operator.add]
    summary: str


def nightly(
    operations: Operations, mode: Mode, window: float, folder: Path, checkpointer: BaseCheckpointSaver[str]
) -> CompiledStateGraph[Night, None, Night, Night]:
    """Return the graph: tune all caches at the same time, then write the pages."""

    def every_cache(state: Night) -> list[Send]:
        return [Send("tune", {"cache": name}) for name in state["caches"]]

    def write_pages(state: Night) -> Night:
        reports = sorted(map(TuneReport.model_validate, state["reports"]), key=lambda report: report.cache)
        rows = [f"| {report.cache} | {report.outcome.value} | {with_page(report)} |" for report in reports]
        title = f"# Caches on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
        summary = "\n".join([title, "", "| cache | outcome | result |", "|---|---|---|", *rows, ""])
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
    cache: Annotated[list[str] | None, typer.Option(help="Name of a cache in caches.toml; repeat it for several.")] = None,
    mode: Mode = Mode.RECOMMEND,
    window: Annotated[float, typer.Option(help="Seconds to observe; 0 uses all data since each cache started.")] = 0,
    folder: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("caches"),
) -> None:
    """Tune caches and write the pages."""
    if mode is Mode.APPROVE:
        raise typer.BadParameter("nobody can approve at night; use recommend or auto")
    folder.mkdir(parents=True, exist_ok=True)
    operations = Operations(Registry(Settings.load()))
    tonight: Any = {"configurable": {"thread_id": f"{datetime.now(timezone.utc):%Y-%m-%d}"}}
    try:
        with SqliteSaver.from_conn_string(str(folder / "nightly.db")) as saver:
            graph = nightly(operations, mode, window, folder, saver)
            left = graph.get_state(tonight).next  # steps that an interrupted run has left
            names = cache or list(operations.registry.names)
            start: Any = None if left else {"caches": names, "reports": Overwrite([])}
            print(graph.invoke(start, tonight)["summary"])
    finally:
        io_loop.run(operations.close)


if __name__ == "__main__":
    typer.run(main)
