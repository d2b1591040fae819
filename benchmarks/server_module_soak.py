"""Run half an hour of traffic and changes on one real server with the module. Check its health and that its memory stays flat.

Run from the repository root::

    PYTHONPATH=. python benchmarks/server_module_soak.py [--minutes 30]

Two engines send 20 requests a second each. The benchmark kills both (SIGKILL) at a random moment within 20 s and starts two
others. About every second it changes a setting through the product's own client (policy, watermark, ratio, L1 size, L2 adapters,
prefetch policy) and reads the window. It creates a new client with each pair of engines.

The benchmark reads memory in two ways. Resident memory is the system's count after each pair of engines, including freed memory
that the allocators keep. Memory in use is the size of the server's live objects, read inside the server every few minutes in the
same state: no engine, no L2, an empty L1, and no prompt of a killed engine. Objects that are never freed make it grow; fragments
of freed memory do not.
"""

import argparse
import datetime as dt
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
from prediction import machine
from server_module import MB, Server, server

from agent_tools.deployments.server.deployment import ServerDeployment
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
SMALL = {"window_requests": 15_000, "window_chunks": 200_000, "window_seconds": 60, "tracked_chunks": 1_000}
SESSION_SECONDS = 10
MORE_FLAGS = [
    *("--server-module", json.dumps({"module_path": "server_memory"})),
    *("--session-ttl-seconds", str(SESSION_SECONDS)),
    *("--kv-event-log-size", "0"),
]
"""What tells the memory in use; and what LMCache itself lets grow is kept small. Prompts of killed engines it keeps ten seconds
here instead of ten minutes (it looks for them once a minute; what is in use at rest is read when it has). Its KV event log is
off: by default it holds 32,768 events, each with the token ids of a chunk, and takes hours to be full."""
REST = 150
"""Seconds from one reading of the memory in use to the next."""


TESTS = Path(__file__).parents[1] / "tests" / "server_module"
"""Where the module `server_memory` is."""


@contextmanager
def watched_server(l2_folder: str | None = None) -> Iterator[Server]:
    """The server with the module, and a second module that tells its memory."""
    path = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(TESTS)])}
    listed = [] if l2_folder is None else [{"type": "fs", "base_path": l2_folder}]
    with (
        mock.patch.dict(os.environ, path),
        server(32 * MB, MORE_FLAGS, arena_folder="/dev/shm", max_l1_mb=128, l2_adapters=listed, **SMALL) as one,  # noqa: S108
    ):
        yield one


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


def in_use(one: Server) -> dict[str, float]:
    """The memory in use with no engine, no L2, an empty L1 and no prompt of a killed engine, which LMCache holds for a while."""
    client = ServerDeployment(one.http_url)
    empty = {"eviction_policy": "lru", "max_size_mb": 32, "eviction_ratio": 0.2, "l2_adapters": []}
    io_loop.run(client.apply, ConfigUpdate.model_validate(empty), lambda _: None)
    io_loop.run(client.close)
    time.sleep(1)  # the last requests of the killed engines end
    httpx.post(f"{one.http_url}/cache/clear", json={"force": True}).raise_for_status()  # forced: they left locks behind
    deadline = time.monotonic() + SESSION_SECONDS + 75
    while status(one)["active_sessions"]:
        if time.monotonic() > deadline:
            raise RuntimeError("LMCache still holds prompts of killed engines")
        time.sleep(1)
    tracked = httpx.get(f"{one.http_url}/agent-tools/status").json()["recording"]["tracked_chunks"]
    return {**memory(one), "tracked_chunks": tracked}


def status(one: Server) -> dict[str, Any]:
    """What the server says of itself."""
    answer: dict[str, Any] = httpx.get(f"{one.http_url}/status").raise_for_status().json()
    return answer


def memory(one: Server, *, trim: bool = False) -> dict[str, float]:
    """What the server tells of its memory, in use or not."""
    answer: dict[str, float] = httpx.get(f"{one.http_url}/memory", params={"trim": trim}, timeout=60).raise_for_status().json()
    return answer


