"""Prometheus text -> the counters of one `lmcache server` at one instant."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

MOST = 2.0**63
"""No count or size comes near it."""
LATEST = 253_370_764_800.0
"""Unix time of the year 9999, after which Python has none."""
Labels = tuple[str, str]
"""(model name, tenant)"""


@dataclass(frozen=True)
class TokenCounters:
    """Lookup counters of one model and tenant, in tokens, since the process started."""

    requested: int = 0
    hit_l1: int = 0
    hit_l2: int = 0


@dataclass(frozen=True)
class Counters:
    """Totals since the process started, summed over label sets; chunks unless said otherwise. All never go down."""

    lookups: int = 0
    short_prompts: int = 0
    stored_chunks: int = 0
    evictions: int = 0
    failed_stores: int = 0
    dropped_events: int = 0
    evicted_followed: int = 0
    """Evicted chunks whose fate LMCache followed for five minutes: a sample, see ``--metrics-sample-rate``."""
    evicted_needed: int = 0
    """Of these, asked for again within two minutes of their eviction."""
    l2_loads_failed: int = 0
    """Chunks found in L2 that could not be loaded because L1 had no room."""
    l2_loads_lost: int = 0
    """Chunks found in L2 whose load brought nothing."""
    l2_evictions: int = 0
    """Chunks that L2 evicted."""
    l2_loads: int = 0
    """Loads from L2 that were timed."""
    l2_load_speeds: float = 0.0
    """Sum of their speeds, GB/s."""
    eviction_ticks: int = 0
    """Wake-ups of the L1 eviction thread, about one a second."""
    lookup_calls: int = 0
    """Lookup RPCs timed; only with ``--transport grpc``."""
    lookup_seconds: float = 0.0
    """Time spent in those calls, waiting for the L2 prefetch included."""
    missed_lookups: int = 0
    """Lookups that found nothing; counted by engines only."""


@dataclass(frozen=True)
class Exposition:
    """One reading of ``/metrics``."""

    process_start: float | None
    """Unix time at which the process started (``process_start_time_seconds``)."""
    instance_id: str | None
    """``target_info{service_instance_id}``, which is the server's ``--instance-id``."""
    counters: Counters
    tokens: dict[Labels, TokenCounters]
    objects_per_token: float | None
    """L1 objects read per token hit, measured over the lifetime: 1 / chunk size with one rank; ``None`` before the first hit."""
    has_cache_metrics: bool
    """False when the server exports none (``--otlp-endpoint``, ``--disable-metrics`` or ``--disable-observability``)."""


_TOTALS = {
    "lmcache_mp_lookups_requests_total": "lookups",
    "lmcache_mp_l1_write_chunks_total": "stored_chunks",
    "lmcache_mp_l1_evicted_chunks_total": "evictions",
    "lmcache_mp_event_bus_dropped_events_total": "dropped_events",
    "lmcache_mp_l2_evicted_objects_chunks_total": "l2_evictions",
    "lmcache_mp_l2_load_throughput_GB_per_second_count": "l2_loads",
    "lmcache_mp_l2_load_throughput_GB_per_second_sum": "l2_load_speeds",
    "lmcache_mp_l1_eviction_loop_ticks_total": "eviction_ticks",
    "lmcache_mp_l1_chunk_evict_reuse_gap_seconds_count": "evicted_followed",
}
_TOKENS = {
    "lmcache_mp_lookup_requested_tokens_total": "requested",
    "lmcache_mp_lookup_hit_l1_tokens_total": "hit_l1",
    "lmcache_mp_lookup_hit_l2_tokens_total": "hit_l2",
}
_WANTED = (
    "lmcache_mp_lookup",
    "lmcache_mp_l1_write_chunks_total",
    "lmcache_mp_l1_evicted_chunks_total",
    "lmcache_mp_l1_allocation_failure_chunks_total",
    "lmcache_mp_event_bus_dropped_events_total",
    "lmcache_mp_l1_eviction_loop_ticks_total",
    "lmcache_mp_l1_chunk_evict_reuse_gap_seconds_",
    "lmcache_mp_l2_prefetch_failure_chunks_total",
    "lmcache_mp_l2_evicted_objects_chunks_total",
    "lmcache_mp_l2_load_throughput_GB_per_second_",
    "grpc_server_call_duration_seconds_",
    "process_start_time_seconds",
    "target_info",
)
_EVICT_REUSE_BUCKET = "lmcache_mp_l1_chunk_evict_reuse_gap_seconds_bucket"
_RPC = "grpc_server_call_duration_seconds"
_LABELLED = {
    # (name, label, value of the label)
    ("lmcache_mp_l1_allocation_failure_chunks_total", "during", "l1_store"): "failed_stores",
    ("lmcache_mp_lookup_early_exit_requests_total", "reason", "empty_chunk_hashes"): "short_prompts",
    ("lmcache_mp_l2_prefetch_failure_chunks_total", "reason", "l1_oom"): "l2_loads_failed",
    ("lmcache_mp_l2_prefetch_failure_chunks_total", "reason", "not_found"): "l2_loads_lost",
    # Chunks that were not asked for again are recorded as 300 s, the last finite bucket.
    (_EVICT_REUSE_BUCKET, "le", "120.0"): "evicted_needed",
    (f"{_RPC}_sum", "grpc_method", "lmcache.mp.LookupService/Lookup"): "lookup_seconds",
    (f"{_RPC}_sum", "grpc_method", "lmcache.mp.LookupService/WaitPrefetchStatus"): "lookup_seconds",
    (f"{_RPC}_count", "grpc_method", "lmcache.mp.LookupService/Lookup"): "lookup_calls",
}


