"""A real fleet on this machine: `lmcache coordinator`, two servers that share a file system as L2, and one without L2."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import httpx

from agent_tools.deployments.server import process
from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.process import GUARD, QUIET, ServerProcess, free_port
from agent_tools.io_loop import io_loop
from agent_tools.workload.replay import _kv_client

ROOT = str(Path(__file__).parents[2])
PATIENCE = 90.0
COORDINATOR = {
    "--host": "127.0.0.1",
    "--instance-timeout": 3,
    "--health-check-interval": 0.5,
    "--eviction-check-interval": 0.5,
    "--eviction-ratio": 0.3,
}


class FleetProcesses:
    """The processes of one fleet; `stop` ends them, and so does the end of ours."""

    def __init__(self, folder: Path, with_l2: Collection[str] = ("node-a", "node-b"), more: Callable[[], Flags] = dict) -> None:
        """Start all at once; `wait_ready` waits.

        Args:
            folder: For logs and L2.
            with_l2: The servers that share a file system as L2.
            more: Gives further flags of each server.
        """
        self.folder, self._more = folder, more
        self.shared_l2 = folder / "l2"
        self.shared_l2.mkdir()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._coordinator = _guarded("coordinator", {**COORDINATOR, "--port": port}, folder / "coordinator.log")
        l2: Flags = {"--l2-adapter": [json.dumps({"type": "fs", "base_path": str(self.shared_l2), "shared": True})]}
        names = ("node-a", "node-b", "node-c")
        self.servers = {name: self._server(name, l2 if name in with_l2 else {}) for name in names}

    def wait_ready(self) -> "FleetProcesses":
        """Return when all servers have registered."""
        for server in self.servers.values():
            io_loop.run(server.wait_ready, PATIENCE)
        deadline, pause = time.monotonic() + PATIENCE, threading.Event()
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if len(httpx.get(f"{self.url}/instances", trust_env=False).json()["instances"]) == len(self.servers):
                    return self
            pause.wait(0.1)
        raise AssertionError(f"not all servers have registered after {PATIENCE} s; see {self.folder}")

    def kill(self, name: str) -> None:
        """End a server as a crash would: it does not say goodbye."""
        server = self.servers[name]
        server._guard.kill()
        server._guard.wait()
        with contextlib.suppress(httpx.TransportError):
            while httpx.get(f"{server.http_url}/status", trust_env=False):  # until the kernel has ended it
                pass

    def register(self, name: str, ip: str, port: int) -> None:
        """What a stranger can do."""
        httpx.post(
            f"{self.url}/instances", json={"instance_id": name, "ip": ip, "http_port": port}, trust_env=False
        ).raise_for_status()

    def deregister(self, name: str) -> None:
        """Take it off the coordinator's list."""
        httpx.delete(f"{self.url}/instances/{name}", trust_env=False).raise_for_status()

    def stop(self) -> None:
        """End all processes and wait for that."""
        for server in self.servers.values():
            io_loop.run(server.stop)
        self.stop_coordinator()

    def stop_coordinator(self) -> None:
        """End the coordinator alone."""
        assert self._coordinator.stdin is not None
        self._coordinator.stdin.close()
        self._coordinator.wait()

    def _server(self, name: str, more: Flags) -> ServerProcess:
        flags: Flags = {
            "--l1-size-gb": 16 / 1024,
            "--eviction-policy": "LRU",
            "--supported-transfer-mode": "auto",
            "--l2-prefetch-policy": "retain",
            "--instance-id": name,
            "--coordinator-url": self.url,
            "--coordinator-advertise-ip": "127.0.0.1",
            "--coordinator-heartbeat-interval": 0.5,
            "--coordinator-event-reporting": True,
            "--coordinator-event-flush-interval": 0.1,
            "--server-module": json.dumps({"module_path": "benchmarks.hybrid_module", "config": {}}),
        }
        return ServerProcess.launch(flags | more | self._more(), self.folder, extra={"PYTHONPATH": ROOT})


@contextlib.contextmanager
def engine(server: ServerProcess, model: str, world_size: int = 1) -> Iterator[None]:
    """An engine that is registered for a model, as a prefetch needs one."""
    kv_client = _kv_client()
    connection = kv_client.Connection(server.rpc_url, 10, threading.Event())
    client = kv_client.KVClient(connection, secrets.randbelow(2**30), (kv_client.Engine(model, world_size, 128 * world_size),))
    try:
        yield
    finally:
        client.close()
        connection.close()


def _guarded(command: str, flags: Flags, log: Path) -> "subprocess.Popen[bytes]":
    """A process that ends with us, as `ServerProcess` starts them."""
    arguments = [str(part) for flag in flags.items() for part in flag]
    lmcache = [*process.LMCACHE, command, *arguments]
    own = tempfile.mkdtemp(prefix="lmcache-agent-")  # which the guard removes
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(GUARD), own, *lmcache],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | QUIET,
            start_new_session=True,
        )
