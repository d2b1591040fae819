"""What the MCP server answers, as the JSON of the protocol, so that it is the same for every version of the SDK."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from langchain_core.tools import BaseTool

from agent_tools.caches.settings import CacheSettings
from agent_tools.changes.log import stories
from agent_tools.errors import LMCacheToolError, TooManyRequestsError, UnknownCacheError
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations
from agent_tools.tuning.person import Caller, calling

from .prompts import PROMPTS
from .rates import Rates, load_of

Answer = Mapping[str, Any]
Method = Callable[[Mapping[str, Any], Caller], Awaitable[Answer]]
HINTS = ("title", "readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
REPORT, CHANGES = "lmcache://report/", "lmcache://changes/"
"""Resources: ``lmcache://report/CACHE`` is a web page, ``lmcache://changes/CACHE`` the change log as JSON."""
MOST_CHANGES = 100
TAG = "lmcache:"
"""Start of the tag that names a tool's operation, whatever its prefix is."""


class McpError(Exception):
    """An answer of the protocol's own kind of error: wrong parameters."""


RETRY_AFTER = "lmcache-agent/retry_after_seconds"
"""Key in ``_meta`` of a result that was refused for now: MCP has no ``Retry-After``."""


class Answers:
    """The methods of the protocol for a set of tools, and for the resources of the caches behind them."""

    def __init__(self, tools: Sequence[BaseTool], operations: Operations | None = None) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._operations = operations
        self._rates = Rates()

    def methods(self) -> Mapping[str, Method]:
        """Return the function of each method. Without operations there are no resources."""
        found: dict[str, Method] = {
            "tools/list": self._list_tools,
            "tools/call": self._call_tool,
            "prompts/list": self._list_prompts,
            "prompts/get": self._get_prompt,
        }
        if self._operations is not None:
            found |= {"resources/list": self._list_resources, "resources/read": self._read_resource}
        return found

    async def _list_tools(self, _: Mapping[str, Any], __: Caller) -> Answer:
        return {"tools": [_listed(tool) for tool in self._tools.values()]}

    async def _call_tool(self, params: Mapping[str, Any], caller: Caller) -> Answer:
        name, arguments = params["name"], params.get("arguments") or {}
        tool = self._tools.get(name)
        if tool is None:
            return _failed(f"there is no tool named {name}; there are: {', '.join(self._tools)}")
        window = arguments.get("window_seconds")
        window = float(window) if isinstance(window, int | float) and window > 0 else None
        try:
            with self._rates.turn(caller.name or "", load_of(_bare(tool), window), window), calling(caller):
                message = await tool.ainvoke({"type": "tool_call", "id": "mcp", "name": name, "args": arguments})
        except TooManyRequestsError as error:
            return {**_failed(f"{error.code}: {error}"), "_meta": {RETRY_AFTER: error.retry_after}}
        structured = {} if message.artifact is None else {"structuredContent": message.artifact}
        return {"content": [_text(message.text)], "isError": message.status == "error", **structured}

    async def _list_prompts(self, _: Mapping[str, Any], __: Caller) -> Answer:
        argument = {"name": "cache", "description": "Name of the cache; the one called default without it.", "required": False}
        return {"prompts": [{"name": n, "description": one.description, "arguments": [argument]} for n, one in PROMPTS.items()]}

    async def _get_prompt(self, params: Mapping[str, Any], _: Caller) -> Answer:
        prompt = PROMPTS.get(params["name"])
        if prompt is None:
            raise McpError(f"there is no prompt named {params['name']}; there are: {', '.join(PROMPTS)}")
        text = prompt.text((params.get("arguments") or {}).get("cache") or "default")
        return {"description": prompt.description, "messages": [{"role": "user", "content": _text(text)}]}

    async def _list_resources(self, _: Mapping[str, Any], __: Caller) -> Answer:
        assert self._operations is not None  # noqa: S101  the method exists only then
        caches: Mapping[str, CacheSettings] = await io_loop.arun(self._operations.caches)
        listed = []
        for name in caches:
            listed += [
                {"uri": REPORT + quote(name, safe=""), "name": f"report of {name}", "mimeType": "text/html"},
                {"uri": CHANGES + quote(name, safe=""), "name": f"changes of {name}", "mimeType": "application/json"},
            ]
        return {"resources": listed}

    async def _read_resource(self, params: Mapping[str, Any], caller: Caller) -> Answer:
        assert self._operations is not None  # noqa: S101
        uri = str(params["uri"])
        try:
            if uri.startswith(REPORT):
                with self._rates.turn(caller.name or "", load_of("report", None)):
                    text = await io_loop.arun(self._operations.report, unquote(uri.removeprefix(REPORT)))
                return {"contents": [{"uri": uri, "mimeType": "text/html", "text": text}]}
            if uri.startswith(CHANGES):
                log = stories(await io_loop.arun(self._operations.changes, unquote(uri.removeprefix(CHANGES))))[:MOST_CHANGES]
                text = json.dumps([[line.model_dump(mode="json") for line in story] for story in log])
                return {"contents": [{"uri": uri, "mimeType": "application/json", "text": text}]}
        except LMCacheToolError as error:
            raise McpError(f"{error.code}: {error}") from error
        raise McpError(str(UnknownCacheError("there is no such resource; resources/list names them")))


def _bare(tool: BaseTool) -> str:
    """Return the tool's name without prefix, for its load."""
    named = [tag.removeprefix(TAG) for tag in tool.tags or () if tag.startswith(TAG)]
    return named[0] if named else tool.name


def _text(text: str) -> Answer:
    return {"type": "text", "text": text}


def _failed(text: str) -> Answer:
    return {"content": [_text(text)], "isError": True}


def _listed(tool: BaseTool) -> Answer:
    hints = {key: value for key, value in (tool.metadata or {}).items() if key in HINTS}
    return {
        "name": tool.name,
        "title": hints.get("title"),
        "description": tool.description,
        "inputSchema": tool.get_input_jsonschema(),
        "annotations": hints,
    }