def parse_exposition(text: str) -> Exposition:
    """Read the text of ``GET /metrics`` of an `lmcache server` 0.5.6.

    Raises:
        ValueError: The text is not in the Prometheus exposition format.
    """
    samples = list(samples_of(text, _wanted))
    totals: dict[str, float] = {field.name: 0.0 for field in fields(Counters)}
    tokens: dict[Labels, dict[str, int]] = {}
    for sample in samples:
        if sample.name in _TOKENS:
            found = tokens.setdefault((sample.labels.get("model_name", ""), sample.labels.get("cache_salt", "")), {})
            found[_TOKENS[sample.name]] = found.get(_TOKENS[sample.name], 0) + int(sample.value)
        elif (name := _total_of(sample)) is not None:
            totals[name] += sample.value
    seconds, speeds = totals.pop("lookup_seconds"), totals.pop("l2_load_speeds")
    counts = {name: int(value) for name, value in totals.items()}
    return Exposition(
        process_start=process_start_of(samples),
        instance_id=next((s.labels.get("service_instance_id") for s in samples if s.name == "target_info"), None),
        counters=Counters(lookup_seconds=seconds, l2_load_speeds=speeds, **counts),
        tokens={labels: TokenCounters(**found) for labels, found in tokens.items()},
        objects_per_token=_objects_per_token(samples),
        # The bus counter is exported from the first second, long before the first lookup.
        has_cache_metrics=any(s.name == "lmcache_mp_event_bus_dropped_events_total" for s in samples),
    )


def samples_of(text: str, wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """The samples of wanted series; the rest of a page of histograms is dropped before the (slow) parser sees it.

    Args:
        text: In the Prometheus exposition format.
        wanted: Whether a line is to be read. Names of tenants and models stand in it, and may hold anything.

    Raises:
        ValueError: It is not in that format, a figure is none that a count or a size can have, or a series stands there twice.
    """
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    # Only \n ends a line: `splitlines` would also cut at what a label may hold.
    lines = "\n".join(line for line in text.split("\n") if wanted(line))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            if not 0 <= sample.value < MOST:  # which NaN is not
                raise ValueError(f"{sample.name} is {sample.value}, which is no count")
            if series in seen:
                raise ValueError(f"{sample.name} stands there twice with the same labels")
            seen.add(series)
            yield sample


def process_start_of(samples: Iterable[Sample]) -> float | None:
    """Unix time at which the process started."""
    start = next((sample.value for sample in samples if sample.name == "process_start_time_seconds"), None)
    if start is not None and start > LATEST:
        raise ValueError(f"process_start_time_seconds is {start}, which is no time")
    return start


def _wanted(line: str) -> bool:
    if not line.startswith(_WANTED):
        return False
    name = line.partition("{")[0]
    return "_bucket" not in name or name == _EVICT_REUSE_BUCKET


def _objects_per_token(samples: Iterable[Sample]) -> float | None:
    hits = {"lmcache_mp_lookup_hit_l1_keys_total": 0.0, "lmcache_mp_lookup_hit_l1_tokens_total": 0.0}
    for sample in samples:
        if sample.name in hits:
            hits[sample.name] += sample.value
    keys, tokens = hits.values()
    return keys / tokens if tokens else None


def _total_of(sample: Sample) -> str | None:
    """The field of `Counters` that a sample adds to."""
    if sample.name in _TOTALS:
        return _TOTALS[sample.name]
    return next((_LABELLED[key] for key in ((sample.name, *label) for label in sample.labels.items()) if key in _LABELLED), None)
