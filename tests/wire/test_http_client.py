"""Claims about calls to the admin API that go wrong: each is one sentence, reads are retried, changes never are.

The faults that a real server cannot be made to show come from a stand-in on a loopback port; all else from the real server.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from real_cache import Play

from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import (
    LMCacheToolError,
    NotLMCacheError,
    OutcomeUnknownError,
    RefusedError,
    SettingsError,
    UnreachableError,
)
from agent_tools.io_loop import io_loop
from agent_tools.wire.http_client import READ_TRIES, AdminClient
from agent_tools.workload.generate import AgentTraffic

Call = Callable[[AdminClient], Awaitable[Any]]


async def read(admin: AdminClient) -> Any:
    return await admin.read("/status")


async def change(admin: AdminClient) -> Any:
    return await admin.change("POST", "/cache/clear", {"tier": "l1"})


def http(status: str, body: object = "", content_type: str = "application/json", headers: str = "") -> bytes:
    text = body if isinstance(body, str) else json.dumps(body)
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(text)}\r\n{headers}\r\n{text}".encode()


@contextlib.asynccontextmanager
async def stand_in(answer: bytes | None) -> AsyncIterator[tuple[str, list[str]]]:
    """Something that gives every request this answer and closes; ``None`` never answers. Its URL, and what it was asked."""
    asked: list[str] = []
    released = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if not line:  # it only came to listen
                return
            asked.append(line.decode().strip())
            if answer is None:
                await released.wait()
            writer.write(answer or b"")
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        released.set()
        server.close()


def fault(answer: bytes | None, call: Call, timeout: float = 5.0) -> tuple[LMCacheToolError, list[str]]:
    """The error of a call that is answered so, and what was asked."""

    async def scenario() -> tuple[LMCacheToolError, list[str]]:
        async with stand_in(answer) as (url, asked):
            admin = AdminClient(url, timeout)
            try:
                with pytest.raises(LMCacheToolError) as raised:
                    await call(admin)
                return raised.value, asked
            finally:
                await admin.close()

    return io_loop.run(scenario)


def call(url: str, what: Call, timeout: float = 5.0) -> Any:
    async def scenario() -> Any:
        admin = AdminClient(url, timeout)
        try:
            return await what(admin)
        finally:
            await admin.close()

    return io_loop.run(scenario)


# ---- where nothing, or something else, listens ----


@pytest.mark.parametrize("what", [read, change])
def test_where_nothing_listens_nothing_was_changed(what: Call) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            UnreachableError, match=rf"no cache answered .* at {url}.*nothing was changed.*Start `lmcache server`"
        ):
            call(url, what)


def test_a_read_that_hangs_is_given_up_after_its_retries() -> None:
    error, asked = fault(None, read, timeout=0.2)
    assert isinstance(error, UnreachableError)
    assert "the server hangs" in str(error)
    assert asked == ["GET /status HTTP/1.1"] * READ_TRIES


def test_a_change_that_hangs_may_be_in_force_and_is_not_sent_again() -> None:
    error, asked = fault(None, change, timeout=0.2)
    assert isinstance(error, OutcomeUnknownError)
    assert "may or may not be in force" in str(error)
    assert asked == ["POST /cache/clear HTTP/1.1"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"HTTP/1.1 200"])
def test_a_change_whose_answer_breaks_off_may_be_in_force_and_is_not_sent_again(answer: bytes) -> None:
    error, asked = fault(answer, change)
    assert isinstance(error, OutcomeUnknownError)
    assert asked == ["POST /cache/clear HTTP/1.1"]


def test_a_read_whose_answer_breaks_off_is_retried() -> None:
    error, asked = fault(b"", read)
    assert isinstance(error, NotLMCacheError | UnreachableError)
    assert len(asked) == READ_TRIES


@pytest.mark.parametrize(
    "answer",
    [
        http("200 OK", "<html>Grafana</html>", "text/html"),
        http("404 Not Found", "<html>nginx</html>", "text/html"),
        http("404 Not Found", {"detail": "Not Found"}),
        http("405 Method Not Allowed", {"detail": "Method Not Allowed"}),
        http("302 Found", headers="Location: http://127.0.0.1:9/login\r\n"),
        http("200 OK", "not gzip", headers="Content-Encoding: gzip\r\n"),
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x00\x01\x02" * 100,
    ],
    ids=["html", "html-404", "bare-404", "bare-405", "redirect", "not-gzip", "ssh", "noise"],
)
def test_something_that_is_not_lmcache_is_recognised_by_a_read(answer: bytes) -> None:
    error, _ = fault(answer, read)
    assert isinstance(error, NotLMCacheError)
    assert "http://127.0.0.1:" in str(error)


@pytest.mark.parametrize("what", [read, change])
@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (http("503 Service Unavailable", {"detail": "engine not initialized"}), 503, "engine not initialized"),
        (http("500 Internal Server Error", "Internal Server Error", "text/plain"), 500, "Internal Server Error"),
        (http("409 Conflict", {"error": "device already mapped"}), 409, "device already mapped"),
        (http("404 Not Found", {"detail": "no such request"}), 404, "no such request"),
        (http("422 x", {"detail": [{"loc": ["body", "tier"], "msg": "not a tier"}]}), 422, "body.tier: not a tier"),
        (http("422 x", {"detail": ["odd"]}), 422, "odd"),
        (http("400 Bad Request", [1, 2]), 400, "Bad Request"),
    ],
)
def test_an_error_answer_is_told_in_lmcaches_own_words_and_asked_once(what: Call, answer: bytes, status: int, said: str) -> None:
    error, asked = fault(answer, what)
    assert isinstance(error, RefusedError)
    assert error.status == status
    assert said in str(error)
    assert len(asked) == 1


def test_a_change_answered_by_something_else_is_not_taken_for_done() -> None:
    error, asked = fault(http("200 OK", "<html>welcome</html>", "text/html"), change)
    assert isinstance(error, NotLMCacheError)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "body", [{}, [], 3, None, {"chunk_size": 256, "storage_manager": {}}, {"chunk_size": 256, "storage_manager": 3}]
)
@pytest.mark.parametrize("method", ["snapshot", "config", "support"])
def test_json_of_another_shape_is_not_that_of_lmcache(body: object, method: str) -> None:
    async def scenario() -> None:
        async with stand_in(http("200 OK", body)) as (url, _):
            deployment = ServerDeployment(url)
            try:
                with pytest.raises(NotLMCacheError, match="something else, or another version, answers there"):
                    await getattr(deployment, method)()
            finally:
                await deployment.close()

    io_loop.run(scenario)


# ---- addresses ----


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8080",
        "ftp://h",
        "http://",
        "http://user:secret@h",
        "http://h?x=1",
        "http://h:port",
        "",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(SettingsError, match="is not an address"):
        AdminClient(address)


def test_a_refused_address_does_not_give_its_password_away() -> None:
    with pytest.raises(SettingsError) as raised:
        AdminClient("http://user:secret@host:1")
    assert "secret" not in str(raised.value)


def test_an_address_is_kept_without_its_last_slash() -> None:
    assert AdminClient("http://h:1/").base_url == "http://h:1"


# ---- a real server ----


def test_the_rpc_port_of_a_real_server_is_recognised_before_anything_is_sent(server: ServerProcess, play: Play) -> None:
    url = server.rpc_url.replace("tcp://", "http://")
    for what in (read, change):
        with pytest.raises(NotLMCacheError, match=r"it speaks first.*give its --http-port. Nothing was sent there"):
            call(url, what)
    # LMCache 0.5.6's request thread dies of an HTTP request with a body; it must still be there.
    assert play(AgentTraffic(requests=5).generate()).requests == 5


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/reconfigure/dax/l1/remove", {"device_path": "/nowhere", "mode": "drain"}, 404, "/nowhere"),
        ("POST", "/reconfigure/dax/l1/remove", {"device_path": "/nowhere", "mode": "explode"}, 422, "mode"),
        ("POST", "/reconfigure/dax/l1/add", {"device_path": "/nowhere", "size": "1MiB"}, 409, "failed to identify"),
        ("POST", "/reconfigure/dax/l1/add", {"size": "1MiB"}, 422, "device_path"),
        ("POST", "/cache/clear", {"tier": "l2"}, 400, "tier"),
        ("DELETE", "/cache/objects", {"keys": "all"}, 422, "keys"),
    ],
)
def test_a_refusal_by_the_real_server_names_what_it_objects_to(
    server: ServerProcess, method: str, path: str, body: object, status: int, said: str
) -> None:
    with pytest.raises(RefusedError) as raised:
        call(server.http_url, lambda admin: admin.change(method, path, body))
    assert raised.value.status == status
    assert said in str(raised.value)
    assert f"{method} {path}" in str(raised.value)


def test_a_route_that_the_server_does_not_have_is_not_lmcaches(server: ServerProcess) -> None:
    with pytest.raises(NotLMCacheError, match="answered 404"):
        call(server.http_url, lambda admin: admin.read("/no/such/route"))
