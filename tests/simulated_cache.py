"""The simulated cache under `Operations`, for tests where LMCache is not installed; and what is skipped there."""

import importlib.util
import os
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from real_cache import eventually

from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.simulated.deployment import SimulatedDeployment, SimulatedOptions
from agent_tools.deployments.simulated.server import SimulatedServer
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds
from agent_tools.operations import Operations
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplayResult
from agent_tools.workload.schedule import ReplaySettings

SIMULATED = os.environ.get("LMCACHE_AGENT_TEST_CACHE") == "simulated" or importlib.util.find_spec("lmcache") is None
"""Whether the fixtures `operations`, `cache` and `play` are of a simulated cache."""
NEEDS_LMCACHE = "no real server can be started: lmcache is not installed (pip install 'lmcache-agent-tools[embedded]')"
REQUESTS_PER_SECOND = 250
"""About what a real server answers when it is sent requests as fast as it can."""
KV_BYTES_PER_TOKEN = ReplaySettings().kv_bytes_per_token

TWO_ON_ONE_MACHINE = """
[caches.starving]
target = "simulated:"
bounds = { max_size_mb = 1024, allow_restart = true }
simulated = { l1_size_mb = 192, kv_bytes_per_token = 4096, seed = 1, traffic = { conversations = 40 } }

[caches.spare]
target = "simulated:"
bounds = { max_size_mb = 1024, allow_restart = true }
simulated = { l1_size_mb = 1024, kv_bytes_per_token = 4096, seed = 2, traffic = { conversations = 3 } }
"""
"""A settings file: ``starving`` has many conversations and little memory, ``spare`` few and much."""

EXTRAS = {
    "fastapi": "serve",
    "kubernetes": "kubernetes",
    "langchain": "agent",
    "langgraph_cli": "studio",
    "lmcache": "embedded",
    "matplotlib": "plot",
    "mcp": "mcp",
    "starlette": "serve",
    "torch": "embedded",
    "uvicorn": "serve",
    "zmq": "embedded",
}
"""Optional package -> the extra that brings it."""


def why_skipped(test: pytest.Item) -> str | None:
    """Return why a test cannot run here, by its markers ``needs`` and ``real_cache``, or ``None`` if it can."""
    missing = [str(mark.args[0]) for mark in test.iter_markers("needs") if importlib.util.find_spec(mark.args[0]) is None]
    if missing:
        return _not_installed(missing[0])
    real = test.get_closest_marker("real_cache")
    return f"the cache is simulated: {real.args[0]}" if real is not None and SIMULATED else None


def _not_installed(package: str) -> str:
    return f"{package} is not installed (pip install 'lmcache-agent-tools[{EXTRAS[package]}]')"


def simulated_operations(state_folder: Path) -> Operations:
    """Operations on the caches ``default`` (simulated, 16 MB) and ``unreachable`` (nothing listens there)."""
    bounds = Bounds(max_size_mb=64, allow_restart=True)
    default = CacheSettings(target="simulated:", bounds=bounds, cooldown_seconds=0)
    unreachable = CacheSettings(target="http://127.0.0.1:9", timeout_seconds=1)
    registry = Registry(Settings(caches={"default": default, "unreachable": unreachable}, state_folder=state_folder))
    options = SimulatedOptions(l1_size_mb=16, kv_bytes_per_token=KV_BYTES_PER_TOKEN, traffic=None)
    registry._caches["default"] = Cache("default", default, SimulatedDeployment(options))
    return Operations(registry)


CONNECTS = 0.3
"""Seconds that a real client takes before its first request: who starts traffic and then reads the cache, reads it first."""


def play_simulated(cache: Cache, log: AccessLog, settings: ReplaySettings) -> ReplayResult:
    """Send a log to the simulated cache and return when it has served all of it, as `replay` does with a real one.

    Without a pace requests come as fast as a real server would answer them.
    """
    assert isinstance(cache.deployment, SimulatedDeployment)
    assert settings.limit_seconds is None
    server = io_loop.run(cache.deployment._asked, _itself)
    if server.bytes_per_token != settings.kv_bytes_per_token:
        assert not server.model.in_l1.any(), "all KV of a simulated cache has one size"
        server.bytes_per_token = settings.kv_bytes_per_token
    before = len(server.hits)
    threading.Event().wait(CONNECTS if settings.pace else 0)
    log, pace = (log, settings.pace) if settings.pace else (_rapid(log), 1.0)
    began = time.time()
    end = io_loop.run(partial(cache.deployment.send, log, pace=pace, model=settings.model))
    threading.Event().wait(max(end - time.time(), 0))
    eventually(lambda: len(io_loop.run(cache.deployment._asked, _itself).hits) >= before + len(log))
    return _result(log, server.hits[before : before + len(log)], pace, time.time() - began)


def _itself(server: SimulatedServer) -> SimulatedServer:
    return server


def _rapid(log: AccessLog) -> AccessLog:
    return replace(log, timestamps=np.arange(len(log)) / REQUESTS_PER_SECOND)


def _result(log: AccessLog, hits: "np.ndarray", pace: float, seconds: float) -> ReplayResult:
    chunks = log.chunks_per_request
    return ReplayResult(
        chunk_size=log.chunk_size,
        hits=hits,
        started=(log.timestamps - log.timestamps[:1]) / pace,
        requests=len(log),
        skipped=0,
        tokens=int(log.tokens.sum()),
        requested_chunks=int(chunks.sum()),
        hit_chunks=int(hits.sum()),
        sent_chunks=int((chunks - hits).sum()),
        corrupt_chunks=0,
        failed_retrieves=0,
        refused_stores=0,
        seconds=seconds,
        lag_seconds=0.0,
    )


def skip_what_needs_extras(report: pytest.CollectReport) -> None:
    """Make a module that imports a package which is not installed a skipped one, with how to get it."""
    if report.outcome != "failed":
        return
    told = str(report.longrepr)
    missing = next((one for one in EXTRAS if f"No module named '{one}" in told), None)
    if missing is not None:
        report.outcome = "skipped"
        report.longrepr = (report.nodeid, 0, f"Skipped: {_not_installed(missing)}")
