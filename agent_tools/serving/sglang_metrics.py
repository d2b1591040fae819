"""Prometheus text to the counters of an SGLang at one instant. Written from SGLang's documentation of its production metrics.

**Not run**: no SGLang was at hand; the tests read a page written after the documentation. SGLang counts the tokens that it
found cached, and LMCache puts what it loads into SGLang's radix cache. So the page does not tell what LMCache loaded from what
the radix cache had, and both stay unknown.
"""

from agent_tools.wire.prometheus import Page, samples_of

from .engine_reading import EngineCounters, EngineReading

_PROMPT, _CACHED, _REQUESTS = "sglang:prompt_tokens_total", "sglang:cached_tokens_total", "sglang:num_requests_total"
_TTFT = "sglang:time_to_first_token_seconds"
_QUEUE = "sglang:queue_time_seconds_sum"
_RETRACTED = "sglang:num_retracted_requests_total"
_SIZE, _USAGE, _RUNNING, _WAITING = (
    f"sglang:{name}" for name in ("max_total_num_tokens", "token_usage", "num_running_reqs", "num_queue_reqs")
)
_START = "process_start_time_seconds"
_NAMES = (_PROMPT, _CACHED, _REQUESTS, *(f"{_TTFT}_{end}" for end in ("count", "sum", "bucket")), _QUEUE, _RETRACTED)
_GAUGES = (_SIZE, _USAGE, _RUNNING, _WAITING)
_WANTED = tuple(f"{name}{end}" for name in (*_NAMES, *_GAUGES, _START) for end in ("{", " "))
_NEEDED = (_PROMPT, f"{_TTFT}_count", f"{_TTFT}_sum")
_APART = "sglang:cached_tokens_total apart for the radix cache and LMCache"
UNKNOWN = {
    "own_cache_tokens": _APART,
    "lmcache_tokens": _APART,
    "prefill_seconds": "a sum of prefill times",
    "decode_seconds": "a sum of decode times",
    "admitted_tokens": "prompt tokens admitted",
}
"""Counters that no SGLang has, and what is missing."""


def parse_sglang_metrics(page: Page, taken_at: float, name: str = "") -> EngineReading:
    """Read the text of SGLang's ``GET /metrics`` (``--enable-metrics``).

    Args:
        page: The page.
        taken_at: Unix time, seconds.
        name: Name of the engine.

    Raises:
        ValueError: The text is not in the Prometheus exposition format, or does not come from SGLang.
    """
    totals, buckets, gauges = dict[str, float](), dict[float, float](), dict[str, float]()
    for sample in samples_of(page, lambda line: line.startswith(_WANTED)):
        if sample.name == f"{_TTFT}_bucket":
            bound = float(sample.labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + sample.value
        elif sample.name in _GAUGES:  # each rank of a tensor-parallel engine may show them: the same figure, not parts of it
            gauges[sample.name] = max(gauges.get(sample.name, 0.0), sample.value)
        else:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    if missing := [one for one in _NEEDED if one not in totals]:
        raise ValueError(f"these metrics are missing: {', '.join(missing)}")
    found = {
        "requests": totals.get(_REQUESTS, totals[f"{_TTFT}_count"]),
        "prompt_tokens": totals[_PROMPT],
        "first_tokens": totals[f"{_TTFT}_count"],
        "ttft_seconds": totals[f"{_TTFT}_sum"],
    }
    if _CACHED in totals:
        found["computed_tokens"] = max(totals[_PROMPT] - totals[_CACHED], 0.0)
    found |= {ours: totals[one] for ours, one in (("queue_seconds", _QUEUE), ("preemptions", _RETRACTED)) if one in totals}
    optional = {"computed_tokens": _CACHED, "queue_seconds": _QUEUE, "preemptions": _RETRACTED}
    return EngineReading(
        taken_at=taken_at,
        process_start=totals.get(_START),
        counters=EngineCounters(**found),
        ttft_buckets=buckets,
        running=int(gauges.get(_RUNNING, 0)),
        waiting=int(gauges.get(_WAITING, 0)),
        kv_usage=gauges.get(_USAGE),
        own_cache_size=int(gauges[_SIZE]) if _SIZE in gauges else None,
        missing=UNKNOWN | {ours: metric for ours, metric in optional.items() if ours not in found},
        name=name,
    )
