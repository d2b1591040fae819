"""The SDK's own client, of 1.x or 2.x, in front of our MCP server. Answers have the names of the protocol, e.g. ``isError``."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("mcp")

from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from agent_tools.doors.mcp_sdk import V2

if V2:
    import httpx2 as http_library
    from mcp.client import Client

    connect = Client
else:
    import httpx as http_library
    from mcp.shared.memory import create_connected_server_and_client_session as connect


@dataclass(frozen=True)
class Session:
    """A client that is connected and has said hello."""

    client: Any
    server_name: str = ""

    async def tools(self) -> list[dict[str, Any]]:
        return [wire(tool) for tool in (await self.client.list_tools()).tools]

    async def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        return wire(await self.client.call_tool(name, arguments))


def wire(answer: Any) -> dict[str, Any]:
    told: dict[str, Any] = answer.model_dump(mode="json", by_alias=True)
    return told


def text(answer: Mapping[str, Any]) -> str:
    (content,) = answer["content"]
    assert content["type"] == "text"
    return str(content["text"])


@contextlib.asynccontextmanager
async def connected(server: Any) -> AsyncIterator[Session]:
    """Connect to a server object in this process."""
    async with connect(server) as client:
        yield Session(client)


@contextlib.asynccontextmanager
async def over_streams(process: StdioServerParameters) -> AsyncIterator[Session]:
    """Start a process and connect to its standard streams."""
    async with stdio_client(process) as (read, write), ClientSession(read, write) as client:
        yield await _introduced(client)


@contextlib.asynccontextmanager
async def over_http(url: str, headers: Mapping[str, str]) -> AsyncIterator[Session]:
    """Connect to an HTTP server."""
    async with (
        http_library.AsyncClient(headers=headers) as http,
        streamable_http_client(url, http_client=http) as (read, write, *_),
        ClientSession(read, write) as client,
    ):
        yield await _introduced(client)


async def _introduced(client: ClientSession) -> Session:
    return Session(client, wire(await client.initialize())["serverInfo"]["name"])
