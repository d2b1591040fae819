"""Measure how long we take to read a server with very many series, and what another cache notices of it.

Run from the repository root (two minutes)::

    PYTHONPATH=. python benchmarks/series.py [--series 1000000]

Two real `lmcache server`s get traffic. A process in front of the first one answers ``/metrics`` with a page of any length and
passes everything else on. There are two pages. ``counters`` has the token counters of so many tenants alone, all of which we
read. ``whole page`` repeats each series of the real page that names a tenant, histograms too, and we need few of those.

The second server is read all the time, first alone and then while the first one is read. Clients choose the names of tenants, so
the second server's readings must not wait for the first one's.
"""

import argparse
import asyncio
import datetime as dt
import http.client
import http.server
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from prediction import machine

from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import replay

RESULTS = Path(__file__).parent / "results" / "series.json"
ROUNDS = 7
EVERY = 0.1
"""Seconds between two readings of the second server."""
ALONE = 20.0
"""Seconds in which only the second server is read."""
TRAFFIC = AgentTraffic(requests=40, tenants=2, seed=3).generate()
TENANT = "tenant-1"


@dataclass(frozen=True)
class Figures:
    """What was measured of one page."""

    page: str
    series: int
    megabytes: float
    seconds: list[float]
    """Of each reading of the first server, from the call to the figures."""
    cpu_seconds: list[float]
    """Of our process in the same time, readings of the second server included."""
    other_alone_ms: list[float]
    """Each reading of the second server, while nothing else is read."""
    other_meanwhile_ms: list[float]
    memory_mb: float
    """Most memory of our process beyond what it had before."""


def counters(real: str, series: int) -> str:
    """The real page, and after it the token counters of many tenants."""
    kinds = ("requested", "hit", "hit_l1", "hit_l2")
    return real + "".join(
        f'lmcache_mp_lookup_{kind}_tokens_total{{cache_salt="{tenant:032x}",model_name="org/model-{tenant % 20}"}} 256.0\n'
        for kind in kinds
        for tenant in range(series // len(kinds))
    )


def whole_page(real: str, series: int) -> str:
    """The real page, each of its families repeated for many tenants, as the exporter orders them."""
    lines = real.splitlines()
    of_tenant = sum(f'"{TENANT}"' in line for line in lines)
    families: list[str] = []
    for _, family in groupby(lines, key=lambda line: line.partition("{")[0].removesuffix("_bucket").removesuffix("_count")):
        block = [*family]
        families += block
        mine = "\n".join(line for line in block if f'"{TENANT}"' in line)
        if mine:
            families += (mine.replace(TENANT, f"{tenant:032x}") for tenant in range(series // of_tenant))
    return "\n".join(families) + "\n"


PAGES: dict[str, Callable[[str, int], str]] = {"counters": counters, "whole page": whole_page}


def serve(target: str, page: bytes, port: "multiprocessing.Queue[int]") -> None:
    """Answer ``/metrics`` with the page and pass every other reading on."""

    class Front(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Answer."""
            status, body, kind = 200, page, "text/plain; version=0.0.4; charset=utf-8"
            if self.path != "/metrics":
                connection = http.client.HTTPConnection(urlsplit(target).netloc)
                connection.request("GET", self.path)
                answer = connection.getresponse()
                status, body, kind = answer.status, answer.read(), answer.headers["Content-Type"]
                connection.close()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front) as server:
        port.put(server.server_address[1])
        server.serve_forever()


@contextmanager
def front(target: str, page: bytes) -> Iterator[str]:
    """A process in front of the server; its address."""
    context = multiprocessing.get_context("spawn")
    port: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=serve, args=(target, page, port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()


async def measured(page: str, url: str, other_url: str, size: int, series: int) -> Figures:
    """Read the first server `ROUNDS` times, and the second one alone and meanwhile."""
    first, second = ServerDeployment(url), ServerDeployment(other_url)
    process, meanwhile = psutil.Process(), list[float]()
    try:
        for _ in range(3):
            await second.snapshot()
        alone = await read_for(second, lambda: asyncio.sleep(ALONE))
        before, most = process.memory_info().rss, [0]
        watching = threading.Thread(target=watch, args=(process, most, stop := threading.Event()))
        watching.start()
        seconds, cpu = list[float](), list[float]()
        for _ in range(ROUNDS):
            began, used = time.perf_counter(), time.process_time()
            meanwhile += await read_for(second, first.snapshot)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
            await asyncio.sleep(1)
        stop.set()
        watching.join()
    finally:
        await first.close()
        await second.close()
    return Figures(page, series, size / 1e6, seconds, cpu, alone, meanwhile, (most[0] - before) / 1e6)


async def read_for(deployment: ServerDeployment, wait: Callable[[], Awaitable[object]]) -> list[float]:
    """Read until something else is done; milliseconds of each reading."""
    took: list[float] = []
    waiting = asyncio.ensure_future(wait())
    while not waiting.done():
        began = time.perf_counter()
        await deployment.snapshot()
        took.append(1e3 * (time.perf_counter() - began))
        await asyncio.wait([waiting], timeout=EVERY)
    await waiting
    return took


def watch(process: psutil.Process, most: list[int], stop: threading.Event) -> None:
    """Keep the most memory seen."""
    while not stop.wait(0.05):
        most[0] = max(most[0], process.memory_info().rss)


def report(found: list[Figures]) -> str:
    """The figures as Markdown."""
    rows = [
        f"| {one.page} | {one.series:,} | {one.megabytes:.0f} | {statistics.median(one.seconds):.2f}"
        f" ({min(one.seconds):.2f} to {max(one.seconds):.2f}) | {statistics.median(one.cpu_seconds):.2f}"
        f" | {told(one.other_alone_ms)} | {told(one.other_meanwhile_ms)} | {one.memory_mb:.0f} |"
        for one in found
    ]
    today = dt.datetime.now(tz=dt.timezone.utc)
    return "\n".join(
        [
            "# Very many series",
            "",
            f"{machine()}, {today:%Y-%m-%d}. Seconds from the call to the figures, over HTTP, median of {ROUNDS} readings (least",
            "to most); CPU seconds of our process in the same time; and the readings of another, healthy server by the same",
            "process, in ms (median, 95th percentile, most).",
            "",
            "| page | series | MB | s | CPU s | other server alone | other server meanwhile | memory, MB |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
        ]
    )


def told(milliseconds: list[float]) -> str:
    """Median, 95th percentile and most."""
    return f"{statistics.median(milliseconds):.0f}, {statistics.quantiles(milliseconds, n=20)[-1]:.0f}, {max(milliseconds):.0f}"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=1_000_000)
    series = parser.parse_args().series
    flags = {"--l1-size-gb": 16 / 1024, "--eviction-policy": "LRU", "--supported-transfer-mode": "auto"}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        servers = [ServerProcess.launch(flags, Path(folder)) for _ in range(2)]
        try:
            for server in servers:
                io_loop.run(server.wait_ready)
                replay(TRAFFIC, server.rpc_url)
            real = httpx.get(f"{servers[0].http_url}/metrics", trust_env=False).text
            for name, page_of in PAGES.items():
                page = page_of(real, series).encode()
                lines = sum(not line.startswith(b"#") for line in page.splitlines())
                with front(servers[0].http_url, page) as url:
                    found.append(io_loop.run(measured, name, url, servers[1].http_url, len(page), lines))
                print(report(found[-1:]), flush=True)
        finally:
            for server in servers:
                io_loop.run(server.stop)
    RESULTS.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(report(found))


if __name__ == "__main__":
    sys.exit(main())
