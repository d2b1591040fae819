"""Compare the server model with a live `lmcache server` in the shapes of production.

One engine of world size 1, 2, 3, 4 and 8; two models whose chunks differ in bytes by 8 : 1, 10 : 1 and 32 : 1; one model with two
world sizes; hybrid models with two and three object groups. Run from the repository root (about 35 s per cell)::

    PYTHONPATH=. python benchmarks/shapes.py [--cells 3]

Each cell replays one workload into a fresh server, then reads the log as the product does, and compares what the model predicts
with what LMCache counted. Cells that are already in the result file are not run again.
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent_tools.arena_file import reserve
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.models import MB
from agent_tools.prediction.eviction_clock import Poll, clocks_near, observed_clock
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplayedModel, ReplaySettings, replay
from benchmarks.hybrid_module import object_groups

CHUNK, SECONDS, REQUESTS = 64, 22.0, 500
OBJECT = 4096
"""Bytes of the smallest object."""
RESULTS = Path(__file__).parent / "results"


def engine(ranks: int, kib: int, name: str | None = None, *, hybrid: bool = False) -> ReplayedModel:
    """Return an engine whose chunks have `kib` KiB over all ranks, in each object group."""
    return ReplayedModel(world_size=ranks, kv_bytes_per_token=kib * 1024 // CHUNK, name=name, retrieves=not hybrid)


@dataclass(frozen=True)
class Shape:
    """Some engines on one server, and their shares of the requests."""

    engines: dict[str, ReplayedModel]
    shares: tuple[float, ...] = (1.0,)


SHAPES = {
    "world size 1": Shape({"one": engine(1, 8)}),
    "world size 2": Shape({"two": engine(2, 8)}),
    "world size 4": Shape({"four": engine(4, 16)}),
    "world size 8": Shape({"eight": engine(8, 32)}),
    "two models, 8 : 1": Shape({"big": engine(8, 32), "small": engine(1, 4)}, (0.3, 0.7)),
    "two models, 32 : 1": Shape({"big": engine(8, 128), "small": engine(1, 4)}, (0.1, 0.9)),
    "world sizes 1 and 2": Shape({"a": engine(1, 8, "same"), "b": engine(2, 16, "same")}, (0.5, 0.5)),
    "two object groups": Shape({"hybrid": engine(1, 8, hybrid=True)}),
    "world size 3": Shape({"three": engine(3, 24)}),
    "two models, 10 : 1": Shape({"big": engine(3, 240), "small": engine(2, 24)}, (0.3, 0.7)),
    "three object groups": Shape({"triple": engine(2, 8, hybrid=True)}),
}
SIZES = (0.35, 0.25)
"""L1 as a share of the bytes of all distinct chunks."""


def workload(shape: Shape) -> AccessLog:
    """Return agents' requests, each of one model at random."""
    traffic = AgentTraffic(
        requests=REQUESTS,
        seed=4,
        chunk_size=CHUNK,
        tenants=1,
        conversations=12,
        system_tokens=1200,
        tool_tokens=300,
        user_tokens=60,
        answer_tokens=120,
        turns=8,
        context_tokens=8000,
    )
    log, draw = traffic.generate(), np.random.default_rng(1)
    models = draw.choice(len(shape.engines), size=len(log), p=shape.shares).astype(np.int16)
    return replace(log, models=models, model_names=tuple(shape.engines), tenant_names=("",))


def footprint_bytes(shape: Shape, log: AccessLog) -> int:
    """Return the bytes of all distinct chunks."""
    total = 0
    for label, (name, one) in enumerate(shape.engines.items()):
        chunks = len(np.unique(log.chunk_ids[np.repeat(log.models == label, log.chunks_per_request)]))
        total += chunks * CHUNK * (one.kv_bytes_per_token or 0) * object_groups(name)
    return total


@contextmanager
def server(size: int) -> Iterator[ServerProcess]:
    """Start a fresh server with an L1 of `size` bytes, our module and the one that makes hybrid models."""
    with tempfile.TemporaryDirectory(prefix="shapes-") as logs, tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        arena = reserve(Path(shm), size)
        modules = [{"module_path": name, "config": {}} for name in ("benchmarks.hybrid_module", "agent_tools.server_module")]
        flags: dict[str, Any] = {
            "--l1-size-gb": size / 2**30,
            "--l1-devdax-path": str(arena),
            "--no-l1-use-lazy": True,
            "--shm-name": "",
            "--chunk-size": CHUNK,
            "--eviction-policy": "LRU",
            "--supported-transfer-mode": "auto",
            "--server-module": [json.dumps(module) for module in modules],
        }
        process = ServerProcess.launch(flags, Path(logs), extra={"PYTHONPATH": str(Path(__file__).parents[1])})
        try:
            asyncio.run(process.wait_ready(patience=600))  # on a machine that does other things too
            yield process
        finally:
            asyncio.run(process.stop())


