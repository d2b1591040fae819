"""Prometheus text -> the counters of one `lmcache server` at one instant."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from agent_tools.deployments.counters import MOST_MODELS, Counters, Labels, TokenCounters, TokensByLabels, Unlisted
from agent_tools.wire.prometheus import Page, process_start_of, tables_of
from agent_tools.wire.series_table import Floats, SeriesTable


@dataclass(frozen=True)
class Exposition:
    """One reading of ``/metrics``."""

    process_start: float | None
    """Unix time at which the process started (``process_start_time_seconds``)."""
    instance_id: str | None
    """``target_info{service_instance_id}``, which is the server's ``--instance-id``."""
    counters: Counters
    tokens: dict[Labels, TokenCounters]
    unlisted: Unlisted
    objects_per_token: dict[str, float]
    """L1 objects read per token hit of each model with hits, measured over the lifetime: 1 / chunk size with one rank."""
    unregistered: dict[str, int]
    """Lookups by model that ended because no engine registered the model with that world size."""
    l2_loaded_objects: int
    """Objects loaded from L2."""
    absent: frozenset[str]
    """The fields of `Counters`, and ``tokens``, of which there is no series. LMCache exports a series from its first event on."""
    names: frozenset[str]
    """The names of the series that are there, as far as we read them."""
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
_HITS_OF_ANY_TIER = "lmcache_mp_lookup_hit_tokens_total"
_L2_LOADED = "lmcache_mp_l2_prefetch_load_completed_chunks_total"
_UNREGISTERED = "unregistered"
_WANTED = (
    "lmcache_mp_lookup",
    "lmcache_mp_l1_write_chunks_total",
    "lmcache_mp_l1_evicted_chunks_total",
    "lmcache_mp_l1_allocation_failure_chunks_total",
    "lmcache_mp_event_bus_dropped_events_total",
    "lmcache_mp_l1_eviction_loop_ticks_total",
    "lmcache_mp_l1_chunk_evict_reuse_gap_seconds_",
    "lmcache_mp_l2_prefetch_failure_chunks_total",
    _L2_LOADED,
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
    ("lmcache_mp_lookup_early_exit_requests_total", "reason", "no_gpu_context"): _UNREGISTERED,
    ("lmcache_mp_lookup_early_exit_requests_total", "reason", "no_group_layout_descs"): "no_layout",
    ("lmcache_mp_l2_prefetch_failure_chunks_total", "reason", "l1_oom"): "l2_loads_failed",
    ("lmcache_mp_l2_prefetch_failure_chunks_total", "reason", "not_found"): "l2_loads_lost",
    # Chunks that were not asked for again are recorded as 300 s, the last finite bucket.
    (_EVICT_REUSE_BUCKET, "le", "120.0"): "evicted_needed",
    (f"{_RPC}_sum", "grpc_method", "lmcache.mp.LookupService/Lookup"): "lookup_seconds",
    (f"{_RPC}_sum", "grpc_method", "lmcache.mp.LookupService/WaitPrefetchStatus"): "lookup_seconds",
    (f"{_RPC}_count", "grpc_method", "lmcache.mp.LookupService/Lookup"): "lookup_calls",
}


def parse_exposition(page: Page, *, splits_hits: bool = True) -> Exposition:
    """Read the text of ``GET /metrics`` of an `lmcache server`.

    Args:
        page: The page.
        splits_hits: Whether the server counts hits by tier. If not (LMCache up to 0.5.4), all hits are in `hit_l1`.

    Raises:
        ValueError: The text is not in the Prometheus exposition format.
    """
    totals: dict[str, float] = {field.name: 0.0 for field in fields(Counters)}
    tokens = TokensByLabels()
    fields_of_tokens = _TOKENS if splits_hits else {**_TOKENS, _HITS_OF_ANY_TIER: "hit_l1"}
    keys_hit: dict[str, float] = {}
    tokens_hit: dict[str, float] = {}
    l2_loaded = 0.0
    unregistered: dict[str, float] = {}
    present: set[str] = set()
    names: set[str] = set()
    process: list[SeriesTable] = []
    for table in tables_of(page, _wanted):
        name, values, models = table.name, table.values, table.column("model_name")
        if name in fields_of_tokens:
            tokens.add(fields_of_tokens[name], table)
            present.add("tokens")
            if name == "lmcache_mp_lookup_hit_l1_tokens_total":
                _add(tokens_hit, models, values)
        elif name == "lmcache_mp_lookup_hit_l1_keys_total":
            _add(keys_hit, models, values)
        elif name == _L2_LOADED:
            l2_loaded += float(values.sum())
        elif name in _TOTALS:
            totals[_TOTALS[name]] += float(values.sum())
            present.add(_TOTALS[name])
        elif name in {"process_start_time_seconds", "target_info"}:
            process.append(table)
        for field, rows in _labelled(table):
            totals[field] += float(rows.values.sum())
            present.add(field)
            if field == _UNREGISTERED:
                _add(unregistered, rows.column("model_name"), rows.values)
        names.add(name)
    seconds, speeds = totals.pop("lookup_seconds"), totals.pop("l2_load_speeds")
    counts = {name: int(value) for name, value in totals.items()}
    return Exposition(
        process_start=process_start_of(process),
        instance_id=next((one.column("service_instance_id")[0] for one in process if one.name == "target_info"), "") or None,
        counters=Counters(lookup_seconds=seconds, l2_load_speeds=speeds, **counts),
        tokens=tokens.tokens,
        unlisted=tokens.unlisted,
        unregistered={model: int(count) for model, count in unregistered.items()},
        l2_loaded_objects=int(l2_loaded),
        absent=frozenset({*totals, "tokens"} - present),
        objects_per_token={model: keys_hit.get(model, 0.0) / hit for model, hit in tokens_hit.items() if hit},
        names=frozenset(names),
        # The event bus's counter is there from the first second, long before the first lookup.
        has_cache_metrics=any(name.startswith("lmcache_mp_") for name in names),
    )


def _add(sums: dict[str, float], models: Sequence[str], values: Floats) -> None:
    """Add to the sums of models. Clients choose these names, so only the first ones have a sum."""
    for model, value in zip(models, values.tolist(), strict=True):
        if model in sums or len(sums) < MOST_MODELS:
            sums[model] = sums.get(model, 0.0) + value


def _wanted(line: str) -> bool:
    if not line.startswith(_WANTED):
        return False
    name = line.partition("{")[0]
    return "_bucket" not in name or name == _EVICT_REUSE_BUCKET


def _labelled(table: SeriesTable) -> Iterator[tuple[str, SeriesTable]]:
    """Return the fields of `Counters` that rows with a certain label add to, and these rows."""
    for (name, label, value), field in _LABELLED.items():
        if name == table.name and len((rows := table.where(label, value)).values):
            yield field, rows
