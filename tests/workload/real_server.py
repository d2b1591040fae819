"""A real, private `lmcache server` for tests, and what it says about itself."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent_tools.deployments.server.process import free_port

L1_BYTES = 32 * 2**20
CHUNK_SIZE = 256
START_SECONDS = 60


@dataclass
class Server:
    """A running `lmcache server`, and what it says about itself."""

    process: "subprocess.Popen[bytes]"
    rpc_url: str
    http_url: str
    log_dir: Path

    def counter(self, name: str, **labels: str) -> int:
        """The sum of a counter's series that carry the labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.http_url}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == f"lmcache_mp_{name}_total"]
        return int(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))

    def status(self) -> dict[str, Any]:
        return httpx.get(f"{self.http_url}/status").json()

    def clear(self) -> None:
        httpx.post(f"{self.http_url}/cache/clear").raise_for_status()


def eventually(value: Callable[[], object], expected: object, seconds: float = 10) -> None:
    """Wait until a value is as expected: the server counts on a thread of its own, after it has answered."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while (last := value()) != expected:
        if time.monotonic() > deadline:
            pytest.fail(f"still {last!r} after {seconds} s, not {expected!r}")
        pause.wait(0.02)


@contextlib.contextmanager
def running_server(folder: Path, *options: str) -> Iterator[Server]:
    """A server on free loopback ports with a 32 MiB L1, stopped at the end whatever happens."""
    if importlib.util.find_spec("lmcache") is None:
        pytest.skip("lmcache is not installed")
    rpc, http = free_port(), free_port()
    arena = Path("/dev/shm") / f"workload-test-{os.getpid()}-{rpc}"
    log_dir, output = folder / "lookups", folder / "server.log"
    command = [Path(sys.executable).with_name("lmcache"), "server", "--host", "127.0.0.1", "--port", str(rpc)]
    command += ["--http-host", "127.0.0.1", "--http-port", str(http), "--l1-size-gb", str(L1_BYTES / 2**30)]
    command += ["--l1-devdax-path", str(arena), "--no-l1-use-lazy", "--shm-name", "", "--eviction-policy", "LRU"]
    command += ["--chunk-size", str(CHUNK_SIZE), "--lookup-hash-log-dir", str(log_dir), *options]
    quiet = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_LOG_LEVEL": "WARNING"}
    try:
        with arena.open("wb") as file, output.open("wb") as log:
            file.truncate(L1_BYTES)
            process = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True)
        server = Server(process, f"tcp://127.0.0.1:{rpc}", f"http://127.0.0.1:{http}", log_dir)
        try:
            wait_until_up(server, output)
            arena.unlink()  # the server has it mapped
            yield server
        finally:
            stop(process)
    finally:
        arena.unlink(missing_ok=True)


def wait_until_up(server: Server, output: Path) -> None:
    deadline, pause = time.monotonic() + START_SECONDS, threading.Event()
    while server.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.http_url}/status").status_code == 200:
                return
        pause.wait(0.1)
    pytest.fail(f"`lmcache server` did not start:\n{output.read_text(errors='replace')[-3000:]}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
