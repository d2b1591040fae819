"""The demo: a real `lmcache server` with too small an L1, real traffic, `tune_cache`, and the same traffic again."""

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread

from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment
from agent_tools.deployments.start_options import EmbeddedOptions
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, CacheMetrics, Mode, VerificationVerdict
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.readers import read_trace
from agent_tools.workload.replay import replay
from agent_tools.workload.schedule import ReplaySettings, first_that_fit

PASS_SECONDS = 35.0
"""Planned duration of one pass of traffic, seconds."""
SMALL = 0.15
"""Size of the first L1, as a share of the size that would hold the whole workload."""
ROOM = 1.6
"""The operator's bound on L1, as a multiple of the size that would hold the whole workload."""
FOOTPRINT_MB = 200
"""Size of a recorded trace's KV in total, MB. The size of a chunk follows from it, within 8 to 128 KB."""

Progress = Callable[[int, int, CacheMetrics], None]
"""Called with (requests done, all requests, the server's figures of this pass so far)."""


@dataclass(frozen=True)
class Workload:
    """The traffic that the demo replays."""

    log: AccessLog
    pace: float
    """Time compression; see `ReplaySettings.pace`."""
    seconds: float
    """Planned duration of one pass, seconds."""
    kv_bytes_per_token: int
    description: str

    @property
    def footprint_mb(self) -> float:
        """Return the L1 size that would hold every chunk, MB."""
        return self.log.unique_chunks * self.log.chunk_size * self.kv_bytes_per_token / MB


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo, from the server's own counters."""

    before: CacheMetrics
    after: CacheMetrics | None
    """``None`` if nothing was changed, so there was no second pass."""
    report: TuneReport
    corrupt_chunks: int
    """Chunks that came back with other bytes than were stored, over both passes."""

    @property
    def verified(self) -> bool:
        """Whether the change is in force and was verified to help."""
        found = self.report.verification
        return found is not None and found.verdict is VerificationVerdict.BETTER and found.in_force


def agent_workload(seed: int, seconds: float = PASS_SECONDS) -> Workload:
    """Return generated multi-turn agent traffic that can be replayed in `seconds`."""
    whole = AgentTraffic(requests=4000, seed=seed).generate()
    log, pace = first_that_fit(whole, seconds)
    return Workload(log, pace, seconds, 128, f"generated agent traffic (seed {seed}): {_shape(log, pace)}")


