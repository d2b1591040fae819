"""Observations put together by hand: what a cache would show, figure by figure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import numpy as np

from agent_tools.deployments.server.settable import ARENAS, NOT_A_SETTING, SUPPORT
from agent_tools.models import (
    MB,
    SETTINGS,
    Bounds,
    CacheConfig,
    CacheMetrics,
    CacheStatus,
    EvictionPolicy,
    Health,
    Support,
    SupportLevel,
    TokenCounts,
    Window,
)
from agent_tools.models.cost import Economics
from agent_tools.models.metrics import utc
from agent_tools.prediction.server_model import simulate_server
from agent_tools.recommender.modelled import server_setting
from agent_tools.recommender.observation import Observation
from agent_tools.workload.access_log import AccessLog

CHUNK_SIZE = 256
BYTES_PER_TOKEN = 128
CHUNK_BYTES = CHUNK_SIZE * BYTES_PER_TOKEN
START = utc(1_800_000_000.0)
LIVE: Mapping[str, Support] = {setting: SUPPORT.get(setting, NOT_A_SETTING) for setting in SETTINGS} | {
    "max_size_mb": Support(level=SupportLevel.LIVE, reason=ARENAS)
}
CONFIG = CacheConfig(
    max_size_mb=16,
    eviction_policy=EvictionPolicy.LRU,
    auto_eviction=True,
    chunk_size=CHUNK_SIZE,
    min_prefix_length=CHUNK_SIZE,
    eviction_watermark=0.8,
    eviction_ratio=0.2,
    l2_adapters=(),
)
QUIET = CacheMetrics(
    status=CacheStatus.ENABLED,
    enabled=True,
    window=Window(start=START, end=START + timedelta(hours=10)),
    total_size_mb=16,
    used_size_mb=8,
    utilization_percent=50,
    total_requests=1000,
    tokens=TokenCounts(requested=1000 * CHUNK_SIZE, hit_l1=500 * CHUNK_SIZE),
    failed_stores=0,
    evictions=0,
    stored_chunks=500,
    short_prompts=0,
    dropped_events=0,
    kv_bytes_per_token=BYTES_PER_TOKEN,
)


def observation(
    log: AccessLog | None = None,
    *,
    bounds: Bounds | None = None,
    config: CacheConfig = CONFIG,
    health: Health | None = None,
    support: Mapping[str, Support] = LIVE,
    economics: Economics | None = None,
    **figures: object,
) -> Observation:
    """A quiet cache, but for these figures of its window; the log's times are moved into the window."""
    if log is not None:
        log = replace(log, timestamps=log.timestamps - log.timestamps[0] + START.timestamp() + 1)
    return Observation(
        cache="test",
        metrics=CacheMetrics.model_validate({**QUIET.model_dump(), **figures}),
        config=config,
        support=support,
        bounds=bounds or Bounds(max_size_mb=64, allow_restart=True),
        health=health or Health(healthy=True),
        log=log,
        economics=economics,
    )


def as_served(log: AccessLog, *, config: CacheConfig = CONFIG, **options: object) -> Observation:
    """What a cache set like this would show after serving a log, by the model of the server."""
    setting = server_setting(observation(log, config=config))
    assert setting is not None
    run = simulate_server(log, setting)
    asked = int(run.asked_chunks.sum(dtype=np.int64))
    return observation(
        log,
        config=config,
        total_requests=len(log),
        tokens=TokenCounts(
            requested=asked * CHUNK_SIZE,
            hit_l1=int(run.l1_hit_chunks.sum()) * CHUNK_SIZE,
            hit_l2=int(run.l2_hit_chunks.sum()) * CHUNK_SIZE,
        ),
        l2_evictions=run.l2_evicted_chunks,
        l2_loads_failed=run.load_failed_chunks,
        evictions=run.evicted_chunks,
        failed_stores=run.failed_chunks,
        stored_chunks=asked - int(run.hit_chunks.sum()) - run.failed_chunks,
        utilization_percent=100 * run.peak_chunks * CHUNK_BYTES / MB / (config.max_size_mb or 1),
        **options,  # type: ignore[arg-type]
    )
