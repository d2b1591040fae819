"""Measure what `agent_tools.server_module` costs a real `lmcache server`, and how 100 changes under full traffic affect requests.

Run from the repository root (about ten minutes)::

    PYTHONPATH=. python benchmarks/server_module.py [--pairs 20] [--changes 100]

Two servers run side by side, one with the module and one without. Neither writes a lookup-hash log. Both get the same requests
from an empty L1, in alternating order. Each pair gives the ratio of requests per second and the ratio of the server's CPU time
per request. Other load on the machine disturbs the CPU time less.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from prediction import machine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "server_module"))
from changes import Change, random_changes, traffic_until
from module_client import ModuleClient

from agent_tools.deployments.server.command_line import Flags, argv
from agent_tools.deployments.server.process import QUIET, free_port
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

RESULTS = Path(__file__).parent / "results" / "server_module.json"
TRAFFIC = AgentTraffic(requests=600, conversations=12, context_tokens=16_000, seed=2, tenants=2).generate()
MB = 2**20


class Server:
    """A server process of which the whole command line is ours."""

    def __init__(self, process: "subprocess.Popen[bytes]", http_port: int, rpc_port: int) -> None:
        self._process = psutil.Process(process.pid)
        self.http_url, self.rpc_url = f"http://127.0.0.1:{http_port}", f"tcp://127.0.0.1:{rpc_port}"

    def cpu(self) -> float:
        """Seconds of CPU used so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> float:
        """Resident memory, MB."""
        return float(self._process.memory_info().rss / MB)

    def own_memory(self) -> float:
        """Resident memory without what is mapped from files, L1's arenas among them, MB."""
        info = self._process.memory_info()
        return float((info.rss - info.shared) / MB)


@contextlib.contextmanager
def server(size: int, more_flags: Sequence[str] = (), **module: object) -> Iterator[Server]:
    """A server with an L1 of one devdax arena of `size` bytes; with the module when a config for it is given."""
    arena, http, rpc = Path(tempfile.mkstemp(dir="/dev/shm")[1]), free_port(), free_port()
    with arena.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    flags: Flags = {
        "--host": "127.0.0.1",
        "--port": rpc,
        "--http-host": "127.0.0.1",
        "--http-port": http,
        "--l1-size-gb": size / 2**30,
        "--l1-devdax-path": str(arena),
        "--no-l1-use-lazy": True,
        "--shm-name": "",
        "--eviction-policy": "LRU",
        "--supported-transfer-mode": "auto",
    }
    if module:
        flags["--server-module"] = json.dumps({"module_path": "agent_tools.server_module", "config": module})
    command = [sys.executable, "-c", "from lmcache.cli.main import main; main()", "server", *argv(flags), *more_flags]
    process = subprocess.Popen(command, env=os.environ | QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        started = Server(process, http, rpc)
        _wait_for(started.http_url)
        arena.unlink()
        yield started
    finally:
        process.terminate()
        process.wait(30)
        arena.unlink(missing_ok=True)


def _wait_for(url: str) -> None:
    for _ in range(900):
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/status").raise_for_status()
            return
        time.sleep(0.1)
    raise RuntimeError(f"no answer from {url}")


def turn(to: Server) -> tuple[float, float]:
    """One replay from an empty L1: requests per second, and CPU milliseconds of the server per request."""
    httpx.post(f"{to.http_url}/cache/clear").raise_for_status()
    before = to.cpu()
    result = replay(TRAFFIC, to.rpc_url, ReplaySettings(clients=4, kv_bytes_per_token=16))
    return result.requests / result.seconds, 1000 * (to.cpu() - before) / result.requests


def overhead(pairs: int) -> dict[str, Any]:
    """Paired ratios with/without the module, and both servers' memory."""
    with server(64 * MB) as plain, server(64 * MB, arena_folder="/dev/shm", max_l1_mb=1024) as with_module:  # noqa: S108
        started = {"plain": plain.rss(), "module": with_module.rss()}
        turn(plain), turn(with_module)  # both warm
        rows = []
        for number in range(pairs):
            order = (plain, with_module) if number % 2 else (with_module, plain)
            figures = {one is with_module: turn(one) for one in order}
            rows.append((*figures[False], *figures[True]))
            print(f"pair {number}: {rows[-1]}", flush=True)
        table = np.array(rows)
        recorded = ModuleClient(with_module).ask("GET", "status")["recording"]
        return {
            "pairs": pairs,
            "requests_per_turn": len(TRAFFIC),
            "requests_per_second": {"plain": float(np.median(table[:, 0])), "module": float(np.median(table[:, 2]))},
            "cpu_ms_per_request": {"plain": float(np.median(table[:, 1])), "module": float(np.median(table[:, 3]))},
            "throughput_ratio": interval(table[:, 2] / table[:, 0]),
            "cpu_ratio": interval(table[:, 3] / table[:, 1]),
            "rss_mb_started": started,
            "rss_mb_ended": {"plain": plain.rss(), "module": with_module.rss()},
            "recorded": recorded,
        }


def interval(ratios: "np.ndarray[Any, Any]") -> dict[str, float]:
    """Geometric mean of paired ratios with its 90 % bootstrap interval."""
    logs = np.log(ratios)
    draws = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(axis=1)
    low, high = np.exp(np.quantile(draws, (0.05, 0.95)))
    return {"mean": float(np.exp(logs.mean())), "low": float(low), "high": float(high)}


FILL = """
import os, psutil
from types import SimpleNamespace
import lmcache.v1.mp_observability.event  # loaded in a server anyway, so no part of what is measured
from lmcache.v1.distributed.api import ObjectKey
import numpy as np
from agent_tools.server_module.history import ChunkId, History
from agent_tools.server_module.lookups import Lookup
from agent_tools.server_module.options import Options
from agent_tools.server_module.window import Window

class Bus:
    subscribe = staticmethod(lambda *_: None)

options, draw = Options(), np.random.default_rng(0)
before = psutil.Process().memory_info().rss
window = Window(options.window_requests, options.window_chunks, options.window_seconds)
history = History(Bus(), options.tracked_chunks, lambda: ())
for number in range(options.window_requests):
    tracked = number < options.tracked_chunks // 20 - 100
    hashes = [draw.bytes(32) for _ in range(20 if tracked else 16)]
    lookup = Lookup(number / 1000, "model", f"tenant-{number % 50}", 5120, hashes, 4, 0)
    window.add(lookup)
    if tracked:
        history.add(lookup)
        keys = [ObjectKey(one, "model", 0x01000100, 0, lookup.tenant) for one in hashes]  # as if none were in L1 any more
        history._stored(SimpleNamespace(timestamp=1.0, metadata={"keys": keys}))
print((psutil.Process().memory_info().rss - before) / 2**20, len(history), window.bounds["requests"], window.bounds["chunks"])
"""


def full_memory() -> dict[str, float]:
    """Memory of window and history when both are filled to their default bounds, in a process of their own."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FILL], capture_output=True, text=True, check=True)  # noqa: S603
    mb, tracked, requests, chunks = (float(one) for one in done.stdout.split()[-4:])
    return {"mb": mb, "tracked_chunks": tracked, "requests": requests, "chunks": chunks}


def changes(count: int) -> dict[str, Any]:
    """Random changes under full traffic of four clients; the traffic fails loudly when one request does."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server(16 * MB, arena_folder="/dev/shm", max_l1_mb=96, l2_adapters=[{"type": "fs", "base_path": folder}]) as one,  # noqa: S108
    ):
        module = ModuleClient(one)
        module.ask("PUT", "arenas", json={"total_mb": 64})
        module.ask("PUT", "eviction", json={"watermark": 0.95})
        done, before = threading.Event(), one.rss()
        with ThreadPoolExecutor(1) as pool:
            traffic = pool.submit(traffic_until, done, module)
            try:
                seconds = [timed(change) for change in random_changes(module, Path(folder), count)]
            finally:
                done.set()
            asked = traffic.result()
        recording = module.ask("GET", "status")["recording"]
        return {
            "changes": count,
            "requests_meanwhile": recording["window"]["next"],
            "failed_requests": 0,  # `traffic_until` raises otherwise
            "keys_stored": asked,
            "keys_found": module.objects(),
            "dropped_stores": module.counter("l1_allocation_failure_chunks"),
            "seconds": {"median": float(np.median(seconds)), "p99": float(np.quantile(seconds, 0.99)), "max": max(seconds)},
            "healthy": module.status()["is_healthy"],
            "rss_mb": {"before": before, "after": one.rss()},
        }


