"""Compare the server model with a live `lmcache server`: workloads x L1 sizes x (watermark, ratio), with real KV.

Run from the repository root (about 30 s per cell, 20 minutes for the whole matrix)::

    PYTHONPATH=. python benchmarks/prediction_live.py [--cells 3] [--clients 4 | --l2]

Each cell replays a workload into a fresh server. Then it runs the model on the lookup-hash log that this server wrote, and
compares the hit rate with ``lmcache_mp_lookup_hit_tokens_total / lmcache_mp_lookup_requested_tokens_total``. Cells that are
already in the result file are not run again.
"""

import argparse
import datetime as dt
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from prediction import machine
from prometheus_client.parser import text_string_to_metric_families

from agent_tools.deployments.server.process import free_port
from agent_tools.prediction.eviction_clock import Poll, clocks_near, observed_clock
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.readers import read_lookup_log, read_mooncake
from agent_tools.workload.replay import ReplaySettings, replay

CHUNK_TOKENS, CHUNK_BYTES = 64, 4096
SECONDS = 22.0
KNOBS = ((0.8, 0.2), (0.8, 0.05), (0.9, 0.1), (0.6, 0.3))
SHARES = (0.15, 0.35, 0.7)
"""L1 as a share of the workload's distinct chunks. In 22 s ticks are rare: the smallest turns over in a few of them."""
L2_SHARE = 0.5
"""With --l2: L2 as a share of the workload's distinct chunks, behind the smallest L1."""
L2_TIERS = (("fs_native", "default"), ("fs_native", "retain"), ("mock", "default"), ("mock", "retain"))
"""Adapter and prefetch policy; ``mock`` (memory) refuses chunks when it is full, ``fs_native`` (a folder) outgrows its size."""
EVICTION = {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}
TRACES = Path(os.environ.get("LMCACHE_TRACES", Path(__file__).parents[2] / "shared" / "traces"))
TICKS = re.compile(r"^lmcache_mp_l1_eviction_loop_ticks_total(?:\{.*\})? (\S+)$", re.MULTILINE)
RESULTS = Path(__file__).parent / "results"


def workloads() -> dict[str, AccessLog]:
    """Two recorded workloads and one made up, with small chunks so that a replay costs little."""
    agents = AgentTraffic(requests=1500, seed=1, tenants=1).generate()
    logs = {
        "conversation": read_mooncake(TRACES / "mooncake_conversation.jsonl.gz", chunk_size=512).select(slice(0, 1500)),
        "agents": agents,
        "miniswe": read_mooncake(TRACES / "lmcache_agent_miniswe.jsonl.gz", chunk_size=256),
    }
    return {
        name: replace(log, chunk_size=CHUNK_TOKENS, tokens=log.chunks_per_request * CHUNK_TOKENS + 3)
        for name, log in logs.items()
    }


