"""Tools on demand: an agent starts with a few tools and finds the others, so that their schemas cost it nothing before."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import Field

from .spec import Arguments

START = frozenset({
    "list_caches", "get_status", "get_metrics", "diagnose", "recommend", "plan_update", "update_config", "undo_change",
})  # fmt: skip
"""Names, without prefix, of the tools that an agent starts with: the whole way from a question to a change and back."""
MOST_FOUND = 5


class FindArguments(Arguments):
    """What the wanted tool should do."""

    query: Annotated[str, Field(max_length=200, examples=["delete one prompt's entries"])] = ""
    """Words for what you want to do. Leave out for the names of all."""


class UseArguments(Arguments):
    """A tool that was found, and its arguments."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    """Name of the tool."""
    arguments: dict[str, Any] = {}
    """Its arguments, by the schema that was found."""


def on_demand(tools: Sequence[BaseTool], prefix: str, start: frozenset[str] = START) -> list[BaseTool]:
    """Return the start tools, a tool that finds the others, and one or two that call them.

    Tools that change something are called by a tool of their own, so that a host can ask a person before it runs.
    """
    first = [tool for tool in tools if tool.name.removeprefix(prefix) in start]
    rest = {tool.name: tool for tool in tools if tool not in first}
    if not rest:
        return first
    reading = {name: tool for name, tool in rest.items() if _reads(tool)}
    changing = {name: tool for name, tool in rest.items() if not _reads(tool)}
    found: list[BaseTool] = [*first, _finder(rest, prefix)]
    if reading:
        found.append(_user(reading, f"{prefix}use_reading_tool", "Call a reading tool", f"{prefix}find_tools", reads=True))
    if changing:
        found.append(_user(changing, f"{prefix}use_changing_tool", "Call a changing tool", f"{prefix}find_tools", reads=False))
    return found


def _reads(tool: BaseTool) -> bool:
    return bool((tool.metadata or {})["readOnlyHint"])


def _finder(rest: Mapping[str, BaseTool], prefix: str) -> BaseTool:
    def find(query: str = "") -> tuple[str, dict[str, Any]]:
        words = [word for word in query.lower().split() if len(word) > 2]
        scores = {
            name: sum(word.rstrip("s") in f"{name} {tool.description}".lower() for word in words) for name, tool in rest.items()
        }
        best = [name for name in sorted(rest, key=lambda name: -scores[name]) if scores[name]][:MOST_FOUND]
        if not best:
            return "tools: " + "; ".join(f"{name}: {_title(tool)}" for name, tool in rest.items()), {"tools": list(rest)}
        return "\n".join(_shown(rest[name], prefix) for name in best), {"tools": best}

    async def afind(query: str = "") -> tuple[str, dict[str, Any]]:
        return find(query)

    return StructuredTool.from_function(
        func=find,
        coroutine=afind,
        name=f"{prefix}find_tools",
        description=f"Find more tools, with their arguments: {'; '.join(_title(tool).lower() for tool in rest.values())}.",
        args_schema=FindArguments,
        response_format="content_and_artifact",
        metadata=_hints("Find tools", reads=True),
        tags=["lmcache:find_tools"],
    )


def _user(tools: Mapping[str, BaseTool], name: str, title: str, finder: str, *, reads: bool) -> BaseTool:
    def unknown(wanted: str) -> str:
        return f"bad_arguments: {wanted} is no tool that {name} calls; {finder} names the tools"

    def call(wanted: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"type": "tool_call", "id": "found", "name": wanted, "args": arguments}

    def use(name: str, arguments: dict[str, Any] | None = None) -> tuple[str, Any]:
        if name not in tools:
            return unknown(name), None
        return _result(tools[name].invoke(call(name, arguments or {})))

    async def ause(name: str, arguments: dict[str, Any] | None = None) -> tuple[str, Any]:
        if name not in tools:
            return unknown(name), None
        return _result(await tools[name].ainvoke(call(name, arguments or {})))

    return StructuredTool.from_function(
        func=use,
        coroutine=ause,
        name=name,
        description=f"{title} that {finder} found.",
        args_schema=UseArguments,
        response_format="content_and_artifact",
        handle_tool_error=str,
        metadata=_hints(title, reads=reads),
        tags=[f"lmcache:{name}"],
    )


def _result(message: Any) -> tuple[str, Any]:  # noqa: ANN401  a ToolMessage
    if message.status == "error":
        from .toolkit import ToolFailure  # noqa: PLC0415  the toolkit imports this module

        raise ToolFailure(message.text)
    return message.text, message.artifact


def _title(tool: BaseTool) -> str:
    return str((tool.metadata or {}).get("title", tool.name))


def _shown(tool: BaseTool, prefix: str) -> str:
    by = f"{prefix}use_reading_tool" if _reads(tool) else f"{prefix}use_changing_tool"
    schema = tool.get_input_jsonschema()
    return f"{tool.name} (by {by}): {tool.description} Arguments: {json.dumps(schema.get('properties', {}))}"


def _hints(title: str, *, reads: bool) -> dict[str, Any]:
    return {
        "title": title,
        "readOnlyHint": reads,
        "destructiveHint": not reads,
        "idempotentHint": True,
        "openWorldHint": False,
    }
