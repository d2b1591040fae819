"""The window between two readings of an engine: counters are subtracted, gauges come from the later reading."""

import math
from collections.abc import Collection

from agent_tools.models.engine import EngineMetrics, TimeToFirstToken

from .engine_reading import COUNTERS, EngineCounters, EngineReading

PARTS = ("computed_tokens", "own_cache_tokens", "lmcache_tokens")
"""The sources of prompt tokens. Together they are all prompt tokens."""


def engine_between(before: EngineReading | None, after: EngineReading) -> EngineMetrics:
    """Return the figures between two readings.

    If the earlier reading is missing or of another process, return the figures since the engine started. If one of several
    engines restarted, all figures are since the start of each.
    """
    start = before if before is not None and after.follows(before) else None
    whole = _between(start, after)
    if not after.engines:
        return whole
    earlier = {one.name: one for one in start.engines} if start else {}
    each = tuple(_between(earlier.get(one.name), one) for one in after.engines)
    return whole.model_copy(update={"engines": each})


def _between(start: EngineReading | None, after: EngineReading) -> EngineMetrics:
    counted = difference(start, after)
    began = start.taken_at if start else after.process_start
    ended, first_tokens = counted.requests, counted.first_tokens

    def per_request(name: str) -> float | None:
        return 1e3 * float(getattr(counted, name)) / ended if ended and name not in after.missing else None

    return EngineMetrics(
        seconds=max(after.taken_at - (after.taken_at if began is None else began), 0.0),
        lifetime=start is None,
        name=after.name,
        requests=int(ended),
        ttft_ms=_ttft(start, after, 1e3 * counted.ttft_seconds / first_tokens) if first_tokens else None,
        queue_ms=per_request("queue_seconds"),
        prefill_ms=per_request("prefill_seconds"),
        decode_ms=per_request("decode_seconds"),
        prompt_tokens=int(counted.prompt_tokens),
        **_sources(counted, after.missing),
        own_cache_size_tokens=after.own_cache_size,
        preemptions=int(counted.preemptions),
        running=after.running,
        waiting=after.waiting,
        kv_usage_percent=None if after.kv_usage is None else 100 * min(after.kv_usage, 1.0),
        missing=tuple(sorted(set(after.missing.values()))),
    )


def _sources(counted: EngineCounters, missing: Collection[str]) -> dict[str, int | None]:
    """Return the prompt tokens of each source. If the page lacks one of them, it is what the others leave of the prompts."""
    found = {name: None if name in missing else int(getattr(counted, name)) for name in PARTS}
    unknown = [name for name, tokens in found.items() if tokens is None]
    if len(unknown) == 1:
        known = sum(tokens for tokens in found.values() if tokens is not None)
        found[unknown[0]] = max(int(counted.prompt_tokens) - known, 0)
    return found


def loaded_between(before: EngineReading | None, after: EngineReading | None) -> int | None:
    """Return the prompt tokens that the engine loaded from LMCache between two readings.

    Return ``None`` if a reading is missing, if the engine restarted between them, or if its page does not tell.
    """
    if before is None or after is None or not after.follows(before):
        return None
    return _sources(difference(before, after), after.missing)["lmcache_tokens"]


def difference(before: EngineReading | None, after: EngineReading) -> EngineCounters:
    """Return what was counted between two readings of one process, or since the process started."""
    earlier = before.counters if before else EngineCounters()
    return EngineCounters(**{name: getattr(after.counters, name) - getattr(earlier, name) for name in COUNTERS})


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
