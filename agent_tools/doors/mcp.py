"""Serve the tools over MCP, with their schemas, hints, results and error flags: over stdio or streamable HTTP."""

import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
import uvicorn
from langchain_core.tools import BaseTool
from mcp import types
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken
from mcp.server.fastmcp.server import StreamableHTTPASGIApp
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Route

from .connections import LIMITS

DISTRIBUTION = "lmcache-agent-tools"
INSTRUCTIONS = (
    "See, tune and verify LMCache KV caches. Read the cache before you change it, quote the figures, and change nothing if"
    " nothing is advised."
)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def mcp_server(tools: Sequence[BaseTool]) -> Server[Any]:
    """Return an MCP server of these tools that is not connected yet.

    The artifact of a tool is the structured content. An error for the model is a result with ``isError``.
    """
    server: Server[Any] = Server(DISTRIBUTION, version(DISTRIBUTION), INSTRUCTIONS)
    by_name = {tool.name: tool for tool in tools}

    @server.list_tools()  # type: ignore[no-untyped-call, untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        return [_listed(tool) for tool in tools]

    @server.call_tool(validate_input=False)  # type: ignore[untyped-decorator]  # the tools say more of what is wrong
    async def call_tool(name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        if name not in by_name:
            raise ValueError(f"there is no tool named {name}; there are: {', '.join(by_name)}")
        message = await by_name[name].ainvoke({"type": "tool_call", "id": "mcp", "name": name, "args": arguments})
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=message.text)],
            structuredContent=message.artifact,
            isError=message.status == "error",
        )

    return server


def serve_stdio(tools: Sequence[BaseTool]) -> None:
    """Serve on standard input and output until the client closes them. Nothing else may write to standard output."""
    server = mcp_server(tools)

    async def serve() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(serve)


def serve_http(tools: Sequence[BaseTool], port: int, token: SecretStr | None) -> None:
    """Serve at ``http://127.0.0.1:<port>/mcp`` until interrupted."""
    uvicorn.run(http_app(tools, token), host=LOOPBACK[0], port=port, timeout_graceful_shutdown=5, **LIMITS)


def http_app(tools: Sequence[BaseTool], token: SecretStr | None = None) -> Starlette:
    """Return the server as an ASGI application with streamable HTTP at ``/mcp``.

    The application answers only requests to a loopback name, and none from a foreign web page (DNS rebinding). If there is a
    token, requests must carry it.
    """
    security = TransportSecuritySettings(
        allowed_hosts=[f"{name}:*" for name in LOOPBACK], allowed_origins=[f"http://{name}:*" for name in LOOPBACK]
    )
    manager = StreamableHTTPSessionManager(mcp_server(tools), security_settings=security)
    door: Any = StreamableHTTPASGIApp(manager)
    middleware = []
    if token is not None:
        door = RequireAuthMiddleware(door, required_scopes=[])
        middleware.append(Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(_OneToken(token))))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    return Starlette(routes=[Route("/mcp", door)], middleware=middleware, lifespan=lifespan)


class _OneToken:
    """Verify one token for the SDK. Whoever knows the token is the operator."""

    def __init__(self, token: SecretStr) -> None:
        self._token = token.get_secret_value().encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        if not hmac.compare_digest(token.encode(), self._token):
            return None
        return AccessToken(token=token, client_id="operator", scopes=[])


def _listed(tool: BaseTool) -> types.Tool:
    hints = tool.metadata or {}
    return types.Tool(
        name=tool.name,
        title=hints.get("title"),
        description=tool.description,
        inputSchema=tool.get_input_jsonschema(),
        annotations=types.ToolAnnotations.model_validate({key: hints.get(key) for key in types.ToolAnnotations.model_fields}),
    )
