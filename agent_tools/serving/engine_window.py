"""The window between two readings of an engine: counters are subtracted, gauges come from the later reading."""

import math
from dataclasses import fields

from agent_tools.models.engine import EngineMetrics, TimeToFirstToken

from .vllm_metrics import EngineCounters, EngineReading


def engine_between(before: EngineReading | None, after: EngineReading) -> EngineMetrics:
    """Return the figures between two readings.

    If the earlier reading is missing or of another process, return the figures since the engine started.
    """
    start = before if before is not None and after.follows(before) else None
    counted = difference(start, after)
    began = start.taken_at if start else after.process_start
    ended, first_tokens = counted.requests, counted.first_tokens
    return EngineMetrics(
        seconds=max(after.taken_at - (after.taken_at if began is None else began), 0.0),
        lifetime=start is None,
        requests=int(ended),
        ttft_ms=_ttft(start, after, 1e3 * counted.ttft_seconds / first_tokens) if first_tokens else None,
        queue_ms=1e3 * counted.queue_seconds / ended if ended else None,
        prefill_ms=1e3 * counted.prefill_seconds / ended if ended else None,
        decode_ms=1e3 * counted.decode_seconds / ended if ended else None,
        prompt_tokens=int(counted.prompt_tokens),
        computed_tokens=int(counted.computed_tokens),
        own_cache_size_tokens=after.own_cache_size,
        own_cache_tokens=int(counted.own_cache_tokens),
        lmcache_tokens=int(counted.lmcache_tokens),
        preemptions=int(counted.preemptions),
        running=after.running,
        waiting=after.waiting,
        kv_usage_percent=None if after.kv_usage is None else 100 * min(after.kv_usage, 1.0),
    )


def difference(before: EngineReading | None, after: EngineReading) -> EngineCounters:
    """Return what was counted between two readings of one process, or since the process started."""
    earlier = before.counters if before else EngineCounters()
    return EngineCounters(**{f.name: getattr(after.counters, f.name) - getattr(earlier, f.name) for f in fields(EngineCounters)})


def _ttft(before: EngineReading | None, after: EngineReading, mean: float) -> TimeToFirstToken | None:
    earlier = before.ttft_buckets if before else {}
    counts = sorted((bound, count - earlier.get(bound, 0.0)) for bound, count in after.ttft_buckets.items())
    if not counts or counts[-1][1] <= 0:
        return None
    p50, p95, p99 = (1e3 * _quantile(counts, share) for share in (0.5, 0.95, 0.99))
    return TimeToFirstToken(mean=mean, p50=p50, p95=p95, p99=p99)


def _quantile(cumulative: list[tuple[float, float]], share: float) -> float:
    """Return a quantile like Prometheus' ``histogram_quantile``: linear within a bucket; the last finite bound beyond it."""
    rank = share * cumulative[-1][1]
    low, below = 0.0, 0.0
    for bound, count in cumulative:
        if math.isinf(bound):
            break
        if count >= rank:
            return low + (bound - low) * (rank - below) / (count - below) if count > below else bound
        low, below = bound, count
    return low
