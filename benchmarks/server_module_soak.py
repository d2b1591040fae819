"""Half an hour of traffic and changes on one real server with the module: is it healthy at the end, and its memory flat?

Run from the repository root::

    PYTHONPATH=. python benchmarks/server_module_soak.py [--minutes 30]

Two engines send 20 requests a second each; both are killed (SIGKILL) at a random moment within 20 s, and others take their place.
Every second or so something is changed through the product's own client (policy, watermark, ratio, L1 size, L2 adapters, prefetch
policy) and the window is read; with each two engines the client is made anew too.
"""

import argparse
import datetime as dt
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from prediction import machine
from server_module import MB, Server, server

from agent_tools.deployments.server import ServerDeployment
from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate

RESULTS = Path(__file__).parent / "results" / "server_module_soak.json"
LARGEST_MB = 96
ENGINE = """
import sys
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay
traffic = AgentTraffic(requests=4000, conversations=24, context_tokens=8_000, seed=int(sys.argv[2]), tenants=4).generate()
while True:
    replay(traffic, sys.argv[1], ReplaySettings(clients=2, kv_bytes_per_token=32, pace=traffic.duration / float(sys.argv[3])))
"""
SETTLED = 0.3
"""Share of the time after which memory counts: by then window and history are full, which are made small for it."""
SMALL = {"window_requests": 15_000, "window_chunks": 200_000, "window_seconds": 60, "tracked_chunks": 20_000}


@contextmanager
def engine(rpc_url: str, seed: int, seconds: float = 200) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that sends 4,000 requests in `seconds`, over and over, until it is killed."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", ENGINE, rpc_url, str(seed), str(seconds)])  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def update(draw: random.Random, folder: Path) -> ConfigUpdate:
    """Something to change."""
    adapters: list[list[dict[str, Any]]] = [[], [{"type": "fs", "settings": {"base_path": str(folder)}}]]
    return ConfigUpdate.model_validate(
        draw.choice(
            [
                {"eviction_policy": draw.choice(["lru", "arc", "noop"])},
                {"eviction_watermark": round(draw.uniform(0.5, 0.95), 2), "eviction_ratio": round(draw.uniform(0.05, 0.5), 2)},
                {"eviction_policy": "lru", "max_size_mb": draw.randint(32, LARGEST_MB), "eviction_ratio": 0.2},
                {"l2_adapters": draw.choice(adapters), "l2_prefetch_policy": draw.choice(["default", "retain"])},
            ]
        )
    )


def fill(one: Server, client: ServerDeployment) -> None:
    """Fill the largest L1 there will be: LMCache keeps some kilobytes about each object, which would else look like growth."""
    largest = {"max_size_mb": LARGEST_MB, "eviction_policy": "noop"}
    io_loop.run(client.apply, ConfigUpdate.model_validate(largest), lambda _: None)
    seed = 0
    while (now := io_loop.run(client.snapshot)).l1_used_bytes < 0.95 * now.l1_total_bytes:
        seed += 1
        with engine(one.rpc_url, seed, seconds=10):  # each asks for other prompts
            time.sleep(12)


def soak(seconds: float) -> dict[str, Any]:
    """All of it; the figures."""
    draw, counts = random.Random(1), {"changes": 0, "refused": 0, "killed": 0, "clients": 0}  # noqa: S311  no secret
    memory: list[tuple[float, float]] = []
    refusals: list[str] = []
    with server(32 * MB, arena_folder="/dev/shm", max_l1_mb=128, **SMALL) as one, tempfile.TemporaryDirectory() as folder:  # noqa: S108
        first = ServerDeployment(one.http_url)
        fill(one, first)
        io_loop.run(first.close)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            client = ServerDeployment(one.http_url)
            counts["clients"] += 1
            with engine(one.rpc_url, counts["clients"]), engine(one.rpc_url, 1000 + counts["clients"]):
                until = time.monotonic() + draw.uniform(5, 20)
                while time.monotonic() < until:
                    try:
                        io_loop.run(client.apply, update(draw, Path(folder)), lambda _: None)
                        counts["changes"] += 1
                    except LMCacheToolError as error:
                        counts["refused"] += 1
                        refusals.append(f"{passed:.0f} s: {error}")
                    io_loop.run(client.access_log)
                    time.sleep(draw.uniform(0, 1))
            counts["killed"] += 2
            memory.append((passed, one.own_memory()))
            print(f"{passed:.0f} s: {counts}, {memory[-1][1]:.0f} MB", flush=True)
            io_loop.run(client.close)
        return {**figures(one, seconds, memory), **counts, "refusals": refusals}


def figures(one: Server, seconds: float, memory: list[tuple[float, float]]) -> dict[str, Any]:
    """What the server says of itself afterwards, and how its memory went."""
    client = ServerDeployment(one.http_url)
    now, status = io_loop.run(client.snapshot), io_loop.run(client.admin.read, "/agent-tools/status")
    io_loop.run(client.close)
    late = np.array([reading for reading in memory if reading[0] >= SETTLED * seconds])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else float("nan")
    return {
        "seconds": seconds,
        "healthy": now.health.healthy,
        "problems": now.health.problems,
        "lookups": now.counters.lookups if now.counters else None,
        "recording": status["recording"],
        "own_memory_mb": {"settled": float(late[0, 1]), "end": float(late[-1, 1]), "largest": float(late[:, 1].max())},
        "mb_per_hour_after_settling": 3600 * slope,
    }


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    memory, health = found["own_memory_mb"], "yes" if found["healthy"] else f"no: {found['problems']}"
    today = dt.datetime.now(tz=dt.timezone.utc)
    lines = [
        "# Changes on a server with the module, for a long time",
        "",
        f"{machine()}, {today:%Y-%m-%d}. {found['seconds'] / 60:.0f} minutes; {found['lookups']:,} lookups from engines of",
        f"which {found['killed']} were killed in the middle; {found['changes']} updates by {found['clients']} clients one after",
        f"the other, {found['refused']} refused.",
        "",
        f"* Healthy at the end: {health}. Recording: {'on' if found['recording']['on'] else 'off'}.",
        f"* Memory without L1: {memory['settled']:.0f} MB after {SETTLED:.0%} of the time, {memory['end']:.0f} MB at the end,",
        f"  at most {memory['largest']:.0f} MB; trend from then on {found['mb_per_hour_after_settling']:+.1f} MB an hour.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    found = soak(60 * parser.parse_args().minutes)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()
