"""Measure what our layers cost on top of their raw HTTP calls to a real `lmcache server`, in one run.

Run from the repository root::

    PYTHONPATH=. python benchmarks/overhead.py

Each figure is a median. The benchmark alternates a tool with its raw calls, so that other load on the machine affects both
equally.
"""

import argparse
import asyncio
import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prediction import machine

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.io_loop import io_loop
from agent_tools.models import Baseline, Bounds, ChangeResult, ConfigUpdate, Mode
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

RESULTS = Path(__file__).parent / "results"
ROUNDS = 60
AGENTS = 50
VERIFY_SECONDS = 20.0
CONFIG = ("/status", "/config", "/config/adapters", "/quota", "/reconfigure/dax/l1/status", "/agent-tools/l2")
SEEN = (*CONFIG, "/metrics", "/agent-tools/window?since=1000000000")
"""The distinct calls that an observation needs, hence a pass of `tune_cache`."""
RAW = {
    "lmcache_get_status": (*SEEN, "/lmc_version", "/agent-tools/entries/top?limit=10"),
    "lmcache_get_metrics": ("/status", "/metrics"),
    "lmcache_get_config": CONFIG,
}
"""Reading tools and the distinct calls each needs."""
IMPORT = "from agent_tools import LMCacheToolkit; LMCacheToolkit().get_tools()"
IMPORT_OF_LANGCHAIN = "from langchain_core.tools import BaseToolkit, StructuredTool"


@dataclass(frozen=True)
class Line:
    """One measured figure."""

    what: str
    ours_ms: float
    raw_ms: float | None
    """The raw calls alone; ``None`` where there are none."""
    target: str

    @property
    def over_ms(self) -> float:
        """What we add."""
        return self.ours_ms - (self.raw_ms or 0.0)


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """Milliseconds that one call takes."""
    began = time.perf_counter()
    await work()
    return 1e3 * (time.perf_counter() - began)


async def in_turns(ours: Callable[[], Awaitable[Any]], raw: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Medians of both, taken in turns."""
    pairs = [(await timed(ours), await timed(raw)) for _ in range(ROUNDS)]
    mine, theirs = zip(*pairs[5:], strict=True)
    return statistics.median(mine), statistics.median(theirs)


async def reading(operations: Operations, client: httpx.AsyncClient) -> list[Line]:
    """Each reading tool against its raw calls, made side by side as the tool makes them."""
    tools = {tool.name: tool for tool in LMCacheToolkit(operations=operations).get_tools()}

    async def raw(paths: tuple[str, ...]) -> None:
        await asyncio.gather(*(client.get(path) for path in paths))

    lines = []
    for name, paths in RAW.items():
        ours, theirs = await in_turns(partial(tools[name].ainvoke, {}), partial(raw, paths))
        lines.append(Line(name, ours, theirs, "<= 5 ms over its calls"))
    graph = build_tune_cache(operations=operations).compile()
    context = TuneContext(mode=Mode.AUTO, window_seconds=0)
    ours, theirs = await in_turns(lambda: graph.ainvoke({}, context=context), lambda: raw(SEEN))
    outcome = (await graph.ainvoke({}, context=context))["tune_report"]["outcome"]
    lines.append(Line(f"a pass of tune_cache that decides {outcome}", ours, theirs, "<= 40 ms over its calls"))
    return lines


async def waiting(operations: Operations) -> tuple[float, float, int]:
    """Seconds of one verification without traffic, and of `AGENTS` at once, and how many threads these hold meanwhile."""

    async def change() -> tuple[ChangeResult, Baseline]:
        before = await operations.baseline("default")
        size = (await operations.config())[0].max_size_mb or 0
        plan = await operations.plan("default", ConfigUpdate(max_size_mb=size + 1), "a benchmark")
        return await operations.apply(plan, "a benchmark"), before

    changed, before = await io_loop.arun(change)

    async def verification() -> None:
        await io_loop.arun(operations.verify, changed, before, VERIFY_SECONDS)

    alone = await timed(verification) / 1e3
    threads = threading.active_count()
    began = time.perf_counter()
    runs = [asyncio.ensure_future(verification()) for _ in range(AGENTS)]
    await asyncio.sleep(VERIFY_SECONDS / 2)
    held = threading.active_count() - threads
    await asyncio.gather(*runs)
    return alone, time.perf_counter() - began, held


def import_seconds() -> tuple[float, float]:
    """Of the tools and of LangChain's part of them, each in a fresh interpreter, in turns, less the interpreter's own start."""

    def run(program: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603  our own program
        return time.perf_counter() - began

    rounds = [[run(program) for program in (IMPORT, IMPORT_OF_LANGCHAIN, "pass")] for _ in range(7)]
    tools, langchain, nothing = map(statistics.median, zip(*rounds, strict=True))
    return tools - nothing, langchain - nothing


def main() -> None:
    """Measure, print, and write the results."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    imports, langchain = import_seconds()
    with tempfile.TemporaryDirectory() as folder:
        cache = CacheSettings(embedded=EmbeddedOptions(l1_size_mb=32), bounds=Bounds(max_size_mb=64))
        operations = Operations(Registry(Settings(caches={"default": cache}, state_folder=Path(folder))))
        try:
            deployment = operations.registry.get("default").deployment
            assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  its settings say so
            server = io_loop.run(deployment.started)
            log = AgentTraffic(requests=300, tenants=1, seed=3).generate()
            replay(log.select(slice(0, 150)), server.rpc_url, ReplaySettings(kv_bytes_per_token=32))
            lines = asyncio.run(_read(operations, server.http_url))
            alone, together, threads = asyncio.run(waiting(operations))
        finally:
            io_loop.run(operations.close)
    text = report(lines, (imports, langchain), alone, together, threads)
    print(text)
    (RESULTS / "overhead.md").write_text(text)
    figures = {"machine": machine(), "import_seconds": imports, "import_of_langchain_seconds": langchain}
    figures |= {
        "verify_alone": alone,
        f"verify_{AGENTS}": together,
        "threads": threads,
        "lines": [asdict(line) for line in lines],
    }
    (RESULTS / "overhead.json").write_text(json.dumps(figures, indent=1) + "\n")


async def _read(operations: Operations, url: str) -> list[Line]:
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
        return await reading(operations, client)


def report(lines: list[Line], imports: tuple[float, float], alone: float, together: float, threads: int) -> str:
    """The figures as Markdown."""
    rows = [
        f"| {line.what} | {line.ours_ms:.1f} ms | {line.raw_ms:.1f} ms | {line.over_ms:+.1f} ms"
        f" | {line.ours_ms / line.raw_ms:.2f} | {line.target} |"
        for line in lines
        if line.raw_ms is not None
    ]
    return (
        "\n".join(
            [
                "# Overhead",
                "",
                f"{machine()}, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}. Medians of {ROUNDS - 5} calls, each in turns with"
                " the raw HTTP calls it needs, against a real `lmcache server`.",
                "",
                "| what | ours | its raw calls | over them | ratio | target |",
                "|---|--:|--:|--:|--:|---|",
                *rows,
                "",
                f"* Import of the tools in a fresh process: {imports[0]:.2f} s (target 0.7 s),"
                f" {imports[0] / imports[1]:.2f} times that of the classes of LangChain they are made of ({imports[1]:.2f} s).",
                f"* One agent that waits in `verify` for {VERIFY_SECONDS:g} s is done in {alone:.2f} s, {AGENTS} at once in"
                f" {together:.2f} s ({together / alone - 1:+.0%}; target 10 %), with {threads} threads more meanwhile.",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