@dataclass
class Counters:
    """The server's counters, and what its tick counter showed while it worked."""

    url: str
    polls: list[Poll] = field(default_factory=list)

    def read(self) -> dict[str, float]:
        """Every series of ``/metrics``, summed over its labels."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(self._text()):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    @contextmanager
    def watching_ticks(self) -> Iterator[None]:
        """Poll the tick counter about four times a second, at irregular moments."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(random.uniform(0.1, 0.4)):  # noqa: S311 - no secret
                self._poll()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _poll(self) -> None:
        sent = time.time()
        found = TICKS.search(self._text())  # the whole text takes a parser long enough to disturb the replay
        self.polls.append(Poll(sent, time.time(), float(found[1]) if found else 0.0))

    def _text(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:  # noqa: S310 - our own server
            return str(answer.read(), "utf-8")


@dataclass(frozen=True)
class Cell:
    """One server and what it is asked."""

    workload: str
    share: float
    """L1 as a share of the workload's distinct chunks."""
    watermark: float
    ratio: float
    adapter: str = ""
    """Type of its L2; none if empty."""
    prefetch: str = "default"

    def setting(self, log: AccessLog) -> ServerSetting:
        """As the model takes it."""
        l2 = int(L2_SHARE * log.unique_chunks) if self.adapter else 0
        return ServerSetting(
            capacity_chunks=int(self.share * log.unique_chunks),
            watermark=self.watermark,
            ratio=self.ratio,
            l2_capacity_chunks=l2,
            l2_prefetch_policy=self.prefetch,  # type: ignore[arg-type]
            l2_hard_limit=self.adapter == "mock",
        )

    def l2_flags(self, setting: ServerSetting, folder: str) -> list[str]:
        """As the server takes its L2."""
        if not self.adapter:
            return []
        size = setting.l2_capacity_chunks * CHUNK_BYTES / 2**30
        own = {
            "mock": {"max_size_gb": size, "mock_bandwidth_gb": 10.0},
            "fs_native": {"base_path": folder, "max_capacity_gb": size},
        }
        adapter = {"type": self.adapter, **own[self.adapter], "eviction": EVICTION}
        return ["--l2-adapter", json.dumps(adapter), "--l2-prefetch-policy", self.prefetch]


@contextmanager
def server(setting: ServerSetting, log_folder: str, more: list[str]) -> Iterator[tuple[str, str]]:
    """A fresh `lmcache server` on loopback, set so; yields its RPC and HTTP addresses."""
    rpc, http = free_port(), free_port()
    size = int(setting.capacity_chunks) * CHUNK_BYTES
    arena = Path(f"/dev/shm/lmcache-bench-{os.getpid()}-{rpc}")  # noqa: S108 - a devdax arena must be a named file
    arena.touch()
    os.truncate(arena, size)
    command = [
        *(str(Path(sys.executable).with_name("lmcache")), "server", "--host", "127.0.0.1", "--port", str(rpc)),
        *("--http-host", "127.0.0.1", "--http-port", str(http), "--chunk-size", str(CHUNK_TOKENS)),
        *("--l1-size-gb", repr(size / 2**30), "--l1-devdax-path", str(arena), "--no-l1-use-lazy", "--shm-name", ""),
        *("--eviction-policy", "LRU", "--eviction-trigger-watermark", str(setting.watermark)),
        *("--eviction-ratio", str(setting.ratio), *more),
        *("--supported-transfer-mode", "auto", "--lookup-hash-log-dir", log_folder),
    ]
    quiet = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        _wait_for(f"http://127.0.0.1:{http}/status", process)
        arena.unlink()
        yield f"tcp://127.0.0.1:{rpc}", f"http://127.0.0.1:{http}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        arena.unlink(missing_ok=True)


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"lmcache server ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own server
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"no answer from {url}")


def run_cell(cell: Cell, log: AccessLog, clients: int) -> dict[str, Any]:
    """One replay, and what the model and LMCache's simulator say about it."""
    setting = cell.setting(log)
    folder, store = tempfile.mkdtemp(prefix="lookup-hashes-"), tempfile.mkdtemp(prefix="l2-")
    try:
        with server(setting, folder, cell.l2_flags(setting, store)) as (rpc, http):
            counters = Counters(http)
            settings = ReplaySettings(
                clients=clients, pace=log.duration / SECONDS, kv_bytes_per_token=CHUNK_BYTES // CHUNK_TOKENS
            )
            with counters.watching_ticks():
                replay(log, rpc, settings)
            time.sleep(0.5)  # for the event bus to drain
            values = counters.read()
        seen = read_lookup_log(folder)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(store)
    return {
        **asdict(cell),
        "l1_chunks": int(setting.capacity_chunks),
        "clients": clients,
        **_compare(seen, setting, values, counters.polls),
    }


def _compare(seen: AccessLog, setting: ServerSetting, values: dict[str, float], polls: list[Poll]) -> dict[str, Any]:
    counters = {name.removeprefix("lmcache_mp_"): value for name, value in values.items()}
    prediction = predict_server(seen, setting)
    clock = observed_clock(seen, polls)
    known = predict_server(seen, setting, clocks=clocks_near(clock, 20)) if clock else None
    live = counters["lookup_hit_tokens_total"] / counters["lookup_requested_tokens_total"]
    hit_l2 = counters.get("lookup_hit_l2_tokens_total", 0.0) / counters["lookup_requested_tokens_total"]
    return {
        "requests": len(seen),
        "live": live,
        "live_from_l2": hit_l2,
        "model_from_l2": float(np.mean([run.l2_hit_rate for run in prediction.runs])),
        "failed_chunks": counters.get("l1_allocation_failure_chunks_total", 0.0),
        "model": prediction.hit_rate,
        "interval": prediction.interval,
        "model_failed_chunks": prediction.failed_chunks,
        "model_observed_clock": known and known.hit_rate,
        "interval_observed_clock": known and known.interval,
        "period": clock.period if clock else None,
        "lmcache_simulator": _lmcaches_own(seen, int(setting.capacity_chunks + setting.l2_capacity_chunks)),
        "dropped_events": counters.get("event_bus_dropped_events_total", 0.0),
    }


