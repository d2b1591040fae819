"""Reading a cache: one reading, a window of two readings, and everything the recommender looks at."""

import asyncio
import time
from dataclasses import replace

import anyio

from agent_tools.deployments.base import Progress, silent
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.models import Bounds
from agent_tools.models.change import Baseline
from agent_tools.prediction.cost import kv_size, measured_economics
from agent_tools.recommender.observation import Observation
from agent_tools.serving.admissions import admissions_of
from agent_tools.serving.engine_reading import EngineReading
from agent_tools.serving.engine_speed import fitted_speed
from agent_tools.workload.access_log import AccessLog, lookups_since

from .history import merged, requests_digest
from .registry import Cache

READ_EVERY = 0.45
"""Seconds between readings while a window is observed. It does not divide the server's one-second tick, so the readings reveal
when the tick falls."""
Readings = tuple[Snapshot | None, Snapshot]
"""The two readings of a window. The first is ``None`` if the window starts with the cache process."""


async def read(cache: Cache) -> Snapshot:
    """Read the cache, and the serving engine in front of it, and keep the reading in the cache's history."""
    snapshot, engine = await asyncio.gather(cache.deployment.snapshot(), _engine_reading(cache))
    if cache.engine is not None:
        snapshot = replace(snapshot, engine=engine, no_engine=cache.engine.trouble or "")
    cache.history.add(snapshot)
    return snapshot


async def watch(cache: Cache) -> Snapshot:
    """Return a reading not older than `READ_EVERY`. All callers that wait on one cache share it."""
    async with cache.watched:
        latest = cache.history.latest
        # The clock of this machine may have been set back since the last reading.
        fresh = latest is not None and abs(time.time() - latest.taken_at) < READ_EVERY
        return latest if latest is not None and fresh else await read(cache)


async def window(cache: Cache, seconds: float | None, progress: Progress = silent, since: float | None = None) -> Readings:
    """Return the readings of a window that ends now.

    Args:
        cache: The cache to read.
        seconds: Length of the window; waits for what earlier readings do not cover. ``None`` starts it with the cache process.
        progress: Called while waiting.
        since: Start the window at this Unix time instead, if the history has a reading from then.
    """
    after = await read(cache)
    kept = cache.history.at_or_before(since) if since is not None else None
    if kept is not None or seconds is None:
        return kept, after
    covered = cache.history.at_or_before(after.taken_at - seconds)
    if covered is not None:
        return covered, after
    start = cache.history.first_of_process(after)
    while (left := start.taken_at + seconds - time.time()) > 0:
        progress(f"observing {cache.name}: {left:.0f} s left")
        await anyio.sleep(min(left, READ_EVERY))
        after = await read(cache)
    return start, after


async def observe(
    cache: Cache,
    emptied: float | None = None,
    readings: Readings | None = None,
    bounds: Bounds | None = None,
    *,
    read_log: bool = True,
) -> Observation:
    """Return everything the recommender looks at.

    Args:
        cache: The cache to read.
        emptied: Unix time at which we last cleared the cache: lookups before it say nothing about what L1 holds.
        readings: The window; everything since the cache process started by default.
        bounds: Narrows the operator's bounds.
        read_log: Whether to read the access log.
    """

    async def given() -> Readings:
        return readings or (None, await read(cache))

    async def logged() -> AccessLog | None:
        return await cache.deployment.access_log(since=emptied) if read_log else None

    log, (before, after), config, support = await asyncio.gather(
        logged(), given(), cache.deployment.config(), cache.deployment.support()
    )
    log = await lookups_since(log, after.process_start)
    engines = cache.history.engine_readings()
    metrics, speed = metrics_between(before, after), fitted_speed(engines)
    return Observation(
        cache=cache.name,
        metrics=metrics,
        config=config,
        support=support,
        bounds=cache.settings.bounds.narrowed(bounds),
        health=after.health,
        polls=cache.history.polls(),
        economics=cache.settings.economics or measured_economics(speed, kv_size(metrics, log)),
        engine_speed=speed,
        own_cache_tokens=cache.settings.engine_cache_tokens,
        admissions=admissions_of(engines),
        log=log,
    )


def baseline(cache: Cache, readings: Readings, log: AccessLog | None) -> Baseline:
    """Return what a verification compares: the figures of a window, and a digest of its requests if there is a log of them."""
    metrics = metrics_between(*readings)
    return Baseline(
        metrics=metrics,
        intervals=merged(cache.history.intervals(metrics.window.start.timestamp(), metrics.window.end.timestamp())),
        requests_digest=None if log is None else requests_digest(log),
    )


async def _engine_reading(cache: Cache) -> EngineReading | None:
    return None if cache.engine is None else await cache.engine.reading()
