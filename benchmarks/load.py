"""Run fifty agents that poll one real server and five that change it, for ten minutes. Is anything slow, stuck or leaking?

Run from the repository root::

    PYTHONPATH=. python benchmarks/load.py [--minutes 10]

All agents run in one process and share the tools of one `LMCacheToolkit`, as in one orchestrator. A poll is one call of a reading
tool. At the same time the benchmark makes the raw HTTP calls behind these tools, one tool at a time and on separate connections,
so that it measures the server's own answer time under the same load. Another process sends an engine's requests to the server.
Every ten seconds the benchmark counts open connections, files and memory, in its own process and in the server. It reads memory
in two ways, like the soak test: resident memory is the system's count, including freed memory that allocators keep; memory in use
is what is not freed.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from overhead import RAW, timed
from prediction import machine
from server_module import Server
from server_module_soak import TESTS, engine, watched_server
from server_module_soak import memory as memory_of

from agent_tools import LMCacheToolkit
from agent_tools.caches import history as observation
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.log import stories
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ChangeOutcome
from agent_tools.operations import Operations
from agent_tools.wire.http_client import LIMITS

sys.path.append(str(TESTS))
import server_memory

RESULTS = Path(__file__).parent / "results" / "load.json"
READERS, CHANGERS = 50, 5
PAUSE = (1.0, 5.0)
"""Seconds between two polls of one agent, and between two changes of one."""
PROBE = 0.2
"""Seconds between two raw readings."""
STUCK = 60.0
"""Seconds after which a call counts as stuck."""
WARM = 0.2
"""Share of the time after which what is held counts: by then connections are open and the recorded window is full."""
EVERY = 10.0
"""Seconds between two countings."""
KEPT = 500
"""Readings that are kept, instead of 7200, so that there are as many early: they are the most that grows by design."""
CLEAR = {
    "busy": "another change of",
    "stale": "has changed since",
    "stale before planning": "as the plan with fingerprint",
    "nothing to change": "already has these settings",
    "undone by others": "is not in force",
}
"""What an agent that comes second is told."""


@dataclass
class Load:
    """What the agents did and saw."""

    ours: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in RAW})
    """Milliseconds of each call, by tool."""
    raw: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in RAW})
    """Of the raw calls that the tool needs."""
    changes: Counter[str] = field(default_factory=Counter)
    """How attempts to change ended."""
    problems: list[str] = field(default_factory=list)
    """What should not have been."""
    held: list[dict[str, float]] = field(default_factory=list)
    """What was open and held, and when."""


class Tools:
    """The toolkit, as a tool node calls it."""

    def __init__(self, operations: Operations) -> None:
        self._tools = {tool.name: tool for tool in LMCacheToolkit(operations=operations).get_tools()}

    async def call(self, name: str, **arguments: object) -> tuple[str, Any]:
        """(``success`` or ``error``, the content of an error or the artifact)."""
        asked = {"name": name, "args": {"cache": "prod", **arguments}, "id": "1", "type": "tool_call"}
        answer = await asyncio.wait_for(self._tools[name].ainvoke(asked), STUCK)
        return answer.status, answer.artifact if answer.status == "success" else str(answer.content)


def read(tools: Tools, load: Load, draw: random.Random) -> Callable[[], Awaitable[None]]:
    """One poll of an agent."""

    async def poll() -> None:
        name = draw.choice(list(RAW))

        async def ours() -> None:
            status, told = await tools.call(name)
            if status != "success":
                load.problems.append(f"{name}: {told}")

        load.ours[name].append(await timed(ours))

    return poll


async def probe(client: httpx.AsyncClient, until: float, load: Load) -> None:
    """The raw calls of each tool in turn, side by side as the tool makes them."""
    for name in itertools.cycle(RAW):
        if time.monotonic() > until:
            return

        async def raw(paths: tuple[str, ...] = RAW[name]) -> None:
            for answer in await asyncio.gather(*(client.get(path) for path in paths)):
                answer.raise_for_status()

        with contextlib.suppress(httpx.TransportError):  # a connection that the server had closed, having been idle
            load.raw[name].append(await timed(raw))
        await asyncio.sleep(PROBE)


def change(tools: Tools, load: Load, draw: random.Random) -> Callable[[], Awaitable[None]]:
    """One change of an agent: planned, applied, and every second time undone."""

    async def step(name: str, **arguments: object) -> Any:  # noqa: ANN401  an artifact
        status, told = await tools.call(name, **arguments)
        if status == "success":
            load.changes[f"{name}: done"] += 1
            return told
        why = next((why for why, words in CLEAR.items() if words in told), None)
        load.changes[f"{name}: {why or 'failed'}"] += 1
        if why is None:
            load.problems.append(f"{name}: {told}")
        return None

    async def plan_and_apply() -> None:
        update = {"update": _update(draw)}
        plan = await step("lmcache_plan_update", **update)
        if plan is None:
            return
        fingerprint = plan["fingerprint"]
        done = await step("lmcache_update_config", **update, reason="a benchmark", plan_fingerprint=fingerprint)
        if done is not None and draw.random() < 0.5:
            await asyncio.sleep(draw.uniform(0, 1))
            await step("lmcache_undo_change", change_id=done["change_id"])

    return plan_and_apply


def _update(draw: random.Random) -> dict[str, object]:
    return draw.choice(
        [
            {"max_size_mb": draw.randint(32, 64)},
            {"eviction_policy": draw.choice(["lru", "arc"])},
            {"eviction_watermark": round(draw.uniform(0.5, 0.9), 2)},
            {"l2_prefetch_policy": draw.choice(["default", "retain"]), "eviction_ratio": round(draw.uniform(0.1, 0.5), 2)},
        ]
    )


async def again(work: Callable[[], Awaitable[None]], until: float, load: Load, draw: random.Random) -> None:
    """Do it, with pauses, until the time is over."""
    await asyncio.sleep(draw.uniform(0, PAUSE[1]))
    while time.monotonic() < until:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  what goes wrong is counted
            load.problems.append(f"{type(error).__name__}: {error}")
        await asyncio.sleep(draw.uniform(*PAUSE))


async def watch(one: Server, until: float, load: Load, began: float) -> None:
    """Count what is open and held."""
    processes = {
        "agents'": (psutil.Process(), server_memory.memory),
        "server's": (one._process, partial(memory_of, one)),  # noqa: SLF001  to be watched
    }
    while time.monotonic() < until:
        counts: dict[str, float] = {"seconds": time.monotonic() - began}
        for name, (process, memory) in processes.items():
            counts |= {f"{name} {what}": count for what, count in (await asyncio.to_thread(_held, process, memory)).items()}
        load.held.append(counts)
        await asyncio.sleep(EVERY)


def _held(process: psutil.Process, memory: Callable[[], dict[str, float]]) -> dict[str, float]:
    found = memory()
    return {
        "file descriptors": process.num_fds(),
        "sockets": len(process.net_connections("all")),
        "threads": process.num_threads(),
        "memory resident, MB": found["resident_mb"],
        "memory in use, MB": found["in_use_mb"],
    }


async def under_load(operations: Operations, one: Server, seconds: float) -> Load:
    """All agents at once."""
    load, draw, tools = Load(), random.Random(1), Tools(operations)  # noqa: S311  no secret
    began = time.monotonic()
    until = began + seconds
    async with httpx.AsyncClient(base_url=one.http_url, timeout=30, limits=LIMITS, trust_env=False) as client:
        work = [read(tools, load, draw) for _ in range(READERS)] + [change(tools, load, draw) for _ in range(CHANGERS)]
        agents = [again(each, until, load, draw) for each in work]
        await asyncio.wait_for(
            asyncio.gather(watch(one, until, load, began), probe(client, until, load), *agents), seconds + 3 * STUCK
        )
    return load


async def explained(operations: Operations) -> list[str]:
    """What of the settings in force the change log does not explain, and its gaps."""
    config = (await operations.config("prod"))[0].known()
    expected: dict[str, object] = {}
    records = await operations.changes()
    for record in records:
        if record.outcome is ChangeOutcome.APPLIED:
            expected |= {one.setting: one.new for one in record.changes}
    gaps = [
        f"{story[0].change_id}: {[record.outcome.value for record in story]}"
        for story in stories(records)
        if story[0].outcome is not ChangeOutcome.STARTED or len(story) == 1
    ]
    return [*gaps, *(f"{name}={config[name]}, by the log {value}" for name, value in expected.items() if config[name] != value)]


def figures(load: Load, seconds: float) -> dict[str, Any]:
    """Numbers of it all."""
    late = [one for one in load.held if one["seconds"] >= WARM * seconds]
    third = max(len(late) // 3, 1)
    held = {
        name: {
            "settled": float(np.median([one[name] for one in late[:third]])),
            "end": float(np.median([one[name] for one in late[-third:]])),
            "most": max(one[name] for one in late),
            "an_hour": float(3600 * np.polyfit([one["seconds"] for one in late], [one[name] for one in late], 1)[0]),
        }
        for name in late[0]
        if name != "seconds"
    }
    reads = {
        name: {
            "calls": len(load.ours[name]),
            **{
                f"{who}_p{share}": float(np.percentile(times[name], share))
                for who, times in _both(load)
                for share in (50, 95, 99)
            },
        }
        for name in RAW
    }
    return {
        "seconds": seconds,
        "reads": reads,
        "held": held,
        "changes": dict(sorted(load.changes.items())),
        "problems": load.problems,
    }


def _both(load: Load) -> tuple[tuple[str, dict[str, list[float]]], ...]:
    return ("ours", load.ours), ("raw", load.raw)


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    today = dt.datetime.now(tz=dt.timezone.utc)
    reads = [
        f"| {name} | {one['calls']} | {one['ours_p50']:.0f} | {one['ours_p95']:.0f} | {one['raw_p50']:.0f} | {one['raw_p95']:.0f}"
        f" | {one['ours_p95'] / one['raw_p95']:.2f} |"
        for name, one in found["reads"].items()
    ]
    held = [
        f"| {name} | {one['settled']:.1f} | {one['end']:.1f} | {one['most']:.1f} | {one['an_hour']:+.1f} |"
        for name, one in found["held"].items()
    ]
    unexplained = "; ".join(found["unexplained"]) or "nothing"
    return "\n".join(
        [
            "# Load",
            "",
            f"{machine()}, {today:%Y-%m-%d}. {READERS} agents poll one real server and {CHANGERS} change it for"
            f" {found['seconds'] / 60:.0f} minutes, while an engine sends 20 requests a second. Stuck or failed calls:"
            f" {len(found['problems'])}. Settings in force that the change log does not explain: {unexplained}.",
            "",
            "Time of a read, and of its raw HTTP calls under the same load, in milliseconds (target: p95 within 3 times the raw",
            "p95):",
            "",
            "| tool | calls | p50 | p95 | raw p50 | raw p95 | p95 ratio |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *reads,
            "",
            f"Open connections, files and memory after the first {WARM:.0%} of the time (medians of first and last third):",
            "",
            "| what | settled | at the end | most | trend per hour |",
            "|---|--:|--:|--:|--:|",
            *held,
            "",
            "Outcomes of changes (an agent that comes second gets an error that says so):",
            "",
            *(f"* {what}: {count}" for what, count in found["changes"].items()),
            "",
        ]
    )


def run(seconds: float) -> dict[str, Any]:
    """All of it; the figures."""
    with (
        tempfile.TemporaryDirectory() as folder,
        watched_server() as one,
        engine(one.rpc_url, 1),
    ):
        cache = CacheSettings(target=one.http_url, bounds=Bounds(max_size_mb=64), timeout_seconds=30)
        operations = Operations(Registry(Settings(caches={"prod": cache}, state_folder=Path(folder))))
        try:
            load = asyncio.run(under_load(operations, one, seconds))
            unexplained = io_loop.run(partial(explained, operations))
        finally:
            io_loop.run(operations.close)
    return {"machine": machine(), **figures(load, seconds), "unexplained": unexplained, "samples": load.held}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    observation.KEPT = KEPT
    found = run(60 * parser.parse_args().minutes)
    text = report(found)
    print(text)
    RESULTS.with_suffix(".md").write_text(text)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for problem in found["problems"][:20]:
        print(problem, file=sys.stderr)


if __name__ == "__main__":
    main()
