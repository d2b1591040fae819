"""Claims about clients that connect and never send a whole request: they keep nobody out of the services we start."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn
from real_cache import eventually

from agent_tools.deployments.server.process import free_port
from agent_tools.doors import connections

HEAD = b"GET /lmcache/caches HTTP/1.1\r\nHost: 127.0.0.1\r\nX-More: "
BODY = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
SERVICES = {"serve": ["serve"], "mcp": ["mcp", "--http"]}
MANY = 400


def open_still(sockets: list[socket.socket]) -> int:
    """How many the other side has not closed."""
    return sum(map(_is_open, sockets))


def _is_open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        while one.recv(2**16):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def half_sent(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that send a part of a request each."""
    with ExitStack() as stack:
        sockets = []
        for number in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            one.sendall((b"", HEAD, BODY)[number % 3])
            sockets.append(one)
        yield sockets


@pytest.mark.parametrize("service", SERVICES)
def test_four_hundred_half_sent_requests_do_not_keep_others_out(service: str, tmp_path: Path) -> None:
    port = free_port()
    environment = {"LMCACHE_AGENT_STATE_FOLDER": str(tmp_path)}
    command = [sys.executable, "-m", "agent_tools.doors.cli", *SERVICES[service], "--port", str(port)]
    few_files = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({MANY}, {MANY}))"
    few_files += "; import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", few_files, *command]
    with subprocess.Popen(command, env=os.environ | environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: answers(port), seconds=60)
            with half_sent(port, MANY) as sockets:
                began = time.monotonic()
                assert answers(port, timeout=5)
                assert time.monotonic() - began < 5
                assert open_still(sockets) <= connections.MOST_CONNECTIONS
        finally:
            process.terminate()


def answers(port: int, timeout: float = 1) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/lmcache/caches", timeout=timeout, trust_env=False).status_code in {200, 404}
    except httpx.TransportError:
        return False


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a service that waits half a second, and for at most ten clients."""
    monkeypatch.setattr(connections, "SECONDS_TO_ASK", 0.5)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 10)

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **connections.LIMITS))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            eventually(lambda: server.started)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def test_a_request_has_to_be_whole_in_time_even_if_it_trickles_in(impatient: int) -> None:
    with half_sent(impatient, 3) as sockets:
        assert open_still(sockets) == 3
        began = time.monotonic()
        while open_still(sockets) and time.monotonic() - began < 5:
            for one in sockets[1:]:
                with suppress(OSError):
                    one.send(b"x")
            threading.Event().wait(0.05)
        assert 0.3 < time.monotonic() - began < 3


def test_a_client_that_asks_again_and_again_is_not_cut_off(impatient: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{impatient}", trust_env=False) as client:
        for _ in range(6):
            assert client.post("/", content=b"x" * 100_000).text == "ok"
            threading.Event().wait(0.2)


def test_the_oldest_of_too_many_makes_way(impatient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SECONDS_TO_ASK", 60.0)
    with half_sent(impatient, 10) as sockets:
        assert httpx.get(f"http://127.0.0.1:{impatient}", trust_env=False).text == "ok"
        eventually(lambda: open_still(sockets[:1]) == 0)
        assert open_still(sockets[1:]) == 9
