"""Serve the tools over MCP, with their schemas, hints, results and error flags: over stdio or streamable HTTP."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from langchain_core.tools import BaseTool
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agent_tools.caches.named_tokens import Tokens
from agent_tools.operations import Operations

from .connections import LIMITS
from .mcp_answers import Answers
from .mcp_sdk import CALLER, server_of

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
NO_TOKENS = Tokens(None, {})


def mcp_server(tools: Sequence[BaseTool], operations: Operations | None = None) -> Server[Any]:
    """Return an MCP server of these tools that is not connected yet.

    The artifact of a tool is the structured content. An error for the model is a result with ``isError``. With `operations`, the
    report and the change log of each cache are resources.
    """
    return server_of(Answers(tools, operations))


def serve_stdio(tools: Sequence[BaseTool], operations: Operations | None = None) -> None:
    """Serve on standard input and output until the client closes them. Nothing else may write to standard output."""
    server = mcp_server(tools, operations)

    async def serve() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    try:
        anyio.run(serve)
    except Exception as error:
        if not _left(error):
            raise
        # Nobody reads what is left in the buffer; Python would complain about it at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _left(error: BaseException) -> bool:
    """Return whether an error, or all errors of a group, say only that the client has left."""
    parts = getattr(error, "exceptions", None)
    if isinstance(parts, tuple):
        return all(map(_left, parts))
    return isinstance(error, BrokenPipeError | ConnectionResetError | anyio.ClosedResourceError | anyio.BrokenResourceError)


def serve_http(tools: Sequence[BaseTool], port: int, tokens: Tokens, operations: Operations | None = None) -> None:
    """Serve at ``http://127.0.0.1:<port>/mcp`` until interrupted."""
    uvicorn.run(http_app(tools, tokens, operations), host=LOOPBACK[0], port=port, timeout_graceful_shutdown=5, **LIMITS)


def http_app(tools: Sequence[BaseTool], tokens: Tokens = NO_TOKENS, operations: Operations | None = None) -> Starlette:
    """Return the server as an ASGI application with streamable HTTP at ``/mcp``.

    The application answers only requests to a loopback name, and none from a foreign web page (DNS rebinding). If there are
    tokens, requests must carry one.
    """
    security = TransportSecuritySettings(
        allowed_hosts=[f"{name}:*" for name in LOOPBACK], allowed_origins=[f"http://{name}:*" for name in LOOPBACK]
    )
    manager = StreamableHTTPSessionManager(mcp_server(tools, operations), security_settings=security)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    return Starlette(routes=[Route("/mcp", _Door(manager, tokens))], lifespan=lifespan)


class _Door:
    """Asks for a token, and notes whose it is."""

    def __init__(self, manager: StreamableHTTPSessionManager, tokens: Tokens) -> None:
        self._manager = manager
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        presented = given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        known, caller = self._tokens.recognise(presented)
        if self._tokens and not known:
            refused = JSONResponse({"error": "send a token: Authorization: Bearer <token>"}, 401)
            refused.headers["WWW-Authenticate"] = 'Bearer realm="lmcache"'
            await refused(scope, receive, send)
        else:
            await self._manager.handle_request({**scope, CALLER: caller}, receive, send)