def timed(change: Change) -> float:
    """Seconds it takes, asking and answering included."""
    began = time.monotonic()
    change()
    return time.monotonic() - began


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    cost, full, made = result["overhead"], result["full_memory"], result["changes"]
    lookups = cost["recorded"]["window"]["next"]
    speed, cpu, seconds = cost["throughput_ratio"], cost["cpu_ratio"], made["seconds"]
    rss = {when: cost[f"rss_mb_{when}"]["module"] - cost[f"rss_mb_{when}"]["plain"] for when in ("started", "ended")}
    return f"""# The module inside `lmcache server`

{result["machine"]}, {result["date"]}; load of the machine at the start {result["load"]:.1f}.

| with the module / without, {cost["pairs"]} pairs of {cost["requests_per_turn"]} requests, 4 clients | ratio | 90 % interval |
|---|--:|--:|
| requests per second | {speed["mean"]:.4f} | [{speed["low"]:.4f}, {speed["high"]:.4f}] |
| CPU time of the server per request | {cpu["mean"]:.4f} | [{cpu["low"]:.4f}, {cpu["high"]:.4f}] |

Resident memory: {rss["started"]:+.1f} MB when started, {rss["ended"]:+.1f} MB after {lookups:,} lookups.
Window and history filled to their default bounds ({full["requests"]:,.0f} lookups, {full["chunks"]:,.0f} chunk
references, {full["tracked_chunks"]:,.0f} tracked chunks): {full["mb"]:.1f} MB.

{made["changes"]} random changes (policy, watermark, ratio, L1 size, L2 adapters, prefetch policy) under the traffic of 4 clients:
{made["requests_meanwhile"]:,} requests meanwhile, {made["failed_requests"]} failed; {made["keys_stored"]:,} keys stored,
{made["keys_found"]:,} found afterwards. Seconds a change: median {seconds["median"]:.2f}, 99th percentile {seconds["p99"]:.2f},
longest {seconds["max"]:.2f}. Server healthy: {"yes" if made["healthy"] else "no"}.
"""


def main() -> None:
    """All of it, written to ``benchmarks/results``."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=20)
    arguments.add_argument("--changes", type=int, default=100)
    options = arguments.parse_args()
    result = {
        "machine": machine(),
        "date": f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}",
        "load": os.getloadavg()[0],
        "full_memory": full_memory(),
        "changes": changes(options.changes),
        "overhead": overhead(options.pairs),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()
