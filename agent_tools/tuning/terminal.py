"""A graph run at a terminal: progress as it comes, questions asked, the report at the end."""

import sys
from collections.abc import Iterator
from typing import Any, cast

import typer
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.types import Command
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from agent_tools.plain import printable

out = Console()
err = Console(stderr=True)


def say(text: str, console: Console = out) -> None:
    """Print prose as it is: not coloured, not cut into lines, and nothing in it that a terminal would obey."""
    console.print(escape(printable(text)), highlight=False, soft_wrap=True)


def run_at_terminal(graph: StateGraph[Any, Any, Any, Any], start: Any, context: BaseModel) -> dict[str, Any]:  # noqa: ANN401
    """What the node ``report`` of a graph leaves; asks when the graph asks."""
    compiled = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "command line"}}
    while True:
        report, asked = None, None
        stream = compiled.stream(start, config, context=context, stream_mode=["custom", "updates"])
        for kind, event in cast("Iterator[tuple[str, Any]]", stream):
            if kind == "custom":
                say(event["message"], err)
            elif "__interrupt__" in event:
                asked = event["__interrupt__"][0].value
            elif "report" in event:
                report = event["report"]
        if asked is None:
            return dict(report or {})
        start = Command(resume={"decisions": [_ask(asked)]})


def _ask(asked: dict[str, Any]) -> dict[str, str]:
    say(asked["action_requests"][0]["description"], err)
    # A closed standard input is no approval.
    answer = typer.confirm("Apply?", err=True) if sys.stdin.isatty() else False
    return {"type": "approve"} if answer else {"type": "reject", "message": "at the command line"}
