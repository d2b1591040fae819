"""A cache as the server model runs it on generated agents, observed and advised on by the real recommender."""

from dataclasses import dataclass, replace

from agent_tools.models import (
    MB,
    Advice,
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
from agent_tools.models.config import SETTINGS
from agent_tools.models.metrics import utc
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import recommend
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

START = 1_780_000_000.0
"""Unix time of the first request."""
KV_BYTES = 128 * 1024
"""KV bytes per token, as LLaMA-3-8B has."""


@dataclass(frozen=True)
class Example:
    """One observed cache."""

    log: AccessLog
    metrics: CacheMetrics
    advice: Advice


def agents(requests: int = 1500, **parameters: int) -> AccessLog:
    """Generated agents, in Unix time, with the KV bytes of a chunk stated."""
    log = AgentTraffic.model_validate({"requests": requests, "seed": 7, **parameters}).generate()
    return replace(log, timestamps=log.timestamps + START, chunk_bytes=KV_BYTES * log.chunk_size)


def metrics_of(log: AccessLog, size_mb: float, model: str = "llama-3-8b", tenant: str = "") -> CacheMetrics:
    """What the server would have counted on a log, with watermark 0.8 and ratio 0.2."""
    chunk_mb = KV_BYTES * log.chunk_size / MB
    run = simulate_server(log, ServerSetting(size_mb / chunk_mb))
    asked = int(run.asked_chunks.sum())
    tokens = TokenCounts(requested=asked * log.chunk_size, hit_l1=run.hit_tokens)
    stored = asked - int(run.hit_chunks.sum()) - run.failed_chunks
    used = (stored - run.evicted_chunks) * chunk_mb
    return CacheMetrics(
        status=CacheStatus.ENABLED,
        enabled=True,
        window=Window(start=utc(log.timestamps[0]), end=utc(log.timestamps[-1])),
        total_size_mb=size_mb,
        used_size_mb=used,
        available_size_mb=size_mb - used,
        utilization_percent=100 * used / size_mb,
        total_requests=len(log),
        cache_hits=int((run.hit_chunks > 0).sum()),
        cache_misses=int((run.hit_chunks == 0).sum()),
        hit_rate_percent=100 * run.hit_rate,
        tokens_served=tokens.hit,
        tokens_computed=tokens.requested - tokens.hit,
        tokens=tokens,
        by_model={model: tokens},
        by_tenant={tenant: tokens},
        failed_stores=run.failed_chunks,
        evictions=run.evicted_chunks,
        stored_chunks=stored,
        short_prompts=0,
        dropped_events=0,
        kv_bytes_per_token=KV_BYTES,
        unavailable={"avg_latency_ms": "LMCache 0.5.6 times no lookups"},
    )


def observed(
    log: AccessLog, size_mb: float, *, cache: str = "default", largest_mb: float | None = 65_536, **names: str
) -> Example:
    """A server of this L1 size on this log, whose size can be changed live up to a bound."""
    metrics = metrics_of(log, size_mb, **names)
    seen = Observation(
        cache=cache,
        metrics=metrics,
        config=CacheConfig(
            max_size_mb=size_mb,
            chunk_size=log.chunk_size,
            eviction_policy=EvictionPolicy.LRU,
            eviction_watermark=0.8,
            eviction_ratio=0.2,
        ),
        support={name: Support(level=SupportLevel.LIVE, reason="a test says so") for name in SETTINGS},
        bounds=Bounds(max_size_mb=largest_mb),
        health=Health(healthy=True),
        log=log,
    )
    return Example(log, metrics, recommend(seen))
