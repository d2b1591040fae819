"""Reading a cache: one reading, a window of two readings, and everything the recommender looks at."""

import asyncio
import time
from dataclasses import replace

import anyio

from agent_tools.deployments.base import Progress, silent
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.errors import MissingRouteError, RefusedError
from agent_tools.models import Bounds, CacheMetrics
from agent_tools.models.change import Baseline
from agent_tools.prediction.cost import kv_size, measured_economics
from agent_tools.recommender.observation import Observation
from agent_tools.serving.admissions import admissions_of
from agent_tools.serving.engine_reading import EngineReading
from agent_tools.serving.engine_speed import fitted_speed
from agent_tools.workload.access_log import AccessLog, lookups_since

from .history import History, merged, requests_digest
from .registry import Cache

LAST_MINUTE = 60.0
"""Seconds of the latest figures that a longer window must not hide."""
READ_EVERY = 0.45
"""Seconds between readings while a window is observed. It does not divide the server's one-second tick, so the readings reveal
when the tick falls."""
MOST_WAITS = 2.0
"""A request for a window waits at most this many times its length, if settings are changed again and again meanwhile."""
RECENT = 300.0
"""Seconds that a status's symptoms look back on."""
LEAST_RECENT = 60.0
"""Fewest seconds of readings that say more about the present than everything since the cache process started."""
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


async def window(
    cache: Cache, seconds: float | None, progress: Progress = silent, since: float | None = None, changed: float | None = None
) -> Readings:
    """Return the readings of a window that ends now and spans no change of settings.

    Args:
        cache: The cache to read.
        seconds: Length of the window. The call waits for what no reading since the last change covers. ``None`` starts the
            window with the last change that was seen, else with the cache process.
        progress: Called while waiting.
        since: Start the window at this Unix time instead, if the history has a reading from then.
        changed: Unix time of the last change of settings on record. `History.changed_at` knows changes by others.
    """
    await _settings_read(cache)
    after = await read(cache)
    if since is not None and cache.history.at_or_before(since) is None:
        since = None
    patience, waited = time.time() + MOST_WAITS * (seconds or 0.0), False
    while True:
        start = _start(cache.history, after, seconds, since, changed)
        left = 0.0 if seconds is None or start is None or since is not None else start.taken_at + seconds - time.time()
        if left > 0 and time.time() < patience:
            progress(f"observing {cache.name}: {left:.0f} s left")
            await anyio.sleep(min(left, READ_EVERY))
            after, waited = await read(cache), True
        elif waited and await _settings_read(cache):
            after = await read(cache)
        else:
            return start, after


async def recent(cache: Cache, changed: float | None = None) -> Readings:
    """Return the readings of the last minutes, as far as they were observed, without waiting and across no change of settings."""
    await _settings_read(cache)
    after = await read(cache)
    covered = _start(cache.history, after, RECENT, None, changed)
    if covered is None or covered.after_change or after.taken_at - covered.taken_at >= LEAST_RECENT:
        return covered, after
    return None, after


def _start(
    history: History, after: Snapshot, seconds: float | None, since: float | None, changed: float | None
) -> Snapshot | None:
    """Return the first reading of a window that ends with `after`: the process's first if `seconds` are not covered yet."""
    known = [instant for instant in (changed, history.changed_at) if instant is not None]
    limit = max(known, default=None)
    if limit is not None and after.process_start is not None and limit < after.process_start:
        limit = None
    if since is not None:
        start = history.at_or_before(since)
    elif seconds is not None:
        start = history.at_or_before(after.taken_at - seconds) or history.first_of_process(after)
    else:
        start = None
    if limit is None:
        return start
    first = history.first_of_process(after, limit)
    within = start is not None and start is not first and start.asked_at >= limit
    return start if within else replace(first, after_change=True)


async def _settings_read(cache: Cache) -> bool:
    """Read the settings in force. Return whether they were changed since they were last read."""
    config = await cache.deployment.config()
    return cache.history.settings_read(config, time.time())


async def log_or_why(cache: Cache, since: float | None) -> tuple[AccessLog | None, str | None]:
    """Return the access log since a Unix time, or why the cache does not give it. Both are ``None`` if it has none."""
    try:
        return await cache.deployment.access_log(since=since), None
    except (MissingRouteError, RefusedError) as error:
        return None, str(error)


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

    async def logged() -> tuple[AccessLog | None, str | None]:
        return await log_or_why(cache, emptied) if read_log else (None, None)

    (log, no_log), (before, after), config, support = await asyncio.gather(
        logged(), given(), cache.deployment.config(), cache.deployment.support()
    )
    cache.history.settings_read(config, time.time())
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
        no_log=no_log,
        recent=_recent(cache, after) if metrics.window.seconds > LAST_MINUTE or metrics.window.lifetime else None,
        version=after.version,
        age_seconds=None if after.process_start is None else max(after.taken_at - after.process_start, 0.0),
    )


def _recent(cache: Cache, after: Snapshot) -> CacheMetrics | None:
    """Return the figures of the last minute, or of as much of it as this process has seen; ``None`` before a second reading."""
    before = cache.history.at_or_before(after.taken_at - LAST_MINUTE) or cache.history.first_of_process(after)
    return metrics_between(before, after) if before.taken_at < after.taken_at and after.follows(before) else None


def baseline(cache: Cache, readings: Readings, log: AccessLog | None) -> Baseline:
    """Return what a verification compares: the figures of a window, and a digest of its requests if there is a log of them."""
    metrics = metrics_between(*readings)
    served = cache.history.served(metrics.window.start.timestamp(), metrics.window.end.timestamp())
    rows = merged([(one.requested, one.hit, one.loaded or 0) for one in served if one.requested or one.loaded])
    return Baseline(
        metrics=metrics,
        intervals=tuple((requested, hit) for requested, hit, _ in rows),
        loaded=() if any(one.loaded is None for one in served) else tuple(loaded for *_, loaded in rows),
        requests_digest=None if log is None else requests_digest(log),
    )


async def _engine_reading(cache: Cache) -> EngineReading | None:
    return None if cache.engine is None else await cache.engine.reading()
