"""Claims about the MCP door that hold with every version of the SDK, made by raw messages of the protocol (`make test-mcp`)."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from real_cache import eventually

from agent_tools.deployments.server.process import free_port

pytest.importorskip("mcp")
COMMAND = [sys.executable, "-m", "agent_tools.doors.cli", "mcp"]
CLIENT = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw client", "version": "1"}}
CACHES = """
[caches.default]
target = "simulated:"
cooldown_seconds = 0

[tokens]
ci = "the token of ci, 32 characters"
ops = { token = "the token of ops, 32 characters", rights = ["change"] }
"""
UPDATE = {"name": "lmcache_update_config", "arguments": {"update": {"eviction_ratio": 0.3}, "reason": "test"}}
WINDOW = {"name": "lmcache_get_metrics", "arguments": {"window_seconds": 20}}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "caches.toml").write_text(CACHES, encoding="utf-8")
    return os.environ | {
        "LMCACHE_AGENT_SETTINGS": str(tmp_path / "caches.toml"),
        "LMCACHE_AGENT_STATE_FOLDER": str(tmp_path / "state"),
    }


class Raw:
    """A client over the standard streams of a server process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._id = 0

    def send(self, method: str, **params: Any) -> None:
        assert self.process.stdin is not None
        self._id += 1
        number = {} if method.startswith("notifications/") else {"id": self._id}
        message = {"jsonrpc": "2.0", **number, "method": method, "params": params}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        assert self.process.stdout is not None
        self.send(method, **params)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert answer["id"] == self._id
        return answer


@contextmanager
def talking(environment: dict[str, str], errors: Path) -> Iterator[Raw]:
    with (
        errors.open("wb") as said,
        subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        ) as process,
    ):
        try:
            client = Raw(process)
            assert "tools" in client.ask("initialize", **CLIENT)["result"]["capabilities"]
            client.send("notifications/initialized")
            yield client
        finally:
            process.kill()


def test_tools_prompts_and_resources_over_standard_streams(environment: dict[str, str], tmp_path: Path) -> None:
    with talking(environment, tmp_path / "errors") as client:
        tools = {one["name"]: one for one in client.ask("tools/list")["result"]["tools"]}
        assert tools["lmcache_clear_cache"]["annotations"]["destructiveHint"]
        status = client.ask("tools/call", name="lmcache_get_status", arguments={})["result"]
        assert status["structuredContent"]["backend"]
        assert not status["isError"]
        wrong = client.ask("tools/call", name="lmcache_get_status", arguments={"cahce": "a"})["result"]
        assert wrong["isError"]
        assert wrong["content"][0]["text"].startswith("bad_arguments")
        assert not client.ask("tools/call", **UPDATE)["result"]["isError"]
        prompts = {one["name"] for one in client.ask("prompts/list")["result"]["prompts"]}
        assert prompts == {"check", "tune", "what_changed"}
        said = client.ask("prompts/get", name="check", arguments={"cache": "prod"})["result"]["messages"][0]
        assert "the LMCache cache prod" in said["content"]["text"]
        listed = {one["uri"]: one["mimeType"] for one in client.ask("resources/list")["result"]["resources"]}
        assert listed == {"lmcache://report/default": "text/html", "lmcache://changes/default": "application/json"}
        page = client.ask("resources/read", uri="lmcache://report/default")["result"]["contents"][0]["text"]
        assert page.startswith("<!doctype html>")
        log = json.loads(client.ask("resources/read", uri="lmcache://changes/default")["result"]["contents"][0]["text"])
        assert {line["actor"] for line in log[0]} == {"tool, with MCP client raw client"}
        for uri in ("lmcache://report/prod", "lmcache://nothing", "file:///etc/passwd"):
            assert client.ask("resources/read", uri=uri)["error"]["code"] == -32602
        assert client.ask("prompts/get", name="nothing")["error"]["code"] == -32602


def test_a_client_that_leaves_in_the_middle_of_a_call_leaves_no_traceback(environment: dict[str, str], tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with talking(environment, errors) as client:
        client.send("tools/call", **WINDOW)
        assert client.process.stdin is not None
        assert client.process.stdout is not None
        client.process.stdout.close()
        client.process.stdin.close()
        client.process.wait(timeout=60)
    assert "Traceback" not in errors.read_text(encoding="utf-8")


@pytest.fixture
def served(environment: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server over HTTP, and the file of its log."""
    port, errors = free_port(), tmp_path / "errors"
    with (
        errors.open("wb") as said,
        subprocess.Popen([*COMMAND, "--http", "--port", str(port)], env=environment, stderr=said, stdout=said) as process,
    ):
        url = f"http://127.0.0.1:{port}/mcp"
        try:
            eventually(lambda: _answers(url), seconds=60)
            yield url, errors
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True


@contextmanager
def session(url: str, token: str) -> Iterator[httpx.Client]:
    headers = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {token}"}
    with httpx.Client(headers=headers, timeout=60) as client:
        hello = client.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": CLIENT})
        assert hello.status_code == 200, hello.text
        client.headers.update({"mcp-session-id": hello.headers["mcp-session-id"], "mcp-protocol-version": "2025-06-18"})
        client.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        yield client


def call(client: httpx.Client, url: str, params: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(url, json={"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params})
    data = next(line for line in answer.text.splitlines() if line.startswith("data: {"))
    result: dict[str, Any] = json.loads(data.removeprefix("data: "))["result"]
    return result


def test_over_http_each_token_has_its_rights_and_its_name(served: tuple[str, Path], environment: dict[str, str]) -> None:
    url, errors = served
    assert httpx.post(url, json={}, headers={"Authorization": "Bearer of nothing"}).status_code == 401
    with session(url, "the token of ci, 32 characters") as client:
        assert call(client, url, UPDATE)["content"][0]["text"].startswith("forbidden: the token of ci")
        with pytest.raises(httpx.TimeoutException):  # it leaves in the middle of a call
            client.post(url, json={"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": WINDOW}, timeout=2)
    with session(url, "the token of ops, 32 characters") as client:
        assert not call(client, url, UPDATE)["isError"]
    log = Path(environment["LMCACHE_AGENT_STATE_FOLDER"], "changes.jsonl").read_text(encoding="utf-8")
    assert "tool, asked by ops, with MCP client raw client" in log
    assert "Traceback" not in errors.read_text(encoding="utf-8")