def run_cell(name: str, share: float) -> dict[str, Any]:
    """Return what one server served and what the model says about it."""
    shape = SHAPES[name]
    log = workload(shape)
    size = int(share * footprint_bytes(shape, log)) // OBJECT * OBJECT
    with server(size) as process:
        polls: list[Poll] = []
        done = threading.Event()
        watcher = threading.Thread(target=lambda: asyncio.run(_poll(process.http_url, polls, done)))
        watcher.start()
        try:
            settings = ReplaySettings(clients=1, pace=log.duration / SECONDS, models=shape.engines)
            result = replay(log, process.rpc_url, settings)
        finally:
            done.set()
            watcher.join()
        time.sleep(1)  # for the event bus to drain
        return {"shape": name, "share": share, "l1_mb": size / MB} | asyncio.run(
            _compare(process.http_url, result.hit_rate, polls)
        )


async def _poll(url: str, polls: list[Poll], done: threading.Event) -> None:
    """Read the eviction tick counter about three times a second, at irregular moments."""
    deployment = ServerDeployment(url)
    while not done.is_set():
        now = await deployment.snapshot()
        if now.counters is not None:
            polls.append(Poll(now.asked_at, now.taken_at, now.counters.eviction_ticks))
        await asyncio.sleep(random.uniform(0.2, 0.5))  # noqa: S311  no secret
    await deployment.close()


async def _compare(url: str, client: float | None, polls: list[Poll]) -> dict[str, Any]:
    deployment = ServerDeployment(url)
    try:
        log, now, config = await deployment.access_log(), await deployment.snapshot(), await deployment.config()
    finally:
        await deployment.close()
    assert log is not None  # noqa: S101
    assert log.chunk_bytes is not None  # noqa: S101
    requested, hit = (sum(getattr(one, field) for one in now.tokens.values()) for field in ("requested", "hit_l1"))
    setting = ServerSetting(
        (config.max_size_mb or 0) * MB / log.chunk_bytes, config.eviction_watermark or 0, config.eviction_ratio or 0
    )
    clock = observed_clock(log, polls)
    known = predict_server(log, setting, clocks=clocks_near(clock, 20)) if clock else None
    unknown = predict_server(log, setting)
    labels = {log.model_names[label]: log.models == label for label in np.unique(log.models)}
    return {
        "requests": len(log),
        "live": hit / requested,
        "client": client,
        "failed_stores": now.counters.failed_stores if now.counters else None,
        "model": unknown.hit_rate,
        "model_observed_clock": None if known is None else known.hit_rate,
        "by_model": {
            name: float((known or unknown).hit_chunks[mask].sum() / log.chunks_per_request[mask].sum())
            for name, mask in labels.items()
        },
    }


def report(cells: list[dict[str, Any]]) -> str:
    """Return the cells as a Markdown table with its summary."""
    live = np.array([cell["live"] for cell in cells])
    best = np.array([cell["model_observed_clock"] or cell["model"] for cell in cells])
    off, blind = 100 * np.abs(best - live), 100 * np.abs(np.array([cell["model"] for cell in cells]) - live)
    lines = [
        "# The server model in the shapes of production",
        "",
        f"{len(cells)} cells, {os.cpu_count()} cores, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}. Error of the hit rate:"
        f" mean {off.mean():.2f} points, largest {off.max():.2f}, with the eviction ticks observed as the product does;"
        f" mean {blind.mean():.2f} and largest {blind.max():.2f} without.",
        "",
        "| shape | L1 MB | served | predicted | error, points | stores dropped, chunks |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for cell, error in zip(cells, off, strict=True):
        told = cell["model_observed_clock"] or cell["model"]
        lines.append(
            f"| {cell['shape']} | {cell['l1_mb']:.1f} | {cell['live']:.2%} | {told:.2%} | {error:.2f} |"
            f" {cell['failed_stores']:,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cells that are missing, and write the report after each."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cells", type=int, default=10**6, help="stop after so many new cells")
    arguments.add_argument("--only", default="", help="run only shapes whose name contains this")
    options = arguments.parse_args()
    store = RESULTS / "shapes.json"
    cells: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    done = {(cell["shape"], cell["share"]) for cell in cells}
    missing = [(name, share) for share in SIZES for name in SHAPES if (name, share) not in done and options.only in name]
    for name, share in missing[: options.cells]:
        cells.append(run_cell(name, share))
        store.write_text(json.dumps(cells, indent=1))
        (RESULTS / "shapes.md").write_text(report(cells))
        print(json.dumps(cells[-1]), flush=True)


if __name__ == "__main__":
    main()