def recorded_workload(path: Path, seconds: float = PASS_SECONDS, *, skip_bad_lines: bool = False) -> Workload:
    """Return the first requests of a recorded trace that can be replayed in `seconds`."""
    whole = read_trace(path, skip_bad_lines=skip_bad_lines)
    log, pace = first_that_fit(whole, seconds)
    chunk_bytes = min(max(FOOTPRINT_MB * MB // max(log.unique_chunks, 1), 8 * 1024), 128 * 1024)
    per_token = max(chunk_bytes // log.chunk_size // 4 * 4, 4)
    skipped = f", {whole.bad_lines} broken lines skipped" if whole.bad_lines else ""
    return Workload(
        log, pace, seconds, per_token, f"{path.name}: the first {len(log)} of {len(whole)} requests{skipped}: {_shape(log, pace)}"
    )


def settings_for(workload: Workload, state_folder: Path) -> Settings:
    """Return settings with one private server that has LMCache's default eviction settings and too small an L1."""
    embedded = EmbeddedOptions(l1_size_mb=max(round(workload.footprint_mb * SMALL), 4), chunk_size=workload.log.chunk_size)
    bounds = Bounds(max_size_mb=round(workload.footprint_mb * ROOM))
    return Settings(
        caches={DEFAULT: CacheSettings(embedded=embedded, bounds=bounds, cooldown_seconds=0)}, state_folder=state_folder
    )


async def run_demo(workload: Workload, settings: Settings, say: Callable[[str], None], on_progress: Progress) -> DemoResult:
    """Run the whole demo. In any case the server is stopped, and only its log and the change log remain.

    Args:
        workload: The traffic to replay, twice.
        settings: Settings with an embedded cache named `default`.
        say: Called with one sentence for each thing that happens.
        on_progress: Called about twice a second while traffic runs.
    """
    async with _operations(settings) as operations:
        deployment = operations.registry.get(DEFAULT).deployment
        assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  the settings define it so
        server = await io_loop.arun(deployment.started)
        say(f"`lmcache server` runs at {server.http_url}; log: {server.log}")
        play = partial(_play, operations, workload, server.rpc_url, on_progress)
        before, corrupt = await play()
        report, second = await _tune(operations, play, 3 * workload.seconds, say)
        after, more = second or (None, 0)
        return DemoResult(before=before, after=after, report=report, corrupt_chunks=corrupt + more)


Pass = tuple[CacheMetrics, int]


async def _tune(
    operations: Operations, play: Callable[[], Awaitable[Pass]], patience: float, say: Callable[[str], None]
) -> tuple[TuneReport, Pass | None]:
    """Run `tune_cache`. When it has applied its change, empty L1 and replay the workload again, so that it can verify."""
    graph = build_tune_cache(operations=operations).compile(name="tune_cache")
    context = TuneContext(mode=Mode.AUTO, window_seconds=0, verify_seconds=patience)
    report: dict[str, Any] = {}
    second: list[Pass] = []

    async def play_again() -> None:
        await io_loop.arun(operations.clear, DEFAULT, "demo", "both passes start with an empty L1, so that they can be compared")
        second.append(await play())

    async with anyio.create_task_group() as tasks:
        stream = graph.astream({"tune_reason": "demo"}, context=context, stream_mode=["custom", "values"])
        async for kind, event in cast("AsyncIterator[tuple[str, Any]]", stream):
            if kind == "values":
                report = event.get("tune_report", report)
                continue
            if event["step"] != "verify":
                say(event["message"])
            if event["message"].startswith("applied"):
                tasks.start_soon(play_again)
    return TuneReport.model_validate(report), second[0] if second else None


async def _play(operations: Operations, workload: Workload, rpc_url: str, on_progress: Progress) -> Pass:
    """Replay the workload once. Return the server's own figures of that time, and the number of corrupt chunks."""
    settings = ReplaySettings(pace=workload.pace, kv_bytes_per_token=workload.kv_bytes_per_token)
    stop, done = threading.Event(), [0]

    def count(finished: int, _: int) -> None:
        done[0] = finished

    start = (await io_loop.arun(operations.metrics, DEFAULT)).window.end.timestamp()

    async def figures() -> CacheMetrics:
        return await io_loop.arun(operations.metrics, DEFAULT, time.time() - start)

    async def watch() -> None:
        while True:
            await anyio.sleep(READ_EVERY)
            on_progress(done[0], len(workload.log), await figures())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        result = await _in_thread(partial(replay, workload.log, rpc_url, settings, stop=stop, on_progress=count), stop)
        tasks.cancel_scope.cancel()
    metrics = await figures()
    on_progress(len(workload.log), len(workload.log), metrics)
    return metrics, result.corrupt_chunks


async def _in_thread(work: Callable[[], Any], stop: threading.Event) -> Any:  # noqa: ANN401
    """Run blocking work in a thread. When cancelled, set `stop` and wait until the work has ended."""
    ended = anyio.Event()
    outcome: list[Any] = []

    async def run() -> None:
        with anyio.CancelScope(shield=True):
            try:
                outcome.append(await anyio.to_thread.run_sync(work))
            finally:
                ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            await ended.wait()
        finally:
            stop.set()
    return outcome[0]


@asynccontextmanager
async def _operations(settings: Settings) -> AsyncIterator[Operations]:
    operations = Operations(Registry(settings))
    try:
        yield operations
    finally:
        with anyio.CancelScope(shield=True):
            await io_loop.arun(operations.close)


def _shape(log: AccessLog, pace: float) -> str:
    return (
        f"{len(log)} requests, {len(log.chunk_ids)} chunks of {log.chunk_size} tokens, {log.unique_chunks} distinct;"
        f" {log.duration:.0f} s of traffic, replayed {pace:.1f} times as fast"
    )