def _lmcaches_own(log: AccessLog, chunks: int) -> float:
    from lmcache.tools.cache_simulator.simulator import simulate  # noqa: PLC0415 - takes seconds, and warns

    events = [
        {"chunk_hashes": log.request(i).tolist(), "seq_len": int(log.tokens[i]), "chunk_size": log.chunk_size}
        for i in range(len(log))
    ]
    return float(simulate(events, chunks, 1, fast=True)["total_hit_tokens"] / (len(log.chunk_ids) * log.chunk_size))


def report(cells: list[dict[str, Any]]) -> str:
    """The matrix as a Markdown table with its summary."""
    live = np.array([cell["live"] for cell in cells])
    model = np.abs(np.array([cell["model"] for cell in cells]) - live)
    observed = [np.nan if cell["model_observed_clock"] is None else cell["model_observed_clock"] for cell in cells]
    known = np.abs(np.array(observed) - live)
    theirs = np.abs(np.array([cell["lmcache_simulator"] for cell in cells]) - live)
    inside, inside_known = (
        sum(bool(cell[which]) and cell[which][0] <= cell["live"] <= cell[which][1] for cell in cells)
        for which in ("interval", "interval_observed_clock")
    )
    rows = [_row(cell) for cell in cells]
    quiet = np.array([cell["failed_chunks"] == 0 for cell in cells])
    summary = [
        f"{len(cells)} cells, {machine()}, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}.",
        "",
        "| absolute error of the token hit rate | mean | largest |",
        "|---|--:|--:|",
        f"| model, eviction phase unknown | {model.mean():.4f} | {model.max():.4f} |",
        f"| ... cells without failed stores ({quiet.sum()}) | {_mean(model[quiet]):.4f} | {model[quiet].max(initial=0):.4f} |",
        f"| ... cells with failed stores ({(~quiet).sum()}) | {_mean(model[~quiet]):.4f} | {model[~quiet].max(initial=0):.4f} |",
        f"| model, phase observed from the tick counter | {np.nanmean(known):.4f} | {np.nanmax(known):.4f} |",
        f"| LMCache's cache-simulator | {theirs.mean():.4f} | {theirs.max():.4f} |",
        "",
        f"Live value inside the 90 % interval: {inside} of {len(cells)} cells with the phase unknown, {inside_known} with it "
        "observed.",
        "",
        "| workload | L1 chunks | setting | live | failed chunks | model | 90 % interval | phase observed | simulator |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join(["# The server model against a live server", "", *summary, *rows]) + "\n"


def _row(cell: dict[str, Any]) -> str:
    lower, upper = cell["interval"]
    known = cell["model_observed_clock"]
    columns = [
        cell["workload"],
        f"{cell['l1_chunks']:,}",
        f"{cell['watermark']}/{cell['ratio']}"
        + (f", L2 {cell['adapter']} {cell['prefetch']}, {cell['live_from_l2']:.4f} from it" if cell.get("adapter") else ""),
        f"{cell['live']:.4f}",
        f"{cell['failed_chunks']:,.0f}",
        f"{cell['model']:.4f}",
        f"[{lower:.4f}, {upper:.4f}]",
        "-" if known is None else f"{known:.4f}",
        f"{cell['lmcache_simulator']:.4f}",
    ]
    return f"| {' | '.join(columns)} |"


def _mean(values: "np.ndarray[Any, Any]") -> float:
    return float(values.mean()) if len(values) else 0.0


def main() -> None:
    """Run the cells that are missing, and write the report after each."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cells", type=int, default=10**6, help="stop after so many new cells")
    arguments.add_argument("--clients", type=int, default=1, help="engines that send requests at the same time")
    arguments.add_argument("--l2", action="store_true", help="servers with an L2 instead")
    options = arguments.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # of Google's packages, which lmcache imports
    stem = "prediction_live" + ("" if options.clients == 1 else f"_{options.clients}_clients") + ("_l2" if options.l2 else "")
    store = RESULTS / f"{stem}.json"
    cells: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    logs = workloads()
    if options.l2:
        wanted = [Cell(name, SHARES[0], 0.8, 0.2, *tier) for tier, name in itertools.product(L2_TIERS, logs)]
    else:
        wanted = [Cell(name, share, *knobs) for knobs, share, name in itertools.product(KNOBS, SHARES, logs)]
    done = [{name: cell.get(name, default) for name, default in asdict(wanted[0]).items()} for cell in cells]
    todo = [cell for cell in wanted if asdict(cell) not in done]
    for cell in todo[: options.cells]:
        cells.append(run_cell(cell, logs[cell.workload], options.clients))
        store.write_text(json.dumps(cells, indent=1) + "\n")
        store.with_suffix(".md").write_text(report(cells))
        print(cells[-1], flush=True)
    print(report(cells))


if __name__ == "__main__":
    main()
