"""Measure how long `tune_fleet` takes to read 100 servers, compared with the raw HTTP calls that it makes.

Run from the repository root::

    PYTHONPATH=. python benchmarks/fleet.py

The servers are stand-ins: another process listens on 100 ports and returns on each the recorded answers of one real
`lmcache server`.
"""

import argparse
import asyncio
import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from overhead import SEEN
from prediction import machine

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations
from agent_tools.tuning.fleet_state import FleetContext
from agent_tools.tuning.tune_fleet import build_tune_fleet
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

RESULTS = Path(__file__).parent / "results"
SERVERS = 100
ROUNDS = 5
PATHS = tuple(path for path in SEEN if "window" not in path)
STAND_IN = """
import asyncio, json, sys
answers = json.load(open(sys.argv[1]))

async def talk(reader, writer):
    while request := await reader.readline():
        path = request.split()[1].decode()
        while (await reader.readline()).strip():
            pass
        status, kind, body = answers.get(path, (404, "application/json", "{}"))
        data = body.encode()
        head = f"HTTP/1.1 {status} X\\r\\nContent-Type: {kind}\\r\\nContent-Length: {len(data)}\\r\\n\\r\\n"
        writer.write(head.encode() + data)
    writer.close()

async def main():
    servers = [await asyncio.start_server(talk, "127.0.0.1", 0) for _ in range(int(sys.argv[2]))]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def recorded(folder: Path) -> Path:
    """What one real server answers to the calls that reading it needs, after some traffic."""
    deployment = EmbeddedDeployment(EmbeddedOptions(l1_size_mb=32), folder)
    try:
        server = io_loop.run(deployment.started)
        replay(AgentTraffic(requests=150, seed=3).generate(), server.rpc_url, ReplaySettings(kv_bytes_per_token=32))
        answers = {path: httpx.get(server.http_url + path, trust_env=False) for path in (*PATHS, "/agent-tools/window?since=0")}
    finally:
        io_loop.run(deployment.close)
    # The window is msgpack, which the stand-in does not speak: its servers are as one without our module.
    status = json.loads(answers["/status"].text)
    status.pop("agent_tools", None)
    told = {
        path: (one.status_code, one.headers["content-type"], one.text) for path, one in answers.items() if "window" not in path
    }
    told["/status"] = (200, "application/json", json.dumps(status))
    file = folder / "answers.json"
    file.write_text(json.dumps(told))
    return file


@contextmanager
def stand_ins(answers: Path) -> Iterator[list[str]]:
    """Addresses of `SERVERS` stand-ins in one process of their own."""
    process = subprocess.Popen([sys.executable, "-c", STAND_IN, str(answers), str(SERVERS)], stdout=subprocess.PIPE)  # noqa: S603
    try:
        assert process.stdout is not None  # noqa: S101  piped
        yield [f"http://127.0.0.1:{port}" for port in json.loads(process.stdout.readline())]
    finally:
        process.kill()
        process.wait()


async def raw(urls: list[str]) -> float:
    """Seconds that the same calls take without us, side by side."""
    clients = [httpx.AsyncClient(base_url=url, trust_env=False) for url in urls]
    began = time.perf_counter()
    await asyncio.gather(*(client.get(path) for client in clients for path in PATHS))
    seconds = time.perf_counter() - began
    await asyncio.gather(*(client.aclose() for client in clients))
    return seconds


def ours(urls: list[str], folder: Path) -> tuple[float, int]:
    """(seconds of a run that reads all, from nothing; servers read)."""
    caches = {f"server-{number:03}": CacheSettings(target=url) for number, url in enumerate(urls)}
    operations = Operations(Registry(Settings(caches=caches, state_folder=folder)))
    graph = build_tune_fleet(operations=operations).compile()
    began = time.perf_counter()
    report: Any = graph.invoke({}, context=FleetContext(caches=tuple(caches), mode="observe", window_seconds=0))["fleet_report"]
    seconds = time.perf_counter() - began
    io_loop.run(operations.close)
    return seconds, SERVERS - len(report["left_out"])


def main() -> None:
    """Measure, print, and write the results."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name, stand_ins(recorded(Path(name))) as urls:
        runs = [(*ours(urls, Path(name)), asyncio.run(raw(urls))) for _ in range(ROUNDS)]
    seconds, read, alone = (
        statistics.median(run[0] for run in runs),
        min(run[1] for run in runs),
        statistics.median(r[2] for r in runs),
    )
    today = dt.datetime.now(tz=dt.timezone.utc)
    text = "\n".join(
        (
            f"# A fleet of {SERVERS}",
            "",
            f"{machine()}, {today:%Y-%m-%d}. Medians of {ROUNDS} runs, each in turn with its raw HTTP"
            f" calls, against {SERVERS} stand-ins in another process.",
            "",
            f"* `tune_fleet` reads {read} of {SERVERS} servers, connections and all, in {seconds:.2f} s (target 3 s); the same"
            f" calls by httpx alone take {alone:.2f} s: {seconds / alone:.2f} times as long.",
            "",
        )
    )
    print(text)
    (RESULTS / "fleet.md").write_text(text)
    (RESULTS / "fleet.json").write_text(json.dumps({"seconds": seconds, "raw_seconds": alone, "read": read}, indent=1) + "\n")


if __name__ == "__main__":
    main()
