"""Prometheus text to the counters of a vLLM at one instant. Data-parallel engines behind one page are read one by one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.samples import Sample

from agent_tools.wire.prometheus import Page, samples_of

from .engine_reading import EngineCounters, EngineReading, together

_COUNTERS: Mapping[str, Sequence[str]] = {
    "requests": ("vllm:request_prompt_tokens_count",),
    "prompt_tokens": ("vllm:request_prompt_tokens_sum",),
    "computed_tokens": ("vllm:request_prefill_kv_computed_tokens_sum",),
    "queue_seconds": ("vllm:request_queue_time_seconds_sum",),
    "prefill_seconds": ("vllm:request_prefill_time_seconds_sum",),
    "decode_seconds": ("vllm:request_decode_time_seconds_sum",),
    "first_tokens": ("vllm:time_to_first_token_seconds_count",),
    "ttft_seconds": ("vllm:time_to_first_token_seconds_sum",),
    "own_cache_tokens": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "lmcache_tokens": ("vllm:external_prefix_cache_hits_total",),
    "admitted_tokens": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "preemptions": ("vllm:num_preemptions_total",),
}
"""Counter -> its names, the present one (0.32) first. The first name that a page has is read."""
_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
_SOURCES = {"local_cache_hit": "own_cache_tokens", "external_kv_transfer": "lmcache_tokens"}
"""Sources of prompt tokens. vLLM counts them when a prompt has been computed, and leaves out loads that failed; the counters of
hits are counted when a request is admitted."""
_NEEDED = frozenset({"requests", "prompt_tokens", "first_tokens", "ttft_seconds"})
"""Counters without which a page says too little."""
_BUCKET = "vllm:time_to_first_token_seconds_bucket"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_WAITING_FOR = "vllm:num_requests_waiting_by_reason"
_KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_START = "process_start_time_seconds"
_CACHE = "vllm:cache_config_info"
_NAMES = (
    *(name for names in _COUNTERS.values() for name in names),
    *(_BY_SOURCE, _BUCKET, _RUNNING, _WAITING, _WAITING_FOR, *_KV_USAGE, _START, _CACHE),
)
_WANTED = tuple(f"{name}{end}" for name in _NAMES for end in ("{", " "))


@dataclass
class _Page:
    """What one engine's lines of a page say."""

    counters: dict[str, float] = field(default_factory=dict)
    """Name of the metric, and for prompt tokens by source the source -> its value, summed over models."""
    gauges: dict[str, float] = field(default_factory=dict)
    buckets: dict[float, float] = field(default_factory=dict)
    cache: Mapping[str, str] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        """Add a line."""
        if sample.name == _BUCKET:
            bound = float(sample.labels["le"])
            self.buckets[bound] = self.buckets.get(bound, 0.0) + sample.value
        elif sample.name == _CACHE:
            self.cache = sample.labels
        elif sample.name in {_RUNNING, _WAITING, *_KV_USAGE}:
            self.gauges[sample.name] = self.gauges.get(sample.name, 0.0) + sample.value
        elif sample.name == _WAITING_FOR:
            if sample.labels.get("reason") == "capacity":
                self.gauges[_WAITING_FOR] = self.gauges.get(_WAITING_FOR, 0.0) + sample.value
        else:
            name = sample.labels.get("source", "") if sample.name == _BY_SOURCE else sample.name
            self.counters[name] = self.counters.get(name, 0.0) + sample.value

    def counted(self) -> dict[str, float]:
        """Return the counters that the page has, by the name of ours."""
        found = {ours: name for ours, names in _COUNTERS.items() for name in reversed(names) if name in self.counters}
        found |= {ours: source for source, ours in _SOURCES.items() if source in self.counters}
        return {ours: self.counters[name] for ours, name in found.items()}


def parse_vllm_metrics(page: Page, taken_at: float, name: str = "") -> EngineReading:
    """Read the text of vLLM's ``GET /metrics`` (known from 0.32; older names where they are known).

    Args:
        page: The page.
        taken_at: Unix time, seconds.
        name: Name of the engine.

    Raises:
        ValueError: The text is not in the Prometheus exposition format, or does not come from vLLM.
    """
    start, pages = _pages(samples_of(page, lambda line: line.startswith(_WANTED)))
    readings = [_reading(page, taken_at, start, f"{name}#{number}" if len(pages) > 1 else name) for number, page in pages.items()]
    if not readings:
        raise ValueError("it has none of the metrics of vLLM")
    return together(readings)


def _pages(samples: Iterable[Sample]) -> tuple[float | None, dict[str, _Page]]:
    """Return the start of the process, and what the page says of each engine behind it, by the engine's number."""
    start, pages = None, dict[str, _Page]()
    for sample in samples:
        if sample.name == _START:
            start = sample.value
        else:
            pages.setdefault(sample.labels.get("engine", "0"), _Page()).add(sample)
    return start, {number: pages[number] for number in sorted(pages)}


def _reading(page: _Page, taken_at: float, start: float | None, name: str) -> EngineReading:
    counted = page.counted()
    missing = _COUNTERS.keys() - counted
    if needed := sorted(_COUNTERS[one][0] for one in missing & _NEEDED):
        raise ValueError(f"these metrics are missing: {', '.join(needed)}")
    usage = next((page.gauges[one] for one in _KV_USAGE if one in page.gauges), None)
    return EngineReading(
        taken_at=taken_at,
        process_start=start,
        counters=EngineCounters(**counted),
        ttft_buckets=page.buckets,
        running=int(page.gauges.get(_RUNNING, 0)),
        waiting=int(page.gauges.get(_WAITING_FOR, page.gauges.get(_WAITING, 0))),
        kv_usage=usage,
        own_cache_size=_own_cache_size(page.cache),
        missing={one: _COUNTERS[one][0] for one in sorted(missing)},
        name=name,
    )


def _own_cache_size(cache: Mapping[str, str]) -> int | None:
    """Return the size of the engine's own prefix cache, tokens; see `EngineReading.own_cache_size`."""
    if cache.get("enable_prefix_caching") == "False":
        return 0
    # Layers of several kinds share the blocks; vLLM's own figure of tokens, where it gives one, takes that into account.
    if (tokens := cache.get("kv_cache_size_tokens", "")).isdecimal():
        return int(tokens)
    size, blocks = cache.get("block_size", ""), cache.get("num_gpu_blocks", "")
    return int(size) * int(blocks) if size.isdecimal() and blocks.isdecimal() else None
