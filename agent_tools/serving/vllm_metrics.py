"""Prometheus text to the counters of one vLLM at one instant."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from agent_tools.wire.prometheus import samples_of


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the process started, over all its engines (data-parallel ranks). No counter ever decreases."""

    requests: float = 0
    """Number of requests that ended."""
    prompt_tokens: float = 0
    """Prompt tokens of the requests that ended."""
    computed_tokens: float = 0
    """Prompt tokens computed by prefill."""
    queue_seconds: float = 0
    """Time from arrival to the start of the prefill, including the load from LMCache."""
    prefill_seconds: float = 0
    decode_seconds: float = 0
    first_tokens: float = 0
    """Number of requests that had their first token."""
    ttft_seconds: float = 0
    own_cache_tokens: float = 0
    lmcache_tokens: float = 0
    preemptions: float = 0


@dataclass(frozen=True)
class EngineReading:
    """One reading of ``/metrics``."""

    taken_at: float
    """Unix time, seconds."""
    process_start: float | None
    """Unix time at which the process started, seconds; ``None`` if the page does not say."""
    counters: EngineCounters
    ttft_buckets: Mapping[float, float]
    """Upper bound, seconds -> number of requests with a first token within it, since the process started."""
    running: int
    waiting: int
    """Requests that wait for room. Requests that wait for a load are left out if vLLM distinguishes them."""
    kv_usage: float | None
    """Share of the engine's own KV memory in use, 0 to 1."""
    own_cache_size: int | None = None
    """Tokens that the engine's own prefix cache holds; 0 if it is off. ``None`` if the page does not say, or if several engines
    share it: each then has a cache of its own."""

    def follows(self, earlier: "EngineReading") -> bool:
        """Return whether this reading is of the same process as an earlier reading, with no counter decreased."""
        same = self.process_start == earlier.process_start
        return same and all(getattr(self.counters, f.name) >= getattr(earlier.counters, f.name) for f in fields(EngineCounters))


_COUNTERS = {
    "vllm:request_prompt_tokens_count": "requests",
    "vllm:request_prompt_tokens_sum": "prompt_tokens",
    "vllm:request_prefill_kv_computed_tokens_sum": "computed_tokens",
    "vllm:request_queue_time_seconds_sum": "queue_seconds",
    "vllm:request_prefill_time_seconds_sum": "prefill_seconds",
    "vllm:request_decode_time_seconds_sum": "decode_seconds",
    "vllm:time_to_first_token_seconds_count": "first_tokens",
    "vllm:time_to_first_token_seconds_sum": "ttft_seconds",
    "vllm:prefix_cache_hits_total": "own_cache_tokens",
    "vllm:external_prefix_cache_hits_total": "lmcache_tokens",
    "vllm:num_preemptions_total": "preemptions",
}
_BUCKET = "vllm:time_to_first_token_seconds_bucket"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_WAITING_FOR = "vllm:num_requests_waiting_by_reason"
_KV_USAGE = "vllm:kv_cache_usage_perc"
_START = "process_start_time_seconds"
_CACHE = "vllm:cache_config_info"
_NAMES = (*_COUNTERS, _BUCKET, _RUNNING, _WAITING, _WAITING_FOR, _KV_USAGE, _START, _CACHE)
_WANTED = tuple(f"{name}{end}" for name in _NAMES for end in ("{", " "))


def parse_vllm_metrics(text: str, taken_at: float) -> EngineReading:
    """Read the text of vLLM's ``GET /metrics`` (known from 0.32).

    Raises:
        ValueError: The text is not in the Prometheus exposition format, or does not come from vLLM.
    """
    totals = dict.fromkeys(_COUNTERS.values(), 0.0)
    gauges: dict[str, list[float]] = {}
    buckets: dict[float, float] = {}
    caches: list[Mapping[str, str]] = []
    seen: set[str] = set()
    for sample in samples_of(text, lambda line: line.startswith(_WANTED)):
        seen.add(sample.name)
        if sample.name in _COUNTERS:
            totals[_COUNTERS[sample.name]] += sample.value
        elif sample.name == _BUCKET:
            bound = float(sample.labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + sample.value
        elif sample.name == _CACHE:
            caches.append(sample.labels)
        elif sample.name != _WAITING_FOR or sample.labels.get("reason") == "capacity":
            gauges.setdefault(sample.name, []).append(sample.value)
    missing = sorted(_COUNTERS.keys() - seen)
    if missing:
        raise ValueError(f"these metrics are missing: {', '.join(missing)}")
    usage = gauges.get(_KV_USAGE)
    return EngineReading(
        taken_at=taken_at,
        process_start=next(iter(gauges.get(_START, ())), None),
        counters=EngineCounters(**totals),
        ttft_buckets=buckets,
        running=int(sum(gauges.get(_RUNNING, ()))),
        waiting=int(sum(gauges.get(_WAITING_FOR, gauges.get(_WAITING, ())))),
        kv_usage=max(usage) if usage else None,
        own_cache_size=_own_cache_size(caches),
    )


def _own_cache_size(caches: list[Mapping[str, str]]) -> int | None:
    """Return the size of the one engine's own prefix cache, tokens; see `EngineReading.own_cache_size`."""
    if len(caches) != 1:
        return None
    (cache,) = caches
    if cache.get("enable_prefix_caching") == "False":
        return 0
    size, blocks = cache.get("block_size", ""), cache.get("num_gpu_blocks", "")
    return int(size) * int(blocks) if size.isdecimal() and blocks.isdecimal() else None
