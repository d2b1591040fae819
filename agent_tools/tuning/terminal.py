"""A graph at a terminal: show its progress, ask what it asks, and return its report."""

import re
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from typing_extensions import Self

from agent_tools.plain import printable

if TYPE_CHECKING:
    from langgraph.graph import StateGraph

out = Console()
err = Console(stderr=True)
LOG_EVERY = 30.0
"""Seconds between two lines of the same step where standard error is not a terminal."""


def say(text: str, console: Console = out) -> None:
    """Print prose as it is: without colour, without line breaks of ours, and with nothing in it that a terminal would obey."""
    console.print(escape(printable(text)), highlight=False, soft_wrap=True)


class Steps:
    """The progress of a run: one line that moves on a terminal; in a log a line for each step, and one every `LOG_EVERY` s.

    Two messages belong to the same step if they differ only in their numbers.
    """

    def __init__(self, console: Console = err) -> None:
        self._console = console
        self._status = Status("", console=console) if console.is_terminal else None
        self._last = ""
        self._printed = 0.0

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
            if self._last:
                say(self._last, self._console)

    def __call__(self, text: str) -> None:
        """Show one message."""
        new = _step(text) != _step(self._last)
        if self._status is not None:
            if new and self._last:
                say(self._last, self._console)
            self._status.update(escape(printable(text)))
        elif new or time.monotonic() - self._printed >= LOG_EVERY:
            say(text, self._console)
            self._printed = time.monotonic()
        self._last = text


def run_at_terminal(graph: "StateGraph[Any, Any, Any, Any]", start: Any, context: BaseModel) -> dict[str, Any]:  # noqa: ANN401
    """Run a graph and return what its node ``report`` leaves. Ask at the terminal when the graph asks."""
    # `say` is for all commands, also for those that need no LangGraph.
    from langgraph.checkpoint.memory import InMemorySaver  # noqa: PLC0415
    from langgraph.types import Command  # noqa: PLC0415

    compiled = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "command line"}}
    while True:
        report, asked = None, None
        stream = compiled.stream(start, config, context=context, stream_mode=["custom", "updates"])
        with Steps() as steps:
            for kind, event in cast("Iterator[tuple[str, Any]]", stream):
                if kind == "custom":
                    steps(event["message"])
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


def _step(text: str) -> str:
    return re.sub(r"\d[\d.]*", "#", text)
