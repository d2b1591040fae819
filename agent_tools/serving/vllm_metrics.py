"""Prometheus text -> the counters of one vLLM at one instant."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from agent_tools.wire.prometheus import samples_of


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the process started, over all its engines (data-parallel ranks). All never go down."""

    requests: float = 0
    """Requests that ended."""
    prompt_tokens: float = 0
    """Of these."""
    computed_tokens: float = 0
    """Of these, computed by prefill."""
    queue_seconds: float = 0
    """From arrival to the start of the prefill, the load from LMCache included."""
    prefill_seconds: float = 0
    decode_seconds: float = 0
    first_tokens: float = 0
    """Requests that had their first token."""
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
    """Unix time at which the process started."""
    counters: EngineCounters
    ttft_buckets: Mapping[float, float]
    """Upper bound, seconds -> requests whose first token came within it, since the process started."""
    running: int
    waiting: int
    """For room; those that wait for a load are left out where vLLM tells them apart."""
    kv_usage: float | None
    """Share of the engine's own KV memory in use."""

    def follows(self, earlier: "EngineReading") -> bool:
        """Whether this reading is of the same process as an earlier one, with no counter gone down."""
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
_WANTED = tuple(
    f"{name}{end}" for name in (*_COUNTERS, _BUCKET, _RUNNING, _WAITING, _WAITING_FOR, _KV_USAGE, _START) for end in ("{", " ")
)


def parse_vllm_metrics(text: str, taken_at: float) -> EngineReading:
    """Read the text of ``GET /metrics`` of a vLLM (known from 0.32).

    Raises:
        ValueError: The text is not in the Prometheus exposition format, or not vLLM's.
    """
    totals = dict.fromkeys(_COUNTERS.values(), 0.0)
    gauges: dict[str, list[float]] = {}
    buckets: dict[float, float] = {}
    seen: set[str] = set()
    for sample in samples_of(text, lambda line: line.startswith(_WANTED)):
        seen.add(sample.name)
        if sample.name in _COUNTERS:
            totals[_COUNTERS[sample.name]] += sample.value
        elif sample.name == _BUCKET:
            bound = float(sample.labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + sample.value
        elif sample.name != _WAITING_FOR or sample.labels.get("reason") == "capacity":
            gauges.setdefault(sample.name, []).append(sample.value)
    missing = sorted(_COUNTERS.keys() - seen)
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    usage = gauges.get(_KV_USAGE)
    return EngineReading(
        taken_at=taken_at,
        process_start=next(iter(gauges.get(_START, ())), None),
        counters=EngineCounters(**totals),
        ttft_buckets=buckets,
        running=int(sum(gauges.get(_RUNNING, ()))),
        waiting=int(sum(gauges.get(_WAITING_FOR, gauges.get(_WAITING, ())))),
        kv_usage=max(usage) if usage else None,
    )
