"""A client of the routes that `agent_tools.server_module` adds to a server, as another program would write it."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import msgspec
import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplayResult, ReplaySettings, _kv_client, replay

TYPES = {
    "time": "<f8",
    "tokens": "<i8",
    "chunks": "<i4",
    "hit_l1": "<i4",
    "hit_l2": "<i4",
    "tenant": "<i2",
    "model": "<i2",
    "recorded": "<i4",
}


class Running(Protocol):
    """A server process; a `ServerProcess`, or the benchmark's own."""

    http_url: str
    rpc_url: str


@dataclass(frozen=True)
class DecodedWindow:
    plain: dict[str, Any]
    columns: dict[str, npt.NDArray[Any]]
    log: AccessLog


class ModuleClient:
    """One server with the module."""

    def __init__(self, process: Running) -> None:
        self.process = process
        self.http = httpx.Client(base_url=process.http_url, timeout=30)

    def close(self) -> None:
        self.http.close()

    def ask(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self.http.request(method, f"/agent-tools/{path}", **arguments)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def refused(self, method: str, path: str, **arguments: Any) -> tuple[int, str]:
        """The status and the reason of a problem answer."""
        answer = self.http.request(method, f"/agent-tools/{path}", **arguments)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.json()["status"] == answer.status_code
        return answer.status_code, answer.json()["detail"]

    def window(self, since: int = 0, limit: int = 20_000) -> DecodedWindow:
        plain = msgspec.msgpack.decode(self.http.get("/agent-tools/window", params={"since": since, "limit": limit}).content)
        columns = {name: np.frombuffer(raw, TYPES[name]) for name, raw in plain.pop("columns").items()}
        log = AccessLog(
            chunk_size=plain["chunk_size"],
            chunk_ids=np.frombuffer(plain["chunk_ids"], "<i4"),
            offsets=np.concatenate(([0], np.cumsum(columns["recorded"]))),
            tokens=columns["tokens"],
            timestamps=columns["time"],
            tenants=columns["tenant"],
            models=columns["model"],
            tenant_names=tuple(plain["tenants"]),
            model_names=tuple(plain["models"]),
        )
        return DecodedWindow(plain, columns, log)

    def status(self) -> Any:
        return self.http.get("/status").json()

    def objects(self) -> int:
        return int(self.status()["storage_manager"]["l1_manager"]["total_object_count"])

    def counter(self, name: str) -> float:
        lines = [line for line in self.http.get("/metrics").text.splitlines() if line.startswith(f"lmcache_mp_{name}_total")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def replay(self, log: AccessLog, model: str, clients: int = 1) -> ReplayResult:
        """KV of 4 KiB a chunk; every request has to succeed."""
        settings = ReplaySettings(clients=clients, kv_bytes_per_token=16, model=model)
        result = replay(log, self.process.rpc_url, settings)
        assert (result.skipped, result.corrupt_chunks, result.failed_retrieves, result.refused_stores) == (0, 0, 0, 0)
        return result

    @contextlib.contextmanager
    def engine(self, model: str) -> Iterator[None]:
        """An engine that is registered for a model and sends nothing."""
        kv_client = _kv_client()
        connection = kv_client.Connection(self.process.rpc_url, 10, threading.Event())
        client = kv_client.KVClient(connection, 1, (model,), 16)
        try:
            yield
        finally:
            client.close()
            connection.close()
