"""The bridge to the MCP SDK, whose servers differ between the versions 1.x and 2.x. Everything else here is the same for both."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from mcp.server.lowlevel import Server
from pydantic import BaseModel

from agent_tools.tuning.person import Caller

from .mcp_answers import Answers, McpError, Method

try:
    from mcp import types
    from mcp.shared.exceptions import McpError as ProtocolError

    V2 = False
except ImportError:  # 2.x renamed it
    import mcp_types as types  # type: ignore[import-not-found, no-redef, unused-ignore]
    from mcp.shared.exceptions import MCPError as ProtocolError  # type: ignore[attr-defined, no-redef, unused-ignore]

    V2 = True

DISTRIBUTION = "lmcache-agent-tools"
INSTRUCTIONS = (
    "See, tune and verify LMCache KV caches. Read the cache before you change it, quote the figures, and change nothing if"
    " nothing is advised."
)
CALLER = "lmcache_caller"
"""Key of an HTTP request's scope: the name of the token's holder."""
_TYPES = {
    # method: (names of the request, of its parameters in 2.x, of the result)
    "tools/list": ("ListToolsRequest", "PaginatedRequestParams", "ListToolsResult"),
    "tools/call": ("CallToolRequest", "CallToolRequestParams", "CallToolResult"),
    "prompts/list": ("ListPromptsRequest", "PaginatedRequestParams", "ListPromptsResult"),
    "prompts/get": ("GetPromptRequest", "GetPromptRequestParams", "GetPromptResult"),
    "resources/list": ("ListResourcesRequest", "PaginatedRequestParams", "ListResourcesResult"),
    "resources/read": ("ReadResourceRequest", "ReadResourceRequestParams", "ReadResourceResult"),
}
INVALID_PARAMS = -32602


def server_of(answers: Answers) -> Server[Any]:
    """Return an SDK server that is not connected yet and answers what `answers` says."""
    server: Server[Any] = Server(DISTRIBUTION, version=version(DISTRIBUTION), instructions=INSTRUCTIONS)
    for name, method in answers.methods().items():
        (_add_v2 if V2 else _add_v1)(server, name, method)
    return server


def _add_v1(server: Any, name: str, method: Method) -> None:  # noqa: ANN401  differs by version
    request_type, _, result_type = _TYPES[name]

    async def handle(request: Any) -> Any:  # noqa: ANN401
        context = server.request_context
        answer = await _answer(method, request.params, context)
        return types.ServerResult(getattr(types, result_type).model_validate(answer))

    server.request_handlers[getattr(types, request_type)] = handle


def _add_v2(server: Any, name: str, method: Method) -> None:  # noqa: ANN401
    _, params_type, result_type = _TYPES[name]

    async def handle(context: Any, params: Any) -> Any:  # noqa: ANN401
        return getattr(types, result_type).model_validate(await _answer(method, params, context))

    server.add_request_handler(name, getattr(types, params_type), handle)


async def _answer(method: Method, params: BaseModel | None, context: Any) -> Mapping[str, Any]:  # noqa: ANN401
    given = {} if params is None else params.model_dump(by_alias=True, mode="json", exclude_none=True)
    try:
        return await method(given, _caller(context))
    except McpError as error:
        raise _protocol_error(str(error)) from error


def _protocol_error(message: str) -> Exception:
    make: Any = ProtocolError
    error: Exception = make(INVALID_PARAMS, message) if V2 else make(types.ErrorData(code=INVALID_PARAMS, message=message))
    return error


def _caller(context: Any) -> Caller:  # noqa: ANN401
    """Return who sent a request: the holder of the token, and what the client calls itself."""
    scope = getattr(context.request, "scope", None) or {}
    hello = context.session.client_params
    info = getattr(hello, "clientInfo", None) or getattr(hello, "client_info", None)
    return Caller(scope.get(CALLER), f"MCP client {info.name}" if info and info.name else None)
