"""Claims about the MCP door, made by the SDK's own client: in memory, over a real process's standard streams, and over HTTP."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import StdioServerParameters
from mcp_session import connected, over_http, over_streams, text
from real_cache import Play, eventually

from agent_tools import LMCacheToolkit, Operations
from agent_tools.caches.registry import Cache
from agent_tools.deployments.server.process import ServerProcess, free_port
from agent_tools.doors.mcp import mcp_server
from agent_tools.io_loop import io_loop
from agent_tools.models import LMCacheStatus
from agent_tools.workload.generate import AgentTraffic

TRAFFIC = AgentTraffic(requests=20, conversations=4, turns=5, seed=4).generate()
TOKEN = "a secret of the operator's"  # noqa: S105  of the test's own server
COMMAND = ["-m", "agent_tools.doors.cli", "mcp"]
CLIENT = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": CLIENT}


async def call(operations: Operations, name: str, **arguments: Any) -> dict[str, Any]:
    async with connected(mcp_server(LMCacheToolkit(operations=operations).get_tools())) as client:
        return await client.call(name, **arguments)


@pytest.fixture
def environment(server: ServerProcess, tmp_path: Path) -> dict[str, str]:
    """Of a process of its own whose ``default`` is the test's server."""
    settings = tmp_path / "caches.toml"
    settings.write_text(f'[caches.default]\ntarget = "{server.http_url}"\n', encoding="utf-8")
    return os.environ | {"LMCACHE_AGENT_SETTINGS": str(settings), "LMCACHE_AGENT_STATE_FOLDER": str(tmp_path / "state")}


async def test_tools_are_listed_with_their_schemas_titles_and_all_four_hints() -> None:
    tools = LMCacheToolkit().get_tools()
    async with connected(mcp_server(tools)) as client:
        listed = {tool["name"]: tool for tool in await client.tools()}
    assert listed.keys() == {tool.name for tool in tools} >= {"lmcache_get_status", "lmcache_clear_cache", "lmcache_tune"}
    for tool in tools:
        mine = listed[tool.name]
        assert mine["description"] == tool.description
        assert mine["inputSchema"] == tool.get_input_jsonschema()
        assert mine["annotations"] == tool.metadata
        assert mine["title"] == mine["annotations"]["title"]


async def test_a_read_only_toolkit_lists_nothing_that_changes_a_cache_and_its_prefix_is_kept() -> None:
    tools = LMCacheToolkit().read_only().prefixed("kv_").get_tools()
    async with connected(mcp_server(tools)) as client:
        listed = await client.tools()
        refused = await client.call("kv_clear_cache", reason="test")
    assert all(tool["name"].startswith("kv_") and tool["annotations"]["readOnlyHint"] for tool in listed)
    assert refused["isError"]


async def test_a_call_brings_the_text_and_the_artifact_as_structured_content(
    operations: Operations, cache: Cache, play: Play
) -> None:
    play(TRAFFIC)
    result = await call(operations, "lmcache_get_status")
    status = LMCacheStatus.model_validate(result["structuredContent"])
    assert not result["isError"]
    assert status.metrics.total_requests == io_loop.run(cache.deployment.snapshot).counters.lookups
    assert f"in {status.metrics.total_requests} lookups" in text(result)


async def test_a_change_made_over_mcp_is_in_force(operations: Operations, cache: Cache) -> None:
    result = await call(operations, "lmcache_update_config", update={"max_size_mb": 20}, reason="test")
    assert result["structuredContent"]["success"]
    assert io_loop.run(cache.deployment.snapshot).l1_total_bytes == 20 * 2**20


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("lmcache_get_status", {"cache": "prod"}, "unknown_cache: there is no cache named 'prod'; the caches are:"),
        ("lmcache_get_status", {"cache": "unreachable"}, "unreachable: "),
        ("lmcache_get_status", {"cahce": "default"}, "bad_arguments: there is no argument cahce, did you mean cache; nothing"),
        ("lmcache_get_metrics", {"window_seconds": "soon"}, "bad_arguments: window_seconds: "),
        ("lmcache_get_stats", {}, "there is no tool named lmcache_get_stats; there are: lmcache_"),
    ],
)
async def test_what_cannot_be_done_is_flagged_as_an_error_and_said_in_our_own_words(
    operations: Operations, name: str, arguments: dict[str, Any], words: str
) -> None:
    result = await call(operations, name, **arguments)
    assert result["isError"]
    assert text(result).startswith(words)
    assert result.get("structuredContent") is None


async def test_a_client_speaks_to_a_process_of_its_own_over_standard_streams(environment: dict[str, str]) -> None:
    process = StdioServerParameters(command=sys.executable, args=COMMAND, env=environment)
    async with over_streams(process) as client:
        names = {tool["name"] for tool in await client.tools()}
        result = await client.call("lmcache_get_status")
    assert client.server_name == "lmcache-agent-tools"
    assert "lmcache_tune" in names
    assert LMCacheStatus.model_validate(result["structuredContent"]).backend == "lmcache server"


def test_on_standard_output_there_is_nothing_but_the_protocol_and_the_process_ends_with_its_client(
    environment: dict[str, str],
) -> None:
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "lmcache_get_status", "arguments": {"a": 1}}}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    with subprocess.Popen(
        [sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(message) + "\n" for message in (HELLO, ready, call)))
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        rest, _ = process.communicate(timeout=20)
    assert [answer["id"] for answer in answers] == [1, 2]
    assert answers[1]["result"]["isError"]
    assert (rest, process.returncode) == ("", 0)


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    """Of a real process that serves only what changes nothing, over HTTP, to bearers of `TOKEN`."""
    port = free_port()
    command = [sys.executable, *COMMAND, "--http", "--read-only", "--port", str(port)]
    with subprocess.Popen(command, env=environment | {"LMCACHE_AGENT_TOKEN": TOKEN}, stderr=subprocess.DEVNULL) as process:
        try:
            yield eventually(lambda: answering(f"http://127.0.0.1:{port}/mcp"), seconds=30)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=20)
            finally:
                process.kill()  # without effect once it has ended


def answering(url: str) -> str | None:
    try:
        httpx.get(url)
    except httpx.ConnectError:
        return None
    return url


async def test_over_http_the_bearer_of_the_token_is_served_and_nobody_else(url: str) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with over_http(url, bearer) as client:
        names = {tool["name"] for tool in await client.tools()}
        result = await client.call("lmcache_get_status")
    assert LMCacheStatus.model_validate(result["structuredContent"]).backend == "lmcache server"
    assert "lmcache_clear_cache" not in names

    def knock(**headers: str) -> int:
        accept = {"Accept": "application/json, text/event-stream"}
        return httpx.post(url, json=HELLO, headers=accept | headers).status_code

    assert knock() == knock(Authorization="Bearer not the secret") == 401
    assert knock(**bearer, Origin="http://evil.example") == 403
    assert knock(**bearer, Host="evil.example") == 421
    assert knock(**bearer) == 200