def soak(seconds: float) -> dict[str, Any]:
    """All of it; the figures."""
    draw, counts = random.Random(1), {"changes": 0, "refused": 0, "killed": 0, "clients": 0}  # noqa: S311  no secret
    resident: list[tuple[float, float]] = []
    at_rest: list[tuple[float, dict[str, float]]] = []
    refusals: list[str] = []
    with tempfile.TemporaryDirectory() as folder, watched_server(folder) as one:
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
            resident.append((passed, one.own_memory()))
            print(f"{passed:.0f} s: {counts}, {resident[-1][1]:.0f} MB", flush=True)
            io_loop.run(client.close)
            if passed >= REST * len(at_rest):
                at_rest.append((passed, in_use(one)))
                print(f"  at rest: {at_rest[-1][1]}", flush=True)
        return {**figures(one, seconds), **memory_figures(one, seconds, resident, at_rest), **counts, "refusals": refusals}


def figures(one: Server, seconds: float) -> dict[str, Any]:
    """What the server says of itself afterwards."""
    client = ServerDeployment(one.http_url)
    now, module = io_loop.run(client.snapshot), io_loop.run(client.admin.read, "/agent-tools/status")
    io_loop.run(client.close)
    return {
        "seconds": seconds,
        "healthy": now.health.healthy,
        "problems": now.health.problems,
        "lookups": now.counters.lookups if now.counters else None,
        "recording": module["recording"],
    }


def memory_figures(
    one: Server, seconds: float, resident: list[tuple[float, float]], at_rest: list[tuple[float, dict[str, float]]]
) -> dict[str, Any]:
    """How its memory went, and what of it free pages of malloc are."""
    at_rest.append((seconds, in_use(one)))
    return {
        "resident_mb": course(resident, seconds),
        "in_use_mb": course([(when, reading["in_use_mb"]) for when, reading in at_rest], seconds),
        "at_end": {"held": memory(one), "given_back": memory(one, trim=True)},
        "at_rest": at_rest,
        "resident": resident,
    }


def course(readings: list[tuple[float, float]], seconds: float) -> dict[str, float]:
    """Some readings as start, end, maximum and trend from the time on at which memory counts."""
    late = np.array([reading for reading in readings if reading[0] >= SETTLED * seconds])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 2 else float("nan")
    return {
        "settled": float(late[0, 1]),
        "end": float(late[-1, 1]),
        "largest": float(late[:, 1].max()),
        "mb_per_hour": 3600 * slope,
    }


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    health = "yes" if found["healthy"] else f"no: {found['problems']}"
    end, today = found["at_end"], dt.datetime.now(tz=dt.timezone.utc)
    rows = [
        f"| {name} | {row['settled']:.1f} | {row['end']:.1f} | {row['largest']:.1f} | {row['mb_per_hour']:+.1f} |"
        for name, row in (("in use, at rest", found["in_use_mb"]), ("resident", found["resident_mb"]))
    ]
    lines = [
        "# Changes on a server with the module, for a long time",
        "",
        f"{machine()}, {today:%Y-%m-%d}. {found['seconds'] / 60:.0f} minutes; {found['lookups']:,} lookups from engines of",
        f"which {found['killed']} were killed in the middle; {found['changes']} updates by {found['clients']} clients one after",
        f"the other, {found['refused']} refused.",
        "",
        f"Healthy at the end: {health}. Recording: {'on' if found['recording']['on'] else 'off'}.",
        "",
        f"| memory without L1, MB | after {SETTLED:.0%} of the time | at the end | at most | trend from then on, an hour |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
        f"The module's history is of {SMALL['tracked_chunks']:,} chunks, its window of {SMALL['window_seconds']} s; LMCache"
        f" drops the prompts of killed engines after {SESSION_SECONDS} s instead of ten minutes: so all is full early. LMCache's"
        " own KV event log is off: by default it holds 32,768 events, each with the token ids of a chunk, and fills for hours.",
        "",
        "In use is what live objects occupy, with no engine, no L2 and L1 empty each time; resident has what the allocators hold",
        f"of freed memory on top: at the end {end['held']['malloc_free_mb']:.1f} MB of malloc's. `malloc_trim` then brought it",
        f"from {end['held']['resident_mb']:.1f} to {end['given_back']['resident_mb']:.1f} MB.",
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
