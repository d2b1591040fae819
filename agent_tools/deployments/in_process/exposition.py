"""Read the counters of in-process LMCache (``lmcache:*``) from Prometheus text.

LMCache updates these counters every 10 s. Only the number of chunks in L1 and the health are current.

Ranks of a tensor-parallel engine may share a page, each under its ``worker_id``. Every rank looks up every prompt and stores its
part of every chunk. So lookups, tokens, stored and evicted chunks are those of one rank; bytes and keys are those of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from agent_tools.deployments.counters import Counters, Labels, TokenCounters, TokensByLabels, Unlisted
from agent_tools.wire.prometheus import Page, process_start_of, tables_of
from agent_tools.wire.series_table import SeriesTable

REFRESH_SECONDS = 10.0
"""Largest age of the counters of in-process LMCache 0.5.6, in seconds."""
_COUNTS = {
    "lmcache:num_lookup_requests_total": "lookups",
    "lmcache:lookup_0_hit_requests_total": "missed_lookups",
    "lmcache:num_stored_tokens_total": "stored_tokens",
    "lmcache:local_cpu_evict_keys_count_total": "evicted_keys",
    "lmcache:time_to_lookup_count": "lookup_calls",
    "lmcache:time_to_lookup_sum": "lookup_seconds",
    "lmcache:local_cache_usage": "l1_used_bytes",
    "lmcache:local_storage_usage": "disk_used_bytes",
    "lmcache:local_cpu_hot_cache_count": "resident_keys",
}
_OF_ALL_RANKS = {"l1_used_bytes", "disk_used_bytes", "resident_keys"}
"""What each rank has for itself. The other counts are the same on every rank."""
_TOKENS = {"lmcache:num_lookup_tokens_total": "requested", "lmcache:num_lookup_hits_total": "hit_l1"}
_HEALTHY = "lmcache:lmcache_is_healthy"
_START = "process_start_time_seconds"
_WANTED = tuple(f"{name}{end}" for name in (*_COUNTS, *_TOKENS, _HEALTHY, _START) for end in ("{", " "))


@dataclass(frozen=True)
class InProcessExposition:
    """One reading of ``/metrics``."""

    process_start: float | None
    """Unix time in seconds at which the process started."""
    counters: Counters | None
    """The counters. ``None`` if the process exports no ``lmcache:*`` series."""
    tokens: dict[Labels, TokenCounters]
    """Tokens by model; there are no tenants. Hits in all tiers count as hits in L1, because LMCache does not separate them."""
    unlisted: Unlisted
    l1_used_bytes: int
    disk_used_bytes: int
    """Bytes in the local disk tier, counted since it was attached."""
    resident_keys: int
    """Keys in L1: for each rank one per chunk, or one per chunk and layer."""
    ranks: int
    """Number of ranks on the page that were read."""
    healthy: bool | None
    """The verdict of LMCache's health monitor. ``None`` without a monitor."""


def parse_in_process_exposition(
    page: Page, chunk_size: int, keys_per_chunk: int, worker_id: str | None = None
) -> InProcessExposition:
    """Return the reading in the text of ``GET /metrics`` of in-process LMCache 0.5.6.

    Args:
        page: The page.
        chunk_size: Tokens per chunk.
        keys_per_chunk: Keys of a chunk on one rank.
        worker_id: The rank to read where the page has several, because the others have addresses of their own. ``None``: all.

    Raises:
        ValueError: The text is not in the Prometheus exposition format.
    """
    tables = list(tables_of(page, lambda line: line.startswith(_WANTED)))
    ranks = _ranks(tables)
    if worker_id in ranks:
        tables, ranks = [_of_rank(table, worker_id) for table in tables], [worker_id]
    sums = dict.fromkeys(_COUNTS.values(), 0.0)
    tokens = TokensByLabels()
    for table in tables:
        if table.name in _COUNTS:
            field = _COUNTS[table.name]
            sums[field] += float((table if field in _OF_ALL_RANKS else _of_rank(table, ranks[0])).values.sum())
        elif table.name in _TOKENS:
            tokens.add(_TOKENS[table.name], _of_rank(table, ranks[0]))
    counters = Counters(
        lookups=int(sums["lookups"]),
        missed_lookups=int(sums["missed_lookups"]),
        stored_chunks=round(sums["stored_tokens"] / chunk_size),
        evictions=round(sums["evicted_keys"] / keys_per_chunk),
        lookup_calls=int(sums["lookup_calls"]),
        lookup_seconds=sums["lookup_seconds"],
    )
    health = [value > 0 for table in tables if table.name == _HEALTHY for value in table.values.tolist()]
    return InProcessExposition(
        process_start=process_start_of(tables),
        counters=counters if any(table.name in _COUNTS for table in tables) else None,
        tokens=tokens.tokens,
        unlisted=tokens.unlisted,
        l1_used_bytes=int(sums["l1_used_bytes"]),
        disk_used_bytes=int(sums["disk_used_bytes"]),
        resident_keys=int(sums["resident_keys"]),
        ranks=max(len(ranks), 1),
        healthy=all(health) if health else None,
    )


def _ranks(tables: Sequence[SeriesTable]) -> list[str]:
    """Return the ranks whose lookups, tokens or bytes are on the page, the lowest first."""
    found = {rank for table in tables if table.name in _COUNTS or table.name in _TOKENS for rank in table.column("worker_id")}
    return sorted(found - {""} or found, key=lambda rank: (len(rank), rank))


def _of_rank(table: SeriesTable, rank: str) -> SeriesTable:
    """Return the series of one rank. The process's own have no rank, and stay."""
    return table.where("worker_id", rank) if "worker_id" in table.labels else table
